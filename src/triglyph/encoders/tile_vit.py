"""`tile-vit`: a small vision transformer to train from scratch on two CPU cores.

64 pixels at 1.75 µm per pixel show 112 µm of tissue, a legacy ST spot or two Visium spots, in 64 tokens: nuclei are
blobs of four pixels, which is enough to tell densities and architecture apart, and little enough to train in minutes.
"""

from __future__ import annotations

from typing import Any

import torch

from triglyph.encoders.base import Encoded, EncoderCard, Inputs
from triglyph.encoders.image import ImageEncoder

_MEAN, _STD = (0.80, 0.65, 0.78), (0.15, 0.20, 0.14)
"""About what H&E on white glass has; from scratch, any fixed numbers near them do."""


class TileViT(ImageEncoder):
    """A timm `VisionTransformer` of a few layers, mean-pooled over patches.

    Parameters
    ----------
    dim, depth, heads
        Width, number of layers, attention heads.
    patch_px
        Side of a patch, a divisor of 64.
    """

    card = EncoderCard(
        name="tile-vit",
        summary="Small ViT for 112 µm windows, trained from scratch; the offline default for images.",
        licence="Apache-2.0",
        commercial_use=True,
        citation="Dosovitskiy et al., ICLR 2021 (ViT)",
        homepage="https://github.com/huggingface/pytorch-image-models",
        modality="image",
        dim=128,
        pooling="mean",
        weights="random",
        input_px=64,
        mpp=1.75,
        mean=_MEAN,
        std=_STD,
    )

    def __init__(self, *, dim: int = 128, depth: int = 4, heads: int = 4, patch_px: int = 8) -> None:
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        self._options = {"dim": dim, "depth": depth, "heads": heads, "patch_px": patch_px}
        self.vit = VisionTransformer(
            img_size=self.card.input_px or 0,
            patch_size=patch_px,
            num_classes=0,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            mlp_ratio=2,
            class_token=False,
            global_pool="avg",
            fc_norm=True,
        )
        count = sum(p.numel() for p in self.parameters())
        self.card = type(self).card.model_copy(update={"dim": dim, "parameters": count})

    def options(self) -> dict[str, Any]:
        return dict(self._options)

    def encode(self, inputs: Inputs) -> Encoded:
        features = self.vit.forward_features(self.normalised(inputs["pixels"]))
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return Encoded(self.vit.forward_head(features), features, mask)
