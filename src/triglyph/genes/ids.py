"""Gene identity across panels: Ensembl stable ids where both sides have them, symbols otherwise.

Symbols change with annotation releases and differ between species only by case, so they are compared as written;
Ensembl ids are compared without their version (`ENSG00000141510.18` is `ENSG00000141510`). A gene is unknown to a
section, not zero in it, when its platform did not look for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.cards import Frozen
from triglyph.errors import GeneError

_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(?:\.\d+)?(?:_PAR_Y)?")


def ensembl_stem(gene_id: str) -> str:
    """An Ensembl gene id without its version; "" if `gene_id` is not one."""
    found = _ENSEMBL.fullmatch(gene_id.strip())
    return found.group(1) if found else ""


@lru_cache(maxsize=16)
def stems(gene_ids: tuple[str, ...]) -> tuple[str, ...]:
    """`ensembl_stem` of each; remembered, since a section asks for its own again with every batch."""
    return tuple(map(ensembl_stem, gene_ids))


class Gene(NamedTuple):
    """One gene: its symbol, and its Ensembl id without version ("" where unknown)."""

    symbol: str
    ensembl_id: str = ""

    @property
    def key(self) -> str:
        """What names the gene in sorted lists: the Ensembl id, or the symbol where there is none."""
        return self.ensembl_id or self.symbol


def genes_of(symbols: Sequence[str], ensembl_ids: Sequence[str]) -> tuple[Gene, ...]:
    """The genes of a section's columns."""
    if len(symbols) != len(ensembl_ids):
        raise GeneError(f"{len(symbols)} symbols but {len(ensembl_ids)} Ensembl ids")
    return tuple(Gene(s.strip(), ensembl_stem(e)) for s, e in zip(symbols, ensembl_ids, strict=True))


class Selection(NamedTuple):
    """How the columns of a section become the genes of a vocabulary."""

    matrix: sp.csr_matrix
    """(section genes, vocabulary genes), 1 where a measured column belongs to a gene: `counts @ matrix` are the
    vocabulary's counts. Columns of one gene add up."""
    measured: NDArray[np.bool_]
    """(vocabulary genes,), False where the section holds no measured column of a gene"""


class GeneVocabulary(Frozen):
    """An ordered list of genes that a model reads or predicts."""

    symbols: tuple[str, ...]
    ensembl_ids: tuple[str, ...]

    @classmethod
    def of(cls, genes: Sequence[Gene]) -> GeneVocabulary:
        """The vocabulary of `genes`, in their order."""
        return cls(symbols=tuple(g.symbol for g in genes), ensembl_ids=tuple(g.ensembl_id for g in genes))

    def __len__(self) -> int:
        return len(self.symbols)

    def select(
        self, symbols: Sequence[str], ensembl_ids: Sequence[str], measured: NDArray[np.bool_] | None = None
    ) -> Selection:
        """Find this vocabulary's genes among a section's columns, whatever their order.

        Parameters
        ----------
        symbols, ensembl_ids
            Of the section's columns; ids may be "".
        measured
            (columns,), False where the platform did not look; None means all.
        """
        by_id: dict[str, int] = {}
        by_symbol: dict[str, int] = {}
        for i, gene in enumerate(genes_of(self.symbols, self.ensembl_ids)):
            if gene.ensembl_id:
                by_id.setdefault(gene.ensembl_id, i)
            by_symbol.setdefault(gene.symbol, i)
        rows, columns = [], []
        for j, gene in enumerate(genes_of(symbols, ensembl_ids)):
            if measured is not None and not measured[j]:
                continue
            found = by_id.get(gene.ensembl_id) if gene.ensembl_id else None
            if found is None:
                found = by_symbol.get(gene.symbol)
                # One symbol, two Ensembl ids: two genes.
                if found is not None and gene.ensembl_id and ensembl_stem(self.ensembl_ids[found]):
                    found = None
            if found is not None:
                rows.append(j)
                columns.append(found)
        matrix = sp.csr_matrix(
            (np.ones(len(rows), dtype=np.float64), (rows, columns)), shape=(len(symbols), len(self)), dtype=np.float64
        )
        there = np.zeros(len(self), dtype=bool)
        there[columns] = True
        return Selection(matrix, there)
