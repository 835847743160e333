"""Pearson and Spearman of every gene at once, masked where a gene was not measured.

A gene that is constant in either input over its measured locations has no correlation: it is NaN, never 0, and
`mean_defined` says how many such genes a mean left out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ContractError
from triglyph.metrics.ranking import average_ranks, column_mask, columns, require_finite

Floats = NDArray[np.float64]

_BLOCK_BYTES = 64 << 20


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
    a, b = columns(x, what="x"), columns(y, what="y")
    if a.shape != b.shape:
        raise ContractError(f"x {a.shape} and y {b.shape} differ in shape")
    keep = column_mask(mask, a.shape)
    require_finite(a, keep, what="x")
    require_finite(b, keep, what="y")
    n, genes = a.shape
    out = np.full(genes, np.nan)
    if n < 2:
        return out
    step = max(1, _BLOCK_BYTES // (16 * n))
    for start in range(0, genes, step):
        part = slice(start, start + step)
        out[part] = _pearson(a[:, part], b[:, part], None if keep is None else keep[:, part])
    return out


def _pearson(a: Floats, b: Floats, keep: NDArray[np.bool_] | None) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        if keep is None:
            varies = (np.ptp(a, axis=0) > 0) & (np.ptp(b, axis=0) > 0)
            a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        else:
            varies = _varies(a, keep) & _varies(b, keep)
            n = keep.sum(axis=0)
            a = np.where(keep, a - np.where(keep, a, 0.0).sum(axis=0) / n, 0.0)
            b = np.where(keep, b - np.where(keep, b, 0.0).sum(axis=0) / n, 0.0)
        # Scaling first keeps tiny variances from underflowing to 0.
        a = a / np.abs(a).max(axis=0)
        b = b / np.abs(b).max(axis=0)
        r = np.einsum("ng,ng->g", a, b) / np.sqrt(np.einsum("ng,ng->g", a, a) * np.einsum("ng,ng->g", b, b))
    return np.where(varies, np.clip(r, -1.0, 1.0), np.nan)


def _varies(x: Floats, keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    # Exact: a variance of a constant may round to something above 0.
    return np.where(keep, x, -np.inf).max(axis=0) > np.where(keep, x, np.inf).min(axis=0)


def spearman(x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> Floats:
    """Spearman correlation of each column: Pearson of average ranks, taken among measured locations only.

    Parameters, returns and errors as in `pearson`.
    """
    a, b = columns(x, what="x"), columns(y, what="y")
    if a.shape != b.shape:
        raise ContractError(f"x {a.shape} and y {b.shape} differ in shape")
    keep = column_mask(mask, a.shape)
    return pearson(average_ranks(a, mask=keep), average_ranks(b, mask=keep), mask=keep)
