"""What counting noise leaves to be predicted: the variance that chance alone gives log-transformed counts.

A count is taken to be Poisson around a rate of its own. Whoever knew the rates would predict each target by its mean
given them, and correlate with it by sqrt(1 - noise variance / variance). The noise variance v of a transformed count
depends on the rate, which is not known; here it is estimated without assuming how rates are distributed, or that they
have nothing to do with depth. That is a linear problem: find g(count) whose mean over the Poisson is v(rate) at every
rate. The exact g exists and swings wildly, so g is the one that has the least mean squared error for a mean over n
locations, over rates even on a log scale: at n = 1 it is a posterior mean, for many it has no bias to speak of.

Halves of the counts, correlated and stepped up by Spearman and Brown, do not give this. Their rule holds where noise is
inverse to depth, which that of a log is not where counts are few.

What varies between locations beyond the Poisson, overdispersion included, counts as known: replicates alone could tell.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from triglyph.errors import ContractError
from triglyph.metrics.correlation import pearson
from triglyph.metrics.expression import TARGET
from triglyph.metrics.ranking import average_ranks, columns

Floats = NDArray[np.float64]

_TOP = 40
"""Counts up to this are looked up; above, a normal of the count's own mean and variance does."""
_RATES = np.linspace(0.05, np.sqrt(1.5 * _TOP), 120) ** 2
_COUNTS = np.arange(int(np.ceil(_RATES[-1] + 8 * np.sqrt(_RATES[-1]))) + 1)
_STEP = 0.05
"""Locations whose scales differ by less than this share one table: in log, so 5 % of depth."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def log_noise(counts: Any, *, scale: ArrayLike | None = None) -> Floats:
    """Estimated noise variance of log(1 + scale x count).

    Parameters
    ----------
    counts
        (n, genes) raw counts, sparse or dense.
    scale
        (n,) what a location's counts are multiplied by, above 0, such as 10,000 / total; 1 if left out.

    Returns
    -------
    (n, genes); single entries may be negative, means over locations are what is meant.
    """
    z, scales, levels, level = _prepared(counts, scale)
    table = _table(np.log1p(levels[:, None] * _COUNTS), len(z))
    out = np.empty(z.shape)
    for g in range(z.shape[1]):
        out[:, g] = _noise(z[:, g], scales, table, level, lambda x: x)
    return out


def rank_noise(counts: Any, *, scale: ArrayLike | None = None) -> Floats:
    """As `log_noise`, of each value's average rank in its column."""
    z, scales, levels, level = _prepared(counts, scale)
    logs = np.log1p(levels[:, None] * _COUNTS)
    out = np.empty(z.shape)
    for g in range(z.shape[1]):
        ranked = _ranks_among(np.log1p(scales * z[:, g]))
        out[:, g] = _noise(z[:, g], scales, _table(ranked(logs), len(z)), level, ranked)
    return out


def noise_free_pearson(values: ArrayLike, noise: ArrayLike) -> Floats:
    """Correlation of values with what of them is not noise; of ranks and their noise, the bound of Spearman.

    A prediction that is ranked itself stays below the latter, since its ranks are even where the truth is bunched.

    Parameters
    ----------
    values, noise
        (n, genes) the targets and their noise variance.

    Returns
    -------
    (genes,) in [0, 1]; NaN for a gene that is constant.
    """
    return np.asarray(np.sqrt(_reliability(values, noise)))


def noise_free_depth_removed(counts: Any, totals: ArrayLike) -> Floats:
    """The bound of `depth_removed_spearman`: as by `rank_noise`, less what a line through log depth explains.

    Parameters
    ----------
    counts
        (n, genes) raw counts.
    totals
        (n,) counts of each location over all of its genes.
    """
    depth = np.asarray(totals, dtype=np.float64)
    scale = TARGET / np.maximum(depth, 1.0)
    ranks = average_ranks(np.log1p(scale[:, None] * _dense(counts)))
    reliable = _reliability(ranks, rank_noise(counts, scale=scale))
    by_depth = pearson(ranks, np.broadcast_to(np.log1p(depth)[:, None], ranks.shape))
    return np.asarray(np.sqrt(np.clip(reliable - np.nan_to_num(by_depth) ** 2, 0.0, 1.0)))


