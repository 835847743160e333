"""How far an embedding mixes batches, beside how far it keeps biology apart: neither says anything alone.

An encoder that forgets everything mixes batches perfectly. Every number here is on 0 to 1, higher for better, except
`section_predictability`, and one graph of exact neighbours serves all that need one. Definitions are those of scIB
(Luecken et al. 2022), in formulas of their own:

- silhouette s = (b - a) / max(a, b): a the mean distance to one's own group, b that to the nearest other; 0 alone.
  `silhouette_biology` = (mean s over locations of biology + 1) / 2. `silhouette_batch` = mean over classes of
  mean(1 - |s|), s of the batches within the class; classes of one batch, or of single locations, are left out.
- LISI = 1 / sum_c p_c^2 with p_c the weight of group c among the neighbours, weights exp(-beta d) with beta such that
  their entropy is log(perplexity) (Korsunsky et al. 2019). `ilisi` = (median over locations - 1) / (batches - 1),
  `clisi` = (classes - median) / (classes - 1).
- `graph_connectivity`: mean over classes of the share of the class in the largest component of its own neighbours.
- `section_predictability`: how often most neighbours are of one's own batch, mean over batches; chance is
  1 / batches, and 1 says that sections are islands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components

from triglyph.errors import ContractError
from triglyph.metrics.neighbours_retrieval import majority_share
from triglyph.metrics.parallel import each, spans

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PERPLEXITY = 30
N_NEIGHBOURS = 15

_BLOCK_BYTES = 64 << 20
_ENTROPY_TOLERANCE = 1e-8
_MAX_STEPS = 200


class Neighbours(NamedTuple):
    """The nearest others of each location, nearest first."""

    others: Ints
    """(n, k)"""
    distance: Floats
    """(n, k) Euclidean."""


class Mixing(NamedTuple):
    """The judge's view of one embedding; NaN where a value is undefined (one batch, one class, too few locations)."""

    silhouette_batch: float
    ilisi: float
    section_predictability: float
    """Lower is better mixed."""
    chance_predictability: float
    silhouette_biology: float
    clisi: float
    graph_connectivity: float
    n: int
    n_batches: int
    n_classes: int
    perplexity: int
    """30, or a third of the other locations where there are fewer than 90; 0 where there was no LISI."""


