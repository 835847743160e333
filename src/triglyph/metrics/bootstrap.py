"""Percentile bootstrap intervals over units that are replicates: patients, or else blocks of tissue.

Neighbouring locations are near copies of each other, so they are drawn together, as square blocks of a stated side in
µm; blocks are drawn within their own section, so that every draw keeps the sections. Patients are drawn only where
there are at least `MIN_PATIENTS`: a percentile interval of four patients covers 80 %, not 95 %. A draw is a vector of
how often each unit came up, and every statistic here is exact for the repeated rows without repeating them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ContractError
from triglyph.metrics.ranking import column_mask, columns, weighted_auroc

Floats = NDArray[np.float64]

MIN_PATIENTS = 6
MIN_BLOCKS = 5
N_BOOT = 1000
COVERAGE = 0.95

_BLOCK_BYTES = 64 << 20


class Interval(NamedTuple):
    """A percentile interval and what was drawn for it."""

    low: float
    high: float
    unit: str
    n_units: int


def spatial_blocks(centres_um: ArrayLike, *, side_um: float) -> NDArray[np.intp]:
    """(n,) number of the square of tissue that each location lies in.

    Parameters
    ----------
    centres_um
        (n, 2)
    side_um
        Side of a block, µm; the lattice starts at the smallest x and y.
    """
    xy = np.asarray(centres_um, dtype=np.float64)
    if not side_um > 0:
        raise ContractError(f"a block side of {side_um} µm", mend="give a positive side")
    if not len(xy):
        return np.zeros(0, dtype=np.intp)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise ContractError("centres must be (n, 2) and finite", where=f"shape {xy.shape}")
    cell = np.floor((xy - xy.min(axis=0)) / side_um).astype(np.int64)
    return np.unique(cell, axis=0, return_inverse=True)[1].ravel().astype(np.intp)


class Resamples:
    """Draws of units with replacement.

    Parameters
    ----------
    units
        (n,) the unit (block, patient) of each row, numbers or names.
    strata
        (n,) the section of each row; each stratum keeps its number of units in every draw. None: one stratum.
    n_boot
        Number of draws.
    seed
        Of `numpy.random.default_rng`.
    """

    def __init__(
        self, units: ArrayLike, *, strata: ArrayLike | None = None, n_boot: int = N_BOOT, seed: int | Sequence[int] = 0
    ) -> None:
        u = np.unique(np.asarray(units), return_inverse=True)[1].ravel()
        s = np.zeros(len(u), dtype=np.intp) if strata is None else np.unique(strata, return_inverse=True)[1].ravel()
        if len(s) != len(u):
            raise ContractError(f"{len(s)} strata for {len(u)} rows")
        pairs, rows = np.unique(np.stack([s, u]), axis=1, return_inverse=True)
        self.rows: NDArray[np.intp] = rows.ravel().astype(np.intp)
        self.n_units: int = pairs.shape[1]
        ones = np.ones(len(self.rows))
        self._members = sp.csr_matrix((ones, (self.rows, np.arange(len(u)))), shape=(self.n_units, len(u)))
        self.counts: Floats = np.zeros((n_boot, self.n_units))
        """(n_boot, n_units) how often each unit was drawn."""
        rng = np.random.default_rng(seed)
        for stratum in np.unique(pairs[0]):
            members = np.flatnonzero(pairs[0] == stratum)
            share = np.full(len(members), 1.0 / len(members))
            self.counts[:, members] = rng.multinomial(len(members), share, size=n_boot)

    def _sums(self, values: Floats) -> Floats:
        """(n_units, columns) sums of (n, columns) over the rows of each unit."""
        return np.asarray(self._members @ values)

    def _weights(self) -> Iterator[tuple[slice, Floats]]:
        """Row weights of the draws, some draws at a time."""
        step = max(1, _BLOCK_BYTES // max(1, 8 * len(self.rows)))
        for start in range(0, len(self.counts), step):
            part = slice(start, start + step)
            yield part, self.counts[part][:, self.rows]

    def mean(self, values: ArrayLike, *, mask: ArrayLike | None = None) -> Floats:
        """(n_boot, columns) mean of each column of (n, columns) over its measured rows; NaN without any."""
        x = columns(values)
        keep = column_mask(mask, x.shape)
        there = np.ones(x.shape) if keep is None else keep.astype(np.float64)
        total = self.counts @ self._sums(x if keep is None else np.where(keep, x, 0.0))
        n = self.counts @ self._sums(there)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(n > 0, total / n, np.nan)

    def median(self, values: ArrayLike) -> Floats:
        """(n_boot,) median of (n,) values."""
        x = np.asarray(values, dtype=np.float64)
        order = np.argsort(x, kind="stable")
        out = np.full(len(self.counts), np.nan)
        for part, weights in self._weights():
            reached = np.cumsum(weights[:, order], axis=1)
            n = reached[:, -1:]
            low = (reached > (n - 1) // 2).argmax(axis=1)
            high = (reached > n // 2).argmax(axis=1)
            out[part] = np.where(n[:, 0] > 0, (x[order][low] + x[order][high]) / 2, np.nan)
        return out

    def auroc(self, scores: ArrayLike, positives: ArrayLike, *, mask: ArrayLike | None = None) -> Floats:
        """(n_boot, classes) AUROC of each column; NaN in draws where a class is one-sided."""
        x, truth = columns(scores), columns(positives) > 0
        keep = column_mask(mask, x.shape)
        out = np.full((len(self.counts), x.shape[1]), np.nan)
        for part, weights in self._weights():
            for c in range(x.shape[1]):
                there = slice(None) if keep is None else keep[:, c]
                out[part, c] = weighted_auroc(x[there, c], truth[there, c], weights=weights[:, there])
        return out

    def pearson(self, x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> Floats:
        """(n_boot, genes) Pearson correlation of each column, from the moments of each unit."""
        a, b = columns(x), columns(y)
        keep = column_mask(mask, a.shape)
        there = np.ones(a.shape) if keep is None else keep.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            n = there.sum(axis=0)
            # Centred and scaled first: differences of large moments lose their digits otherwise.
            a, b = _standard(a, there, n), _standard(b, there, n)
            m = self.counts @ self._sums(there)
            ma, mb, maa, mbb, mab = (self.counts @ self._sums(v) / m for v in (a, b, a * a, b * b, a * b))
            va, vb = maa - ma**2, mbb - mb**2
            r = (mab - ma * mb) / np.sqrt(va * vb)
        # The columns have unit variance over all rows, so this is far below anything but a constant draw.
        defined = (m > 1) & (va > 1e-9) & (vb > 1e-9)
        return np.where(defined, np.clip(r, -1.0, 1.0), np.nan)


def _standard(x: Floats, there: Floats, n: Floats) -> Floats:
    kept = np.where(there > 0, x, 0.0)
    centred = np.where(there > 0, x - kept.sum(axis=0) / n, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / n)
    varies = np.where(there > 0, x, -np.inf).max(axis=0) > np.where(there > 0, x, np.inf).min(axis=0)
    return np.where(varies, centred / np.where(varies, deviation, 1.0), 0.0)


def interval(
    draws: ArrayLike, *, unit: str, n_units: int, min_units: int, coverage: float = COVERAGE
) -> Interval | None:
    """The percentile interval of a statistic's draws.

    Parameters
    ----------
    draws
        (n_boot,); NaN where the statistic is undefined in a draw.
    min_units
        Fewer units than this give no interval.

    Returns
    -------
    None with too few units, or where more than half of the draws are undefined.
    """
    x = np.asarray(draws, dtype=np.float64)
    defined = x[~np.isnan(x)]
    if n_units < min_units or len(defined) * 2 < len(x) or not len(x):
        return None
    tail = (1.0 - coverage) / 2
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return Interval(float(low), float(high), unit, n_units)


def nan_mean(values: ArrayLike, *, axis: int) -> Floats:
    """Mean over what is not NaN along an axis; NaN where nothing is."""
    x = np.asarray(values, dtype=np.float64)
    there = ~np.isnan(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(there, x, 0.0).sum(axis=axis) / there.sum(axis=axis))
