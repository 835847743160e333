from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from test_neighbourhoods import hexagonal, irregular, square
from triglyph.errors import ContractError, RecipeError
from triglyph.tissue.neighbourhoods import neighbourhoods
from triglyph.training.neighbourhood_batches import NeighbourhoodBatches, Neighbourhoods

PLACES = [
    hexagonal(8, 9),
    square(5, 8),
    np.full((31, 2), np.nan),
    np.zeros((0, 2)),
    irregular(90),
    square(1, 2),
    hexagonal(4, 4) + 0.25,
    irregular(53, seed=1),
]
OFFSETS = np.append(0, np.cumsum([len(p) for p in PLACES]))
SECTION = np.repeat(np.arange(len(PLACES)), np.diff(OFFSETS))
N = len(SECTION)


class Counted:
    """Places of sections, and which were asked for."""

    def __init__(self, places: list[NDArray] = PLACES) -> None:
        self.given, self.asked = places, list[int]()

    def __call__(self, section: int) -> NDArray[np.float64]:
        self.asked.append(section)
        return self.given[section]


def batches(places: Callable[[int], NDArray] | None = None, **changes: Any) -> NeighbourhoodBatches:
    settings: dict[str, Any] = {"batch_size": 40, "seed": 3, "sections_at_once": 3, **changes}
    return NeighbourhoodBatches(OFFSETS, places=places or Counted(), **settings)


def same(a: Neighbourhoods, b: Neighbourhoods) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


AT_ONCE = pytest.mark.parametrize("at_once", [1, 2, 3, 100, None])


