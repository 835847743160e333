"""The 52 numbers of stain and texture equal scikit-image's, on noise, on flat glass and on tissue."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import rgb2hed
from skimage.feature import local_binary_pattern

from support import SHARED, needs_shared
from triglyph.encoders import registry
from triglyph.encoders.stain_texture import _patterns, window_features


def reference(window: np.ndarray) -> np.ndarray:
    """As the reference figures of the real tissue are computed."""
    px, values = len(window), []
    for half in (px // 4, px // 2):
        p = window[px // 2 - half : px // 2 + half, px // 2 - half : px // 2 + half]
        hed = rgb2hed(p)
        values += [*hed.mean((0, 1)), *hed.std((0, 1)), *p.mean((0, 1)), *p.std((0, 1))]
        values += [*np.percentile(hed[..., 0], [5, 25, 75, 95])]
        pattern = local_binary_pattern(p.mean(2).astype("u1"), 8, 1, "uniform")
        values += [*np.histogram(pattern, 10, (0, 10), density=True)[0]]
    return np.array(values)


def windows(px: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(px)
    blocks = rng.integers(0, 256, (px // 8, px // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    ramp = np.broadcast_to(np.linspace(0, 255, px).astype(np.uint8)[:, None, None], (px, px, 3))
    return {
        "noise": rng.integers(0, 256, (px, px, 3), dtype=np.uint8),
        "glass": np.full((px, px, 3), 255, dtype=np.uint8),
        "nearly glass": rng.integers(253, 256, (px, px, 3)).astype(np.uint8),
        "black": np.zeros((px, px, 3), dtype=np.uint8),
        "blocks": blocks,
        "ramp": np.ascontiguousarray(ramp),
        "half glass": np.where(np.arange(px)[None, :, None] < px // 3, blocks, 240).astype(np.uint8),
    }


@pytest.mark.parametrize("px", [64, 320])
@pytest.mark.parametrize("kind", windows(8))
def test_the_numbers_equal_the_reference(kind, px):
    window = windows(px)[kind]
    np.testing.assert_allclose(window_features(window), reference(window), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("value", range(0, 256, 15))
def test_patterns_of_flat_areas_fall_as_in_scikit_image(value):
    # Interpolated ties: which way the last bit falls depends on the place in the window.
    for shape in ((37, 61), (128, 128)):
        flat = np.full(shape, value, dtype=np.uint8)
        pattern = local_binary_pattern(flat, 8, 1, "uniform")
        np.testing.assert_array_equal(_patterns(flat), np.histogram(pattern, 10, (0, 10), density=True)[0])


@needs_shared
def test_the_numbers_equal_the_reference_on_real_tissue():
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    image = Image.open(SHARED / "her2st" / "images" / "C2.jpg")
    rng = np.random.default_rng(0)
    region = np.asarray(image.crop((3000, 3000, 5000, 5000)))
    for x, y in rng.integers(0, 2000 - 320, (6, 2)):
        window = np.ascontiguousarray(region[y : y + 320, x : x + 320])
        np.testing.assert_allclose(window_features(window), reference(window), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["stain-texture", "stain-texture-level0"])
def test_the_encoder_gives_these_numbers_for_each_row(name):
    encoder = registry.build(name)
    batch = np.stack(list(windows(320).values()))
    out = encoder.encode(encoder.prepare(batch)).pooled
    expected = np.stack([window_features(w) for w in batch])
    np.testing.assert_array_equal(out.numpy(), expected.astype(np.float32))
    assert not out.requires_grad


def test_one_card_has_a_scale_and_the_other_says_it_has_none():
    assert registry.card("stain-texture").window_um == pytest.approx(224)
    level0 = registry.card("stain-texture-level0")
    assert level0.mpp is None
    assert level0.window_um is None
    assert level0.input_px == 320
    assert registry.build("stain-texture").fingerprint() != registry.build("stain-texture-level0").fingerprint()


def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    from triglyph.settings import settings

    encoder = registry.build("stain-texture")
    inputs = encoder.prepare(np.stack(list(windows(320).values())))
    monkeypatch.setattr(settings, "workers", 1)
    one = encoder.encode(inputs).pooled
    monkeypatch.setattr(settings, "workers", 5)
    assert torch.equal(encoder.encode(inputs).pooled, one)
    assert encoder.encode(encoder.prepare(np.zeros((0, 320, 320, 3), np.uint8))).pooled.shape == (0, 52)
