"""Rank tokens: a location's genes in descending order of expression relative to a corpus median.

Theodoris et al., Nature 618:616 (2023). A gene's value is count / n_counts · 10,000 / median, with n_counts the total
over genes that have an Ensembl id and median that of the gene's non-zero values in the pretraining corpus. Tokens are
the genes with a count, largest value first, cut to the model's length; the 30M models have no special tokens and pad
with 0. Equal values are ordered by token id, so the sequence never depends on the order of a section's columns.
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
from triglyph.genes.ids import ensembl_stem, genes_of

PAD = 0
TARGET_SUM = 1e4
_SPECIAL = ("<pad>", "<mask>", "<cls>", "<eos>")


class RankTokens(NamedTuple):
    """Token sequences of n locations."""

    ids: NDArray[np.int64]
    """(n, length), padded with 0 at the end; length is that of the longest, at least 1"""
    lengths: NDArray[np.int64]
    """(n,); 0 for a location without any count of a known gene"""


class RankVocabulary:
    """Tokens and medians of genes, and how to name genes that come without an Ensembl id.

    Parameters
    ----------
    tokens
        Ensembl id -> token id. Special tokens (`<pad>`, `<mask>`) may be among them and are not genes.
    medians
        Ensembl id -> non-zero median in the pretraining corpus.
    symbols
        Symbol -> Ensembl id, for sections that have no ids; may be empty.
    """

    def __init__(
        self, tokens: Mapping[str, int], medians: Mapping[str, float], symbols: Mapping[str, str] | None = None
    ) -> None:
        self.tokens = {k: int(v) for k, v in tokens.items() if k not in _SPECIAL and k in medians}
        self.medians = {k: float(medians[k]) for k in self.tokens}
        self.symbols = {k: v for k, v in (symbols or {}).items() if v in self.tokens}
        if not self.tokens:
            raise GeneError("the token dictionary and the median dictionary share no gene", mend="check both files")
        bad = sorted(k for k, m in self.medians.items() if not (np.isfinite(m) and m > 0))
        if bad:
            raise GeneError(f"medians that are not positive: {', '.join(bad[:5])}", mend="check the median dictionary")
        if min(self.tokens.values()) <= PAD or len(set(self.tokens.values())) < len(self.tokens):
            raise GeneError("token ids must be positive and distinct", mend="check the token dictionary")

    @classmethod
    def read(cls, tokens: Path, medians: Path, symbols: Path | None = None) -> RankVocabulary:
        """From JSON files, or the published pickles (which are never executed)."""
        return cls(read_dictionary(tokens), read_dictionary(medians), read_dictionary(symbols) if symbols else None)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads, JSON-serialisable."""
        return {"tokens": self.tokens, "medians": self.medians, "symbols": self.symbols}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RankVocabulary:
        """The inverse of `to_json`."""
        return cls(value["tokens"], value["medians"], value["symbols"])

    @property
    def size(self) -> int:
        """One more than the largest token id."""
        return max(self.tokens.values()) + 1

    def ids(self, symbols: Sequence[str], ensembl_ids: Sequence[str]) -> list[str]:
        """Ensembl ids of a section's columns: their own, else by symbol, else ""."""
        return [g.ensembl_id or ensembl_stem(self.symbols.get(g.symbol, "")) for g in genes_of(symbols, ensembl_ids)]

    def known(self, symbols: Sequence[str], ensembl_ids: Sequence[str], measured: NDArray[np.bool_]) -> int:
        """How many measured columns have a token."""
        ids = self.ids(symbols, ensembl_ids)
        return sum(bool(m) and i in self.tokens for i, m in zip(ids, measured, strict=True))

    def values(
        self, counts: sp.csr_matrix, symbols: Sequence[str], ensembl_ids: Sequence[str], measured: NDArray[np.bool_]
    ) -> tuple[sp.csr_matrix, NDArray[np.int64]]:
        """Ranked values (n, k) and the token ids (k,) of their columns, in ascending order.

        Columns of one Ensembl id are added up. Columns that are not measured, or whose gene has no token, are left
        out; those with an Ensembl id still count towards n_counts.
        """
        ids = self.ids(symbols, ensembl_ids)
        mapped = np.array([bool(i) for i in ids]) & np.asarray(measured, dtype=bool)
        n_counts = np.asarray(counts @ mapped.astype(np.float64)).ravel()
        here = sorted({self.tokens[i] for i, m in zip(ids, mapped, strict=True) if m and i in self.tokens})
        column_of = {token: k for k, token in enumerate(here)}
        rows = [j for j, i in enumerate(ids) if mapped[j] and i in self.tokens]
        columns = [column_of[self.tokens[ids[j]]] for j in rows]
        gather = sp.csr_matrix(
            (np.ones(len(rows)), (rows, columns)), shape=(counts.shape[1], len(here)), dtype=np.float64
        )
        median_of = {t: self.medians[i] for i, t in self.tokens.items()}
        medians = np.array([median_of[t] for t in here], dtype=np.float64)
        scale = np.divide(TARGET_SUM, n_counts, out=np.zeros_like(n_counts), where=n_counts > 0)
        values = sp.csr_matrix(counts @ gather)
        # Divided first, so that equal ratios are equal to the last bit; a row's scale is one factor for all of it.
        values.data = values.data / medians[values.indices]
        values = sp.csr_matrix(sp.diags_array(scale) @ values)
        values.eliminate_zeros()
        values.sort_indices()
        return values, np.array(here, dtype=np.int64)

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

        Parameters
        ----------
        counts
            (n, genes) raw counts.
        symbols, ensembl_ids, measured
            Of its columns.
        max_tokens
            Longest sequence; later tokens are cut.
        """
        values, tokens = self.values(counts, symbols, ensembl_ids, measured)
        rows = []
        for a, b in zip(values.indptr[:-1], values.indptr[1:], strict=True):
            # Columns ascend by token id, so a stable sort breaks ties by it.
            order = np.argsort(-values.data[a:b], kind="stable")[:max_tokens]
            rows.append(tokens[values.indices[a:b][order]])
        lengths = np.array([len(r) for r in rows], dtype=np.int64)
        ids = np.full((len(rows), max(1, int(lengths.max(initial=0)))), PAD, dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return RankTokens(ids, lengths)
