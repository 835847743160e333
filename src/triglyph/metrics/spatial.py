"""Moran's I of many genes at once, and how well a prediction keeps it.

I = (n / S) z'Wz / z'z (Moran 1950): z is the gene without its mean, W holds 1/m for each of a location's m neighbours
(rows sum to one, so S is the number of locations that have a neighbour), and n is the number of locations. A location
without a neighbour counts in the mean and in z'z, and in nothing else.

Graphs are in µm and of one section: tissue of two sections has no distance. Where a gene is masked, its weights are
those of the measured neighbours alone, standardised again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from triglyph.errors import ContractError
from triglyph.metrics.correlation import pearson, spearman
from triglyph.metrics.parallel import each, spans
from triglyph.metrics.ranking import column_mask, columns, require_finite

Floats = NDArray[np.float64]

_SAME_DISTANCE = 1e-9
"""Distances this close, relatively, are equal: rounding must not decide who is a neighbour on a lattice."""
_BLOCK_BYTES = 16 << 20


def neighbour_graph(centres_um: ArrayLike, *, k: int | None = None, radius_um: float | None = None) -> sp.csr_matrix:
    """Who is whose neighbour within one section.

    Parameters
    ----------
    centres_um
        (n, 2)
    k
        The k nearest others, and every other at the same distance as the last of them: on a square lattice k = 6
        means 8, since nothing but the order of the rows could choose two of the four diagonal ones.
    radius_um
        All others at most this far away, µm. Exactly one of `k` and `radius_um` is given.

    Returns
    -------
    (n, n) of ones, row i holding the neighbours of location i; nobody is a neighbour of itself. A graph by `k` need
    not be symmetric.

    Raises
    ------
    ContractError
        Both or neither of `k` and `radius_um`, one that is not positive, or centres that are not (n, 2) and finite.
    """
    xy = np.asarray(centres_um, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise ContractError("centres must be (n, 2) and finite", where=f"shape {xy.shape}")
    if (k is None) == (radius_um is None):
        raise ContractError("a graph needs either k or radius_um", where=f"k={k}, radius_um={radius_um}")
    if (k is not None and k < 1) or (radius_um is not None and not radius_um > 0):
        raise ContractError("k and radius_um must be positive", where=f"k={k}, radius_um={radius_um}")
    n = len(xy)
    if n < 2:
        return sp.csr_matrix((n, n))
    tree = cKDTree(xy)
    # One more than k, for the location itself is found too.
    reach_um = np.full(n, radius_um) if k is None else tree.query(xy, [min(k + 1, n)])[0][:, 0]
    found = tree.query_ball_point(xy, reach_um * (1 + _SAME_DISTANCE), return_sorted=True)
    rows = np.repeat(np.arange(n), [len(f) for f in found])
    others = np.concatenate([np.asarray(f, dtype=np.intp) for f in found])
    apart = rows != others
    return sp.csr_matrix((np.ones(int(apart.sum())), (rows[apart], others[apart])), shape=(n, n))


def morans_i(values: ArrayLike, graph: sp.csr_matrix, *, mask: ArrayLike | None = None) -> Floats:
    """Moran's I of each gene over one section.

    Parameters
    ----------
    values
        (n, genes) or (n,).
    graph
        (n, n) as of `neighbour_graph`; its rows are standardised here.
    mask
        True where measured, broadcast as in `column_mask`. What is masked may be NaN.

    Returns
    -------
    (genes,); NaN for a gene that is constant, or where no two measured locations are neighbours. Without any spatial
    order its expectation is -1 / (n - 1), not 0.

    Raises
    ------
    ContractError
        The graph does not fit, or a measured value is not finite.
    """
    x = columns(values)
    n, genes = x.shape
    if graph.shape != (n, n):
        raise ContractError(f"a graph of {graph.shape} for {n} locations")
    keep = column_mask(mask, x.shape)
    require_finite(x, keep, what="values")
    out = np.full(genes, np.nan)
    if not n:
        return out
    weights = sp.csr_matrix(graph, dtype=np.float64)
    shared = np.ones((n, 1), dtype=bool)

    def block(part: slice) -> None:
        there = shared if keep is None else np.ascontiguousarray(keep[:, part])
        out[part] = _morans_i(np.ascontiguousarray(x[:, part]), weights, there)

    each(block, spans(genes, _BLOCK_BYTES // (8 * n)))
    return out


def _morans_i(x: Floats, weights: sp.csr_matrix, there: NDArray[np.bool_]) -> Floats:
    """`there` is (n, genes), or (n, 1) if all genes share it."""
    with np.errstate(invalid="ignore", divide="ignore"):
        n = there.sum(axis=0)
        kept = np.where(there, x, 0.0)
        varies = np.where(there, x, -np.inf).max(axis=0) > np.where(there, x, np.inf).min(axis=0)
        z = np.where(there, kept - kept.sum(axis=0) / n, 0.0)
        z /= np.abs(z).max(axis=0)  # tiny values would underflow when squared
        near = weights @ there.astype(np.float64)
        linked = there & (near > 0)
        lag = np.where(linked, weights @ z / np.where(near > 0, near, 1.0), 0.0)
        together, alone = np.einsum("ng,ng->g", z, lag), np.einsum("ng,ng->g", z, z)
        s = linked.sum(axis=0)
        return np.where(varies & (s > 0), n / s * together / alone, np.nan)


class MoranAgreement(NamedTuple):
    """How the Moran's I of a prediction follows that of the truth, over genes."""

    pearson: float
    spearman: float
    mean_absolute_difference: float
    mean_difference: float
    """Predicted minus true: above 0 the prediction is smoother than the tissue."""
    n_genes: int
    """Genes with both values: what all of this is over."""
    n_undefined: int


def moran_agreement(predicted: ArrayLike, truth: ArrayLike) -> MoranAgreement:
    """Agreement of two vectors of Moran's I.

    Parameters
    ----------
    predicted, truth
        (genes,) as of `morans_i` on one graph; NaN where undefined.

    Returns
    -------
    NaN for what is undefined: correlations below two genes or of constants, differences without a gene.
    """
    a, b = (np.asarray(v, dtype=np.float64).ravel() for v in (predicted, truth))
    if a.shape != b.shape:
        raise ContractError(f"Moran's I of {len(a)} predicted and {len(b)} true genes")
    both = ~np.isnan(a) & ~np.isnan(b)
    n = int(both.sum())
    if not n:
        return MoranAgreement(*(float("nan"),) * 4, 0, len(a))
    a, b = a[both], b[both]
    return MoranAgreement(
        float(pearson(a, b)[0]),
        float(spearman(a, b)[0]),
        float(np.abs(a - b).mean()),
        float((a - b).mean()),
        n,
        len(both) - n,
    )
