"""Genes as HEST-Benchmark chooses them, and their raw counts.

Kept are genes seen in at least a share of the locations of every section, and no control probes; of these the most
variable of all sections' log1p counts stacked, by scanpy's `highly_variable_genes` (its `seurat` flavour; Satija et
al., Nat Biotechnol 33:495, 2015). There is no normalisation by depth.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.bench.contracts import SectionLike
from triglyph.errors import GeneError
from triglyph.storage import read_json

N_BINS = 20
CONTROLS = ("BLANK", "Control")
"""Parts of names of what a panel counts beside genes."""

log = logging.getLogger(__name__)


def read_genes(path: Path) -> tuple[str, ...]:
    """The list in a file `{"genes": [...]}`, such as HEST's `var_50genes.json`.

    Raises
    ------
    StorageError
        The file is missing or is not JSON.
    GeneError
        It holds something else.
    """
    found: Any = read_json(path)
    genes = found.get("genes") if isinstance(found, dict) else None
    if not isinstance(genes, list) or not genes or not all(isinstance(g, str) for g in genes):
        raise GeneError("not a list of genes", where=path, mend=f"it should hold {json.dumps({'genes': ['EPCAM']})}")
    return tuple(genes)


def counts_of(section: SectionLike, genes: Sequence[str]) -> sp.csr_matrix:
    """(n, genes) raw counts.

    Raises
    ------
    GeneError
        The section does not measure all of them.
    """
    counts, symbols, _, measured = section.expression()
    at = {s: i for i, (s, m) in enumerate(zip(symbols, measured, strict=True)) if m}
    if missing := [g for g in genes if g not in at]:
        raise GeneError(
            f"genes that the section does not measure: {', '.join(missing[:10])}"
            + (f" and {len(missing) - 10} more" if len(missing) > 10 else ""),
            where=f"section {section.id}",
            mend="give genes that all sections measure, or let them be chosen",
        )
    return sp.csr_matrix(sp.csc_matrix(counts)[:, [at[g] for g in genes]])


def variable_genes(
    sections: Sequence[SectionLike], *, n_genes: int, min_detected: float, among: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The `n_genes` most variable genes of all locations of `sections`, sorted by name.

    Parameters
    ----------
    min_detected
        Share of the locations of every section in which a gene must have a count.
    among
        The only candidates; None allows all.

    Returns
    -------
    Fewer than `n_genes` where there are no more candidates; that is logged.

    Raises
    ------
    GeneError
        No gene is seen that often in every section.
    """
    kept: set[str] | None = None if among is None else set(among)
    for section in sections:
        counts, symbols, _, measured = section.expression()
        seen = np.bincount(sp.csr_matrix(counts).indices, minlength=counts.shape[1])
        often = (seen >= math.ceil(min_detected * counts.shape[0])) & measured
        here = {s for s, keep in zip(symbols, often, strict=True) if keep}
        kept = here if kept is None else kept & here
    genes = sorted(g for g in kept or () if not any(word in g for word in CONTROLS))
    if not genes:
        raise GeneError(
            f"no gene is seen in {min_detected:.0%} of the locations of every section",
            where=", ".join(s.id for s in sections),
            mend="lower min_detected, or give the genes",
        )
    if len(genes) <= n_genes:
        if len(genes) < n_genes:
            log.warning("only %d genes are seen often enough, not %d", len(genes), n_genes)
        return tuple(genes)
    return _highly_variable(sections, genes, n_genes)


def _highly_variable(sections: Sequence[SectionLike], genes: list[str], n_genes: int) -> tuple[str, ...]:
    stacked = []
    for section in sections:
        counts, symbols, _, _ = section.expression()
        at = {s: i for i, s in enumerate(symbols)}
        stacked.append(sp.csc_matrix(counts, dtype=np.float64)[:, [at[g] for g in genes]])
    score = standardised_dispersion(sp.vstack(stacked).tocsr())
    # As in the reference: of more genes than asked for at the threshold, the first by name.
    return tuple(genes[i] for i in np.flatnonzero(score >= np.sort(score)[-n_genes])[:n_genes])


def standardised_dispersion(counts: sp.csr_matrix) -> NDArray[np.float64]:
    """(genes,) log of variance over mean of raw counts, z-scored among genes of like mean; 0 for a constant gene.

    The flavour takes log1p data and undoes the logarithm first, so that counts are what it is about. Genes are binned
    into `N_BINS` equal steps of log1p of their mean; a gene alone in its bin has 1.

    Parameters
    ----------
    counts
        (n, genes) with a count of every gene.
    """
    mean = np.asarray(counts.mean(axis=0)).ravel()
    square = np.asarray(counts.multiply(counts).mean(axis=0)).ravel()
    # Whether one divides by n or by n - 1 shifts every logarithm alike, and the z-scores not at all.
    variance = np.maximum(square - mean**2, 0.0)
    varies = variance > 1e-12 * mean**2
    dispersion = np.log(np.where(varies, variance, 1.0) / mean)
    x = np.log1p(mean)
    edges = np.linspace(x.min(), x.max(), N_BINS + 1)
    bins = np.clip(np.searchsorted(edges, x, side="left") - 1, 0, N_BINS - 1)
    score = np.zeros(len(mean))
    for one in np.unique(bins):
        members = np.flatnonzero((bins == one) & varies)
        if len(members) == 1:
            score[members] = 1.0
        elif len(members):
            of = dispersion[members]
            deviation = of.std(ddof=1)
            score[members] = (of - of.mean()) / deviation if deviation > 0 else 0.0
    return score
