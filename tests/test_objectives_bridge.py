"""The bridge between modalities that are never seen together: its definition, and what learns from it."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from triglyph.objectives.bridge import bridge_losses, bridge_name, soft_bridge
from triglyph.objectives.contrastive import Temperature

IMAGE_TEXT = ("image", "text")
NAME = "image-expression-text"
BRIDGES = {IMAGE_TEXT: "expression"}


def unit(n: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def softmax(logits: list[float]) -> list[float]:
    return [math.exp(x) / sum(math.exp(y) for y in logits) for x in logits]


def brute_force(images: Tensor, told: Tensor, texts: Tensor, scale: float) -> float:
    """By the definition, entry by entry, in Python floats: `told` are the images' profiles."""
    n, m = len(images), len(texts)
    said = [[scale * float(images[i] @ texts[j]) for j in range(m)] for i in range(n)]
    wanted = [[scale * float(told[i] @ texts[j]) for j in range(m)] for i in range(n)]
    total = 0.0
    for i in range(n):
        p, q = softmax(wanted[i]), softmax(said[i])
        total -= sum(a * math.log(b) for a, b in zip(p, q, strict=True)) / n / 2
    for j in range(m):
        p, q = softmax([line[j] for line in wanted]), softmax([line[j] for line in said])
        total -= sum(a * math.log(b) for a, b in zip(p, q, strict=True)) / m / 2
    return total


