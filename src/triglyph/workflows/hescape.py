"""`triglyph hescape`: does alignment with genes help or hurt what an image encoder says of expression?

HESCAPE's experiment (Gindra et al., ICCV workshops 2025) as one resumable command: image encoders x gene encoders x
{CLIP, SigLIP} x {frozen, LoRA} x seeds, on each of several cohorts, so that what differs between the cohorts, such as
the strength of their batch effects, is the variable.

    OUT/experiment.json                                      what was asked for, and what was left out
    OUT/<cohort>/unimodal/<image encoder>-<fingerprint>/     the encoder as it was before any alignment
    OUT/<cohort>/cells/<image, tuning>/<genes, objective>/seed-<k>/run, judged, untrained
    OUT/<cohort>/results.parquet, results.json               all rows of the cohort
    OUT/effects.csv, table.md, figure.png                    aligned less unimodal, patient by patient

Unimodal is the pooled output of the encoder as it came; aligned is the embedding in the shared space. Both are judged
by the same ridge under `expression`, on patients that neither was fitted on. Mixing of sections and what is left of the
labels (`batch-effect`) stand beside it, and `retrieval` says whether there was anything to learn. The control is the
same head as it was drawn, before any step: what fewer numbers of unit length cost by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from triglyph.errors import RecipeError
from triglyph.workflows.experiment import judged

if TYPE_CHECKING:
    from triglyph.bench.contracts import Subject, Trial
    from triglyph.bench.protocol import Protocol
    from triglyph.encoders.base import Encoder
    from triglyph.metrics.result import Result
    from triglyph.models.towers import TowerConfig
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.split import Split
    from triglyph.training.recipe import Recipe

Objective = Literal["clip", "siglip"]
Tuning = Literal["frozen", "lora"]
LINEAR = "gene-linear"
"""Name of `gene-mlp` without a hidden layer: one linear map of standardised log1p CP10k."""
ADAPTED = "adapted features"
UNTRAINED = "untrained head"
BATCH_LOCATIONS = 150
"""Of a section, for `batch-effect`, whose silhouettes take time in the square of all of them."""


@dataclass(frozen=True)
class Cell:
    """One way to align."""

    image: str
    tuning: Tuning
    gene: str
    objective: Objective

    @property
    def name(self) -> str:
        """As tables show it, and as the `model` of its rows."""
        return f"{self.image} ({self.tuning}) + {self.gene}, {self.objective}"

    @property
    def folder(self) -> Path:
        """Below the cohort's `cells`."""
        return Path(f"{self.image}-{self.tuning}".replace(":", "-")) / f"{self.gene}-{self.objective}"


