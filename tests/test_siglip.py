"""SigLIP beside CLIP: the pairwise sigmoid, its learnt bias, and the word in a recipe that chooses it."""

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

import test_models_alignment as models
from triglyph.configs import validated
from triglyph.errors import ContractError, RecipeError
from triglyph.models.alignment import AlignmentConfig
from triglyph.objectives.contrastive import Temperature, contrastive_loss, info_nce, pairwise_sigmoid


def unit(n: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def brute_force(a: Tensor, b: Tensor, scale: float, bias: float, keys: list[list[int]]) -> float:
    """By the definition, pair by pair, in Python floats."""
    total = 0.0
    for i in range(len(a)):
        for j in range(len(b)):
            if i != j and any(k[i] == k[j] for k in keys):
                continue
            logit = scale * float(a[i] @ b[j]) + bias
            total += math.log1p(math.exp(-logit if i == j else logit))
    return total / len(a)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 10),
    dim=st.integers(1, 6),
    scale=st.floats(0.1, 20),
    bias=st.floats(-12, 2),
    seed=st.integers(0, 10_000),
    kinds=st.integers(1, 12),
)
def test_the_pairwise_sigmoid_equals_its_definition(
    n: int, dim: int, scale: float, bias: float, seed: int, kinds: int
) -> None:
    a, b = unit(n, dim, seed), unit(n, dim, seed + 1)
    rng = np.random.default_rng(seed)
    keys = [rng.integers(0, kinds, n).tolist(), rng.integers(0, 2 * kinds, n).tolist()]
    found = pairwise_sigmoid(a, b, scale, bias, duplicates=[torch.tensor(k) for k in keys])
    assert float(found) == pytest.approx(brute_force(a, b, scale, bias, keys), rel=1e-4, abs=1e-5)


def test_two_orthogonal_pairs_give_the_hand_computed_value() -> None:
    # Logits 3 on the diagonal and 1 off it: log(1 + e^-3) + log(1 + e), a row.
    z = torch.eye(2)
    expected = math.log1p(math.exp(-3)) + math.log1p(math.e)
    assert float(pairwise_sigmoid(z, z, 2.0, 1.0)) == pytest.approx(expected, abs=1e-6)


def test_the_gradient_is_finite_where_logits_are_extreme() -> None:
    a, b = unit(8, 4, 0).float().requires_grad_(), unit(8, 4, 1).float()
    for scale, bias in ((1e4, -1e4), (1e4, 1e4), (1e-6, -10.0)):
        a.grad = None
        loss = pairwise_sigmoid(a, b, scale, bias)
        loss.backward()
        assert torch.isfinite(loss)
        assert a.grad is not None
        assert torch.isfinite(a.grad).all()


def test_copies_of_a_row_are_no_negatives_but_still_a_positive() -> None:
    a, b = unit(5, 4, 0), unit(5, 4, 1)
    alone = pairwise_sigmoid(a, b, 3.0, -1.0, duplicates=[torch.zeros(5, dtype=torch.long)])
    positives = F.softplus(-(3.0 * (a * b).sum(dim=1) - 1.0)).mean()
    assert float(alone) == pytest.approx(float(positives), rel=1e-5)


def test_adding_a_far_negative_moves_info_nce_of_every_row_and_the_sigmoid_only_by_its_own_pairs() -> None:
    a, b = unit(4, 6, 0), unit(4, 6, 1)
    fewer = 3 * pairwise_sigmoid(a[:3], b[:3], 5.0, -2.0)
    cross = [5.0 * float(a[i] @ b[j]) - 2.0 for i, j in ((3, 0), (3, 1), (3, 2), (0, 3), (1, 3), (2, 3))]
    own = math.log1p(math.exp(-(5.0 * float(a[3] @ b[3]) - 2.0)))
    added = own + sum(math.log1p(math.exp(x)) for x in cross)
    assert float(4 * pairwise_sigmoid(a, b, 5.0, -2.0)) == pytest.approx(float(fewer) + added, rel=1e-5)
    assert float(4 * info_nce(a, b, 5.0)) != pytest.approx(float(3 * info_nce(a[:3], b[:3], 5.0)) + added, rel=1e-2)


