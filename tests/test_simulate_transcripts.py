"""Single molecules of the simulator: panels, quality, places, and bins that lose nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from triglyph.errors import ContractError, RecipeError
from triglyph.tissue.simulate.anatomy.outlines import (
    EXPANSION_UM,
    areas_um2,
    assign,
    cell_outlines,
    nucleus_outlines,
)
from triglyph.tissue.simulate.anatomy.tissue import Cells
from triglyph.tissue.simulate.fields import sample
from triglyph.tissue.simulate.knobs.molecules import Spots
from triglyph.tissue.simulate.knobs.names import CELL_TYPES
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.knobs.states import STATES
from triglyph.tissue.simulate.molecules.bins import bin_table, binned, expected_bins
from triglyph.tissue.simulate.molecules.programs import MARKERS
from triglyph.tissue.simulate.molecules.transcripts import (
    CONTROLS,
    GENE,
    QUALITY,
    Molecules,
    draw_transcripts,
    measured_genes,
    panel,
)
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen


def world(platform: str = "xenium", *, bin_um: float = 50.0, side_um: float = 400.0, **changes: Any) -> Simulation:
    """A small world; `changes` go to `transcripts`, or to another part given as a dict by its name."""
    base = preset("tiny")
    parts: dict[str, dict[str, Any]] = {"anatomy": {"side_um": side_um}, "transcripts": {}}
    for name, value in changes.items():
        parts.setdefault(name, {}).update(value) if isinstance(value, dict) else parts["transcripts"].update(
            {name: value}
        )
    spots = Spots(platform=platform, diameter_um=bin_um, pitch_um=bin_um, lattice="square", margin_um=0.0)  # type: ignore[arg-type]
    changed = {name: getattr(base, name).model_copy(update=update) for name, update in parts.items()}
    return base.model_copy(update={"spots": spots, **changed})


def grid(side_um: float, bin_um: float) -> np.ndarray:
    """Centres of bins that cover the frame."""
    rows, columns = np.mgrid[0 : round(side_um / bin_um), 0 : round(side_um / bin_um)]
    return (np.stack([columns.ravel(), rows.ravel()], 1) + 0.5) * bin_um


def at(*points: tuple[float, float], genes: tuple[str, ...] = ("A", "B")) -> Molecules:
    """Molecules of the first gene at given places."""
    n = len(points)
    none, nan = np.full(n, -1, dtype=np.int32), np.full(n, np.nan, dtype=np.float32)
    zero = np.zeros(n, dtype=np.int32)
    return Molecules(genes, np.array(points, dtype=float), zero, zero.astype(np.int8), none, nan, none, nan)


@pytest.fixture(scope="module")
def xenium() -> tuple[Specimen, Molecules]:
    specimen = Specimen(world(), 0, 0)
    return specimen, draw_transcripts(specimen)


@pytest.fixture(scope="module")
def hd() -> tuple[Specimen, Molecules]:
    specimen = Specimen(world("visium-hd", bin_um=16.0), 0, 0)
    return specimen, draw_transcripts(specimen)


# ---- panels


def test_the_core_panel_is_everybodys_and_marks_every_cell_type() -> None:
    config = world(core_panel=80)
    panels = [panel(config, patient) for patient in range(12)]
    assert all((core == panels[0][0]).all() and core.sum() == 80 for core, _ in panels)
    symbols = np.array(Specimen(config, 0, 0).world.symbols)
    chosen = set(symbols[panels[0][0]])
    assert all(len(chosen & set(text.split())) >= 8 for text in MARKERS.values())


def test_half_of_the_patients_have_the_add_on_panel_and_it_repeats_no_core_gene() -> None:
    config = world(addon_share=0.5)
    panels = [panel(config, patient) for patient in range(300)]
    sizes = np.array([addon.sum() for _, addon in panels])
    assert set(sizes) == {0, config.transcripts.addon_panel}
    assert (sizes > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert not any((core & addon).any() for core, addon in panels)


def test_genes_off_the_panel_are_unmeasured_and_have_no_molecule(xenium: tuple[Specimen, Molecules]) -> None:
    specimen, molecules = xenium
    counts, measured = bin_table(specimen, molecules)
    core, addon = panel(specimen.config, 0)
    assert (measured == (core | addon)).all()
    assert measured.any()
    assert not measured.all()
    assert counts[:, ~measured].nnz == 0
    assert measured[molecules.gene[molecules.kind == GENE]].all()


def test_molecules_of_the_core_panel_do_not_depend_on_the_add_on_panel() -> None:
    with_it, without = (Specimen(world(addon_share=share), 0, 0) for share in (1.0, 0.0))
    a, b = draw_transcripts(with_it), draw_transcripts(without)
    core = panel(with_it.config, 0)[0]
    kept = a.take((a.kind == GENE) & core[a.gene])
    of_b = b.take(b.kind == GENE)
    assert len(a) > len(b)
    assert (kept.gene == of_b.gene).all()
    assert (kept.xy_um == of_b.xy_um).all()
    assert (kept.qv == of_b.qv).all()


def test_visium_hd_has_neither_panel_nor_quality_nor_controls_nor_cells(hd: tuple[Specimen, Molecules]) -> None:
    specimen, molecules = hd
    assert measured_genes(specimen.config, 0).all()
    assert len(np.unique(molecules.gene)) > 0.95 * len(molecules.symbols)
    assert np.isnan(molecules.qv).all()
    assert (molecules.kind == GENE).all()
    assert (molecules.cell == -1).all()
    assert molecules.seen.all()


def test_platforms_of_round_spots_see_no_molecules() -> None:
    with pytest.raises(RecipeError, match="single molecules"):
        draw_transcripts(Specimen(preset("tiny"), 0, 0))


# ---- quality and controls


@pytest.mark.parametrize(("low", "control"), [(0.08, 0.004), (0.3, 0.03)])
def test_quality_and_control_shares_are_those_of_the_knobs(low: float, control: float) -> None:
    molecules = draw_transcripts(Specimen(world(low_quality=low, control=control), 0, 0))
    genes = molecules.kind == GENE
    assert (molecules.qv[genes] < QUALITY).mean() == pytest.approx(low, rel=0.05)
    assert (~genes).mean() == pytest.approx(control, rel=0.12)
    assert ((molecules.qv >= 0) & (molecules.qv <= 40)).all()
    assert (molecules.qv[~genes] < QUALITY).mean() > 0.45
    assert not molecules.seen[~genes].any()


def test_controls_are_named_by_their_kind(xenium: tuple[Specimen, Molecules]) -> None:
    _, molecules = xenium
    for kind, names in CONTROLS.items():
        mine = molecules.gene[molecules.kind == kind]
        assert len(mine)
        assert mine.max() < len(names)
    assert (molecules.source[molecules.kind != GENE] == -1).all()


# ---- bins


@pytest.mark.parametrize("which", ["xenium", "hd"])
@pytest.mark.parametrize("bin_um", [2.0, 8.0, 16.0, 12.5, 50.0, 100.0])
def test_counts_are_conserved_at_every_bin_size(which: str, bin_um: float, request: pytest.FixtureRequest) -> None:
    _, molecules = request.getfixturevalue(which)
    genes = molecules.take(molecules.seen)
    counts = binned(genes, grid(400.0, bin_um), bin_um)
    assert counts.sum() == len(genes)
    by_gene = np.bincount(genes.gene, minlength=len(genes.symbols))
    assert (np.asarray(counts.sum(0)).ravel() == by_gene).all()


def test_bins_of_2_um_add_up_to_those_of_8_and_16_um_exactly(hd: tuple[Specimen, Molecules]) -> None:
    _, molecules = hd
    fine = binned(molecules, grid(400.0, 2.0), 2.0)
    for side in (8, 16):
        step, across = side // 2, 400 // side
        row, column = np.divmod(np.arange(200 * 200), 200)
        owner = row // step * across + column // step
        sums = sp.csr_matrix((np.ones(len(owner), dtype=np.int32), (owner, np.arange(len(owner)))))
        assert ((sums @ fine) != binned(molecules, grid(400.0, float(side)), float(side))).nnz == 0


def test_a_bin_holds_its_left_and_upper_border_and_gaps_hold_nothing() -> None:
    molecules = at((0.0, 0.0), (9.999, 9.999), (10.0, 5.0), (20.0, 0.0), (29.0, 29.0), (30.0, 0.0))
    centres = np.array([[5.0, 5.0], [25.0, 5.0], [25.0, 25.0]])
    counts = binned(molecules, centres, 10.0, pitch_um=20.0)
    assert counts.toarray().tolist() == [[2, 0], [1, 0], [1, 0]]


def test_bins_that_overlap_or_lie_on_no_lattice_and_controls_are_refused(xenium: tuple[Specimen, Molecules]) -> None:
    with pytest.raises(ContractError, match="overlap"):
        binned(at((1, 1)), grid(40.0, 10.0), 10.0, pitch_um=5.0)
    with pytest.raises(ContractError, match="no lattice"):
        binned(at((1, 1)), np.array([[5.0, 5.0], [17.0, 5.0]]), 10.0)
    with pytest.raises(ContractError, match="no column"):
        binned(xenium[1], grid(400.0, 50.0), 50.0)


@pytest.mark.parametrize("which", ["xenium", "hd"])
def test_bins_scatter_around_what_is_expected_as_the_draw_says(which: str, request: pytest.FixtureRequest) -> None:
    specimen, molecules = request.getfixturevalue(which)
    counts, measured = bin_table(specimen, molecules)
    expected = expected_bins(specimen)[:, measured].astype(float)
    counts = counts.toarray()[:, measured]
    assert counts.sum() == pytest.approx(expected.sum(), rel=0.02)
    # Cells are overdispersed one by one, so a bin of several is by less: between Poisson and one cell's variance.
    z = (counts - expected) / np.sqrt(expected + 1e-9)
    assert abs(z.mean()) < 0.03
    assert 0.9 < z[expected > 0.05].std() < 1.3
    by_bin = np.corrcoef(counts.sum(1), expected.sum(1))[0, 1]
    assert by_bin > 0.98


def test_genes_off_the_panel_are_expected_as_if_they_were_on_it(xenium: tuple[Specimen, Molecules]) -> None:
    specimen, _ = xenium
    wide = Specimen(world(core_panel=10_000), 0, 0)
    assert measured_genes(wide.config, 0).all()
    assert np.array_equal(expected_bins(specimen), expected_bins(wide))


# ---- how many, and where


def test_molecules_follow_the_knob_and_the_sections_gene_offsets() -> None:
    config = world("visium-hd", molecules={"patient_gene": 0.8, "ambient": 0.0})
    specimen = Specimen(config, 0, 0)
    more = draw_transcripts(
        Specimen(world("visium-hd", per_cell=320.0, molecules={"patient_gene": 0.8, "ambient": 0.0}), 0, 0)
    )
    molecules = draw_transcripts(specimen)
    assert len(more) / len(molecules) == pytest.approx(2.0, rel=0.03)
    flat = draw_transcripts(Specimen(world("visium-hd", molecules={"patient_gene": 0.0, "ambient": 0.0}), 0, 0))
    a, b = (np.bincount(m.gene, minlength=len(m.symbols)) for m in (molecules, flat))
    enough = (a > 50) & (b > 50)
    change = np.log(a[enough] / b[enough])
    slope = np.polyfit(specimen.chemistry.gene_offset[enough], change, 1)[0]
    assert slope == pytest.approx(1.0, abs=0.08)


def test_molecules_of_no_cell_are_the_ambient_share_and_debris_where_it_lies() -> None:
    none = {}
    for ambient in (0.0, 0.2):
        specimen = Specimen(world("visium-hd", molecules={"ambient": ambient}), 0, 0)
        molecules = draw_transcripts(specimen)
        none[ambient] = molecules.take(molecules.source < 0), len(molecules)
    dead = none[0.0][0]
    debris = sample(specimen.tissue.compartments.debris, dead.xy_um, specimen.tissue.step_um)
    assert len(dead)
    assert (debris > 0).all()
    assert (len(none[0.2][0]) - len(dead)) / (none[0.2][1] - len(dead)) == pytest.approx(0.2, rel=0.03)


def test_diffusion_carries_molecules_into_other_cells() -> None:
    right = []
    for bleed in (0.0, 2.0, 6.0):
        molecules = draw_transcripts(Specimen(world(bleed_um=bleed, spread_um=0.5), 0, 0))
        of_cells = molecules.source >= 0
        right.append((molecules.cell == molecules.source)[of_cells].mean())
    assert right[0] > 0.9
    assert right[0] > right[1] > right[2]


def test_the_same_specimen_gives_the_same_molecules_whatever_was_asked_before(
    xenium: tuple[Specimen, Molecules],
) -> None:
    _, molecules = xenium
    fresh = Specimen(world(), 0, 0)
    expected_bins(fresh)
    again = draw_transcripts(fresh)
    for name in ("xy_um", "gene", "kind", "source", "qv", "cell", "nucleus_um"):
        assert getattr(again, name).tobytes() == getattr(molecules, name).tobytes()
    other = draw_transcripts(Specimen(world(), 0, 1))
    assert len(other) != len(molecules)


# ---- outlines


def cells(*rows: tuple[float, float, float, float, float]) -> Cells:
    """Cells of given x, y, long and short diameter and angle."""
    x, y, long_um, short_um, angle = np.array(rows, dtype=float).T
    kind = np.full(len(rows), CELL_TYPES.index("tumour"))
    return Cells(np.stack([x, y], 1), kind, long_um, short_um, angle, np.zeros((len(rows), len(STATES))))


def test_a_point_falls_in_the_nucleus_it_lies_in_or_the_nearest_within_reach() -> None:
    two = cells((0, 0, 20, 6, 0), (20, 0, 10, 10, 0))
    points = np.array([[9.0, 0.0], [12.0, 0.0], [13.5, 0.0], [0.0, 7.9], [0.0, 8.1], [60.0, 60.0]])
    cell, distance = assign(two, points)
    assert cell.tolist() == [0, 0, 1, 0, -1, -1]
    assert distance[:5] == pytest.approx([0.0, 2.0, 1.5, 4.9, 5.1], abs=1e-5)
    assert np.isinf(distance[5])


def test_a_lone_cell_is_its_nucleus_grown_and_neighbours_share_the_ground_between() -> None:
    lone = cells((50, 50, 10, 10, 0.3))
    assert np.hypot(*(cell_outlines(lone)[0] - 50).T) == pytest.approx(5 + EXPANSION_UM)
    assert areas_um2(nucleus_outlines(lone))[0] == pytest.approx(np.pi * 25, rel=0.02)
    pair = cells((50, 50, 10, 10, 0), (64, 50, 10, 10, 0))
    outlines = cell_outlines(pair)
    assert outlines[0, :, 0].max() == pytest.approx(57, abs=0.4)
    assert outlines[1, :, 0].min() == pytest.approx(57, abs=0.4)


def test_no_cells_take_no_molecule() -> None:
    nobody = Cells(np.zeros((0, 2)), *(np.zeros(0, dtype=d) for d in (int, float, float, float)), np.zeros((0, 9)))
    cell, distance = assign(nobody, np.zeros((3, 2)))
    assert (cell == -1).all()
    assert np.isinf(distance).all()
