"""A rank vocabulary of our own: tokens and non-zero medians of the genes of the training sections.

For a corpus that has no published dictionary. A gene's value at a location is count / n_counts · 10,000, with n_counts
the location's total over genes that have an Ensembl id; its median is over the locations with a count of it. Sections
are read several times, one at a time: first to count how often each gene occurs, then to collect the values of as many
genes as memory allows. The medians are exact and depend on no order, of sections, of locations or of columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.errors import GeneError
from triglyph.genes.ids import stems
from triglyph.genes.ranking import by_gene
from triglyph.genes.tokens import RankVocabulary

TARGET_SUM = 1e4
FIRST_TOKEN = 2
"""0 pads and 1 masks, as in the published dictionaries."""

Measured = tuple[sp.csr_matrix, Sequence[str], Sequence[str], NDArray[np.bool_]]
"""Counts (n, columns), symbols, Ensembl ids ("" where unknown) and which columns were measured."""


def recomputed_vocabulary(
    sections: Iterable[Measured], *, max_genes: int | None = None, max_values: int = 50_000_000
) -> RankVocabulary:
    """Tokens and non-zero medians of the genes of `sections`.

    Where any section has Ensembl ids, genes are those with an id, their own or the one another section gives their
    symbol; where none has, symbols name the genes. Token ids follow the sorted names, from 2 on.

    Parameters
    ----------
    sections
        The training sections, and no others. Read several times over, so an iterator will not do.
    max_genes
        Keep those that occur at most locations, so many; ties by name.
    max_values
        Non-zero values held at once (12 bytes each). One gene is held whole, whatever it takes.

    Raises
    ------
    GeneError
        `sections` can be read only once, holds no count of a gene that has a name, or changed while it was read.
    """
    symbols = known_symbols(sections)
    occurs: Counter[str] = Counter()
    for section in sections:
        names, counts, _ = named_counts(section, symbols)
        occurs.update(dict(zip(names, np.bincount(counts.indices, minlength=len(names)).tolist(), strict=True)))
    chosen = commonest(occurs, max_genes)
    medians: dict[str, float] = {}
    for batch in _batches(chosen, occurs, max_values):
        medians |= _medians(sections, symbols, batch, occurs)
    return RankVocabulary(numbered(chosen), medians, symbols)


def commonest(occurs: Mapping[str, int], max_genes: int | None) -> list[str]:
    """Names of the genes that occur at most locations, so many at most, sorted by name; ties go by name, too.

    Raises
    ------
    GeneError
        None occurs at all.
    """
    chosen = sorted((n for n, times in occurs.items() if times), key=lambda n: (-occurs[n], n))[:max_genes]
    if not chosen:
        raise GeneError("no training section has a count of a gene", mend="check counts, symbols and Ensembl ids")
    return sorted(chosen)


def numbered(names: Sequence[str]) -> dict[str, int]:
    """Token ids of genes, in the order of `names`, from `FIRST_TOKEN` on."""
    return {name: FIRST_TOKEN + i for i, name in enumerate(names)}


def known_symbols(sections: Iterable[Measured]) -> dict[str, str] | None:
    """Symbol -> Ensembl id by all sections; the first of several in the alphabet. None where nobody has an id.

    The first reading of sections that will be read again, for their counts.

    Raises
    ------
    GeneError
        They can be read only once.
    """
    if isinstance(sections, Iterator):
        raise GeneError(
            "an iterator can be read only once", mend="give a list, or an object with an __iter__ of its own"
        )
    found: dict[str, str] = {}
    for _, names, ids, _ in sections:
        for name, stem in zip(names, stems(tuple(ids)), strict=True):
            if stem:
                found[name.strip()] = min(stem, found.get(name.strip(), stem))
    return found or None


def named_counts(
    section: Measured, symbols: Mapping[str, str] | None, wanted: frozenset[str] | None = None
) -> tuple[list[str], sp.csr_matrix, NDArray[np.float64]]:
    """A section's counts by gene: columns of one gene added up, those not measured or without a name left out.

    Parameters
    ----------
    section
        Counts and columns.
    symbols
        As `known_symbols` gives them.
    wanted
        Names to keep; None for all.

    Returns
    -------
    names
        Of the genes, sorted.
    counts
        (n, genes), without stored zeros.
    n_counts
        (n,) each location's total over all genes that have a name, wanted or not.
    """
    counts, columns, ids, measured = section
    if symbols is None:
        names = [c.strip() for c in columns]
    else:
        names = [s or symbols.get(c.strip(), "") for c, s in zip(columns, stems(tuple(ids)), strict=True)]
    mapped = np.array([bool(n) and bool(m) for n, m in zip(names, measured, strict=True)], dtype=bool)
    total = np.asarray(counts @ mapped.astype(np.float64)).ravel()
    here = sorted({n for n, m in zip(names, mapped, strict=True) if m and (wanted is None or n in wanted)})
    number = {n: k for k, n in enumerate(here)}
    column_of = np.array([number.get(n, -1) if m else -1 for n, m in zip(names, mapped, strict=True)], dtype=np.int64)
    found = by_gene(counts, column_of, len(here))
    found.eliminate_zeros()
    return here, found, total


def _batches(names: Sequence[str], occurs: Counter[str], max_values: int) -> Iterator[frozenset[str]]:
    batch: list[str] = []
    held = 0
    for name in names:
        if batch and held + occurs[name] > max_values:
            yield frozenset(batch)
            batch, held = [], 0
        batch.append(name)
        held += occurs[name]
    yield frozenset(batch)


def _medians(
    sections: Iterable[Measured], symbols: Mapping[str, str] | None, batch: frozenset[str], occurs: Counter[str]
) -> dict[str, float]:
    names = sorted(batch)
    number = {n: k for k, n in enumerate(names)}
    start = np.concatenate(([0], np.cumsum([occurs[n] for n in names])))
    held = np.empty(start[-1], dtype=np.float64)
    filled = start[:-1].copy()
    for section in sections:
        here, counts, total = named_counts(section, symbols, batch)
        by_gene = sp.csc_matrix(counts)
        factor = np.divide(TARGET_SUM, total, out=np.zeros_like(total), where=total > 0)
        values = by_gene.data * factor[by_gene.indices]
        for name, a, b in zip(here, by_gene.indptr[:-1], by_gene.indptr[1:], strict=True):
            k = number[name]
            if filled[k] + b - a > start[k + 1]:
                raise GeneError(f"{name} occurs more often than before", mend="leave the sections alone meanwhile")
            held[filled[k] : filled[k] + b - a] = values[a:b]
            filled[k] += b - a
    if (filled != start[1:]).any():
        raise GeneError("a gene occurs less often than before", mend="leave the sections alone meanwhile")
    return {n: float(np.median(held[start[k] : start[k + 1]])) for n, k in number.items()}
