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
BESIDE = ("region", "ref")
"""Names of others that show the same places, and are varied with them."""


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
    views: dict[str, Tensor] = {name: entry[name] for name in (PIXELS, *BESIDE) if name in entry}
    n = len(entry[PIXELS])
    if config.symmetries:
        symmetries = torch.randint(0, 8, (n,)).tolist()
        if "cell" in entry:
            entry = {**entry, "cell": turned_cells(entry["cell"], symmetries)}
        views = {name: turned(view, symmetries) for name, view in views.items()}
    if config.stain:
        both = 1 + config.stain * (2 * torch.rand(n, 1) - 1)
        each = 1 + config.stain / 2 * (2 * torch.rand(n, 3) - 1)
        views = {name: restained(view, both * each) for name, view in views.items()}
    return {**batch, "image": {**entry, **views}}


def turned(pixels: Tensor, symmetries: list[int]) -> Tensor:
    """Each window (n, px, px, 3) under one of eight symmetries: 0-3 are quarter turns, 4-7 mirrored ones."""
    out = torch.empty_like(pixels)
    for kind in range(8):
        rows = torch.tensor([i for i, s in enumerate(symmetries) if s == kind], device=pixels.device, dtype=torch.long)
        if len(rows):
            mine = torch.rot90(pixels[rows], kind % 4, (1, 2))
            out[rows] = mine.flip(2) if kind >= 4 else mine
    return out


def turned_cells(cells: Tensor, symmetries: list[int]) -> Tensor:
    """Where cells (n,) of 3 x 3, numbered row by row, come to lie when their windows are `turned`; -1 stays."""
    numbered = torch.arange(9, device=cells.device).reshape(1, 3, 3, 1)
    # Row k: which cell lies where under symmetry k; its inverse says where each has gone.
    seen = torch.cat([turned(numbered, [kind]) for kind in range(8)]).reshape(8, 9)
    goes = seen.argsort(dim=1)[torch.tensor(symmetries, dtype=torch.long, device=cells.device)]
    return torch.where(cells < 0, cells, goes.gather(1, cells.clamp(min=0)[:, None])[:, 0])


def restained(pixels: Tensor, factors: Tensor) -> Tensor:
    """Windows (n, px, px, 3) uint8 whose optical density is multiplied by `factors` (n, 3); white stays white."""
    grey = torch.arange(256, dtype=torch.float32) / 255
    table = (255 * grey[None, None, :] ** factors[:, :, None]).round().to(torch.uint8).to(pixels.device)
    n, height, width, _ = pixels.shape
    flat = pixels.permute(0, 3, 1, 2).reshape(n, 3, -1).long()
    return table.gather(2, flat).reshape(n, 3, height, width).permute(0, 2, 3, 1).contiguous()
