"""Retrieval over a full gallery: where the true match ranks among everything that could have been answered.

Items carry an id, and every gallery entry with the query's id is a right answer: identical captions are one item, so
they are never each other's mistake. The rank of a query is that of its best right answer. Entries whose score is
within `tolerance` of it are ties, and ties are resolved as stated by the caller: `mean` gives the expected rank under
a random order of the tied, `pessimistic` puts every wrong one first. A model that gives everything the same score
therefore never looks good.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from triglyph.errors import ContractError

Floats = NDArray[np.float64]
Ties = Literal["mean", "pessimistic"]

TOLERANCE = 1e-6
"""What float32 embeddings of unit length can tell apart in a cosine."""


def unit_rows(vectors: ArrayLike, *, what: str = "embeddings") -> Floats:
    """(n, dim) as float64, each row divided by its length; a row of zeros stays so.

    Raises
    ------
    ContractError
        A value is not finite.
    """
    x = np.asarray(vectors, dtype=np.float64)
    if x.ndim != 2:
        raise ContractError(f"{what} must be (n, dim)", where=f"shape {x.shape}")
    if not np.isfinite(x).all():
        row = int(np.argwhere(~np.isfinite(x))[0, 0])
        raise ContractError(f"{what} are not finite", where=f"row {row}", mend="leave out locations without them")
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def match_ranks(
    queries: ArrayLike,
    gallery: ArrayLike,
    *,
    query_items: ArrayLike | None = None,
    gallery_items: ArrayLike | None = None,
    ties: Ties = "mean",
    tolerance: float = TOLERANCE,
    block_bytes: int = 64 << 20,
) -> Floats:
    """Rank, from 1, of the best right answer to each query, by cosine similarity over the whole gallery.

    Parameters
    ----------
    queries
        (q, dim)
    gallery
        (g, dim)
    query_items, gallery_items
        (q,) and (g,) item ids; left out, entry i of the gallery is the answer to query i.
    ties
        `mean`: with t wrong and m right entries tied at the best right score, t / (m + 1) of the wrong come first;
        `pessimistic`: all t do.
    tolerance
        Scores this close are ties.
    block_bytes
        Memory for one block of similarities; the result does not depend on it.

    Raises
    ------
    ContractError
        Shapes do not fit, a value is not finite, or a query has no right answer in the gallery.
    """
    a, b = unit_rows(queries, what="queries"), unit_rows(gallery, what="gallery")
    if a.shape[1] != b.shape[1]:
        raise ContractError(f"queries have {a.shape[1]} dimensions, the gallery {b.shape[1]}")
    wanted, offered = _items(query_items, len(a), "queries"), _items(gallery_items, len(b), "gallery")
    if missing := set(wanted.tolist()) - set(offered.tolist()):
        raise ContractError(f"{len(missing)} queries have no right answer in the gallery", where=sorted(missing)[:3])
    ranks = np.empty(len(a))
    step = max(1, block_bytes // max(1, 8 * len(b)))
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        scores = a[part] @ b.T
        right = wanted[part, None] == offered[None, :]
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        tied = np.abs(scores - best) <= tolerance
        wrong_tied = (tied & ~right).sum(axis=1)
        before = (scores > best + tolerance).sum(axis=1)
        share = wrong_tied if ties == "pessimistic" else wrong_tied / ((tied & right).sum(axis=1) + 1.0)
        ranks[part] = 1.0 + before + share
    return ranks


def diagonal_ranks(scores: Floats, *, ties: Ties = "mean") -> Floats:
    """(n,) rank from 1 of entry i among row i of (n, n) scores; ties, within `TOLERANCE`, as in `match_ranks`."""
    right = np.diagonal(scores)[:, None]
    before = (scores > right + TOLERANCE).sum(axis=1)
    tied = (np.abs(scores - right) <= TOLERANCE).sum(axis=1) - 1
    return np.asarray(1.0 + before + (tied if ties == "pessimistic" else tied / 2.0), dtype=np.float64)


def _items(items: ArrayLike | None, n: int, what: str) -> NDArray[np.int64]:
    if items is None:
        return np.arange(n, dtype=np.int64)
    array = np.asarray(items, dtype=np.int64)
    if array.shape != (n,):
        raise ContractError(f"{array.shape} item ids for {n} {what}")
    return array


def right_answers(query_items: ArrayLike, gallery_items: ArrayLike) -> NDArray[np.int64]:
    """(q,) number of right answers in the gallery for each query."""
    ids, counts = np.unique(np.asarray(gallery_items, dtype=np.int64), return_counts=True)
    table = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    wanted = np.asarray(query_items, dtype=np.int64).tolist()
    return np.array([table.get(i, 0) for i in wanted], dtype=np.int64)


def recall_at(ranks: ArrayLike, k: int) -> float:
    """Share of queries whose right answer is among the first `k`; NaN without queries."""
    r = np.asarray(ranks, dtype=np.float64)
    return float((r <= k).mean()) if len(r) else float("nan")


def chance_recall(n_gallery: int, k: int, *, n_right: ArrayLike = 1) -> float:
    """Expected recall@k of a random order, mean over queries.

    With one right answer among n that is min(k, n) / n; with m of them 1 - C(n - m, k) / C(n, k).

    Parameters
    ----------
    n_right
        (q,) or one number of right answers per query.
    """
    m = np.atleast_1d(np.asarray(n_right, dtype=np.float64))
    if n_gallery < 1 or not len(m):
        return float("nan")
    k = min(k, n_gallery)
    n = float(n_gallery)
    room = n - m >= k
    left = np.where(room, n - m, k)
    log_none = (gammaln(left + 1) - gammaln(left - k + 1)) - (gammaln(n + 1) - gammaln(n - k + 1))
    single = k / n
    several = np.where(room, 1.0 - np.exp(log_none), 1.0)
    return float(np.where(m == 1, single, several).mean())


def chance_rank(n_gallery: int, *, n_right: ArrayLike = 1) -> float:
    """Median over queries of the expected rank under a random order, (n + 1) / (m + 1)."""
    m = np.atleast_1d(np.asarray(n_right, dtype=np.float64))
    return float(np.median((n_gallery + 1.0) / (m + 1.0))) if n_gallery and len(m) else float("nan")
