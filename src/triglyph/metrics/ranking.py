"""Ranks and AUROC of many columns at once, ties right.

A tie counts one half, as in comparing all pairs: AUROC = (R - p(p+1)/2) / (p q), where R is the sum of the average
ranks of the p positives among p + q observations (Mann & Whitney 1947). A column of one kind only has no AUROC: NaN.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ContractError
from triglyph.metrics.parallel import each, spans

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_BLOCK_BYTES = 8 << 20
"""Contiguous columns of one array that a thread holds. Larger blocks would give two threads too few to share, and
freeing blocks of this size keeps the memory of the temporaries, which are smaller, from going back to the system."""
_TILE_ROWS = 1024


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
    out = np.full(x.shape[::-1], np.nan)

    def block(part: slice) -> None:
        rows = transposed(x, part)
        kept = None if keep is None else transposed(keep, part)
        for i, row in enumerate(rows, part.start):
            if kept is None:
                out[i] = column_ranks(row)[0]
            else:
                there = kept[i - part.start]
                out[i, there] = column_ranks(row[there])[0]

    each(block, column_spans(*x.shape))
    return out.T


def column_spans(n: int, width: int) -> list[slice]:
    """Blocks of columns of an (n, width) array of float64, eight or more at once: that is a cache line of a row."""
    return spans(width, max(8, _BLOCK_BYTES // max(1, 64 * n) * 8))


def transposed(values: NDArray, part: slice) -> NDArray:
    """The columns of a slice as contiguous rows; floats as float64.

    Some rows of the source at a time: one column after the other would fetch every cache line once a column.
    """
    n = len(values)
    out = np.empty((part.stop - part.start, n), dtype=bool if values.dtype == bool else np.float64)
    for rows in spans(n, _TILE_ROWS):
        out[:, rows] = values[rows, part].T
    return out


def column_ranks(column: Floats) -> tuple[Floats, float]:
    """Average ranks of one finite column, and the sum of their squared deviations from their mean.

    Where most values are 0, as in counts, only the others are sorted: the zeros are one tie between the negative and
    the positive.

    Returns
    -------
    (n,) ranks from 1, and (n^3 - n - sum over ties of (t^3 - t)) / 12; exactly 0 for a constant.
    """
    n = len(column)
    others = np.flatnonzero(column)
    zeros = n - len(others)
    if 2 * zeros < n or not n:
        return _dense_ranks(column)
    kept = column[others]
    below = int((kept < 0).sum())
    ranks, spread = _dense_ranks(kept)
    out = np.full(n, below + (zeros + 1) / 2)
    out[others] = ranks + zeros * (kept > 0)
    ties = (_cubed(len(others)) - 12 * spread) + _cubed(zeros)
    return out, (_cubed(n) - ties) / 12


def _cubed(count: int) -> float:
    return float(count) ** 3 - count


def _dense_ranks(column: Floats) -> tuple[Floats, float]:
    n = len(column)
    order, ordered = sorting_order(column)
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if n else np.zeros(0, np.intp)
    ranks = np.empty(n)
    if len(starts) == n:
        ranks[order] = np.arange(1.0, n + 1.0)
        return ranks, _cubed(n) / 12
    tied = np.diff(starts, append=n)
    ranks[order] = np.repeat(starts + (tied + 1) / 2, tied)
    if len(starts) == 1:
        return ranks, 0.0
    return ranks, (_cubed(n) - float((tied.astype(np.float64) ** 3 - tied).sum())) / 12


def sorting_order(column: Floats) -> tuple[NDArray[np.intp], Floats]:
    """The order that sorts a finite column, equal values in the order they had, and the sorted column.

    The bits of a float64, with the order of the negative ones turned round, sort as an unsigned integer does. Their
    upper 32 are sorted by 16 at a time, which numpy does in linear time. The few values that are alike in those and
    stand wrong are merge-sorted among themselves; where they are many, 16 bits more are taken first.
    """
    column = column + 0.0  # makes -0.0 equal to 0.0
    bits = column.view(np.int64)
    keys = (bits ^ ((bits >> 63) | np.int64(-(2**63)))).view(np.uint64)
    for lowest in (32, 16):
        order = _by_digits(keys, range(lowest, 64, 16))
        ordered = column[order]
        if not (ordered[1:] < ordered[:-1]).any():
            return order, ordered
        upper = ordered.view(np.int64) >> lowest
        alike = np.zeros(len(keys) + 1, dtype=bool)
        alike[1:-1] = upper[1:] == upper[:-1]
        unsure = np.flatnonzero(alike[1:] | alike[:-1])
        if 8 * len(unsure) < len(keys):
            break
    # Each run of alike values keeps its places: those before are smaller, those behind larger.
    again = unsure[np.argsort(ordered[unsure], kind="stable")]
    order[unsure], ordered[unsure] = order[again], ordered[again]
    return order, ordered


def _by_digits(keys: NDArray[np.uint64], shifts: Iterable[int]) -> NDArray[np.intp]:
    order = None
    for shift in shifts:
        digit = (keys >> np.uint64(shift)).astype(np.uint16)
        if len(digit) and (digit != digit[0]).any():  # counts and float32 values have few digits
            order = (
                np.argsort(digit, kind="stable") if order is None else order[np.argsort(digit[order], kind="stable")]
            )
    return np.arange(len(keys), dtype=np.intp) if order is None else order


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
