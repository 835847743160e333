"""Rows of predicted against measured genes: over all test locations at once, per gene, and section by section.

Genes that are constant in the truth have no correlation: they are left out and counted. A gene that only the
prediction holds constant counts 0, so that no subject is spared its hard genes; a subject that predicts nothing but
constants has no correlation at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.contracts import SectionLike
from triglyph.bench.rows import BLOCK, PATIENT, Measure, Rows, mean_or_nan
from triglyph.metrics.bootstrap import MIN_BLOCKS, MIN_PATIENTS, Resamples, interval, nan_mean, spatial_blocks
from triglyph.metrics.correlation import pearson
from triglyph.metrics.merit import bounds_of
from triglyph.metrics.result import Level, Result

Floats = NDArray[np.float64]
Measured = Callable[[Resamples, Floats, Floats], tuple[Mapping[str, Measure], Floats]]
"""From draws, a guess (k, columns) and the truth (k, columns) to each metric, and to Pearson of each gene (genes,)."""

METRICS = {
    "pearson": "per gene, then the mean over genes that vary in the truth; a gene predicted as a constant counts 0",
    "mse": "mean over locations and genes of log1p counts, the prediction with an intercept",
    "r2-test-mean": "1 - squared error / squared deviation from the mean of the tested locations, per gene, then the "
    "mean over genes that vary; the prediction with an intercept",
    "r2-training-mean": "as r2-test-mean, against the squared deviation from the mean of all training locations: above "
    "0 is better than predicting that mean",
    "genes-undefined": "genes left out of pearson: constant in the truth",
}
RELEASE = {
    "pearson": "per gene, then the mean over all genes: a gene that is constant in truth or prediction leaves the mean "
    "undefined"
}
AGGREGATIONS = {
    "pooled": "group = all: over all tested locations of a level at once; the protocol's own",
    "per-gene": "group = a gene: as pooled, of this gene alone",
}


@dataclass(frozen=True)
class Scored:
    """Predicted and measured genes of one section's locations."""

    section: SectionLike
    rows: NDArray[np.intp]
    """(k,) locations of the section."""
    guess: Floats
    """(k, genes), with an intercept."""
    truth: Floats
    """(k, genes)"""


def expression_rows(
    rows: Rows, scored: Sequence[Scored], *, genes: Sequence[str], measured: Measured, direction: str
) -> list[Result]:
    """All rows of one subject.

    Parameters
    ----------
    scored
        One entry per test section with at least one location.
    genes
        Names.
    measured
        Such as `measures` with all but its first three arguments given.
    """
    out: list[Result] = []
    by_id = {s.section.id: s for s in scored}
    for level, ids in rows.by_level(list(by_id)):
        out += _pooled(rows, [by_id[s] for s in ids], genes, measured, direction, level)
    found: dict[str, dict[str, Measure]] = {}
    for name, of in by_id.items():
        for metric, measure in measured(rows.blocks(of.section, of.rows), of.guess, of.truth)[0].items():
            found.setdefault(metric, {})[name] = measure
    for metric, per_section in found.items():
        out += rows.per_section(per_section, metric=metric, direction=direction)
    return out


