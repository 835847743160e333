"""The window reader against a brute-force resampler in float64, and its promises about scale."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import openslide
import pytest
import tifffile

from triglyph.errors import ScaleError, SourceError
from triglyph.tissue.frames import Affine
from triglyph.tissue.pixels import OpenSlidePixels, TiffPixels, level_steps, open_pixels
from triglyph.tissue.windows import MAX_ENLARGEMENT, WindowReader


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blobs of several sizes and sharp edges: harder to resample than most tissue."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 235.0)
    for _ in range(400):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(3, 30)
        colour = rng.uniform(40, 220, 3)
        box = (slice(max(0, int(cy - r)), int(cy + r) + 1), slice(max(0, int(cx - r)), int(cx + r) + 1))
        inside = (x[box] - cx) ** 2 + (y[box] - cy) ** 2 < r * r
        image[box][inside] = colour
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def pyramid(path, image: np.ndarray, *, compression: str = "deflate") -> None:
    with tifffile.TiffWriter(path) as tiff:
        level = image
        while True:
            reduced = level is not image
            tiff.write(
                level,
                tile=(128, 128),
                compression=compression,
                photometric="rgb",
                subfiletype=int(reduced),
                metadata=None,
            )
            if max(level.shape) < 300:
                return
            h, w = level.shape[0] // 2 * 2, level.shape[1] // 2 * 2
            level = (level[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3)) + 0.5).astype(np.uint8)


def footprint_weights(start: float, span: float, out: int, size: int) -> np.ndarray:
    """(out, size + 2) dense weights over pixels -1 .. size; column 0 and the last gather what lies outside."""
    step = span / out
    weights = np.zeros((out, size))
    outside = np.zeros(out)
    for j in range(out):
        if step >= 1:
            low, high = start + j * step, start + (j + 1) * step
            pixels = np.arange(np.floor(low), np.ceil(high))
            parts = [(int(p), min(high, p + 1) - max(low, p)) for p in pixels]
        else:
            centre = start + (j + 0.5) * step - 0.5
            p = int(np.floor(centre))
            parts = [(p, 1 - (centre - p)), (p + 1, centre - p)]
        total = sum(w for _, w in parts)
        for p, w in parts:
            if 0 <= p < size:
                weights[j, p] += w / total
            else:
                outside[j] += w / total
    return weights, outside


def brute_force(image: np.ndarray, left: float, top: float, span_x: float, span_y: float, out: int) -> np.ndarray:
    """Exact-footprint resampling of level 0 in float64, white outside."""
    wx, ox = footprint_weights(left, span_x, out, image.shape[1])
    wy, oy = footprint_weights(top, span_y, out, image.shape[0])
    rows, columns = wy.any(0), wx.any(0)
    seen = image[rows][:, columns].astype(np.float64)
    inside = np.tensordot(wx[:, columns], np.tensordot(wy[:, rows], seen, 1), (1, 1)).swapaxes(0, 1)
    return inside + 255 * (1 - np.outer(1 - oy, 1 - ox))[..., None]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    image = texture(901, 1203)
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    pyramid(path, image)
    return path, image


def test_a_thousand_random_windows_agree_with_brute_force(slide):
    path, image = slide
    rng = np.random.default_rng(1)
    height, width = image.shape[:2]
    worst, total = 0.0, 0.0
    for _ in range(1000):
        mpp = rng.uniform(0.2, 1.0)
        out = int(rng.integers(24, 97))
        target = rng.uniform(mpp / MAX_ENLARGEMENT, 5.0 * mpp)
        size_um = out * target
        centre = np.array([rng.uniform(-0.02, 1.02) * width, rng.uniform(-0.02, 1.02) * height]) * mpp
        reader = WindowReader(path, to_um=Affine.scale(mpp))
        got = reader.read(centre, size_um, out).astype(np.float64)
        reader.close()
        span = size_um / mpp
        want = brute_force(image, *(centre / mpp - span / 2), span, span, out)
        difference = np.abs(got - want).mean()
        worst, total = max(worst, difference), total + difference
    # The whole of the difference comes from pyramid levels, which were averaged and rounded before.
    assert total / 1000 < 2.0, f"mean difference {total / 1000:.2f} grey levels"
    assert worst < 4.0, f"worst window differs by {worst:.2f} grey levels"


def test_without_a_pyramid_only_rounding_differs(slide, tmp_path):
    _, image = slide
    path = tmp_path / "flat.tif"
    tifffile.imwrite(path, image, tile=(128, 128), photometric="rgb")
    rng = np.random.default_rng(2)
    reader = WindowReader(path, to_um=Affine.scale(0.5))
    for _ in range(100):
        out, span = int(rng.integers(24, 97)), rng.uniform(40, 300)
        if out / span > MAX_ENLARGEMENT:
            continue
        centre = rng.uniform([0, 0], [image.shape[1], image.shape[0]])
        got = reader.read(centre * 0.5, span * 0.5, out)
        want = brute_force(image, *(centre - span / 2), span, span, out)
        assert np.abs(got - want).max() < 1.0


@pytest.mark.parametrize(("span_px", "out"), [(1800, 1350), (1800, 900), (1801.3, 901), (1700, 1133)])
@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.8])
def test_field_of_view_is_exact(tmp_path, mpp, span_px, out):
    # A ramp whose grey level is its position: the slope over the window says how much of it the window holds.
    ramp = np.broadcast_to(np.linspace(0, 255, 2048)[None, :, None], (512, 2048, 3)).round().astype(np.uint8)
    path = tmp_path / "ramp.tif"
    tifffile.imwrite(path, np.ascontiguousarray(ramp), tile=(256, 256), photometric="rgb")
    reader = WindowReader(path, to_um=Affine.scale(mpp))
    window = reader.read((1024 * mpp, 256 * mpp), span_px * mpp, out)
    middle = window[out // 2 - 20 : out // 2 + 20].astype(float)
    slope = np.polyfit(np.arange(out), middle.mean((0, 2)), 1)[0]
    assert slope * out == pytest.approx(span_px * 255 / 2047, rel=5e-4)


def test_levels_change_only_the_cost(slide, tmp_path):
    path, image = slide
    flat = tmp_path / "flat.tif"
    tifffile.imwrite(flat, image, tile=(128, 128), photometric="rgb")
    deep, one = (WindowReader(p, to_um=Affine.scale(0.5)) for p in (path, flat))
    assert len(deep.pixels.levels) == 4
    assert len(one.pixels.levels) == 1
    a, b = (r.read((300.3, 200.7), 250.0, 64).astype(int) for r in (deep, one))
    assert np.abs(a - b).mean() < 2.0


def test_anisotropic_and_rotated_frames_keep_centre_and_size(slide):
    path, image = slide
    affine = Affine.from_matrix([[0.0, -0.52, 400.0], [0.5, 0.0, 10.0]])
    reader = WindowReader(path, to_um=affine)
    centre_px = np.array([600.25, 450.5])
    got = reader.read(affine(centre_px), 60.0, 64)
    want = brute_force(image, 600.25 - 60, 450.5 - 60 / 0.52 / 2, 120.0, 60 / 0.52, 64)
    assert np.abs(got - want).mean() < 0.6


def test_enlarging_beyond_the_limit_is_refused_with_both_numbers(slide):
    reader = WindowReader(slide[0], to_um=Affine.scale(0.8), mpp_source="array pitch")
    assert reader.plan(100.0, 180).enlargement == pytest.approx(1.44)
    with pytest.raises(ScaleError) as error:
        reader.read((300, 300), 100.0, 224)
    assert "0.446" in str(error.value)
    assert "0.800" in str(error.value)
    assert "array pitch" in str(error.value)


def test_outside_the_image_is_white(slide):
    reader = WindowReader(slide[0], to_um=Affine.scale(0.5))
    assert (reader.read((-500, -500), 50, 32) == 255).all()


def test_native_pixels_are_untouched(slide):
    path, image = slide
    reader = WindowReader(path, to_um=Affine.scale(0.37, origin_um=(11.1, -3.3)))
    centre = reader.to_um([500.0, 400.0])
    assert (reader.read_level0(centre, 160) == image[320:480, 420:580]).all()
    assert (reader.read_level0(reader.to_um([500.9, 400.9]), 160) == image[320:480, 420:580]).all()


def test_steps_of_odd_sizes_snap_to_whole_numbers():
    sizes = [(9271, 9911), (4635, 4955), (2317, 2477)]
    assert [s.step_x for s in level_steps(sizes)] == [1, 2, 4]
    assert level_steps([(1000, 1000), (900, 900)])[1].step_x == pytest.approx(1.1111, abs=1e-3)


def test_both_backends_give_the_same_pixels(slide):
    ours, theirs = TiffPixels(slide[0]), OpenSlidePixels(slide[0])
    assert isinstance(open_pixels(slide[0]), TiffPixels)
    assert openslide.OpenSlide.detect_format(slide[0]) == "generic-tiff"
    for level, most in ((0, 0), (1, 2)):  # OpenSlide places coarser levels to half a level-0 pixel only
        args = (level, 37, 101, 260, 140)
        assert np.abs(ours.read(*args).astype(int) - theirs.read(*args)).mean() <= most


def _sum_of(reader: WindowReader) -> int:
    return int(reader.read((200, 200), 100, 64).sum())


def test_a_reader_travels_to_another_process(slide):
    reader = WindowReader(slide[0], to_um=Affine.scale(0.5))
    again = pickle.loads(pickle.dumps(reader))
    assert _sum_of(again) == _sum_of(reader)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_sum_of, (reader,)) == _sum_of(reader)


@pytest.mark.parametrize("keep", [100, 5_000, 200_000])
def test_a_truncated_tiff_is_named(slide, tmp_path, keep):
    cut = tmp_path / "cut.tif"
    cut.write_bytes(slide[0].read_bytes()[:keep])
    with pytest.raises(SourceError, match=r"cut\.tif"):
        open_pixels(cut)


def test_images_that_cannot_be_read_at_random_are_refused(tmp_path):
    strips = tmp_path / "strips.tif"
    tifffile.imwrite(strips, texture(100, 100), photometric="rgb")
    with pytest.raises(SourceError, match="strips"):
        open_pixels(strips)
    grey = tmp_path / "grey.tif"
    tifffile.imwrite(grey, np.zeros((64, 64), np.uint16), tile=(16, 16))
    with pytest.raises(SourceError, match="8-bit RGB"):
        open_pixels(grey)
