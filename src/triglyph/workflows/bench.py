"""`triglyph bench`: list and show protocols, judge a model or an encoder's features, compare runs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triglyph.errors import ContractError, RecipeError, SplitError

if TYPE_CHECKING:
    from triglyph.apply.trained import TrainedModel
    from triglyph.bench.contracts import Embedder, Subject, Trial
    from triglyph.bench.protocol import Protocol
    from triglyph.bench.suite import Report
    from triglyph.bench.table import Table
    from triglyph.metrics.result import Result
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.split import Split

ALL = "all"
BASELINE = "stain-texture"


def bench_list() -> None:
    """Print the protocols and what each asks."""
    from rich.console import Console
    from rich.table import Table as RichTable

    from triglyph.bench.registry import PROTOCOLS

    table = RichTable("protocol", "version", "digest", "what it asks")
    for name, cls in PROTOCOLS.items():
        card = cls().card()
        table.add_row(name, card.version, card.digest()[:8], card.summary)
    Console().print(table)


def bench_show(name: str, *, set: list[str] | None = None) -> None:
    """Print the card of a protocol: what is fitted where, what sees the test set, every constant.

    Parameters
    ----------
    name
        As in `triglyph bench list`.
    set
        Change a constant: `--set n_genes=250`. May be given several times.
    """
    import yaml
    from rich.console import Console

    from triglyph.bench.registry import parse_options, protocol

    card = protocol(name, parse_options(set or [])).card()
    shown = {k: v for k, v in card.model_dump(mode="json").items() if v not in ("", None)}
    text = yaml.safe_dump({**shown, "digest": card.digest()}, sort_keys=False, allow_unicode=True, width=100)
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def bench_run(
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
    set: list[str] | None = None,
    quiet: bool = False,
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
        Judge the baselines too, and the ceilings that the data allow.
    baseline_encoder
        The encoder without weights whose features are the baseline: `stain-texture`, `stain-texture-level0`.
    prompts
        YAML or JSON of phrases for each class, for `zero-shot`.
    set
        Change a constant of the protocol: `--set n_genes=250`. May be given several times.
    quiet
        Print neither progress nor the tables.

    Returns
    -------
    Path
        The folder written.

    Raises
    ------
    SplitError
        A test section was trained on, or no split was named.
    RecipeError
        Both or neither of `model` and `embedding`, or an option is not understood.
    """
    from rich.console import Console

    from triglyph import __version__
    from triglyph.bench.table import markdown, tabulate
    from triglyph.metrics.result import write_results
    from triglyph.storage import atomic_folder, write_json
    from triglyph.tissue.cohort import Cohort

    if (model is None) == (embedding is None):
        raise RecipeError("give either --model or --embedding", where="bench run", mend="one of the two")
    clock = _Clock()
    opened = Cohort.open(Path(cohort))
    subject, trained, about = _subject(opened, model, embedding)
    own = about.get("split") or {}
    split_name = split or own.get("name")
    if not split_name:
        raise SplitError(
            "no split was named", where=opened.path, mend=f"give --split; saved: {', '.join(opened.splits) or 'none'}"
        )
    chosen = opened.split(split_name)
    if fold is None and split_name == own.get("name"):
        fold = own.get("fold")
    folds = [chosen.fold(fold).name] if fold is not None else [f.name for f in chosen.folds]
    job = _Job(
        name=name,
        subject=subject,
        trained=trained,
        recipe=Path(model) / "recipe.yaml" if model is not None else None,
        cohort=opened,
        split=chosen,
        null=null,
        seed=seed,
        baselines=baselines,
        baseline_encoder=baseline_encoder,
        prompts=prompts,
        constants=tuple(set or ()),
    )
    results: list[Result] = []
    with atomic_folder(Path(out)) as partial:
        with Console(stderr=True, quiet=quiet).status("reading") as status:
            for one in folds:
                results += job.run(one, report=status.update)
        if not any(row.value is not None and row.role == "method" for row in results):
            raise ContractError(
                f"nothing could be judged: no test section of {split_name!r} holds what {name!r} needs",
                where=opened.path,
                mend="test on sections that have the modalities and labels it asks for",
            )
        write_results(results, partial)
        tables = tabulate(results)
        (partial / "table.md").write_text(markdown(tables), encoding="utf-8")
        write_json(
            partial / "manifest.json",
            {
                "format": 1,
                "kind": "bench",
                "triglyph": __version__,
                "subject": about,
                "cohort": {"name": opened.name, "digest": opened.digest()},
                "split": {"name": chosen.name, "digest": chosen.digest(), "level": chosen.level, "folds": folds},
                "protocols": job.cards,
                "null": {"refits": null if trained is not None else 0, "seed": seed},
                "baseline_encoder": baseline_encoder if baselines else "",
                "tries": about.get("tries", 1),
                **clock.read(),
            },
        )
    if not quiet:
        _print(tables)
    return Path(out)