@AT_ONCE
@pytest.mark.parametrize("batch_size", [9, 40, 100, 10_000])
def test_every_row_is_seen_once_an_epoch(at_once: int | None, batch_size: int) -> None:
    made = batches(sections_at_once=at_once, batch_size=batch_size)
    for epoch in range(2):
        seen = [made.batch(epoch, step) for step in range(len(made))]
        assert sorted(np.concatenate([b.rows for b in seen]).tolist()) == list(range(N))
        assert all(b.group[-1] + 1 == batch_size // 9 for b in seen[:-1])
        assert len(seen) == -(-sum(-(-len(p) // 9) for p in PLACES) // (batch_size // 9))


@AT_ONCE
def test_groups_are_whole_neighbourhoods_of_one_section_with_the_centre_first(at_once: int | None) -> None:
    made = batches(sections_at_once=at_once)
    for epoch in range(2):
        expected = {
            tuple(OFFSETS[s] + row[row >= 0])
            for s, places in enumerate(PLACES)
            for row in neighbourhoods(places, seed=[3, epoch, s])
        }
        found = []
        for step in range(len(made)):
            batch = made.batch(epoch, step)
            assert (np.diff(batch.group) >= 0).all()
            assert batch.group[0] == 0
            assert np.diff(batch.group).max(initial=0) <= 1
            found += [tuple(batch.rows[batch.group == g]) for g in range(batch.group[-1] + 1)]
        assert len(found) == len(expected)
        assert set(found) == expected


def test_groups_are_drawn_anew_every_epoch() -> None:
    made = batches(sections_at_once=None, batch_size=10_000)

    def groups(epoch: int) -> set[frozenset[int]]:
        batch = made.batch(epoch, 0)
        return {frozenset(batch.rows[batch.group == g].tolist()) for g in range(batch.group[-1] + 1)}

    assert len(groups(0) & groups(1)) < 0.2 * len(groups(0))
    assert groups(0) == groups(0)


@AT_ONCE
def test_a_batch_is_a_pure_function_of_seed_epoch_and_step(at_once: int | None) -> None:
    a, b = (batches(sections_at_once=at_once) for _ in range(2))
    forwards = {(e, s): a.batch(e, s) for e in range(3) for s in range(len(a))}
    for e, s in np.random.default_rng(0).permutation(list(forwards)):
        assert same(b.batch(e, s), forwards[e, s])
    assert not same(a.batch(0, 0), a.batch(1, 0))
    assert not same(a.batch(0, 0), batches(sections_at_once=at_once, seed=4).batch(0, 0))


def test_what_is_near_is_said_in_pitches_of_its_section() -> None:
    wide = [places * factor for places, factor in zip(PLACES, [1, 7, 1, 1, 100, 1, 0.2, 3], strict=True)]
    made, scaled = (batches(Counted(places), batch_size=10_000, reach=2.0).batch(0, 0) for places in (PLACES, wide))
    np.testing.assert_array_equal(made.rows, scaled.rows)
    np.testing.assert_array_equal(made.near, scaled.near)
    everywhere = np.concatenate(PLACES)
    np.testing.assert_array_equal(made.centres_um, everywhere[made.rows])
    centre = made.rows[np.searchsorted(made.group, made.group)]
    away = np.hypot(*(everywhere[made.rows] - everywhere[centre]).T)
    for section, pitch in ((0, 100.0), (1, 200.0), (6, 100.0)):
        mine = SECTION[made.rows] == section
        expected = (away <= 2.01 * pitch) & (made.rows != centre)
        np.testing.assert_array_equal(made.near[mine], expected[mine])
        assert made.near[mine].any()
        assert not made.near[mine].all()
    assert not made.near[SECTION[made.rows] == 2].any(), "nothing is near where places are unknown"


def test_centres_rounded_to_pixels_stay_within_reach() -> None:
    places = hexagonal(30, 30, pitch=100.0)
    rounded = np.round((places + 0.3) / 0.7) * 0.7
    exact = NeighbourhoodBatches([0, 900], places=lambda _: places, batch_size=900, seed=0, reach=1.0).batch(0, 0)
    pixels = NeighbourhoodBatches([0, 900], places=lambda _: rounded, batch_size=900, seed=0, reach=1.0).batch(0, 0)
    # Six of eight others, where nothing is in the way. Half of them were lost without slack.
    assert exact.near.mean() > 0.5
    assert pixels.near.mean() == pytest.approx(exact.near.mean(), abs=0.03)


@pytest.mark.parametrize("groups", [1, 5, 30])
def test_a_step_asks_for_the_sections_of_its_windows_alone(groups: int) -> None:
    places, offsets = [hexagonal(6, 6) for _ in range(20)], np.arange(21) * 36
    window_of = np.arange(20 * 4) // (3 * 4)  # of every group of the epoch; the last window has two sections
    for step, windows in enumerate(np.split(window_of, range(groups, 80, groups))):
        asked = Counted(places)
        made = NeighbourhoodBatches(offsets, places=asked, batch_size=9 * groups, seed=0, sections_at_once=3)
        batch = made.batch(1, step)
        assert set(batch.rows // 36) <= set(asked.asked)
        assert len(asked.asked) == len(set(asked.asked)) == sum(2 if w == 6 else 3 for w in set(windows.tolist()))
        if len(set(windows.tolist())) <= 2:
            made.batch(1, step)
            assert len(asked.asked) == len(set(asked.asked)), "windows in use are kept"


def test_the_window_used_longest_ago_is_let_go() -> None:
    asked = Counted([hexagonal(3, 3)] * 4)
    made = NeighbourhoodBatches(np.arange(5) * 9, places=asked, batch_size=9, seed=0, sections_at_once=1)
    for step in (0, 1, 0, 2, 0):
        made.batch(0, step)
    assert len(asked.asked) == 3


def test_an_epoch_in_order_asks_for_every_section_once_and_keeps_two_windows() -> None:
    asked = Counted()
    made = batches(asked)
    assert asked.asked == [], "making batches opens nothing"
    for _ in made:
        assert len(made._open) <= 2
    assert sorted(asked.asked) == [s for s, p in enumerate(PLACES) if len(p)]


def test_the_sections_of_a_window_are_mixed_and_windows_follow_one_another() -> None:
    offsets = np.arange(21) * 360
    made = NeighbourhoodBatches(
        offsets, places=lambda _: irregular(360), batch_size=90, seed=0, sections_at_once=5, size=9
    )
    of = [set((made.batch(0, step).rows // 360).tolist()) for step in range(len(made))]
    windows = [set.union(*of[i : i + 20]) for i in range(0, 80, 20)]
    assert [len(w) for w in windows] == [5] * 4
    assert len(set.union(*windows)) == 20
    assert np.mean([len(sections) for sections in of]) > 4
    other = [set((made.batch(1, step).rows // 360).tolist()) for step in range(20)]
    assert set.union(*other) not in windows, "sections share their window with others in another epoch"


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_groups_of_a_step(world_size: int) -> None:
    whole = batches()
    parts = [batches(rank=r, world_size=world_size) for r in range(world_size)]
    for step in range(len(whole)):
        expected, found = whole.batch(2, step), [p.batch(2, step) for p in parts]
        for g in range(expected.group[-1] + 1):
            mine = found[g % world_size]
            here, there = expected.group == g, mine.group == g // world_size
            np.testing.assert_array_equal(mine.rows[there], expected.rows[here])
            np.testing.assert_array_equal(mine.near[there], expected.near[here])
        assert sum(len(f.rows) for f in found) == len(expected.rows)
        assert {len(f.rows) > 0 for f in found} == {True}


def test_a_last_step_of_fewer_groups_than_processes_is_shared_as_far_as_it_goes() -> None:
    places = hexagonal(65, 9)
    # 65 groups, 64 a step.
    whole = NeighbourhoodBatches([0, 585], places=lambda _: places, batch_size=576, seed=0)
    parts = [
        NeighbourhoodBatches([0, 585], places=lambda _: places, batch_size=576, seed=0, rank=r, world_size=2)
        for r in range(2)
    ]
    assert len(whole) == len(parts[0]) == 2
    one, none = (p.batch(0, 1) for p in parts)
    assert same(one, whole.batch(0, 1))
    assert [len(x) for x in one] == [9] * 4
    assert [len(x) for x in none] == [0] * 4
    assert none.rows.dtype == none.group.dtype == np.int64
    assert none.near.dtype == bool


@AT_ONCE
def test_a_saved_position_continues_exactly(at_once: int | None) -> None:
    whole = batches(sections_at_once=at_once)
    expected = [whole.batch(epoch, step) for epoch in range(2) for step in range(len(whole))]
    for stop in range(1, len(whole)):
        first, found = batches(sections_at_once=at_once), []
        for batch in first:
            found.append(batch)
            if len(found) == stop:
                break
        second = batches(sections_at_once=at_once)
        second.load_state_dict(first.state_dict())
        found += [*second, *second]
        assert len(found) == len(expected)
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_a_position_of_other_batches_is_refused() -> None:
    state = batches().state_dict()
    assert all(isinstance(v, (int, float, str)) for v in state.values()), "loads with weights_only"
    for change in ({"seed": 4}, {"size": 8}, {"reach": 2.0}, {"sections_at_once": None}, {"batch_size": 50}):
        with pytest.raises(ContractError, match="of other batches"):
            batches(**change).load_state_dict(state)
    moved = NeighbourhoodBatches(OFFSETS[[0, 2, *range(2, 9)]], places=Counted(), batch_size=40, seed=3)
    with pytest.raises(ContractError, match="offsets"):
        moved.load_state_dict(state)


def test_what_cannot_be_batched_is_refused() -> None:
    with pytest.raises(RecipeError, match="8 rows holds no group of 9"):
        batches(batch_size=8)
    for change in ({"size": 0}, {"reach": -1.0}, {"reach": float("nan")}, {"sections_at_once": 0}):
        with pytest.raises(RecipeError, match="give a size of 1 or more"):
            batches(**change)
    for offsets in ([0], [0, 0], [1, 5], [0, 5, 4]):
        with pytest.raises(ContractError, match="which rows are of which section"):
            NeighbourhoodBatches(offsets, places=Counted(), batch_size=9, seed=0)
    with pytest.raises(ContractError, match="rank 2 of 2"):
        batches(rank=2, world_size=2)
    with pytest.raises(ContractError, match="2 groups of a step do not go round 3 processes"):
        NeighbourhoodBatches([0, 45], places=Counted(), batch_size=18, seed=0, rank=0, world_size=3)
    with pytest.raises(ContractError, match=r"\(72, 2\) places of 71 rows"):
        NeighbourhoodBatches([0, 71], places=Counted(), batch_size=9, seed=0).batch(0, 0)
    with pytest.raises(ContractError, match=f"step {len(batches())} of an epoch"):
        batches().batch(0, len(batches()))
