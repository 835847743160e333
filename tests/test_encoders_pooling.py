"""Each published encoder gives the embedding its card names, from the transform its authors state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

import encoder_cases as cases
from triglyph.encoders import registry
from triglyph.errors import WeightsError


def transformed(encoder, windows: np.ndarray) -> torch.Tensor:
    """As published: to [0, 1], then mean and std."""
    steps = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(encoder.card.mean, encoder.card.std)]
    )
    return torch.stack([steps(w) for w in windows])


@pytest.mark.parametrize("name", ["uni2-h", "phikon-v2", "conch", "tile-vit"])
def test_windows_are_normalised_as_published(name):
    encoder = cases.shared(name)
    windows = cases.raw(encoder, 2)
    found = encoder.normalised(encoder.prepare(windows)["pixels"])
    torch.testing.assert_close(found, transformed(encoder, windows), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_uni_gives_the_class_token_of_timms_forward():
    encoder = cases.shared("uni2-h")
    images = transformed(encoder, cases.raw(encoder))
    out = cases.output("uni2-h")
    torch.testing.assert_close(out.pooled, encoder.vit(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.pooled, encoder.vit.forward_features(images)[:, 0], rtol=1e-4, atol=1e-5)
    assert out.tokens.shape == (4, 256, 1536), "neither the class token nor the eight registers"


@torch.no_grad()
def test_phikon_gives_the_class_token():
    encoder = cases.shared("phikon-v2")
    hidden = encoder.vit(transformed(encoder, cases.raw(encoder))).last_hidden_state
    out = cases.output("phikon-v2")
    torch.testing.assert_close(out.pooled, hidden[:, 0], rtol=1e-4, atol=1e-5)
    assert out.tokens.shape == (4, 196, 1024)


@torch.no_grad()
def test_conch_pools_by_attention_of_one_query_with_eight_heads():
    encoder = cases.shared("conch")
    v = encoder.visual
    tokens = v.trunk.forward_features(transformed(encoder, cases.raw(encoder)))
    keys = nn.functional.layer_norm(tokens, (768,), v.attn_pool_contrast.ln_k.weight, v.attn_pool_contrast.ln_k.bias)
    attn = v.attn_pool_contrast.attn
    query = v.attn_pool_contrast.ln_q(v.attn_pool_contrast.query)[0] @ attn.q_proj_weight.T + attn.in_proj_bias[:512]
    k = keys @ attn.k_proj_weight.T + attn.in_proj_bias[512:1024]
    values = keys @ attn.v_proj_weight.T + attn.in_proj_bias[1024:]
    heads = []
    for h in range(8):
        part = slice(64 * h, 64 * h + 64)
        weights = torch.softmax(k[..., part] @ query[part] / 8, dim=1)
        heads.append((weights[..., None] * values[..., part]).sum(1))
    pooled = v.ln_contrast(attn.out_proj(torch.cat(heads, dim=1)))
    torch.testing.assert_close(cases.output("conch").pooled, pooled, rtol=1e-3, atol=1e-4)
    projected = cases.make("conch", embedding="projected")
    out = cases.pooled(projected, cases.raw(projected, 2))
    torch.testing.assert_close(out, pooled[:2] @ v.proj_contrast, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_biobert_gives_the_pooler_and_not_the_token():
    encoder = cases.shared("biobert")
    inputs = encoder.prepare(cases.raw(encoder))
    hidden = encoder.bert(input_ids=inputs["ids"], attention_mask=inputs["mask"].long()).last_hidden_state
    dense = encoder.bert.pooler.dense
    torch.testing.assert_close(
        cases.output("biobert").pooled, torch.tanh(hidden[:, 0] @ dense.weight.T + dense.bias), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_geneformer_gives_the_mean_of_the_second_to_last_layer():
    encoder = cases.make("geneformer-12l-30m", depth=3)
    inputs = encoder.prepare(cases.raw(encoder))
    ids, mask = inputs["ids"], inputs["mask"]
    hidden = encoder.bert(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    assert len(hidden) == 4, "the embedding and three layers"
    expected = torch.stack([h[m].mean(0) for h, m in zip(hidden[2], mask, strict=True)])
    torch.testing.assert_close(encoder.encode(inputs).pooled, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_small_encoders_average_over_what_is_real():
    text = cases.shared("bert-small")
    out = text.encode(text.prepare(cases.raw(text)))
    expected = torch.stack([t[m].mean(0) for t, m in zip(out.tokens, out.mask, strict=True)])
    torch.testing.assert_close(out.pooled, expected, rtol=1e-4, atol=1e-5)
    image = cases.output("tile-vit")
    torch.testing.assert_close(
        image.pooled, cases.shared("tile-vit").vit.fc_norm(image.tokens.mean(1)), rtol=1e-4, atol=1e-5
    )


def test_geneformer_from_scratch_learns_its_own_vocabulary_and_published_weights_refuse_one(tmp_path):
    def built():
        return registry.build("geneformer-12l-30m", random_init=True, depth=2, max_tokens=16, vocabulary="recomputed")

    encoder = built()
    assert type(encoder).learns(encoder.options())
    assert not type(encoder).learns({})
    given = [cases.raw(encoder, 6, seed=s) for s in (1, 2)]
    encoder.fit(given)
    rows = [e.counts[i].toarray().ravel() for e in given for i in range(6)]
    medians = encoder.vocabulary.scales
    for column, gene in list(enumerate(given[0].ensembl_ids))[:5]:
        values = [r[column] / r.sum() * 1e4 for r in rows if r[column]]
        assert medians[gene] == pytest.approx(np.median(values))
    again = built()
    again.load_assets(encoder.assets())
    assert torch.equal(again.prepare(given[0])["ids"], encoder.prepare(given[0])["ids"])
    assert again.assets() == encoder.assets()
    with pytest.raises(WeightsError, match="published tokens"):
        encoder.read_extra({"tokens": tmp_path})
    with pytest.raises(TypeError, match="nothing to fit"):
        cases.shared("geneformer-12l-30m").fit(given)
