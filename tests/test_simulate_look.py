"""The look of simulated tissue: states show as far as their dial says, artefacts where their maps say, sizes in µm."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label, laplace

from triglyph.tissue.simulate.anatomy.tissue import Cells, Tissue, build_tissue
from triglyph.tissue.simulate.fields import sample, smooth_noise, strip
from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.knobs.states import EXPRESSION_STATES, MORPHOLOGY_STATES, SHARED_STATES, STATES
from triglyph.tissue.simulate.people import person
from triglyph.tissue.simulate.picture.artefacts import artefact_maps
from triglyph.tissue.simulate.picture.nuclei import Canvas, draw_cells
from triglyph.tissue.simulate.picture.stain import Dye, image_side_px, paint, patient_dye
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.streams import stream

TINY = preset("tiny")
DARK = {"shared": 0.0, "morphology_only": 0.0, "expression_only": 0.0}


def turned(config: Simulation, part: str, **values: object) -> Simulation:
    return config.model_copy(update={part: getattr(config, part).model_copy(update=values)})


def shift_of(state: str, by: float) -> np.ndarray:
    return by * (np.array(STATES) == state)


_MADE: dict[tuple[object, ...], Tissue] = {}


def tissue_of(config: Simulation, state: str = "", by: float = 0.0, patient: int = 0, section: int = 0) -> Tissue:
    key = (config.digest(), state, by, patient, section)
    if key not in _MADE:
        shares = person(config, patient).shares(config.block_of(patient, section))
        shift = shift_of(state, by) if state else None
        _MADE[key] = build_tissue(config, patient, section, shares, state_shift=shift)
    return _MADE[key]


_PAINTED: dict[tuple[object, ...], np.ndarray] = {}


def painted(config: Simulation, tissue: Tissue, **options: object) -> np.ndarray:
    """Pixels of patient 0; a plain picture is painted once."""
    key = (config.digest(), id(tissue))
    if options or key not in _PAINTED:
        pixels = paint(config, tissue, patient_dye(config, 0), stream(config.seed, "paint", 0, 0), **options)
        if options:
            return pixels
        _PAINTED[key] = pixels
    return _PAINTED[key]


def at_pixels(field: np.ndarray, config: Simulation) -> np.ndarray:
    """A map of the anatomy at every pixel of patient 0's picture; the nearest grid value."""
    mpp = patient_dye(config, 0).mpp
    place = (np.arange(image_side_px(config, mpp)) + 0.5) * mpp / config.anatomy.grid_um
    index = np.minimum(place.astype(int), len(field) - 1)
    return field[np.ix_(index, index)]


# ---- states and the dial


@pytest.mark.parametrize("state", STATES)
def test_at_dial_zero_no_state_changes_a_pixel_or_moves_a_cell(state):
    dark = TINY.model_copy(update={"dial": TINY.dial.model_copy(update=DARK)})
    plain, moved = tissue_of(dark), tissue_of(dark, state, 1.5)
    np.testing.assert_array_equal(plain.cells.xy_um, moved.cells.xy_um)
    np.testing.assert_array_equal(painted(dark, plain), painted(dark, moved))


@pytest.mark.parametrize("state", [*SHARED_STATES, *MORPHOLOGY_STATES])
def test_a_state_that_morphology_shows_changes_pixels(state):
    plain, moved = painted(TINY, tissue_of(TINY)), painted(TINY, tissue_of(TINY, state, 1.5))
    assert np.abs(plain.astype(int) - moved).mean() > 0.2


@pytest.mark.parametrize("state", EXPRESSION_STATES)
def test_a_state_of_expression_alone_shows_in_no_pixel(state):
    np.testing.assert_array_equal(painted(TINY, tissue_of(TINY)), painted(TINY, tissue_of(TINY, state, 1.5)))


@pytest.mark.parametrize("state", [*MORPHOLOGY_STATES, *EXPRESSION_STATES])
def test_states_outside_the_shared_ones_leave_kinds_and_places_of_cells_as_they_are(state):
    plain, moved = tissue_of(TINY).cells, tissue_of(TINY, state, 1.5).cells
    np.testing.assert_array_equal(plain.kind, moved.kind)
    np.testing.assert_array_equal(plain.xy_um, moved.xy_um)


