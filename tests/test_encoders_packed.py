"""Packed sequences give what PyTorch's own encoder gives on padded ones, and see nothing but themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from triglyph.encoders import packed
from triglyph.encoders.packed import PackedTransformer, pack, positions, segment_mean, unpack
from triglyph.errors import ContractError

DIM, DEPTH, HEADS = 32, 3, 4
LENGTHS = ([5, 0, 3, 5, 1, 7], [4, 4, 4], [1], [0, 6, 0], [2, 9, 2, 9, 9, 1, 1])


def built(seed: int = 0, **options) -> PackedTransformer:
    torch.manual_seed(seed)
    model = PackedTransformer(DIM, depth=DEPTH, heads=HEADS, feedforward=48, **options)
    # Biases start at zero and norms at one, which would hide a mix-up.
    for p in model.parameters():
        nn.init.normal_(p, std=0.3) if p.dim() == 1 else None
    return model


def peer_of(model: PackedTransformer, *, norm_first: bool = False) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        DIM, HEADS, 48, dropout=0.0, batch_first=True, layer_norm_eps=1e-12, norm_first=norm_first
    )
    peer = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
    peer.load_state_dict(model.state_dict(), strict=True)
    return peer


def batch(lengths: list[int], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded rows with noise under the pads, and their mask."""
    torch.manual_seed(seed)
    mask = torch.arange(max(lengths) + 2) < torch.tensor(lengths)[:, None]
    return torch.randn(*mask.shape, DIM), mask


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_outputs_and_gradients_are_those_of_pytorchs_encoder_on_padded_sequences(lengths, norm_first):
    model = built(norm_first=norm_first)
    peer = peer_of(model, norm_first=norm_first)
    x, mask = batch(lengths)
    some = mask.any(dim=1)  # attention over nothing is undefined there
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours = model(*pack(a, mask))
    theirs = peer(b[some], src_key_padding_mask=~mask[some])
    torch.testing.assert_close(ours, theirs[mask[some]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.padded(x[some], mask[some]), theirs, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    (theirs[mask[some]] * weight).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)
    expected = dict(peer.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_double_precision_agrees_to_its_last_digits():
    model = built().double()
    x, mask = batch([5, 0, 3, 5, 1, 7])
    some = mask.any(dim=1)
    ours = model(*pack(x.double(), mask))
    theirs = peer_of(model).double()(x[some].double(), src_key_padding_mask=~mask[some])[mask[some]]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_sequence_does_not_see_the_others_nor_their_order():
    model = built()
    x, mask = batch([5, 2, 5, 0, 8])
    together = unpack(model(*pack(x, mask)), mask)
    order = [4, 2, 3, 0, 1]
    moved = unpack(model(*pack(x[order], mask[order])), mask[order])
    torch.testing.assert_close(moved, together[order], rtol=1e-5, atol=1e-6)
    changed = x.clone()
    changed[[1, 4]] = torch.randn_like(x[:2])
    again = unpack(model(*pack(changed, mask)), mask)
    torch.testing.assert_close(again[[0, 2]], together[[0, 2]], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(again[1], together[1], atol=1e-2)


def test_rows_of_a_sequence_know_no_order():
    # Positions are the business of whoever embeds: a permuted sequence gives permuted rows.
    model = built()
    x, lengths = torch.randn(6, DIM), torch.tensor([6])
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    torch.testing.assert_close(model(x[order], lengths), model(x, lengths)[order], rtol=1e-5, atol=1e-5)


def test_the_same_call_gives_the_same_bits():
    model = built()
    rows, lengths = pack(*batch([5, 2, 5, 0, 8]))
    assert torch.equal(model(rows, lengths), model(rows, lengths))


def test_dropout_acts_in_training_alone_and_follows_the_seed():
    model = built(dropout=0.3)
    rows, lengths = pack(*batch([5, 2, 5]))
    plain = built()
    assert torch.equal(model.eval()(rows, lengths), plain(rows, lengths))
    model.train()

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(rows, lengths)

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.allclose(drawn(3), drawn(4), atol=1e-3)
    assert not torch.allclose(drawn(3), plain(rows, lengths), atol=1e-3)


def test_no_sequence_at_all_and_empty_ones_are_fine():
    model = built()
    for lengths in (torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)):
        out = model(torch.zeros(0, DIM, requires_grad=True), lengths)
        assert out.shape == (0, DIM)
        out.sum().backward()
        assert segment_mean(out, lengths).shape == (len(lengths), DIM)
        assert (segment_mean(out, lengths) == 0).all()


@pytest.mark.skipif(not packed.HAS_VARLEN, reason="this PyTorch has no attention over lengths that vary")
def test_one_kernel_for_all_lengths_is_given_their_bounds(monkeypatch):
    """The kernel needs CUDA; what is handed to it is checked with one that does what its documentation says."""

    def reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert torch.equal(cu_seq_q, cu_seq_k)
        out = torch.full_like(query, float("nan"))
        for a, b in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
            assert b - a <= max_q == max_k
            scores = torch.einsum("qhd,khd->hqk", query[a:b], key[a:b]) / query.shape[-1] ** 0.5
            out[a:b] = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), value[a:b])
        return out

    model = built()
    rows, lengths = pack(*batch([5, 2, 0, 5, 8]))
    expected = model(rows, lengths)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference)
    monkeypatch.setattr(PackedTransformer, "_runs_varlen", lambda *_: True)
    torch.testing.assert_close(model(rows, lengths), expected, rtol=1e-5, atol=1e-5)


