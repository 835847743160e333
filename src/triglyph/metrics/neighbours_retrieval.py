"""Retrieval of the same label among other patients: Acc@k, MVAcc@k and mAP.

A query's own patient is never a candidate: sections of one tumour find each other by stain, not by what they show.
Candidates are ranked by cosine similarity. Scores within 1e-12 of the next are one tie, and a tie is taken at its
worst: wrong candidates stand before right ones, and among themselves by label. Equal votes in a majority are resolved
by the expectation of a fair draw, 1/t where the right label is among t labels with most votes. So the order of the
gallery changes no figure, and an encoder that answers the same to everything gains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ContractError
from triglyph.metrics.parallel import each, spans
from triglyph.metrics.retrieval import unit_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TIE = 1e-12
KS = (1, 3, 5)


class LabelRetrieval(NamedTuple):
    """Every query's values, so that a mean per patient or an interval over patients can be taken of them."""

    ks: tuple[int, ...]
    accuracy: Floats
    """(q, ks) 1 where any of the first k candidates has the query's label."""
    majority: Floats
    """(q, ks) 1 where most of the first k have it; the share of a draw where several labels have most."""
    average_precision: Floats
    """(q,) mean over the right candidates of the precision at their rank, over all candidates."""
    chance_accuracy: Floats
    """(q, ks) Acc@k of a random order: 1 - C(n - m, k) / C(n, k) for m right among n candidates."""
    n_candidates: Ints
    """(q,)"""
    n_right: Ints
    """(q,) right candidates; a query without any is NaN throughout: no encoder could answer it."""

    @property
    def n_undefined(self) -> int:
        """Queries without a right candidate."""
        return int((self.n_right == 0).sum())


def label_retrieval(
    queries: ArrayLike,
    labels: ArrayLike,
    patients: ArrayLike,
    *,
    gallery: ArrayLike | None = None,
    gallery_labels: ArrayLike | None = None,
    gallery_patients: ArrayLike | None = None,
    ks: Sequence[int] = KS,
    block_bytes: int = 64 << 20,
) -> LabelRetrieval:
    """Rank the candidates of other patients for each query.

    Parameters
    ----------
    queries
        (q, dim)
    labels, patients
        (q,) of the queries, names or numbers.
    gallery, gallery_labels, gallery_patients
        (g, dim), (g,), (g,); the queries themselves if all three are left out.
    ks
        Where fewer than k candidates are left, all of them are taken.
    block_bytes
        Memory of one block of scores and of what sorting it needs; no result depends on it.

    Raises
    ------
    ContractError
        Shapes do not fit, a value is not finite, or a part of the gallery is missing.
    """
    parts = (gallery, gallery_labels, gallery_patients)
    if any(p is None for p in parts) and not all(p is None for p in parts):
        raise ContractError("a gallery needs its vectors, labels and patients", mend="give all three, or none")
    if not ks or min(ks) < 1:
        raise ContractError("ks must be at least 1", where=f"ks={tuple(ks)}")
    a = unit_rows(queries, what="queries")
    b = a if gallery is None else unit_rows(gallery, what="gallery")
    if a.shape[1] != b.shape[1]:
        raise ContractError(f"queries have {a.shape[1]} dimensions, the gallery {b.shape[1]}")
    label, offered = _codes(labels, labels if gallery_labels is None else gallery_labels, len(a), len(b), "labels")
    own, theirs = _codes(
        patients, patients if gallery_patients is None else gallery_patients, len(a), len(b), "patients"
    )
    n_labels = int(max(label.max(initial=-1), offered.max(initial=-1))) + 1
    pieces = each(
        lambda rows: _block(a[rows], b, label[rows], offered, own[rows, None] == theirs, n_labels, tuple(ks)),
        spans(len(a), block_bytes // max(1, 64 * len(b))),
    )
    if not pieces:
        empty = np.zeros((0, len(ks)))
        return LabelRetrieval(tuple(ks), empty, empty, np.zeros(0), empty, *(np.zeros(0, np.int64),) * 2)
    return LabelRetrieval(tuple(ks), *(np.concatenate(p) for p in zip(*pieces, strict=True)))


def _codes(queries: ArrayLike, gallery: ArrayLike, q: int, g: int, what: str) -> tuple[Ints, Ints]:
    one, two = np.asarray(queries), np.asarray(gallery)
    if one.shape != (q,) or two.shape != (g,):
        raise ContractError(f"{what} of shapes {one.shape} and {two.shape} for {q} queries and {g} candidates")
    codes = np.unique(np.concatenate([one, two]), return_inverse=True)[1].ravel().astype(np.int64)
    return codes[:q], codes[q:]


def _block(
    a: Floats, b: Floats, label: Ints, offered: Ints, same: NDArray[np.bool_], n_labels: int, ks: tuple[int, ...]
) -> tuple[Floats, Floats, Floats, Floats, Ints, Ints]:
    scores = np.where(same, -np.inf, a @ b.T)
    n = (~same).sum(axis=1)
    order = np.argsort(-scores, axis=1)
    scores = np.take_along_axis(scores, order, axis=1)
    with np.errstate(invalid="ignore"):  # -inf - -inf, behind all candidates
        tie = np.cumsum(scores[:, :-1] - scores[:, 1:] > TIE, axis=1)
    # One integer says the tie, then right behind wrong, then the label: sorting it settles every tie.
    found = offered[order]
    key = found + n_labels * (found == label[:, None])
    key[:, 1:] += 2 * n_labels * tie
    behind = np.arange(len(b)) >= n[:, None]
    key[behind] = np.iinfo(np.int64).max
    key.sort(axis=1)
    found = np.where(behind, -1, key % max(1, n_labels))
    right = found == label[:, None]
    m = right.sum(axis=1)
    hits = np.cumsum(right, axis=1)
    precision = np.where(right, hits / np.arange(1, len(b) + 1), 0.0).sum(axis=1)
    defined = m > 0
    accuracy, majority, chance = (np.full((len(a), len(ks)), np.nan) for _ in range(3))
    for j, k in enumerate(ks):
        accuracy[:, j] = np.where(defined, right[:, :k].any(axis=1), np.nan)
        majority[:, j] = np.where(defined, majority_share(found[:, :k], label, n_labels), np.nan)
        chance[:, j] = np.where(defined, _chance(n, m, k), np.nan)
    average = np.where(defined, precision / np.maximum(m, 1), np.nan)
    return accuracy, majority, average, chance, n.astype(np.int64), m.astype(np.int64)


def majority_share(found: Ints, label: Ints, n_labels: int) -> Floats:
    """(q,) 1/t where `label` is among the t most frequent of `found`, else 0; -1 in `found` is nobody."""
    rows = np.arange(len(found))
    votes = np.zeros((len(found), n_labels + 1), dtype=np.int64)
    np.add.at(votes, (rows[:, None], found), 1)
    votes = votes[:, :n_labels]  # the last column took the -1
    most = votes.max(axis=1, initial=0)
    wins = (votes[rows, label] == most) & (most > 0)
    return np.where(wins, 1.0 / np.maximum((votes == most[:, None]).sum(axis=1), 1), 0.0)


def _chance(n: Ints, m: Ints, k: int) -> Floats:
    """1 - the probability that none of k drawn without replacement from n is one of m."""
    none = np.ones(len(n))
    for i in range(k):
        left = n - i
        none *= np.where(left > 0, np.maximum(left - m, 0) / np.maximum(left, 1), 1.0)
    return 1.0 - none