def test_pleomorphic_tumours_have_uneven_nuclei_and_other_cells_do_not():
    low, high = (tissue_of(TINY, "pleomorphism", by).cells for by in (-1.5, 1.5))
    for kind, name in enumerate(CELL_TYPES):
        one, two = (np.log(c.long_um[c.kind == kind]) for c in (low, high))
        if name == "tumour":
            assert two.std() > one.std() + 0.05
        else:
            np.testing.assert_array_equal(one, two)


def test_oedema_pales_stroma_and_leaves_tumour_nests():
    eosin = []
    for by in (-1.5, 1.5):
        pixels = painted(TINY, tissue_of(TINY, "oedema", by)).astype(float)
        eosin.append(pixels[..., 1])
    part = tissue_of(TINY).compartments
    stroma = at_pixels(part.stroma * tissue_of(TINY).domains[DOMAINS.index("connective tissue")], TINY) > 0.95
    nest = at_pixels(np.minimum(part.nest, 1 - part.cleft), TINY) > 0.95
    change = eosin[1] - eosin[0]
    assert change[stroma].mean() > 8
    assert abs(change[nest].mean()) < 1


def test_inflammation_brings_lymphocytes_and_its_dial_takes_them_away_again():
    def ratio(config: Simulation) -> float:
        kinds = [CELL_TYPES.index(name) for name in ("T cell", "B cell", "macrophage")]
        low, high = (np.isin(tissue_of(config, "inflammation", by).cells.kind, kinds).sum() for by in (-1.0, 1.0))
        return float(high / low)

    assert ratio(TINY) > 1.3
    assert ratio(turned(TINY, "dial", shared=0.0)) == 1.0


def test_immune_cells_follow_inflammation_by_place_only_where_the_dial_shows_it():
    def follows(config: Simulation) -> float:
        values = []
        for patient in range(3):
            tissue = tissue_of(config, patient=patient)
            state = tissue.states[STATES.index("inflammation")]
            stroma = tissue.domains[DOMAINS.index("immune infiltrate")] < 0.3
            immune = np.isin(tissue.cells.kind, [CELL_TYPES.index("T cell"), CELL_TYPES.index("macrophage")])
            outside = sample(stroma.astype(np.float32), tissue.cells.xy_um, tissue.step_um) > 0.5
            at_cells = sample(state, tissue.cells.xy_um, tissue.step_um)
            values.append(at_cells[immune & outside].mean() - at_cells[~immune & outside].mean())
        return float(np.mean(values))

    shown, hidden = follows(TINY), follows(turned(TINY, "dial", shared=0.0))
    assert shown > 0.5
    assert shown > 2 * abs(hidden)


# ---- patches below the spot


def test_patches_show_only_when_there_is_structure_below_the_spot():
    plain, patchy = TINY, turned(TINY, "molecules", subspot=0.8)
    tissue = tissue_of(TINY)
    assert tissue.patch.std() == pytest.approx(1, abs=0.01)
    blank = Tissue(**{**vars(tissue), "patch": np.zeros_like(tissue.patch)})
    np.testing.assert_array_equal(painted(plain, tissue), painted(plain, blank))

    def darkness(config: Simulation) -> float:
        """Correlation of the patches' field with the darkness of nuclei."""
        pixels = painted(config, tissue).astype(float)
        mpp = patient_dye(config, 0).mpp
        x, y = np.floor(tissue.cells.xy_um / mpp).astype(int).T
        at = sample(tissue.patch, tissue.cells.xy_um, tissue.step_um)
        return float(np.corrcoef(at, -pixels[y, x, 0])[0, 1])

    assert darkness(patchy) > darkness(plain) + 0.15
    assert abs(darkness(plain)) < 0.08


# ---- anatomy


