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
from triglyph.metrics.ranking import column_mask, columns, require_finite

Floats = NDArray[np.float64]

TARGET = 1e4


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
    a, b = columns(predicted, what="predictions"), columns(truth, what="truth")
    if a.shape != b.shape:
        raise ContractError(f"predictions {a.shape} and truth {b.shape} differ in shape")
    keep = column_mask(mask, a.shape)
    require_finite(a, keep, what="predictions")
    require_finite(b, keep, what="truth")
    error = a - b if keep is None else np.where(keep, a - b, 0.0)
    n = np.full(a.shape[1], float(len(a))) if keep is None else keep.sum(axis=0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_square = (error**2).sum(axis=0) / n
        if centred:
            mean_square = np.maximum(mean_square - (error.sum(axis=0) / n) ** 2, 0.0)
    return np.where(n > 0, mean_square, np.nan)
