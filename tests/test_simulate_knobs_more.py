"""More knobs that do what they say, each beside its control: anatomy, blocks, frames, neighbourhoods and stain."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from triglyph.tissue.simulate.anatomy.tissue import Tissue
from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.knobs.states import STATES
from triglyph.tissue.simulate.molecules.expression import build_world
from triglyph.tissue.simulate.molecules.programs import NICHES
from triglyph.tissue.simulate.molecules.surroundings import surrounding_shares
from triglyph.tissue.simulate.people import person
from triglyph.tissue.simulate.picture.tints import tints
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.simulate.vendors.xenium_frame import PIXEL_UM, InstrumentFrame

SMALL = ("anatomy.side_um=900", "molecules.filler_genes=0", "people.absent=0")
STROMA = tuple(name for name in DOMAINS if name != "connective tissue")
"""Without these, connective tissue is alone: nothing but the knob makes density vary."""
IMMUNE = [CELL_TYPES.index(name) for name in ("T cell", "B cell", "macrophage")]


def world(name: str, *overrides: str, without: tuple[str, ...] = ()) -> Simulation:
    """A preset in which the mean share of some domains is 0."""
    config = preset(name, overrides=[*SMALL, *overrides])
    fractions = {**config.anatomy.fractions, **dict.fromkeys(without, 0.0)}
    return config.model_copy(update={"anatomy": config.anatomy.model_copy(update={"fractions": fractions})})


@cache
def specimen(
    *overrides: str, name: str = "visium", patient: int = 0, section: int = 0, without: tuple[str, ...] = ()
) -> Specimen:
    return Specimen(world(name, *overrides, without=without), patient, section)


def rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt((values**2).mean()))


# ---- anatomy


def unevenness(kinds: list[int], *overrides: str) -> float:
    """Variance over mean of the number of cells in squares of 100 µm: 1 where cells lie independently."""
    values = []
    for patient in range(2):
        tissue = specimen("anatomy.tissue_fraction=1", *overrides, patient=patient, without=STROMA).tissue
        xy = tissue.cells.xy_um[np.isin(tissue.cells.kind, kinds)]
        number, _, _ = np.histogram2d(*xy.T, bins=7, range=[[100, 800], [100, 800]])
        values.append(number.var() / number.mean())
    return float(np.mean(values))


def test_infiltration_gathers_immune_cells_and_leaves_others_alone():
    fibroblasts = [CELL_TYPES.index("fibroblast")]
    flat = ("anatomy.cellularity=0", "dial.shared=0")
    none, much = (f"anatomy.infiltration={x}" for x in (0, 1.2))
    assert unevenness(IMMUNE, much, *flat) > 2.5 * unevenness(IMMUNE, none, *flat)
    assert unevenness(fibroblasts, much, *flat) == pytest.approx(unevenness(fibroblasts, none, *flat), rel=0.3)


def test_cellularity_gathers_cells_and_leaves_domains_alone():
    everything, flat = list(range(len(CELL_TYPES))), ("anatomy.infiltration=0", "dial.shared=0")
    none, much = (f"anatomy.cellularity={x}" for x in (0, 0.8))
    assert unevenness(everything, much, *flat) > 2.5 * unevenness(everything, none, *flat)
    assert np.array_equal(specimen(none).tissue.domains, specimen(much).tissue.domains)


def test_a_stronger_dial_gathers_immune_cells_and_makes_no_more_of_them():
    def number(dial: float) -> float:
        made = [specimen(f"dial.shared={dial}", patient=p).tissue.cells.kind for p in range(5)]
        return float(np.mean([np.isin(kind, IMMUNE).sum() for kind in made]))

    assert number(2.5) == pytest.approx(number(1.0), rel=0.35)
    assert unevenness(IMMUNE, "dial.shared=2.5") > 1.5 * unevenness(IMMUNE, "dial.shared=1")


@pytest.mark.parametrize("change", [0.0, 0.3, 1.0])
def test_section_change_is_how_far_adjacent_sections_differ(change):
    first, second = (specimen(f"anatomy.section_change={change}", section=s).tissue for s in range(2))
    alike = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(first.states, second.states, strict=True)])
    assert alike == pytest.approx(1 - change**2, abs=0.12)
    assert np.array_equal(first.domains, second.domains) == (change == 0)
    # Whatever the fields do, no cell is in both sections.
    assert not set(map(tuple, first.cells.xy_um)) & set(map(tuple, second.cells.xy_um))


def test_a_domain_of_mean_share_0_is_nowhere():
    gone = ("invasive cancer", "necrosis")
    absent = [DOMAINS.index(name) for name in gone]
    for patient in range(20):
        shares = person(world("visium", without=gone), patient).shares(1)
        assert shares.sum() == pytest.approx(1)
        assert np.flatnonzero(shares == 0).tolist() == absent
    assert not specimen(without=gone).tissue.domains[absent].any()
    # The control: a small mean share is no absence.
    assert person(world("visium", "anatomy.fractions.necrosis=0.001"), 0).shares().all()


# ---- people


def test_block_change_is_how_far_blocks_of_a_patient_differ():
    def alike(change: float) -> float:
        config = preset("visium", overrides=[*SMALL, f"people.block_change={change}"])
        first, second = (np.array([person(config, p).shares(block) for p in range(200)]) for block in range(2))
        return float(np.corrcoef((first - first.mean(0)).ravel(), (second - second.mean(0)).ravel())[0, 1])

    assert alike(0.0) == pytest.approx(1.0)
    assert 0.3 < alike(0.5) < 0.95
    assert abs(alike(1.0)) < 0.15


# ---- molecules


def test_a_niche_reaches_as_far_as_its_radius_and_no_radius_matters_without_a_niche():
    def bend(niche: float, radius_um: float) -> tuple[Specimen, NDArray[np.int64], NDArray[np.float32]]:
        keys = ("anatomy.side_um=500", "molecules.private=0", "molecules.subspot=0")
        s = specimen(*keys, f"molecules.niche={niche}", f"molecules.niche_um={radius_um}")
        chosen = np.flatnonzero(s.tissue.cells.kind == CELL_TYPES.index("fibroblast"))[:60]
        return s, chosen, s.expected_of_cells(chosen)

    row = next(
        i for i, (receiver, caller, _) in enumerate(NICHES.values()) if (receiver, caller) == ("fibroblast", "tumour")
    )
    for radius_um in (40.0, 120.0):
        s, chosen, on = bend(1.5, radius_um)
        _, _, off = bend(0.0, radius_um)
        cells = s.tissue.cells
        near = np.hypot(*(cells.xy_um[None] - cells.xy_um[chosen][:, None]).transpose(2, 0, 1)) <= radius_um
        near[np.arange(len(chosen)), chosen] = False
        share = (near & (cells.kind == CELL_TYPES.index("tumour"))).sum(1) / np.maximum(near.sum(1), 1)
        assert np.ptp(share) > 0.1
        assert np.log(on / off) == pytest.approx(np.outer(share, s.world.niche[row]), abs=1e-4)
    assert np.array_equal(bend(0.0, 40.0)[2], bend(0.0, 120.0)[2])


def test_patient_profile_is_how_far_patients_profiles_deviate_and_tumours_deviate_twice_as_much():
    def deviation(spread: float) -> NDArray[np.float64]:
        config = preset("visium", overrides=[f"molecules.patient_profile={spread}"])
        own = np.log(build_world(config, 0).profile) - np.log(build_world(config).profile)
        return own.std(1)

    tumour = np.array(CELL_TYPES) == "tumour"
    assert deviation(0.3)[~tumour] == pytest.approx(0.3, rel=0.1)
    assert deviation(0.3)[tumour] == pytest.approx(0.6, rel=0.1)
    assert deviation(0.0) == pytest.approx(0.0, abs=1e-9)


# ---- labels and surroundings


def test_annotators_err_over_areas_as_large_as_the_knob_says():
    def alike(length_um: float, annotator: float = 60.0) -> float:
        """Share of neighbouring spots with one label, where bias drowns what is there."""
        keys = (f"labels.annotator={annotator}", "labels.unlabelled=0", "labels.region_um=400")
        s = specimen(*keys, f"labels.annotator_um={length_um}")
        apart = np.hypot(*(s.centres_um[None] - s.centres_um[:, None]).transpose(2, 0, 1))
        a, b = np.nonzero((apart > 0) & (apart < 1.1 * s.config.spots.pitch_um))
        return float((s.labels[a] == s.labels[b]).mean())

    assert alike(500.0) > alike(30.0) + 0.25
    assert alike(500.0, 0.0) == alike(30.0, 0.0)


def test_a_ring_without_cells_has_no_share_and_no_niche():
    s = specimen("molecules.niche_um=28", "spots.diameter_um=55")
    around = s.table.obsm["truth_surroundings"]
    empty = ~around.any(1)
    assert empty.any()
    assert not empty.all()
    assert (s.table.obs["niche"].to_numpy()[empty] == "").all()
    assert (s.table.obs["niche"].to_numpy()[~empty] != "").all()
    for outer_um in (20.0, 30.0):
        assert not surrounding_shares(s.tissue.cells, s.centres_um, 30.0, outer_um).any()


def test_artefacts_are_those_of_the_stated_place():
    spoiled = ("artefacts.blur=0.4", "people.registration_um=15", "people.registration_bend_um=0")
    s = specimen(*spoiled)
    stated = s.table.obsm["spatial"]
    found = s.table.obsm["truth_artefacts"][:, 1]
    assert np.array_equal(found, s.footprint.mean(s.artefacts["blur"], stated))
    assert not np.array_equal(found, s.footprint.mean(s.artefacts["blur"], s.centres_um))


# ---- frames of Xenium


def frames(*overrides: str, number: int = 150) -> list[InstrumentFrame]:
    keys = ("people.registration_um=0", "people.registration_bend_um=0", *overrides)
    return [InstrumentFrame(specimen(*keys, name="xenium", patient=p)) for p in range(number)]


def test_the_he_is_turned_against_the_molecules_by_the_stated_spread():
    def turns(degrees: float) -> NDArray[np.float64]:
        matrices = [
            f.stated.matrix for f in frames(f"transcripts.he_turn_degrees={degrees}", "transcripts.he_shift_um=0")
        ]
        return np.array([np.rad2deg(np.arctan2(m[1, 0], m[0, 0])) for m in matrices])

    assert rms(turns(6.0)) == pytest.approx(6.0, rel=0.2)
    assert not turns(0.0).any()


def test_the_he_is_shifted_against_the_molecules_by_the_stated_root_mean_square():
    def shifts(um: float) -> NDArray[np.float64]:
        made = frames(f"transcripts.he_shift_um={um}", "transcripts.he_turn_degrees=0")
        return np.array([f.stated.matrix[:2, 2] for f in made])

    assert rms(shifts(80.0)) == pytest.approx(80.0, rel=0.2)
    assert (shifts(80.0) >= 0).all()
    assert not shifts(0.0).any()


def test_the_instruments_region_holds_the_whole_frame_under_any_registration_error():
    line = np.linspace(0, 899.9, 60)
    frame_um = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    for frame in frames(
        "people.registration_um=60", "people.registration_bend_um=10", "spots.margin_um=300", number=12
    ):
        places = frame.place(frame_um)
        rows, columns = frame.shape_px
        assert places.min() >= 0
        assert (places.max(0) <= np.array([columns, rows]) * PIXEL_UM).all()


# ---- stain


def stained(state: str, change: float) -> tuple[Tissue, NDArray[np.float64]]:
    """A tissue, and the log of its eosin against that of the same tissue where `state` is 0 everywhere."""
    s = specimen(f"stain.state={change}", "dial.morphology_only=0")
    calm = s.tissue.states.copy()
    calm[STATES.index(state)] = 0
    with_state, without = (tints(s.config, t, 0).eosin for t in (s.tissue, replace(s.tissue, states=calm)))
    return s.tissue, np.log(with_state / without).astype(np.float64)


def test_stain_takes_up_hypoxia_in_tumour_and_fibrosis_in_stroma_by_the_stated_log_change():
    tissue, gain = stained("hypoxia", 0.4)
    inside = (tissue.compartments.nest > 0.99) & (tissue.cover == 1) & (tissue.compartments.rim == 0)
    hypoxia = np.clip(tissue.states[STATES.index("hypoxia")], -2.5, 2.5)[inside]
    assert np.polyfit(hypoxia, gain[inside], 1)[0] == pytest.approx(0.4, rel=0.15)
    tissue, gain = stained("fibrosis", 0.4)
    stroma = tissue.domains[DOMAINS.index("connective tissue")] > 0.99
    link = np.corrcoef(tissue.states[STATES.index("fibrosis")][stroma], gain[stroma])[0, 1]
    assert link > 0.6
    for state in ("hypoxia", "fibrosis"):
        assert not stained(state, 0.0)[1].any()
