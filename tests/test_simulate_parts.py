"""Small parts that several pictures share: ellipses, patches of pixels, means over locations, and OME-TIFF pyramids."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from triglyph.storage import file_digest
from triglyph.tissue.pyramid import halve
from triglyph.tissue.simulate.anatomy.ellipses import in_radii, radius_towards, turned
from triglyph.tissue.simulate.knobs.molecules import Spots
from triglyph.tissue.simulate.locations import Footprint
from triglyph.tissue.simulate.picture.ome import write_ome, write_ome_channels
from triglyph.tissue.simulate.picture.patches import Patches, column

ROUND = Spots(platform="visium", diameter_um=50, pitch_um=100)
BINS = {name: Spots(platform=name, diameter_um=50, pitch_um=50, lattice="square") for name in ("visium-hd", "xenium")}  # type: ignore[arg-type]


# ---- ellipses


def test_the_outline_of_an_ellipse_lies_at_one_radius_in_every_direction():
    rng = np.random.default_rng(0)
    long_um, short_um = 9.0, 4.0
    axis, towards = rng.uniform(0, 2 * np.pi, (2, 500))
    radius = radius_towards(np.tile([long_um, short_um], (500, 1)), towards - axis)
    x, y = radius * np.cos(towards), radius * np.sin(towards)
    halves = np.full(500, long_um / 2), np.full(500, short_um / 2)
    p, q = in_radii(x, y, np.cos(axis), np.sin(axis), *halves)
    np.testing.assert_allclose(np.hypot(p, q), 1.0)
    assert radius.min() >= short_um / 2
    assert radius.max() <= long_um / 2


def test_turning_keeps_distances_and_the_long_axis_has_nothing_across():
    rng = np.random.default_rng(1)
    angle, reach = rng.uniform(0, 2 * np.pi, 200), rng.uniform(1, 9, 200)
    along, across = turned(reach * np.cos(angle), reach * np.sin(angle), np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(along, reach)
    np.testing.assert_allclose(across, 0.0, atol=1e-12)


# ---- patches


def test_patches_know_how_far_each_pixel_lies_from_its_cell_and_are_cut_at_the_images_edge():
    mpp, shape = 0.7, (60, 80)
    cells = np.array([[0.3, 0.2], [30.0, 20.0], [55.9, 41.9], [28.1, -30.0]])
    patches = Patches(cells, 6.0, mpp)
    assert patches.size % 2 == 1
    assert patches.size * mpp >= 2 * 6.0
    met = {}
    for number, there, here in patches.windows(shape):
        rows, columns = np.mgrid[there]
        dx = np.broadcast_to(patches.dx_um[number], (patches.size, patches.size))[here]
        dy = np.broadcast_to(patches.dy_um[number], (patches.size, patches.size))[here]
        np.testing.assert_allclose(dx, (columns + 0.5) * mpp - cells[number, 0], atol=1e-5)
        np.testing.assert_allclose(dy, (rows + 0.5) * mpp - cells[number, 1], atol=1e-5)
        met[number] = rows.size
    # The last lies off the image altogether; those in the corners are cut.
    assert list(met) == [0, 1, 2]
    assert met[1] == patches.size**2 > max(met[0], met[2])
    assert column(np.arange(4.0)).shape == (4, 1, 1)


# ---- locations


@pytest.mark.parametrize("spots", [ROUND, *BINS.values()], ids=["visium", *BINS])
@pytest.mark.parametrize("step_um", [0.8, 2.5])
def test_a_mean_over_a_location_is_over_its_disc_or_its_square_at_any_scale(spots, step_um):
    side = int(200 / step_um)
    # At the centre of a pixel: elsewhere the location is moved to the nearest one.
    centre = (side // 2 + 0.5) * step_um
    y, x = (np.mgrid[:side, :side] + 0.5) * step_um - centre
    inside = (np.hypot(x, y) if spots is ROUND else np.maximum(abs(x), abs(y))) <= 25 + 1e-6
    assert Footprint(spots, step_um).mean(inside.astype(np.float32), np.array([[centre, centre]]))[0] == 1
    assert Footprint(spots, step_um).mean((~inside).astype(np.float32), np.array([[centre, centre]]))[0] == 0
    # None is left out that belongs to it.
    values = inside * np.random.default_rng(0).random(inside.shape, dtype=np.float32)
    found = Footprint(spots, step_um).mean(values, np.array([[centre, centre]]))[0]
    assert found == pytest.approx(values[inside].mean(), rel=1e-5)
    assert spots.is_square is (spots is not ROUND)


# ---- pyramids


def levels(path) -> list[np.ndarray]:
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.series) == 1
        return [level.asarray() for level in tiff.series[0].levels]


def slow_halve(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    blocks = pixels[: 2 * height, : 2 * width].astype(np.int64).reshape(height, 2, width, 2).sum((1, 3))
    return (blocks + 2) // 4


@pytest.mark.parametrize("bits", [np.uint8, np.uint16])
def test_halving_is_the_rounded_average_at_either_depth_up_to_white(bits):
    white = int(np.iinfo(bits).max)
    for pixels in (
        np.random.default_rng(0).integers(0, white + 1, (37, 50), dtype=bits),
        np.full((6, 6), white, dtype=bits),
    ):
        found = halve(pixels)
        assert found.dtype == bits
        np.testing.assert_array_equal(found, slow_halve(pixels))


def test_an_image_of_one_channel_is_kept_exactly_with_all_its_levels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2**16, (1301, 1100), dtype=np.uint16)
    write_ome(tmp_path / "a.ome.tif", pixels, mpp=0.25, channel="DAPI")
    full, *below = levels(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(full, pixels)
    assert [level.shape for level in below] == [(650, 550), (325, 275)]
    for above, level in zip([full, *below], below, strict=False):
        np.testing.assert_array_equal(level, slow_halve(above))
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        assert 'PhysicalSizeX="0.25"' in tiff.ome_metadata
        assert 'Name="DAPI"' in tiff.ome_metadata


def test_channels_that_come_one_by_one_are_kept_exactly_with_all_their_levels(tmp_path):
    made = np.random.default_rng(0).integers(0, 2**16, (3, 1101, 1101), dtype=np.uint16)
    for name in ("a", "b"):
        write_ome_channels(tmp_path / f"{name}.ome.tif", iter(made), ("x", "y", "z"), side=1101, mpp=0.5)
    full, *below = levels(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(full, made)
    assert [level.shape for level in below] == [(3, 550, 550), (3, 275, 275)]
    for above, level in zip([full, *below], below, strict=False):
        for channel in range(3):
            np.testing.assert_array_equal(level[channel], slow_halve(above[channel]))
    assert file_digest(tmp_path / "a.ome.tif") == file_digest(tmp_path / "b.ome.tif")
