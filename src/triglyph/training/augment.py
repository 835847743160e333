"""Augmentation of windows that a learning image tower reads, on the device, as a function of the step's random state.

Tissue has no up and no left, and every laboratory stains differently. So: one of the eight symmetries of the square,
and a factor on the optical density of each colour channel, which is what more or less stain does to light.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from triglyph.cards import Frozen
from triglyph.models.base import Batch

PIXELS = "pixels"
"""Name of the prepared input that holds windows, (n, px, px, 3) uint8."""


class AugmentConfig(Frozen):
    """What is varied in training."""

    symmetries: bool = False
    """Turn and mirror each window at random."""
    stain: float = Field(default=0.0, ge=0, lt=1)
    """Optical densities are multiplied by 1 ± this for all channels together, and by 1 ± half of it for each."""


def augment(batch: Batch, config: AugmentConfig) -> Batch:
    """`batch` with its windows varied, if it holds any; cached features are constants and stay as they are."""
    entry = batch.get("image")
    if entry is None or PIXELS not in entry or not (config.symmetries or config.stain):
        return batch
    pixels: Tensor = entry[PIXELS]
    if config.symmetries:
        pixels = turned(pixels, torch.randint(0, 8, (len(pixels),)).tolist())
    if config.stain:
        both = 1 + config.stain * (2 * torch.rand(len(pixels), 1) - 1)
        each = 1 + config.stain / 2 * (2 * torch.rand(len(pixels), 3) - 1)
        pixels = restained(pixels, both * each)
    return {**batch, "image": {**entry, PIXELS: pixels}}


def turned(pixels: Tensor, symmetries: list[int]) -> Tensor:
    """Each window (n, px, px, 3) under one of eight symmetries: 0-3 are quarter turns, 4-7 mirrored ones."""
    out = torch.empty_like(pixels)
    for kind in range(8):
        rows = torch.tensor([i for i, s in enumerate(symmetries) if s == kind], device=pixels.device, dtype=torch.long)
        if len(rows):
            mine = torch.rot90(pixels[rows], kind % 4, (1, 2))
            out[rows] = mine.flip(2) if kind >= 4 else mine
    return out


def restained(pixels: Tensor, factors: Tensor) -> Tensor:
    """Windows (n, px, px, 3) uint8 whose optical density is multiplied by `factors` (n, 3); white stays white."""
    grey = torch.arange(256, dtype=torch.float32) / 255
    table = (255 * grey[None, None, :] ** factors[:, :, None]).round().to(torch.uint8).to(pixels.device)
    n, height, width, _ = pixels.shape
    flat = pixels.permute(0, 3, 1, 2).reshape(n, 3, -1).long()
    return table.gather(2, flat).reshape(n, 3, height, width).permute(0, 2, 3, 1).contiguous()
