"""Genes of a location in descending order of count / scale: the one engine behind every rank tokenisation.

Locations share most of what is sorted: a gene with count 3 has the same value wherever it occurs. So the distinct
(gene, count) pairs are ranked once, ties by gene, and every entry becomes the rank of its pair. A block of 65,536
entries holds at most so many pairs; numbered within the block they fit 16 bits, which NumPy sorts in linear time.
Where many counts are large, as in bulk, pairs hardly recur, and rows are sorted one by one. Both ways are exact and
give the same: values are compared as float64, and only where they are equal does the gene decide.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.errors import GeneError

SMALL = 256
"""Counts below this find their pair in a table; larger ones are rare and are searched for."""
RARE = 0.01
"""Where a larger share of the counts is large, rows are sorted one by one."""
LARGEST = 1 << 40
"""No count is as large; a pair's code must fit 64 bits."""
ENTRIES = 1 << 25
"""Non-zero counts whose pairs are ranked together, about; bounds memory."""
BLOCK = 1 << 16
"""Entries numbered together, in 16 bits."""


def top_genes(
    counts: sp.csr_matrix,
    column_of: NDArray[np.integer],
    scale: NDArray[np.float64],
    *,
    limit: int,
    names: NDArray[np.int64] | None = None,
    pad: int = -1,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The genes with a count of every row, largest count / scale first.

    Parameters
    ----------
    counts
        (n, columns) whole, non-negative counts.
    column_of
        (columns,) which of k genes a column is, each gene at most once; -1 leaves a column out.
    scale
        (k,) positive; genes of equal value are ordered by their number.
    limit
        Longest list; later genes are cut.
    names
        (k,) what to call the genes; their numbers if None.
    pad
        What stands behind the end of a list.

    Returns
    -------
    genes
        (n, length) int64; length is that of the longest list.
    lengths
        (n,) int64.

    Raises
    ------
    GeneError
        A count is not a whole, non-negative number, or is above 2^40.
    """
    if not counts.has_canonical_format:
        counts = counts.copy()
        counts.sum_duplicates()
    largest = largest_count(counts.data)
    gene_of = np.asarray(column_of, dtype=np.int32)
    known = gene_of >= 0
    called = np.arange(len(scale)) if names is None else names
    n = counts.shape[0]
    genes = np.empty((n, limit), dtype=np.int64)
    lengths = np.zeros(n, dtype=np.int64)
    for start, stop in _runs(counts.indptr, 0, n, ENTRIES):
        a, b = counts.indptr[start], counts.indptr[stop]
        column, count = counts.indices[a:b], counts.data[a:b]
        bounds = counts.indptr[start : stop + 1] - a
        if not known.all() or (len(count) and count.min() == 0):
            keep = known[column] & (count > 0)
            bounds = np.concatenate(([0], np.cumsum(keep)))[bounds]
            column, count = column[keep], count[keep]
        lengths[start:stop] = np.minimum(np.diff(bounds), limit)
        out = genes[start:stop], lengths[start:stop]
        if largest >= SMALL and np.count_nonzero(count >= SMALL) > RARE * len(count):
            _sort_rows(gene_of[column], count, scale, bounds, called, *out)
        else:
            _fill(_Pairs(column, count, gene_of, scale, called, plain=largest < SMALL), column, count, bounds, *out)
    for row, length in enumerate(lengths):
        genes[row, length:] = pad
    return genes[:, : int(lengths.max(initial=0))], lengths


def by_gene(counts: sp.csr_matrix, column_of: NDArray[np.integer], k: int) -> sp.csr_matrix:
    """Counts (n, k): the columns of each gene added up.

    Parameters
    ----------
    counts
        (n, columns).
    column_of
        (columns,) which of k genes a column is; -1 leaves it out.
    """
    rows = np.flatnonzero(column_of >= 0)
    dtype = np.float64 if counts.dtype.kind == "f" else np.int64  # sums may not fit what single counts are kept in
    gather = sp.csr_matrix((np.ones(len(rows), dtype), (rows, column_of[rows])), shape=(counts.shape[1], k))
    return sp.csr_matrix(counts @ gather)


class _Pairs:
    """The distinct (column, count) pairs among entries, ranked; a pair's code is count · columns + column."""

    def __init__(
        self,
        column: NDArray[np.int32],
        count: NDArray,
        column_of: NDArray[np.int32],
        scale: NDArray[np.float64],
        called: NDArray[np.int64],
        *,
        plain: bool,
    ) -> None:
        self.columns, self.plain = max(1, len(column_of)), plain
        seen = np.zeros(SMALL * self.columns, dtype=bool)
        many = [np.empty(0, dtype=np.int64)]
        for a in range(0, len(column), BLOCK):
            mine, amount = column[a : a + BLOCK], count[a : a + BLOCK]
            if not plain and (large := amount >= SMALL).any():
                many.append(np.unique(self._code(mine[large], amount[large], np.int64)))
                mine, amount = mine[~large], amount[~large]
            seen[self._code(mine, amount)] = True
        small, self.large = np.flatnonzero(seen), np.unique(np.concatenate(many))
        amount, owner = np.divmod(np.concatenate([small, self.large]), self.columns)
        gene = column_of[owner]
        order = np.lexsort((gene, -(amount / scale[gene])))
        rank = np.empty(len(order), dtype=np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        self.table = np.zeros(SMALL * self.columns, dtype=np.int32)
        self.table[small] = rank[: len(small)]
        self.large_rank = rank[len(small) :]
        self.name_of = called[gene[order]]
        """(pairs,) the gene of every rank"""

    def _code(self, column: NDArray[np.int32], count: NDArray, dtype: type = np.int32) -> NDArray:
        return count.astype(dtype) * dtype(self.columns) + column

    def rank(self, column: NDArray[np.int32], count: NDArray) -> NDArray[np.int32]:
        """Ranks of entries."""
        if self.plain or not (large := count >= SMALL).any():
            return self.table.take(self._code(column, count))
        found = self.table.take(self._code(column, np.where(large, 0, count)))
        found[large] = self.large_rank[np.searchsorted(self.large, self._code(column[large], count[large], np.int64))]
        return found


def _fill(
    pairs: _Pairs,
    column: NDArray[np.int32],
    count: NDArray,
    bounds: NDArray[np.integer],
    genes: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> None:
    """Write the ranked genes of rows, whose entries lie at `bounds`, into `genes`."""
    seen = np.zeros(len(pairs.name_of), dtype=bool)
    local = np.zeros(len(pairs.name_of), dtype=np.uint16)
    numbers = np.arange(BLOCK, dtype=np.uint16)
    for start, stop in _runs(bounds, 0, len(lengths), BLOCK):
        a, b = bounds[start], bounds[stop]
        rank = pairs.rank(column[a:b], count[a:b])
        if b - a > BLOCK:  # one row of more genes than 16 bits can number
            genes[start, : lengths[start]] = pairs.name_of.take(np.sort(rank)[: lengths[start]])
            continue
        where = rank.astype(np.intp)
        seen[where] = True
        there = np.flatnonzero(seen)
        local[there] = numbers[: len(there)]
        keys, names = local.take(where), pairs.name_of.take(there)
        seen[there] = False
        for row in range(start, stop):
            mine = keys[bounds[row] - a : bounds[row + 1] - a]
            mine.sort(kind="stable")  # what NumPy calls its radix sort for 16-bit keys
            genes[row, : lengths[row]] = names.take(mine[: lengths[row]])


def _sort_rows(
    gene: NDArray[np.int32],
    count: NDArray,
    scale: NDArray[np.float64],
    bounds: NDArray[np.integer],
    called: NDArray[np.int64],
    genes: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> None:
    """The same as `_fill`, row by row."""
    for row, length in enumerate(lengths):
        mine = gene[bounds[row] : bounds[row + 1]]
        value = count[bounds[row] : bounds[row + 1]] / scale[mine]
        order = np.argsort(-value)  # the fastest sort is not stable, which matters only where values are equal
        ranked = value[order]
        same = ranked[1:] == ranked[:-1]
        if same.any():
            tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
            run = np.cumsum(np.append(True, ~same))[tied]
            order[tied] = order[tied][np.lexsort((mine[order[tied]], run))]
        genes[row, :length] = called[mine[order[:length]]]


def _runs(bounds: NDArray[np.integer], first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Runs of rows that hold at most `size` entries together, or one row."""
    while first < last:
        stop = int(np.searchsorted(bounds, bounds[first] + size, side="right")) - 1
        stop = min(last, max(stop, first + 1))
        yield first, stop
        first = stop


def largest_count(values: NDArray) -> int:
    """The largest of the counts, 0 of none.

    Raises
    ------
    GeneError
        One of them is not a whole, non-negative number, or is above 2^40.
    """
    if values.dtype.kind not in "iu" and not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        raise GeneError("counts are not whole numbers", mend="give raw counts: a sum of cells ranks as their mean does")
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if low < 0 or high > LARGEST:
        raise GeneError(f"{low if low < 0 else high:g} is no count", mend="give raw counts, from 0 to 2^40")
    return int(high)
