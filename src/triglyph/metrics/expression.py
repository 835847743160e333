"""Expression on the scale that metrics are taken on, and errors of predicted expression.

`log1p_cp10k` is log(1 + 10,000 x count / total). The total is over the genes that were given: pass those that all
sections measure, since depth over different panels is not one quantity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ContractError, GeneError
from triglyph.metrics.correlation import spearman
from triglyph.metrics.ranking import column_mask, columns, require_finite

Floats = NDArray[np.float64]

TARGET = 1e4
_ROUNDING = 1e-9
"""Residuals this small beside the values are nothing but rounding."""


def log1p_cp10k(counts: Any, *, totals: ArrayLike | None = None) -> sp.csr_matrix:
    """Depth-normalised, log-transformed counts, sparse where the counts are 0.

    Parameters
    ----------
    counts
        (n, genes) raw counts, sparse or dense.
    totals
        (n,) depth; the row sums if left out. A location without counts stays 0 everywhere.
    """
    out = sp.csr_matrix(counts, dtype=np.float64, copy=True)
    out.sum_duplicates()
    depth = np.asarray(out.sum(axis=1)).ravel() if totals is None else np.asarray(totals, dtype=np.float64)
    if depth.shape != (out.shape[0],):
        raise ContractError(f"{depth.shape} totals for {out.shape[0]} locations")
    out.data = np.log1p(out.data / np.repeat(np.maximum(depth, 1.0), np.diff(out.indptr)) * TARGET)
    return out


def most_variable(values: sp.csr_matrix, *, n_genes: int, min_detected: float = 0.1) -> NDArray[np.intp]:
    """Columns of the `n_genes` most variable genes among those seen in more than `min_detected` of the locations.

    Parameters
    ----------
    values
        (n, genes) log-transformed expression of the *training* locations.

    Returns
    -------
    (k,) column numbers, most variable first, k <= n_genes; equal variances keep the order of the columns.

    Raises
    ------
    GeneError
        No gene is seen that often.
    """
    n = values.shape[0]
    mean = np.asarray(values.mean(axis=0)).ravel()
    square = np.asarray(values.multiply(values).mean(axis=0)).ravel()
    variance = square - mean**2
    detected = np.bincount(values.indices[values.data > 0], minlength=values.shape[1]) / max(n, 1)
    kept = np.flatnonzero(detected > min_detected)
    if not len(kept):
        raise GeneError(
            f"no gene is seen in more than {min_detected:.0%} of {n} training locations",
            mend="lower min_detected, or look at the counts",
        )
    return kept[np.argsort(-variance[kept], kind="stable")][:n_genes]


def mean_squared_error(
    predicted: ArrayLike, truth: ArrayLike, *, mask: ArrayLike | None = None, centred: bool = False
) -> Floats:
    """Mean squared error of each gene.

    Parameters
    ----------
    predicted, truth
        (n, genes) or (n,).
    mask
        True where measured.
    centred
        Remove each gene's mean over the measured locations from both sides first, so that an offset costs nothing.

    Returns
    -------
    (genes,); NaN for a gene that is nowhere measured.
    """
    a, b, keep = _pair(predicted, truth, mask)
    error = a - b if keep is None else np.where(keep, a - b, 0.0)
    n = np.full(a.shape[1], float(len(a))) if keep is None else keep.sum(axis=0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_square = (error**2).sum(axis=0) / n
        if centred:
            mean_square = np.maximum(mean_square - (error.sum(axis=0) / n) ** 2, 0.0)
    return np.where(n > 0, mean_square, np.nan)


def r_squared(
    predicted: ArrayLike, truth: ArrayLike, *, about: ArrayLike | None = None, mask: ArrayLike | None = None
) -> Floats:
    """1 - squared error / squared deviation of the truth, of each gene.

    Parameters
    ----------
    predicted, truth
        (n, genes) or (n,).
    about
        (genes,) what the deviation is from. The training mean asks whether the prediction beats the mean that could
        have been known: above 0 is a gain. Left out, it is the truth's own mean over these locations, as in
        scikit-learn: no model knows that one, so an offset between patients alone makes the value negative.
    mask
        True where measured.

    Returns
    -------
    (genes,), 1 at best and below 0 where the mean does better; NaN for a gene whose truth has no deviation or that is
    nowhere measured.
    """
    a, b, keep = _pair(predicted, truth, mask)
    there = np.ones(b.shape, dtype=bool) if keep is None else keep
    with np.errstate(invalid="ignore", divide="ignore"):
        if about is None:
            centre = np.where(there, b, 0.0).sum(axis=0) / there.sum(axis=0)
            low = np.where(there, b, np.inf).min(axis=0, initial=np.inf)
            # Exact, where the sum of squares of a constant may round to a little above 0.
            varies = np.where(there, b, -np.inf).max(axis=0, initial=-np.inf) > low
        else:
            centre = np.asarray(about, dtype=np.float64).reshape(-1)
            if centre.shape != (b.shape[1],):
                raise ContractError(f"{centre.shape} means for {b.shape[1]} genes")
            varies = (there & (b != centre)).any(axis=0)
        error = np.where(there, (a - b) ** 2, 0.0).sum(axis=0)
        total = np.where(there, (b - centre) ** 2, 0.0).sum(axis=0)
        return np.where(varies, 1.0 - error / total, np.nan)


def without_depth(values: ArrayLike, totals: ArrayLike, *, mask: ArrayLike | None = None) -> Floats:
    """What is left of each gene after an intercept and log1p(totals) have been regressed out by least squares.

    Parameters
    ----------
    values
        (n, genes) or (n,), of one section.
    totals
        (n,) counts of each location.
    mask
        True where measured; the regression of a gene sees those alone.

    Returns
    -------
    (n, genes), 0 where masked. A gene that depth explains to rounding is 0 everywhere, so that it counts as constant:
    ranks of rounding errors would look like a prediction.
    """
    x = columns(values)
    keep = column_mask(mask, x.shape)
    require_finite(x, keep, what="values")
    depth = np.asarray(totals, dtype=np.float64)
    if depth.shape != (len(x),) or not np.isfinite(depth).all() or (depth < 0).any():
        raise ContractError(f"{depth.shape} totals for {len(x)} locations, all of which must be 0 or more")
    there = np.ones(x.shape, dtype=bool) if keep is None else keep
    with np.errstate(invalid="ignore", divide="ignore"):
        n = there.sum(axis=0)
        kept = np.where(there, x, 0.0)
        y = np.where(there, kept - kept.sum(axis=0) / n, 0.0)
        d = np.where(there, np.log1p(depth)[:, None], 0.0)
        low = np.where(there, d, np.inf).min(axis=0, initial=np.inf)
        high = d.max(axis=0, initial=0.0)
        d = np.where(there, d - d.sum(axis=0) / n, 0.0)
        # One depth everywhere has no slope, whatever its rounded variance says.
        slope = np.where(high > low, (d * y).sum(axis=0) / (d * d).sum(axis=0), 0.0)
        left = np.where(there, y - slope * d, 0.0)
    nothing = np.abs(left).max(axis=0, initial=0.0) <= _ROUNDING * np.abs(kept).max(axis=0, initial=0.0)
    return np.where(nothing, 0.0, left)


def depth_removed_spearman(
    predicted: ArrayLike, composition: ArrayLike, *, totals: ArrayLike, mask: ArrayLike | None = None
) -> Floats:
    """Spearman of each gene in one section, with sequencing depth removed from both sides.

    From the prediction log depth is regressed out; the truth is composition. Without this, predicting a location's
    depth predicts every gene of it.

    Parameters
    ----------
    predicted
        (n, genes) on any scale.
    composition
        (n, genes) `log1p_cp10k` of the counts by `totals`.
    totals
        (n,) counts of each location over all of its genes, not only over these.
    mask
        True where measured.

    Returns
    -------
    (genes,); NaN for a gene that is constant or left without variation.
    """
    return spearman(without_depth(predicted, totals, mask=mask), composition, mask=mask)


def fraction_of_ceiling(values: ArrayLike, ceiling: ArrayLike, *, lowest: float = 0.05) -> Floats:
    """Value / ceiling of each gene; NaN where either is undefined or the ceiling is below `lowest`.

    A ceiling near 0 says that the gene's counts hold next to nothing to be predicted; the ratio to it is noise.
    """
    a, b = np.broadcast_arrays(np.asarray(values, dtype=np.float64), np.asarray(ceiling, dtype=np.float64))
    usable = b >= lowest
    return np.where(usable, a / np.where(usable, b, 1.0), np.nan)


def _pair(
    predicted: ArrayLike, truth: ArrayLike, mask: ArrayLike | None
) -> tuple[Floats, Floats, NDArray[np.bool_] | None]:
    a, b = columns(predicted, what="predictions"), columns(truth, what="truth")
    if a.shape != b.shape:
        raise ContractError(f"predictions {a.shape} and truth {b.shape} differ in shape")
    keep = column_mask(mask, a.shape)
    require_finite(a, keep, what="predictions")
    require_finite(b, keep, what="truth")
    return a, b, keep
