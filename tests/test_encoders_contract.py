"""What every registered encoder must do, whatever it is; a new one is tested by being registered."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import encoder_cases as cases
from triglyph.encoders import registry
from triglyph.encoders.base import Expression
from triglyph.errors import ContractError

NAMES = registry.names()
PADDED = [n for n in NAMES if registry.card(n).max_tokens]
EXPRESSION = registry.names("expression")
TRAINABLE = [n for n in NAMES if registry.card(n).weights == "random"]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_complete(name):
    card = registry.card(name)
    for field in ("summary", "licence", "citation", "homepage", "pooling"):
        assert getattr(card, field), field
    assert card.commercial_use is not None
    assert card.dim > 0
    if card.modality == "image":
        assert card.input_px
        assert card.mpp is None or 0.1 < card.mpp < 5
        assert card.weights == "none" or (card.mean and card.std)
    elif card.weights == "hub":
        assert card.max_tokens
    if card.weights == "hub":
        assert card.hub_id
        assert card.parameters
        assert card.pretrained_on, "what the weights have seen decides what they may be judged on"
    if card.gated:
        assert card.commercial_use is False


@pytest.mark.parametrize("name", NAMES)
def test_output_has_a_row_for_each_input_and_is_finite(name):
    out = cases.output(name)
    assert out.pooled.shape == (4, cases.shared(name).card.dim)
    assert out.pooled.dtype == torch.float32
    assert torch.isfinite(out.pooled).all()
    if out.tokens is not None:
        assert out.tokens.shape[:2] == out.mask.shape == (4, out.mask.shape[1])
        assert out.mask.dtype == torch.bool


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_tensors_whose_first_axis_is_the_row(name):
    encoder = cases.shared(name)
    for tensor in encoder.prepare(cases.raw(encoder, 3)).values():
        assert isinstance(tensor, torch.Tensor)
        assert len(tensor) == 3
        assert tensor.device.type == "cpu"


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_batch(name):
    # Also a test of padding: rows have different lengths, and alone they have none.
    encoder = cases.shared(name)
    given, together = cases.raw(encoder), cases.output(name).pooled
    order = [3, 0, 1, 2]
    shuffled = cases.pooled(encoder, cases.take(given, order))
    torch.testing.assert_close(shuffled, together[order], rtol=1e-4, atol=2e-5)
    for i in (0, 1):
        alone = cases.pooled(encoder, cases.take(given, [i]))
        torch.testing.assert_close(alone, together[[i]], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", PADDED)
def test_padding_never_changes_an_output(name):
    encoder = cases.shared(name)
    inputs = encoder.prepare(cases.raw(encoder))
    padded = {
        "ids": torch.nn.functional.pad(inputs["ids"], (0, 5)),
        "mask": torch.nn.functional.pad(inputs["mask"], (0, 5)),
    }
    # What lies under the padding must not matter either.
    padded["ids"][:, -5:] = 7
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode(padded).pooled, cases.output(name).pooled, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_encoding_twice_gives_the_same_bits(name):
    encoder = cases.shared(name)
    assert torch.equal(cases.pooled(encoder, cases.raw(encoder)), cases.output(name).pooled)


@pytest.mark.parametrize("name", NAMES)
def test_different_inputs_give_different_outputs(name):
    out = cases.output(name).pooled
    distances = torch.cdist(out, out) + torch.eye(4) * 1e9
    assert distances.min() > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_rebuilt_encoder_is_the_same(name):
    encoder = cases.make(name)
    again = registry.build(name, random_init=encoder.card.weights == "hub", **encoder.options())
    again.load_assets(json.loads(json.dumps(encoder.assets())))
    again.load_state_dict(encoder.state_dict(), strict=True)
    assert again.fingerprint() == encoder.fingerprint()
    given = cases.raw(encoder, 1)
    assert torch.equal(cases.pooled(again.eval(), given), cases.pooled(encoder, given))


@pytest.mark.parametrize("name", NAMES)
def test_the_fingerprint_changes_with_weights_and_transform(name):
    encoder = cases.make(name)
    first = encoder.fingerprint()
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert encoder.fingerprint() == first
    seen = {first}
    for parameter in list(encoder.parameters())[:1] + list(encoder.parameters())[-1:]:
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        assert encoder.fingerprint() not in seen
        seen.add(encoder.fingerprint())
    changes = {"image": {"mpp": 0.123, "input_px": 96, "mean": (0.1, 0.2, 0.3)}}.get(encoder.modality, {})
    for field, value in changes.items():
        encoder.card = encoder.card.model_copy(update={field: value})
        assert encoder.fingerprint() not in seen, field
        seen.add(encoder.fingerprint())


def test_the_fingerprint_changes_with_the_vocabulary():
    for name in ("bert-small", "gene-mlp", "geneformer-12l-30m", "biobert"):
        encoder = cases.make(name)
        first, assets = encoder.fingerprint(), encoder.assets()
        if "tokens" in assets:
            assets["scales"] = {**assets["scales"], cases.IDS[0]: 55.0}
        elif "mean" in assets:
            assets["mean"] = [assets["mean"][0] + 1, *assets["mean"][1:]]
        else:
            assets["vocabulary"] = [*assets["vocabulary"], "zzz"]
        encoder.load_assets(assets)
        assert encoder.fingerprint() != first, name


def test_fingerprints_are_stable_across_processes():
    names = [n for n in NAMES if registry.card(n).weights != "hub"]
    code = f"import encoder_cases as c, json; print(json.dumps({{n: c.make(n).fingerprint() for n in {names!r}}}))"
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    found = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    assert json.loads(found.stdout.splitlines()[-1]) == {n: cases.make(n).fingerprint() for n in names}


@pytest.mark.parametrize("name", EXPRESSION)
def test_empty_locations_and_unmeasured_genes_give_finite_numbers(name):
    encoder = cases.shared(name)
    e = cases.expression(4, empty_rows=(0, 2))
    assert torch.isfinite(cases.pooled(encoder, e)).all()
    nothing = Expression(e.counts, e.symbols, e.ensembl_ids, np.zeros(len(e.symbols), dtype=bool))
    assert torch.isfinite(cases.pooled(encoder, nothing)).all()
    strangers = Expression(e.counts, tuple(f"OTHER{i}" for i in range(40)), ("",) * 40, e.measured)
    assert torch.isfinite(cases.pooled(encoder, strangers)).all()
    assert encoder.matched(strangers)[0] == encoder.matched(nothing)[0] == 0


@pytest.mark.parametrize("name", EXPRESSION)
def test_the_order_of_genes_does_not_matter(name):
    encoder = cases.shared(name)
    e = cases.expression()
    order = np.random.default_rng(3).permutation(len(cases.GENES))
    moved = Expression(
        e.counts[:, order],
        tuple(e.symbols[i] for i in order),
        tuple(f"{e.ensembl_ids[i]}.12" for i in order),
        e.measured[order],
    )
    torch.testing.assert_close(cases.pooled(encoder, moved), cases.pooled(encoder, e), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EXPRESSION)
def test_counts_of_unmeasured_genes_are_never_looked_at(name):
    encoder = cases.shared(name)
    e = cases.expression()
    measured = e.measured.copy()
    measured[::3] = False
    other = e.counts.tolil()
    other[:, ::3] = 999
    a = Expression(e.counts, e.symbols, e.ensembl_ids, measured)
    b = Expression(other.tocsr(), e.symbols, e.ensembl_ids, measured)
    kept = np.flatnonzero(measured)
    c = Expression(
        e.counts[:, kept],
        tuple(e.symbols[i] for i in kept),
        tuple(e.ensembl_ids[i] for i in kept),
        measured[kept],
    )
    assert torch.equal(cases.pooled(encoder, a), cases.pooled(encoder, b))
    torch.testing.assert_close(cases.pooled(encoder, c), cases.pooled(encoder, a), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EXPRESSION)
def test_expression_whose_parts_do_not_fit_is_refused(name):
    e = cases.expression()
    with pytest.raises(ContractError, match="39 symbols"):
        cases.shared(name).prepare(Expression(e.counts, e.symbols[1:], e.ensembl_ids, e.measured))


@pytest.mark.parametrize("name", registry.names("text"))
def test_empty_and_odd_texts_give_finite_numbers(name):
    encoder = cases.shared(name)
    texts = ["", "   ", "🧬 µm β-catenin", "word " * 500, "\n\t"]
    assert torch.isfinite(cases.pooled(encoder, texts)).all()
    assert encoder.prepare(texts)["ids"].shape[1] <= encoder.card.max_tokens
    with pytest.raises(ContractError, match="list of strings"):
        encoder.prepare("one string")


@pytest.mark.parametrize("name", registry.names("image"))
def test_windows_of_another_size_or_type_are_refused(name):
    encoder = cases.shared(name)
    px = encoder.card.input_px
    with pytest.raises(ContractError, match="reads uint8 windows"):
        encoder.prepare(np.zeros((2, px - 1, px, 3), dtype=np.uint8))
    with pytest.raises(ContractError, match="float32"):
        encoder.prepare(np.zeros((2, px, px, 3), dtype=np.float32))


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_parameter_of_a_trainable_encoder_gets_a_gradient(name):
    encoder = cases.make(name).train()
    encoder.encode(encoder.prepare(cases.raw(encoder))).pooled.square().sum().backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_trainable_encoder_survives_the_journey_to_a_loader_worker(name):
    encoder = cases.make(name)
    again = pickle.loads(pickle.dumps(encoder))
    given = cases.raw(encoder, 2)
    assert torch.equal(cases.pooled(again, given), cases.pooled(encoder, given))


@pytest.mark.parametrize("name", [n for n in NAMES if registry.card(n).fitted])
def test_an_unfitted_encoder_says_so(name):
    with pytest.raises(ContractError, match="call `fit`"):
        registry.build(name).prepare(cases.raw(cases.shared(name)))


def test_encoders_without_a_vocabulary_refuse_to_be_fitted():
    with pytest.raises(TypeError, match="nothing to fit"):
        cases.shared("tile-vit").fit([])
