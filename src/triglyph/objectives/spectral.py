"""Embeddings of genes to start from: axes along which lists of genes differ within their sections.

A few thousand locations are too few to learn from random numbers what a decomposition says at once. Each location is
the vector of its genes, each as large as it weighs in the mean over tokens that an embedding is; sections are centred,
so that what sets patients and batches apart is no axis; genes are divided by the root of their mean, as in
correspondence analysis. The mean of the embeddings of a location's genes is then its place on these axes.

Which axes depends on what is to be learnt. `within_section_axes` are those along which locations differ most: what an
encoder keeps that names a location's genes from itself. `contextual_axes` are those along which a location says most
about its *neighbours'* genes, by a reduced-rank ridge regression of theirs on its own: contextual reconstruction in
closed form, for a linear encoder and squared errors. Counting noise, which neighbours do not share, is no axis there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

from triglyph.errors import ContractError
from triglyph.tissue.surroundings import surroundings

Floats = NDArray[np.float32]
VARIES = 1e-6
"""What varies within sections by less than this share of all there is does not vary, but for rounding."""
MOST_TOKENS = 4096
"""Of `contextual_axes`, which holds matrices of tokens x tokens: 128 MiB each."""
FEWEST = 36
"""Locations with neighbours that a section needs for `contextual_axes`: the mean of a few neighbours is what they
share, and taking it off would leave nothing of that."""
ROWS = 2048
"""Lists that are dense at once."""
ADJACENT = 1.5
"""Pitches within which locations are neighbours for `contextual_axes`: those further away have less in common."""


class Sampled(NamedTuple):
    """A piece of the training data."""

    shares: sp.csr_matrix
    """(n, n_tokens), see `gene_shares`"""
    section: NDArray[np.int64]
    """(n,)"""
    centres_um: NDArray[np.float64]
    """(n, 2), all NaN in sections without places"""


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


def within_section_axes(pieces: Sequence[Sampled], *, dim: int, seed: int) -> Floats:
    """(n_tokens, dim) embedding of tokens: the leading axes within sections.

    Axes are of unit length before genes are divided: locations spread along each by its singular value, no more.

    Parameters
    ----------
    pieces
        Of the training data.
    dim
        Columns; those along which nothing varies within sections are 0, all of them where nothing does at all.
    seed
        Of the first vector of the decomposition.

    Returns
    -------
    Floats
        With a root mean square of 1 over the tokens that occur, and the columns that the data fill.
    """
    x = sp.vstack([p.shares for p in pieces], format="csr")
    section = np.unique(np.concatenate([p.section for p in pieces]), return_inverse=True)[1]
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
    return _of_tokens(axes[order] * inverse, occurs, dim=dim)


def contextual_axes(pieces: Sequence[Sampled], *, dim: int, ridge: float = 1.0) -> Floats:
    """(n_tokens, dim) embedding of tokens: the axes along which locations tell their neighbours' genes best.

    With X the centred and divided lists of locations that have neighbours, and Y those of the neighbours, averaged:
    B = (XᵀX + ridge m I)⁻¹ XᵀY, where m is the mean of the diagonal of XᵀX, and XB is what locations say of their
    neighbours. Its axes are those of the decomposition of (XᵀX + ridge m I)^½ B, as in reduced-rank regression, and
    each is as long as it tells: locations lie along the axes as their predictions do.

    Parameters
    ----------
    pieces
        Of the training data. Neighbours of a location are those that they hold within `ADJACENT` pitches of it, and
        that have genes. Sections in which fewer than `FEWEST` locations have any are left out.
    dim
        Columns; those beyond what is told are 0, all of them where nothing is told.
    ridge
        In mean variances of a gene.

    Returns
    -------
    Floats
        With a root mean square of 1 over the tokens that occur, and the columns that are filled.

    Raises
    ------
    ContractError
        There are more than `MOST_TOKENS` tokens, or no section has enough locations with neighbours.
    """
    x = sp.vstack([p.shares for p in pieces], format="csr")
    tokens = x.shape[1]
    has_genes = np.diff(x.indptr) > 0
    if tokens > MOST_TOKENS:
        raise ContractError(
            f"axes of {tokens:,} tokens x as many; {MOST_TOKENS:,} are the most",
            where="model.start: contextual",
            mend="give the encoder fewer `genes`, or take start: spectral",
        )
    section = np.concatenate([p.section for p in pieces])
    centres_um = np.concatenate([p.centres_um for p in pieces])
    mean = np.asarray(x.mean(axis=0)).ravel()
    occurs = mean > 0
    inverse = np.where(occurs, 1.0 / np.sqrt(np.where(occurs, mean, 1.0)), 0.0)
    own, cross, whole, sections = np.zeros((tokens, tokens)), np.zeros((tokens, tokens)), 0.0, 0
    for number in np.unique(section[has_genes]):
        here = np.flatnonzero((section == number) & has_genes)
        around = surroundings(centres_um[here], pitches=ADJACENT, itself=False)
        told = np.flatnonzero(np.diff(around.indptr))
        if len(told) < FEWEST:
            continue
        sections += 1
        # Divided, and centred as they are multiplied. Neighbours of those that are told are told, too.
        lists = sp.csr_matrix(x[here[told]] @ sp.diags_array(inverse))
        theirs = sp.csr_matrix(around[told][:, told] @ lists)
        centre, whole = np.asarray(lists.mean(axis=0)).ravel(), whole + float(lists.power(2).sum())
        for first in range(0, len(told), ROWS):
            rows = slice(first, first + ROWS)
            dense = lists[rows].toarray().astype(np.float64) - centre
            own += dense.T @ dense
            cross += dense.T @ (theirs[rows].toarray() - centre)
    if not sections:
        raise ContractError(
            f"no training section has {FEWEST} sampled locations with neighbours",
            where="model.start: contextual",
            mend="train on sections with places, on fewer and larger ones, or take start: spectral",
        )
    values, vectors = np.linalg.eigh(own)
    size = values.sum() / tokens
    if values.sum() <= VARIES**2 * whole:
        return np.zeros((tokens, dim), dtype=np.float32)
    root = (vectors / np.sqrt(np.maximum(values, 0.0) + ridge * size)) @ vectors.T
    axes, strength, _ = np.linalg.svd(root @ cross)
    axes, strength = axes[:, :dim], strength[:dim]
    filled = strength > VARIES * strength.max(initial=0.0)
    return _of_tokens((root @ axes * strength).T[filled] * inverse, occurs, dim=dim)


def _of_tokens(axes: NDArray[np.float64], occurs: NDArray[np.bool_], *, dim: int) -> Floats:
    """(n_tokens, dim) of axes (k, n_tokens): with a root mean square of 1, and columns beyond the k-th 0.

    The sign of an axis is free: its largest entry is made positive.
    """
    out = np.zeros((axes.shape[1], dim), dtype=np.float32)
    if not len(axes):
        return out
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    found = axes.T + 0.0  # which turns -0 into 0
    spread = np.sqrt((found[occurs] ** 2).mean())
    out[:, : len(axes)] = found / (spread if spread > 0 else 1.0)
    return out