def bench_compare(runs: Sequence[Path], *, out: Path | None = None) -> Path:
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
    from triglyph.bench.table import markdown, merge, tabulate
    from triglyph.metrics.result import read_results
    from triglyph.storage import atomic_file

    paths = [Path(run) for run in runs]
    if not paths:
        raise RecipeError("no run to compare", where="bench compare", mend="give one or more run folders")
    if len({p.resolve().name for p in paths}) < len(paths):
        raise RecipeError("two runs have the same folder name", where="bench compare", mend="rename one of them")
    tables = tabulate(merge({p.resolve().name: read_results(p) for p in paths}))
    target = Path("comparison.md") if out is None else Path(out)
    with atomic_file(target) as partial:
        partial.write_text(markdown(tables), encoding="utf-8")
    _print(tables)
    return target


# ---- parts of `bench run`


@dataclass
class _Job:
    """`bench run` with everything opened."""

    name: str
    subject: Subject
    trained: TrainedModel | None
    recipe: Path | None
    cohort: Cohort
    split: Split
    null: int
    seed: int
    baselines: bool
    baseline_encoder: str
    prompts: Path | None
    constants: tuple[str, ...]
    cards: dict[str, Any] = field(default_factory=dict)
    """Stamp -> card of the protocols that were run."""

    def run(self, fold: str, *, report: Report) -> list[Result]:
        """The rows of one fold."""
        from triglyph.bench.contracts import Trial
        from triglyph.bench.suite import evaluate

        trial = Trial.of(self.cohort, self.split, fold=fold)
        trial.levels(self.subject)  # refuses what was trained on, before anything is computed
        protocols = self._protocols(trial)
        self.cards.update({p.stamp: p.card().model_dump(mode="json") for p in protocols})
        return evaluate(
            self.subject,
            trial,
            protocols,
            stain_texture=self._features(trial, report) if self.baselines else None,
            with_baselines=self.baselines,
            refit=self._refits(trial, protocols),
            n_refits=self.null,
            seed=self.seed,
            report=report,
        )

    def _protocols(self, trial: Trial) -> list[Protocol]:
        from triglyph.bench.registry import parse_options, protocol
        from triglyph.bench.suite import applicable
        from triglyph.bench.zero_shot import Prompts, ZeroShot

        asked = None if self.prompts is None else Prompts.read(self.prompts)
        options = parse_options(self.constants)
        if self.name != ALL:
            if asked is not None and self.name != ZeroShot.name:
                raise RecipeError(f"{self.name} has no prompts", where="--prompts", mend="use it with zero-shot")
            prompts = {} if asked is None else {"prompts": asked.model_dump()}
            return [protocol(self.name, {**options, **prompts})]
        if options:
            raise RecipeError(
                "constants belong to one protocol", where="--set", mend=f"name the protocol instead of {ALL!r}"
            )
        found = applicable(self.subject.source, trial)
        if not found:
            raise ContractError(
                f"no protocol applies to {self.subject.name} here",
                where=f"split {self.split.name!r}",
                mend="see `triglyph bench list`",
            )
        return [ZeroShot(prompts=asked) if isinstance(p, ZeroShot) and asked is not None else p for p in found]

    def _features(self, trial: Trial, report: Report) -> Embedder | None:
        """Features of the encoder without weights, computed where they are not there; None without images."""
        from triglyph.bench.baselines import StoredFeatures
        from triglyph.bench.parts import whole_of
        from triglyph.encoders import registry
        from triglyph.training.features import encode_section

        # Both parts of a divided section are of one.
        sections = list({(s := whole_of(part)).id: s for part in (*trial.train, *trial.test)}.values())
        if not any(s.has_image() for s in sections):
            return None
        encoder = registry.build(self.baseline_encoder)
        fingerprint = encoder.fingerprint()
        for section in sections:
            report(f"{self.baseline_encoder}: {section.id}")
            encode_section(section, encoder, fingerprint=fingerprint)
        return StoredFeatures(fingerprint)

    def _refits(self, trial: Trial, protocols: Sequence[Protocol]) -> Any:
        if self.trained is None or self.recipe is None or not self.null or not any(p.has_null for p in protocols):
            return None
        from triglyph.bench.refits import ShuffledRefits
        from triglyph.training.recipe import load_recipe

        how = load_recipe(self.recipe).training
        return ShuffledRefits(
            self.trained,
            trial,
            epochs=how.epochs,
            lr=how.lr,
            batch_size=how.batch_size,
            weight_decay=how.weight_decay,
        )