def batch(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Twelve rows: images at six, texts at four others, expression at all but two of them, in shuffled order."""
    rows = {
        "image": torch.tensor([3, 0, 7, 4, 11, 9]),
        "text": torch.tensor([8, 1, 10, 2]),
        "expression": torch.tensor([2, 10, 9, 0, 8, 3, 5, 4, 7]),  # not 11, an image's, nor 1, a text's
    }
    return {m: unit(len(at), 5, seed + i) for i, (m, at) in enumerate(rows.items())}, rows


def at_scale(scale: float) -> Temperature:
    return Temperature(init=1 / scale, max_scale=None)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 7), m=st.integers(1, 7), scale=st.floats(0.1, 20), seed=st.integers(0, 10_000))
def test_the_loss_equals_its_definition(n: int, m: int, scale: float, seed: int) -> None:
    images, told, texts = unit(n, 4, seed), unit(n, 4, seed + 1), unit(m, 4, seed + 2)
    found = soft_bridge(images, texts, told, scale)
    assert float(found) == pytest.approx(brute_force(images, told, texts, scale), rel=1e-9, abs=1e-12)


def test_rows_of_a_batch_are_matched_by_their_position() -> None:
    embeddings, rows = batch()
    found = bridge_losses(embeddings, rows, bridges=BRIDGES, temperature=at_scale(3.0))
    where = {m: {int(p): i for i, p in enumerate(at)} for m, at in rows.items()}
    images = torch.stack([embeddings["image"][where["image"][p]] for p in (0, 3, 4, 7, 9)])
    told = torch.stack([embeddings["expression"][where["expression"][p]] for p in (0, 3, 4, 7, 9)])
    texts = torch.stack([embeddings["text"][where["text"][p]] for p in (2, 8, 10)])
    assert set(found) == {NAME}
    assert float(found[NAME].detach()) == pytest.approx(brute_force(images, told, texts, 3.0), rel=1e-6)


def test_rows_may_come_in_any_order() -> None:
    embeddings, rows = batch()
    plain = bridge_losses(embeddings, rows, bridges=BRIDGES, temperature=at_scale(3.0))[NAME]
    for order in list(permutations(range(4)))[::7]:
        moved = {m: torch.tensor([*order, *range(4, len(at))]) for m, at in rows.items()}
        again = bridge_losses(
            {m: z[moved[m]] for m, z in embeddings.items()},
            {m: at[moved[m]] for m, at in rows.items()},
            bridges=BRIDGES,
            temperature=at_scale(3.0),
        )[NAME]
        torch.testing.assert_close(again, plain)


def test_targets_are_constants_and_the_pivot_learns_nothing_from_the_bridge() -> None:
    embeddings, rows = batch()
    leaves = {m: z.clone().requires_grad_() for m, z in embeddings.items()}
    temperature = at_scale(3.0)
    bridge_losses(leaves, rows, bridges=BRIDGES, temperature=temperature)[NAME].backward()
    assert leaves["expression"].grad is None
    # The gradient is that of the same loss with the targets put in as numbers.
    at = [[rows[m].tolist().index(p) for p in of] for m, of in (("image", (0, 3, 4, 7, 9)), ("text", (2, 8, 10)))]
    told = embeddings["expression"][[rows["expression"].tolist().index(p) for p in (0, 3, 4, 7, 9)]]
    fixed = {m: z.clone().requires_grad_() for m, z in embeddings.items()}
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    images, texts = fixed["image"][at[0]], fixed["text"][at[1]]
    wanted = 3.0 * told @ embeddings["text"][at[1]].T
    logits = scale * images @ texts.T
    loss = (F.cross_entropy(logits, wanted.softmax(1)) + F.cross_entropy(logits.T, wanted.T.softmax(1))) / 2
    loss.backward()
    for m in IMAGE_TEXT:
        torch.testing.assert_close(leaves[m].grad, fixed[m].grad)
    # d/dt of exp(t) is the scale itself.
    assert temperature.log_scale.grad is not None
    assert scale.grad is not None
    assert float(temperature.log_scale.grad) == pytest.approx(3.0 * float(scale.grad), rel=1e-5)


def test_an_image_that_says_what_its_expression_says_has_nothing_to_learn() -> None:
    told, texts = unit(5, 4, 0), unit(6, 4, 1)
    images = told.clone().requires_grad_()
    loss = soft_bridge(images, texts, told, 7.0)
    loss.backward()
    torch.testing.assert_close(images.grad, torch.zeros_like(images), rtol=0, atol=1e-12)
    # What is left is the entropy of the targets.
    wanted = 7.0 * told @ texts.T
    entropy = [-(p * p.log()).sum(1).mean() for p in (wanted.softmax(1), wanted.T.softmax(1))]
    torch.testing.assert_close(loss.detach(), (entropy[0] + entropy[1]) / 2)


def test_without_two_rows_on_both_sides_there_is_no_loss() -> None:
    embeddings, rows = batch()
    for lacking in ("image", "text", "expression"):
        for kept in (0, 1):
            few = {m: at[:kept] if m == lacking else at for m, at in rows.items()}
            part = {m: z[: len(few[m])] for m, z in embeddings.items()}
            assert bridge_losses(part, few, bridges=BRIDGES, temperature=Temperature()) == {}
        absent, without = ({m: x for m, x in of.items() if m != lacking} for of in (embeddings, rows))
        assert bridge_losses(absent, without, bridges=BRIDGES, temperature=Temperature()) == {}
    assert bridge_losses(embeddings, rows, bridges={}, temperature=Temperature()) == {}


def test_a_row_of_neither_side_changes_nothing() -> None:
    embeddings, rows = batch()
    plain = bridge_losses(embeddings, rows, bridges=BRIDGES, temperature=at_scale(3.0))[NAME]
    more = {m: torch.cat([z, unit(1, 5, 99)]) for m, z in embeddings.items()}
    apart = {m: torch.cat([at, torch.tensor([20 + i])]) for i, (m, at) in enumerate(rows.items())}
    again = bridge_losses(more, apart, bridges=BRIDGES, temperature=at_scale(3.0))[NAME]
    assert float(again.detach()) == float(plain.detach())


def test_half_precision_inputs_give_a_32_bit_loss() -> None:
    images, told, texts = (unit(9, 16, seed).float() for seed in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = soft_bridge(images, texts, told, 50.0)
    assert inside.dtype == torch.float32
    assert float(inside) == float(soft_bridge(images, texts, told, 50.0))
    assert soft_bridge(images.bfloat16(), texts, told, 50.0).dtype == torch.float32


def test_a_bridge_is_named_with_its_pivot_in_the_middle() -> None:
    assert bridge_name(IMAGE_TEXT, "expression") == NAME
