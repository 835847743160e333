"""Ridge regression from frozen features, the one probe that every protocol and baseline shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from triglyph.errors import ContractError

Floats = NDArray[np.float64]
ALPHAS = tuple(float(a) for a in np.logspace(0, 4, 9))
Standardise = Literal["training", "per-section", "none"]
PER_SECTION_NOTE = "features z-scored within each test section"


def fit_ridge(
    train: Sequence[tuple[Floats, Floats]],
    *,
    standardise: Standardise = "training",
    alphas: tuple[float, ...] = ALPHAS,
    where: str = "",
) -> Callable[[Floats], Floats]:
    """Ridge from features to targets, alpha chosen by generalised leave-one-out on the training rows.

    Parameters
    ----------
    train
        (features (n, d), targets (n, k)) of each training section.
    standardise
        Where mean and deviation of the features come from; `none` takes features as they are.

    Returns
    -------
    From the features (n, d) of one section to its predicted targets (n, k).

    Raises
    ------
    ContractError
        There is nothing to train on, or a feature is not finite.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    pieces = [(_finite(x, where), y) for x, y in train if len(x)]
    if sum(len(x) for x, _ in pieces) < 2:
        raise ContractError("fewer than two training locations have features and counts", where=where)
    targets = np.concatenate([y for _, y in pieces])
    scaler = StandardScaler().fit(np.concatenate([x for x, _ in pieces]))

    def scaled(x: Floats) -> Floats:
        if standardise == "none":
            return x
        own = StandardScaler().fit(x) if standardise == "per-section" else scaler
        return np.asarray(own.transform(x))

    ridge = RidgeCV(alphas=np.asarray(alphas)).fit(np.concatenate([scaled(x) for x, _ in pieces]), targets)

    def predict(x: Floats) -> Floats:
        if not len(x):
            return np.zeros((0, targets.shape[1]))
        return np.asarray(ridge.predict(scaled(_finite(x, where)))).reshape(len(x), targets.shape[1])

    return predict


def _finite(x: Floats, where: str) -> Floats:
    if not np.isfinite(x).all():
        raise ContractError("a feature is not finite", where=where, mend="embed the sections again")
    return x
