"""Rank tokens: a location's genes in descending order of expression relative to what the gene usually has.

What it usually has, the gene's scale, is a number learnt from a corpus. Geneformer (Theodoris et al., Nature 618:616,
2023) takes the median of the gene's non-zero values of count / n_counts · 10,000, with n_counts the total over genes
that have an Ensembl id (`medians` recomputes it); Stamp (Han et al., ICLR 2026) the mean of its non-zero counts
(`means`). Tokens are the genes with a count, largest count / scale first, cut to the model's length and padded with 0.
Within a location n_counts and 10,000 are one factor and decide nothing. Equal values are ordered by token id: the
sequence never depends on the order of columns, nor on a way of sorting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.errors import GeneError
from triglyph.genes.dictionaries import read_dictionary
from triglyph.genes.ids import stems
from triglyph.genes.ranking import by_gene, top_genes

PAD = 0
_SPECIAL = ("<pad>", "<mask>", "<cls>", "<eos>")


class RankTokens(NamedTuple):
    """Token sequences of n locations."""

    ids: NDArray[np.int64]
    """(n, length), padded with 0 at the end; length is that of the longest, at least 1"""
    lengths: NDArray[np.int64]
    """(n,); 0 for a location without any count of a known gene"""


class RankVocabulary:
    """Tokens and scales of genes, and how to name genes that come without an Ensembl id.

    Parameters
    ----------
    tokens
        Ensembl id -> token id (symbol -> token id in a vocabulary of ours, where no section has ids). Special tokens
        (`<pad>`, `<mask>`) may be among them and are not genes.
    scales
        The same -> what counts of the gene are divided by: its non-zero median, or mean, in the corpus.
    symbols
        Symbol -> Ensembl id, for sections that have no ids; may be empty.
    """

    def __init__(
        self, tokens: Mapping[str, int], scales: Mapping[str, float], symbols: Mapping[str, str] | None = None
    ) -> None:
        self.tokens = {k: int(v) for k, v in tokens.items() if k not in _SPECIAL and k in scales}
        self.scales = {k: float(scales[k]) for k in self.tokens}
        self.symbols = {k: v for k, v in (symbols or {}).items() if v in self.tokens}
        if not self.tokens:
            raise GeneError("the dictionaries of tokens and of scales share no gene", mend="check both files")
        bad = sorted(k for k, m in self.scales.items() if not (np.isfinite(m) and m > 0))
        if bad:
            raise GeneError(f"scales that are not positive: {', '.join(bad[:5])}", mend="check that dictionary")
        if min(self.tokens.values()) <= PAD or len(set(self.tokens.values())) < len(self.tokens):
            raise GeneError("token ids must be positive and distinct", mend="check the token dictionary")

    @classmethod
    def read(cls, tokens: Path, scales: Path, symbols: Path | None = None) -> RankVocabulary:
        """From JSON files, or the published pickles (which are never executed)."""
        return cls(read_dictionary(tokens), read_dictionary(scales), read_dictionary(symbols) if symbols else None)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads, JSON-serialisable."""
        return {"tokens": self.tokens, "scales": self.scales, "symbols": self.symbols}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RankVocabulary:
        """The inverse of `to_json`."""
        return cls(value["tokens"], value["scales"], value["symbols"])

    @property
    def size(self) -> int:
        """One more than the largest token id."""
        return max(self.tokens.values()) + 1

    def ids(self, symbols: Sequence[str], ensembl_ids: Sequence[str]) -> list[str]:
        """Names under which a section's columns are looked up: their Ensembl ids, else by symbol, else ""."""
        if len(symbols) != len(ensembl_ids):
            raise GeneError(f"{len(symbols)} symbols but {len(ensembl_ids)} Ensembl ids")
        return [
            stem or self.symbols.get(symbol.strip(), "") or (symbol.strip() if symbol.strip() in self.tokens else "")
            for symbol, stem in zip(symbols, stems(tuple(ensembl_ids)), strict=True)
        ]

    def known(self, symbols: Sequence[str], ensembl_ids: Sequence[str], measured: NDArray[np.bool_]) -> int:
        """How many measured columns have a token."""
        ids = self.ids(symbols, ensembl_ids)
        return sum(bool(m) and i in self.tokens for i, m in zip(ids, measured, strict=True))

    def encode(
        self,
        counts: sp.csr_matrix,
        symbols: Sequence[str],
        ensembl_ids: Sequence[str],
        measured: NDArray[np.bool_],
        *,
        max_tokens: int,
    ) -> RankTokens:
        """Token sequences of a section's locations.

        Columns of one gene are added up. Columns that are not measured, or whose gene has no token, are left out.

        Parameters
        ----------
        counts
            (n, genes) raw counts; a factor that is common to a location changes nothing.
        symbols, ensembl_ids, measured
            Of its columns.
        max_tokens
            Longest sequence; later tokens are cut.

        Raises
        ------
        GeneError
            A count is not a whole, non-negative number.
        """
        names = self.ids(symbols, ensembl_ids)
        token = np.array(
            [self.tokens.get(i, PAD) if m else PAD for i, m in zip(names, measured, strict=True)], dtype=np.int64
        )
        # Genes are numbered by token, so that ties between them are broken by it.
        here = np.unique(token[token != PAD])
        column_of = np.where(token == PAD, -1, np.searchsorted(here, token))
        scale_of = {t: self.scales[i] for i, t in self.tokens.items()}
        scales = np.array([scale_of[t] for t in here], dtype=np.float64)
        if np.count_nonzero(token) > len(here):
            counts, column_of = by_gene(counts, column_of, len(here)), np.arange(len(here))
        ids, lengths = top_genes(counts, column_of, scales, limit=max_tokens, names=here, pad=PAD)
        if not ids.shape[1]:
            ids = np.full((len(ids), 1), PAD, dtype=np.int64)
        return RankTokens(ids, lengths)
