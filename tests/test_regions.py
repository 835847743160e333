"""Regions of three patches: laid out as in Stamp, within the image, exact in scale, drawn by numbers alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

import small
from triglyph.errors import ContractError, ScaleError, SourceError
from triglyph.tissue.frames import Affine
from triglyph.tissue.regions import NOWHERE, RegionCuts, draws, place_regions, read_views, shrink
from triglyph.tissue.section import Section
from triglyph.tissue.windows import WindowReader

PLAIN = Affine.scale(0.5, origin_um=(40.0, -7.0))
TURNED = Affine.from_matrix([[0.3, -0.4, 12.0], [0.4, 0.3, -5.0]])
MIRRORED = Affine.from_matrix([[-0.5, 0.0, 900.0], [0.0, 0.5, 3.0]])
UNEVEN = Affine.from_matrix([[0.0, -0.52, 400.0], [0.5, 0.0, 10.0]])
FRAMES = {"plain": PLAIN, "turned": TURNED, "mirrored": MIRRORED, "uneven": UNEVEN}


def fitting(centre_px: tuple[float, float], half: tuple[float, float], size: tuple[int, int]) -> list[int]:
    """Cells whose region lies within the image, one at a time, by the formula of the paper's release."""
    cells = []
    for row in range(3):
        for column in range(3):
            x = centre_px[0] - (2 * column + 1) * half[0]
            y = centre_px[1] - (2 * row + 1) * half[1]
            inside_x = x >= -1e-6 and x + 6 * half[0] <= size[0] + 1e-6
            inside_y = y >= -1e-6 and y + 6 * half[1] <= size[1] + 1e-6
            if inside_x and inside_y:
                cells.append(3 * row + column)
    return cells


@pytest.mark.parametrize("frame", FRAMES)
def test_a_region_holds_its_patch_in_the_cell_it_says_and_lies_within_the_image(frame):
    to_um, size, patch_um = FRAMES[frame], (1203, 901), 60.0
    rng = np.random.default_rng(0)
    at = rng.uniform(-30, 1, (4000, 2)) + rng.uniform(0, 1, (4000, 2)) * np.add(size, 60)
    chosen = rng.random(4000)
    found = place_regions(to_um(at), chosen, patch_um=patch_um, to_um=to_um, size_px=size)
    half = tuple(patch_um / 2 / step for step in to_um.steps)
    middles = to_um.inverse()(found.centres_um)
    seen = set()
    for centre, number, middle, cell in zip(at, chosen, middles, found.cell, strict=True):
        cells = fitting(centre, half, size)
        if not cells:
            assert cell == NOWHERE
            np.testing.assert_allclose(middle, centre, atol=1e-6)
            continue
        assert cell == cells[math.floor(number * len(cells))]
        row, column = divmod(cell, 3)
        begins = centre - (2 * np.array([column, row]) + 1) * half
        np.testing.assert_allclose(middle, begins + 3 * np.array(half), atol=1e-6)
        seen.add(int(cell))
    assert seen == set(range(9))


def test_every_region_that_fits_is_equally_likely():
    n = 40_000
    centres = np.tile([[400.0, 400.0]], (n, 1))
    found = place_regions(
        centres, draws(n, seed=3, draw=0, section="S"), patch_um=50, to_um=Affine.scale(1), size_px=(800, 800)
    )
    counts = np.bincount(found.cell, minlength=9)
    assert np.abs(counts - n / 9).max() < 5 * math.sqrt(n / 9)
    # In a corner only one is left.
    corner = place_regions(centres * 0 + 25, np.ones(n) - 1e-9, patch_um=50, to_um=Affine.scale(1), size_px=(800, 800))
    assert set(corner.cell) == {0}


