"""Ceilings of `hest-benchmark` and `hescape-expression`: those of `expression`, on their scale and in their rows.

The scale is log1p of raw counts, and locations of many sections are pooled: where sections differ in depth, that is
part of what could be known.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.ceilings.expression import scored_locations, true_expression
from triglyph.bench.ceilings.subjects import COUNTING, EXPRESSION, ceiling_subject
from triglyph.bench.contracts import Embedder, SectionLike, Trial
from triglyph.bench.expression.measures import noise_free_draws
from triglyph.bench.hest.protocol import HestBenchmark
from triglyph.bench.hest.rows import Scored
from triglyph.bench.hest.targets import HestTargets
from triglyph.bench.rows import Measure, Rows, mean_or_nan
from triglyph.bench.truth import Truths
from triglyph.metrics.bootstrap import Resamples, nan_mean
from triglyph.metrics.counting_noise import log_noise, noise_free_pearson
from triglyph.metrics.result import Result

Floats = NDArray[np.float64]


def hest_ceilings(protocol: HestBenchmark, trial: Trial, truths: Truths, source: Embedder | None) -> list[Result]:
    """Both ceilings, over the locations that the judged source has; over all where it is None."""
    targets = protocol.targets(trial)
    there = scored_locations(trial, targets, source, protocol.modality)
    tested = [s for s in trial.test if there[s.id].any()]
    counted = [_counted(targets, s, np.flatnonzero(there[s.id])) for s in tested]
    noise_free = partial(_noise_free, release=protocol.compat == "release")
    out = protocol.rows_of(Rows.start(protocol, ceiling_subject(COUNTING), trial), counted, targets.genes, noise_free)
    if not truths.all_expected(tested):
        return out
    known = true_expression(targets, truths, there)
    return out + protocol.judge(Rows.start(protocol, ceiling_subject(EXPRESSION), trial), known, targets)


def _counted(targets: HestTargets, section: SectionLike, rows: NDArray[np.intp]) -> Scored:
    """The counts themselves in place of a guess."""
    counts = targets.counts(section)[rows].toarray().astype(np.float64)
    return Scored(section, rows, counts, targets[section][0][rows])


def _noise_free(
    drawn: Resamples, counts: Floats, truth: Floats, *, release: bool
) -> tuple[Mapping[str, Measure], Floats]:
    """Pearson that a noise-free prediction would reach.

    Noise is estimated of all these locations at once: that of a few is shrunk, which many sections do not average out.
    """
    noise = log_noise(counts)
    r, draws = noise_free_pearson(truth, noise), noise_free_draws(drawn, truth, noise)
    defined = ~np.isnan(r)
    value = Measure(
        value=float(r.mean()) if release else mean_or_nan(r),
        n=len(truth),
        draws=nan_mean(draws[:, defined], axis=1),
        n_blocks=drawn.n_units,
        chance=0.0,
        n_genes=int(defined.sum()),
    )
    return {"pearson": value}, r
