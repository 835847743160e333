"""One transformer for two scales: without the token it is the encoder's own, with it images know their scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import encoder_cases as cases
from triglyph.encoders.base import Encoded, EncoderCard, Inputs
from triglyph.encoders.image import ImageEncoder
from triglyph.encoders.pretext_vit import PretextToken, PretextViT, _view, ref_px, transformer
from triglyph.errors import ContractError
from triglyph.models.lora import LoraConfig, adapt
from triglyph.tissue.regions import shrink


class Uni(ImageEncoder):
    """UNI's shape, a ViT-L/16 of a class token and layer scale, made small."""

    card = EncoderCard(
        name="uni-like",
        modality="image",
        dim=32,
        pooling="cls",
        weights="random",
        input_px=64,
        mpp=0.5,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
    )

    def __init__(self, **changes: object) -> None:
        import timm

        super().__init__()
        fixed = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64, "patch_size": 16, "num_classes": 0}
        options = {**fixed, "init_values": 1e-5, "dynamic_img_size": True, **changes}
        self.vit = timm.create_model("vit_large_patch16_224", pretrained=False, **options)

    def encode(self, inputs: Inputs) -> Encoded:
        features = self.vit.forward_features(self.normalised(inputs["pixels"]))
        return Encoded(self.vit.forward_head(features), features[:, self.vit.num_prefix_tokens :])


KINDS = {
    "tile-vit": lambda: cases.make("tile-vit", dim=32, depth=2, heads=2),
    "uni-like": Uni,
    "registers": lambda: Uni(reg_tokens=3, no_embed_class=True),
    "pre-norm": lambda: Uni(pre_norm=True, dynamic_img_size=False),
    "mean-pooled": lambda: Uni(global_pool="avg"),
    "uni2-h": lambda: cases.make("uni2-h"),
}


def make(kind: str) -> tuple[ImageEncoder, PretextToken]:
    torch.manual_seed(0)
    encoder = KINDS[kind]().eval()
    # The layer scale of a fresh ViT is 1e-5, by which tokens would hardly see each other.
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith(".gamma"):
                parameter.fill_(0.5)
    return encoder, PretextToken(encoder).eval()


def images(encoder: ImageEncoder, n: int = 3, *, seed: int = 0) -> Tensor:
    return torch.from_numpy(cases.raw(encoder, n, seed=seed))


def refs(encoder: ImageEncoder, patches: Tensor) -> Tensor:
    return torch.from_numpy(shrink(patches.numpy(), ref_px(encoder)))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_the_token_the_output_is_the_encoder_s_own(kind):
    encoder, _ = make(kind)
    pixels = images(encoder)
    plain, view = encoder.encode({"pixels": pixels}), _view(encoder, pixels, None)
    torch.testing.assert_close(view.pooled, plain.pooled)
    assert view.pretext.shape == (3, 0, transformer(encoder).embed_dim)
    side = encoder.card.input_px // ref_px(encoder)
    assert view.grid.shape == (3, side, side, transformer(encoder).embed_dim)
    # Encoders that pool first give tokens before the final norm, a view gives them after it.
    torch.testing.assert_close(view.grid.flatten(1, 2), transformer(encoder).fc_norm(plain.tokens))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "uni2-h"])
@torch.no_grad()
def test_both_views_have_their_shapes_and_differ(kind):
    encoder, pretext = make(kind)
    pixels, width = images(encoder), transformer(encoder).embed_dim
    patch = pretext.patch(encoder, pixels)
    region = pretext.region(encoder, pixels, refs(encoder, images(encoder, seed=1)))
    for view in (patch, region):
        assert view.pooled.shape == view.pretext.shape == (3, width)
        assert view.grid.shape[::3] == (3, width)
    assert not torch.allclose(patch.pooled, region.pooled, atol=1e-4)
    assert not torch.allclose(patch.pooled, encoder.encode({"pixels": pixels}).pooled, atol=1e-4)


@torch.no_grad()
def test_the_token_stands_behind_the_class_token_without_a_place_and_is_read_where_it_ends():
    torch.manual_seed(0)
    encoder = Uni(dynamic_img_size=False, init_values=0.5).eval()
    pretext, vit, pixels = PretextToken(encoder), encoder.vit, images(encoder)
    vit.pos_embed.normal_()
    patches = vit.patch_embed(encoder.normalised(pixels)) + vit.pos_embed[:, 1:]
    first = (vit.cls_token + vit.pos_embed[:, :1]).expand(3, -1, -1)
    x = torch.cat([first, pretext.token.expand(3, -1, -1), patches], dim=1)
    for block in vit.blocks:
        x = block(x)
    x = vit.norm(x)
    view = pretext.patch(encoder, pixels)
    torch.testing.assert_close(view.pooled, x[:, 0])
    torch.testing.assert_close(view.pretext, x[:, 1])
    torch.testing.assert_close(view.grid, x[:, 2:].reshape(3, 4, 4, 32))


