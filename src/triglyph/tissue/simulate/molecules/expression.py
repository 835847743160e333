"""Expression of cells: a profile per type, programmes that bend it, niches that call programmes up.

The relative RNA of gene g in a cell of type k is

    profile_kg  x  RNA_k  x  exp(sum over states of value x loading + sum over niches of share x loading)

A patient has its own world: profiles that deviate (tumours most, being clones) and, for a stated share of the variance,
programmes that move other genes than they do in other patients. That part of a patient no other patient can teach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triglyph.tissue.simulate.anatomy.tissue import Cells
from triglyph.tissue.simulate.knobs.names import CELL_TYPES
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.knobs.states import STATES
from triglyph.tissue.simulate.molecules.programs import (
    HOUSEKEEPING,
    MARKERS,
    NECROSIS,
    NICHES,
    PROGRAMMES,
    gene_symbols,
)
from triglyph.tissue.simulate.streams import stream

RNA = dict(zip(CELL_TYPES, (2.6, 1.4, 0.7, 0.45, 0.5, 1.0, 0.7, 1.4), strict=True))
"""Relative RNA content of a cell of each type."""
_FILLER_LOADING = 0.8
"""Standard deviation of a filler gene's loading, relative to a named gene's."""
_CLONE = 2.0
"""How much more than others tumours deviate between patients."""
STATE_LIMIT = 2.5


@dataclass(frozen=True)
class World:
    """What cells express."""

    symbols: tuple[str, ...]
    profile: NDArray[np.float64]
    """(types, genes), rows sum to 1."""
    loading: NDArray[np.float64]
    """(types, states, genes) log change per unit of state, the dial's strength included."""
    niche: NDArray[np.float64]
    """(niches, genes) log change where all neighbours are of the type that calls the programme up."""
    debris: NDArray[np.float64]
    """(genes,) profile of necrotic debris, sums to 1."""


def build_world(config: Simulation, patient: int | None = None) -> World:
    """What cells express in everybody (`patient` None), or in one patient.

    Parameters
    ----------
    config
        The simulated world.
    patient
        Index of the patient whose own deviations are added.
    """
    knobs, symbols = config.molecules, gene_symbols(config.molecules.filler_genes)
    index = _Index(symbols)
    rng = stream(config.seed, "programmes")
    base = rng.normal(0.0, knobs.base_spread, len(symbols))
    base[index(HOUSEKEEPING)] += 1.6
    logs = base + knobs.type_noise * rng.standard_normal((len(CELL_TYPES), len(symbols)))
    for kind, name in enumerate(CELL_TYPES):
        markers = index(MARKERS[name])
        logs[kind, markers] += knobs.marker * rng.uniform(0.6, 1.4, len(markers))
    loading = _loadings(config, index, stream(config.seed, "loadings"))
    for state, (types, text) in PROGRAMMES.items():
        if loading[:, STATES.index(state)].any():
            rows = np.array([CELL_TYPES.index(name) for name in types])
            logs[np.ix_(rows, index(text))] += 0.5
    if patient is not None:
        rng = stream(config.seed, "clone", patient)
        spread = np.where(np.array(CELL_TYPES) == "tumour", _CLONE, 1.0) * knobs.patient_profile
        logs = logs + spread[:, None] * rng.standard_normal(logs.shape)
        loading = _with_private(config, loading, stream(config.seed, "private loadings", patient))
    niche = np.zeros((len(NICHES), len(symbols)))
    rng = stream(config.seed, "niches")
    for row, (_, _, text) in zip(niche, NICHES.values(), strict=True):
        row[index(text)] = knobs.niche * rng.uniform(0.7, 1.3, len(text.split()))
    debris = base.copy()
    debris[index(NECROSIS)] += knobs.marker * 1.2
    return World(symbols, _shares(logs), loading, niche, _shares(debris))


