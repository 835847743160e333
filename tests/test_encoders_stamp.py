"""`stamp-genes` and `stamp-release`: genes in anomaly-rank order, through a transformer that sees no pad."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

import encoder_cases as cases
from test_encoders_weights import write_vocabulary
from triglyph.encoders import registry
from triglyph.encoders.base import Expression
from triglyph.encoders.packed import pack
from triglyph.encoders.stamp import FIRST, MASK, PAD, StampGenes
from triglyph.encoders.stamp_release import StampRelease
from triglyph.errors import ContractError, GeneError, WeightsError
from triglyph.genes.means import rounded_mean

SMALL = {"dim": 32, "depth": 2, "heads": 4, "feedforward": 48, "max_tokens": 16}


def training():
    return [cases.expression(20, seed=s) for s in (1, 2, 3)]


def fitted(**options) -> StampGenes:
    torch.manual_seed(0)
    encoder = registry.build("stamp-genes", **{**SMALL, **options})
    encoder.fit(training())
    return encoder.eval()


def padded_peer(encoder: StampGenes, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same embeddings through PyTorch's encoder over padded lists, (n, length, dim)."""
    o = encoder.options()
    layer = nn.TransformerEncoderLayer(
        o["dim"], o["heads"], o["feedforward"], 0.0, batch_first=True, layer_norm_eps=1e-12
    )
    peer = nn.TransformerEncoder(layer, o["depth"], enable_nested_tensor=False)
    peer.load_state_dict(encoder.transformer.state_dict(), strict=True)
    x = encoder.gene_embedding(ids) + encoder.rank_embedding(torch.arange(ids.shape[1]))
    return peer(x, src_key_padding_mask=~mask)


@torch.no_grad()
def test_the_embedding_is_the_mean_of_the_last_layer_over_real_tokens():
    encoder = fitted(max_tokens=40)
    inputs = encoder.prepare(cases.expression(8, seed=5))
    lengths = inputs["mask"].sum(1)
    assert lengths.min() < lengths.max(), "or padding is not tested"
    expected = padded_peer(encoder, inputs["ids"], inputs["mask"])
    out = encoder.encode(inputs)
    by_hand = torch.stack([e[:n].mean(0) for e, n in zip(expected, lengths.tolist(), strict=True)])
    torch.testing.assert_close(out.pooled, by_hand, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.tokens[inputs["mask"]], expected[inputs["mask"]], rtol=1e-4, atol=1e-5)
    assert (out.tokens[~inputs["mask"]] == 0).all()
    assert torch.equal(out.mask, inputs["mask"])


@torch.no_grad()
def test_later_genes_weigh_less_where_that_is_asked_for():
    encoder = fitted(max_tokens=40, rank_decay=3.0)
    inputs = encoder.prepare(cases.expression(8, seed=5))
    out = encoder.encode(inputs)
    for tokens, mask, pooled in zip(out.tokens, inputs["mask"], out.pooled, strict=True):
        n = int(mask.sum())
        weights = 1 / np.sqrt(1 + (np.arange(n) / 3.0) ** 2)
        np.testing.assert_allclose(pooled, (tokens[:n].numpy() * weights[:, None]).sum(0) / n, rtol=1e-4, atol=1e-5)
    assert encoder.options()["rank_decay"] == 3.0
    plain = fitted(max_tokens=40)
    assert torch.equal(plain.rank_weights(torch.tensor([2, 3])), torch.ones(5))


@torch.no_grad()
def test_a_location_without_tokens_is_exactly_zero():
    encoder = fitted()
    out = encoder.encode(encoder.prepare(cases.expression(4, empty_rows=(0, 2))))
    assert (out.pooled[[0, 2]] == 0).all()
    assert (out.tokens[[0, 2]] == 0).all()
    assert (out.pooled[[1, 3]].abs().sum(1) > 0.1).all()
    nothing = encoder.encode(encoder.prepare(cases.expression(2, empty_rows=(0, 1))))
    assert (nothing.pooled == 0).all()
    assert nothing.pooled.shape == (2, 32)


