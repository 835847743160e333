"""`conch`: the image tower of CONCH (Lu et al., Nature Medicine 30:863, 2024), a CoCa ViT-B/16 at 448 pixels.

Built from what is public: a plain ViT-B/16, then an attentional pooler with one learnt query that reads its tokens and
gives the 512-d embedding (`embedding="pooled"`, what its authors use for probes), which a matrix maps into the space
shared with text (`"projected"`, for retrieval against CONCH's own text tower).

A published checkpoint holds the whole CoCa. What gives the embedding loads strictly; the pooler of 256 queries made for
captioning, the text tower, the caption decoder and the temperature are left out.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from triglyph.encoders.base import Encoded, EncoderCard, Inputs
from triglyph.encoders.hub import HubEncoder
from triglyph.encoders.image import ImageEncoder
from triglyph.errors import RecipeError

DEPTH, WIDTH = 12, 768
_OTHER_PARTS = ("text.", "text_decoder.", "logit_scale", "visual.attn_pool_caption.", "visual.ln_caption.")


class AttentionalPooler(nn.Module):
    """Learnt queries that attend to the tokens of an image: (n, length, width) -> (n, queries, dim)."""

    def __init__(self, *, dim: int, width: int, queries: int, heads: int = 8) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, dim))
        self.attn = nn.MultiheadAttention(dim, heads, kdim=width, vdim=width, batch_first=True)
        self.ln_q = nn.LayerNorm(dim)
        self.ln_k = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        keys = self.ln_k(tokens)
        queries = self.ln_q(self.query).expand(len(tokens), -1, -1)
        pooled: Tensor = self.attn(queries, keys, keys, need_weights=False)[0]
        return pooled


class _Visual(nn.Module):
    """Named as in the checkpoint, under `visual.`."""

    def __init__(self, depth: int) -> None:
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        self.trunk = VisionTransformer(
            img_size=448,
            patch_size=16,
            embed_dim=WIDTH,
            depth=depth,
            num_heads=12,
            mlp_ratio=4,
            num_classes=0,
            dynamic_img_size=True,
        )
        self.attn_pool_contrast = AttentionalPooler(dim=512, width=WIDTH, queries=1)
        self.ln_contrast = nn.LayerNorm(512)
        self.proj_contrast = nn.Parameter(torch.randn(512, 512) * WIDTH**-0.5)


class ConchImage(ImageEncoder, HubEncoder):
    """CONCH's image tower.

    Parameters
    ----------
    embedding
        `pooled`, or `projected` into the space CONCH shares with its text tower.
    depth
        Below 12 it cuts layers off, for tests.
    """

    card = EncoderCard(
        name="conch",
        summary=(
            "Image tower of the vision-language model CONCH, ViT-B/16 at 448 px with an attentional pooler. "
            "Loads the image embedding of the published checkpoint; its text tower and caption decoder are not built."
        ),
        licence="CC-BY-NC-ND-4.0",
        commercial_use=False,
        citation="Lu et al., Nature Medicine 30:863 (2024), doi:10.1038/s41591-024-02856-4",
        homepage="https://huggingface.co/MahmoodLab/CONCH",
        modality="image",
        dim=512,
        pooling="attention",
        hub_id="MahmoodLab/CONCH",
        gated=True,
        parameters=87_829_248,
        input_px=448,
        mpp=0.5,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        pretrained_on=("PubMed Central figures", "educational resources"),
    )
    tensor_files = ("pytorch_model.bin", "model.safetensors")

    def __init__(self, *, embedding: Literal["pooled", "projected"] = "pooled", depth: int = DEPTH) -> None:
        super().__init__()
        if embedding not in ("pooled", "projected"):
            raise RecipeError(f"conch has no embedding {embedding!r}", mend="choose 'pooled' or 'projected'")
        self.embedding, self.depth = embedding, depth
        self.visual = _Visual(depth)
        if depth != DEPTH:
            self.card = type(self).card.model_copy(update={"parameters": sum(p.numel() for p in self.parameters())})

    def options(self) -> dict[str, Any]:
        return {"embedding": self.embedding, "depth": self.depth}

    def tower(self) -> nn.Module:
        return self.visual

    def canonical(self, name: str) -> str | None:
        if name.startswith(_OTHER_PARTS):
            return None
        return name.removeprefix("visual.")

    def encode(self, inputs: Inputs) -> Encoded:
        v = self.visual
        features = v.trunk.forward_features(self.normalised(inputs["pixels"]))
        pooled = v.ln_contrast(v.attn_pool_contrast(features)[:, 0])
        if self.embedding == "projected":
            pooled = pooled @ v.proj_contrast
        tokens = features[:, 1:]
        return Encoded(pooled, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))
