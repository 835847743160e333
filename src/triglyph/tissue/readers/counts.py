"""Count matrices as vendors write them, made CSR with one column per gene symbol.

Annotations give one symbol to several Ensembl ids now and then. Their columns are summed, so counts are conserved;
the id of the column with most counts is kept and every sum is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.errors import SourceError
from triglyph.tissue.readers.base import Notes


@dataclass(frozen=True)
class Counts:
    """Counts (n, genes) with their names."""

    matrix: sp.csr_matrix
    barcodes: NDArray[np.object_]
    symbols: NDArray[np.object_]
    ensembl_ids: NDArray[np.object_]
    """"" where unknown."""


def one_column_per_symbol(counts: Counts, notes: Notes) -> Counts:
    """Sum the columns that share a symbol; their order is that of first occurrence."""
    symbols, first, where = np.unique(counts.symbols.astype(str), return_index=True, return_inverse=True)
    if len(symbols) == len(counts.symbols):
        return counts
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    column = rank[where]
    membership = sp.csr_matrix(
        (np.ones(len(column), dtype=counts.matrix.dtype), (np.arange(len(column)), column)),
        shape=(len(column), len(symbols)),
    )
    totals = np.asarray(counts.matrix.sum(axis=0)).ravel()
    ids = np.full(len(symbols), "", dtype=object)
    for j in np.lexsort((np.arange(len(column))[::-1], totals)):  # the richest column, then the first, speaks last
        ids[column[j]] = counts.ensembl_ids[j]
    twice = symbols[order][np.bincount(column) > 1]
    shown = ", ".join(twice[:8]) + (" …" if len(twice) > 8 else "")
    notes.add(f"{len(twice)} gene symbols occur more than once; their columns were summed: {shown}")
    return Counts((counts.matrix @ membership).tocsr(), counts.barcodes, symbols[order].astype(object), ids)


def read_10x_h5(path: Path, notes: Notes) -> Counts:
    """A Space Ranger or Cell Ranger (version 3 and later) `*_feature_bc_matrix.h5`; genes alone are kept.

    Raises
    ------
    SourceError
        It does not open, is not of this layout, or its parts do not fit together.
    """
    import h5py

    mend = "copy the file again, or run Space Ranger anew"
    try:
        with h5py.File(path) as file:
            group = file["matrix"]
            shape = tuple(int(v) for v in group["shape"][:])
            data, indices, indptr = group["data"][:], group["indices"][:], group["indptr"][:]
            barcodes = _decoded(group["barcodes"][:])
            features = group["features"]
            ids, symbols = _decoded(features["id"][:]), _decoded(features["name"][:])
            kinds = _decoded(features["feature_type"][:])
    except (OSError, KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise SourceError(f"not readable as a 10x count matrix ({error})", where=path, mend=mend) from error
    whole = len(shape) == 2 and len(indptr) == shape[1] + 1 and len(data) == len(indices) == indptr[-1]
    if not whole or shape != (len(symbols), len(barcodes)) or (indices.size and indices.max() >= shape[0]):
        raise SourceError("the parts of the count matrix do not fit together", where=path, mend=mend)
    # Stored as genes x barcodes in CSC, which is barcodes x genes in CSR.
    matrix = sp.csr_matrix((data, indices, indptr), shape=(shape[1], shape[0]))
    genes = kinds == "Gene Expression"
    if not genes.all():
        others = sorted(set(kinds[~genes]))
        notes.add(f"left out {int((~genes).sum())} features that are not genes ({', '.join(others)})")
        matrix, ids, symbols = matrix[:, genes], ids[genes], symbols[genes]
    return Counts(matrix, barcodes, symbols, ids)


def species_of(ensembl_ids: Sequence[str] | NDArray[np.object_]) -> str:
    """`human`, `mouse`, or "" where the ids are neither or both."""
    prefixes = {"human": "ENSG", "mouse": "ENSMUSG"}
    found = [name for name, prefix in prefixes.items() if any(str(i).startswith(prefix) for i in ensembl_ids)]
    return found[0] if len(found) == 1 else ""


def _decoded(values: NDArray) -> NDArray[np.object_]:
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values], dtype=object)
