"""Surroundings: who is averaged with whom, on any lattice."""

from __future__ import annotations

import numpy as np
import pytest

from triglyph.errors import ContractError
from triglyph.tissue.surroundings import surroundings


def square(side: int, pitch_um: float) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.stack([x.ravel(), y.ravel()], axis=1) * pitch_um


def hexagonal(side: int, pitch_um: float) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.stack([(x + 0.5 * (y % 2)).ravel(), (y * np.sqrt(3) / 2).ravel()], axis=1) * pitch_um


def test_one_and_a_half_pitches_are_the_ring_of_each_lattice() -> None:
    assert np.diff(surroundings(square(7, 200.0), pitches=1.5).indptr)[24] == 9
    assert np.diff(surroundings(hexagonal(7, 100.0), pitches=1.5).indptr)[24] == 7


def test_it_averages_what_lies_within_the_radius() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (60, 2))
    gap = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    pitch = np.median(np.sort(gap, axis=1)[:, 1])
    member = gap <= 3 * 1.02 * pitch
    values = rng.normal(size=(60, 4))
    expected = (member @ values) / member.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(surroundings(xy, pitches=3) @ values, expected, rtol=1e-12)


def test_unplaced_or_lone_locations_are_their_own_surroundings() -> None:
    for xy in (np.full((4, 2), np.nan), np.zeros((1, 2)), np.zeros((0, 2))):
        np.testing.assert_array_equal(surroundings(xy, pitches=1.5).toarray(), np.eye(len(xy)))


def test_a_location_may_be_left_out_of_its_surroundings() -> None:
    xy, values = square(6, 200.0), np.random.default_rng(0).normal(size=(36, 3))
    gap = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    member = (gap < 300) & (gap > 0)
    expected = (member @ values) / member.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(surroundings(xy, pitches=1.5, itself=False) @ values, expected, rtol=1e-12)
    for alone in (np.full((4, 2), np.nan), np.zeros((1, 2)), np.zeros((0, 2))):
        assert surroundings(alone, pitches=1.5, itself=False).nnz == 0


def test_a_radius_is_a_positive_number() -> None:
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ContractError, match="pitches"):
            surroundings(square(3, 1.0), pitches=wrong)