def _reliability(values: ArrayLike, noise: ArrayLike) -> Floats:
    """(genes,) share of the variance that is not noise."""
    x, v = columns(values), columns(noise, what="noise")
    n = len(x)
    if v.shape != x.shape:
        raise ContractError(f"values {x.shape} and noise {v.shape} differ in shape")
    if n < 2:
        return np.full(x.shape[1], np.nan)
    varies = np.ptp(x, axis=0) > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        # The variance about the sample's own mean holds (n - 1) / n of the noise.
        share = 1.0 - v.mean(axis=0) * (n - 1) / n / x.var(axis=0)
    return np.where(varies, np.clip(share, 0.0, 1.0), np.nan)


def _dense(counts: Any) -> Floats:
    return columns(counts.toarray() if sp.issparse(counts) else counts, what="counts")


def _prepared(counts: Any, scale: ArrayLike | None) -> tuple[Floats, Floats, Floats, NDArray[np.intp]]:
    """(n, genes) counts, (n,) scales, the (levels,) scales that have tables, and which of these each location has."""
    z = _dense(counts)
    scales = np.ones(len(z)) if scale is None else np.asarray(scale, dtype=np.float64)
    if scales.shape != (len(z),) or not (np.isfinite(scales) & (scales > 0)).all():
        raise ContractError(f"{scales.shape} scales for {len(z)} locations, all of which must be above 0")
    if (z < 0).any() or (z != np.floor(z)).any():
        raise ContractError("counts are negative or fractions", mend="give raw counts")
    steps, level = np.unique(np.round(np.log(scales) / _STEP), return_inverse=True)
    return z, scales, np.exp(steps * _STEP), level.ravel()


@lru_cache(maxsize=64)
def _solution(n: int) -> tuple[Floats, Floats]:
    """(rates, counts) probabilities; (counts up to `_TOP`, rates) what makes g of v for a mean over n locations.

    g minimises the mean over rates of (n - 1) (mean of g - v)² + mean of (g - v)².
    """
    p = np.exp(_COUNTS * np.log(_RATES)[:, None] - _RATES[:, None] - gammaln(_COUNTS + 1))
    even = np.gradient(np.log(_RATES))
    even /= even.sum()
    weighted = p.T * even
    solved = n * np.linalg.solve((n - 1) * weighted @ p + np.diag(weighted.sum(axis=1)), weighted)
    return p, np.asarray(solved[: _TOP + 1])


def _table(values: Floats, n: int) -> Floats:
    """(levels, `_TOP` + 1) noise variance to look up, of (levels, counts) values of the transform."""
    p, solved = _solution(n)
    return np.asarray((values**2 @ p.T - (values @ p.T) ** 2) @ solved.T)


def _noise(
    z: Floats, scales: Floats, table: Floats, level: NDArray[np.intp], after: Callable[[Floats], Floats]
) -> Floats:
    """(n,) noise variance of after(log(1 + scale x count))."""
    out = table[level, np.minimum(z, _TOP).astype(np.intp)]
    many = np.flatnonzero(z > _TOP)
    around = z[many, None] + np.sqrt(z[many, None]) * _NODES
    values = after(np.log1p(scales[many, None] * around))
    out[many] = values**2 @ _WEIGHTS - (values @ _WEIGHTS) ** 2
    return out


def _ranks_among(values: Floats) -> Callable[[Floats], Floats]:
    """The average rank that a value would take among (n,) values."""
    ordered = np.sort(values)

    def ranked(x: Floats) -> Floats:
        below, up_to = ordered.searchsorted(x - 1e-9), ordered.searchsorted(x + 1e-9, side="right")
        return np.asarray((below + up_to + 1) / 2)

    return ranked
