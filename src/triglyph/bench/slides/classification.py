"""`slide-classification`: a label of whole slides or patients, by gated attention over frozen embeddings.

The paper of Stamp reads mutations of TCGA's slides off its visual embedding by ABMIL (Ilse et al. 2018), and gives
neither folds nor constants. Here a bag is a patient or, with `bag: section`, a section; its label is one value of a
column of `sections.csv`, of `clinical.csv`, or of the sections' own tables. Everything is fitted on training patients;
how long is a constant, so that nothing is stopped, or chosen, by what is tested.

A label or a section's embedding that is missing is an error, unless `missing: drop` leaves it out and names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.contracts import SectionLike, Subject, Trial
from triglyph.bench.hescape.clinical import section_values
from triglyph.bench.protocol import ProtocolCard
from triglyph.bench.rows import Rows
from triglyph.bench.slides.bags import MEAN_POOLED, BagProtocol, scaled
from triglyph.bench.slides.pooled import BALANCED, decided, pooled_interval, recalls
from triglyph.errors import ContractError
from triglyph.metrics.bootstrap import Resamples
from triglyph.metrics.result import Level, Result

Floats = NDArray[np.float64]


class SlideClassification(BagProtocol):
    """AUROC, balanced accuracy and Brier score of a binary label over held-out patients."""

    name: ClassVar[str] = "slide-classification"
    task: ClassVar[str] = "slide-classification"

    bag: Literal["patient", "section"] = "patient"
    """`patient`: all locations of all their sections in one bag; `section`: each section is one, with its own label."""
    missing: Literal["error", "drop"] = "error"
    """What to do with bags without a label and sections without an embedding."""

    def card(self) -> ProtocolCard:
        who = f"{self.what}s"
        training = f"labelled {who} of the training side"
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary=f"{self.label_column or 'a label'} of unseen {who} by gated attention over their locations",
            citation=f"{self.citation}; task of Han et al. (Stamp), ICLR 2026, whose constants are not published",
            fitted={
                "mean and deviation of each feature": f"locations of {training}",
                "attention and classifier": f"{training}: {self.steps} full-batch steps, none chosen; log odds "
                f"averaged over {self.n_seeds} seeds",
                f"NAME: {MEAN_POOLED}": f"{training}: logistic regression, C = {self.c}, on standardised means over "
                "locations",
            },
            metrics={
                "auroc": f"over the {who} tested; a tie counts one half; undefined with one class. Over all folds: of "
                "log odds less those of the training prevalence, in which fits of different folds differ",
                BALANCED: "mean recall of both classes; positive is who is likelier to be so than in training",
                "brier": f"squared difference of probability and label (1: positive) of a {self.what}; lower is "
                "better; chance is that of the training prevalence",
                "probability": f"of being positive, as predicted: no score, given for every {self.what}",
                "label": f"1: positive; no score, given for every {self.what}",
            },
            aggregations={
                "pooled": f"over all test {who} of a level and fold",
                "patients of all folds": f"over the test {who} of all folds at once",
                "per-section": "group = a section: its value, where sections are the bags",
                "per-patient": "group = a patient: the mean of theirs; group = all: the mean of the patients' values",
            },
            constants=self.constants(),
        )

    @property
    def what(self) -> str:
        return self.bag

    @property
    def strict(self) -> bool:
        return self.missing == "error"

    def bag_of(self, section: SectionLike) -> str:
        return section.id if self.bag == "section" else section.patient

    def values(self, trial: Trial, sections: Sequence[SectionLike]) -> dict[str, str]:
        if not self.label_column:
            raise ContractError(
                "nobody says which column holds the label",
                where=self.name,
                mend="give --set label_column=NAME, a column of sections.csv, clinical.csv or obs",
            )
        return (
            section_values(trial, self.label_column, sections)
            if self.bag == "section"
            else super().values(trial, sections)
        )

    def bag_rows(
        self,
        rows: Rows,
        level: Level,
        probability: Mapping[str, float],
        truth: Mapping[str, bool],
        prevalence: float,
        patients: Mapping[str, str],
    ) -> list[Result]:
        """As of every protocol of bags, and the decision on each."""
        out = super().bag_rows(rows, level, probability, truth, prevalence, patients)
        bags = sorted(probability)
        y = np.array([truth[b] for b in bags])
        right = decided(np.array([probability[b] for b in bags]), np.full(len(bags), prevalence)) == y
        whose = np.array([patients[b] for b in bags])
        drawn = Resamples(whose, n_boot=rows.n_boot, seed=self.seed)
        value, draws, least = recalls(right, y, whose, drawn)
        shared: dict[str, Any] = {"direction": self.direction, "level": level}
        out.append(
            rows.row(
                **shared,
                metric=BALANCED,
                aggregation="pooled",
                group="all",
                value=value,
                n=len(bags),
                ci=pooled_interval(BALANCED, value, draws, drawn, least),
                chance=0.5,
            )
        )
        labelled = {**shared, "metric": "label", "aggregation": f"per-{self.what}", "n": 1}
        return out + [rows.row(**labelled, group=b, value=float(truth[b])) for b in bags]

    def attention(self, subject: Subject, trial: Trial) -> dict[str, Floats]:
        """Test section -> (n,) attention of each of its locations, for a picture: the mean over the seeds' fits.

        It sums to 1 over a bag, which may be several sections; NaN where a location has no embedding. Models are
        fitted again, and are those of `run`.
        """
        from triglyph.bench.slides.attention_mil import attention

        train, test, truth = self.sides(subject, trial)
        train, test = scaled(train, test)
        models = self.fits(train, truth)
        weights = {b: np.mean([attention(model, bag) for model in models], axis=0) for b, bag in test.items()}
        taken = dict.fromkeys(test, 0)
        out = {}
        for section in sorted((s for s in trial.test if self.bag_of(s) in test), key=lambda s: s.id):
            _, rows = self.read(subject, section)
            bag, spread = self.bag_of(section), np.full(len(section.centres_um), np.nan)
            spread[rows] = weights[bag][taken[bag] : taken[bag] + len(rows)]
            taken[bag] += len(rows)
            out[section.id] = spread
        return out
