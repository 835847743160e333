"""Ceilings of predicted expression: what counting noise allows, and what knowing the true expression gives.

`ceiling: counting noise` needs nothing but counts: see `metrics.counting_noise`. `ceiling: true expression`, where a
section carries the truth of a simulation, predicts the expected value of each target given the expected counts: the
prediction with the least squared error under `laws`.

Those of `hest-benchmark` are in `hest`.

`half of the counts` is a control of `genes-from-genes`. Half of the counts predict all of them, themselves included:
what they share is noise, so it bounds nothing, and published ceilings of that task appear to be of this kind.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.ceilings.laws import expected_log1p_counts, expected_log1p_cp10k
from triglyph.bench.ceilings.subjects import COUNTING, EXPRESSION, HALF, ceiling_subject
from triglyph.bench.contracts import Embedder, SectionLike, Trial
from triglyph.bench.expression.measures import ceiling_measures
from triglyph.bench.expression.predictors import Predict
from triglyph.bench.expression.protocol import Expression, GenesFromGenes
from triglyph.bench.expression.targets import GeneTargets, Targets
from triglyph.bench.parts import pooled
from triglyph.bench.rows import Measure, Rows
from triglyph.bench.truth import Truths
from triglyph.metrics.expression import log1p_cp10k
from triglyph.metrics.result import Result
from triglyph.metrics.thinning import split_counts

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def expression_ceilings(protocol: Expression, trial: Trial, truths: Truths, source: Embedder | None) -> list[Result]:
    """Both ceilings, over the locations that the judged source has; every location with counts where it has none."""
    targets = protocol.targets(trial)
    there = scored_locations(trial, targets, source, protocol.modality)
    tested = [s for s in trial.test if there[s.id].any()]
    rows = Rows.start(protocol, ceiling_subject(COUNTING), trial)
    found: dict[str, dict[str, Measure]] = {}
    for section in tested:
        kept = np.flatnonzero(there[section.id])
        for metric, measure in ceiling_measures(rows, section, kept, protocol.ceilings(targets)).items():
            found.setdefault(metric, {})[section.id] = measure
    out = [
        row for metric, of in found.items() for row in rows.per_section(of, metric=metric, direction=protocol.direction)
    ]
    if isinstance(protocol, GenesFromGenes):
        out += _half(protocol, trial, targets, there)
    if not truths.all_expected(tested):
        return out
    known = true_expression(targets, truths, there)
    return out + protocol.judge(Rows.start(protocol, ceiling_subject(EXPRESSION), trial), known, targets)


def scored_locations(trial: Trial, targets: GeneTargets, source: Embedder | None, modality: str) -> dict[str, Bools]:
    """Test section -> (n,) which locations a judged source is scored on; all that have targets where it is None."""
    there = {s.id: targets[s][1] for s in trial.test}
    if source is not None and modality in source.modalities:
        for section in trial.test:
            there[section.id] = there[section.id] & np.asarray(pooled(source, section, modality)[1], dtype=bool)
    return there


def true_expression(targets: GeneTargets, truths: Truths, there: Mapping[str, Bools]) -> Predict:
    """The expected value of each target given the expected counts, at the locations `there` of sections with truth."""
    memo = targets.trial.memo

    def known(section: SectionLike) -> tuple[Floats, Bools]:
        present = there[section.id]
        if not present.any():
            return np.full((len(present), len(targets.genes)), np.nan), present
        key = ("expected targets", id(targets), section.id)
        if key not in memo:
            memo[key] = _expected(targets, truths, section)
        return memo[key], present

    return known


def _expected(targets: GeneTargets, truths: Truths, section: SectionLike) -> Floats:
    """(n, genes)"""
    at = {symbol: i for i, symbol in enumerate(section.expression()[1])}
    columns = np.array([at[g] for g in targets.common], dtype=np.intp)
    mean, dispersion = truths.expected(section, np.arange(len(section.centres_um)), columns)
    chosen = mean[:, targets.columns]
    if targets.scale == "log1p-counts":
        return expected_log1p_counts(chosen, dispersion=dispersion)
    return expected_log1p_cp10k(chosen, mean.sum(axis=1), dispersion=dispersion)


def _half(protocol: Expression, trial: Trial, targets: Targets, there: dict[str, Bools]) -> list[Result]:
    def halved(section: SectionLike) -> tuple[Floats, Bools]:
        rng = np.random.default_rng([protocol.seed, zlib.crc32(section.id.encode())])
        half = split_counts(targets.counts(section), rng)[0]
        return log1p_cp10k(half)[:, targets.columns].toarray(), there[section.id]

    rows = protocol.judge(Rows.start(protocol, ceiling_subject(HALF), trial), halved, targets)
    # Its scale is composition: only what does not depend on scale means anything.
    return [r for r in rows if r.metric in ("pearson", "spearman", "spearman-depth-removed")]