def measures(
    drawn: Resamples, guess: Floats, truth: Floats, *, training_mean: Floats, release: bool = False
) -> tuple[Mapping[str, Measure], Floats]:
    """Every metric over (k, genes) locations, with the draws of its bootstrap; Pearson of each gene.

    Parameters
    ----------
    training_mean
        (genes,) of the training locations.
    release
        The reference's mean of Pearson, which one constant gene leaves undefined.
    """
    n, genes = truth.shape
    r, varies = correlations(guess, truth)
    draws = drawn.pearson(guess, truth)
    draws[:, varies & (r == 0)] = 0.0
    value = _released(guess, truth) if release else mean_or_nan(r)
    # Deviations from each location's own gene mean: draws of large moments would lose their digits.
    centred = truth - truth.mean(axis=0)
    error, spread, about = (guess - truth) ** 2, centred**2, (truth - training_mean) ** 2
    drawn_error = drawn.mean(error)
    drawn_spread = drawn.mean(spread) - drawn.mean(centred) ** 2
    none = np.full(drawn.counts.shape[0], np.nan)
    own = _explained(error.mean(axis=0), spread.mean(axis=0))
    skill = _explained(error.mean(axis=0), about.mean(axis=0))

    def measure(value: float, of: Floats, n_genes: int, *, chance: float | None = None) -> Measure:
        return Measure(value=value, n=n, n_genes=n_genes, chance=chance, draws=of, n_blocks=drawn.n_units)

    metrics = {
        "pearson": measure(
            value, none if np.isnan(value) else nan_mean(draws[:, ~np.isnan(r)], axis=1), int(varies.sum()), chance=0.0
        ),
        "mse": measure(float(error.mean()), drawn_error.mean(axis=1), genes),
        "r2-test-mean": measure(
            mean_or_nan(own), nan_mean(_explained(drawn_error, drawn_spread), axis=1), int((~np.isnan(own)).sum())
        ),
        "r2-training-mean": measure(
            mean_or_nan(skill),
            nan_mean(_explained(drawn_error, drawn.mean(about)), axis=1),
            int((~np.isnan(skill)).sum()),
        ),
        "genes-undefined": Measure(value=float((~varies).sum()), n=n, n_genes=genes),
    }
    return metrics, r


def correlations(guess: Floats, truth: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """(genes,) Pearson as `METRICS` says, NaN where the gene does not vary, and which genes vary in the truth."""
    varies = np.ptp(truth, axis=0) > 0
    r = pearson(guess, truth)
    return (r if np.isnan(r).all() else np.where(varies, np.nan_to_num(r, nan=0.0), np.nan)), varies


def _released(guess: Floats, truth: Floats) -> float:
    return float(np.mean(pearson(guess, truth)))


def _explained(error: Floats, spread: Floats) -> Floats:
    # Under 1e-12 is the rounding of a gene that does not vary.
    return np.where(spread > 1e-12, 1.0 - error / np.where(spread > 1e-12, spread, 1.0), np.nan)


def _pooled(
    rows: Rows,
    scored: Sequence[Scored],
    genes: Sequence[str],
    measured: Measured,
    direction: str,
    level: Level,
) -> list[Result]:
    guess, truth = (np.concatenate([getattr(s, side) for s in scored]) for side in ("guess", "truth"))
    if len({s.section.patient for s in scored}) >= MIN_PATIENTS:
        people = np.concatenate([np.full(len(s.rows), s.section.patient) for s in scored])
        drawn = Resamples(people, n_boot=rows.n_boot, seed=rows.protocol.seed)
        unit, strata, least = PATIENT, 1, MIN_PATIENTS
    else:
        side = rows.protocol.block_um
        blocks = np.concatenate([spatial_blocks(s.section.centres_um, side_um=side)[s.rows] for s in scored])
        sections = np.concatenate([np.full(len(s.rows), i) for i, s in enumerate(scored)])
        drawn = Resamples(blocks, strata=sections, n_boot=rows.n_boot, seed=rows.protocol.seed)
        unit, strata, least = BLOCK, len(scored), MIN_BLOCKS
    out = []
    metrics, per_gene = measured(drawn, guess, truth)
    for metric, m in metrics.items():
        ci = None
        if m.draws is not None:
            ci = interval(
                m.draws,
                value=m.value,
                unit=unit,
                n_units=drawn.n_units,
                n_strata=strata,
                min_units=least,
                bounds=bounds_of(metric),
            )
        out.append(
            rows.row(
                metric=metric,
                direction=direction,
                aggregation="pooled",
                group="all",
                level=level,
                value=m.value,
                n=m.n,
                ci=ci,
                chance=m.chance,
                n_genes=m.n_genes,
            )
        )
    out += [
        rows.row(
            metric="pearson",
            direction=direction,
            aggregation="per-gene",
            group=gene,
            level=level,
            value=value,
            n=len(truth),
            chance=0.0,
            n_genes=1,
        )
        for gene, value in zip(genes, per_gene, strict=True)
    ]
    return out
