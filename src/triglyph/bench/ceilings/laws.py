"""The law of simulated counts: negative binomial around the expected ones, independently, with one dispersion.

Of simulated round spots this is the law itself. In bins of single molecules noise is per cell, so that dispersion
differs between bins and genes and neighbouring bins share it: there what follows from it is close to a ceiling and no
bound.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from triglyph.metrics.expression import TARGET

Floats = NDArray[np.float64]
_SUMMED = 40.0
"""Up to this expected count a distribution is summed term by term; above, its curvature is enough."""


def expected_log1p_cp10k(mean: Floats, totals: Floats, *, dispersion: float = 0.0) -> Floats:
    """Expected log1p of counts per 10,000, given expected counts: the prediction with the least squared error.

    Parameters
    ----------
    mean
        (n, genes) expected counts.
    totals
        (n,) expected counts over all genes that the scale is taken over; the realised total is taken to be this.
    dispersion
        Variance of a count is mean + dispersion x mean².
    """
    scale = (TARGET / np.maximum(totals, 1.0))[:, None] * np.ones_like(mean)
    return _expected_log1p(mean, scale, dispersion)


def expected_log1p_counts(mean: Floats, *, dispersion: float = 0.0) -> Floats:
    """Expected log1p of counts, given expected counts (n, genes)."""
    return _expected_log1p(mean, np.ones_like(mean), dispersion)


def _expected_log1p(mean: Floats, scale: Floats, dispersion: float) -> Floats:
    """Expected log(1 + scale x count). Small means are summed over the distribution, large ones to second order."""
    variance = mean + dispersion * mean**2
    out = np.log1p(scale * mean) - 0.5 * variance * (scale / (1 + scale * mean)) ** 2
    small = mean <= _SUMMED
    m, s = mean[small], scale[small]
    top = int(np.ceil(_SUMMED + 12 * np.sqrt(_SUMMED + dispersion * _SUMMED**2)))
    total = np.zeros(len(m))
    for k in range(1, top + 1):
        total += np.exp(_log_probability(k, m, dispersion)) * np.log1p(s * k)
    out[small] = total
    return np.asarray(out)


def _log_probability(k: int, mean: Floats, dispersion: float) -> Floats:
    """log P(count = k) of a Poisson or negative binomial with these means; -inf where the mean is 0."""
    with np.errstate(divide="ignore"):
        if dispersion <= 0:
            return np.asarray(k * np.log(mean) - mean - gammaln(k + 1))
        size = 1.0 / dispersion
        choose = gammaln(k + size) - gammaln(size) - gammaln(k + 1)
        return np.asarray(choose + k * np.log(mean / (mean + size)) - size * np.log1p(mean / size))


def match_log_posterior(counts: Any, expected: Floats, *, dispersion: float = 0.0) -> Floats:
    """log of the probability that counts `i` were drawn at location `j`, all locations being as likely beforehand.

    Parameters
    ----------
    counts
        (n, genes) observed, sparse or dense.
    expected
        (m, genes) expected counts of each location.

    Returns
    -------
    (n, m), each row a distribution over locations, in logs.
    """
    mean = np.maximum(expected, np.finfo(np.float64).tiny)
    if dispersion > 0:
        size = 1.0 / dispersion
        slope, level = np.log(mean / (mean + size)), -size * np.log1p(mean / size).sum(axis=1)
    else:
        slope, level = np.log(mean), -mean.sum(axis=1)
    likelihood = np.asarray(sp.csr_matrix(counts, dtype=np.float64) @ slope.T) + level[None, :]
    return np.asarray(likelihood - logsumexp(likelihood, axis=1, keepdims=True))
