"""Expression of a trial's sections on one scale over the genes that all of them measure, and genes chosen on training.

Which genes *can* be scored depends on the test sections' panels; which of those *are* is chosen on training alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.bench.contracts import SectionLike, Trial
from triglyph.bench.parts import Part, cut, whole_of
from triglyph.errors import GeneError
from triglyph.metrics.expression import log1p_cp10k, most_variable


def common_genes(sections: Sequence[SectionLike]) -> tuple[str, ...]:
    """Symbols measured in all sections, sorted.

    Raises
    ------
    GeneError
        There is none.
    """
    sets = []
    for section in sections:
        _, symbols, _, measured = section.expression()
        sets.append({s for s, m in zip(symbols, measured, strict=True) if m})
    common = sorted(set.intersection(*sets)) if sets else []
    if not common:
        raise GeneError(
            "the sections have no measured gene in common",
            where=", ".join(s.id for s in sections),
            mend="harmonise their gene symbols, or judge them apart",
        )
    return tuple(common)


def log_expression(section: SectionLike, genes: Sequence[str]) -> tuple[sp.csr_matrix, NDArray[np.bool_]]:
    """log1p of counts per 10,000 of these genes, (n, genes), and which of the n locations have any count of them."""
    counts, symbols, _, _ = section.expression()
    at = {symbol: i for i, symbol in enumerate(symbols)}
    chosen = sp.csr_matrix(sp.csc_matrix(counts)[:, [at[g] for g in genes]])
    return log1p_cp10k(chosen), np.asarray(chosen.sum(axis=1)).ravel() > 0


class TrialExpression:
    """Every section's log expression over the common genes, and the most variable ones of the training sections."""

    def __init__(self, trial: Trial, *, n_genes: int, min_detected: float) -> None:
        sections = {(whole := whole_of(s)).id: whole for s in (*trial.train, *trial.test)}
        self.common = common_genes(list(sections.values()))
        logged = {name: log_expression(section, self.common) for name, section in sections.items()}
        seen = [cut(s, *logged[whole_of(s).id]) for s in trial.train]
        training = sp.vstack([values[there] for values, there in seen]).tocsr()
        columns = most_variable(training, n_genes=n_genes, min_detected=min_detected)
        self.genes = tuple(self.common[i] for i in columns)
        self._values = {name: (values[:, columns].toarray(), there) for name, (values, there) in logged.items()}

    def __getitem__(self, section: SectionLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(n, chosen genes) and which locations have counts."""
        if isinstance(section, Part):
            values, there = cut(section, *self._values[section.whole.id])
            return values, there
        return self._values[section.id]
