"""`triglyph transitive`: do words and images that were never seen together find each other through expression?

SpatialWhisperer (ICML 2026) never trains text against image: text meets expression in one set of people, expression
meets images in another, and text is then asked of images. Here that bridge stands beside what it must be held against,
each trained from the same recipe on the same people:

    bridge            text-expression from donors without images, image-expression from patients without words, and
                      image and text drawn together by what expression says of them (`triglyph.objectives.bridge`)
    pairs alone       the same people and pairs without that: the bridge as SpatialWhisperer trains it
    direct            image-text from the patients' own captions: what the bridge does without
    all               every pair and everybody
    genes between     image -> ridge -> expression -> text: the text-expression model alone, given predicted profiles
    shuffled bridge   the bridge, its images dealt anew among the patients' locations before training
    dealt at test     the bridge, and the shuffled one, each with the images of a test section dealt anew: their nulls

    OUT/cells/<arm>/seed-<k>/run, judged      a model, and its rows on held-out patients
    OUT/results.parquet, results.json         all rows
    OUT/transitive.csv, table.md, figure.png  gains over chance, patient by patient

All are judged by `retrieval` between image and text, both ways, and by `zero-shot`, with prompts in words that captions
use and, apart from them, in words that no caption trained or validated on has. A donor is a person, not a section:
nobody who has an image anywhere lends the bridge a word.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from triglyph.errors import ContractError, RecipeError
from triglyph.workflows.experiment import judged

if TYPE_CHECKING:
    from triglyph.apply.prompts import Prompts
    from triglyph.apply.trained import TrainedModel
    from triglyph.bench.contracts import Embedder, Subject, Trial
    from triglyph.bench.protocol import Protocol
    from triglyph.metrics.result import Result, Role
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.section import Section
    from triglyph.training.recipe import Recipe

BRIDGE, PAIRS, DIRECT, ALL = "bridge", "pairs alone", "direct", "all"
BETWEEN, SHUFFLED = "genes between", "shuffled bridge"
BRIDGED = "image-text"
ARMS: dict[str, tuple[str, ...]] = {
    BRIDGE: ("image-expression", "expression-text"),
    PAIRS: ("image-expression", "expression-text"),
    DIRECT: ("image-text",),
    ALL: ("image-expression", "expression-text", "image-text"),
    BETWEEN: ("expression-text",),
    SHUFFLED: ("image-expression", "expression-text"),
}
"""Arm -> the pairs that it trains; `bridge` and its shuffled control have the recipe's bridge between them as well."""
ROLES: dict[str, Role] = {
    BRIDGE: "method",
    PAIRS: "baseline",
    DIRECT: "baseline",
    ALL: "baseline",
    BETWEEN: "baseline",
    SHUFFLED: "control",
}
HELD_OUT = "held-out words"
NULLS = {arm: f"{arm}, dealt at test" for arm in (BRIDGE, SHUFFLED)}
"""Arm -> the same model, the images of each test section dealt anew among its locations: what common captions and a
model's favourites give without any correspondence."""


