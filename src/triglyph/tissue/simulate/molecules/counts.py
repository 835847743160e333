"""Molecules: what a site, a patient, a block and a section do to counts, and the counts of spots.

Counts of spot s and gene g are negative binomial around

    depth_s  x  share_sg,    share_s = (1 - a) normalised(sum over cells) + a (mean of the section)

each multiplied by exp(gene offsets of site, patient, block and section). Depth follows the RNA of the cells in the spot
to a power that a knob sets; at 0 depth says nothing about cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from triglyph.tissue.simulate.knobs.molecules import Molecules
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.molecules.expression import World
from triglyph.tissue.simulate.people import person
from triglyph.tissue.simulate.streams import stream

DEBRIS_RNA = 4.0
"""Relative RNA of a spot full of debris."""


@dataclass(frozen=True)
class Chemistry:
    """What is done to the counts of one section."""

    depth: float
    """Median counts a spot."""
    gene_offset: NDArray[np.float64]
    """(genes,) log; site, patient, block and section added up."""


def section_chemistry(config: Simulation, patient: int, section: int, n_genes: int) -> Chemistry:
    """Depth of a patient, and gene offsets of a section."""
    knobs, seed = config.molecules, config.seed
    rng = stream(seed, "chemistry", patient)
    depth = _depth(knobs, float(rng.random()))
    offset = knobs.patient_gene * rng.standard_normal(n_genes)
    site, block = person(config, patient).chemistry_site, config.block_of(patient, section)
    for spread, part, keys in (
        (knobs.site_gene, "chemistry site genes", (site,)),
        (knobs.block_gene, "block genes", (patient, block)),
        (knobs.section_gene, "section genes", (patient, section)),
    ):
        offset = offset + spread * stream(seed, part, *keys).standard_normal(n_genes)
    return Chemistry(depth, offset)


def _depth(knobs: Molecules, lot: float) -> float:
    """Depth at the quantile `lot` of patients: log-normal, given that it lies in the range."""
    if not knobs.patient_depth:
        return knobs.median_depth
    ends = np.log(np.array(knobs.depth_range) / knobs.median_depth) / knobs.patient_depth
    low, high = ndtr(ends)
    depth = knobs.median_depth * np.exp(knobs.patient_depth * ndtri(low + lot * (high - low)))
    # Only against rounding: nothing is heaped up at the ends.
    return float(np.clip(depth, *knobs.depth_range))


def expected_counts(
    config: Simulation, world: World, chemistry: Chemistry, content: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Expected counts of every location, before the noise of counting.

    Parameters
    ----------
    content
        (locations, genes) relative RNA that reaches a location.

    Returns
    -------
    NDArray
        (locations, genes)
    """
    knobs = config.molecules
    amount = content.sum(1)
    # A spot between cells still catches a little of its surroundings.
    floor = 0.05 * float(np.median(amount))
    mean = content.sum(0) / max(amount.sum(), 1e-12)
    share = (content + floor * mean) / (amount + floor)[:, None]
    share = ((1 - knobs.ambient) * share + knobs.ambient * mean) * np.exp(chemistry.gene_offset)
    share /= share.sum(1, keepdims=True)
    amount = amount + floor
    depth = chemistry.depth * (amount / np.median(amount)) ** knobs.depth_per_cells
    depth = depth * np.exp(knobs.depth_noise * rng.standard_normal(len(amount)))
    return np.asarray(depth[:, None] * share)


def draw_counts(config: Simulation, expected: NDArray[np.float64], rng: np.random.Generator) -> sp.csr_matrix:
    """Negative-binomial counts around `expected`, (locations, genes), int32."""
    dispersion = config.molecules.dispersion
    rate = rng.gamma(1 / dispersion, dispersion * expected) if dispersion else expected
    return sp.csr_matrix(rng.poisson(rate).astype(np.int32))
