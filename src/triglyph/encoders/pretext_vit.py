"""One vision transformer for two scales: a pretext token says which scale an image is of.

Stamp (ICLR 2026) puts one more token behind the class token, without a position embedding. For a *patch* it is a learnt
vector, the same for all. For a *region*, three patches wide, it is what the transformer's own patch embedding makes of
the patch shrunk to a single token ("ref"), through a linear map: a question carried along with the region, whose answer
is read from where the token ends.

Any encoder around a timm `VisionTransformer` can be used so. Its modules are called in timm's own order with the token
in between, so its weights load, adapt and save as they ever do; without the token the result is the transformer's own.
What an encoder puts behind its transformer (the attentional pooler of CONCH) is not called.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triglyph.encoders.base import Encoded, Inputs
from triglyph.encoders.image import ImageEncoder
from triglyph.errors import ContractError


class View(NamedTuple):
    """What the transformer makes of an image."""

    pooled: Tensor
    """(n, dim) class token after the final norm; where there is none, what the transformer pools"""
    pretext: Tensor
    """(n, dim) the pretext token after the final norm"""
    grid: Tensor
    """(n, rows, columns, dim) patch tokens after the final norm"""


class PretextToken(nn.Module):
    """The learnt token of patches and the map of refs; the transformer itself stays with its encoder.

    Parameters
    ----------
    encoder
        Whose width is taken; see `transformer` for which can be used.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        dim = transformer(encoder).embed_dim
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.embed_ref = nn.Linear(dim, dim)

    def patch(self, encoder: ImageEncoder, pixels: Tensor) -> View:
        """Patches (n, px, px, 3) uint8, at the card's scale."""
        return _view(encoder, pixels, self.token.expand(len(pixels), -1, -1))

    def region(self, encoder: ImageEncoder, pixels: Tensor, ref: Tensor) -> View:
        """Regions (n, px, px, 3) uint8 of three times the card's scale, each with its patch at the size of a token.

        Parameters
        ----------
        ref
            (n, s, s, 3) uint8, s the side of the transformer's patches in pixels.

        Raises
        ------
        ContractError
            `ref` has another size.
        """
        embed, side = transformer(encoder).patch_embed, ref_px(encoder)
        if ref.shape != (len(pixels), side, side, 3):
            raise ContractError(
                f"refs of shape {tuple(ref.shape)} for {len(pixels)} regions",
                where=encoder.card.name,
                mend=f"shrink each patch to {side} px, one token of this transformer",
            )
        # One patch and no place: the convolution and norm of the embedding, without its check of the image's size.
        token = embed.norm(embed.proj(encoder.normalised(ref)).flatten(2).transpose(1, 2))
        return _view(encoder, pixels, self.embed_ref(token))


class PretextViT(ImageEncoder):
    """An encoder and its pretext token as one encoder of patches: what a model trained so is applied with.

    Parameters
    ----------
    encoder
        With the transformer.
    pretext
        Its token.
    """

    def __init__(self, encoder: ImageEncoder, pretext: PretextToken) -> None:
        super().__init__()
        self.encoder, self.pretext = encoder, pretext
        self.card = encoder.card.model_copy(update={"dim": transformer(encoder).embed_dim})

    def options(self) -> dict[str, Any]:
        return self.encoder.options()

    def encode(self, inputs: Inputs) -> Encoded:
        view = self.pretext.patch(self.encoder, inputs["pixels"])
        tokens = view.grid.flatten(1, 2)
        return Encoded(view.pooled, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))


def transformer(encoder: ImageEncoder) -> Any:
    """The timm `VisionTransformer` in an encoder.

    Raises
    ------
    ContractError
        There is none, or more than one, or it does more than timm's own: another way through its layers, an embedding
        that is no single convolution, or tokens dropped at random.
    """
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    found = [module for module in encoder.modules() if isinstance(module, VisionTransformer)]
    problem = ""
    if len(found) != 1:
        problem = f"holds {len(found)} of timm's vision transformers"
    elif type(found[0]).forward_features is not VisionTransformer.forward_features:
        problem = f"goes another way through its layers ({type(found[0]).__name__})"
    elif not isinstance(found[0].patch_embed, PatchEmbed):
        problem = f"embeds patches by {type(found[0].patch_embed).__name__}"
    elif not isinstance(found[0].patch_drop, nn.Identity):
        problem = "drops patches at random"
    if problem:
        raise ContractError(
            f"{encoder.card.name} {problem}, so no token can be put in",
            where="PretextToken",
            mend="use an encoder around one plain timm VisionTransformer, such as tile-vit or uni2-h",
        )
    return found[0]


def ref_px(encoder: ImageEncoder) -> int:
    """Side in pixels of a ref: one patch of the transformer."""
    side: int = transformer(encoder).patch_embed.patch_size[0]
    return side


def _view(encoder: ImageEncoder, pixels: Tensor, pretext: Tensor | None) -> View:
    """The transformer's way through its layers, with `pretext` (n, 1, dim) behind the class token.

    Without it, `View.pretext` is empty: (n, 0, dim).
    """
    vit = transformer(encoder)
    x = vit._pos_embed(vit.patch_embed(encoder.normalised(pixels)))
    behind, length = int(vit.has_class_token), 0 if pretext is None else 1
    if pretext is not None:
        x = torch.cat([x[:, :behind], pretext.to(x.dtype), x[:, behind:]], dim=1)
    x = vit.norm(vit.blocks(vit.norm_pre(x)))
    first, own, last = x.split([behind, length, x.shape[1] - behind - length], dim=1)
    features = torch.cat([first, last], dim=1)
    # Where timm pools first and norms afterwards, `norm` above did nothing, and `fc_norm` is the final one.
    rows = pixels.shape[1] // vit.patch_embed.patch_size[0]
    grid = vit.fc_norm(features[:, vit.num_prefix_tokens :]).unflatten(1, (rows, -1))
    own = vit.fc_norm(own)
    return View(vit.forward_head(features, pre_logits=True), own.squeeze(1) if length else own, grid)