def expected_of_cells(
    config: Simulation,
    world: World,
    cells: Cells,
    rna: NDArray[np.float64],
    neighbours: NDArray[np.float64],
    chosen: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Relative RNA of every gene in the cells `chosen`.

    Parameters
    ----------
    cells
        All cells of a section.
    rna
        (cells,) relative RNA content, as `rna_content` gives it.
    neighbours
        (cells, types) share of each type among a cell's neighbours, as `surroundings.neighbour_shares` gives it.
    chosen
        (n,) indices of the cells that are asked for.

    Returns
    -------
    NDArray
        (n, genes), a row sums to about the cell's `rna`.
    """
    kinds = cells.kind[chosen]
    states = np.clip(cells.states[chosen], -STATE_LIMIT, STATE_LIMIT).astype(np.float32)
    expected = np.empty((len(chosen), len(world.symbols)), dtype=np.float32)
    for kind, name in enumerate(CELL_TYPES):
        mine = np.flatnonzero(kinds == kind)
        bend = states[mine] @ world.loading[kind].astype(np.float32)
        for row, (receiver, caller, _) in zip(world.niche, NICHES.values(), strict=True):
            if receiver == name and row.any():
                near = neighbours[chosen[mine], CELL_TYPES.index(caller)]
                bend += np.outer(near, row).astype(np.float32)
        np.exp(bend, out=bend)
        bend *= world.profile[kind].astype(np.float32)
        bend *= rna[chosen[mine], None].astype(np.float32)
        expected[mine] = bend
    return expected


def rna_content(
    config: Simulation, cells: Cells, patches: NDArray[np.floating], rng: np.random.Generator
) -> NDArray[np.float64]:
    """(cells,) relative RNA: by type, times the cell's own noise, times what its patch of tissue yields.

    Parameters
    ----------
    patches
        (cells,) value of the field of sub-spot patches at each cell, about N(0, 1).
    """
    knobs = config.molecules
    rna = np.array([RNA[name] for name in CELL_TYPES])[cells.kind]
    rna = rna * np.exp(knobs.cell_noise * rng.standard_normal(len(cells)))
    return np.asarray(rna * np.exp(knobs.subspot * patches.astype(np.float64) - knobs.subspot**2 / 2))


class _Index:
    """Positions of genes that a text names."""

    def __init__(self, symbols: tuple[str, ...]) -> None:
        self._position = {symbol: i for i, symbol in enumerate(symbols)}
        self.filler = np.array([s.startswith("SIM") and s[3:].isdigit() for s in symbols])

    def __call__(self, text: str) -> NDArray[np.int64]:
        return np.array([self._position[symbol] for symbol in text.split()])


def _loadings(config: Simulation, index: _Index, rng: np.random.Generator) -> NDArray[np.float64]:
    """Loadings common to all patients: the programme's named genes, and filler genes by chance."""
    knobs = config.molecules
    loading = np.zeros((len(CELL_TYPES), len(STATES), len(index.filler)))
    for s, state in enumerate(STATES):
        if state not in PROGRAMMES:
            continue
        types, text = PROGRAMMES[state]
        genes, strength = index(text), knobs.state * config.dial.strength(state)[1]
        member = index.filler & (rng.random(len(index.filler)) < knobs.filler_in_programme)
        filler = np.where(member, _FILLER_LOADING * rng.standard_normal(len(member)), 0.0)
        for name in types:
            own = filler.copy()
            own[genes] = rng.uniform(0.7, 1.3, len(genes))
            loading[CELL_TYPES.index(name), s] = strength * own
    return loading


def _with_private(config: Simulation, loading: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Loadings of which `Molecules.private` of the variance is on genes that the patient alone ties to the state."""
    private = config.molecules.private
    mixed = np.sqrt(1 - private) * loading
    for s in range(len(STATES)):
        # One permutation for all types: a patient's programme is the same programme in each of them.
        order, sign = rng.permutation(loading.shape[2]), rng.choice([-1.0, 1.0], loading.shape[2])
        mixed[:, s] += np.sqrt(private) * sign * loading[:, s, order]
    return mixed


def _shares(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.exp(logs)
    return np.asarray(values / values.sum(-1, keepdims=True))
