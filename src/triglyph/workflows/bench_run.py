"""`triglyph bench run`: judge a model, an encoder's features, a table's embedding, or what costs nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from triglyph.errors import ContractError
from triglyph.training.progress import cpu_seconds
from triglyph.workflows.bench_refusals import named, refuse

if TYPE_CHECKING:
    from triglyph.bench.contracts import Embedder, Trial
    from triglyph.bench.protocol import Protocol
    from triglyph.bench.suite import LeftOut, Report
    from triglyph.metrics.result import Result
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.plain import PlainCohort
    from triglyph.tissue.split import Split
    from triglyph.workflows.bench_subjects import Judged

BASELINE = "stain-texture"


def bench_run(
    name: str,
    *,
    cohort: Path,
    out: Path,
    model: Path | None = None,
    embedding: str | None = None,
    modality: Literal["image", "expression", "text"] = "image",
    places: Literal["um", "array"] = "um",
    split: str | None = None,
    fold: str | None = None,
    null: int = 20,
    seed: int = 0,
    baselines: bool = True,
    baseline_encoder: str = BASELINE,
    prompts: Path | None = None,
    panel: Path | None = None,
    patient_column: str | None = None,
    section_column: str | None = None,
    label_column: str | None = None,
    counts_layer: str | None = None,
    um_per_unit: float | None = None,
    fitted_elsewhere: bool = False,
    set: list[str] | None = None,
    allow: list[str] | None = None,
    quiet: bool = False,
) -> Path:
    """Judge a trained model, stored features of an encoder, or an embedding in a table, on the test side of a split.

    With neither --model nor --embedding the baselines and ceilings of the protocol are judged alone.

    Parameters
    ----------
    name
        A protocol, or `all`: those that apply and are neither slow nor of a special kind; what is left out is said.
    cohort
        Folder of the cohort, or an `.h5ad`.
    out
        Folder for `results.parquet`, `results.json`, `genes.parquet` where genes were predicted, `table.md` and
        `manifest.json`; must not exist.
    model
        A run folder of `triglyph train`.
    embedding
        Name or fingerprint of an encoder whose features `triglyph embed` has stored; a representation that is fitted
        in the trial (`expression-pca-50`); of an `.h5ad`, a key of `obsm`.
    modality
        What an embedding of an `.h5ad` is of.
    places
        What representations with neighbours call near: `um`, or `array` for places on the array.
    split
        A saved split; a model's own one if left out. Of an `.h5ad` the JSON file of a split or
        `leave-one-patient-out`. Protocols that fit nothing (`spatialwhisperer-crc`) take none.
    fold
        Its fold; left out, a model's own one, or all folds.
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
    panel
        File of gene symbols, the core panel of `genes-from-genes`.
    patient_column
        Of an `.h5ad`: the column with patients (`patient`).
    section_column
        Of an `.h5ad`: the column with sections; without it a patient is one section.
    label_column
        Of an `.h5ad`: the column with classes (`label`).
    counts_layer
        Of an `.h5ad`: the layer with raw counts, where `X` has none.
    um_per_unit
        Of an `.h5ad`: µm per unit of `obsm["spatial"]` (1).
    fitted_elsewhere
        Of an `.h5ad`: the embedding comes from a model that has seen nothing of this file. Otherwise every row says
        that what it was fitted on is not known.
    set
        Change a constant of the protocol: `--set n_genes=250`. May be given several times.
    allow
        A failing finding of `triglyph audit` in spite of which the split is run; every row says so. May be given
        several times.
    quiet
        Print neither progress nor the tables.

    Returns
    -------
    Path
        The folder written.

    Raises
    ------
    SplitError
        The audit of the split fails, something tested was trained on, or no split was named.
    RecipeError
        Options contradict each other, or one is not understood.
    """
    files = {"prompts": prompts, "panel": panel}
    refuse(
        name,
        cohort=Path(cohort),
        out=Path(out),
        model=None if model is None else Path(model),
        embedding=embedding,
        split=split,
        fold=fold,
        null=null,
        baselines=baselines,
        files=files,
        constants=tuple(set or ()),
        allow=allow or (),
    )
    from rich.console import Console

    from triglyph import __version__
    from triglyph.bench.across_folds import across_folds, over_patients
    from triglyph.bench.null import summaries
    from triglyph.bench.protocol import LABEL_TASKS
    from triglyph.bench.slides.pooled import pooled_over_folds
    from triglyph.bench.suite import left_out_notes
    from triglyph.bench.table import markdown, tabulate
    from triglyph.metrics.per_gene import from_results, write_genes
    from triglyph.metrics.result import write_results
    from triglyph.storage import atomic_folder, write_json
    from triglyph.tissue.cohort import Cohort
    from triglyph.workflows.bench import print_left_out, print_tables
    from triglyph.workflows.bench_audit import audited, audited_whole, stamped
    from triglyph.workflows.bench_subjects import judged, open_cohort

    clock = _Clock()
    opened = open_cohort(
        Path(cohort),
        patient=patient_column,
        section=section_column,
        label=label_column,
        counts_layer=counts_layer,
        um_per_unit=um_per_unit,
    )
    subject = judged(opened, model, embedding, modality=modality, places=places, fitted_elsewhere=fitted_elsewhere)
    own = subject.about.get("split") or {}
    split_name = split or own.get("name", "")
    asked, _ = named(name, tuple(set or ()), files)
    if asked is not None and not asked.needs_split and isinstance(opened, Cohort):
        (chosen, audit), split_name = audited_whole(opened, model=model, allow=allow or ()), ""
    else:
        chosen, audit = audited(
            opened,
            split_name,
            model=model,
            embedding=subject.about.get("fingerprint") or subject.about.get("obsm"),
            prompts=prompts,
            fold=fold,
            allow=allow or (),
        )
    if fold is None and split_name == own.get("name"):
        fold = own.get("fold")
    folds = [chosen.fold(fold).name] if fold is not None else [f.name for f in chosen.folds]
    job = _Job(
        name=name,
        judged=subject,
        recipe=Path(model) / "recipe.yaml" if model is not None else None,
        cohort=opened,
        split=chosen,
        null=null,
        seed=seed,
        places=places,
        baselines=baselines,
        baseline_encoder=baseline_encoder,
        files=files,
        constants=tuple(set or ()),
    )
    results: list[Result] = []
    with Console(stderr=True, quiet=quiet).status("reading") as status:
        for one in folds:
            results += job.run(one, report=status.update)
    over_folds = across_folds(results)
    of_bags = pooled_over_folds(results, opened.patients)
    results = [*results, *over_patients(results), *of_bags, *over_folds, *summaries(over_folds)]
    results = stamped(results, audit)
    if not job.cards:
        raise ContractError(
            "no protocol applies here", where=f"split {chosen.name!r}", mend="see `triglyph bench list`"
        )
    # Where something is to be judged, neither its baselines nor what others have published are enough.
    if subject.of_trial is None:
        own_rows = [row for row in results if row.role in ("method", "baseline")]
    else:
        of_it = [row for row in results if row.source != "published"]
        own_rows = [row for row in of_it if row.role == "method" or row.model in job.subjects]
    if not any(row.value is not None for row in own_rows):
        why = [of for of in job.left_out if of.error is not None]
        of_subject = [of.error for of in why if of.model in job.subjects]
        raise (
            next(iter(of_subject), None)
            or next((of.error for of in why), None)
            or ContractError(
                f"nothing could be judged: no test section of {split_name!r} holds what {name!r} needs",
                where=opened.path,
                mend="test on sections that have the modalities and labels it asks for",
            )
        )
    genes, tables, notes = from_results(results), tabulate(results), left_out_notes(job.left_out, n_folds=len(folds))
    with atomic_folder(Path(out)) as partial:
        write_results(results, partial)
        if len(genes):
            write_genes([genes], partial)
        listed = "".join(f"- {note}\n" for note in notes)
        (partial / "table.md").write_text(
            markdown(tables) + (f"\n## left out\n\n{listed}" if notes else ""), encoding="utf-8"
        )
        write_json(
            partial / "manifest.json",
            {
                "format": 1,
                "kind": "bench",
                "triglyph": __version__,
                "subject": subject.about,
                "cohort": {"name": opened.name, "digest": opened.digest()},
                "split": {"name": chosen.name, "digest": chosen.digest(), "level": chosen.level, "folds": folds},
                "audit": audit.model_dump(mode="json"),
                "allowed": list(dict.fromkeys(f.name for f in audit.failures)),
                "protocols": job.cards,
                "inputs": sorted({m for row in results if row.task in LABEL_TASKS for m in _inputs(row)}),
                "left_out": notes,
                "null": {"refits": null if subject.trained is not None else 0, "seed": seed},
                "baseline_encoder": baseline_encoder if baselines else "",
                "tries": subject.about.get("tries", 1),
                **clock.read(),
            },
        )
    if not quiet:
        print_tables(tables)
        print_left_out(notes)
    return Path(out)


def _inputs(row: Result) -> tuple[str, ...]:
    """Modalities that a row of labels was read from: of a fusion, both."""
    from triglyph.models.fused import reads

    return reads(row.direction.split("->")[0])


@dataclass
class _Job:
    """`bench run` with everything opened."""

    name: str
    judged: Judged
    recipe: Path | None
    cohort: Cohort | PlainCohort
    split: Split
    null: int
    seed: int
    places: Literal["um", "array"]
    baselines: bool
    baseline_encoder: str
    files: dict[str, Path | None]
    """`prompts` and `panel`: constants of one protocol."""
    constants: tuple[str, ...]
    cards: dict[str, Any] = field(default_factory=dict)
    """Stamp -> card of the protocols that were run."""
    left_out: list[LeftOut] = field(default_factory=list)
    subjects: set[str] = field(default_factory=set)
    """Names of what was judged."""

    def run(self, fold: str, *, report: Report) -> list[Result]:
        """The rows of one fold."""
        from triglyph.bench.contracts import Trial
        from triglyph.bench.hescape.clinical import attach
        from triglyph.bench.suite import evaluate
        from triglyph.tissue.cohort import Cohort

        trial = Trial.of(self.cohort, self.split, fold=fold)
        if isinstance(self.cohort, Cohort):
            attach(trial, self.cohort)
        subject = None if self.judged.of_trial is None else self.judged.of_trial(trial)
        if subject is not None:
            trial.levels(subject)  # refuses what was trained on, before anything is computed
            self.subjects.add(subject.name)
        protocols = self._protocols(trial)
        new = [p for p in protocols if p.stamp not in self.cards]  # what others published is of no fold
        self.cards.update({p.stamp: p.card().model_dump(mode="json") for p in protocols})
        beside = self.baselines and any(p.needs_split for p in protocols)
        rows = evaluate(
            subject,
            trial,
            protocols,
            stain_texture=self._features(trial, report) if beside else None,
            with_baselines=beside,
            refit=self._refits(trial, protocols),
            n_refits=self.null,
            seed=self.seed,
            places=self.places,
            report=report,
            left_out=self.left_out.append,
        )
        return rows + [row for p in new for row in p.published(self.split.name)]

    def _protocols(self, trial: Trial) -> list[Protocol]:
        from triglyph.bench.hest.protocol import with_variants
        from triglyph.bench.labels.zero_shot import ZeroShot
        from triglyph.bench.suite import LeftOut, applicable

        chosen, read = named(self.name, self.constants, self.files)
        if chosen is not None:
            return with_variants(chosen)
        offer = applicable(None if self.judged.of_trial is None else self.judged.of_trial(trial).source, trial)
        self.left_out += [LeftOut(protocol, why, trial.fold) for protocol, why in offer.left_out.items()]
        return [ZeroShot.configured(read) if isinstance(p, ZeroShot) else p for p in offer.protocols]

    def _features(self, trial: Trial, report: Report) -> Embedder | None:
        """Features of the encoder without weights, computed where they are not there; None without images."""
        from triglyph.bench.features import StoredFeatures
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
        trained = self.judged.trained
        if trained is None or self.recipe is None or not self.null or not any(p.has_null for p in protocols):
            return None
        from triglyph.bench.refits import ShuffledRefits
        from triglyph.training.recipe import load_recipe

        how = load_recipe(self.recipe).training
        return ShuffledRefits(
            trained,
            trial,
            epochs=how.epochs,
            lr=how.lr,
            batch_size=how.batch_size,
            weight_decay=how.weight_decay,
        )


class _Clock:
    """Wall and CPU time since it was made, children included."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), cpu_seconds()

    def read(self) -> dict[str, float]:
        """Minutes."""
        return {
            "minutes": round((time.monotonic() - self._wall) / 60, 3),
            "cpu_minutes": round((cpu_seconds() - self._cpu) / 60, 3),
        }
