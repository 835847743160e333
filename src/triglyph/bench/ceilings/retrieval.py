"""The ceiling of retrieval between image and expression: counts matched to the true expected counts by likelihood.

Whoever ranks so knows what every location of a gallery should express, and of a query's counts only what they are. A
gallery of several sections is of one panel and one law of counts: else the panel alone would tell sections apart.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.bench.ceilings.laws import match_log_posterior
from triglyph.bench.ceilings.subjects import EXPRESSION, ceiling_subject
from triglyph.bench.contracts import Embedder, SectionLike, Trial
from triglyph.bench.hescape.retrieval import HescapeRetrieval, Place
from triglyph.bench.parts import pooled
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.rows import Measure, Rows
from triglyph.bench.truth import Truths
from triglyph.metrics.result import Result
from triglyph.metrics.retrieval import Ties, diagonal_ranks

Floats = NDArray[np.float64]

log = logging.getLogger(__name__)


def retrieval_ceiling(
    protocol: Retrieval | HescapeRetrieval, trial: Trial, truths: Truths, source: Embedder
) -> list[Result]:
    """Rows in both directions, over the locations that the judged source has; none where a section has no truth."""
    there = {s.id: pooled(source, s, "image")[1] & pooled(source, s, "expression")[1] for s in trial.test}
    tested = [Place(s, kept) for s in trial.test if len(kept := np.flatnonzero(there[s.id]))]
    if not truths.all_expected([place.section for place in tested]):
        return []
    rows, known = Rows.start(protocol, ceiling_subject(EXPRESSION), trial), Likelihood(truths, protocol.ties)
    if isinstance(protocol, HescapeRetrieval):
        for _, patient, sections in rows.by_patient([place.section for place in tested]):
            if not known.alike(sections):
                log.warning("no ceiling of %s: sections of %s differ in panel or in noise", protocol.name, patient)
                return []
        return protocol.judge(rows, tested, known)
    found: dict[tuple[str, str], dict[str, Measure]] = {}
    for place in tested:
        for direction in ("image->expression", "expression->image"):
            ranks = known.gallery([place], direction)
            for metric, measure in protocol.rank_measures(rows, place.section, ranks, place.rows).items():
                found.setdefault((direction, metric), {})[place.section.id] = measure
    return [
        row
        for (direction, metric), measures in found.items()
        for row in rows.per_section(measures, metric=metric, direction=direction)
    ]


@dataclass(frozen=True)
class Likelihood:
    """The truth ranks, in any gallery."""

    truths: Truths
    ties: Ties

    def gallery(self, places: Sequence[Place], direction: str) -> Floats:
        """(n,) ranks among all locations of these sections, one section after the other."""
        read = [self._of(place) for place in places]
        counts, expected = sp.vstack([c for c, _, _ in read]).tocsr(), np.concatenate([e for _, e, _ in read])
        return self._ranks(counts, expected, read[0][2], direction)

    def batches(self, place: Place, batches: Sequence[slice], direction: str) -> list[Floats]:
        """Ranks among each of some batches of a section's locations."""
        counts, expected, dispersion = self._of(place)
        return [self._ranks(counts[of], expected[of], dispersion, direction) for of in batches]

    def _ranks(self, counts: sp.csr_matrix, expected: Floats, dispersion: float, direction: str) -> Floats:
        # A row asks, for the counts of one location, which location they are of: from expression to image.
        posterior = match_log_posterior(counts, expected, dispersion=dispersion)
        return diagonal_ranks(posterior.T if direction.startswith("image") else posterior, ties=self.ties)

    def alike(self, sections: Sequence[SectionLike]) -> bool:
        """Whether they have the same measured genes, in the same columns, and the same law of counts."""
        first, *others = (self._law(s) for s in sections)
        return all(law == first for law in others)

    def _law(self, section: SectionLike) -> tuple[tuple[str, ...], bytes, float]:
        _, symbols, _, measured = section.expression()
        truth = self.truths[section]
        assert truth is not None
        return symbols, np.asarray(measured).tobytes(), truth.dispersion

    def _of(self, place: Place) -> tuple[sp.csr_matrix, Floats, float]:
        """Counts (n, genes) of measured genes, the expected ones and their dispersion."""
        counts, _, _, measured = place.section.expression()
        genes = np.flatnonzero(measured)
        expected, dispersion = self.truths.expected(place.section, place.rows, genes)
        return sp.csr_matrix(sp.csc_matrix(counts)[:, genes])[place.rows], expected, dispersion
