"""The most variable genes of training sections, in one pass over them.

Values are log1p of counts per 10,000 of a location's total over measured genes. Only genes measured in every training
section are candidates, so that variance is never the variance of a panel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.errors import GeneError
from triglyph.genes.ids import Gene, genes_of

TARGET_SUM = 1e4


def library_size(counts: sp.csr_matrix, measured: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) total counts over measured genes."""
    return np.asarray(counts @ measured.astype(np.float64)).ravel()


def log1p_cp10k(counts: sp.csr_matrix, library: NDArray[np.float64]) -> sp.csr_matrix:
    """log1p(10,000 · counts / library), sparse; rows without counts stay zero."""
    scale = np.divide(TARGET_SUM, library, out=np.zeros_like(library), where=library > 0)
    scaled = sp.csr_matrix(sp.diags_array(scale) @ counts.astype(np.float64))
    scaled.data = np.log1p(scaled.data)
    return scaled


@dataclass(frozen=True)
class GeneStatistics:
    """Statistics of genes over all training locations; arrays are (genes,)."""

    genes: tuple[Gene, ...]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    """Of log1p CP10k, population variance."""
    share: NDArray[np.float64]
    """Of all counts, those of this gene: pooled over locations."""
    log_library_mean: float
    log_library_std: float
    n_locations: int

    def most_variable(self, n: int) -> NDArray[np.intp]:
        """Indices of the `n` most variable genes that vary at all, most variable first; ties by gene key."""
        keys = np.array([g.key for g in self.genes])
        order = np.lexsort((keys, -self.variance))
        return order[self.variance[order] > 0][:n]


class GeneMoments:
    """Adds up sections, whatever their panels and order of genes."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}  # key -> [sum, sum of squares, counts, sections]
        self._gene: dict[str, Gene] = {}
        self._sections = 0
        self._n = 0
        self._total = 0.0
        self._log_library = np.zeros(2)

    def add(
        self, counts: sp.csr_matrix, symbols: Sequence[str], ensembl_ids: Sequence[str], measured: NDArray[np.bool_]
    ) -> None:
        """Add one section: raw `counts` (n, genes), names and measured mask of its columns."""
        library = library_size(counts, measured)
        logs = log1p_cp10k(counts, library)
        columns = np.stack(
            [
                np.asarray(logs.sum(axis=0)).ravel(),
                np.asarray(logs.multiply(logs).sum(axis=0)).ravel(),
                np.asarray(counts.sum(axis=0), dtype=np.float64).ravel(),
                np.ones(counts.shape[1]),
            ],
            axis=1,
        )
        here: set[str] = set()
        for j, gene in enumerate(genes_of(symbols, ensembl_ids)):
            # A key twice in one section cannot be told apart here: its first column stands for it.
            if not measured[j] or gene.key in here:
                continue
            here.add(gene.key)
            self._gene.setdefault(gene.key, gene)
            self._sums[gene.key] = self._sums.get(gene.key, np.zeros(4)) + columns[j]
        self._sections += 1
        self._n += counts.shape[0]
        self._total += float(library.sum())
        log_library = np.log1p(library)
        self._log_library += [log_library.sum(), (log_library**2).sum()]

    def finish(self) -> GeneStatistics:
        """Statistics of the genes that every section measured, sorted by key.

        Raises
        ------
        GeneError
            No section was added, or no gene is common to all.
        """
        if self._n == 0:
            raise GeneError("no training location to choose genes from", mend="give training sections that have counts")
        keys = sorted(k for k, s in self._sums.items() if s[3] == self._sections)
        if not keys:
            raise GeneError(
                f"no gene is measured in all {self._sections} training sections",
                mend="check symbols and Ensembl ids, or train on sections of one panel",
            )
        sums = np.stack([self._sums[k] for k in keys])
        mean = sums[:, 0] / self._n
        variance = np.maximum(sums[:, 1] / self._n - mean**2, 0)
        # Rounding leaves about 1e-16 of the mean square in a gene that does not vary.
        variance[variance < 1e-12 * np.maximum(mean**2, 1e-300)] = 0
        log_mean = self._log_library[0] / self._n
        log_variance = max(self._log_library[1] / self._n - log_mean**2, 0.0)
        return GeneStatistics(
            genes=tuple(self._gene[k] for k in keys),
            mean=mean,
            variance=variance,
            share=sums[:, 2] / max(self._total, 1.0),
            log_library_mean=float(log_mean),
            log_library_std=float(np.sqrt(log_variance)),
            n_locations=self._n,
        )