def test_every_domain_takes_its_share_and_an_absent_one_takes_nothing():
    shares = np.array([0.3, 0.0, 0.1, 0.3, 0.1, 0.1, 0.1])
    tissue = build_tissue(TINY, 0, 0, shares)
    won = tissue.domains.argmax(0)[tissue.cover > 0.5]
    taken = np.bincount(won, minlength=len(DOMAINS)) / len(won)
    np.testing.assert_allclose(taken, shares, atol=0.02)
    assert tissue.domains[1].max() == 0


def test_b_cells_lie_in_follicles_and_t_cells_between_them():
    tissue = tissue_of(TINY)
    cells, follicle = tissue.cells, tissue.compartments.follicle
    lymphoid = sample(tissue.domains[DOMAINS.index("immune infiltrate")], cells.xy_um, tissue.step_um) > 0.8
    inside = sample(follicle, cells.xy_um, tissue.step_um) > 0.7
    share = {name: inside[lymphoid & (cells.kind == CELL_TYPES.index(name))].mean() for name in ("B cell", "T cell")}
    assert share["B cell"] > 2 * share["T cell"]


def test_no_cell_lies_on_glass_or_in_a_droplet_of_fat():
    tissue = tissue_of(TINY)
    assert sample(tissue.cover, tissue.cells.xy_um, tissue.step_um).min() > 0
    assert sample(tissue.compartments.lumen, tissue.cells.xy_um, tissue.step_um).max() < 0.65


def test_sections_of_a_block_are_alike_and_blocks_are_not():
    config = turned(TINY, "people", blocks=2).model_copy(update={"sections_per_patient": (4,)})
    first, second, third = (tissue_of(config, section=s).domains.argmax(0) for s in (0, 1, 2))
    assert (first == second).mean() > (first == third).mean() + 0.2


def test_fields_depend_on_their_name_and_not_on_the_order_or_the_knobs_of_others():
    # Domains are drawn before states, and a finer wobble takes more numbers.
    other = turned(TINY, "anatomy", wobble_um=(60.0, 18.0))
    assert (tissue_of(TINY).domains != tissue_of(other).domains).any()
    np.testing.assert_array_equal(tissue_of(TINY).states, tissue_of(other).states)
    np.testing.assert_array_equal(tissue_of(TINY).compartments.collagen, tissue_of(other).compartments.collagen)


# ---- scale


@pytest.mark.parametrize("mpp", [0.25, 0.8])
def test_a_nucleus_has_its_size_in_um_in_the_picture(mpp):
    n, long_um, short_um = 36, 12.0, 8.0
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(6)), -1).reshape(-1, 2)
    cells = Cells(
        (grid + 0.5) * 30.0, np.full(n, CELL_TYPES.index("B cell")), np.full(n, long_um), np.full(n, short_um),
        np.linspace(0, 3, n), np.zeros((n, len(STATES))),
    )  # fmt: skip
    side = int(np.ceil(180 / mpp))
    canvas = Canvas.empty((side, side))
    draw_cells(canvas, cells, TINY.anatomy.nuclei, mpp=mpp, rng=np.random.default_rng(0))
    islands, number = label(canvas.cover > 127)
    assert number == n
    area_um2 = np.bincount(islands.ravel())[1:] * mpp**2
    assert area_um2.mean() == pytest.approx(np.pi / 4 * long_um * short_um, rel=0.05)