def _subject(
    cohort: Cohort, model: Path | None, embedding: str | None
) -> tuple[Subject, TrainedModel | None, dict[str, Any]]:
    """What is judged, the model behind it if it is one, and what the manifest says of it."""
    from triglyph.bench.contracts import Subject

    if model is not None:
        from triglyph.apply.trained import TrainedModel

        trained = TrainedModel.open(Path(model))
        people = tuple(trained.manifest.get("training_patients", ()))
        name = Path(model).resolve().name
        split = trained.manifest.get("split")
        subject = Subject(
            name,
            trained,
            training_patients=people,
            trained_on="" if split is None else f"{split['digest']}/{split['fold']}",
        )
        return subject, trained, {"model": name, **trained.manifest}
    assert embedding is not None
    from triglyph.bench.baselines import StoredFeatures

    fingerprint, name, modality = _stored(cohort, embedding)
    about = {"embedding": name, "fingerprint": fingerprint, "modality": modality}
    return Subject(name, StoredFeatures(fingerprint, modality)), None, about


def _stored(cohort: Cohort, wanted: str) -> tuple[str, str, str]:
    """Fingerprint, encoder's name and modality of the stored features called `wanted`.

    Encoders that were fitted are left out: what they were fitted on is known to their run alone (give --model).
    """
    found: dict[str, tuple[str, str]] = {}
    for section in cohort:
        for fingerprint in section.embeddings.names():
            card = section.embeddings.read(fingerprint).card
            if not card["encoder"]["fitted"]:
                found[fingerprint] = (card["name"], card["encoder"]["modality"])
    matching = [f for f, (name, _) in found.items() if wanted in (f, name)]
    if not matching:
        known = sorted({name for name, _ in found.values()})
        raise ContractError(
            f"no section holds features of {wanted!r}",
            where=cohort.path,
            mend=f"run `triglyph embed` with it first; there are {', '.join(known) or 'none'}",
        )
    if len(matching) > 1:
        raise ContractError(
            f"{wanted!r} names {len(matching)} states of the encoder",
            where=cohort.path,
            mend=f"give a fingerprint: {', '.join(matching)}",
        )
    return matching[0], *found[matching[0]]


class _Clock:
    """Wall and CPU time since it was made, children included."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), self._used()

    @staticmethod
    def _used() -> float:
        now = os.times()
        return now.user + now.system + now.children_user + now.children_system

    def read(self) -> dict[str, float]:
        """Minutes."""
        return {
            "minutes": round((time.monotonic() - self._wall) / 60, 3),
            "cpu_minutes": round((self._used() - self._cpu) / 60, 3),
        }


def _print(tables: Sequence[Table]) -> None:
    """A heading per quantity, a line per model: fits a terminal. `table.md` has them side by side, and each patient."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    from triglyph.bench.table import show

    console = Console()
    for table in tables:
        console.rule(f"[bold]{escape(table.task)}", align="left")
        for line in table.lines:
            if line.row.aggregation not in ("per-section", "macro"):
                continue
            direction, metric, over, where, chance = table.cells(line)[:5]
            console.print(f"[bold]{escape(direction)}  {escape(metric)}[/]  {over}, {where}, chance {chance}")
            shown = RichTable.grid(padding=(0, 2, 0, 2))
            shown.add_column(no_wrap=True)
            shown.add_column(no_wrap=True)
            for model, row in line.values.items():
                shown.add_row(escape(model), escape(show(row) + ("*" if line.starred(model) else "")))
            console.print(shown)
        for note in table.notes():
            console.print(f"  {note}", markup=False, highlight=False)
