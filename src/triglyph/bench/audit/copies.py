"""The same locations under two ids: rows of counts that are equal gene by gene, whatever their order, or one picture.

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
from triglyph.bench.audit.findings import Sheet, listed
from triglyph.tissue.pictures import HASH

MIN_DETECTED, MIN_TOTAL = 8, 20
"""A location with fewer genes or counts may equal another by chance, and is not compared."""
MIN_COPIES, MIN_SHARE = 3, 0.02
"""Fewer equal locations, or a smaller share of those compared, are let pass; of picture files they are advice."""

Signatures = NDArray[np.uint64]


def check_copies(case: Case, sheet: Sheet) -> None:
    """`same-section-twice`, from counts and pictures. One image at one place is found by `check_geometry`."""
    name = "same-section-twice"
    pairs = {pair for sides in case.sides for pair in sides.pairs()}
    pictured = _check_pictures(case, sheet, name)
    left = pairs - pictured
    genes = case.genes
    if len(genes) < MIN_DETECTED:
        few = f"the sections have {len(genes)} measured genes in common, {MIN_DETECTED} are needed"
        if left or not pictured:
            sheet.unchecked(name, case.uncounted or few)
        return
    if bare := {s for pair in left for s in pair} - set(case.counted):
        sheet.unchecked(name, f"counts: no genes in {listed(sorted(bare))}")
    found = {s: signatures(case.cohort[s].expression(), genes) for s in case.counted}
    if thin := [s for s, signs in found.items() if not len(signs)]:
        what = f"too few counts to tell locations apart in {len(thin)} sections, such as {thin[0]}"
        sheet.unchecked(name, what)
    if not pairs or any(len(found.get(a, ())) and len(found.get(b, ())) for a, b in pairs):
        sheet.checked(name)
    equal = _equal(found)
    for sides in case.sides:
        for a, b in sides.pairs():
            k, n = equal.get((a, b), 0), len(found.get(b, ()))
            if _many(k, n):
                case.copies.add((a, b))
                what = (
                    f"section {b} (patient {case.patients[b]}, tested) holds {k:,} of its {n:,} compared locations in "
                    f"common with {a} (patient {case.patients[a]}, trained on): the very same counts"
                )
                sheet.find(name, what, message="sections hold the very same counts", sections=(b, a), fold=sides.name)


def _check_pictures(case: Case, sheet: Sheet, name: str) -> set[tuple[str, str]]:
    """Picture files on both sides, by their hashes; the (seen, tested) sections compared, parts of one included."""
    hashes = {}
    for section in case.sections:
        obs = getattr(getattr(case.cohort[section], "table", None), "obs", None)
        if obs is not None and HASH in obs and any(obs[HASH]):
            hashes[section] = obs[HASH].astype(str).to_numpy()
    compared = set()
    for sides in case.sides:
        divided = [(s, s) for s in sides.test if s in sides.seen and s in (sides.fold.test_locations or {})]
        seen, tested = (
            {s: set(hashes[s][case.rows(sides, s, test=test)]) - {""} for s in of if s in hashes}
            for of, test in ((sides.seen, False), (sides.test, True))
        )
        for a, b in (*sides.pairs(), *divided):
            if not seen.get(a) or not tested.get(b):
                continue
            compared.add((a, b))
            sheet.checked(name)
            k, n = len(seen[a] & tested[b]), len(tested[b])
            if not k:
                continue
            many = _many(k, n)
            if many and a != b:
                case.copies.add((a, b))
            whose = f"section {b}" if a != b else f"the tested part of {b}"
            elsewhere = f"{a} (patient {case.patients[a]}, trained on)" if a != b else "the part trained on"
            what = (
                f"{k:,} of the {n:,} picture files of {whose} (patient {case.patients[b]}, tested) are also in "
                f"{elsewhere}"
            )
            sheet.find(
                name,
                what,
                message="sections show the very same pictures",
                sections=tuple(dict.fromkeys((b, a))),
                fold=sides.name,
                severity="fail" if many else "advise",
            )
    return compared


def _many(k: int, n: int) -> bool:
    """Whether k equal ones of n that were compared are more than chance, or an empty tile, explains."""
    return k >= MIN_COPIES and k >= MIN_SHARE * n


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
