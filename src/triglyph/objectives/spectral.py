"""Embeddings of genes to start from: the axes along which lists of genes differ within their sections.

A few thousand locations are too few to learn from random numbers what a decomposition says at once. Each location is
the vector of its genes, each as large as it weighs in the mean over tokens that an embedding is; sections are centred,
so that what sets patients and batches apart is no axis; genes are divided by the root of their mean, as in
correspondence analysis. The mean of the embeddings of a location's genes is then its place on these axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

Floats = NDArray[np.float32]
VARIES = 1e-6
"""What varies within sections by less than this share of all there is does not vary, but for rounding."""


def gene_shares(ids: Tensor, lengths: Tensor, n_tokens: int, *, weights: Tensor) -> sp.csr_matrix:
    """(n, n_tokens) of packed lists: weight / length of each token of a location; one without tokens is an empty row.

    Parameters
    ----------
    ids
        (total,) int64 tokens.
    lengths
        (n,) int64, of the lists.
    weights
        (total,) of tokens in the mean that an embedding is.
    """
    bounds = np.concatenate(([0], np.cumsum(lengths.numpy())))
    shares = (weights / torch.repeat_interleave(lengths, lengths)).float().numpy()
    return sp.csr_matrix((shares, ids.numpy(), bounds), shape=(len(lengths), n_tokens))


def within_section_axes(lists: Sequence[tuple[sp.csr_matrix, NDArray[np.int64]]], *, dim: int, seed: int) -> Floats:
    """(n_tokens, dim) embedding of tokens: the leading axes within sections.

    Axes are of unit length before genes are divided: locations spread along each by its singular value, no more.

    Parameters
    ----------
    lists
        Pieces of the training data: `gene_shares` (n, n_tokens) and the section of each row (n,).
    dim
        Columns; those along which nothing varies within sections are 0, all of them where nothing does at all.
    seed
        Of the first vector of the decomposition.

    Returns
    -------
    Floats
        With a root mean square of 1 over the tokens that occur, and the columns that the data fill.
    """
    x = sp.vstack([m for m, _ in lists], format="csr")
    section = np.unique(np.concatenate([s for _, s in lists]), return_inverse=True)[1]
    n, tokens = x.shape
    mean = np.asarray(x.mean(axis=0)).ravel()
    occurs = mean > 0
    inverse = np.where(occurs, 1.0 / np.sqrt(np.where(occurs, mean, 1.0)), 0.0)
    member = sp.csr_matrix((np.ones(n), (section, np.arange(n))))
    sizes = np.asarray(member.sum(axis=1)).ravel()
    means = sp.diags_array(1.0 / sizes) @ (member @ x)  # (sections, tokens)

    # Centred and divided as it is multiplied: a dense matrix of all locations and genes is never made.
    def right(v: NDArray) -> NDArray:
        w = inverse * v.ravel()
        return x @ w - (means @ w)[section]

    def left(u: NDArray) -> NDArray:
        u = u.ravel()
        return inverse * (x.T @ u - means.T @ (member @ u))

    kept = min(dim, n - 1, int(occurs.sum()) - 1)
    out = np.zeros((tokens, dim), dtype=np.float32)
    whole = float(np.einsum("i,i,i", x.data, x.data, (inverse**2)[x.indices], dtype=np.float64))
    between = float(sizes @ (means.power(2) @ inverse**2))
    # Without variation the decomposition has nothing to begin with, and says so in words of its own.
    if kept < 1 or whole - between <= VARIES**2 * whole:
        return out
    start = np.random.default_rng(seed).standard_normal(min(n, tokens))
    operator = LinearOperator((n, tokens), matvec=right, rmatvec=left, dtype=np.float64)
    _, values, axes = svds(operator, k=kept, v0=start)
    order = np.argsort(-values)
    order = order[values[order] > VARIES * np.sqrt(whole)]
    axes, kept = axes[order], len(order)
    # The sign of an axis is free: its largest entry is made positive.
    axes *= np.sign(axes[np.arange(kept), np.abs(axes).argmax(axis=1)])[:, None]
    found = (axes * inverse).T + 0.0  # which turns -0 into 0
    spread = np.sqrt((found[occurs] ** 2).mean())
    out[:, :kept] = found / (spread if spread > 0 else 1.0)
    return out
