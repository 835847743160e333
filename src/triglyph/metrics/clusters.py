"""Clusterings beside known classes: ARI, NMI, k-means over many starts, Leiden at stated resolutions.

One k-means run depends on its start more than representations differ from each other. So the number here is the mean
over 20 single starts (`n_init=1`, random states 0 to 19) and never the best of them, since "best" by inertia says
little of the classes; the spread over the starts stands beside it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ContractError, TriglyphError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

N_STARTS = 20
RESOLUTIONS = (0.5, 1.0)
N_NEIGHBOURS = 15


class MissingPackageError(TriglyphError):
    """An optional package that was asked for is not installed."""


class Agreement(NamedTuple):
    """How a clustering agrees with classes."""

    ari: float
    """Adjusted Rand index (Hubert & Arabie 1985): 1 for the same partition, 0 expected by chance, may be negative."""
    nmi: float
    """Mutual information over the arithmetic mean of both entropies; not adjusted, it grows with more clusters."""
    n: int
    """Locations it is over."""
    n_clusters: int
    n_classes: int


def agreement(clusters: ArrayLike, classes: ArrayLike, *, mask: ArrayLike | None = None) -> Agreement:
    """ARI and NMI of one clustering over the locations whose class is known.

    Parameters
    ----------
    clusters, classes
        (n,) names or numbers; what they are called does not matter.
    mask
        (n,) True where the class is known; all if left out.

    Returns
    -------
    NaN for both below two known locations, or where there is one class only: there is nothing to agree with.
    """
    found, truth = _partition(clusters, classes, mask)
    return _agreement(found, truth)


def _agreement(found: NDArray, truth: NDArray) -> Agreement:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    sizes = len(truth), len(np.unique(found)), len(np.unique(truth))
    if sizes[2] < 2:
        return Agreement(float("nan"), float("nan"), *sizes)
    ari, nmi = adjusted_rand_score(truth, found), normalized_mutual_info_score(truth, found)
    return Agreement(float(ari), float(nmi), *sizes)


def _partition(clusters: ArrayLike, classes: ArrayLike, mask: ArrayLike | None) -> tuple[NDArray, NDArray]:
    found, truth = np.asarray(clusters), np.asarray(classes)
    if found.ndim != 1 or found.shape != truth.shape:
        raise ContractError(f"clusters {found.shape} and classes {truth.shape} must be one and the same length")
    keep = np.ones(len(truth), dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if keep.shape != truth.shape:
        raise ContractError(f"a mask of shape {keep.shape} for {len(truth)} locations")
    return found[keep], truth[keep]


def large_classes(classes: ArrayLike, *, at_least: int) -> NDArray[np.bool_]:
    """(n,) True where the class has at least that many locations: a class of three cannot be found, only missed."""
    _, place, counts = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
    return np.asarray(counts >= at_least)[place.ravel()]


class KMeansAgreement(NamedTuple):
    """Agreement of k-means with classes, over its starts."""

    ari: Floats
    """(starts,)"""
    nmi: Floats
    """(starts,)"""
    k: int
    n: int

    @property
    def mean_ari(self) -> float:
        """What is reported."""
        return float(self.ari.mean()) if len(self.ari) else float("nan")

    @property
    def mean_nmi(self) -> float:
        return float(self.nmi.mean()) if len(self.nmi) else float("nan")


def k_means_agreement(
    features: ArrayLike, classes: ArrayLike, *, k: int | None = None, n_starts: int = N_STARTS
) -> KMeansAgreement:
    """ARI and NMI of k-means with the classes, for every start.

    Parameters
    ----------
    features
        (n, dim) of the locations with a class, as they should be clustered: nothing is scaled here.
    classes
        (n,)
    k
        Number of clusters; the number of classes if left out, which uses the test labels: declare it.
    n_starts
        Start i is `KMeans(k, n_init=1, random_state=i)`.

    Returns
    -------
    Empty arrays, so means of NaN, where there is one class only or fewer locations than `k`.

    Raises
    ------
    ContractError
        Shapes do not fit, or a feature is not finite.
    """
    from sklearn.cluster import KMeans

    x, truth = _features(features), np.asarray(classes)
    if truth.shape != (len(x),):
        raise ContractError(f"{truth.shape} classes for {len(x)} locations")
    n_classes = len(np.unique(truth))
    if (k is not None and k < 1) or n_starts < 1:
        raise ContractError(f"k = {k} and {n_starts} starts must both be at least 1")
    k = n_classes if k is None else k
    if n_classes < 2 or len(x) < k:
        return KMeansAgreement(np.zeros(0), np.zeros(0), k, len(x))
    runs = [_agreement(KMeans(k, n_init=1, random_state=i).fit_predict(x), truth) for i in range(n_starts)]
    return KMeansAgreement(np.array([r.ari for r in runs]), np.array([r.nmi for r in runs]), k, len(x))


def leiden(
    features: ArrayLike,
    *,
    resolutions: Sequence[float] = RESOLUTIONS,
    n_neighbours: int = N_NEIGHBOURS,
    seed: int = 0,
) -> dict[float, Ints]:
    """Leiden communities (Traag et al. 2019) at fixed resolutions, as scanpy computes them.

    The graph is scanpy's (fuzzy weights of the nearest neighbours, Euclidean), the communities igraph's, with
    modularity, two iterations and a seed. No resolution is chosen by looking at the classes.

    Parameters
    ----------
    features
        (n, dim)

    Returns
    -------
    Resolution -> (n,) community numbers.

    Raises
    ------
    MissingPackageError
        igraph is not installed.
    """
    x = _features(features)
    if importlib.util.find_spec("igraph") is None:
        raise MissingPackageError(
            "Leiden needs igraph, which is not installed",
            mend='install it: pip install "triglyph[leiden]"; or leave Leiden out, k-means needs nothing more',
        )
    if len(x) <= n_neighbours:
        raise ContractError(
            f"{len(x)} locations have no {n_neighbours} neighbours each", mend="give more locations or fewer neighbours"
        )
    import anndata as ad
    import scanpy as sc

    data = ad.AnnData(x.astype(np.float32))
    sc.pp.neighbors(data, n_neighbors=n_neighbours, use_rep="X", random_state=seed)
    out = {}
    for resolution in resolutions:
        sc.tl.leiden(data, resolution=resolution, flavor="igraph", directed=False, n_iterations=2, random_state=seed)
        out[float(resolution)] = data.obs["leiden"].to_numpy().astype(np.int64)
    return out


def _features(features: ArrayLike) -> NDArray:
    x = np.asarray(features)
    if x.dtype.kind != "f":
        x = x.astype(np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ContractError("features must be (n, dim) and finite", where=f"shape {x.shape}")
    return x
