"""Masked genes: which tokens are hidden, and what is named from whom, against loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triglyph.encoders.packed import segment_mean
from triglyph.objectives import masked_genes
from triglyph.objectives.masked_genes import Context, Groups, by_slot, mask_tokens, name_genes, pooled_context

DIM, TOKENS = 6, 20


@pytest.fixture
def packed() -> tuple[Tensor, Tensor, Tensor, Tensor, Groups]:
    """Two groups of three and one that is alone: rows, ids, chosen, lengths, groups."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([4, 2, 5, 3, 0, 4, 2])
    n = int(lengths.sum())
    return (
        torch.randn(n, DIM, generator=generator, requires_grad=True),
        torch.randint(2, TOKENS, (n,), generator=generator),
        torch.rand(n, generator=generator) < 0.5,
        lengths,
        Groups(torch.tensor([0, 0, 0, 1, 1, 1, 2]), torch.tensor([False, True, True, False, True, True, False])),
    )


def lists(x: Tensor, lengths: Tensor) -> list[Tensor]:
    return list(torch.split(x, lengths.tolist()))


def test_hidden_tokens_have_the_shares_of_bert_and_replacements_are_genes() -> None:
    ids = torch.full((200_000,), 7)
    hidden = mask_tokens(ids, share=0.15, mask=1, first=2, n_tokens=50, generator=torch.Generator().manual_seed(1))
    assert float(hidden.chosen.float().mean()) == pytest.approx(0.15, abs=0.005)
    chosen = hidden.ids[hidden.chosen]
    assert float((chosen == 1).float().mean()) == pytest.approx(0.8, abs=0.01)
    others = chosen[(chosen != 1) & (chosen != 7)]
    assert float(len(others) / len(chosen)) == pytest.approx(0.1, abs=0.01)
    assert int(others.min()) >= 2
    assert int(others.max()) < 50
    assert torch.equal(hidden.ids[~hidden.chosen], ids[~hidden.chosen])


def test_a_seed_decides_what_is_hidden() -> None:
    def drawn(seed: int) -> Tensor:
        ids = torch.arange(2, 1000)
        return mask_tokens(
            ids, share=0.3, mask=1, first=2, n_tokens=1000, generator=torch.Generator().manual_seed(seed)
        ).ids

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_naming_in_blocks_is_naming_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rows, targets, head = (
        torch.randn(37, DIM, requires_grad=True),
        torch.randint(0, TOKENS, (37,)),
        nn.Linear(DIM, TOKENS),
    )
    whole = name_genes(rows, targets, head)
    (expected,) = torch.autograd.grad(whole, rows)
    monkeypatch.setattr(masked_genes, "LOGITS", 5 * TOKENS)
    blocks = name_genes(rows, targets, head)
    (found,) = torch.autograd.grad(blocks, rows)
    assert float(blocks) == pytest.approx(float(whole), abs=1e-6)
    assert torch.allclose(found, expected, atol=1e-7)


def test_naming_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no token"):
        name_genes(torch.zeros(0, DIM), torch.zeros(0, dtype=torch.long), nn.Linear(DIM, TOKENS))


@pytest.mark.parametrize("context", ["masked_only", "positionwise_full"])
def test_slots_are_averaged_over_near_members_that_have_them(
    packed: tuple[Tensor, Tensor, Tensor, Tensor, Groups], context: Context
) -> None:
    rows, ids, chosen, lengths, groups = packed
    split, names, hidden = lists(rows, lengths), lists(ids, lengths), lists(chosen, lengths)
    expected, wanted = [], []
    for centre, members in ((0, [1, 2]), (3, [4, 5]), (6, [])):
        for slot in range(int(lengths[centre])):
            reach = [split[m][slot] for m in members if slot < int(lengths[m])]
            if reach and (context == "positionwise_full" or hidden[centre][slot]):
                expected.append(torch.stack(reach).mean(0))
                wanted.append(names[centre][slot])
    found, targets, _ = by_slot(rows, ids, chosen, lengths, groups, context=context)
    assert len(targets) > 0
    assert torch.equal(targets, torch.stack(wanted))
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)


def test_a_centre_is_never_told_from_itself(packed: tuple[Tensor, Tensor, Tensor, Tensor, Groups]) -> None:
    rows, ids, chosen, lengths, groups = packed
    found, _, _ = by_slot(rows, ids, chosen, lengths, groups, context="positionwise_full")
    (gradient,) = torch.autograd.grad(found.sum(), rows, retain_graph=True)
    centres = torch.repeat_interleave(torch.isin(torch.arange(7), groups.centres), lengths)
    assert float(gradient[centres].abs().max()) == 0
    loss = pooled_context(segment_mean(rows, lengths), ids, lengths, groups, nn.Linear(DIM, TOKENS))
    assert loss is not None
    (gradient,) = torch.autograd.grad(loss, rows)
    assert float(gradient[centres].abs().max()) == 0


def test_pooled_context_is_the_mean_over_centres_of_naming_their_genes(
    packed: tuple[Tensor, Tensor, Tensor, Tensor, Groups],
) -> None:
    rows, ids, _, lengths, groups = packed
    torch.manual_seed(0)
    head = nn.Linear(DIM, TOKENS)
    split, names = lists(rows, lengths), lists(ids, lengths)
    expected = []
    for centre, members in ((0, [1, 2]), (3, [4, 5])):
        around = torch.stack([split[m].mean(0) for m in members if len(split[m])]).mean(0)
        expected.append(F.cross_entropy(head(around).expand(len(names[centre]), -1), names[centre]))
    found = pooled_context(segment_mean(rows, lengths), ids, lengths, groups, head)
    assert found is not None
    assert float(found) == pytest.approx(float(torch.stack(expected).mean()), abs=1e-6)


def test_without_neighbours_there_is_no_context(packed: tuple[Tensor, Tensor, Tensor, Tensor, Groups]) -> None:
    rows, ids, chosen, lengths, groups = packed
    alone = Groups(groups.group, torch.zeros(7, dtype=torch.bool))
    assert pooled_context(segment_mean(rows, lengths), ids, lengths, alone, nn.Linear(DIM, TOKENS)) is None
    found, targets, _ = by_slot(rows, ids, chosen, lengths, alone, context="positionwise_full")
    assert found.shape == (0, DIM)
    assert len(targets) == 0


def test_the_order_of_neighbours_changes_nothing(packed: tuple[Tensor, Tensor, Tensor, Tensor, Groups]) -> None:
    rows, ids, chosen, lengths, groups = packed
    order = [0, 2, 1, 3, 5, 4, 6]
    starts = (lengths.cumsum(0) - lengths).tolist()
    at = torch.cat([torch.arange(starts[i], starts[i] + int(lengths[i])) for i in order])
    moved = Groups(groups.group[order], groups.near[order])
    a, x, _ = by_slot(rows, ids, chosen, lengths, groups, context="positionwise_full")
    b, y, _ = by_slot(rows[at], ids[at], chosen[at], lengths[order], moved, context="positionwise_full")
    assert torch.equal(x, y)
    assert torch.allclose(a, b, atol=1e-6)