def test_rows_that_do_not_correspond_are_refused() -> None:
    with pytest.raises(ContractError, match="3 rows on one side and 2 on the other"):
        pairwise_sigmoid(torch.eye(3), torch.eye(3)[:2], 1.0, 0.0)


def test_a_temperature_with_a_bias_makes_the_loss_siglips_and_one_without_clips() -> None:
    embeddings = {"image": unit(6, 4, 0), "expression": unit(6, 4, 1)}
    rows = {m: torch.arange(6) for m in embeddings}
    pairs = {("image", "expression"): 1.0}
    both = [embeddings["image"], embeddings["expression"]]
    clip = contrastive_loss(embeddings, rows, pairs=pairs, temperature=Temperature())
    siglip = contrastive_loss(embeddings, rows, pairs=pairs, temperature=Temperature(bias=-10.0))
    assert float(clip["total"].detach()) == pytest.approx(float(info_nce(*both, 1 / 0.07)), rel=1e-6)
    assert float(siglip["total"].detach()) == pytest.approx(float(pairwise_sigmoid(*both, 1 / 0.07, -10.0)), rel=1e-6)


def test_each_pair_learns_a_bias_of_its_own_where_scales_are_per_pair() -> None:
    temperature = Temperature(["image-expression", "image-text"], bias=-10.0)
    embeddings = {m: unit(5, 4, i) for i, m in enumerate(("image", "expression", "text"))}
    rows = {m: torch.arange(5) for m in embeddings}
    contrastive_loss(embeddings, rows, pairs={("image", "text"): 1.0}, temperature=temperature)["total"].backward()
    assert temperature.bias is not None
    assert temperature.bias.grad is not None
    assert (temperature.bias.grad != 0).tolist() == [False, True]


# ---- in a recipe


def test_one_word_of_the_recipe_chooses_the_objective() -> None:
    batch = models.batch({m: [0, 1, 2, 3] for m in models.DIMS}, features=True)
    clip, siglip = models.model("locked"), models.model("locked", objective="siglip")
    assert clip.temperature.bias is None
    assert siglip.temperature.bias is not None
    assert siglip.temperature.bias.tolist() == [-10.0]
    clip.eval()
    siglip.eval()
    # The same heads, from the same seed: the loss alone differs.
    a, b = clip(batch), siglip(batch)
    for modality in models.DIMS:
        torch.testing.assert_close(a.embeddings[modality], b.embeddings[modality])
    assert float(a.losses["total"].detach()) != float(b.losses["total"].detach())
    torch.testing.assert_close(b.embeddings["image"].norm(dim=1), torch.ones(4))


def test_an_unknown_objective_is_refused_by_name() -> None:
    values: dict[str, Any] = {
        "towers": {m: {"encoder": f"tiny-{m}"} for m in ("image", "expression")},
        "pairs": {"image-expression": 1.0},
        "objective": "triplet",
    }
    with pytest.raises(RecipeError, match="objective"):
        validated(AlignmentConfig, values, where="here", noun="recipe")


def test_siglip_learns_which_rows_belong_together() -> None:
    torch.manual_seed(0)
    left, right = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)
    x = torch.randn(32, 8)
    temperature = Temperature(bias=-10.0)
    optimizer = torch.optim.Adam([*left.parameters(), *right.parameters(), *temperature.parameters()], lr=0.03)
    rows = {m: torch.arange(32) for m in ("image", "expression")}
    for _ in range(150):
        optimizer.zero_grad()
        embeddings = {"image": F.normalize(left(x), dim=1), "expression": F.normalize(right(x), dim=1)}
        loss = contrastive_loss(embeddings, rows, pairs={("image", "expression"): 1.0}, temperature=temperature)[
            "total"
        ]
        loss.backward()
        optimizer.step()
    hits = (embeddings["image"] @ embeddings["expression"].T).argmax(dim=1) == torch.arange(32)
    assert float(hits.float().mean()) > 0.7