def mixing(
    features: ArrayLike,
    *,
    batches: ArrayLike,
    biology: ArrayLike,
    mask: ArrayLike | None = None,
    perplexity: int = PERPLEXITY,
    n_neighbours: int = N_NEIGHBOURS,
) -> Mixing:
    """All of it for one embedding. The silhouettes take time in the square of the locations; memory stays bounded.

    Parameters
    ----------
    features
        (n, dim); nothing is scaled here.
    batches
        (n,) section, slide or donor: what should not show.
    biology
        (n,) class: what should.
    mask
        (n,) True where the class is known; the rest is not seen at all.
    perplexity
        Of LISI, on 3 x perplexity neighbours.
    n_neighbours
        Of connectivity and predictability; the nearest of the same graph.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2:
        raise ContractError("features must be (n, dim)", where=f"shape {x.shape}")
    keep = np.ones(len(x), dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if keep.shape != (len(x),):
        raise ContractError(f"a mask of shape {keep.shape} for {len(x)} locations")
    if perplexity < 1 or n_neighbours < 1:
        raise ContractError("perplexity and n_neighbours must be at least 1", where=f"{perplexity}, {n_neighbours}")
    one, two = (_codes(groups, len(x), what)[keep] for groups, what in ((batches, "batches"), (biology, "biology")))
    x = x[keep]
    if not np.isfinite(x).all():
        raise ContractError("features are not finite", mend="mask locations without them")
    n = len(x)
    n_batches, n_classes = len(np.unique(one)), len(np.unique(two))
    within, between = silhouettes(x, batches=one, biology=two)
    perplexity = min(perplexity, max(0, n - 1) // 3)
    near = neighbours(x, k=min(n - 1, max(3 * perplexity, n_neighbours))) if n > 1 else None
    ilisi = clisi = connected = predictable = float("nan")
    if near is not None:
        few = Neighbours(near.others[:, :n_neighbours], near.distance[:, :n_neighbours])
        connected = graph_connectivity(few, two) if n_classes else float("nan")
        predictable = section_predictability(few, one)
        if perplexity:
            wide = Neighbours(near.others[:, : 3 * perplexity], near.distance[:, : 3 * perplexity])
            weights = neighbour_weights(wide, perplexity=perplexity)
            ilisi, clisi = scaled_lisi(lisi(wide, weights, one), lisi(wide, weights, two), n_batches, n_classes)
    return Mixing(
        within,
        ilisi,
        predictable,
        1.0 / n_batches if n_batches > 1 else float("nan"),
        between,
        clisi,
        connected,
        n,
        n_batches,
        n_classes,
        perplexity,
    )


def neighbours(features: ArrayLike, *, k: int) -> Neighbours:
    """The k nearest others of each of (n, dim) locations, exactly; k below n."""
    from sklearn.neighbors import NearestNeighbors

    x = np.asarray(features, dtype=np.float64)
    if not 1 <= k < len(x):
        raise ContractError(f"{len(x)} locations have no {k} neighbours each")
    # Without an argument, a location is not its own neighbour, also where others lie on top of it.
    distance, others = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()
    return Neighbours(others.astype(np.int64), distance)


def silhouettes(features: ArrayLike, *, batches: ArrayLike, biology: ArrayLike) -> tuple[float, float]:
    """`silhouette_batch` and `silhouette_biology` of (n, dim) features, from one pass over all distances.

    Sums of distances to every (class, batch) are all that both of them need, so distances are made once, some rows at
    a time, and never kept.
    """
    x = np.asarray(features, dtype=np.float64)
    x = x - x.mean(axis=0) if len(x) else x  # large offsets would cost the distances their digits
    n = len(x)
    one, two = _codes(batches, n, "batches"), _codes(biology, n, "biology")
    pairs, own = np.unique(np.stack([two, one]), axis=1, return_inverse=True)
    own = own.ravel()
    class_of = pairs[0]
    member = np.zeros((n, pairs.shape[1]))
    member[np.arange(n), own] = 1.0
    square = np.einsum("nd,nd->n", x, x)

    def block(rows: slice) -> Floats:
        distance = square[rows, None] + square - 2.0 * (x[rows] @ x.T)
        np.sqrt(np.maximum(distance, 0.0, out=distance), out=distance)
        distance[np.arange(len(distance)), np.arange(rows.start, rows.stop)] = 0.0
        return distance @ member

    pieces = each(block, spans(n, _BLOCK_BYTES // max(1, 16 * n)))
    sums = np.concatenate(pieces) if pieces else np.zeros((0, pairs.shape[1]))
    sizes = member.sum(axis=0)
    classes = np.unique(class_of)
    gather = (class_of[:, None] == classes).astype(np.float64)
    s = _silhouette(sums @ gather, sizes @ gather, np.searchsorted(classes, two))
    between = (float(s.mean()) + 1.0) / 2.0 if len(classes) > 1 else float("nan")
    within = []
    for c in classes:
        columns, rows = np.flatnonzero(class_of == c), two == c
        if 1 < len(columns) < rows.sum():
            s = _silhouette(sums[np.ix_(rows, columns)], sizes[columns], np.searchsorted(columns, own[rows]))
            within.append(float((1.0 - np.abs(s)).mean()))
    return float(np.mean(within)) if within else float("nan"), between


def _silhouette(sums: Floats, sizes: Floats, own: Ints) -> Floats:
    """(n,) from the (n, groups) sums of distances to each group, their sizes, and the own group of each."""
    rows = np.arange(len(sums))
    mean = sums / sizes
    mean[rows, own] = np.inf
    b = mean.min(axis=1, initial=np.inf)
    a = sums[rows, own] / np.maximum(sizes[own] - 1, 1)
    longest = np.maximum(a, b)
    with np.errstate(invalid="ignore"):
        # Alone in a group, or on top of everything: no side to be on.
        defined = (sizes[own] > 1) & (longest > 0) & np.isfinite(b)
        return np.where(defined, (b - a) / np.where(longest > 0, longest, 1.0), 0.0)


def neighbour_weights(near: Neighbours, *, perplexity: float) -> Floats:
    """(n, k) weights exp(-beta d), summing to 1 a row, whose entropy is log(perplexity).

    Where so many neighbours lie at the smallest distance that no beta gets there, the weights come as near as they
    can: those at that distance alone.
    """
    k = near.distance.shape[1]
    if not 1 <= perplexity <= k:
        raise ContractError(f"a perplexity of {perplexity} of {k} neighbours", mend="take 3 x perplexity neighbours")
    step = max(1, _BLOCK_BYTES // (64 * k))
    pieces = each(lambda rows: _weights(near.distance[rows], np.log(perplexity)), spans(len(near.distance), step))
    return np.concatenate(pieces) if pieces else np.zeros((0, k))


def _weights(distance: Floats, target: float) -> Floats:
    d = distance - distance.min(axis=1, keepdims=True)
    scale = d.mean(axis=1, keepdims=True)
    d = d / np.where(scale > 0, scale, 1.0)  # so that beta = 1 is a fair start whatever the unit
    low, high, beta = np.zeros(len(d)), np.full(len(d), np.inf), np.ones(len(d))
    open_ = np.arange(len(d))
    for _ in range(_MAX_STEPS):
        p = np.exp(-beta[open_, None] * d[open_])
        total = p.sum(axis=1)
        off = np.log(total) + beta[open_] * (d[open_] * p).sum(axis=1) / total - target
        # Entropy falls with beta. A span that closed without reaching the target has no beta that does.
        left = (np.abs(off) > _ENTROPY_TOLERANCE) & (beta[open_] < 1e12)
        open_, off = open_[left], off[left]
        if not len(open_):
            break
        flat = off > 0
        low[open_[flat]], high[open_[~flat]] = beta[open_[flat]], beta[open_[~flat]]
        beta[open_] = np.where(np.isinf(high[open_]), 2 * beta[open_], (low[open_] + high[open_]) / 2)
    p = np.exp(-beta[:, None] * d)
    return p / p.sum(axis=1, keepdims=True)


def lisi(near: Neighbours, weights: Floats, groups: ArrayLike) -> Floats:
    """(n,) effective number of groups among the weighted neighbours, from 1 to the number of groups."""
    codes = _codes(groups, len(near.others), "groups")
    share = np.zeros((len(codes), int(codes.max(initial=0)) + 1))
    np.add.at(share, (np.arange(len(codes))[:, None], codes[near.others]), weights)
    return 1.0 / (share**2).sum(axis=1)


def scaled_lisi(of_batches: Floats, of_classes: Floats, n_batches: int, n_classes: int) -> tuple[float, float]:
    """`ilisi` and `clisi` from the LISI of each location; NaN with one batch, one class."""
    nan = float("nan")
    i = (float(np.median(of_batches)) - 1.0) / (n_batches - 1) if n_batches > 1 else nan
    c = (n_classes - float(np.median(of_classes))) / (n_classes - 1) if n_classes > 1 else nan
    return i, c


def graph_connectivity(near: Neighbours, groups: ArrayLike) -> float:
    """Mean over groups of the share of a group that its largest component holds; neighbours count both ways."""
    codes = _codes(groups, len(near.others), "groups")
    n, k = near.others.shape
    rows = np.repeat(np.arange(n), k)
    columns = near.others.ravel()
    inside = codes[rows] == codes[columns]
    graph = sp.csr_matrix((np.ones(int(inside.sum())), (rows[inside], columns[inside])), shape=(n, n))
    # Nothing joins two groups any more, so the components of all groups come at once.
    component = connected_components(graph, directed=False)[1]
    largest = np.zeros(int(codes.max(initial=-1)) + 1)
    np.maximum.at(largest, codes, np.bincount(component, minlength=1)[component])
    return float((largest / np.bincount(codes)).mean()) if n else float("nan")


def section_predictability(near: Neighbours, sections: ArrayLike) -> float:
    """Share of locations that the vote of their neighbours puts into their own section, mean over sections.

    A draw between t sections counts 1/t. NaN with one section.
    """
    codes = _codes(sections, len(near.others), "sections")
    n_sections = int(codes.max(initial=-1)) + 1
    if n_sections < 2:
        return float("nan")
    right = majority_share(codes[near.others], codes, n_sections)
    return float((np.bincount(codes, weights=right) / np.bincount(codes)).mean())


def _codes(names: ArrayLike, n: int, what: str) -> Ints:
    array = np.asarray(names)
    if array.shape != (n,):
        raise ContractError(f"{what} of shape {array.shape} for {n} locations")
    return np.unique(array, return_inverse=True)[1].ravel().astype(np.int64)
