"""Standardise, take principal components and fit a ridge in one eigendecomposition, exactly.

With Z (n, d) the standardised features, Z'Z = V L V' holds everything: the components are the columns of V, their
scores have squared lengths L, and the ridge of targets Y on the first k scores is V_k (L_k + alpha)^-1 V_k'Z'Y, for
every alpha at no further cost. Z'Z takes one symmetric product over the rows, a chunk at a time, and Z is never made.

Forming Z'Z squares the condition number: a component whose squared length is r times the largest has it to about
1e-15 / r. Where the last component kept falls under `RCOND`, the singular values of Z are taken instead, which costs
several times as much. Above it predictions agree with the singular value decomposition to 1e-6 of the spread of the
targets or better (`tests/test_bench_exact_pca.py` holds both to it), and to 2e-13 on features like those of encoders.
What differs from scikit-learn's pipeline then is the pipeline's: lsqr stops at a tolerance of 1e-4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ContractError

Floats = NDArray[np.float64]

RCOND = 1e-9
"""Smallest squared length, of the largest, of a component that is taken from Z'Z."""
_CHUNK = 2048


@dataclass(frozen=True)
class PcaRidge:
    """Standardisation and components of training features, and what any ridge on them needs of the targets."""

    mean: Floats
    """(d,)"""
    scale: Floats
    """(d,) population deviation; 1 for a feature that does not vary."""
    axes: Floats
    """(d, k) components of the standardised features, longest first."""
    lengths: Floats
    """(k,) squared lengths of the training scores, one of `axes` each."""
    products: Floats
    """(k, targets) of the training scores with the targets."""
    target_mean: Floats
    """(targets,)"""
    squared: bool
    """Whether the components came from Z'Z; else from Z."""

    def scores(self, x: ArrayLike) -> Floats:
        """(n, k) of features (n, d)."""
        return (np.asarray(x, dtype=np.float64) - self.mean) @ (self.axes / self.scale[:, None])

    def coefficients(self, alpha: float) -> Floats:
        """(k, targets) of the ridge on the scores. Scores have mean 0, so an intercept would not change them."""
        return self.products / (self.lengths + alpha)[:, None]

    def predict(self, x: ArrayLike, *, alpha: float) -> Floats:
        """(n, targets) with an intercept, which is the mean of the training targets."""
        weights = (self.axes @ self.coefficients(alpha)) / self.scale[:, None]
        return (np.asarray(x, dtype=np.float64) - self.mean) @ weights + self.target_mean


def fit_pca_ridge(x: ArrayLike, y: ArrayLike, *, n_components: int | None = None, rcond: float = RCOND) -> PcaRidge:
    """Fit on training rows.

    Parameters
    ----------
    x
        (n, d) features.
    y
        (n, targets)
    n_components
        Components kept, at most min(n, d); None keeps all of these.
    rcond
        See `RCOND`; infinity always takes the singular values of Z.

    Raises
    ------
    ContractError
        Fewer than two rows, shapes that do not fit, or a feature that is not finite.
    """
    features, targets = np.asarray(x), np.asarray(y, dtype=np.float64)
    if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets):
        raise ContractError(f"features {features.shape} and targets {targets.shape} must be (n, d) and (n, targets)")
    n, d = features.shape
    if n < 2:
        raise ContractError(f"{n} rows to fit on", mend="give two or more")
    mean = features.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise ContractError("a feature is not finite", mend="embed the sections again")
    square, cross = np.zeros((d, d)), np.zeros((d, targets.shape[1]))
    target_mean = targets.mean(axis=0)
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        centred = features[part] - mean
        square += centred.T @ centred
        cross += centred.T @ (targets[part] - target_mean)
    scale = _scale(np.diag(square) / n, mean, n)
    square /= np.outer(scale, scale)
    products = cross / scale[:, None]
    k = min(n, d) if n_components is None else min(n_components, n, d)
    lengths, axes = _largest(square, k)
    squared = bool(lengths[-1] > rcond * lengths[0])
    if not squared:
        lengths, axes = _from_rows((features - mean) / scale, k)
    return PcaRidge(mean, scale, axes, lengths, axes.T @ products, target_mean, squared)


def _scale(variance: Floats, mean: Floats, n: int) -> Floats:
    """Deviations; 1 where what varies is no more than the rounding of the mean."""
    eps = np.finfo(np.float64).eps
    constant = variance <= n * eps * variance + (n * mean * eps) ** 2
    return np.where(constant, 1.0, np.sqrt(variance))


def _largest(square: Floats, k: int) -> tuple[Floats, Floats]:
    """The k largest eigenvalues and their vectors, largest first."""
    from scipy.linalg import eigh

    d = len(square)
    lengths, axes = eigh(square, subset_by_index=(d - k, d - 1), driver="evr", overwrite_a=True, check_finite=False)
    return np.maximum(lengths[::-1], 0.0), np.ascontiguousarray(axes[:, ::-1])


def _from_rows(z: Floats, k: int) -> tuple[Floats, Floats]:
    from scipy.linalg import svd

    _, s, axes = svd(z, full_matrices=False, check_finite=False)
    return s[:k] ** 2, np.ascontiguousarray(axes[:k].T)