def hescape(
    *,
    cohort: list[Path],
    split: str,
    out: Path,
    recipe: str = "hescape-tiny",
    image_encoders: list[str] | None = None,
    image_weights: list[str] | None = None,
    gene_encoders: list[str] | None = None,
    objectives: list[Objective] | None = None,
    tuning: list[Tuning] | None = None,
    seeds: int = 3,
    set: list[str] | None = None,
    allow: list[str] | None = None,
    quiet: bool = False,
) -> Path:
    """Align image and genes in every way asked for, and say whether that helps or hurts the prediction of expression.

    Run again after an interruption, or with more cohorts, encoders or seeds, it does what is not done yet.

    Parameters
    ----------
    cohort
        Folder of a cohort; may be given several times. Names like `visium-0x`, `visium-2x` are joined by a line in the
        figure, and where the same patients are tested, compared patient by patient.
    split
        A split that every cohort has saved, with one fold.
    out
        Folder of the experiment.
    recipe
        What is the same in all cells: `hescape-tiny`, `hescape`, or a YAML file.
    image_encoders
        Names; the recipe's own and `stain-texture` if left out. May be given several times, as all that follow.
    image_weights
        `NAME=FOLDER`: published weights of an encoder, or a run of ours whose tower is taken. An encoder that starts
        untrained needs it.
    gene_encoders
        Names; `gene-mlp` and `gene-linear` (one linear map) if left out. Published ones stay frozen.
    objectives
        `clip`, `siglip`; both if left out.
    tuning
        `frozen`, `lora`; both if left out. Encoders without weights have nothing to adapt.
    seeds
        Runs of every cell; they are averaged within each patient.
    set
        Change a key of the recipe: `--set training.epochs=3`.
    allow
        A failing finding of `triglyph audit` in spite of which the split is used; every row says so.
    quiet
        Print neither progress nor the table.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    RecipeError
        Nothing is asked for, a name is not known, or an untrained encoder has no weights.
    SplitError
        The audit of a split fails.
    """
    from rich.console import Console

    from triglyph.metrics.result import write_results
    from triglyph.report.alignment_effect import figure, markdown, read_effects, write_effects
    from triglyph.storage import atomic_file, write_json
    from triglyph.tissue.cohort import Cohort
    from triglyph.training.recipe import load_recipe
    from triglyph.workflows.bench_audit import audited, stamped

    base = load_recipe(recipe, overrides=[*(set or ()), f"data.split={split}", "data.train=[]", "data.val=[]"])
    own = base.model.towers["image"].encoder
    weights = _weights(image_weights or [])
    images = list(dict.fromkeys(image_encoders or ["stain-texture", own]))
    genes = list(dict.fromkeys(gene_encoders or ["gene-mlp", LINEAR]))
    cells, without = _grid(images, genes, objectives or ["clip", "siglip"], tuning or ["frozen", "lora"])
    controls = {f"{c.image} ({c.tuning}) + {UNTRAINED}": c for c in reversed(cells) if c.tuning == "frozen"}
    names = [Path(c).resolve().name for c in cohort]
    if seeds < 1 or not cells or len({*names}) < len(names):
        raise RecipeError(
            f"{seeds} seeds of {len(cells)} ways to align, on cohorts {', '.join(names)}",
            where="hescape",
            mend="ask for at least one of each, and give every cohort's folder a name of its own",
        )
    console = Console(stderr=True, quiet=quiet)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Result]] = {}
    for name, path in zip(names, cohort, strict=True):
        opened = Cohort.open(Path(path))
        chosen, audit = audited(opened, split, model=None, embedding=None, prompts=None, fold=None, allow=allow or ())
        bench = _Bench(opened, chosen, base, weights, out / name)
        rows[name] = [r for image in images for r in bench.unimodal(image)]
        for i, (cell, seed) in enumerate(todo := list(product(cells, range(seeds))), start=1):
            console.print(f"{name}: {i} of {len(todo)}, {cell.name}, seed {seed}")
            rows[name] += bench.aligned(cell, seed)
        for cell, seed in product(controls.values(), range(seeds)):
            rows[name] += bench.untrained(cell, seed)
        rows[name] = stamped(rows[name], audit)
        write_results(rows[name], out / name)
    write_json(
        out / "experiment.json",
        {
            "recipe": base.as_dict(),
            "cohorts": {n: str(Path(c).resolve()) for n, c in zip(names, cohort, strict=True)},
            "cells": [cell.name for cell in cells],
            "seeds": seeds,
            "image_weights": {n: str(w) for n, w in weights.items()},
            "left_out": [f"{image}: nothing to adapt, frozen only" for image in without],
        },
    )
    known = {cell.name: cell.image for cell in cells} | {name: cell.image for name, cell in controls.items()}
    effects = read_effects(rows, known)
    write_effects(effects, out / "effects.csv")
    with atomic_file(out / "table.md") as partial:
        partial.write_text(text := markdown(effects), encoding="utf-8")
    with atomic_file(out / "figure.png") as partial:
        partial.write_bytes(figure(effects))
    if not quiet:
        Console().print(text, markup=False, soft_wrap=True)
    return out


def _grid(
    images: list[str], genes: list[str], objectives: list[Objective], tuning: list[Tuning]
) -> tuple[list[Cell], list[str]]:
    """All cells that there are, and the image encoders that have nothing to adapt."""
    from triglyph.encoders import registry

    fixed = {image for image in images if registry.card(image).weights == "none"}
    cells = [
        Cell(image, how, gene, objective)
        for image, how, gene, objective in product(images, dict.fromkeys(tuning), genes, dict.fromkeys(objectives))
        if how == "frozen" or image not in fixed
    ]
    return cells, [image for image in images if image in fixed and "lora" in tuning]


def _weights(given: list[str]) -> dict[str, Path]:
    """`NAME=FOLDER` as a mapping."""
    pairs = [text.partition("=") for text in given]
    if wrong := [name for name, equals, folder in pairs if not (equals and folder)]:
        raise RecipeError(f"{wrong[0]!r} is not NAME=FOLDER", where="--image-weights", mend="tile-vit=RUN, say")
    return {name: Path(folder).resolve() for name, _, folder in pairs}


