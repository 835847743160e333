from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from triglyph.errors import ContractError, RecipeError
from triglyph.tissue.neighbourhoods import near, neighbourhoods, neighbourhoods_in_order, pitch_um


def square(rows: int, columns: int, pitch: float = 200.0) -> NDArray[np.float64]:
    y, x = np.divmod(np.arange(rows * columns), columns)
    return np.stack([x * pitch, y * pitch], axis=1)


def hexagonal(rows: int, columns: int, pitch: float = 100.0) -> NDArray[np.float64]:
    y, x = np.divmod(np.arange(rows * columns), columns)
    return np.stack([(x + y % 2 / 2) * pitch, y * pitch * np.sqrt(3) / 2], axis=1)


def irregular(n: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).random((n, 2)) * 100 * np.sqrt(n)


def clumped(n: int) -> NDArray[np.float64]:
    """Dense clumps whose members must look far once the clump is taken, and a few locations far from all."""
    rng = np.random.default_rng(5)
    return np.concatenate(
        [rng.normal(rng.random((n // 60, 2)).repeat(60, 0) * 5e3, 4.0), rng.random((n // 30, 2)) * 5e4]
    )


LATTICES = {
    "hexagonal": hexagonal(37, 41),
    "square": square(30, 33),
    "irregular": irregular(1003),
    "clumped": clumped(1200),
    "three on each spot": hexagonal(12, 11).repeat(3, axis=0),
    "all in one place": np.full((200, 2), 7.0),
    "on a line": np.stack([np.arange(500) * 8.0, np.zeros(500)], axis=1),
}


def distances(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    return np.round(np.sqrt(((a - b) ** 2).sum(-1)), 3)


def one_by_one(centres: NDArray, order: NDArray, size: int) -> list[list[int]]:
    """The definition, with all distances of every location that begins a group."""
    drew = np.argsort(order)
    free, groups = set(range(len(centres))), []
    for first in order.tolist():
        if first not in free:
            continue
        rest = np.array(sorted(free - {first}), dtype=int)
        away = distances(centres[rest], centres[first])
        members = np.array([first, *rest[np.lexsort((drew[rest], away))][: size - 1]])
        free -= set(members.tolist())
        away = distances(centres[members][:, None], centres[members])
        centre = np.lexsort((drew[members], np.round(away.sum(1), 3)))[0]
        others = np.delete(np.arange(len(members)), centre)
        others = others[np.lexsort((drew[members[others]], away[centre][others]))]
        groups.append([int(members[centre]), *members[others].tolist()])
    return groups


def rows_of(groups: NDArray) -> list[list[int]]:
    return [[i for i in row if i >= 0] for row in groups.tolist()]


@pytest.mark.parametrize("size", [1, 2, 9, 25])
@pytest.mark.parametrize("lattice", LATTICES)
def test_groups_are_those_of_taking_the_nearest_one_by_one(lattice: str, size: int) -> None:
    centres = LATTICES[lattice]
    order = np.random.default_rng(3).permutation(len(centres))
    assert rows_of(neighbourhoods(centres, size=size, seed=3)) == one_by_one(centres, order, size)


def test_a_second_tree_and_longer_lists_are_needed_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = neighbourhoods(LATTICES["clumped"], seed=1)
    monkeypatch.setattr("triglyph.tissue.neighbourhoods.LISTED", 1)
    monkeypatch.setattr("triglyph.tissue.neighbourhoods.FEWEST", 2)
    np.testing.assert_array_equal(neighbourhoods(LATTICES["clumped"], seed=1), expected)


@settings(max_examples=80, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=60),
    size=st.integers(1, 12),
    seed=st.integers(0, 999),
    placed=st.booleans(),
)
def test_every_location_is_in_one_group(places: list[tuple[int, int]], size: int, seed: int, placed: bool) -> None:
    centres = np.array(places, dtype=float).reshape(-1, 2) * (1.0 if placed else np.nan)
    groups = neighbourhoods(centres, size=size, seed=seed)
    n = len(places)
    assert groups.shape == (-(-n // size), size)
    assert groups.dtype == np.int64
    assert (groups[:-1] >= 0).all()
    flat = groups.ravel()
    assert sorted(flat[:n].tolist()) == list(range(n))
    assert (flat[n:] == -1).all()


@pytest.mark.parametrize("lattice", LATTICES)
def test_the_first_member_is_the_most_central_and_the_others_follow_by_distance(lattice: str) -> None:
    centres = LATTICES[lattice]
    for row in rows_of(neighbourhoods(centres, seed=0)):
        away = distances(centres[row][:, None], centres[row])
        mean = away.sum(1) / max(1, len(row) - 1)
        assert mean[0] <= mean.min() + 1e-3
        assert (np.diff(away[0][1:]) >= 0).all()


def test_the_centre_stays_first_before_one_that_lies_less_than_a_nanometre_away() -> None:
    places = np.array([[0.0, 0.0], [0.0003, 0.0], [50.0007, 0.0], [-90.0, 0.0], [0.0, 400.0]])
    assert {int(neighbourhoods(places, size=5, seed=seed)[0, 0]) for seed in range(20)} == {1}


def test_the_seed_decides_and_nothing_else() -> None:
    centres = LATTICES["hexagonal"]
    first = neighbourhoods(centres, seed=[4, 0, 7])
    np.testing.assert_array_equal(neighbourhoods(centres.copy(), seed=[4, 0, 7]), first)
    assert not np.array_equal(neighbourhoods(centres, seed=[4, 1, 7]), first)
    np.random.seed(1)
    np.testing.assert_array_equal(neighbourhoods(centres, seed=[4, 0, 7]), first)


@pytest.mark.parametrize("lattice", [*LATTICES, "unplaced"])
def test_rows_in_another_order_are_the_same_groups_where_they_drew_the_same_numbers(lattice: str) -> None:
    # Also where distances tie, which is everywhere on a lattice.
    centres = LATTICES.get(lattice, np.full((75, 2), np.nan))
    rng = np.random.default_rng(2)
    order, moved = rng.permutation(len(centres)), rng.permutation(len(centres))
    groups = neighbourhoods_in_order(centres, order=order)
    other = neighbourhoods_in_order(centres[moved], order=np.argsort(moved)[order])
    np.testing.assert_array_equal(np.append(moved, -1)[other], groups)


@pytest.mark.parametrize("lattice", LATTICES)
def test_a_section_moved_turned_or_mirrored_has_the_same_groups(lattice: str) -> None:
    centres = LATTICES[lattice]
    groups = neighbourhoods(centres, seed=9)
    turn = np.deg2rad(30)
    turned = centres @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    for other in (centres + np.array([12345.6, -77.7]), turned, centres * [-1, 1], centres[:, ::-1]):
        np.testing.assert_array_equal(neighbourhoods(other, seed=9), groups)


def test_ties_pull_groups_in_no_direction() -> None:
    # Ties broken by row pull the members of whole groups 0.16 of a pitch up and 0.05 to the left, on the mean.
    centres = hexagonal(60, 60)
    found = []
    for seed in range(8):
        groups = neighbourhoods(centres, seed=seed)
        away = centres[groups[:, 1:]] - centres[groups[:, :1]]
        found.append(away[np.abs(away).max((1, 2)) <= 300].mean(1) / 100)
    assert np.abs(np.concatenate(found).mean(0)).max() < 0.03


def test_a_group_larger_than_the_section_is_filled_up() -> None:
    groups = neighbourhoods(square(1, 3), size=9, seed=0)
    assert groups.shape == (1, 9)
    assert groups[0, 0] == 1, "the middle one of three"
    assert sorted(groups[0].tolist()) == [-1] * 6 + [0, 1, 2]


def test_unplaced_locations_are_grouped_at_random() -> None:
    nowhere = np.full((9000, 2), np.nan)
    groups = neighbourhoods(nowhere, seed=0)
    assert not np.array_equal(groups, neighbourhoods(nowhere, seed=1))
    gaps = np.abs(groups[:, 1:] - groups[:, :1])
    assert gaps.mean() == pytest.approx(3000, rel=0.05), "the mean distance of two random numbers is a third"
    assert not near(nowhere, groups, reach_um=1e9).any()
    assert np.isnan(pitch_um(nowhere))


def test_what_cannot_be_grouped_is_refused() -> None:
    with pytest.raises(ContractError, match="others have none"):
        neighbourhoods(np.array([[0.0, 0.0], [np.nan, np.nan]]), seed=0)
    with pytest.raises(ContractError, match="others have none"):
        near(np.array([[0.0, np.inf], [1.0, 1.0]]), np.array([[0, 1]]), reach_um=1)
    with pytest.raises(ContractError, match=r"\(4, 3\), not \(n, 2\)"):
        pitch_um(np.zeros((4, 3)))
    with pytest.raises(ContractError, match="not an order of 3 locations"):
        neighbourhoods_in_order(np.zeros((3, 2)), order=[0, 1, 1])
    with pytest.raises(RecipeError, match="a group of 0 locations"):
        neighbourhoods(np.zeros((3, 2)), size=0, seed=0)


@pytest.mark.parametrize("lattice", LATTICES)
def test_near_are_the_members_within_reach_of_the_centre(lattice: str) -> None:
    centres = LATTICES[lattice]
    groups = neighbourhoods(centres, seed=0)
    found = near(centres, groups, reach_um=230.0)
    for row, within in zip(groups.tolist(), found.tolist(), strict=True):
        away = [np.hypot(*(centres[i] - centres[row[0]])) if i >= 0 else np.inf for i in row]
        assert within == [False, *(a <= 230.0 for a in away[1:])]


def test_a_reach_in_pitches_holds_the_rings_of_a_lattice() -> None:
    centres = hexagonal(21, 21) + np.array([1e5 + 0.1, 1e4 + 0.7])
    middle = 10 * 21 + 10
    everywhere = np.concatenate([[middle], np.delete(np.arange(len(centres)), middle)])[None]
    pitch = pitch_um(centres)
    assert pitch == pytest.approx(100)
    counts = [int(near(centres, everywhere, reach_um=r * pitch).sum()) for r in (0.9, 1, 2, 3)]
    assert counts == [0, 6, 18, 36]


def test_the_pitch_is_that_of_places_not_of_what_lies_on_them() -> None:
    assert pitch_um(square(5, 5).repeat(3, axis=0)) == 200
    assert np.isnan(pitch_um(np.zeros((4, 2))))
    assert np.isnan(pitch_um(np.zeros((0, 2))))
    assert near(np.zeros((0, 2)), neighbourhoods(np.zeros((0, 2)), seed=0), reach_um=1).shape == (0, 9)