def test_strips_of_a_map_join_without_a_seam_whatever_their_height():
    field = smooth_noise(np.random.default_rng(0), 60, 2.5, 20.0)
    whole = strip(field, (0, 200), 200, 0.29)
    for height in (7, 64):
        parts = [strip(field, (top, min(top + height, 200)), 200, 0.29) for top in range(0, 200, height)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


# ---- sites


def test_patients_of_one_site_share_its_stain_and_0_removes_sites():
    many = turned(TINY, "people", sites=3)
    flat = turned(many, "stain", hue=0.0, strength=0.0, site_hue=0.0, site_strength=0.0)
    assert len({patient_dye(flat, p).matrix.tobytes() for p in range(8)}) == 1
    sited = turned(flat, "stain", site_hue=0.05, site_strength=0.2)
    by_site: dict[int, set[bytes]] = {}
    for p in range(12):
        by_site.setdefault(person(sited, p).stain_site, set()).add(patient_dye(sited, p).matrix.tobytes())
    assert len(by_site) == 3
    assert all(len(dyes) == 1 for dyes in by_site.values())
    assert len(set().union(*by_site.values())) == 3


# ---- artefacts


def with_artefacts(**shares: float) -> Simulation:
    return turned(TINY, "artefacts", **shares)


@pytest.mark.parametrize("name", ["folds", "blur", "pen"])
def test_artefacts_take_their_share_of_tissue_on_average_and_none_at_0(name):
    tissue = tissue_of(TINY)
    assert artefact_maps(TINY, 0, 0, tissue) == {}
    config = with_artefacts(**{name: 0.08})
    taken = []
    for section in range(40):
        maps = artefact_maps(config, 0, section, tissue)
        assert list(maps) == [name]
        assert 0 <= maps[name].min() <= maps[name].max() <= 1
        taken.append(float(maps[name][tissue.cover > 0.5].mean()))
    # The mean of 40 exponential draws has a standard error of 16 %.
    assert np.mean(taken) == pytest.approx(0.08, rel=0.45)
    assert np.std(taken) > 0.03


def test_a_picture_without_artefacts_is_the_same_bytes_with_empty_maps():
    tissue = tissue_of(TINY)
    nothing = {name: np.zeros_like(tissue.cover) for name in ("folds", "blur", "pen")}
    np.testing.assert_array_equal(painted(TINY, tissue), painted(TINY, tissue, artefacts=nothing))


def spoiled(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels without and with an artefact over the left half of the section, and its mask in pixels."""
    tissue = tissue_of(TINY)
    field = np.zeros_like(tissue.cover)
    middle = field.shape[1] // 2
    field[:, :middle] = 1
    plain, changed = painted(TINY, tissue).astype(float), painted(TINY, tissue, artefacts={name: field}).astype(float)
    # A margin, where the map is interpolated, is neither inside nor outside.
    field[:, middle - 4 : middle + 4] = 0.5
    return plain, changed, at_pixels(field, TINY)


def test_blur_lowers_sharpness_inside_its_mask_and_changes_nothing_outside():
    plain, changed, mask = spoiled("blur")
    inside, outside = mask > 0.99, mask < 0.01
    before, after = (np.abs(laplace(p[..., 0]))[inside].mean() for p in (plain, changed))
    assert after < 0.2 * before
    np.testing.assert_array_equal(plain[outside], changed[outside])


def test_folds_double_the_density_of_tissue_and_leave_glass():
    plain, changed, mask = spoiled("folds")
    dye: Dye = patient_dye(TINY, 0)
    grey = plain[..., 1]
    stained = (mask > 0.99) & (grey < 190) & (grey > 110)
    density, more = (-np.log10(np.clip(p[..., 1], 1, None) / dye.white[1])[stained].mean() for p in (plain, changed))
    # A little more than twice: a fold also holds dye.
    assert more / density == pytest.approx(2.15, rel=0.08)
    glass = (mask > 0.99) & (plain.min(-1) > 236)
    assert np.abs(changed - plain)[glass].mean() < 2
    np.testing.assert_array_equal(plain[mask < 0.01], changed[mask < 0.01])


def test_pen_hides_tissue_and_glass_under_it_alone():
    plain, changed, mask = spoiled("pen")
    inside, outside = mask > 0.99, mask < 0.01
    assert changed[inside].mean() < 0.5 * plain[inside].mean()
    assert changed[:15, :15].mean() < 0.6 * plain[:15, :15].mean()
    np.testing.assert_array_equal(plain[outside], changed[outside])


def test_artefacts_are_the_sections_own_and_repeat():
    config, tissue = with_artefacts(blur=0.2, pen=0.1, folds=0.05), tissue_of(TINY)
    first, again, other = (artefact_maps(config, 0, s, tissue) for s in (0, 0, 1))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
