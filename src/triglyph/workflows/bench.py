"""`triglyph bench`: list and show protocols, judge a model or an encoder's features, compare runs.

| verb                     | function       |
|--------------------------|----------------|
| `bench list`             | `list_protocols` |
| `bench show NAME`        | `show_protocol`  |
| `bench run NAME ...`     | `bench`          |
| `bench compare RUN...`   | `compare_runs`   |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triglyph.errors import ContractError, RecipeError, SplitError

if TYPE_CHECKING:
    from triglyph.bench.contracts import Embedder, Subject, Trial
    from triglyph.bench.protocol import Protocol
    from triglyph.bench.suite import Report
    from triglyph.bench.table import Table
    from triglyph.metrics.result import Result
    from triglyph.tissue.cohort import Cohort

ALL = "all"
BASELINE = "stain-texture"


def list_protocols() -> None:
    """Print the protocols and what each asks."""
    from rich.console import Console
    from rich.table import Table as RichTable

    from triglyph.bench.registry import PROTOCOLS

    table = RichTable("protocol", "version", "digest", "what it asks")
    for name, cls in PROTOCOLS.items():
        card = cls().card()
        table.add_row(name, card.version, card.digest()[:8], card.summary)
    Console().print(table)


def show_protocol(name: str, *, overrides: Iterable[str] = ()) -> None:
    """Print the card of a protocol: what is fitted where, what sees the test set, every constant.

    Parameters
    ----------
    name
        As in `triglyph bench list`.
    overrides
        `key=value` constants.
    """
    import yaml
    from rich.console import Console

    from triglyph.bench.registry import parse_options, protocol

    card = protocol(name, parse_options(overrides)).card()
    shown = {k: v for k, v in card.model_dump(mode="json").items() if v not in ("", None)}
    text = yaml.safe_dump({**shown, "digest": card.digest()}, sort_keys=False, allow_unicode=True, width=100)
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def bench(
    name: str,
    *,
    cohort: Path,
    out: Path,
    model: Path | None = None,
    embedding: str | None = None,
    split: str | None = None,
    fold: str | None = None,
    null: int = 20,
    seed: int = 0,
    baselines: bool = True,
    baseline_encoder: str = BASELINE,
    prompts: Path | None = None,
    overrides: Iterable[str] = (),
    allow_other_split: bool = False,
) -> Path:
    """Judge a trained model, or the stored features of an encoder, on the test sections of a split.

    Parameters
    ----------
    name
        A protocol, or `all` for those that apply.
    cohort
        Folder of the cohort.
    out
        Folder for `results.parquet`, `results.json`, `table.md` and `manifest.json`; must not exist.
    model
        A run folder of `triglyph train`.
    embedding
        Name or fingerprint of an encoder whose features `triglyph embed` has stored.
    split
        A saved split; a model's own one if left out.
    fold
        Its fold; left out, a model's own one, or all folds for an embedding.
    null
        Refits of a model's heads on shuffled pairs, 20 or more; 0 leaves the null out.
    seed
        Of the null's first refit.
    baselines
        Judge the baselines too.
    baseline_encoder
        The encoder without weights whose features are the baseline: `stain-texture`, `stain-texture-level0`.
    prompts
        YAML or JSON of phrases for each class, for `zero-shot`.
    overrides
        `key=value` constants of the protocol, for example `n_genes=250`.
    allow_other_split
        Judge a model on a split that it was not trained with.

    Returns
    -------
    Path
        The folder written.

    Raises
    ------
    SplitError
        A test section was trained on, or the split is not the model's.
    RecipeError
        Both or neither of `model` and `embedding`, or an option is not understood.
    """
    from rich.console import Console

    from triglyph.bench.table import tabulate
    from triglyph.metrics.result import write_results
    from triglyph.storage import atomic_folder, write_json
    from triglyph.tissue.cohort import Cohort

    if (model is None) == (embedding is None):
        raise RecipeError("give either --model or --embedding", where="bench run", mend="one of the two")
    clock = _Clock()
    opened = Cohort.open(Path(cohort))
    subject, manifest, own = _subject(opened, model, embedding)
    chosen = opened.split(_split_name(split, own.get("split"), opened.splits, allow_other=allow_other_split))
    folds = _folds(chosen, fold, own.get("fold"))
    console = Console(stderr=True)
    results: list[Result] = []
    stamps: dict[str, Any] = {}
    with atomic_folder(Path(out)) as partial:
        with console.status("reading") as status:
            for one in folds:
                results += _one_fold(
                    name,
                    subject,
                    opened,
                    chosen,
                    one,
                    stamps=stamps,
                    null=null,
                    seed=seed,
                    with_baselines=baselines,
                    baseline_encoder=baseline_encoder,
                    prompts=prompts,
                    overrides=tuple(overrides),
                    report=status.update,
                )
        write_results(results, partial)
        table = tabulate(results)
        (partial / "table.md").write_text(table.markdown(), encoding="utf-8")
        write_json(
            partial / "manifest.json",
            {
                "verb": "bench run",
                "subject": manifest,
                "cohort": {"name": opened.name, "digest": opened.digest()},
                "split": {"name": chosen.name, "digest": chosen.digest(), "folds": folds},
                "protocols": stamps,
                "null": {"refits": null if model is not None else 0, "seed": seed},
                "baseline_encoder": baseline_encoder if baselines else "",
                **clock.read(),
            },
        )
    _print(table, Console())
    return Path(out)


def compare_runs(runs: Sequence[Path], *, out: Path | None = None) -> Path:
    """Put the results of several runs side by side, on the screen and as Markdown.

    Parameters
    ----------
    runs
        Folders with `results.json`.
    out
        The Markdown file; `comparison.md` in the working directory if left out.

    Raises
    ------
    RecipeError
        No run was given, or two folders have one name.
    """
    from rich.console import Console

    from triglyph.bench.table import merge, tabulate
    from triglyph.metrics.result import read_results
    from triglyph.storage import atomic_file

    paths = [Path(run) for run in runs]
    if not paths:
        raise RecipeError("no run to compare", where="bench compare", mend="give one or more run folders")
    if len({p.resolve().name for p in paths}) < len(paths):
        raise RecipeError("two runs have the same folder name", where="bench compare", mend="rename one of them")
    table = tabulate(merge({p.resolve().name: read_results(p) for p in paths}))
    target = Path("comparison.md") if out is None else Path(out)
    with atomic_file(target) as partial:
        partial.write_text(table.markdown(), encoding="utf-8")
    _print(table, Console())
    return target


# ---- parts of `bench run`


def _one_fold(
    name: str,
    subject: Subject,
    cohort: Cohort,
    split: Any,
    fold: str,
    *,
    stamps: dict[str, Any],
    null: int,
    seed: int,
    with_baselines: bool,
    baseline_encoder: str,
    prompts: Path | None,
    overrides: tuple[str, ...],
    report: Report,
) -> list[Result]:
    from triglyph.bench.contracts import Trial
    from triglyph.bench.suite import evaluate

    trial = Trial.of(cohort, split, fold=fold)
    trial.levels(subject)  # before anything is computed
    protocols = _protocols(name, subject, trial, prompts, overrides)
    stamps.update({p.stamp: p.card().model_dump(mode="json") for p in protocols})
    features = _baseline_features(trial, baseline_encoder, report) if with_baselines else None
    refit = None
    if null and hasattr(subject.source, "manifest") and any(p.has_null for p in protocols):
        refit = _refits(subject, trial)
    return evaluate(
        subject,
        trial,
        protocols,
        stain_texture=features,
        with_baselines=with_baselines,
        refit=refit,
        n_refits=null,
        seed=seed,
        report=report,
    )
