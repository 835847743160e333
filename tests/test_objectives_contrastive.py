from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from triglyph.errors import ContractError
from triglyph.objectives import streamed
from triglyph.objectives.contrastive import Temperature, contrastive_loss, info_nce, pairwise_sigmoid


def unit(n: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def brute_force(a: Tensor, b: Tensor, scale: float, keys: list[list[int]]) -> float:
    """By the definition, row by row, in Python floats."""
    n = len(a)
    same = [[i != j and any(k[i] == k[j] for k in keys) for j in range(n)] for i in range(n)]
    total = 0.0
    for left, right in ((a, b), (b, a)):
        for i in range(n):
            logits = [scale * float(left[i] @ right[j]) for j in range(n)]
            kept = [math.exp(x) for j, x in enumerate(logits) if not same[i][j]]
            total += (math.log(sum(kept)) - logits[i]) / n / 2
    return total


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 12),
    dim=st.integers(1, 8),
    scale=st.floats(0.1, 20),
    seed=st.integers(0, 10_000),
    kinds=st.integers(1, 12),
)
def test_info_nce_equals_its_definition(n: int, dim: int, scale: float, seed: int, kinds: int) -> None:
    a, b = unit(n, dim, seed), unit(n, dim, seed + 1)
    rng = np.random.default_rng(seed)
    keys = [rng.integers(0, kinds, n).tolist(), rng.integers(0, 2 * kinds, n).tolist()]
    found = info_nce(a, b, scale, duplicates=[torch.tensor(k) for k in keys])
    assert float(found) == pytest.approx(brute_force(a, b, scale, keys), rel=1e-4, abs=1e-5)


def test_info_nce_of_two_orthogonal_pairs_is_the_hand_computed_value() -> None:
    # Logits [[s, 0], [0, s]] both ways: log(e^s + 1) - s.
    z = torch.eye(2)
    assert float(info_nce(z, z, 2.0)) == pytest.approx(math.log(math.exp(2) + 1) - 2, abs=1e-7)


def test_rows_may_come_in_any_order() -> None:
    a, b = unit(9, 4, 0), unit(9, 4, 1)
    key = torch.tensor([0, 1, 2, 0, 1, 3, 4, 5, 6])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    plain = info_nce(a, b, 5.0, duplicates=[key])
    torch.testing.assert_close(plain, info_nce(a[order], b[order], 5.0, duplicates=[key[order]]))


def test_identical_captions_are_no_negatives_and_cost_nothing() -> None:
    # One caption for all rows: nothing is left to be told apart, so nothing is lost and nothing is learnt.
    a, b = unit(6, 4, 0).requires_grad_(), unit(6, 4, 1)
    loss = info_nce(a, b, 10.0, duplicates=[torch.zeros(6, dtype=torch.long)])
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert a.grad is not None
    assert not a.grad.any()


