from __future__ import annotations

import pytest
import torch

from triglyph.training.augment import AugmentConfig, augment, restained, turned


def windows(n: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_eight_symmetries_are_eight_and_keep_every_pixel() -> None:
    one = windows(1).repeat(8, 1, 1, 1)
    out = turned(one, list(range(8)))
    assert len({bytes(w.numpy().tobytes()) for w in out}) == 8
    assert torch.equal(out[0], one[0])
    for w in out:
        assert torch.equal(w.reshape(-1, 3).sort(0).values, one[0].reshape(-1, 3).sort(0).values)


def test_restaining_multiplies_optical_density_and_leaves_white() -> None:
    pixels = windows()
    pixels[0, 0, 0] = 255
    factors = torch.tensor([[1.0, 1.0, 1.0], [1.2, 0.8, 1.0], [0.5, 0.5, 0.5]])
    out = restained(pixels, factors)
    assert torch.equal(out[0], pixels[0])
    density = -(pixels[1].float() / 255).clamp(min=1e-6).log() * factors[1]
    torch.testing.assert_close(out[1].float(), 255 * (-density).exp(), atol=0.51, rtol=0)


def test_augmentation_repeats_with_the_random_state_and_leaves_features_alone() -> None:
    config = AugmentConfig(symmetries=True, stain=0.2)
    batch = {"n": 3, "image": {"rows": torch.arange(3), "pixels": windows()}}
    torch.manual_seed(1)
    a = augment(batch, config)["image"]["pixels"]
    torch.manual_seed(1)
    assert torch.equal(a, augment(batch, config)["image"]["pixels"])
    assert not torch.equal(a, batch["image"]["pixels"])
    cached = {"n": 3, "image": {"rows": torch.arange(3), "features": torch.ones(3, 2)}}
    assert augment(cached, config) is cached
    assert augment(batch, AugmentConfig()) is batch


@pytest.mark.parametrize("stain", [-0.1, 1.0])
def test_impossible_stains_are_refused(stain: float) -> None:
    with pytest.raises(ValueError, match="stain"):
        AugmentConfig(stain=stain)
