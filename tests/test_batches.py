from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triglyph.errors import ContractError, RecipeError
from triglyph.training.batches import Batches, _handfuls

GROUPS = np.array(["image+expression"] * 50 + ["expression+text"] * 30 + ["image+expression+text"] * 20)

groups = st.lists(st.sampled_from(["a", "a+b", "b+c"]), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(
    groups=groups, batch_size=st.integers(1, 20), seed=st.integers(0, 99), epoch=st.integers(0, 5), drop=st.booleans()
)
def test_an_epoch_holds_every_row_once(groups: list[str], batch_size: int, seed: int, epoch: int, drop: bool) -> None:
    if drop and len(groups) < batch_size:
        return
    batches = Batches(groups, batch_size=batch_size, seed=seed, drop_last=drop)
    seen = [batches.batch(epoch, step) for step in range(len(batches))]
    rows = np.concatenate(seen)
    assert len(set(rows.tolist())) == len(rows)
    assert len(rows) == (len(groups) // batch_size * batch_size if drop else len(groups))
    assert all(len(b) == batch_size for b in seen[:-1])


def test_a_batch_is_a_pure_function_of_seed_epoch_and_step() -> None:
    a, b = (Batches(GROUPS, batch_size=16, seed=3) for _ in range(2))
    forwards = {(e, s): a.batch(e, s) for e in range(3) for s in range(len(a))}
    for (e, s), rows in reversed(forwards.items()):
        np.testing.assert_array_equal(b.batch(e, s), rows)
    assert not np.array_equal(a.batch(0, 0), a.batch(1, 0))
    assert not np.array_equal(a.batch(0, 0), Batches(GROUPS, batch_size=16, seed=4).batch(0, 0))


def test_every_batch_holds_the_groups_in_proportion() -> None:
    batches = Batches(GROUPS, batch_size=20, seed=0)
    for epoch in range(5):
        for step in range(len(batches)):
            _, counts = np.unique(GROUPS[batches.batch(epoch, step)], return_counts=True)
            # expression+text 6, image+expression 10, image+expression+text 4, each within one at either end
            assert np.abs(counts - [6, 10, 4]).max() <= 2


def test_weights_decide_the_mixture_and_small_groups_come_round_again() -> None:
    weights = {"image+expression": 1.0, "image+expression+text": 1.0}
    batches = Batches(GROUPS, batch_size=20, seed=0, weights=weights)
    rows = np.concatenate([batches.batch(0, s) for s in range(len(batches))])
    names, counts = np.unique(GROUPS[rows], return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == dict.fromkeys(weights, 50)
    small = rows[GROUPS[rows] == "image+expression+text"]
    assert set(np.unique(small, return_counts=True)[1].tolist()) <= {2, 3}


@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_share_a_batch_without_overlap(drop_last: bool) -> None:
    whole = Batches(GROUPS, batch_size=32, seed=1, drop_last=drop_last)
    parts = [Batches(GROUPS, batch_size=32, seed=1, drop_last=drop_last, rank=r, world_size=3) for r in range(3)]
    for step in range(len(whole)):
        together = np.concatenate([p.batch(2, step) for p in parts])
        assert sorted(together.tolist()) == sorted(whole.batch(2, step).tolist())


def test_a_saved_position_continues_exactly() -> None:
    whole = Batches(GROUPS, batch_size=16, seed=5)
    expected = [b for _ in range(2) for b in whole]
    first = Batches(GROUPS, batch_size=16, seed=5)
    found = []
    for rows in first:
        found.append(rows)
        if len(found) == 4:
            break
    second = Batches(GROUPS, batch_size=16, seed=5)
    second.load_state_dict(first.state_dict())
    found += list(second)
    found += list(second)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_position_of_other_rows_is_refused() -> None:
    state = Batches(GROUPS, batch_size=16, seed=5).state_dict()
    for other in (Batches(GROUPS, batch_size=16, seed=6), Batches(GROUPS[:-1], batch_size=16, seed=5)):
        with pytest.raises(ContractError, match="of other batches"):
            other.load_state_dict(state)


def test_bad_mixtures_and_sizes_are_refused() -> None:
    with pytest.raises(RecipeError, match="no rows have exactly the modalities image"):
        Batches(GROUPS, batch_size=16, seed=0, weights={"image": 1})
    with pytest.raises(RecipeError, match="one above 0"):
        Batches(GROUPS, batch_size=16, seed=0, weights={"image+expression": 0})
    with pytest.raises(ContractError, match="do not fill a batch"):
        Batches(GROUPS, batch_size=101, seed=0)


SECTIONS = np.array(["a"] * 37 + ["b"] * 40 + ["c"] * 20 + ["d"] * 3)


def test_a_batch_holds_handfuls_of_sections_and_a_section_has_its_share_over_the_epochs() -> None:
    batches = Batches(GROUPS[:1].repeat(100), batch_size=20, seed=0, sections=SECTIONS, sections_per_batch=4)
    seen = np.zeros(100)
    for epoch in range(40):
        for step in range(len(batches)):
            rows = batches.batch(epoch, step)
            _, counts = np.unique(SECTIONS[rows], return_counts=True)
            assert len(rows) == 20
            assert (counts % 5 == 0).all()
            np.add.at(seen, rows, 1)
    assert len(batches) == 5
    for name, size in zip(*np.unique(SECTIONS, return_counts=True), strict=True):
        mine = seen[name == SECTIONS]
        assert mine.sum() == pytest.approx(40 * size, abs=0.15 * 40 * size + 5)
        assert mine.max() - mine.min() <= 12 if size > 5 else mine.min() > 0


def test_a_handful_holds_no_row_twice_before_it_holds_its_whole_section() -> None:
    batches = Batches(GROUPS[:1].repeat(100), batch_size=20, seed=0, sections=SECTIONS, sections_per_batch=4)
    rng, sizes = np.random.default_rng(3), dict(zip(*np.unique(SECTIONS, return_counts=True), strict=True))
    for epoch in range(10):
        for rows in batches._order(epoch).reshape(-1, batches.handful):
            assert len(set(rows.tolist())) == min(batches.handful, sizes[SECTIONS[rows[0]]])
    for n, size in [(7, 5), (3, 8), (4, 4), (37, 5), (5, 64)]:
        drawn = _handfuls(rng, np.arange(n), 9, size)
        often = np.stack([np.bincount(line, minlength=n) for line in drawn])
        assert np.ptp(often, axis=1).max() <= 1
        assert np.ptp(often.sum(axis=0)) <= 1


def test_handfuls_of_sections_keep_the_mixture_of_groups() -> None:
    weights = {"image+expression": 1.0, "expression+text": 3.0}
    groups, sections = GROUPS[:80], np.repeat(["p", "q", "r", "s"], 20)
    batches = Batches(groups, batch_size=16, seed=1, weights=weights, sections=sections, sections_per_batch=4)
    rows = np.concatenate([batches.batch(e, s) for e in range(4) for s in range(len(batches))])
    assert (groups[rows] == "expression+text").mean() == pytest.approx(0.75, abs=0.01)


def test_rows_that_do_not_divide_into_sections_are_refused() -> None:
    with pytest.raises(RecipeError, match="20 rows do not divide into 3 sections"):
        Batches(GROUPS, batch_size=20, seed=0, sections=np.zeros(100), sections_per_batch=3)
