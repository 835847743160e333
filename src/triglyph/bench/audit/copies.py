"""The same locations under two ids: rows of counts that are equal gene by gene, whatever their order.

A location's signature is the sum over genes of its count times a random 64-bit number of the gene's name, modulo 2^64:
it does not hang on the order of rows or columns, and sections are compared by intersecting sorted integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.bench.audit.case import Case
from triglyph.bench.audit.findings import Sheet
from triglyph.tissue.pictures import HASH

MIN_DETECTED, MIN_TOTAL = 8, 20
"""A location with fewer genes or counts may equal another by chance, and is not compared."""
MIN_COPIES, MIN_SHARE = 3, 0.02
"""Fewer equal locations, or a smaller share of those compared, are let pass."""

Signatures = NDArray[np.uint64]


def check_copies(case: Case, sheet: Sheet) -> None:
    """`same-section-twice`, from counts. Sections of one image at one place are found by `check_geometry`."""
    name = "same-section-twice"
    _check_pictures(case, sheet, name)
    genes = case.genes
    if len(genes) < MIN_DETECTED:
        few = f"the sections have {len(genes)} measured genes in common, {MIN_DETECTED} are needed"
        sheet.unchecked(name, case.uncounted or few)
        return
    found = {s: signatures(case.cohort[s].expression(), genes) for s in case.counted}
    if thin := [s for s, signs in found.items() if not len(signs)]:
        what = f"too few counts to tell locations apart in {len(thin)} sections, such as {thin[0]}"
        sheet.unchecked(name, what)
    if len(thin) < len(found):
        sheet.checked(name)
    equal = _equal(found)
    for sides in case.sides:
        for a, b in sides.pairs():
            k, n = equal.get((a, b), 0), len(found.get(b, ()))
            if k >= MIN_COPIES and k >= MIN_SHARE * n:
                case.copies.add((a, b))
                what = (
                    f"section {b} (patient {case.patients[b]}, tested) holds {k:,} of its {n:,} compared locations in "
                    f"common with {a} (patient {case.patients[a]}, trained on): the very same counts"
                )
                sheet.find(name, what, message="sections hold the very same counts", sections=(b, a), fold=sides.name)


def _check_pictures(case: Case, sheet: Sheet, name: str) -> None:
    """One picture file on both sides, by its hash, where every location has a file of its own."""
    files: dict[str, set[str]] = {}
    for section in case.sections:
        obs = getattr(getattr(case.cohort[section], "table", None), "obs", None)
        if obs is not None and HASH in obs:
            files[section] = set(obs[HASH].astype(str)) - {""}
    for sides in case.sides:
        for a, b in sides.pairs():
            if a != b and (both := len(files.get(a, set()) & files.get(b, set()))):
                what = (
                    f"{both:,} of the {len(files[b]):,} picture files of section {b} (patient {case.patients[b]}, "
                    f"tested) are also in {a} (patient {case.patients[a]}, trained on)"
                )
                sheet.find(name, what, message="sections show the very same pictures", sections=(b, a), fold=sides.name)


def signatures(
    expression: tuple[sp.csr_matrix, Sequence[str], Sequence[str], NDArray[np.bool_]], genes: Sequence[str]
) -> Signatures:
    """Sorted, distinct signatures of the locations with enough counts of `genes`.

    Parameters
    ----------
    expression
        As a section gives it.
    genes
        Symbols that it has.
    """
    counts, symbols, _, _ = expression
    at = {symbol: i for i, symbol in enumerate(symbols)}
    chosen = sp.csr_matrix(counts)[:, [at[g] for g in genes]]
    chosen.eliminate_zeros()
    weights = np.array([int.from_bytes(hashlib.blake2b(g.encode(), digest_size=8).digest()) for g in genes], np.uint64)
    products = chosen.data.astype(np.uint64) * weights[chosen.indices]
    # Sums wrap at 2^64, and so do their differences: each is exact.
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(products, dtype=np.uint64)])
    signs = sums[chosen.indptr[1:]] - sums[chosen.indptr[:-1]]
    enough = (np.diff(chosen.indptr) >= MIN_DETECTED) & (np.asarray(chosen.sum(axis=1)).ravel() >= MIN_TOTAL)
    return np.unique(signs[enough])


def _equal(found: dict[str, Signatures]) -> dict[tuple[str, str], int]:
    """(section, other section) -> signatures in common, where there are any."""
    names = list(found)
    signs, where = np.unique(np.concatenate([found[s] for s in names]), return_inverse=True)
    section = np.repeat(np.arange(len(names)), [len(found[s]) for s in names])
    incidence = sp.csr_matrix((np.ones(len(where), np.int64), (section, where)), shape=(len(names), len(signs)))
    both = sp.coo_matrix(incidence @ incidence.T)
    return {(names[i], names[j]): int(k) for i, j, k in zip(both.row, both.col, both.data, strict=True) if i != j}