def transitive(
    *,
    cohort: Path,
    split: str,
    out: Path,
    recipe: str = "transitive",
    prompts: Path | None = None,
    held_out_prompts: Path | None = None,
    seeds: int = 3,
    set: list[str] | None = None,
    allow: list[str] | None = None,
    quiet: bool = False,
) -> Path:
    """Train text and images through expression alone, and measure what they then know of each other.

    Run again after an interruption, or with more seeds, it does what is not done yet.

    Parameters
    ----------
    cohort
        A cohort with donors (people none of whose sections has an image) among the training sections of `split`: the
        patients' images have no words, the donors' words no images.
    split
        A split of the cohort with one fold.
    out
        Folder of the experiment.
    recipe
        Towers, training and bridge of all arms; their pairs are the arms' own.
    prompts
        YAML of classes and phrases for `zero-shot`; the labels' names if left out.
    held_out_prompts
        The same in words that no caption trained or validated on uses (checked), reported apart.
    seeds
        Runs of every arm; they are averaged within each patient.
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
        No seed is asked for, or the recipe lacks a tower or the bridge.
    ContractError
        No training section lacks an image, or all do; one without is of somebody whose image is used; the validation
        sections cannot validate every arm; a held-out phrase is in a caption; or `out` answers another question.
    SplitError
        The audit of the split fails.
    """
    from rich.console import Console

    from triglyph.apply.prompts import Prompts
    from triglyph.bench.contracts import Trial
    from triglyph.metrics.result import write_results
    from triglyph.models.alignment import AlignmentConfig
    from triglyph.report.transitive import figure, gains, markdown, write_gains
    from triglyph.storage import atomic_file
    from triglyph.tissue.cohort import Cohort
    from triglyph.training.recipe import load_recipe
    from triglyph.workflows.bench_audit import audited, stamped

    if seeds < 1:
        raise RecipeError(f"{seeds} seeds", where="transitive --seeds", mend="ask for at least one")
    base = load_recipe(recipe, overrides=[*(set or ()), f"data.split={split}", "data.train=[]", "data.val=[]"])
    if len(base.model.towers) < 3:
        raise RecipeError("a bridge needs an image, an expression and a text tower", where=f"recipe {recipe}")
    bridges = tuple(base.model.bridges) if isinstance(base.model, AlignmentConfig) else ()
    if bridges != (BRIDGED,):
        raise RecipeError(
            f"the recipe bridges {', '.join(bridges) or 'nothing'}, and images and text are asked for",
            where=f"recipe {recipe}, model.bridges",
            mend="set model.bridges.image-text=expression; the arm without it is trained anyway",
        )
    opened = Cohort.open(Path(cohort))
    chosen, audit = audited(opened, split, model=None, embedding=None, prompts=prompts, fold=None, allow=allow or ())
    asked = {
        "": Prompts.read(prompts) if prompts else None,
        HELD_OUT: Prompts.read(held_out_prompts) if held_out_prompts else None,
    }
    console, out = Console(stderr=True, quiet=quiet), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    bench = _Bench(opened, Trial.of(opened, chosen), base, asked, out)
    if (words := asked[HELD_OUT]) is not None:
        _check_held_out(words, [opened[s] for s in bench.learnt], where=f"--held-out-prompts {held_out_prompts}")
    rows: list[Result] = []
    for seed in range(seeds):
        for arm in ARMS:
            console.print(f"seed {seed}: {arm}")
            rows += bench.arm(arm, seed)
    rows = stamped(rows, audit)
    write_results(rows, out)
    found = gains(rows, arms=tuple(ARMS), reference=DIRECT, nulls=NULLS)
    write_gains(found, out / "transitive.csv")
    with atomic_file(out / "table.md") as partial:
        partial.write_text(
            text := markdown(found, reference=DIRECT, versus=[(BRIDGE, BETWEEN), (BRIDGE, PAIRS)]), encoding="utf-8"
        )
    with atomic_file(out / "figure.png") as partial:
        partial.write_bytes(figure(found, reference=DIRECT))
    if not quiet:
        Console().print(text, markup=False, soft_wrap=True)
    return out


def _check_held_out(prompts: Prompts, sections: Iterable[Section], *, where: str) -> None:
    """Refuse a held-out phrase that a caption has, word for word."""
    phrases = {p: f" {_words(p)} " for label, several in prompts.classes.items() for p in several or (label,)}
    for section in sections:
        for caption in dict.fromkeys(section.captions):
            said = f" {_words(caption)} "
            if hit := next((p for p, words in phrases.items() if words in said), None):
                raise ContractError(
                    f"{hit!r} is in a caption of section {section.id}, which is trained or validated on: {caption!r}",
                    where=where,
                    mend="ask in words that no such caption has; a class without phrases is asked by its name",
                )


def _words(text: str) -> str:
    """Lower-case words with one space between."""
    return " ".join(re.findall(r"\w+", text.lower()))


