from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from triglyph.encoders.base import Encoded, Encoder, EncoderCard, Inputs, Modality
from triglyph.errors import ContractError
from triglyph.models.alignment import Alignment, AlignmentConfig, centred

DIMS: dict[str, int] = {"image": 5, "expression": 4, "text": 3}


class Tiny(Encoder):
    """A linear map with BatchNorm and dropout; counts the rows it was asked to encode."""

    modality: ClassVar[Modality] = "image"

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        dim = DIMS[modality]
        self.card = EncoderCard(name=f"tiny-{modality}", modality=modality, dim=dim, pooling="none", weights="random")
        self.linear, self.norm = nn.Linear(dim, dim), nn.BatchNorm1d(dim)
        self.dropout = nn.Dropout(0.5)
        self.encoded = 0

    def prepare(self, raw: Any) -> Inputs:
        return {"x": torch.as_tensor(raw, dtype=torch.float32)}

    def encode(self, inputs: Inputs) -> Encoded:
        self.encoded += len(inputs["x"])
        return Encoded(self.dropout(self.norm(self.linear(inputs["x"]))))


def model(
    mode: str = "scratch", *, modalities: tuple[Modality, ...] = ("image", "expression", "text"), **changes: Any
) -> Alignment:
    pairs = {f"{a}-{b}": 1.0 for i, a in enumerate(modalities) for b in modalities[i + 1 :]}
    values = {
        "towers": {m: {"encoder": f"tiny-{m}", "mode": mode} for m in modalities},
        "pairs": pairs,
        "dim": 6,
        "head": {"kind": "spatialwhisperer"},
        **changes,
    }
    torch.manual_seed(0)
    return Alignment(AlignmentConfig.model_validate(values), {m: Tiny(m) for m in modalities})


def entry(modality: str, rows: list[int], *, seed: int = 0, features: bool = False) -> dict[str, Tensor]:
    """Rows whose values depend on the row alone."""
    rng = [np.random.default_rng([seed, r, len(modality)]) for r in rows]
    values = torch.tensor(np.array([g.normal(size=DIMS[modality]) for g in rng]), dtype=torch.float32)
    return {"rows": torch.tensor(rows), "features" if features else "x": values}


def batch(have: dict[str, list[int]], *, n: int = 8, features: bool = False) -> dict[str, Any]:
    return {
        "n": n,
        "index": torch.arange(n),
        "section": torch.zeros(n, dtype=torch.long),
        **{m: entry(m, rows, features=features) for m, rows in have.items()},
    }


def test_embeddings_have_unit_length_and_their_rows() -> None:
    out = model()(batch({"image": [0, 1, 2], "expression": [1, 2, 5, 6], "text": [2, 1]}))
    assert set(out.losses) == {"image-expression", "image-text", "expression-text", "total"}
    for modality, values in out.embeddings.items():
        torch.testing.assert_close(values.norm(dim=1), torch.ones(len(values)))
        assert len(out.rows[modality]) == len(values)
    assert torch.isfinite(out.losses["total"])


def test_a_missing_modality_is_never_encoded_and_enters_no_statistic() -> None:
    # The same image and expression rows, once alone and once among rows that have other modalities.
    alone, among = model(), model()
    seen = {"image": [0, 1, 2, 3], "expression": [0, 1, 2, 3]}
    torch.manual_seed(1)
    a = alone(batch(seen, n=4))
    torch.manual_seed(1)
    b = among(batch({**seen, "text": [4, 5, 6]}, n=7))
    for modality in seen:
        torch.testing.assert_close(a.embeddings[modality], b.embeddings[modality], rtol=0, atol=0)
        for left, right in zip(alone.heads[modality].buffers(), among.heads[modality].buffers(), strict=True):
            assert torch.equal(left, right)
        for left, right in zip(alone.encoders[modality].buffers(), among.encoders[modality].buffers(), strict=True):
            assert torch.equal(left, right)
    fresh = model()
    for left, right in zip(alone.heads["text"].buffers(), fresh.heads["text"].buffers(), strict=True):
        assert torch.equal(left, right)
    assert [alone.encoder(m).encoded for m in ("image", "expression", "text")] == [4, 4, 0]
    assert [among.encoder(m).encoded for m in ("image", "expression", "text")] == [4, 4, 3]
    assert float(a.losses["total"].detach()) == float(b.losses["total"].detach())


def test_a_missing_modality_leaves_its_tower_without_a_gradient() -> None:
    m = model()
    m(batch({"image": [0, 1, 2], "expression": [0, 1, 2]})).losses["total"].backward()
    assert all(p.grad is None for n, p in m.named_parameters() if ".text." in n)
    assert all(p.grad is not None for n, p in m.named_parameters() if ".image." in n)