def batch(seed: int = 0, n: int = 10) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Three modalities, each of which some rows lack, given in shuffled order."""
    rng = np.random.default_rng(seed)
    embeddings, rows = {}, {}
    for i, (name, k) in enumerate({"image": 8, "expression": 7, "text": 5}.items()):
        rows[name] = torch.from_numpy(rng.permutation(n)[:k])
        embeddings[name] = unit(k, 6, seed + i)
    return embeddings, rows


PAIRS = {("image", "expression"): 1.0, ("image", "text"): 0.5, ("expression", "text"): 2.0}


def test_loss_is_the_weighted_mean_over_rows_that_have_both() -> None:
    embeddings, rows = batch()
    captions = torch.tensor([0, 1, 0, 2, 3, 1, 4, 5, 0, 2])
    index = torch.arange(10)
    temperature = Temperature()
    found = contrastive_loss(
        embeddings, rows, pairs=PAIRS, temperature=temperature, duplicates={"": index, "text": captions}
    )
    expected, weights = {}, 0.0
    for (a, b), weight in PAIRS.items():
        both = sorted(set(rows[a].tolist()) & set(rows[b].tolist()))
        left = torch.stack([embeddings[a][rows[a].tolist().index(r)] for r in both])
        right = torch.stack([embeddings[b][rows[b].tolist().index(r)] for r in both])
        keys = [captions[both].tolist()] if "text" in (a, b) else []
        expected[f"{a}-{b}"] = brute_force(left, right, 1 / 0.07, keys)
        weights += weight
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-4)
    total = sum(w * expected[f"{a}-{b}"] for (a, b), w in PAIRS.items()) / weights
    assert float(found["total"]) == pytest.approx(total, rel=1e-4)


def test_absent_pairs_and_pairs_of_weight_zero_change_nothing() -> None:
    embeddings, rows = batch()
    temperature = Temperature()
    alone = contrastive_loss(embeddings, rows, pairs={("image", "expression"): 3.0}, temperature=temperature)
    zeroed = contrastive_loss(
        embeddings, rows, pairs={("image", "expression"): 3.0, ("image", "text"): 0.0}, temperature=temperature
    )
    rows["text"], embeddings["text"] = rows["text"][:1], embeddings["text"][:1]
    single = contrastive_loss(embeddings, rows, pairs=PAIRS, temperature=temperature)
    assert float(alone["total"].detach()) == float(zeroed["total"].detach())
    assert float(single["total"].detach()) == pytest.approx(float(alone["total"].detach()), rel=1e-6)
    assert set(single) == {"image-expression", "total"}


def test_no_pair_at_all_is_a_clear_error_and_not_nan() -> None:
    embeddings, rows = batch()
    rows = {name: positions[:1] for name, positions in rows.items()}
    embeddings = {name: values[:1] for name, values in embeddings.items()}
    with pytest.raises(ContractError, match="no pair of modalities has two rows"):
        contrastive_loss(embeddings, rows, pairs=PAIRS, temperature=Temperature())
    with pytest.raises(ContractError, match="no pair of modalities has two rows"):
        contrastive_loss({}, {}, pairs=PAIRS, temperature=Temperature())


def test_temperature_starts_at_clips_and_is_clamped_with_a_live_gradient() -> None:
    temperature = Temperature()
    assert temperature.log_scale.item() == pytest.approx(math.log(1 / 0.07), abs=1e-6)
    with torch.no_grad():
        temperature.log_scale.fill_(9.0)
    assert float(temperature.eval()("image-text").detach()) == pytest.approx(100.0)
    scale = temperature.train()("image-text")
    assert float(scale.detach()) == pytest.approx(100.0, rel=1e-5)
    scale.backward()
    assert temperature.log_scale.grad is not None
    assert float(temperature.log_scale.grad) == pytest.approx(100.0, rel=1e-5)
    unclamped = Temperature(max_scale=None)
    with torch.no_grad():
        unclamped.log_scale.fill_(9.0)
    assert float(unclamped("x").detach()) == pytest.approx(math.exp(9), rel=1e-5)


def test_each_pair_learns_its_own_temperature_where_asked() -> None:
    embeddings, rows = batch()
    temperature = Temperature(["image-expression", "image-text", "expression-text"])
    contrastive_loss(embeddings, rows, pairs={("image", "text"): 1.0}, temperature=temperature)["total"].backward()
    assert temperature.log_scale.grad is not None
    assert (temperature.log_scale.grad != 0).tolist() == [False, True, False]


def test_half_precision_inputs_give_a_32_bit_loss() -> None:
    a, b = unit(64, 16, 0).float(), unit(64, 16, 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(a, b, 100.0)
    assert inside.dtype == torch.float32
    assert float(inside) == float(info_nce(a, b, 100.0))


def dense(a: Tensor, b: Tensor, scale: Tensor, left_out: Tensor) -> Tensor:
    logits = (scale * a @ b.T).masked_fill(left_out, -torch.inf)
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def dense_sigmoid(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, left_out: Tensor) -> Tensor:
    terms = F.logsigmoid((2 * torch.eye(len(a)) - 1) * (scale * a @ b.T + bias))
    return -terms.masked_fill(left_out, 0).sum() / len(a)


@pytest.mark.parametrize("scale", [3.0, 95.0])  # one exp for both sums, and two
@pytest.mark.parametrize("block", [1 << 22, 5 * 23])  # one block of rows, and five with a short last
def test_value_and_gradients_equal_the_dense_form_in_any_number_of_blocks(
    scale: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "BLOCK", block)
    rng = np.random.default_rng(0)
    captions, sections = torch.from_numpy(rng.integers(0, 9, 23)), torch.from_numpy(rng.integers(0, 3, 23))
    left_out = (captions[:, None] == captions[None, :]) | (sections[:, None] != sections[None, :])
    left_out.fill_diagonal_(0)
    keys: dict[str, Any] = {"duplicates": [captions], "blocks": sections}
    for ours, theirs, extra in (
        (info_nce, dense, ()),
        (pairwise_sigmoid, dense_sigmoid, (torch.tensor(-2.0, dtype=torch.float64),)),
    ):
        found = []
        for function in (ours, theirs):
            a, b = unit(23, 6, 1).requires_grad_(), unit(23, 6, 2).requires_grad_()
            factor = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
            rest = [x.clone().requires_grad_() for x in extra]
            loss = function(a, b, factor, *rest, **(keys if function is ours else {"left_out": left_out}))
            (7 * loss).backward()
            found.append([loss.detach(), a.grad, b.grad, factor.grad, *(x.grad for x in rest)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_n_by_n_logits_are_never_held() -> None:
    n, held = 3000, []
    a, b = unit(n, 4, 1).float().requires_grad_(), unit(n, 4, 2).float()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = function(*args, **(kwargs or {}))
            held.extend(t.numel() for t in pytree.tree_leaves(out) if isinstance(t, Tensor))
            return out

    with Watch():
        info_nce(a, b, 10.0, duplicates=[torch.arange(n) // 2]).backward()
    assert max(held) <= streamed.BLOCK < n * n