class _Bench:
    """One cohort, on which everything is trained and judged; targets and ceilings are computed once."""

    def __init__(self, cohort: Cohort, split: Split, base: Recipe, weights: Mapping[str, Path], out: Path) -> None:
        from triglyph.bench.contracts import Trial

        self.cohort, self.base, self.weights, self.out = cohort, base, weights, out
        self.trial: Trial = Trial.of(cohort, split)

    # ---- before alignment

    def unimodal(self, image: str) -> list[Result]:
        """Rows of an encoder as it came."""
        from triglyph.bench.contracts import Subject
        from triglyph.bench.features import StoredFeatures
        from triglyph.training.features import encode_section

        encoder = self._encoder(image)
        fingerprint = encoder.fingerprint()
        for section in (*self.trial.train, *self.trial.test):
            encode_section(section, encoder, fingerprint=fingerprint)  # type: ignore[arg-type]
        subject = Subject(image, StoredFeatures(fingerprint), role="baseline")
        folder = self.out / "unimodal" / f"{image.replace(':', '-')}-{fingerprint}"
        return judged(folder, self.trial, {image: _readouts(self.trial, "pooled")}, lambda: {image: subject})

    def _encoder(self, image: str) -> Encoder:
        from triglyph.models.towers import build_encoder

        return build_encoder(self._image_tower(image, "frozen"), modality="image")

    # ---- alignment

    def aligned(self, cell: Cell, seed: int) -> list[Result]:
        """Train one cell, and judge its embedding; of adapted encoders also what comes before the head."""
        from triglyph.apply.trained import TrainedModel
        from triglyph.bench.contracts import Subject
        from triglyph.bench.retrieval import Retrieval
        from triglyph.training.loop import fit
        from triglyph.workflows.bench_subjects import evidence

        folder = self.out / "cells" / cell.folder / f"seed-{seed}"
        run = fit(self._recipe(cell, seed), cohort=self.cohort, out=folder / "run", show=False)
        inner = f"{cell.name}: {ADAPTED}"

        def opened() -> dict[str, Subject]:
            trained = TrainedModel.open(run)
            subject = Subject(
                cell.name,
                trained,
                seed=seed,
                training_patients=tuple(trained.manifest["training_patients"]),
                evidence=evidence(trained),
                trained_on=self.trial.identity,
            )
            return {cell.name: subject, inner: replace(subject, name=inner, trained_on="")}

        asked: dict[str, list[Protocol]] = {cell.name: [*_readouts(self.trial, "embedding"), Retrieval()]}
        if cell.tuning == "lora":
            asked[inner] = [*_readouts(self.trial, "pooled")]
        return judged(folder / "judged", self.trial, asked, opened, seed=seed)

    def untrained(self, cell: Cell, seed: int) -> list[Result]:
        """The control of a trained cell: its image encoder, with the head drawn anew."""
        import torch

        from triglyph.apply.trained import TrainedModel
        from triglyph.bench.contracts import Subject
        from triglyph.models.heads import build_head
        from triglyph.workflows.bench_subjects import evidence

        folder = self.out / "cells" / cell.folder / f"seed-{seed}"
        name = f"{cell.image} ({cell.tuning}) + {UNTRAINED}"

        def opened() -> dict[str, Subject]:
            trained = TrainedModel.open(folder / "run")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = trained.alignment
                head = model.config.towers["image"].head or model.config.head
                drawn = build_head(head, dim_in=model.encoder("image").card.dim, dim=model.config.dim)
                model.heads["image"] = drawn.eval()
            people, known = tuple(trained.manifest["training_patients"]), evidence(trained)
            return {name: Subject(name, trained, role="control", seed=seed, training_patients=people, evidence=known)}

        asked = {name: _readouts(self.trial, "embedding")}
        return judged(folder / "untrained", self.trial, asked, opened, seed=seed)

    def _recipe(self, cell: Cell, seed: int) -> Recipe:
        from triglyph.training.recipe import typed

        image, genes = self._image_tower(cell.image, cell.tuning), self._gene_tower(cell.gene)
        values = self.base.as_dict()
        values |= {"name": f"{self.base.name}: {cell.name}", "seed": self.base.seed + seed}
        values["model"] |= {
            "objective": cell.objective,
            "pairs": {"image-expression": 1.0},
            "towers": {"image": image.model_dump(mode="json"), "expression": genes.model_dump(mode="json")},
        }
        return typed(values, where=f"hescape: {cell.name}")

    def _image_tower(self, name: str, tuning: Tuning) -> TowerConfig:
        from triglyph.encoders import registry

        own = self.base.model.towers["image"]
        card, weights = registry.card(name), self.weights.get(name)
        given = str(weights) if weights is not None else own.weights if name == own.encoder else None
        if card.weights == "random" and given is None:
            raise RecipeError(
                f"{name} starts untrained, and a frozen one would say nothing",
                where="--image-weights",
                mend=f"train one on other tissue and give {name}=RUN",
            )
        change: dict[str, Any] = {
            "encoder": name,
            "options": own.options if name == own.encoder else {},
            "mode": "locked" if tuning == "frozen" else "lora",
            "weights": given,
            # Hand-made features differ in scale; the output of a trained encoder is taken as it is.
            "standardise": card.weights == "none",
        }
        return own.model_validate({**own.model_dump(), **change})

    def _gene_tower(self, name: str) -> TowerConfig:
        from triglyph.encoders import registry

        own = self.base.model.towers["expression"]
        if name == own.encoder:
            return own
        if name == LINEAR:
            options = {**(own.options if own.encoder == "gene-mlp" else {}), "hidden": 0}
            change: dict[str, Any] = {"encoder": "gene-mlp", "mode": "scratch", "weights": None, "options": options}
        else:
            published = registry.card(name).weights == "hub"
            change = {"encoder": name, "options": {}, "mode": "locked" if published else "scratch", "weights": None}
        return own.model_validate({**own.model_dump(), **change})


def _readouts(trial: Trial, features: Literal["embedding", "pooled"]) -> Iterator[Protocol]:
    """What features are judged by, whether they were aligned or not."""
    from triglyph.bench.batch_effect import BatchEffect
    from triglyph.bench.expression.protocol import Expression
    from triglyph.bench.labels.classes import known_labels

    yield Expression(features=features)
    # Mixing says nothing without labels beside it, and takes two sections.
    if len(trial.test) > 1 and any((known_labels(s) != "").any() for s in trial.test):
        yield BatchEffect(features=features, max_locations=BATCH_LOCATIONS, n_boot=0)