def test_cached_features_skip_the_encoder_and_equal_encoding_anew() -> None:
    m = model("locked").train()
    have = {"image": [0, 1, 2], "expression": [0, 1, 2], "text": [0, 1, 2]}
    encoded = m(batch(have))
    cached = batch(have)
    with torch.no_grad():
        for modality in have:
            x = cached[modality].pop("x")
            cached[modality]["features"] = m.encoder(modality).encode({"x": x}).pooled
            m.encoder(modality).encoded = 0
    again = m(cached)
    assert all(m.encoder(modality).encoded == 0 for modality in have)
    for modality in have:
        torch.testing.assert_close(encoded.embeddings[modality], again.embeddings[modality], rtol=0, atol=0)


def test_locked_encoders_do_not_learn_and_stay_in_evaluation_mode() -> None:
    m = model("locked").train()
    before = {n: t.clone() for n, t in m.state_dict().items() if n.startswith("encoders.")}
    m(batch({"image": [0, 1, 2], "expression": [0, 1, 2]})).losses["total"].backward()
    assert all(p.grad is None for p in m.encoders.parameters())
    assert all(torch.equal(before[n], t) for n, t in m.state_dict().items() if n in before)
    assert not any(n.startswith("encoders.") for n in m.learnable())
    assert not any(e.training for e in m.encoders.values())
    assert m.heads["image"].training


def test_in_the_frozen_warm_up_only_heads_learn() -> None:
    m = model()
    m.heads_only = True
    m.train()
    m(batch({"image": [0, 1, 2], "expression": [0, 1, 2]})).losses["total"].backward()
    assert all(p.grad is None for p in m.encoders.parameters())
    assert all(p.grad is not None for p in m.heads["image"].parameters())
    assert not m.encoder("image").norm.num_batches_tracked


def test_copies_of_a_caption_are_encoded_once_and_learn_the_same() -> None:
    have = {"expression": [0, 1, 2, 3], "text": [0, 1, 2, 3]}
    plain, unique = model(modalities=("expression", "text")).eval(), model(modalities=("expression", "text")).eval()
    a, b = batch(have), batch(have)
    a["text"]["x"] = a["text"]["x"][[0, 1, 0, 0]]
    b["text"]["x"] = b["text"]["x"][[0, 1]]
    b["text"]["copies"] = torch.tensor([0, 1, 0, 0])
    a["duplicates"] = b["duplicates"] = {"text": torch.tensor([7, 8, 7, 7, 0, 0, 0, 0])}
    losses = [m(x).losses["total"] for m, x in ((plain, a), (unique, b))]
    assert unique.encoder("text").encoded == 2
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for left, right in zip(plain.parameters(), unique.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-6)


def test_identical_captions_are_no_negatives_only_where_text_takes_part() -> None:
    m = model().eval()
    x = batch({"image": [0, 1, 2, 3], "expression": [0, 1, 2, 3], "text": [0, 1, 2, 3]})
    plain = m(x).losses
    same = m({**x, "duplicates": {"text": torch.zeros(8, dtype=torch.long)}}).losses
    assert float(same["image-expression"]) == float(plain["image-expression"])
    assert float(same["image-text"]) == float(same["expression-text"]) == 0.0
    assert float(plain["image-text"]) > 0


def test_a_location_drawn_twice_is_no_negative_of_itself() -> None:
    m = model().eval()
    x = batch({"image": [0, 1], "expression": [0, 1]}, n=2)
    assert float(m({**x, "index": torch.tensor([4, 4])}).losses["total"]) == 0.0


def test_a_batch_without_any_pair_is_a_clear_error() -> None:
    with pytest.raises(ContractError, match="no pair of modalities"):
        model()(batch({"image": [0, 1, 2]}))


def test_pooled_projected_and_embedded_are_three_things() -> None:
    m = model().eval()
    x = entry("image", [0, 1, 2])
    pooled = m.pooled("image", x)
    projected = m.projected("image", pooled)
    assert pooled.shape == (3, 5)
    assert projected.shape == (3, 6)
    torch.testing.assert_close(m.embed("image", pooled), projected / projected.norm(dim=1, keepdim=True))
    assert not torch.allclose(projected.norm(dim=1), torch.ones(3))


def test_an_encoder_in_the_wrong_place_is_refused() -> None:
    config = model().config
    with pytest.raises(ContractError, match="no image encoder"):
        Alignment(config, {m: Tiny("text") for m in config.modalities})
    with pytest.raises(ContractError, match="no tower for text"):
        model(modalities=("image", "expression")).encoder("text")


def test_what_a_section_has_in_common_is_of_no_use_to_a_centred_model() -> None:
    # Adding a constant to all features of a section changes nothing, where the head is linear.
    m = model("locked", head={"kind": "linear"}, centre=["image", "expression"]).eval()
    x = batch({"image": [0, 1, 2, 3, 4, 5], "expression": [0, 1, 2, 3, 4]}, features=True)
    x["section"] = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    before = m(x)
    shifted = {**x, "image": {**x["image"], "features": x["image"]["features"] + x["section"][:6, None] * 3.0}}
    torch.testing.assert_close(m(shifted).embeddings["image"], before.embeddings["image"])
    plain = model("locked", head={"kind": "linear"}).eval()
    assert not torch.allclose(plain(shifted).embeddings["image"], plain(x).embeddings["image"], atol=0.01)
    whole = m.embed("image", x["image"]["features"][:3])
    torch.testing.assert_close(whole, before.embeddings["image"][:3])


