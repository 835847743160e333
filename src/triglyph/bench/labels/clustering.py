"""`clustering`: do clusters of frozen embeddings agree with the labels of a held-out section?

The labelled locations of a section are clustered as they are, with nothing fitted on training: k-means at the number
of their classes, from 20 starts whose agreements are averaged, and Leiden communities at fixed resolutions, where
igraph is installed.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from pydantic import Field

from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.labels.labelled import Labelled, LabelProtocol, per_section_rows
from triglyph.bench.protocol import PER_SECTION, ProtocolCard
from triglyph.bench.rows import Measure, Rows
from triglyph.metrics.clusters import (
    N_NEIGHBOURS,
    N_STARTS,
    RESOLUTIONS,
    agreement,
    k_means_agreement,
    large_classes,
    leiden,
)
from triglyph.metrics.result import Result

log = logging.getLogger(__name__)


class Clustering(LabelProtocol):
    """ARI and NMI of k-means at the true number of classes, and of Leiden at fixed resolutions."""

    name: ClassVar[str] = "clustering"
    task: ClassVar[str] = "clustering"

    min_locations: int = Field(default=10, ge=1)
    """Locations of classes that have fewer in a section are left out there: such a class cannot be found."""
    n_starts: int = Field(default=N_STARTS, ge=1)
    resolutions: tuple[float, ...] = RESOLUTIONS
    """Of Leiden; none leaves it out."""
    n_neighbours: int = Field(default=N_NEIGHBOURS, ge=2)
    """Of the graph that Leiden divides."""

    def card(self) -> ProtocolCard:
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary="agreement of clusters of frozen embeddings with the labels of held-out sections",
            fitted={
                "clusters": "each test section, over its labelled locations of classes with at least `min_locations`, "
                "without their labels"
            },
            transductive=("the number of k-means clusters is that of the test section's classes",),
            metrics={
                "ari": f"adjusted Rand index of k-means, mean over {self.n_starts} single starts, states from 0",
                "ari:sd": "its standard deviation over the starts",
                "nmi": "mutual information over the arithmetic mean of both entropies, mean over the same starts",
                "ari@leiden-R, nmi@leiden-R": f"the same of Leiden communities at resolution R on {self.n_neighbours} "
                "nearest neighbours; where igraph is installed",
                "undefined": "sections with fewer than two classes; for Leiden also those with too few locations",
            },
            aggregations=PER_SECTION,
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        resolutions = self.resolutions
        if resolutions and importlib.util.find_spec("igraph") is None:
            log.warning("igraph is not installed: no rows of Leiden")
            resolutions = ()
        measures = []
        for side in self.tested(subject, trial):
            kept = np.flatnonzero(large_classes(side.labels, at_least=self.min_locations))
            large = Labelled(side.section, side.rows[kept], side.features[kept], side.labels[kept])
            measures += [
                (side.section.id, metric, m) for metric, m in (*self._k_means(large), *self._leiden(large, resolutions))
            ]
        return per_section_rows(rows, measures, direction=self.direction)

    def _k_means(self, side: Labelled) -> Iterator[tuple[str, Measure]]:
        found = k_means_agreement(side.features, side.labels, n_starts=self.n_starts)
        spread = float(found.ari.std()) if len(found.ari) else float("nan")
        yield "ari", Measure(value=found.mean_ari, n=found.n, chance=0.0)
        yield "ari:sd", Measure(value=spread, n=found.n)
        yield "nmi", Measure(value=found.mean_nmi, n=found.n)

    def _leiden(self, side: Labelled, resolutions: tuple[float, ...]) -> Iterator[tuple[str, Measure]]:
        n = len(side.rows)
        possible = n > self.n_neighbours
        found = (
            leiden(side.features, resolutions=resolutions, n_neighbours=self.n_neighbours, seed=self.seed)
            if resolutions and possible
            else {}
        )
        for resolution in resolutions:
            of = agreement(found[resolution], side.labels) if possible else None
            yield f"ari@leiden-{resolution:g}", Measure(value=of.ari if of else float("nan"), n=n, chance=0.0)
            yield f"nmi@leiden-{resolution:g}", Measure(value=of.nmi if of else float("nan"), n=n)
