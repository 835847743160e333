"""What protocols of slide labels share: bags of locations, gated attention over them, and rows of their values.

A bag is a patient (all locations of all their sections) or a section. It is read by gated attention
(`triglyph.bench.slides.attention_mil`), fitted on training bags for a fixed number of steps, so that nothing is chosen
on the test fold. Log odds are averaged over `n_seeds` fits: seeds are no replicates.

An AUROC ranks the test bags of one fold by one fit. Scores of different folds come from different fits, whose offsets
and slopes differ, and are not ranked together here: a split of several folds has one AUROC a fold, to be averaged by
`across_folds`, and a fold with one class has none. The Brier score is a value of each patient alone, so it stands also
where a fold tests one patient.

Each subject has two rows of a kind: `NAME` by attention, and `NAME: mean-pooled`, logistic regression on the mean of
the bag's locations, which attention must beat to mean anything.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import expit

from triglyph.bench.contracts import Embedder, SectionLike, Subject, Trial
from triglyph.bench.features import Constant
from triglyph.bench.hescape.clinical import patient_values
from triglyph.bench.protocol import FoldError, Protocol, ProtocolCard
from triglyph.bench.rows import LEVELS, PATIENT, Rows
from triglyph.errors import ContractError, SplitError
from triglyph.metrics.bootstrap import MIN_PATIENTS, Resamples, interval
from triglyph.metrics.merit import bounds_of
from triglyph.metrics.ranking import auroc
from triglyph.metrics.result import Level, Result
from triglyph.models.fused import Readable

if TYPE_CHECKING:
    from triglyph.bench.slides.attention_mil import GatedAttention

Floats = NDArray[np.float64]
Bags = dict[str, Floats]
"""Bag -> (n, dim) features of its locations."""
log = logging.getLogger(__name__)

MEAN_POOLED = "mean-pooled"


class BagProtocol(Protocol, abc.ABC):
    """A binary label of held-out bags."""

    citation: ClassVar[str] = "Ilse et al., Attention-based deep multiple instance learning, ICML 2018"

    label_column: str = ""
    """Of `clinical.csv`, `sections.csv` or the sections' own tables."""
    positive: str = ""
    """The value that counts as positive; left out, the later by name of two (`1` of 0 and 1)."""
    modality: Readable = "image"
    features: Literal["embedding", "pooled"] = "embedding"
    attention_dim: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.25, ge=0.0, lt=1.0)
    steps: int = Field(default=100, ge=1)
    lr: float = Field(default=5e-3, gt=0.0)
    weight_decay: float = Field(default=1e-2, ge=0.0)
    max_tiles: int = Field(default=256, ge=1)
    """Locations of a bag in one training step; all are read when it is judged."""
    n_seeds: int = Field(default=5, ge=1)
    c: float = Field(default=0.1, gt=0.0)
    """Of the logistic regression on mean-pooled features."""

    def card(self) -> ProtocolCard:
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary=f"{self.label_column} of unseen patients by gated attention over their tiles",
            citation=self.citation,
            fitted={
                "mean and deviation of each feature": "tiles of the labelled training patients",
                "attention and classifier": f"labelled training patients: {self.steps} full-batch steps, none chosen; "
                f"log odds averaged over {self.n_seeds} seeds",
                f"NAME: {MEAN_POOLED}": f"labelled training patients: logistic regression, C = {self.c}, on "
                "standardised means over tiles",
            },
            metrics={
                "auroc": "over the test patients of the fold; a tie counts one half; undefined with one class",
                "brier": "squared difference of probability and label (1: positive) of a patient; lower is better; "
                "chance is that of the training prevalence",
                "probability": "of being positive, as predicted: no score, given for every patient",
            },
            aggregations={
                "pooled": "over all test patients of a level; scores of different folds are never ranked together",
                "per-patient": "group = a patient: its value; group = all: the mean of the patients' values",
            },
            constants=self.constants(),
        )

    @property
    def direction(self) -> str:
        """Of its rows."""
        return f"{self.modality}->{self.label_column}"

    @property
    def what(self) -> str:
        """What a bag is called."""
        return "patient"

    @property
    def strict(self) -> bool:
        """Whether bags without a label, and sections without features, are errors; else they are left out and named."""
        return False

    def bag_of(self, section: SectionLike) -> str:
        """The bag that a section's locations lie in."""
        return section.patient

    def values(self, trial: Trial, sections: Sequence[SectionLike]) -> dict[str, str]:
        """Bag -> its value in `label_column`, "" where unknown."""
        return patient_values(trial, self.label_column, sections)

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        train, test, truth = self.sides(subject, trial)
        prevalence = float(np.mean([truth[b] for b in train]))
        # A bag shows no more than the least of its sections does.
        seen: dict[str, list[Level]] = {}
        for section in trial.test:
            seen.setdefault(self.bag_of(section), []).append(rows.levels[section.id])
        levels = {b: max(seen[b], key=LEVELS.index) for b in test}
        people = {self.bag_of(section): section.patient for section in trial.test}
        out: list[Result] = []
        for name, probability in self._predictions(train, truth, test, subject, prevalence):
            role = "baseline" if name and subject.role == "method" else subject.role
            stamped = replace(rows, subject=replace(subject, name=subject.name + name, role=role))
            for level in LEVELS:
                of = {b: probability[b] for b in test if levels[b] == level}
                out += self.bag_rows(stamped, level, of, truth, prevalence, people) if of else []
        return out

    def sides(self, subject: Subject, trial: Trial) -> tuple[Bags, Bags, dict[str, bool]]:
        """Training bags, test bags and the labels of all, of those that have both features and a label.

        Raises
        ------
        SplitError
            A patient is on both sides.
        FoldError
            The labels of the training side are of one class, or the test side has none.
        ContractError
            The column is not binary; the subject lacks the modality, or features where labels are; or, where that is
            an error, a label or a section's features are missing.
        """
        subject.require(self.modality)
        self._refuse_shared(trial)
        where = f"{subject.name}, split {trial.split!r}, fold {trial.fold or '0'}"
        truth = self._labels(trial)
        known = [[s for s in side if self.bag_of(s) in truth] for side in (trial.train, trial.test)]
        train, test = (self._bags(subject, side) for side in known)
        if len({truth[b] for b in train}) < 2:
            lacking = len({truth[self.bag_of(s)] for s in known[0]}) < 2
            raise (FoldError if lacking else ContractError)(
                f"of {len(train)} training {self.what}s with features and a {self.label_column}, "
                + ("all are on one side" if train else "there is none"),
                where=where,
                mend=f"train on {self.what}s of both classes",
            )
        if not test:
            raise (ContractError if known[1] else FoldError)(
                f"no test {self.what} has features and a {self.label_column}",
                where=where,
                mend=f"test on {self.what}s that have a value in the column, and embed them",
            )
        return train, test, truth

    def _refuse_shared(self, trial: Trial) -> None:
        if both := {s.patient for s in trial.train} & {s.patient for s in trial.test}:
            raise SplitError(
                f"patients on both sides, whose label was trained on: {', '.join(sorted(both))}",
                where=f"{self.name}, split {trial.split!r}, fold {trial.fold or '0'}",
                mend="take a split of level `patient`",
            )

    def _labels(self, trial: Trial) -> dict[str, bool]:
        """Bag -> whether positive, of those whose label is known."""
        values = self.values(trial, (*trial.train, *trial.test))
        if unknown := sorted(b for b, value in values.items() if not value):
            said = f"{self.what}s without a {self.label_column}"
            if self.strict:
                raise ContractError(
                    f"{len(unknown)} {said}: {', '.join(unknown[:8])}",
                    where=f"{self.name}, split {trial.split!r}",
                    mend="fill the column, leave them out of the split, or set `missing=drop`",
                )
            log.warning("%s: %s are left out: %s", self.name, said, ", ".join(unknown))
        known = {b: value for b, value in values.items() if value}
        found = sorted(set(known.values()))
        positive = self.positive or found[-1] if found else ""
        if positive not in found or (not self.positive and len(found) != 2):
            raise ContractError(
                f"the column {self.label_column!r} has the values {', '.join(found[:10]) or 'none'}"
                + (f", none of them {self.positive!r}" if self.positive and found else ""),
                where=f"{self.name}, split {trial.split!r}",
                mend="set `positive` to the value that is asked for; without it there must be two",
            )
        return {b: value == positive for b, value in known.items()}

    def read(self, subject: Subject, section: SectionLike) -> tuple[Floats, NDArray[np.intp]]:
        """(k, dim) features of the locations that have them, and which they are of the section's."""
        values, present = (subject.embed if self.features == "embedding" else subject.pooled)(section, self.modality)
        rows = np.flatnonzero(present)
        x = np.asarray(values[rows], dtype=np.float64)
        if not np.isfinite(x).all():
            raise ContractError(
                f"a feature of {subject.name} is not finite",
                where=f"section {section.id}",
                mend="embed the section again",
            )
        if self.strict and not len(rows):
            raise ContractError(
                f"{subject.name} has no {self.modality} at any location",
                where=f"section {section.id}",
                mend="embed the section, leave it out of the split, or set `missing=drop`",
            )
        return x, rows

    def _bags(self, subject: Subject, sections: Sequence[SectionLike]) -> Bags:
        """The locations of all of these sections, bag by bag, in the order of the sections' ids."""
        found: dict[str, list[Floats]] = {}
        for section in sorted(sections, key=lambda s: s.id):
            found.setdefault(self.bag_of(section), []).append(self.read(subject, section)[0])
        bags = {b: np.concatenate(pieces) for b, pieces in sorted(found.items())}
        if empty := [b for b, bag in bags.items() if not len(bag)]:
            log.warning("%s: %ss without a tile are left out: %s", self.name, self.what, ", ".join(empty))
        return {b: bag for b, bag in bags.items() if len(bag)}

    def _predictions(
        self, train: Bags, truth: Mapping[str, bool], test: Bags, subject: Subject, prevalence: float
    ) -> list[tuple[str, dict[str, float]]]:
        """(what is added to the name, bag -> probability), of attention and of mean-pooling."""
        from triglyph.bench.slides.attention_mil import log_odds

        if isinstance(subject.source, Constant):  # nothing but the prevalence can be read off it
            return [("", dict.fromkeys(test, prevalence))]
        train, test = scaled(train, test)
        fits = [log_odds(model, test) for model in self.fits(train, truth)]
        attended = {b: float(expit(np.mean([of[b] for of in fits]))) for b in test}
        return [("", attended), _mean_pooled(train, truth, test, c=self.c)]

    def fits(self, train: Bags, truth: Mapping[str, bool]) -> list[GatedAttention]:
        """One model a seed, of standardised training bags."""
        from triglyph.bench.slides.attention_mil import MilConfig, fit

        how = MilConfig(
            attention_dim=self.attention_dim,
            dropout=self.dropout,
            steps=self.steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
            max_tiles=self.max_tiles,
        )
        return [fit(train, truth, how=how, seed=self.seed + i) for i in range(self.n_seeds)]

    def bag_rows(
        self,
        rows: Rows,
        level: Level,
        probability: Mapping[str, float],
        truth: Mapping[str, bool],
        prevalence: float,
        patients: Mapping[str, str],
    ) -> list[Result]:
        """The rows of one level of one fold: AUROC over its bags, and each bag's own values.

        Parameters
        ----------
        probability, truth, patients
            Of each bag: what is predicted, whether it is positive, whose it is.
        prevalence
            Of the positive among the training bags.
        """
        bags = sorted(probability)
        p, y = np.array([probability[b] for b in bags]), np.array([truth[b] for b in bags])
        value = float(auroc(p, y)[0])
        if np.isnan(value):
            log.warning(
                "%s, fold %s: the %d test %ss of %s are of one class, and have no AUROC",
                self.name,
                rows.trial.fold or "0",
                len(bags),
                self.what,
                rows.subject.name,
            )
        whose = np.array([patients[b] for b in bags])
        drawn = Resamples(whose, n_boot=rows.n_boot, seed=self.seed)
        limits: dict[str, Any] = {"unit": PATIENT, "n_units": drawn.n_units, "min_units": MIN_PATIENTS}
        shared: dict[str, Any] = {"direction": self.direction, "level": level}
        out = [
            rows.row(
                **shared,
                metric="auroc",
                aggregation="pooled",
                group="all",
                value=value,
                n=len(bags),
                # As many patients as the rarer side has.
                ci=interval(
                    drawn.auroc(p, y)[:, 0],
                    value=value,
                    n_effective=min(len(set(whose[y])), len(set(whose[~y]))),
                    bounds=bounds_of("auroc"),
                    **limits,
                ),
                chance=0.5,
            )
        ]
        brier, chance = (p - y) ** 2, (prevalence - y) ** 2
        for i, bag in enumerate(bags):
            one: dict[str, Any] = {**shared, "aggregation": f"per-{self.what}", "group": bag, "n": 1}
            out.append(rows.row(**one, metric="brier", value=float(brier[i]), chance=float(chance[i])))
            out.append(rows.row(**one, metric="probability", value=float(p[i]), chance=prevalence))
        of_patient = {who: whose == who for who in sorted(set(whose.tolist()))}
        means = np.array([[of[at].mean() for of in (brier, chance)] for at in of_patient.values()])
        if self.what != "patient":
            out += [
                rows.row(
                    **shared,
                    aggregation="per-patient",
                    group=who,
                    n=int(at.sum()),
                    metric="brier",
                    value=float(mean),
                    chance=float(by_chance),
                )
                for (who, at), (mean, by_chance) in zip(of_patient.items(), means, strict=True)
            ]
        mean, by_chance = (float(v) for v in means.mean(axis=0))
        by_patient = Resamples(np.array(list(of_patient)), n_boot=rows.n_boot, seed=self.seed)
        ci = interval(by_patient.mean(means[:, 0])[:, 0], value=mean, bounds=(0.0, 1.0), **limits)
        out.append(
            rows.row(
                **shared,
                metric="brier",
                aggregation="per-patient",
                group="all",
                value=mean,
                n=len(bags),
                ci=ci,
                chance=by_chance,
            )
        )
        return out


def bag_baselines(protocol: BagProtocol, stain_texture: Embedder | None) -> list[Subject]:
    """Subjects for protocols of bags: the majority of the training bags; stain and texture of images."""
    subjects = [Subject("majority", Constant(modality=protocol.modality), role="baseline")]
    if protocol.modality == "image" and stain_texture is not None:
        subjects.append(Subject("stain-texture", stain_texture, role="baseline"))
    return subjects


def scaled(train: Bags, test: Bags) -> tuple[Bags, Bags]:
    """Both sides, standardised over the locations of the training bags."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for bag in train.values():
        scaler.partial_fit(bag)
    made = [{b: np.asarray(scaler.transform(bag)) for b, bag in of.items()} for of in (train, test)]
    return made[0], made[1]


def _mean_pooled(train: Bags, truth: Mapping[str, bool], test: Bags, *, c: float) -> tuple[str, dict[str, float]]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Standardised again: means over tiles vary far less than tiles do.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
    model.fit(np.stack([bag.mean(axis=0) for bag in train.values()]), [truth[b] for b in train])
    found = model.decision_function(np.stack([bag.mean(axis=0) for bag in test.values()]))
    return f": {MEAN_POOLED}", {b: float(expit(v)) for b, v in zip(test, found, strict=True)}