@pytest.mark.parametrize("size", [(149, 800), (150, 150), (800, 100)])
def test_an_image_that_no_region_fits_gives_nowhere_about_the_centre(size):
    centre = np.array([[60.0, 60.0]])
    found = place_regions(centre, [0.5], patch_um=50, to_um=Affine.scale(1), size_px=size)
    assert found.cell[0] == NOWHERE
    np.testing.assert_array_equal(found.centres_um, centre)


@given(st.integers(0, 10), st.integers(0, 5), st.integers(1, 60), st.integers(0, 60))
def test_a_draw_is_a_function_of_its_numbers_and_not_of_how_many_there_are(seed, draw, n, more):
    few = draws(n, seed=seed, draw=draw, section="A")
    np.testing.assert_array_equal(few, draws(n + more, seed=seed, draw=draw, section="A")[:n])
    assert not np.array_equal(few, draws(n, seed=seed, draw=draw + 1, section="A"))
    assert not np.array_equal(few, draws(n, seed=seed + 1, draw=draw, section="A"))
    assert not np.array_equal(few, draws(n, seed=seed, draw=draw, section="B"))


def test_without_a_place_or_an_area_there_is_no_region():
    with pytest.raises(ContractError, match="without a place"):
        place_regions([[1.0, 1.0], [np.nan, np.nan]], [0, 0], patch_um=5, to_um=PLAIN, size_px=(9, 9))
    with pytest.raises(ScaleError, match="no area"):
        place_regions([[1.0, 1.0]], [0], patch_um=0.0, to_um=PLAIN, size_px=(9, 9))