@torch.no_grad()
def test_a_ref_is_one_token_of_the_transformer():
    # The token of a ref is that of the first patch of an image whose first patch it is, less the place.
    encoder, pretext = make("uni-like")
    ref = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8))
    image = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    image[:, :16, :16] = ref
    token = encoder.vit.patch_embed(encoder.normalised(image))[:, 0, 0]
    seen: list[Tensor] = []
    handle = pretext.embed_ref.register_forward_hook(lambda _module, given, _out: seen.append(given[0]))
    pretext.region(encoder, image, ref)
    handle.remove()
    torch.testing.assert_close(seen[0][:, 0], token)


@torch.no_grad()
def test_rows_do_not_see_each_other():
    encoder, pretext = make("uni-like")
    pixels, ref = images(encoder, 4), refs(encoder, images(encoder, 4, seed=1))
    order = torch.tensor([2, 0, 3, 1])
    whole = pretext.region(encoder, pixels, ref)
    for found, expected in zip(pretext.region(encoder, pixels[order], ref[order]), whole, strict=True):
        torch.testing.assert_close(found, expected[order])
    for found, expected in zip(pretext.region(encoder, pixels[1:2], ref[1:2]), whole, strict=True):
        torch.testing.assert_close(found, expected[1:2])


@torch.no_grad()
def test_where_its_patches_lie_is_part_of_what_a_region_says():
    encoder, pretext = make("uni-like")
    encoder.vit.pos_embed.normal_()
    pixels = images(encoder, 1)
    other = pixels.clone()
    other[:, :16, :16], other[:, :16, 16:32] = pixels[:, :16, 16:32], pixels[:, :16, :16].clone()
    ref = refs(encoder, images(encoder, 1, seed=1))
    a, b = pretext.region(encoder, pixels, ref), pretext.region(encoder, other, ref)
    assert not torch.allclose(a.pretext, b.pretext, atol=1e-4)


def test_gradients_reach_the_token_and_the_map_through_a_locked_transformer():
    encoder, pretext = make("tile-vit")
    encoder.requires_grad_(requires_grad=False)
    pixels = images(encoder)
    patch, region = pretext.patch(encoder, pixels), pretext.region(encoder, pixels, refs(encoder, pixels))
    (patch.pooled.square().sum() + region.pooled.square().sum()).backward()
    assert pretext.token.grad is not None
    assert pretext.token.grad.abs().sum() > 0
    assert pretext.embed_ref.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in encoder.parameters())


def test_an_adapted_transformer_is_used_as_it_is():
    encoder, pretext = make("uni-like")
    before = pretext.patch(encoder, images(encoder)).pooled.detach()
    adapt(encoder, LoraConfig(dropout=0.0))
    torch.testing.assert_close(pretext.patch(encoder, images(encoder)).pooled.detach(), before)
    pretext.patch(encoder, images(encoder)).pooled.square().sum().backward()
    assert any(p.grad is not None for n, p in encoder.named_parameters() if "lora_up" in n)


def test_the_encoder_of_patches_is_an_encoder():
    encoder, pretext = make("tile-vit")
    applied = PretextViT(encoder, pretext).eval()
    given = cases.raw(encoder)
    out = applied.encode(applied.prepare(given))
    torch.testing.assert_close(out.pooled, pretext.patch(encoder, torch.from_numpy(given)).pooled)
    assert out.pooled.shape == (4, applied.card.dim)
    assert out.tokens.shape[:2] == out.mask.shape
    assert applied.options() == encoder.options()
    first = applied.fingerprint()
    assert first != encoder.fingerprint()
    with torch.no_grad():
        pretext.token[0, 0, 0] += 1
    assert applied.fingerprint() != first


def test_a_ref_of_another_size_is_refused():
    encoder, pretext = make("uni-like")
    with pytest.raises(ContractError, match="shrink each patch to 16 px"):
        pretext.region(encoder, images(encoder), torch.zeros(3, 8, 8, 3, dtype=torch.uint8))


def test_encoders_that_no_token_can_be_put_into_are_refused():
    with pytest.raises(ContractError, match="holds 0 of timm's vision transformers"):
        PretextToken(cases.shared("stain-texture"))
    with pytest.raises(ContractError, match="drops patches at random"):
        PretextToken(Uni(patch_drop_rate=0.5))
    two = Uni()
    two.other = Uni().vit
    with pytest.raises(ContractError, match="holds 2"):
        PretextToken(two)
    odd = Uni()
    odd.vit.patch_embed = nn.Identity()
    with pytest.raises(ContractError, match="embeds patches by Identity"):
        PretextToken(odd)
    distilled = Uni()
    distilled.vit.__class__ = type("Distilled", (type(distilled.vit),), {"forward_features": lambda self, x: x})
    with pytest.raises(ContractError, match="another way through its layers"):
        PretextToken(distilled)


@torch.no_grad()
def test_of_conch_the_transformer_alone_is_used():
    encoder = cases.shared("conch")
    view = PretextToken(encoder).patch(encoder, images(encoder, 1))
    assert view.pooled.shape == (1, 768)
    assert PretextViT(encoder, PretextToken(encoder)).card.dim == 768
