"""Pearson and Spearman of every gene at once, masked where a gene was not measured.

A gene that is constant in either input over its measured locations has no correlation: it is NaN, never 0, and
`mean_defined` says how many such genes a mean left out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ContractError
from triglyph.metrics.parallel import each, spans
from triglyph.metrics.ranking import column_mask, column_ranks, column_spans, columns, require_finite, transposed

Floats = NDArray[np.float64]

Bools = NDArray[np.bool_]

_CHUNK_BYTES = 1 << 20
"""What is worked on at once in Pearson: it stays in the cache, so that memory is read once."""


class DefinedMean(NamedTuple):
    """A mean over what is defined."""

    value: float
    """NaN where nothing is."""
    n: int
    n_undefined: int


def mean_defined(values: ArrayLike) -> DefinedMean:
    """Mean over the entries that are not NaN, with both counts."""
    x = np.asarray(values, dtype=np.float64).ravel()
    there = ~np.isnan(x)
    n = int(there.sum())
    return DefinedMean(float(x[there].mean()) if n else float("nan"), n, len(x) - n)


def pearson(x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> Floats:
    """Pearson correlation of each column of `x` with the same column of `y`.

    Parameters
    ----------
    x, y
        (n, genes) or (n,).
    mask
        True where measured: (genes,), (n, 1) or (n, genes). What is masked may be NaN.

    Returns
    -------
    (genes,); NaN for a gene that is constant in `x` or in `y`, or has fewer than two measured locations.

    Raises
    ------
    ContractError
        Shapes differ, or a measured value is not finite.
    """
    a, b, keep = _pair(x, y, mask)
    n, genes = a.shape
    out = np.full(genes, np.nan)
    if n < 2 or not genes:
        _refuse_not_finite(a, b, keep)
        return out
    rows = max(16, _CHUNK_BYTES // (8 * genes))
    # A task is several chunks, so that starting it costs nothing beside it.
    tasks = each(lambda task: [_moments(a, b, keep, c) for c in _within(task, rows)], spans(n, 32 * rows))
    counts, mean, square, product = (np.stack(part) for part in zip(*(m for task in tasks for m in task), strict=True))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        # Chan, Golub & LeVeque (1983): moments about each chunk's mean, moved to the mean of all.
        total = counts.sum(axis=0)
        centre = (counts[:, None] * mean).sum(axis=0) / total
        apart = mean - centre
        variation = square.sum(axis=0) + (counts[:, None] * apart**2).sum(axis=0)
        together = product.sum(axis=0) + (counts * apart[:, 0] * apart[:, 1]).sum(axis=0)
        out = np.clip(together / np.sqrt(variation[0]) / np.sqrt(variation[1]), -1.0, 1.0)
        # The variance of a constant may round to a little above 0, and tiny values underflow: look at those again.
        plain = (variation > 1e-20 * total * centre**2) & (variation > 1e-200) & (variation < 1e200)
    doubtful = np.flatnonzero(~plain.all(axis=0))
    if len(doubtful):
        _refuse_not_finite(a, b, keep)
        for part in column_spans(n, len(doubtful)):
            some = doubtful[part]
            wide = a[:, some].astype(np.float64), b[:, some].astype(np.float64)
            out[some] = _careful(*wide, None if keep is None else keep[:, some])
    return out


def _pair(x: ArrayLike, y: ArrayLike, mask: ArrayLike | None) -> tuple[NDArray, NDArray, Bools | None]:
    """The two arrays and the mask, of one shape. float32 stays: a whole copy would cost more than the metric."""
    a, b = (
        v if isinstance(v, np.ndarray) and v.dtype == np.float32 and v.ndim == 2 else columns(v, what=what)
        for v, what in ((x, "x"), (y, "y"))
    )
    if a.shape != b.shape:
        raise ContractError(f"x {a.shape} and y {b.shape} differ in shape")
    return a, b, column_mask(mask, a.shape)


def _refuse_not_finite(a: NDArray, b: NDArray, keep: Bools | None) -> None:
    require_finite(a, keep, what="x")
    require_finite(b, keep, what="y")


def _within(task: slice, step: int) -> list[slice]:
    return [slice(task.start + s.start, task.start + s.stop) for s in spans(task.stop - task.start, step)]


def _moments(a: NDArray, b: NDArray, keep: Bools | None, rows: slice) -> tuple[Floats, Floats, Floats, Floats]:
    """(genes,) count, (2, genes) means and squares about them, (genes,) products about them, of some rows."""
    x, y = a[rows].astype(np.float64, copy=False), b[rows].astype(np.float64, copy=False)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if keep is None:
            n = np.full(x.shape[1], float(len(x)))
            mean = np.stack([x.sum(axis=0), y.sum(axis=0)]) / n
            x, y = x - mean[0], y - mean[1]
        else:
            there = keep[rows]
            n = there.sum(axis=0, dtype=np.float64)
            x, y = np.where(there, x, 0.0), np.where(there, y, 0.0)
            mean = np.stack([x.sum(axis=0), y.sum(axis=0)]) / np.maximum(n, 1.0)
            x, y = np.where(there, x - mean[0], 0.0), np.where(there, y - mean[1], 0.0)
        square = np.stack([np.einsum("ng,ng->g", x, x), np.einsum("ng,ng->g", y, y)])
        return n, mean, square, np.einsum("ng,ng->g", x, y)


def _careful(a: Floats, b: Floats, keep: Bools | None) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        there = np.ones(a.shape, dtype=bool) if keep is None else keep
        varies = _varies(a, there) & _varies(b, there)
        n = there.sum(axis=0)
        # Scaling first keeps tiny variances from underflowing to 0 and large ones from overflowing.
        a, b = (np.where(there, v, 0.0) for v in (a, b))
        a, b = a / np.abs(a).max(axis=0), b / np.abs(b).max(axis=0)
        a, b = (np.where(there, v - v.sum(axis=0) / n, 0.0) for v in (a, b))
        a, b = a / np.abs(a).max(axis=0), b / np.abs(b).max(axis=0)
        r = np.einsum("ng,ng->g", a, b) / np.sqrt(np.einsum("ng,ng->g", a, a) * np.einsum("ng,ng->g", b, b))
    return np.where(varies, np.clip(r, -1.0, 1.0), np.nan)


def _varies(x: Floats, keep: Bools) -> Bools:
    # Exact: a variance of a constant may round to something above 0.
    return np.where(keep, x, -np.inf).max(axis=0) > np.where(keep, x, np.inf).min(axis=0)


def spearman(x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> Floats:
    """Spearman correlation of each column: Pearson of average ranks, taken among measured locations only.

    Parameters, returns and errors as in `pearson`. Ranks are multiples of one half, so their products add up exactly
    (to 300,000 locations) and the order of the locations changes no bit.
    """
    a, b, keep = _pair(x, y, mask)
    n, genes = a.shape
    out = np.full(genes, np.nan)

    def block(part: slice) -> bool:
        rows = [transposed(v, part) for v in (a, b)]
        kept = None if keep is None else transposed(keep, part)
        for i in range(part.stop - part.start):
            there = None if kept is None else kept[i]
            pair = [v[i] if there is None else v[i][there] for v in rows]
            if not all(np.isfinite(v).all() for v in pair):
                return False
            (p, spread_p), (q, spread_q) = (column_ranks(v) for v in pair)
            if spread_p > 0 and spread_q > 0:
                middle = (len(p) + 1) / 2
                together = np.einsum("n,n->", p - middle, q - middle)
                out[part.start + i] = np.clip(together / np.sqrt(spread_p * spread_q), -1.0, 1.0)
        return True

    if not all(each(block, column_spans(n, genes))):
        _refuse_not_finite(a, b, keep)
    return out
