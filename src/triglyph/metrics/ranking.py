"""Ranks and AUROC of many columns at once, ties right.

A tie counts one half, as in comparing all pairs: AUROC = (R - p(p+1)/2) / (p q), where R is the sum of the average
ranks of the p positives among p + q observations (Mann & Whitney 1947). A column of one kind only has no AUROC: NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ContractError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_BLOCK_BYTES = 64 << 20


def columns(values: ArrayLike, *, what: str = "values") -> Floats:
    """`values` as float64 of shape (n, columns); one axis is one column."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise ContractError(f"{what} must have one or two axes, not {array.ndim}", where=f"shape {array.shape}")
    return array


def column_mask(mask: ArrayLike | None, shape: tuple[int, int]) -> Bools | None:
    """`mask` broadcast to (n, columns): (columns,) and (n, columns) are meant as they are, (n, 1) as rows."""
    if mask is None:
        return None
    array = np.asarray(mask, dtype=bool)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ContractError(
            f"a mask of shape {array.shape} does not fit {shape}", mend="give (columns,), (n, 1) or (n, columns)"
        ) from None


def require_finite(values: Floats, mask: Bools | None, *, what: str) -> None:
    """Refuse NaN and infinity wherever `mask` (all, if None) says that there is a measurement."""
    bad = ~np.isfinite(values)
    if mask is not None:
        bad &= mask
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ContractError(
            f"{what} are not finite in {int(bad.sum())} places",
            where=f"first at row {row}, column {column}",
            mend="mask what is not measured",
        )


def average_ranks(values: ArrayLike, *, mask: ArrayLike | None = None) -> Floats:
    """Ranks from 1 down each column, ties sharing their mean.

    Parameters
    ----------
    values
        (n, columns) or (n,).
    mask
        True where measured; the rest gets NaN and takes no rank. Broadcast as in `column_mask`.

    Returns
    -------
    (n, columns) ranks.

    Raises
    ------
    ContractError
        A measured value is not finite.
    """
    x = columns(values)
    keep = column_mask(mask, x.shape)
    require_finite(x, keep, what="values to rank")
    n, width = x.shape
    out = np.empty_like(x)
    step = max(1, _BLOCK_BYTES // max(1, 48 * n))
    for start in range(0, width, step):
        part = slice(start, start + step)
        out[:, part] = _ranks(x[:, part], None if keep is None else keep[:, part])
    return out


def _ranks(x: Floats, keep: Bools | None) -> Floats:
    n = len(x)
    # Sorting runs along contiguous memory; what is not measured goes last, behind every finite value.
    rows = np.ascontiguousarray(x.T) if keep is None else np.where(keep.T, x.T, np.inf)
    order = np.argsort(rows, axis=1)
    ordered = np.take_along_axis(rows, order, axis=1)
    place = np.arange(n)
    first = np.ones(ordered.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    last = np.ones(ordered.shape, dtype=bool)
    last[:, :-1] = first[:, 1:]
    low = np.maximum.accumulate(np.where(first, place, 0), axis=1)
    high = np.minimum.accumulate(np.where(last, place, n - 1)[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty_like(ordered)
    np.put_along_axis(ranks, order, (low + high) / 2.0 + 1.0, axis=1)
    if keep is not None:
        ranks[~keep.T] = np.nan
    return ranks.T


def auroc(scores: ArrayLike, positives: ArrayLike, *, mask: ArrayLike | None = None) -> Floats:
    """Area under the ROC curve of each column.

    Parameters
    ----------
    scores
        (n, classes) or (n,), higher for more likely.
    positives
        Bool of the same shape, True where the location is of the class.
    mask
        True where the truth is known.

    Returns
    -------
    (classes,) in [0, 1]; NaN for a class that is one-sided, that is without a positive or without a negative.

    Raises
    ------
    ContractError
        Shapes differ, or a score is not finite.
    """
    x = columns(scores, what="scores")
    truth = columns(positives, what="positives") > 0
    if truth.shape != x.shape:
        raise ContractError(f"scores {x.shape} and positives {truth.shape} differ in shape")
    keep = column_mask(mask, x.shape)
    if keep is not None:
        truth = truth & keep
    ranks = average_ranks(x, mask=keep)
    measured = np.full(x.shape[1], len(x)) if keep is None else keep.sum(axis=0)
    p = truth.sum(axis=0).astype(np.float64)
    q = measured - p
    total = np.where(truth, ranks, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((p > 0) & (q > 0), (total - p * (p + 1) / 2) / (p * q), np.nan)


def weighted_auroc(scores: ArrayLike, positives: ArrayLike, *, weights: ArrayLike) -> Floats:
    """AUROC of one column under many weightings of its rows: what a bootstrap needs, without sorting again.

    Parameters
    ----------
    scores
        (n,)
    positives
        (n,) bool.
    weights
        (b, n) non-negative: how often each row was drawn.

    Returns
    -------
    (b,), equal to `auroc` of the repeated rows; NaN where a draw is one-sided.
    """
    x = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(positives, dtype=bool)
    w = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    require_finite(x[:, None], None, what="scores")
    if not len(x):
        return np.full(len(w), np.nan)
    order = np.argsort(x, kind="stable")
    x, truth, w = x[order], truth[order], w[:, order]
    starts = np.flatnonzero(np.r_[True, x[1:] != x[:-1]])
    up = np.add.reduceat(w * truth, starts, axis=1)
    down = np.add.reduceat(w * ~truth, starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    pairs = up.sum(axis=1) * down.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (up * (below + down / 2)).sum(axis=1) / pairs, np.nan)