def test_linear_maps_start_from_xaviers_normal_distribution_and_zero():
    torch.manual_seed(0)
    model = PackedTransformer(256, depth=1, heads=4, feedforward=512)
    for name, p in model.named_parameters():
        if p.dim() == 2:
            assert p.std().item() == pytest.approx((2 / sum(p.shape)) ** 0.5, rel=0.02), name
            # Of a uniform distribution, which PyTorch starts from, nothing lies beyond 1.74 deviations.
            assert (p.abs() > 2.5 * p.std()).float().mean() > 0.005, name
        elif name.endswith("bias"):
            assert (p == 0).all(), name


def test_packing_and_unpacking_are_inverse_wherever_the_pads_are():
    torch.manual_seed(0)
    mask = torch.rand(5, 7) < 0.5
    mask[2] = False
    ids, x = torch.randint(0, 99, (5, 7)), torch.randn(5, 7, 3)
    packed_ids, lengths = pack(ids, mask)
    assert packed_ids.tolist() == [i for row, m in zip(ids, mask, strict=True) for i in row[m].tolist()]
    assert lengths.tolist() == mask.sum(1).tolist()
    assert positions(lengths).tolist() == [i for n in lengths.tolist() for i in range(n)]
    assert torch.equal(unpack(pack(x, mask)[0], mask), x.masked_fill(~mask[..., None], 0))


def test_means_of_sequences_are_exact_differentiable_and_zero_where_empty():
    lengths = torch.tensor([0, 4, 1, 0, 1500])
    x = torch.randn(1505, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([p.mean(0) if len(p) else torch.zeros(3) for p in x.split(lengths.tolist())])
    torch.testing.assert_close(segment_mean(x, lengths), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(segment_mean(x.float(), lengths), expected.float(), rtol=1e-5, atol=1e-6)
    mine, theirs = (
        torch.autograd.grad(f.square().sum(), x, retain_graph=True)[0] for f in (segment_mean(x, lengths), expected)
    )
    torch.testing.assert_close(mine, theirs)
    assert segment_mean(x.bfloat16(), lengths).dtype == torch.float32
    assert torch.equal(segment_mean(x[4:5], lengths[2:3])[0], segment_mean(x, lengths)[2])


def test_autocast_in_half_precision_stays_near():
    model = built()
    rows, lengths = pack(*batch([5, 2, 5, 0, 8]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = model(rows, lengths)
    assert F.cosine_similarity(near.float().ravel(), model(rows, lengths).ravel(), dim=0) > 0.99


def test_lengths_that_do_not_fit_and_impossible_shapes_are_refused():
    with pytest.raises(ContractError, match="5 tokens together, but 4 rows"):
        built()(torch.zeros(4, DIM), torch.tensor([2, 3]))
    with pytest.raises(ContractError, match="5 tokens together, but 4 rows"):
        segment_mean(torch.zeros(4, DIM), torch.tensor([2, 3]))
    for options in ({"depth": 0, "heads": 4}, {"depth": 1, "heads": 5}, {"depth": 1, "heads": 0}):
        with pytest.raises(ContractError, match="a number of heads that divides"):
            PackedTransformer(DIM, feedforward=8, **options)
