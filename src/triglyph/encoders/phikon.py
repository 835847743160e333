"""`phikon-v2`: Owkin's ViT-L/16 trained with DINOv2, through transformers.

Filiot et al., arXiv 2409.09173 (2024). The embedding is the CLS token of the final layer norm.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from triglyph.encoders.base import Encoded, EncoderCard, Inputs
from triglyph.encoders.hub import HubEncoder
from triglyph.encoders.image import IMAGENET_MEAN, IMAGENET_STD, ImageEncoder

DEPTH = 24
# transformers 5 renamed the tensors of its DINOv2; published files keep the first names.
_RENAMED = (
    (re.compile(r"\.attention\.attention\.(query|key|value)\."), lambda m: f".attention.{m[1][0]}_proj."),
    (re.compile(r"\.attention\.output\.dense\."), lambda _: ".attention.o_proj."),
)


class PhikonV2(ImageEncoder, HubEncoder):
    """Phikon-v2; `depth` below 24 cuts layers off, for tests."""

    card = EncoderCard(
        name="phikon-v2",
        summary="Pathology foundation model, ViT-L/16 of 303 M parameters, DINOv2 on 460 M tiles of public cohorts.",
        licence="Owkin non-commercial licence",
        commercial_use=False,
        citation="Filiot et al., arXiv:2409.09173 (2024)",
        homepage="https://huggingface.co/owkin/phikon-v2",
        modality="image",
        dim=1024,
        pooling="cls",
        hub_id="owkin/phikon-v2",
        parameters=303_351_808,
        input_px=224,
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pretrained_on=("TCGA", "CPTAC", "GTEx", "TCIA"),
    )
    tensor_files = ("model.safetensors", "pytorch_model.bin")
    config_file = "config.json"

    def __init__(self, *, depth: int = DEPTH) -> None:
        from transformers import Dinov2Config, Dinov2Model

        super().__init__()
        self.depth = depth
        self.vit = Dinov2Model(Dinov2Config(**self.architecture()))
        if depth != DEPTH:
            self.card = type(self).card.model_copy(update={"parameters": sum(p.numel() for p in self.parameters())})

    def architecture(self) -> dict[str, Any]:
        return {
            "hidden_size": 1024,
            "num_hidden_layers": self.depth,
            "num_attention_heads": 16,
            "mlp_ratio": 4,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "image_size": 224,
            "patch_size": 16,
            "use_swiglu_ffn": False,
        }

    def options(self) -> dict[str, Any]:
        return {"depth": self.depth}

    def tower(self) -> nn.Module:
        return self.vit

    def canonical(self, name: str) -> str | None:
        for old, new in _RENAMED:
            name = old.sub(new, name)
        return name

    def encode(self, inputs: Inputs) -> Encoded:
        output = self.vit(pixel_values=self.normalised(inputs["pixels"]))
        tokens = output.last_hidden_state[:, 1:]
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Encoded(output.last_hidden_state[:, 0], tokens, mask)
