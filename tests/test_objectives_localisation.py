"""Localisation against loops over cells and rows, and what the layout of Stamp's release makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from triglyph.errors import ContractError
from triglyph.objectives.contrastive import info_nce
from triglyph.objectives.localisation import cell_cosines, cell_window, localisation_loss, one_sided_nce, pool_cells
from triglyph.tissue.regions import NOWHERE


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(normal(*shape, seed=seed), dim=-1)


# ---- cells


def test_the_windows_of_known_grids():
    # 14 tokens is Stamp's own: kernel 6, stride 4.
    assert {k: cell_window(k) for k in (3, 4, 8, 9, 14, 16)} == {
        3: (1, 1),
        4: (2, 1),
        8: (4, 2),
        9: (3, 3),
        14: (6, 4),
        16: (6, 5),
    }


@given(st.integers(3, 64))
def test_three_windows_cover_an_axis_and_overlap_as_little_as_equal_ones_can(tokens):
    kernel, stride = cell_window(tokens)
    covered = [i for cell in range(3) for i in range(cell * stride, cell * stride + kernel)]
    assert sorted(set(covered)) == list(range(tokens))
    assert len(covered) - tokens == 2 * (tokens % 3)


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_a_grid_of_fewer_than_three_tokens_is_refused(tokens):
    with pytest.raises(ContractError, match="do not make 3 cells"):
        cell_window(tokens)
    with pytest.raises(ContractError, match="do not make 3 cells"):
        pool_cells(torch.zeros(1, 9, tokens, 4))


@pytest.mark.parametrize(("rows", "columns"), [(14, 14), (8, 8), (3, 5), (9, 4)])
def test_a_cell_is_the_mean_of_its_tokens(rows, columns):
    grid = normal(2, rows, columns, 7)
    cells = pool_cells(grid)
    assert cells.shape == (2, 9, 7)
    (kr, sr), (kc, sc) = cell_window(rows), cell_window(columns)
    for row in range(3):
        for column in range(3):
            inside = [grid[:, row * sr + i, column * sc + j] for i in range(kr) for j in range(kc)]
            torch.testing.assert_close(cells[:, 3 * row + column], sum(inside) / len(inside))


def test_changing_a_cell_changes_its_logit_alone_and_not_so_in_the_layout_of_the_release():
    # Nine tokens, one a cell.
    grid, ref = normal(1, 3, 3, 18), normal(1, 18, seed=1)
    other = grid.clone()
    other[0, 1, 2] = normal(18, seed=2)
    for compat, moved in ((None, [5]), ("release", list(range(9)))):
        before, after = (cell_cosines(ref, pool_cells(g, compat=compat))[0] for g in (grid, other))
        assert torch.nonzero(before != after).squeeze(1).tolist() == moved


def test_shuffling_cells_shuffles_the_logits():
    grid, ref = normal(4, 3, 3, 6), normal(4, 6, seed=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    shuffled = grid.flatten(1, 2)[:, order].unflatten(1, (3, 3))
    torch.testing.assert_close(
        cell_cosines(ref, pool_cells(shuffled)), cell_cosines(ref, pool_cells(grid))[:, order], rtol=0, atol=1e-6
    )


def test_the_layout_of_the_release_puts_a_ninth_of_the_channels_of_all_cells_in_each_row():
    grid = normal(2, 14, 14, 9)
    cells, mixed = pool_cells(grid), pool_cells(grid, compat="release")
    assert mixed.shape == cells.shape
    torch.testing.assert_close(mixed, cells.transpose(1, 2))


# ---- the loss


@given(st.integers(1, 12), st.integers(0, 999))
def test_the_loss_is_that_of_a_loop(n, seed):
    ref, cells = normal(n, 5, seed=seed), normal(n, 9, 5, seed=seed + 1)
    cell = torch.randint(-1, 9, (n,), generator=torch.Generator().manual_seed(seed))
    terms = []
    for i in range(n):
        if cell[i] == NOWHERE:
            continue
        logits = [
            7.0 * float(ref[i] @ cells[i, c]) / math.sqrt(float(ref[i] @ ref[i]) * float(cells[i, c] @ cells[i, c]))
            for c in range(9)
        ]
        terms.append(math.log(sum(math.exp(x) for x in logits)) - logits[int(cell[i])])
    found = localisation_loss(cell_cosines(ref, cells), cell, 7.0)
    if not terms:
        assert found is None
    else:
        assert found is not None
        assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_a_row_without_an_answer_changes_neither_the_loss_nor_any_gradient():
    ref, cells = normal(4, 5).requires_grad_(), normal(4, 9, 5, seed=1).requires_grad_()
    cell = torch.tensor([3, NOWHERE, 8, NOWHERE])
    loss = localisation_loss(cell_cosines(ref, cells), cell, 10.0)
    alone = localisation_loss(cell_cosines(ref[::2], cells[::2]), cell[::2], 10.0)
    assert loss is not None
    assert alone is not None
    torch.testing.assert_close(loss, alone)
    loss.backward()
    assert ref.grad is not None
    assert (ref.grad[1::2] == 0).all()
    assert (ref.grad[::2] != 0).any(dim=1).all()


def test_a_label_that_is_no_cell_is_not_taken_for_one_without_an_answer():
    with pytest.raises(IndexError):
        localisation_loss(torch.zeros(2, 9), torch.tensor([0, -2]), 1.0)


def test_equal_cells_cost_as_much_as_guessing():
    cells = normal(5, 1, 4).expand(5, 9, 4)
    loss = localisation_loss(cell_cosines(normal(5, 4, seed=1), cells), torch.arange(5), 100.0)
    assert float(loss) == pytest.approx(math.log(9), abs=1e-5)


# ---- one-sided


def test_the_one_sided_loss_is_the_half_of_the_symmetric_one_that_looks_from_a_to_b():
    a, b = unit(6, 4), unit(6, 4, seed=1)
    both = (one_sided_nce(a, b, 9.0) + one_sided_nce(b, a, 9.0)) / 2
    torch.testing.assert_close(both.double(), info_nce(a, b, 9.0), rtol=1e-5, atol=1e-6)
    logits = 9.0 * a @ b.T
    assert float(one_sided_nce(a, b, 9.0)) == pytest.approx(
        float((logits.logsumexp(dim=1) - logits.diagonal()).mean()), rel=1e-5
    )


def test_one_sided_duplicates_are_no_negatives_of_each_other():
    a, b = unit(5, 4).requires_grad_(), unit(5, 4, seed=1)
    keys = torch.tensor([0, 1, 0, 2, 1])
    logits = 9.0 * a.detach() @ b.T
    terms = []
    for i in range(5):
        rest = [math.exp(logits[i, j]) for j in range(5) if j == i or keys[i] != keys[j]]
        terms.append(math.log(sum(rest)) - float(logits[i, i]))
    loss = one_sided_nce(a, b, 9.0, duplicates=[keys])
    assert float(loss.detach()) == pytest.approx(sum(terms) / 5, rel=1e-5)
    loss.backward()
    assert torch.isfinite(a.grad).all()
    assert float(one_sided_nce(a.detach(), b, 9.0, duplicates=[torch.zeros(5, dtype=torch.long)])) == 0.0
