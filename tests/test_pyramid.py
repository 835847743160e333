"""The pyramid writer: levels are box averages, the scale is stated exactly, bytes repeat, nothing is half written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from triglyph.errors import ContractError, ScaleError
from triglyph.tissue.pyramid import halve, write_pyramid


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise, which JPEG keeps well."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(130, 220, (height // 32 + 2, width // 32 + 2, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def slow_halve(pixels: np.ndarray) -> np.ndarray:
    out = np.empty((pixels.shape[0] // 2, pixels.shape[1] // 2, 3), np.uint8)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            block = pixels[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(4, 3).astype(int)
            out[i, j] = (block.sum(0) + 2) // 4
    return out


@given(height=st.integers(2, 9), width=st.integers(2, 9), seed=st.integers(0, 99))
@hypothesis_settings(max_examples=30, deadline=None)
def test_halving_is_the_box_average_of_two_by_two_pixels(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(halve(pixels), slow_halve(pixels))


@given(
    height=st.integers(1, 1100),
    width=st.integers(1, 1100),
    tile=st.sampled_from([64, 256]),
    seed=st.integers(0, 99),
)
@hypothesis_settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_level_of_a_lossless_pyramid_is_exact_in_openslide_and_tifffile(tmp_path, height, width, tile, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = write_pyramid(pixels, tmp_path / "p.tif", mpp=0.5, tile=tile, lossless=True)
    with openslide.OpenSlide(path) as slide, tifffile.TiffFile(path) as tiff:
        assert slide.level_count == len(tiff.pages)
        level = pixels
        for k in range(slide.level_count):
            assert slide.level_dimensions[k] == level.shape[1::-1]
            read = np.asarray(slide.read_region((0, 0), k, slide.level_dimensions[k]).convert("RGB"))
            np.testing.assert_array_equal(read, level)
            np.testing.assert_array_equal(tiff.pages[k].asarray(), level)
            level = halve(level)
        smallest = slide.level_dimensions[-1]
        assert max(smallest) <= 512 or min(smallest) == 1


def test_jpeg_levels_equal_the_box_average_within_jpeg_error(tmp_path):
    pixels = picture(1500, 2100)
    path = write_pyramid(pixels, tmp_path / "p.tif", mpp=0.25)
    level = pixels
    with openslide.OpenSlide(path) as slide:
        assert slide.level_count == 4
        for k in range(slide.level_count):
            read = np.asarray(slide.read_region((0, 0), k, slide.level_dimensions[k]).convert("RGB")).astype(float)
            # Chroma is halved in JPEG, so colour edges cost; luminance is what must hold.
            error = np.abs(read.mean(2) - level.astype(float).mean(2)).mean()
            assert error < 2.5
            level = halve(level)


@pytest.mark.parametrize("mpp", [0.2273, 0.4831, 0.5, 1.0])
def test_openslide_reads_the_scale_that_was_written(tmp_path, mpp):
    path = write_pyramid(picture(64, 80), tmp_path / "p.tif", mpp=mpp)
    with openslide.OpenSlide(path) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(mpp, rel=1e-7)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(mpp, rel=1e-7)


def test_rows_on_demand_give_the_same_bytes_as_an_array(tmp_path):
    pixels = picture(700, 300)
    asked: list[tuple[int, int]] = []

    def rows(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return pixels[start:stop]

    whole = write_pyramid(pixels, tmp_path / "a.tif", mpp=0.5)
    streamed = write_pyramid(rows, tmp_path / "b.tif", mpp=0.5, shape=(700, 300))
    assert whole.read_bytes() == streamed.read_bytes()
    assert asked == [(0, 256), (256, 512), (512, 700)]


def test_edge_tiles_do_not_ring_into_the_picture(tmp_path):
    white = np.full((300, 300, 3), 240, np.uint8)
    path = write_pyramid(white, tmp_path / "p.tif", mpp=0.5)
    assert np.abs(tifffile.imread(path).astype(int) - 240).max() <= 1


def test_the_file_carries_no_date_and_no_software(tmp_path):
    path = write_pyramid(picture(64, 64), tmp_path / "p.tif", mpp=0.5)
    with tifffile.TiffFile(path) as tiff:
        assert not {"DateTime", "Software", "ImageDescription"} & set(tiff.pages[0].tags.keys())


@pytest.mark.parametrize(
    ("pixels", "options", "error"),
    [
        (np.zeros((8, 8), np.uint8), {}, ContractError),
        (np.zeros((8, 8, 4), np.uint8), {}, ContractError),
        (np.zeros((8, 8, 3), np.float32), {}, ContractError),
        (np.zeros((0, 8, 3), np.uint8), {}, ContractError),
        (np.zeros((8, 8, 3), np.uint8), {"tile": 100}, ContractError),
        (np.zeros((8, 8, 3), np.uint8), {"quality": 0}, ContractError),
        (np.zeros((8, 8, 3), np.uint8), {"mpp": 0.0}, ScaleError),
        (np.zeros((8, 8, 3), np.uint8), {"mpp": float("nan")}, ScaleError),
        (lambda start, stop: np.zeros((stop - start, 8, 3), np.uint8), {}, ContractError),
        (lambda start, stop: np.zeros((stop - start, 9, 3), np.uint8), {"shape": (8, 8)}, ContractError),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path, pixels, options, error):
    with pytest.raises(error):
        write_pyramid(pixels, tmp_path / "p.tif", **{"mpp": 0.5, **options})
    assert list(tmp_path.iterdir()) == []
