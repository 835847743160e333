"""What is predicted: genes chosen on the training side of a trial, on one stated scale.

`GeneTargets` is all that a predictor knows of what it is asked; `hest-benchmark` has targets of its own.

Which genes *can* be scored depends on every section's panel; which *are* is chosen on training locations alone. Genes
of a core panel, where there is one, are inputs and never targets.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.bench.contracts import SectionLike, Trial
from triglyph.bench.genes import common_genes
from triglyph.bench.parts import cut, whole_of
from triglyph.errors import GeneError
from triglyph.metrics.expression import log1p_cp10k, most_variable

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Scale = Literal["log1p-cp10k", "log1p-counts"]
SCALES = {
    "log1p-cp10k": "log1p of counts per 10,000 of the genes that all sections measure",
    "log1p-counts": "log1p of raw counts, depth and all",
}


class GeneTargets(abc.ABC):
    """Values of some genes at every location of a trial, and the counts that they are made of."""

    trial: Trial
    genes: tuple[str, ...]
    """What is predicted."""
    scale: Scale
    common: tuple[str, ...]
    """Genes that `counts` are of; `genes` are among them."""
    core: tuple[str, ...] = ()
    """Genes that are inputs, and no targets."""

    @abc.abstractmethod
    def __getitem__(self, section: SectionLike) -> tuple[Floats, Bools]:
        """(n, genes) on the scale, and which of the n locations are trained on and tested."""

    @abc.abstractmethod
    def counts(self, section: SectionLike) -> sp.csr_matrix:
        """(n, common) raw counts, for those who split them."""

    def core_values(self, section: SectionLike) -> Floats:
        """(n, core) log1p of raw counts of the core panel."""
        return np.log1p(self.counts(section)[:, [self.common.index(g) for g in self.core]].toarray())

    @cached_property
    def columns(self) -> NDArray[np.intp]:
        """Places of `genes` in `common`."""
        at = {g: i for i, g in enumerate(self.common)}
        return np.array([at[g] for g in self.genes], dtype=np.intp)

    @cached_property
    def training_mean(self) -> Floats:
        """(genes,) over the training locations."""
        pieces = [values[counted] for values, counted in (self[s] for s in self.trial.train)]
        return np.asarray(np.concatenate(pieces).mean(axis=0))


class Targets(GeneTargets):
    """Counts and targets of every section of a trial.

    Parameters
    ----------
    n_genes, min_detected
        The most variable of those seen in more than this share of training locations.
    scale
        See `SCALES`.
    core
        Symbols of a core panel; those that all sections measure are used.

    Raises
    ------
    GeneError
        No gene is common, fewer than two core genes are, or no gene is seen that often.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        n_genes: int,
        min_detected: float,
        scale: Scale = "log1p-cp10k",
        core: Sequence[str] = (),
    ) -> None:
        self.trial, self.scale = trial, scale
        wholes = {(whole := whole_of(s)).id: whole for s in (*trial.train, *trial.test)}
        self.common = common_genes(list(wholes.values()))
        inside = set(self.common)
        self.core = tuple(g for g in dict.fromkeys(core) if g in inside)
        if len(self.core) < len(set(core)):
            log.warning("%d of the %d core genes are measured in every section", len(self.core), len(set(core)))
        if core and len(self.core) < 2:
            raise GeneError(
                f"{len(self.core)} of {len(set(core))} core genes are measured in every section",
                mend="give another panel",
            )
        candidates = [g for g in self.common if g not in set(self.core)]
        self._sections = {name: _Counts(section, self.common, candidates) for name, section in wholes.items()}
        seen = [self._scaled(s) for s in trial.train]
        chosen = most_variable(sp.vstack(seen).tocsr(), n_genes=n_genes, min_detected=min_detected)
        self.genes = tuple(candidates[i] for i in chosen)
        self._columns = chosen

    def _scaled(self, section: SectionLike) -> sp.csr_matrix:
        """Training locations with counts x candidates, on the scale."""
        found = self._sections[whole_of(section).id]
        (rows,) = cut(section, np.arange(found.counts.shape[0]))
        return sp.csr_matrix(found.scaled(self.scale)[rows[found.depth[rows] > 0]])

    def __getitem__(self, section: SectionLike) -> tuple[Floats, Bools]:
        """(n, genes) on the scale, and which of the n locations have any count of a common gene."""
        found = self._sections[whole_of(section).id]
        (rows,) = cut(section, np.arange(found.counts.shape[0]))
        return found.scaled(self.scale)[rows][:, self._columns].toarray(), found.depth[rows] > 0

    def composition(self, section: SectionLike) -> Floats:
        """(n, genes) log1p of counts per 10,000 of *all* genes that the section measures."""
        found = self._sections[whole_of(section).id]
        (rows,) = cut(section, np.arange(found.counts.shape[0]))
        return log1p_cp10k(found.candidates[rows][:, self._columns], totals=found.totals[rows]).toarray()

    def totals(self, section: SectionLike) -> Floats:
        """(n,) counts over all genes that the section measures."""
        return cut(section, self._sections[whole_of(section).id].totals)[0]

    def counts(self, section: SectionLike) -> sp.csr_matrix:
        found = self._sections[whole_of(section).id]
        (rows,) = cut(section, np.arange(found.counts.shape[0]))
        return sp.csr_matrix(found.counts[rows])


class _Counts:
    """Counts of one whole section over the common genes."""

    def __init__(self, section: SectionLike, common: Sequence[str], candidates: Sequence[str]) -> None:
        raw, symbols, _, measured = section.expression()
        at = {symbol: i for i, symbol in enumerate(symbols)}
        columns = sp.csc_matrix(raw, dtype=np.float64)
        self.totals: Floats = np.asarray(columns[:, np.flatnonzero(measured)].sum(axis=1)).ravel()
        self.counts = sp.csr_matrix(columns[:, [at[g] for g in common]])
        self.candidates = sp.csr_matrix(columns[:, [at[g] for g in candidates]])
        self.depth: Floats = np.asarray(self.counts.sum(axis=1)).ravel()

    def scaled(self, scale: Scale) -> sp.csr_matrix:
        """(n, candidates)"""
        if scale == "log1p-cp10k":
            return log1p_cp10k(self.candidates, totals=self.depth)
        out = self.candidates.copy()
        out.data = np.log1p(out.data)
        return out
