"""`uni2-h`: UNI2-h of the Mahmood Lab, a ViT-H/14 with registers, through timm.

Chen et al., Nature Medicine 30:850 (2024), and the model card of MahmoodLab/UNI2-h (2025), whose timm arguments are
those below. The published transform resizes to 224 pixels and normalises by ImageNet's mean and std; ours reads the
window at 0.5 µm per pixel, so that nothing is left to resize.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from triglyph.encoders.base import Encoded, EncoderCard, Inputs
from triglyph.encoders.hub import HubEncoder
from triglyph.encoders.image import IMAGENET_MEAN, IMAGENET_STD, ImageEncoder

DEPTH = 24


class Uni2h(ImageEncoder, HubEncoder):
    """UNI2-h; `depth` below 24 cuts layers off, for tests."""

    card = EncoderCard(
        name="uni2-h",
        summary="Pathology foundation model, ViT-H/14 of 681 M parameters, DINOv2 on 200 M tiles of 350 k slides.",
        licence="CC-BY-NC-ND-4.0",
        commercial_use=False,
        citation="Chen et al., Nature Medicine 30:850 (2024), doi:10.1038/s41591-024-02857-3",
        homepage="https://huggingface.co/MahmoodLab/UNI2-h",
        modality="image",
        dim=1536,
        pooling="cls",
        hub_id="MahmoodLab/UNI2-h",
        gated=True,
        parameters=681_394_176,
        input_px=224,
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pretrained_on=("Mass General Brigham", "GTEx"),
    )
    tensor_files = ("pytorch_model.bin", "model.safetensors")

    def __init__(self, *, depth: int = DEPTH) -> None:
        import timm
        from timm.layers import SwiGLUPacked

        super().__init__()
        self.depth = depth
        self.vit = timm.create_model(
            "vit_giant_patch14_224",
            pretrained=False,
            img_size=224,
            patch_size=14,
            depth=depth,
            num_heads=24,
            embed_dim=1536,
            init_values=1e-5,
            mlp_ratio=2.66667 * 2,
            mlp_layer=SwiGLUPacked,
            act_layer=nn.SiLU,
            reg_tokens=8,
            no_embed_class=True,
            dynamic_img_size=True,
            num_classes=0,
        )
        if depth != DEPTH:
            self.card = type(self).card.model_copy(update={"parameters": sum(p.numel() for p in self.parameters())})

    def options(self) -> dict[str, Any]:
        return {"depth": self.depth}

    def tower(self) -> nn.Module:
        return self.vit

    def encode(self, inputs: Inputs) -> Encoded:
        features = self.vit.forward_features(self.normalised(inputs["pixels"]))
        tokens = features[:, self.vit.num_prefix_tokens :]
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Encoded(self.vit.forward_head(features), tokens, mask)