class _Bench:
    """One cohort, on which every arm is trained and judged."""

    def __init__(
        self, cohort: Cohort, trial: Trial, base: Recipe, prompts: dict[str, Prompts | None], out: Path
    ) -> None:
        self.cohort, self.trial, self.base, self.prompts, self.out = cohort, trial, base, prompts, out
        train, val, where = [s.id for s in trial.train], list(trial.val), f"split {trial.split!r}"
        self.learnt = [*train, *val]
        """Sections that are trained or validated on."""
        images = {s: cohort[s].has_image() for s in (*self.learnt, *(s.id for s in trial.test))}
        self.pictured = [s for s in self.learnt if images[s]]
        """Those whose words the bridge does not see."""
        with_image = sum(images[s] for s in train)
        if not 0 < with_image < len(train):
            raise ContractError(
                f"{with_image} training sections with an image and {len(train) - with_image} without one",
                where=where,
                mend="a bridge needs both: `triglyph simulate --donors`, or read expression with text into the cohort",
            )
        people = {cohort.patients[s]: s for s, there in images.items() if there}
        both = [(s, cohort.patients[s]) for s in self.learnt if not images[s] and cohort.patients[s] in people]
        if both:
            raise ContractError(
                f"section {both[0][0]} has no image, but is of patient {both[0][1]}, whose section "
                f"{people[both[0][1]]} has one ({len(both)} such sections)",
                where=where,
                mend="a donor is somebody without an image anywhere: leave these sections out of train and val",
            )
        if val and len({images[s] for s in val}) < 2:
            raise ContractError(
                f"all validation sections are {'with' if images[val[0]] else 'without'} an image",
                where=where,
                mend="some arms have no pair there: validate on donors and on patients with an image, or on nobody",
            )

    def arm(self, arm: str, seed: int) -> list[Result]:
        """Train an arm, and judge it on held-out patients."""
        from triglyph.bench.labels.zero_shot import ZeroShot
        from triglyph.bench.retrieval import Retrieval
        from triglyph.training.loop import fit

        folder = self.out / "cells" / arm.replace(" ", "-") / f"seed-{seed}"
        run = fit(self._recipe(arm, seed), cohort=self.cohort, out=folder / "run", show=False)
        asked: dict[str, list[Protocol]] = {arm: [Retrieval(), ZeroShot(prompts=self.prompts[""], calibrate=False)]}
        if arm in NULLS:
            asked[NULLS[arm]] = asked[arm]
        if (words := self.prompts[HELD_OUT]) is not None:
            asked[f"{arm}: {HELD_OUT}"] = [ZeroShot(prompts=words, calibrate=False)]
        return judged(folder / "judged", self.trial, asked, lambda: self._subjects(arm, seed, run, asked), seed=seed)

    def _recipe(self, arm: str, seed: int) -> Recipe:
        from triglyph.training.recipe import typed

        values: dict[str, Any] = self.base.as_dict()
        read = {m for pair in ARMS[arm] for m in pair.split("-")}
        towers = {m: tower for m, tower in values["model"]["towers"].items() if m in read}
        # Donors have no images; the patients' words are taken away where words come from donors alone.
        hidden = {} if arm in (DIRECT, ALL) else {"text": self.pictured}
        values |= {"name": f"{self.base.name}: {arm}", "seed": self.base.seed + seed}
        bridges = values["model"]["bridges"] if arm in (BRIDGE, SHUFFLED) else {}
        values["model"] |= {"pairs": dict.fromkeys(ARMS[arm], 1.0), "towers": towers, "bridges": bridges}
        values["data"] |= {"without": hidden, "shuffled": ["image"] if arm == SHUFFLED else []}
        return typed(values, where=f"transitive: {arm}")

    def _subjects(self, arm: str, seed: int, run: Path, names: Iterable[str]) -> dict[str, Subject]:
        """The arm's model under each of `names`."""
        from triglyph.apply.trained import TrainedModel
        from triglyph.bench.contracts import Subject
        from triglyph.workflows.bench_subjects import evidence

        trained = TrainedModel.open(run)
        source: Embedder = trained if arm != BETWEEN else _between(trained, self._image_encoder(), self.trial)
        subject = Subject(
            arm,
            _ImageText(source),
            role=ROLES[arm],
            seed=seed,
            transductive=trained.transductive,
            training_patients=tuple(trained.manifest["training_patients"]),
            evidence=evidence(trained),
            trained_on=self.trial.identity,
        )
        dealt = replace(subject, source=_Dealt(source, seed), role="control")
        return {name: replace(dealt if name in NULLS.values() else subject, name=name) for name in names}

    def _image_encoder(self) -> Any:
        from triglyph.models.towers import build_encoder

        tower = self.base.model.towers["image"]
        if tower.mode != "locked":
            raise RecipeError(
                "ridge to genes reads a locked image tower",
                where="model.towers.image.mode",
                mend="use mode: locked, with the weights of a run of ours where it must be trained",
            )
        return build_encoder(tower, modality="image")


class _ImageText:
    """A source that shows its images and words alone: the judge then asks nothing else of it."""

    modalities = ("image", "text")

    def __init__(self, source: Embedder) -> None:
        self.source = source

    @property
    def training_sections(self) -> Any:
        """Of the source."""
        return self.source.training_sections

    def embed(self, section: Any, modality: Any) -> Any:
        """As the source's."""
        return self.source.embed(section, modality)

    def pooled(self, section: Any, modality: Any) -> Any:
        """As the source's."""
        return self.source.pooled(section, modality)

    def embed_text(self, texts: list[str]) -> Any:
        """As the source's."""
        return self.source.embed_text(texts)


class _Dealt(_ImageText):
    """The same, with the images of each section dealt anew among the locations that have one."""

    def __init__(self, source: Embedder, seed: int) -> None:
        super().__init__(source)
        self.seed = seed

    def embed(self, section: Any, modality: Any) -> Any:
        """Of images, each location another's."""
        values, present = super().embed(section, modality)
        if modality != "image":
            return values, present
        rows = np.flatnonzero(present)
        rng = np.random.default_rng([self.seed, zlib.crc32(section.id.encode())])
        out = np.array(values)
        out[rows] = out[rng.permutation(rows)]
        return out, present


def _between(trained: TrainedModel, image: Any, trial: Trial) -> Embedder:
    """The text-expression model, whose images are profiles predicted by ridge on the training patients."""
    from triglyph.bench.through_genes import ThroughGenes

    return ThroughGenes.fit(trained, image, trial)
