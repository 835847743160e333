"""Molecules: a profile per cell type, states that bend it, and counts of spots with depth and patient effects.

Counts of spot s and gene g are negative binomial around

    depth_s  x  share_sg,    share_s = (1 - a) normalised(sum over cells) + a (mean of the section)

each multiplied by exp(patient x gene offset). Depth follows the RNA of the cells in the spot to a power that a knob
sets; at 0 depth says nothing about cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.tissue.simulate.anatomy import Cells
from triglyph.tissue.simulate.presets import CELL_TYPES, STATES, Simulation
from triglyph.tissue.simulate.programs import HOUSEKEEPING, MARKERS, NECROSIS, PROGRAMMES, gene_symbols
from triglyph.tissue.simulate.streams import stream

# Relative RNA content of a cell of each type.
_RNA = dict(zip(CELL_TYPES, (1.6, 1.2, 0.8, 0.45, 0.5, 1.0, 0.8, 1.6), strict=True))
_DEBRIS_RNA = 0.5


@dataclass(frozen=True)
class Programmes:
    """What cells of each type express, the same for every patient."""

    symbols: tuple[str, ...]
    profile: NDArray[np.float64]
    """(types, genes), rows sum to 1."""
    loading: NDArray[np.float64]
    """(types, states, genes) log change per unit of state."""
    debris: NDArray[np.float64]
    """(genes,) profile of necrotic debris, sums to 1."""


@dataclass(frozen=True)
class Chemistry:
    """What a patient's samples do to counts."""

    depth: float
    """Median counts a spot."""
    gene_offset: NDArray[np.float64]
    """(genes,) log."""


def programmes(config: Simulation) -> Programmes:
    """Profiles and loadings of the simulated world."""
    rng, knobs, symbols = stream(config.seed, "programmes"), config.molecules, gene_symbols()
    position = {symbol: i for i, symbol in enumerate(symbols)}

    def index(text: str) -> NDArray[np.int64]:
        return np.array([position[symbol] for symbol in text.split()])

    base = rng.normal(0.0, 0.7, len(symbols))
    base[index(HOUSEKEEPING)] += 1.6
    logs = base + knobs.type_noise * rng.standard_normal((len(CELL_TYPES), len(symbols)))
    for kind, name in enumerate(CELL_TYPES):
        markers = index(MARKERS[name])
        logs[kind, markers] += knobs.marker * rng.uniform(0.6, 1.4, len(markers))
    loading = np.zeros((len(CELL_TYPES), len(STATES), len(symbols)))
    for s, state in enumerate(STATES):
        types, text = PROGRAMMES[state]
        genes = index(text)
        for name in types:
            loading[CELL_TYPES.index(name), s, genes] = knobs.state * rng.uniform(0.7, 1.3, len(genes))
            logs[CELL_TYPES.index(name), genes] += 0.5
    debris = base.copy()
    debris[index(NECROSIS)] += knobs.marker * 1.2
    return Programmes(symbols, _shares(logs), loading, _shares(debris))


def patient_chemistry(config: Simulation, patient: int) -> Chemistry:
    """Depth and gene offsets of a patient."""
    rng, knobs = stream(config.seed, "chemistry", patient), config.molecules
    depth = knobs.median_depth * float(np.exp(knobs.patient_depth * rng.standard_normal()))
    return Chemistry(depth, knobs.patient_gene * rng.standard_normal(len(gene_symbols())))


def count_molecules(
    config: Simulation,
    world: Programmes,
    chemistry: Chemistry,
    cells: Cells,
    membership: sp.csr_matrix,
    debris: NDArray[np.float64],
    rng: np.random.Generator,
) -> sp.csr_matrix:
    """Counts of every location.

    Parameters
    ----------
    membership
        (locations, cells), the share of a cell's transcripts that reach a location.
    debris
        (locations,) share of the location that is necrotic debris.

    Returns
    -------
    csr_matrix
        (locations, genes), int32.
    """
    knobs, n = config.molecules, membership.shape[0]
    rna = np.array([_RNA[name] for name in CELL_TYPES])[cells.kind]
    rna = rna * np.exp(knobs.cell_noise * rng.standard_normal(len(cells)))
    states = np.clip(cells.states, -2.5, 2.5)
    total = np.outer(_DEBRIS_RNA * 8 * debris, world.debris)
    for kind in range(len(CELL_TYPES)):
        mine = np.flatnonzero(cells.kind == kind)
        bend = np.einsum("cs,sg->cg", states[mine], world.loading[kind])
        expressed = world.profile[kind] * np.exp(bend) * rna[mine, None]
        total += membership[:, mine] @ expressed
    content = total.sum(1)
    # A spot between cells still catches a little of its surroundings.
    floor = 0.05 * float(np.median(content))
    mean = total.sum(0) / max(content.sum(), 1e-12)
    share = (total + floor * mean) / (content + floor)[:, None]
    share = (1 - knobs.ambient) * share + knobs.ambient * mean
    share = share * np.exp(chemistry.gene_offset)
    share /= share.sum(1, keepdims=True)
    content = content + floor
    depth = chemistry.depth * (content / np.median(content)) ** knobs.depth_per_cells
    depth = depth * np.exp(knobs.depth_noise * rng.standard_normal(n))
    rate = depth[:, None] * share
    if knobs.dispersion:
        rate = rng.gamma(1 / knobs.dispersion, knobs.dispersion * rate)
    return sp.csr_matrix(rng.poisson(rate).astype(np.int32))


def _shares(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.exp(logs)
    return values / values.sum(-1, keepdims=True)
