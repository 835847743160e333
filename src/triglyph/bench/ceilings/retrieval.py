"""The ceiling of retrieval between image and expression: counts matched to the true expected counts by likelihood."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.bench.ceilings.laws import match_log_posterior
from triglyph.bench.ceilings.subjects import EXPRESSION, ceiling_subject
from triglyph.bench.contracts import Embedder, Trial
from triglyph.bench.parts import pooled
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.rows import Measure, Rows
from triglyph.bench.truth import Truths
from triglyph.metrics.result import Result
from triglyph.metrics.retrieval import TOLERANCE, Ties

Floats = NDArray[np.float64]


def retrieval_ceiling(protocol: Retrieval, trial: Trial, truths: Truths, source: Embedder) -> list[Result]:
    """Rows in both directions, of sections that know their expected counts."""
    there = {s.id: pooled(source, s, "image")[1] & pooled(source, s, "expression")[1] for s in trial.test}
    tested = [s for s in trial.test if there[s.id].any()]
    if not truths.all_expected(tested):
        return []
    rows = Rows.start(protocol, ceiling_subject(EXPRESSION), trial)
    found: dict[tuple[str, str], dict[str, Measure]] = {}
    for section in tested:
        counts, _, _, measured = section.expression()
        genes = np.flatnonzero(measured)
        counts = sp.csr_matrix(sp.csc_matrix(counts)[:, genes])
        kept = np.flatnonzero(there[section.id])
        expected, dispersion = truths.expected(section, kept, genes)
        posterior = match_log_posterior(counts[kept], expected, dispersion=dispersion)
        # A row asks, for the counts of one location, which location they are of: from expression to image.
        for direction, scores in (("image->expression", posterior.T), ("expression->image", posterior)):
            ranks = diagonal_ranks(scores, ties=protocol.ties)
            for metric, measure in protocol.rank_measures(rows, section, ranks, kept).items():
                found.setdefault((direction, metric), {})[section.id] = measure
    return [
        row
        for (direction, metric), measures in found.items()
        for row in rows.per_section(measures, metric=metric, direction=direction)
    ]


def diagonal_ranks(scores: Floats, *, ties: Ties = "mean") -> Floats:
    """(n,) rank from 1 of entry i among row i of (n, n) scores; ties as in `match_ranks`."""
    right = np.diagonal(scores)[:, None]
    before = (scores > right + TOLERANCE).sum(axis=1)
    tied = (np.abs(scores - right) <= TOLERANCE).sum(axis=1) - 1
    return np.asarray(1.0 + before + (tied if ties == "pessimistic" else tied / 2.0), dtype=np.float64)
