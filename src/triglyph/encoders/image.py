"""What all image encoders share: pixels stay uint8 until they are on the device, and are normalised there."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from triglyph.encoders.base import Encoder, Inputs, Modality
from triglyph.errors import ContractError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageEncoder(Encoder):
    """Base of image encoders. The only input is `pixels`, (n, px, px, 3) uint8."""

    modality: ClassVar[Modality] = "image"

    def prepare(self, raw: Any) -> Inputs:
        """Windows (n, px, px, 3) uint8 at the card's size, as they are.

        Raises
        ------
        ContractError
            They are of another size or type.
        """
        px = self.card.input_px
        if not isinstance(raw, np.ndarray) or raw.dtype != np.uint8 or raw.ndim != 4 or raw.shape[1:] != (px, px, 3):
            got = f"{raw.dtype} {raw.shape}" if isinstance(raw, np.ndarray) else type(raw).__name__
            raise ContractError(
                f"{self.card.name} reads uint8 windows of shape (n, {px}, {px}, 3), not {got}",
                mend="read them with the window reader at the card's `input_px` and `mpp`",
            )
        # A window may be a view of a read-only memory map, which torch would warn of.
        return {"pixels": torch.from_numpy(np.array(raw, order="C"))}

    def normalised(self, pixels: Tensor) -> Tensor:
        """(n, px, px, 3) uint8 to (n, 3, px, px) float32, by the card's mean and std."""
        mean = torch.tensor(self.card.mean, dtype=torch.float32, device=pixels.device)
        std = torch.tensor(self.card.std, dtype=torch.float32, device=pixels.device)
        scaled = (pixels.to(torch.float32) / 255 - mean) / std
        return scaled.permute(0, 3, 1, 2).contiguous()
