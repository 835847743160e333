"""Molecules: profiles, depth, offsets and the noise of counting, each against its known value."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from triglyph.tissue.simulate.anatomy.tissue import Cells
from triglyph.tissue.simulate.knobs.names import CELL_TYPES
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.knobs.states import STATES
from triglyph.tissue.simulate.molecules.counts import draw_counts, expected_counts, section_chemistry
from triglyph.tissue.simulate.molecules.expression import RNA, World, build_world, expected_of_cells
from triglyph.tissue.simulate.molecules.programs import MARKERS, NICHES, PROGRAMMES
from triglyph.tissue.simulate.molecules.surroundings import neighbour_shares, surrounding_shares
from triglyph.tissue.simulate.presets import preset

TINY = preset("tiny")


def tiny(**knobs: float) -> Simulation:
    return TINY.model_copy(update={"molecules": TINY.molecules.model_copy(update=knobs)})


def cells_of(kinds: list[int] | NDArray[np.int64], xy_um: NDArray[np.float64] | None = None, **states: float) -> Cells:
    n = len(kinds)
    local = np.tile([states.get(name.replace(" ", "_"), 0.0) for name in STATES], (n, 1))
    places = np.zeros((n, 2)) if xy_um is None else xy_um
    return Cells(places, np.asarray(kinds), np.ones(n), np.ones(n), np.zeros(n), local)


def one_cell(config: Simulation, kind: str, world: World | None = None, near: str = "", **states: float):
    """Relative RNA of one cell of mean content, all of whose neighbours are of type `near`."""
    cells = cells_of([CELL_TYPES.index(kind)], **states)
    neighbours = np.array([[float(name == near) for name in CELL_TYPES]])
    world = build_world(config) if world is None else world
    rna = np.array([RNA[kind]])
    return world, expected_of_cells(config, world, cells, rna, neighbours, np.array([0]))[0]


def spots(config: Simulation, cells_per_spot: NDArray[np.int64], patient: int = 0) -> NDArray[np.int64]:
    """Counts of spots of tumour cells."""
    world, cell = one_cell(config, "tumour")
    content = cells_per_spot[:, None] * cell
    chemistry = section_chemistry(config, patient, 0, len(world.symbols))
    rng = np.random.default_rng(0)
    return draw_counts(config, expected_counts(config, world, chemistry, content, rng), rng).toarray()


@pytest.mark.parametrize("kind", range(len(CELL_TYPES)))
def test_each_type_expresses_its_own_markers_most(kind):
    world = build_world(TINY)
    own = {name: set(text.split()) for name, text in MARKERS.items()}
    mine = own[CELL_TYPES[kind]] - set().union(*(v for k, v in own.items() if k != CELL_TYPES[kind]))
    index = [world.symbols.index(symbol) for symbol in sorted(mine)]
    assert world.profile[:, index].mean(1).argmax() == kind


def test_a_cell_at_rest_holds_its_profile_times_its_rna():
    world, cell = one_cell(TINY, "macrophage")
    np.testing.assert_allclose(cell, RNA["macrophage"] * world.profile[CELL_TYPES.index("macrophage")])


@pytest.mark.parametrize("state", ["proliferation", "oestrogen response"])
def test_a_state_moves_the_genes_of_its_programme_and_no_other(state):
    world, rest = one_cell(TINY, "tumour")
    _, moved = one_cell(TINY, "tumour", **{state.replace(" ", "_"): 1.0})
    genes = [world.symbols.index(symbol) for symbol in PROGRAMMES[state][1].split()]
    fold = np.log(moved / rest)
    assert (fold[genes] > 0.5 * TINY.molecules.state).all()
    assert not np.delete(fold, genes).any()


@pytest.mark.parametrize("niche", NICHES)
def test_neighbours_call_up_a_niche_in_the_type_that_answers_and_in_no_other(niche):
    receiver, caller, text = NICHES[niche]
    config = tiny(niche=2.0)
    world = build_world(config)
    genes = [world.symbols.index(symbol) for symbol in text.split()]
    _, alone = one_cell(config, receiver, world)
    _, called = one_cell(config, receiver, world, near=caller)
    np.testing.assert_allclose(np.log(called / alone)[genes], 2.0, atol=0.65)
    deaf = next(name for name in CELL_TYPES if name not in {r for r, _, _ in NICHES.values()})
    assert np.array_equal(one_cell(config, deaf, world)[1], one_cell(config, deaf, world, near=caller)[1])
    assert np.array_equal(one_cell(TINY, receiver)[1], one_cell(TINY, receiver, near=caller)[1])


def test_neighbours_are_counted_as_brute_force_counts_them_and_a_cell_is_not_its_own():
    rng = np.random.default_rng(0)
    cells = cells_of(rng.integers(0, len(CELL_TYPES), 300), rng.uniform(0, 400, (300, 2)))
    far = np.hypot(*(cells.xy_um[:, None] - cells.xy_um[None]).transpose(2, 0, 1))
    kinds = np.eye(len(CELL_TYPES))[cells.kind]
    near = ((far <= 80) & (far > 0)) @ kinds
    chosen = np.arange(0, 300, 7)
    expected = near / np.maximum(near.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(neighbour_shares(cells, 80, chosen)[chosen], expected[chosen])
    ring = ((far <= 80) & (far > 30)) @ kinds
    shares = ring / np.maximum(ring.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(surrounding_shares(cells, cells.xy_um, 30, 80), shares)


def test_depth_follows_cells_and_the_knob_removes_the_tie():
    number = np.tile([2, 4, 8, 16], 200)
    tied, free = (spots(tiny(depth_per_cells=power), number).sum(1) for power in (0.7, 0.0))
    assert np.corrcoef(np.log(tied), np.log(number))[0, 1] > 0.8
    assert abs(np.corrcoef(np.log(free), np.log(number))[0, 1]) < 0.1


def test_counts_are_overdispersed_as_stated():
    counts = spots(tiny(dispersion=0.3, depth_noise=0.0), np.full(4000, 6))
    mean, variance = counts.mean(0), counts.var(0)
    high = mean > 5
    assert np.median((variance[high] - mean[high]) / mean[high] ** 2) == pytest.approx(0.3, rel=0.1)


def test_patient_offsets_shift_genes_and_zero_removes_them():
    def spread(sd: float) -> float:
        config = tiny(patient_gene=sd, patient_depth=0.0, depth_noise=0.0, dispersion=0.0)
        a, b = (spots(config, np.full(500, 6), patient=p).mean(0) for p in (0, 1))
        high = (a > 3) & (b > 3)
        return float(np.std(np.log(a[high] / b[high])))

    assert spread(0.2) == pytest.approx(0.2 * np.sqrt(2), rel=0.25)
    assert spread(0.0) < 0.05


def test_the_median_depth_is_the_patients():
    depth = section_chemistry(TINY, 0, 0, len(build_world(TINY).symbols)).depth
    assert np.median(spots(TINY, np.full(800, 6)).sum(1)) == pytest.approx(depth, rel=0.05)


def test_the_ambient_share_is_the_sections_mean_profile():
    world = build_world(TINY)
    content = np.repeat(np.eye(2), 50, axis=0) @ world.profile[:2]
    chemistry = section_chemistry(tiny(patient_gene=0.0), 0, 0, len(world.symbols))

    def distance(ambient: float) -> float:
        config = tiny(ambient=ambient, patient_gene=0.0, depth_noise=0.0)
        expected = expected_counts(config, world, chemistry, content, np.random.default_rng(0))
        share = expected / expected.sum(1, keepdims=True)
        return float(np.abs(share[0] - share[-1]).sum())

    assert distance(0.5) == pytest.approx(0.5 * distance(0.0), rel=1e-6)