def test_a_row_alone_in_its_section_is_not_centred_away() -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    found = centred(x, torch.tensor([7, 7, 9]))
    torch.testing.assert_close(found[2], x[2])
    torch.testing.assert_close(found[:2], x[:2] - x[:2].mean(dim=0))


def test_negatives_of_the_section_make_the_loss_the_mean_over_sections() -> None:
    m = model("locked", negatives="section").eval()
    rows = [0, 1, 2, 3, 4, 5]
    x = batch({"image": rows, "expression": rows}, features=True)
    x["section"] = torch.tensor([0, 1, 0, 1, 0, 1, 2, 2])
    parts = [
        model("locked").eval()(batch({"image": of, "expression": of}, features=True)).losses["image-expression"]
        for of in ([0, 2, 4], [1, 3, 5])
    ]
    torch.testing.assert_close(m(x).losses["image-expression"], (parts[0] + parts[1]) / 2)


def test_text_cannot_be_centred() -> None:
    with pytest.raises(ValueError, match="a question asked of a section belongs to none"):
        model(centre=["text"])


PAIRS = {"image-expression": 1.0, "expression-text": 1.0}


def bridged(**about: Any) -> Alignment:
    return model("locked", pairs=PAIRS, bridges={"text-image": {"through": "expression", **about}}).eval()


APART = {"image": [0, 1, 2], "expression": [0, 1, 2, 3, 4, 5], "text": [3, 4, 5]}


def test_a_bridge_is_added_to_the_mean_over_the_pairs_and_scores_no_pair_of_its_own() -> None:
    x = batch(APART, features=True)
    plain, once, twice = model("locked", pairs=PAIRS).eval(), bridged(weight=1.0), bridged(weight=2.0)
    a, b, c = plain(x).losses, once(x).losses, twice(x).losses
    assert set(a) == set(plain.loss_names) | {"total"} == {*PAIRS, "total"}
    assert set(b) == set(once.loss_names) | {"total"} == {*PAIRS, "image-expression-text", "total"}
    torch.testing.assert_close(b["total"], a["total"] + b["image-expression-text"])
    torch.testing.assert_close(c["total"], a["total"] + 2 * b["image-expression-text"])
    assert once.config.needs == plain.config.needs


def test_a_batch_without_both_ends_has_no_bridge() -> None:
    x = batch({m: APART[m] for m in ("expression", "text")}, features=True)
    assert set(bridged()(x).losses) == {"expression-text", "total"}


def test_the_pivot_learns_from_its_pairs_alone() -> None:
    x = batch(APART, features=True)
    gradients = []
    for m in (model("locked", pairs=PAIRS).eval(), bridged()):
        m(x).losses["total"].backward()
        gradients.append({n: p.grad for n, p in m.named_parameters() if n.startswith("heads.")})
    plain, with_bridge = gradients
    for name, found in with_bridge.items():
        if ".expression." in f".{name}":
            torch.testing.assert_close(found, plain[name])
    assert any(not torch.allclose(found, plain[n]) for n, found in with_bridge.items() if "image" in n)
    assert any(not torch.allclose(found, plain[n]) for n, found in with_bridge.items() if "text" in n)


def test_a_bridge_has_a_scale_of_its_own_where_pairs_have() -> None:
    m = model("locked", pairs=PAIRS, bridges={"image-text": "expression"}, temperature={"share": "per-pair"})
    assert m.temperature.names == ("image-expression", "expression-text", "image-text")
    assert m.config == AlignmentConfig.model_validate(m.config.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("bridges", "pairs", "said"),
    [
        ({"image-text": "image"}, PAIRS, "goes through image, which is one of its ends"),
        ({"image-text": "expression"}, {"image-expression": 1, "image-text": 1}, "train expression-text too"),
        ({"image-text": "expression"}, {**PAIRS, "image-text": 1}, "image-text is trained as a pair, so it needs no"),
        ({"image-image": "expression"}, PAIRS, "'image-image' is not a pair of two"),
        ({"image-text": "expression", "text-image": "expression"}, PAIRS, "image-text is given twice"),
        ({"image-text": {"through": "expression", "weight": 0}}, PAIRS, "greater than 0"),
        ({"image-text": "genes"}, PAIRS, "'image', 'expression' or 'text'"),
    ],
)
def test_a_bridge_that_cannot_be_is_refused(bridges: Any, pairs: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model("locked", pairs=pairs, bridges=bridges)


def test_a_bridge_beside_its_pair_must_be_asked_for_and_null_takes_it_out() -> None:
    three = {**PAIRS, "image-text": 1.0}
    both = model("locked", pairs=three, bridges={"image-text": {"through": "expression", "beside_pair": True}}).eval()
    assert set(both(batch(APART, features=True)).losses) == {*PAIRS, "image-expression-text", "total"}
    assert model("locked", pairs=three, bridges={"image-text": None}).config.bridges == {}
    assert model("locked", pairs={**PAIRS, "image-text": 0}, bridges={"image-text": "expression"}).config.bridges