@torch.no_grad()
def test_hidden_reads_packed_tokens_with_masks_among_them():
    encoder = fitted()
    inputs = encoder.prepare(cases.expression(4))
    ids, lengths = pack(inputs["ids"], inputs["mask"])
    rows = encoder.hidden(ids, lengths)
    assert torch.equal(rows, encoder.encode(inputs).tokens[inputs["mask"]])
    ids[1] = MASK
    changed = encoder.hidden(ids, lengths)
    first = int(lengths[0])
    assert not torch.allclose(changed[:first], rows[:first], atol=1e-3)
    torch.testing.assert_close(changed[first:], rows[first:], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_order_of_genes_is_what_is_read():
    encoder = fitted()
    inputs = encoder.prepare(cases.expression(1))
    n = int(inputs["mask"].sum())
    turned = {**inputs, "ids": inputs["ids"].clone()}
    turned["ids"][0, :n] = inputs["ids"][0, :n].flip(0)
    assert not torch.allclose(encoder.encode(turned).pooled, encoder.encode(inputs).pooled, atol=1e-3)


def test_tokens_are_genes_by_count_over_mean_cut_to_the_longest_list():
    encoder = fitted(max_tokens=7)
    given = training()
    counts = np.concatenate([e.counts.toarray() for e in given])
    mean = counts.sum(0) / np.maximum((counts > 0).sum(0), 1)
    e = cases.expression(9, seed=8)
    inputs = encoder.prepare(e)
    assert inputs["ids"].shape[1] == 7
    for row, ids, mask in zip(e.counts.toarray(), inputs["ids"], inputs["mask"], strict=True):
        order = sorted(np.flatnonzero(row), key=lambda j: (-row[j] / mean[j], j))[:7]
        # Ids follow the sorted names, and IDS is sorted.
        assert ids[mask].tolist() == [FIRST + j for j in order]
        assert (ids[~mask] == PAD).all()
    deeper = Expression(e.counts * 3, e.symbols, e.ensembl_ids, e.measured)
    assert torch.equal(encoder.prepare(deeper)["ids"], inputs["ids"])


def test_only_training_sections_decide_and_the_embedding_has_the_vocabularys_size():
    encoder = registry.build("stamp-genes", **SMALL)
    assert (encoder.vocabulary, encoder.n_tokens, encoder.assets()) == (None, FIRST, {})
    encoder.fit(training())
    assert encoder.n_tokens == encoder.vocabulary.size == len(cases.IDS) + FIRST
    assert encoder.gene_embedding.weight.shape == (encoder.n_tokens, 32)
    assert encoder.card.parameters == sum(p.numel() for p in encoder.parameters())
    before = encoder.assets()
    cases.pooled(encoder, cases.expression(50, seed=77))
    assert encoder.assets() == before
    again = registry.build("stamp-genes", **SMALL)
    again.fit(training()[::-1])
    assert again.assets() == before
    fewer = fitted(genes=12)
    assert fewer.n_tokens == 12 + FIRST
    assert fewer.matched(cases.expression()) == (12, 12)
    loaded = registry.build("stamp-genes", **fewer.options())
    loaded.load_assets(json.loads(json.dumps(fewer.assets())))
    loaded.load_state_dict(fewer.state_dict(), strict=True)
    assert loaded.fingerprint() == fewer.fingerprint()


def test_rounded_means_are_those_of_the_release():
    exact, rounded = fitted(), fitted(scale="rounded_mean")
    assert {float(round(v)) == v for v in rounded.vocabulary.scales.values()} == {True}
    assert rounded.vocabulary.scales != exact.vocabulary.scales
    assert rounded.fingerprint() != exact.fingerprint()


def test_dropout_is_of_training_alone():
    encoder = fitted(dropout=0.4)
    given = cases.expression(3)
    assert torch.equal(cases.pooled(encoder, given), cases.pooled(encoder, given))
    encoder.train()
    assert not torch.allclose(cases.pooled(encoder, given), cases.pooled(encoder, given), atol=1e-3)


def test_a_panel_that_misses_genes_gives_shorter_lists_of_the_same_order():
    encoder = fitted(max_tokens=40)
    e = cases.expression(5)
    measured = e.measured.copy()
    measured[::4] = False
    some = encoder.prepare(Expression(e.counts, e.symbols, e.ensembl_ids, measured))
    gone = {FIRST + j for j in np.flatnonzero(~measured)}
    whole = encoder.prepare(e)
    for a, m, b, k in zip(whole["ids"], whole["mask"], some["ids"], some["mask"], strict=True):
        assert [t for t in a[m].tolist() if t not in gone] == b[k].tolist()
    assert encoder.matched(Expression(e.counts, e.symbols, e.ensembl_ids, measured)) == (30, 40)


def test_the_published_size():
    """Stamp's 12 layers on its 20,340 tokens and 5 rows: 36.42 M, and 10.43 M for a head that names tokens."""
    with torch.device("meta"):
        encoder = StampGenes()
        names = [f"G{i:05d}" for i in range(20_345 - FIRST)]
        encoder.load_assets(
            {"tokens": {n: FIRST + i for i, n in enumerate(names)}, "scales": dict.fromkeys(names, 1.0), "symbols": {}}
        )
        head = nn.Linear(encoder.card.dim, 20_340)
    assert encoder.gene_embedding.weight.is_meta
    assert encoder.n_tokens == 20_345
    assert encoder.card.parameters == sum(p.numel() for p in encoder.parameters()) == 36_418_048
    assert sum(p.numel() for p in head.parameters()) == 10_434_420


def test_what_cannot_be_is_refused():
    for options, said in (
        ({"max_tokens": 0}, "of 0 tokens"),
        ({"rank_decay": 0.0}, "rank_decay of 0.0"),
        ({"genes": 0}, "0 genes"),
        ({"scale": "median"}, "no scale 'median'"),
        ({"heads": 5}, "divides the width"),
    ):
        with pytest.raises(ContractError, match=said):
            registry.build("stamp-genes", **{**SMALL, **options})
    with pytest.raises(ContractError, match="a list of 17 genes, where stamp-genes reads 16"):
        fitted().hidden(torch.full((17,), FIRST), torch.tensor([17]))
    e = cases.expression(3)
    empty = Expression(sp.csr_matrix((3, 40), dtype=int), e.symbols, e.ensembl_ids, e.measured)
    with pytest.raises(GeneError, match="no training section"):
        registry.build("stamp-genes", **SMALL).fit([empty])
    with pytest.raises(GeneError, match="not whole"):
        registry.build("stamp-genes", **SMALL).fit([Expression(e.counts * 0.5, e.symbols, e.ensembl_ids, e.measured)])


# ---- the release


class Published(nn.Module):
    """The module that the release saves, from its description: names, shapes, and what is saved but not used."""

    def __init__(self, depth: int, *, head: int = 8) -> None:
        super().__init__()
        self.encoder_layer = nn.TransformerEncoderLayer(512, 16, 1024, 0.0, batch_first=True, layer_norm_eps=1e-12)
        self.encoder = nn.TransformerEncoder(self.encoder_layer, depth, enable_nested_tensor=False)
        self.classifier_head, self.spatial_classifier_head = nn.Linear(512, head), nn.Linear(512, head)
        self.embeddings = nn.Embedding(20_345, 512, padding_idx=1)
        self.positional_embedding = nn.Embedding(1500, 512)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(ids) + self.positional_embedding(torch.arange(1500))
        for layer in self.encoder.layers:
            x = layer(x, src_key_padding_mask=ids == 1)
        return x


@pytest.fixture
def release(tmp_path):
    """A folder as published, of one layer, and the module its weights are of."""
    torch.manual_seed(3)
    module = Published(1)
    torch.save({"state_dict": module.state_dict(), "epoch": 1}, tmp_path / "pytorch_model.bin")
    write_vocabulary(tmp_path)
    return tmp_path, module.eval()


@torch.no_grad()
def test_both_poolings_of_the_release_equal_its_module_on_lists_padded_to_1500(release):
    folder, module = release
    e = cases.expression(4, empty_rows=(2,))
    real = [0, 1, 3]
    for pooling in ("mean", "release"):
        encoder = registry.build("stamp-release", weights=folder, depth=1, pooling=pooling)
        assert encoder.card.pooling == pooling
        inputs = encoder.prepare(e)
        ids = torch.ones(4, 1500, dtype=torch.int64)
        ids[:, : inputs["ids"].shape[1]] = inputs["ids"]
        tokens = module(ids[real])
        lengths = inputs["mask"].sum(1)[real].tolist()
        assert 3 < min(lengths) <= max(lengths) <= 40
        if pooling == "mean":
            expected = torch.stack([t[:n].mean(0) for t, n in zip(tokens, lengths, strict=True)])
        else:
            expected = tokens[:, 3:].mean(1)
        out = encoder.encode(inputs)
        torch.testing.assert_close(out.pooled[real], expected, rtol=1e-4, atol=1e-5)
        assert (out.pooled[2] == 0).all()
        assert out.tokens.shape[:2] == out.mask.shape


@torch.no_grad()
def test_padding_changes_nothing_in_the_released_pooling_either(release):
    encoder = registry.build("stamp-release", weights=release[0], depth=1, pooling="release")
    inputs = encoder.prepare(cases.expression(3))
    more = {k: nn.functional.pad(v, (0, 5), value=7 if k == "ids" else 0) for k, v in inputs.items()}
    assert torch.equal(encoder.encode(more).pooled, encoder.encode(inputs).pooled)


def test_tokens_are_columns_and_thirty_in_order_of_count_over_rounded_mean(release):
    folder, _ = release
    encoder = registry.build("stamp-release", weights=folder, depth=1)
    scale = rounded_mean(np.load(folder / "Visium_mean.npy"))[:40]
    assert scale[0] == 1, "a gene without a mean"
    e = cases.expression(5)
    inputs = encoder.prepare(e)
    for row, ids, mask in zip(e.counts.toarray(), inputs["ids"], inputs["mask"], strict=True):
        order = sorted(np.flatnonzero(row), key=lambda j: (-row[j] / scale[j], j))
        assert ids[mask].tolist() == [30 + j for j in order]
        assert (ids[~mask] == 1).all()
    assert encoder.matched(e) == (40, 20_310)


def test_symbols_are_looked_up_where_the_dictionary_lies_beside(release):
    folder, _ = release
    e = cases.expression(5)
    nameless = Expression(e.counts, e.symbols, ("",) * 40, e.measured)
    assert registry.build("stamp-release", weights=folder, depth=1).matched(nameless)[0] == 0
    names = dict(zip(cases.GENES, cases.IDS, strict=True)) | {"STRANGER": "ENSG77777777777"}
    (folder / "gene_name_id_dict.pkl").write_bytes(pickle.dumps(names))
    encoder = registry.build("stamp-release", weights=folder, depth=1)
    assert torch.equal(encoder.prepare(nameless)["ids"], encoder.prepare(e)["ids"])


def test_the_gene_encoder_is_found_in_every_file_it_is_published_in(release):
    folder, module = release
    plain = registry.build("stamp-release", weights=folder, depth=1).fingerprint()
    state = module.state_dict()
    whole = {
        "visual_backbone.model.cls_token": torch.ones(3),
        "spot_projection.weight": torch.ones(2, 2),
        "patch_projection.bias": torch.ones(2),
        "region_projection.bias": torch.ones(2),
        "positioning_projection.bias": torch.ones(2),
        "logit_scale": torch.ones(()),
    }
    for changed in (
        {f"model.{k}": v for k, v in state.items() if not k.startswith("encoder_layer.")},
        {f"module.{k}": v for k, v in ({f"spot_backbone.{k}": v for k, v in state.items()} | whole).items()},
    ):
        torch.save(changed, folder / "pytorch_model.bin")
        assert registry.build("stamp-release", weights=folder, depth=1).fingerprint() == plain


def test_what_is_not_the_release_is_refused_by_name(release):
    folder, module = release
    state = module.state_dict()

    def load(changed, **options):
        torch.save(changed, folder / "pytorch_model.bin")
        return registry.build("stamp-release", weights=folder, **{"depth": 1, **options})

    with pytest.raises(WeightsError, match=r"1 unexpected: token_type_embedding\.weight"):
        load(state | {"token_type_embedding.weight": torch.ones(2)})
    with pytest.raises(WeightsError, match=r"1 missing: encoder\.layers\.0\.norm2\.bias"):
        load({k: v for k, v in state.items() if k != "encoder.layers.0.norm2.bias"})
    with pytest.raises(WeightsError, match=r"embeddings\.weight \(9, 512\) where \(20345, 512\)"):
        load(state | {"embeddings.weight": torch.ones(9, 512)})
    with pytest.raises(WeightsError, match=r"unexpected: encoder\.layers\.1\."):
        load(Published(2).state_dict())
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ContractError, match="no pooling 'cls'"):
        registry.build("stamp-release", weights=folder, pooling="cls")
    means = np.load(folder / "Visium_mean.npy")
    for bad, said in ((means[:9], "no 20310 means"), (-means, "negative"), (means.astype(object), "not readable")):
        np.save(folder / "Visium_mean.npy", bad, allow_pickle=True)
        with pytest.raises(WeightsError, match=said):
            registry.build("stamp-release", weights=folder, depth=1)
    (folder / "model.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(WeightsError, match=r"not readable as \.h5ad"):
        registry.build("stamp-release", weights=folder, depth=1)
    with pytest.raises(WeightsError, match="token ids from 2 to 3, where genes are 30 to 20339"):
        StampRelease(depth=1).load_assets({"tokens": {"A": 2, "B": 3}, "scales": {"A": 1, "B": 1}, "symbols": {}})


def test_the_release_has_the_published_number_of_parameters():
    with torch.device("meta"):
        encoder = StampRelease()
        published = Published(12, head=20_340)
    own, heads, template = (
        sum(p.numel() for n, p in published.named_parameters() if n.startswith(starts))
        for starts in (("embeddings", "positional", "encoder."), ("classifier_head", "spatial"), "encoder_layer")
    )
    assert own == sum(p.numel() for p in encoder.parameters()) == encoder.card.parameters == 36_418_048
    assert heads == 2 * 10_434_420
    assert template == 2_102_784
    assert {n: p.shape for n, p in encoder.tower().state_dict().items()} == {
        n: p.shape for n, p in published.state_dict().items() if encoder.canonical(n)
    }


def test_the_card_of_the_release_claims_no_licence():
    card = registry.card("stamp-release")
    assert (card.licence, card.commercial_use, card.gated) == ("none stated", False, False)
    assert card.hub_id == "minghaofdu/STAMP"
