"""`stamp-dlpfc` and `stamp-hbc`: is an annotation of tissue read off frozen embeddings, and found without labels?

The paper gives balanced accuracy and weighted F1 of a linear probe, ARI and NMI of clusters, and none of what decides
them. What is chosen here:

* the probe is `linear-probe`, variant `default`: standardised features, classes balanced, C = 0.1;
* clusters are `clustering`: k-means at the true number of classes over 20 starts, of the *whole* section also where
  only some of it is tested, since that is what is published of a section and no cluster is fitted on labels;
* DLPFC has three donors: take `triglyph split --leave-one-out`, in which each is held out once;
* HBC is one section of one person. Nobody can be held out; folds lie within the section (`--within-section blocked`),
  and every row has the level `within-section`. Its classes are what the cohort was read with: 20 regions by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.labels.classes import known_labels
from triglyph.bench.labels.clustering import Clustering
from triglyph.bench.labels.labelled import BALANCED_ACCURACY, Labelled
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.parts import Part, whole_of
from triglyph.bench.protocol import PER_SECTION, ProtocolCard
from triglyph.bench.rows import Measure, Rows
from triglyph.bench.stamp.published import CITATION, tissue_rows
from triglyph.errors import ContractError
from triglyph.metrics.bootstrap import Resamples, worth_together
from triglyph.metrics.clusters import N_STARTS
from triglyph.metrics.result import Result

Strings = NDArray[np.str_]

LAYERS = ("L1", "L2", "L3", "L4", "L5", "L6", "WM")
WHOLE = "clusters are of the whole section, what is trained on included"
WEIGHTED_F1 = "mean F1 over classes, by their locations; over locations of classes that training has"


class StampTissue(LinearProbe):
    """What both share: a linear probe, and clusters of whole sections."""

    version: ClassVar[str] = "1"
    about: ClassVar[str]
    """The data set, in words."""

    n_starts: int = Field(default=N_STARTS, ge=1)
    """Of k-means; agreements are averaged over them."""
    min_clustered: int = Field(default=10, ge=1)
    """Locations of classes that have fewer in a section are not clustered."""

    def card(self) -> ProtocolCard:
        clusters = self._clustering().card()
        agreement = ("ari", "ari:sd", "nmi")
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary=f"{self.about}: a linear probe on frozen embeddings, and their clusters",
            citation=f"{CITATION}; split, penalty of the probe, algorithm and number of clusters and averaging are not "
            "published, and are chosen here",
            fitted={
                **self.fitted(),
                "clusters": "each whole section that is tested on, over its labelled locations, without their labels; "
                "their number is that of its classes",
            },
            transductive=clusters.transductive,
            metrics={
                "balanced-accuracy": BALANCED_ACCURACY,
                "weighted-f1": WEIGHTED_F1,
                **{name: clusters.metrics[name] for name in agreement},
            },
            aggregations=PER_SECTION,
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        self.check(trial)
        probed = [row for row in super().run(subject, trial) if row.metric in ("balanced-accuracy", "weighted-f1")]
        notes = (WHOLE,) if any(isinstance(section, Part) for section in trial.test) else ()
        clustered = [
            row.model_copy(update={"protocol": self.stamp, "transductive": (*row.transductive, *notes)})
            for row in self._clustering().run(subject, trial)
        ]
        return probed + clustered

    def check(self, trial: Trial) -> None:
        """Refuse a cohort that is not of the data set."""

    def scores(
        self, rows: Rows, side: Labelled, predicted: Strings, classes: Sequence[str], *, drawn: Resamples | None = None
    ) -> dict[str, Measure]:
        """Balanced accuracy and weighted F1."""
        drawn = drawn or rows.blocks(side.section, side.rows)
        found = super().scores(rows, side, predicted, classes, drawn=drawn)
        return {
            "balanced-accuracy": found["balanced-accuracy"],
            "weighted-f1": weighted_f1(side.labels, predicted, classes, drawn=drawn),
        }

    def published(self, split: str) -> list[Result]:
        """Only where the constants are the declared ones; which modality is read is none of them."""
        return tissue_rows(self.name, self.stamp, split) if self.stamp == type(self)().stamp else []

    def _clustering(self) -> _WholeSections:
        return _WholeSections(
            modality=self.modality,
            features=self.features,
            min_locations=self.min_clustered,
            n_starts=self.n_starts,
            resolutions=(),
            seed=self.seed,
        )


class StampDlpfc(StampTissue):
    """Layers of the cortex, of donors that nothing was fitted on."""

    name: ClassVar[str] = "stamp-dlpfc"
    about: ClassVar[str] = "12 sections of three donors, six layers of cortex and white matter (Maynard et al. 2021)"

    def check(self, trial: Trial) -> None:
        for section in (*trial.train, *trial.test):
            if foreign := sorted(set(known_labels(section).tolist()) - {"", *LAYERS}):
                raise ContractError(
                    f"{self.name} asks for the layers {', '.join(LAYERS)}, and there is {foreign[0]!r}",
                    where=f"section {section.id}",
                    mend="read the data set with --platform dlpfc",
                )


class StampHbc(StampTissue):
    """Regions of one section of breast cancer, in parts of it that nothing was fitted on."""

    name: ClassVar[str] = "stamp-hbc"
    about: ClassVar[str] = "one section of one person's breast cancer, within-section folds (10x Genomics, Block A)"


class _WholeSections(Clustering):
    """Clusters of whole sections; what is tested of them decides the level alone."""

    def tested(self, subject: Subject, trial: Trial) -> tuple[Labelled, ...]:
        return super().tested(subject, replace(trial, test=tuple(whole_of(section) for section in trial.test)))


def weighted_f1(labels: Strings, predicted: Strings, classes: Sequence[str], *, drawn: Resamples) -> Measure:
    """F1 of each class, weighted by its locations; classes that training lacks take no part.

    Parameters
    ----------
    labels, predicted
        (k,) of one section.
    classes
        Those of training.
    drawn
        The block bootstrap of the k locations.
    """
    known = np.isin(labels, list(classes))
    there = np.unique(labels[known])
    if not len(there):
        return Measure(value=float("nan"), n=0, n_blocks=drawn.n_units)
    truth = labels[:, None] == there[None, :]
    guess = (predicted[:, None] == there[None, :]) & known[:, None]

    def score(hits: NDArray[np.float64], true: NDArray[np.float64], said: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of (..., classes) shares of locations; NaN where no known class is there."""
        both = true + said
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = np.where(both > 0, 2 * hits / both, 0.0)
            return np.asarray((f1 * true).sum(axis=-1) / true.sum(axis=-1))

    shares = [of.astype(np.float64) for of in (truth & guess, truth, guess)]
    return Measure(
        value=float(score(*(of.sum(axis=0) for of in shares))),
        n=int(known.sum()),
        draws=score(*(drawn.mean(of) for of in shares)),
        n_blocks=drawn.n_units,
        n_effective=worth_together(drawn.n_effective(truth)),
    )
