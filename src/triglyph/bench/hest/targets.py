"""What `hest-benchmark` predicts: log1p of raw counts, at every location whether it has counts or not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from triglyph.bench.contracts import SectionLike, Trial
from triglyph.bench.expression.targets import Bools, Floats, GeneTargets, Scale
from triglyph.bench.hest.genes import counts_of
from triglyph.bench.parts import cut, whole_of


class HestTargets(GeneTargets):
    """Genes that were chosen elsewhere, in every section of a trial.

    Raises
    ------
    GeneError
        A section does not measure all of them.
    """

    scale: Scale = "log1p-counts"

    def __init__(self, trial: Trial, genes: Sequence[str]) -> None:
        self.trial, self.genes = trial, tuple(genes)
        self.common = self.genes
        wholes = {(whole := whole_of(s)).id: whole for s in (*trial.train, *trial.test)}
        self._counts = {name: counts_of(whole, self.genes) for name, whole in wholes.items()}

    def __getitem__(self, section: SectionLike) -> tuple[Floats, Bools]:
        values = np.log1p(self.counts(section).toarray().astype(np.float64))
        return values, np.ones(len(values), dtype=bool)

    def counts(self, section: SectionLike) -> sp.csr_matrix:
        found = self._counts[whole_of(section).id]
        (rows,) = cut(section, np.arange(found.shape[0]))
        return sp.csr_matrix(found[rows])
