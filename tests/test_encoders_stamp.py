"""`stamp-genes`: genes in anomaly-rank order, through a transformer that sees no pad."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

import encoder_cases as cases
from triglyph.encoders import registry
from triglyph.encoders.base import Expression
from triglyph.encoders.packed import pack
from triglyph.encoders.stamp import FIRST, MASK, PAD, StampGenes
from triglyph.errors import ContractError, GeneError

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