# ---- pixels


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """Blobs wider than any pixel read here, so that scales can be compared."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 230, (60, 80, 3)).astype(float)
    image = np.repeat(np.repeat(coarse, 15, 0), 15, 1).astype(np.uint8)
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    tifffile.imwrite(path, image, tile=(128, 128), photometric="rgb")
    return path, image


@pytest.mark.parametrize("frame", FRAMES)
def test_the_cell_of_a_region_shows_exactly_the_patch(slide, frame):
    # A region read at three times as many pixels has the patch's own scale: its cell must be the patch, pixel by pixel.
    reader, to_um = WindowReader(slide[0], to_um=FRAMES[frame]), FRAMES[frame]
    rng = np.random.default_rng(1)
    centres = to_um(rng.uniform([250, 250], [900, 600], (30, 2)))
    found = place_regions(centres, rng.random(30), patch_um=48.0, to_um=to_um, size_px=reader.size_px)
    assert len(set(found.cell)) > 5
    for centre, middle, cell in zip(centres, found.centres_um, found.cell, strict=True):
        patch = reader.read(centre, 48.0, 40)
        region = reader.read(middle, 3 * 48.0, 120)
        row, column = divmod(int(cell), 3)
        inside = region[40 * row : 40 * row + 40, 40 * column : 40 * column + 40]
        assert np.abs(inside.astype(int) - patch).max() <= 1


def test_views_have_their_sizes_in_micrometres(slide):
    path, image = slide
    reader = WindowReader(path, to_um=Affine.scale(0.5))
    views = read_views(reader, (300.0, 200.0), (340.0, 200.0), patch_um=40.0, px=40, ref_px=8)
    assert views.patch.shape == views.region.shape == (40, 40, 3)
    assert views.ref.shape == (8, 8, 3)
    # 40 µm are 80 pixels of the slide, a region of 120 µm is 240, and one pixel of the small patch is 10.
    patch, region = image[360:440, 560:640].astype(float), image[280:520, 560:800].astype(float)
    np.testing.assert_allclose(views.patch, patch.reshape(40, 2, 40, 2, 3).mean((1, 3)), atol=0.6)
    np.testing.assert_allclose(views.region, region.reshape(40, 6, 40, 6, 3).mean((1, 3)), atol=0.6)
    np.testing.assert_allclose(views.ref, patch.reshape(8, 10, 8, 10, 3).mean((1, 3)), atol=1.1)


def test_what_lies_outside_the_image_is_white_and_the_scale_is_kept(slide):
    path, image = slide
    reader = WindowReader(path, to_um=Affine.scale(0.5))
    found = place_regions([[5.0, 200.0]], [0.5], patch_um=40.0, to_um=reader.to_um, size_px=reader.size_px)
    assert found.cell[0] == NOWHERE
    region = reader.read(found.centres_um[0], 120.0, 240)
    assert (region[:, : 120 - 10] == 255).all()
    assert (region[:, 110:] == image[280:520, 0:130]).all()


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_shrinking_is_the_mean_over_squares(ref_px, step, seed):
    px = ref_px * step
    patch = np.random.default_rng(seed).integers(0, 256, (2, px, px, 3), dtype=np.uint8)
    found = shrink(patch, ref_px)
    for i, row, column in np.ndindex(2, ref_px, ref_px):
        square = patch[i, row * step : (row + 1) * step, column * step : (column + 1) * step]
        np.testing.assert_allclose(found[i, row, column], square.mean((0, 1)), atol=0.5)


def test_shrinking_by_a_fraction_is_refused():
    with pytest.raises(ScaleError, match="whole factor"):
        shrink(np.zeros((2, 20, 20, 3), np.uint8), 16)


# ---- sections


def test_regions_out_of_the_cache_are_those_of_the_slide(tmp_path):
    section = Section.write(small.draft(folder=tmp_path), tmp_path / "S1")
    cuts, rows = RegionCuts(px=16, patch_um=28.0, seed=4), np.array([7, 0, 30, 7])
    windows, cell = cuts.read(section, rows, 2)
    done: list[int] = []
    fingerprint = cuts.cache(section, 2, progress=done.append)
    assert sum(done) == section.n_locations
    assert section.windows.names() == [fingerprint] == [cuts.fingerprint(2)]
    kept, again = cuts.read(section, rows, 2)
    np.testing.assert_array_equal(kept, windows)
    np.testing.assert_array_equal(again, cell)
    assert cuts.cache(section, 2, progress=done.append) == fingerprint
    assert sum(done) == 2 * section.n_locations
    # With the draw kept, the slide may be gone.
    (tmp_path / "S1.tif").unlink()
    np.testing.assert_array_equal(cuts.read(section, rows, 2)[0], windows)
    with pytest.raises(SourceError):
        cuts.read(section, rows, 3)


def test_a_section_s_regions_are_those_of_its_own_image(tmp_path):
    section = Section.write(small.draft(folder=tmp_path), tmp_path / "S1")
    cuts = RegionCuts(px=16, patch_um=28.0, seed=4)
    windows, cell = cuts.read(section, np.arange(section.n_locations), 0)
    reader = section.image()
    found = place_regions(
        section.centres_um,
        draws(section.n_locations, seed=4, draw=0, section="S1"),
        patch_um=28.0,
        to_um=reader.to_um,
        size_px=reader.size_px,
    )
    np.testing.assert_array_equal(cell, found.cell)
    for row in (0, 17, 35):
        np.testing.assert_array_equal(windows[row], reader.read(found.centres_um[row], 84.0, 16))


def test_what_decides_the_pixels_is_in_the_fingerprint():
    base = RegionCuts(px=16, patch_um=28.0)
    others = [
        RegionCuts(px=8, patch_um=28.0),
        RegionCuts(px=16, patch_um=28.1),
        RegionCuts(px=16, patch_um=28.0, seed=1),
    ]
    prints = [base.fingerprint(0), base.fingerprint(1), *(c.fingerprint(0) for c in others)]
    assert len(set(prints)) == 5


def test_a_section_without_a_slide_has_no_regions(tmp_path):
    section = Section.write(small.draft(), tmp_path / "S1")
    with pytest.raises(SourceError, match="no image"):
        RegionCuts(px=16, patch_um=28.0).read(section, np.array([0]), 0)
