"""`hescape-mutation`: a label of the patient, such as a mutation, from the tiles of all their sections.

A patient is one bag: gated attention over their tiles (`triglyph.bench.hescape.attention_mil`), fitted on training
patients for a fixed number of steps, so that nothing is chosen on the test fold. Log odds are averaged over `n_seeds`
fits: seeds are no replicates.

An AUROC ranks the test patients of one fold by one fit. Scores of different folds come from different fits, whose
offsets and slopes differ, and are never ranked together: a split of several folds has one AUROC a fold, to be averaged
by `across_folds`, and a fold with one class has none. The Brier score is a value of each patient alone, so it stands
also where a fold tests one patient.

Each subject has two rows of a kind: `NAME` by attention, and `NAME: mean-pooled`, logistic regression on the mean of
the patient's tiles, which attention must beat to mean anything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import expit

from triglyph.bench.contracts import Embedder, SectionLike, Subject, Trial
from triglyph.bench.features import Constant
from triglyph.bench.hescape.clinical import patient_values
from triglyph.bench.protocol import Protocol, ProtocolCard
from triglyph.bench.rows import LEVELS, PATIENT, Rows
from triglyph.errors import ContractError, SplitError
from triglyph.metrics.bootstrap import MIN_PATIENTS, Resamples, interval
from triglyph.metrics.merit import bounds_of
from triglyph.metrics.ranking import auroc
from triglyph.metrics.result import Level, Result

Floats = NDArray[np.float64]
log = logging.getLogger(__name__)

MEAN_POOLED = "mean-pooled"


class HescapeMutation(Protocol):
    """AUROC and Brier score of a binary label over held-out patients."""

    name: ClassVar[str] = "hescape-mutation"
    task: ClassVar[str] = "patient-label"

    label_column: str = "mutation"
    """Of `clinical.csv`; patients without a value are left out."""
    positive: str = ""
    """The value that counts as positive; left out, the later by name of two (`1` of 0 and 1)."""
    modality: Literal["image", "expression"] = "image"
    features: Literal["embedding", "pooled"] = "embedding"
    attention_dim: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.25, ge=0.0, lt=1.0)
    steps: int = Field(default=100, ge=1)
    lr: float = Field(default=5e-3, gt=0.0)
    weight_decay: float = Field(default=1e-2, ge=0.0)
    max_tiles: int = Field(default=256, ge=1)
    """Tiles of a patient in one training step; all are read when it is judged."""
    n_seeds: int = Field(default=5, ge=1)
    c: float = Field(default=0.1, gt=0.0)
    """Of the logistic regression on mean-pooled features."""

    def card(self) -> ProtocolCard:
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary=f"{self.label_column} of unseen patients by gated attention over their tiles",
            citation="Ilse et al., Attention-based deep multiple instance learning, ICML 2018; Gindra et al., HESCAPE, "
            "ICCV workshops 2025",
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

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        if self.modality not in subject.modalities:
            raise ContractError(f"{subject.name} has no {self.modality}", mend="choose another `modality`")
        self._refuse_shared(trial)
        truth = self._labels(trial)
        train = self._bags(subject, [s for s in trial.train if s.patient in truth])
        classes = {truth[p] for p in train}
        if len(classes) < 2:
            raise ContractError(
                f"of {len(train)} training patients with features and a {self.label_column}, "
                + ("all are on one side" if train else "there is none"),
                where=f"{subject.name}, split {trial.split!r}, fold {trial.fold or '0'}",
                mend="train on patients of both classes",
            )
        test = self._bags(subject, [s for s in trial.test if s.patient in truth])
        if not test:
            raise ContractError(
                f"no test patient has features and a {self.label_column}",
                where=f"{subject.name}, split {trial.split!r}, fold {trial.fold or '0'}",
                mend="test on patients of clinical.csv",
            )
        prevalence = float(np.mean([truth[p] for p in train]))
        # A patient is one bag, and shows no more than the least of their sections does.
        seen: dict[str, list[Level]] = {}
        for section in trial.test:
            seen.setdefault(section.patient, []).append(rows.levels[section.id])
        levels = {p: max(seen[p], key=LEVELS.index) for p in test}
        out: list[Result] = []
        for name, probability in self._predictions(train, truth, test, subject):
            role = "baseline" if name and subject.role == "method" else subject.role
            stamped = replace(rows, subject=replace(subject, name=subject.name + name, role=role))
            for level in LEVELS:
                of = {p: probability[p] for p in test if levels[p] == level}
                out += self._rows(stamped, level, of, truth, prevalence) if of else []
        return out

    def _refuse_shared(self, trial: Trial) -> None:
        if both := {s.patient for s in trial.train} & {s.patient for s in trial.test}:
            raise SplitError(
                f"patients on both sides, whose label was trained on: {', '.join(sorted(both))}",
                where=f"{self.name}, split {trial.split!r}, fold {trial.fold or '0'}",
                mend="take a split of level `patient`",
            )

    def _labels(self, trial: Trial) -> dict[str, bool]:
        """Patient -> whether positive, of those whose label is known.

        Raises
        ------
        ContractError
            The column is not binary, or lacks the positive value.
        """
        values = patient_values(trial, self.label_column, (*trial.train, *trial.test))
        if unknown := sorted(p for p, value in values.items() if not value):
            log.warning("%s: patients without a %s are left out: %s", self.name, self.label_column, ", ".join(unknown))
        known = {p: value for p, value in values.items() if value}
        found = sorted(set(known.values()))
        positive = self.positive or found[-1] if found else ""
        if positive not in found or (not self.positive and len(found) != 2):
            raise ContractError(
                f"the column {self.label_column!r} has the values {', '.join(found[:10]) or 'none'}"
                + (f", none of them {self.positive!r}" if self.positive and found else ""),
                where=f"{self.name}, split {trial.split!r}",
                mend="set `positive` to the value that is asked for; without it there must be two",
            )
        return {p: value == positive for p, value in known.items()}

    def _bags(self, subject: Subject, sections: Sequence[SectionLike]) -> dict[str, Floats]:
        """Patient -> (n, dim) features of the tiles of all of these sections, in the order of their ids."""
        read = subject.embed if self.features == "embedding" else subject.pooled
        found: dict[str, list[Floats]] = {}
        for section in sorted(sections, key=lambda s: s.id):
            values, present = read(section, self.modality)
            x = np.asarray(values[np.flatnonzero(present)], dtype=np.float64)
            if not np.isfinite(x).all():
                raise ContractError(
                    f"a feature of {subject.name} is not finite",
                    where=f"section {section.id}",
                    mend="embed the section again",
                )
            found.setdefault(section.patient, []).append(x)
        bags = {p: np.concatenate(pieces) for p, pieces in sorted(found.items())}
        if empty := [p for p, bag in bags.items() if not len(bag)]:
            log.warning("%s: patients without a tile are left out: %s", self.name, ", ".join(empty))
        return {p: bag for p, bag in bags.items() if len(bag)}

    def _predictions(
        self, train: Mapping[str, Floats], truth: Mapping[str, bool], test: Mapping[str, Floats], subject: Subject
    ) -> list[tuple[str, dict[str, float]]]:
        """(what is added to the name, patient -> probability), of attention and of mean-pooling."""
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler()
        for bag in train.values():
            scaler.partial_fit(bag)
        train, test = ({p: np.asarray(scaler.transform(bag)) for p, bag in of.items()} for of in (train, test))
        found = [("", self._attention(train, truth, test))]
        # A constant is the same constant however it is pooled.
        return found if isinstance(subject.source, Constant) else [*found, _mean_pooled(train, truth, test, c=self.c)]

    def _attention(
        self, train: Mapping[str, Floats], truth: Mapping[str, bool], test: Mapping[str, Floats]
    ) -> dict[str, float]:
        from triglyph.bench.hescape.attention_mil import MilConfig, fit, log_odds

        how = MilConfig(
            attention_dim=self.attention_dim,
            dropout=self.dropout,
            steps=self.steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
            max_tiles=self.max_tiles,
        )
        fits = [log_odds(fit(train, truth, how=how, seed=self.seed + i), test) for i in range(self.n_seeds)]
        return {p: float(expit(np.mean([of[p] for of in fits]))) for p in test}

    def _rows(
        self,
        rows: Rows,
        level: Level,
        probability: Mapping[str, float],
        truth: Mapping[str, bool],
        prevalence: float,
    ) -> list[Result]:
        people = sorted(probability)
        p, y = np.array([probability[who] for who in people]), np.array([truth[who] for who in people])
        value, n_positive = float(auroc(p, y)[0]), int(y.sum())
        if np.isnan(value):
            log.warning(
                "%s, fold %s: the %d test patients of %s are of one class, and have no AUROC",
                self.name,
                rows.trial.fold or "0",
                len(people),
                rows.subject.name,
            )
        brier, chance = (p - y) ** 2, (prevalence - y) ** 2
        drawn = Resamples(people, n_boot=rows.n_boot, seed=self.seed)
        shared: dict[str, Any] = {"direction": self.direction, "level": level}
        limits: dict[str, Any] = {"unit": PATIENT, "n_units": len(people), "min_units": MIN_PATIENTS}
        out = [
            rows.row(
                **shared,
                metric="auroc",
                aggregation="pooled",
                group="all",
                value=value,
                n=len(people),
                # As many patients as the rarer side has.
                ci=interval(
                    drawn.auroc(p, y)[:, 0],
                    value=value,
                    n_effective=min(n_positive, len(people) - n_positive),
                    bounds=bounds_of("auroc"),
                    **limits,
                ),
                chance=0.5,
            )
        ]
        for i, who in enumerate(people):
            one: dict[str, Any] = {**shared, "aggregation": "per-patient", "group": who, "n": 1}
            out.append(rows.row(**one, metric="brier", value=float(brier[i]), chance=float(chance[i])))
            out.append(rows.row(**one, metric="probability", value=float(p[i]), chance=prevalence))
        mean = float(brier.mean())
        ci = interval(drawn.mean(brier)[:, 0], value=mean, bounds=(0.0, 1.0), **limits)
        out.append(
            rows.row(
                **shared,
                metric="brier",
                aggregation="per-patient",
                group="all",
                value=mean,
                n=len(people),
                ci=ci,
                chance=float(chance.mean()),
            )
        )
        return out


def mutation_baselines(protocol: HescapeMutation, stain_texture: Embedder | None) -> list[Subject]:
    """Subjects for `hescape-mutation`: the majority of the training patients; stain and texture of images."""
    subjects = [Subject("majority", Constant(modality=protocol.modality), role="baseline")]
    if protocol.modality == "image" and stain_texture is not None:
        subjects.append(Subject("stain-texture", stain_texture, role="baseline"))
    return subjects


def _mean_pooled(
    train: Mapping[str, Floats], truth: Mapping[str, bool], test: Mapping[str, Floats], *, c: float
) -> tuple[str, dict[str, float]]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Standardised again: means over tiles vary far less than tiles do.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
    model.fit(np.stack([bag.mean(axis=0) for bag in train.values()]), [truth[p] for p in train])
    found = model.decision_function(np.stack([bag.mean(axis=0) for bag in test.values()]))
    return f": {MEAN_POOLED}", {p: float(expit(v)) for p, v in zip(test, found, strict=True)}
