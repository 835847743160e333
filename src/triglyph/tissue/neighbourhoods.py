"""Neighbourhoods: the locations of a section in compact groups, every location in one of them.

The sampling of Stamp (ICLR 2026, algorithm 2), on physical distances, so that it means the same on any platform and
lattice. Every location draws a number. The lowest number that is in no group yet begins one and takes the nearest
locations that are in none; the member that lies closest to the others, on the mean, is the group's centre.

Distances are compared to the nanometre: neighbours on a lattice tie although rounding parts them. Ties go to the lower
drawn number, not to the lower row: rows run along the lattice, and a tie broken by row pulls every group towards its
corner. So groups depend on the places and on who drew which number, and on nothing else: not on the order of the rows,
nor on where the section lies in its frame and how it is turned.

That is greedy, and one at a time. It costs O(n log n) because a tree over the locations that are left answers for many
beginnings at once, and is made anew when about half of what it holds is taken; a beginning whose list of neighbours
ran out is given a longer one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from triglyph.errors import ContractError, RecipeError

DECIMALS = 3
"""Of a µm: distances are compared to the nanometre."""
LISTED = 4
"""Neighbours first asked for, in sizes of a group."""
FEWEST = 64
"""Beginnings asked for at once, at least."""
BLOCK = 1 << 14
"""Groups whose centres are found at once; bounds memory."""
SLACK = 0.02
"""Of the reach: centres that were rounded to pixels miss the rings of their lattice by less, and up to four pitches no
two rings of a square or hexagonal lattice are so close."""


def neighbourhoods(centres_um: ArrayLike, *, size: int = 9, seed: int | Sequence[int]) -> NDArray[np.int64]:
    """Groups of neighbouring locations, drawn at random.

    Parameters
    ----------
    centres_um
        (n, 2) in µm; all NaN where locations have no place, and groups are random ones then.
    size
        Locations of a group.
    seed
        Decides, with n alone, the number that every location draws.

    Returns
    -------
    (ceil(n / size), size) locations by row of `centres_um`, each once, in the order that groups were begun. Column 0
    is the group's centre, the member of the smallest mean distance to the others; the others follow, nearest to it
    first. The last group holds what is left, and -1 behind it; late groups are less compact, see `near`.

    Raises
    ------
    ContractError
        Some centres are finite and others not, or are not (n, 2).
    """
    centres = _checked(centres_um)
    return neighbourhoods_in_order(centres, order=np.random.default_rng(seed).permutation(len(centres)), size=size)


def neighbourhoods_in_order(centres_um: ArrayLike, *, order: ArrayLike, size: int = 9) -> NDArray[np.int64]:
    """The groups of `neighbourhoods` where the drawn numbers are given.

    Parameters
    ----------
    centres_um
        (n, 2) in µm, or all NaN.
    order
        (n,) the locations by their drawn number. Rows in another order, with `order` naming the same locations,
        give the same groups.
    size
        Locations of a group.

    Returns
    -------
    As `neighbourhoods`.

    Raises
    ------
    ContractError
        As `neighbourhoods`, or `order` is no order of the locations.
    RecipeError
        A group of less than one location is asked for.
    """
    centres, by_number = _checked(centres_um), np.asarray(order, dtype=np.int64)
    n = len(centres)
    if not np.array_equal(np.sort(by_number), np.arange(n)):
        raise ContractError(f"not an order of {n} locations", where="neighbourhoods_in_order")
    if size < 1:
        raise RecipeError(f"a group of {size} locations", where="neighbourhoods", mend="give 1 or more")
    if n and np.isnan(centres[0, 0]):
        numbers = np.full((-(-n // size), size), -1, dtype=np.int64)
        numbers.flat[:n] = np.arange(n)
    else:
        numbers = _grouped(centres[by_number], size)
    # Row n of `named` is what fills up: -1 picks it.
    return np.append(by_number, -1)[numbers]


def near(centres_um: ArrayLike, groups: NDArray[np.int64], *, reach_um: float) -> NDArray[np.bool_]:
    """Which members lie within reach of their group's centre.

    Parameters
    ----------
    centres_um
        (n, 2) in µm, or all NaN.
    groups
        (g, size) of `neighbourhoods`.
    reach_um
        Largest distance that counts, to the nanometre; NaN where no distance is known, and nothing is near then.

    Returns
    -------
    (g, size); False for the centre itself, for -1, and everywhere where places are unknown.
    """
    centres = _checked(centres_um)
    within: NDArray[np.bool_] = _gap(centres[groups], centres[groups[:, :1]]) <= np.round(reach_um, DECIMALS)
    within &= groups >= 0
    within[:, 0] = False
    return within


def pitch_um(centres_um: ArrayLike) -> float:
    """Median distance to the nearest other place, µm; NaN where there are no two, or places are unknown."""
    centres = _checked(centres_um)
    placed = centres[~np.isnan(centres[:, 0])]
    _, first = np.unique(np.round(placed, DECIMALS), axis=0, return_index=True)
    places = placed[first]
    if len(places) < 2:
        return float("nan")
    distance, _ = cKDTree(places).query(places, k=2)
    return float(np.median(distance[:, 1]))


def reach_um(centres_um: ArrayLike, *, pitches: float) -> float:
    """A radius in pitches as µm, and `SLACK` more; NaN where there is no pitch."""
    return pitches * (1 + SLACK) * pitch_um(centres_um)


def _grouped(centres: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Groups of drawn numbers; row i of `centres` is the location that drew i."""
    groups = np.full((-(-len(centres) // size), size), -1, dtype=np.int64)
    free = np.ones(len(centres), dtype=bool)
    begun = 0
    while begun < len(groups):
        left = _Left(centres, np.flatnonzero(free))
        firsts = left.numbers[: max(FEWEST, len(left.numbers) // (2 * size))]
        listed, certain = left.nearest(firsts, LISTED * size)
        for first, line, k in zip(firsts.tolist(), listed, certain.tolist(), strict=True):
            if not free[first]:
                continue
            free[first] = False
            others = line[:k]
            others = others[free[others]][: size - 1]
            if len(others) < size - 1:
                others = left.free_near(first, free, size - 1, 2 * LISTED * size)
            free[others] = False
            groups[begun, 0], groups[begun, 1 : 1 + len(others)] = first, others
            begun += 1
    for start in range(0, len(groups), BLOCK):
        groups[start : start + BLOCK] = _centre_first(centres, groups[start : start + BLOCK])
    return groups


class _Left:
    """The locations that were in no group when the tree was made."""

    def __init__(self, centres: NDArray[np.float64], numbers: NDArray[np.int64]) -> None:
        self.centres, self.numbers = centres, numbers
        self.tree = cKDTree(centres[numbers])

    def nearest(self, firsts: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(m, k) numbers, nearest first and ties by number; (m,) how many of them are certain.

        Those as far as the last may tie with one that is not listed any more.
        """
        k = min(k, len(self.numbers))
        distance, at = self.tree.query(self.centres[firsts], k=np.arange(1, k + 1))
        numbers, distance = self.numbers[at], np.round(distance, DECIMALS)
        order = np.lexsort((numbers, distance), axis=-1)
        all_listed = k == len(self.numbers)
        certain = np.where(all_listed, k, (distance < distance[:, -1:]).sum(axis=1))
        return np.take_along_axis(numbers, order, axis=1), certain

    def free_near(self, first: int, free: NDArray[np.bool_], wanted: int, k: int) -> NDArray[np.int64]:
        """Up to `wanted` free locations nearest to `first`; fewer only where fewer are left."""
        while True:
            listed, certain = self.nearest(np.array([first]), k)
            found = listed[0, : certain[0]]
            found = found[free[found]][:wanted]
            if len(found) == wanted or k >= len(self.numbers):
                return found
            k *= 2


def _centre_first(centres: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same groups, the centre in column 0 and the others by their distance from it; -1 stays behind."""
    # Ascending numbers, so that the first of equals has the lowest.
    members = np.sort(np.where(groups < 0, len(centres), groups), axis=1)
    there = members < len(centres)
    at = centres[np.where(there, members, 0)]
    gap = np.where(there[:, :, None] & there[:, None], _gap(at[:, :, None], at[:, None]), 0.0)
    total = np.round(gap.sum(axis=2), DECIMALS)  # of as many for every member, so it ranks them as the mean does
    centre = np.argmin(np.where(there, total, np.inf), axis=1)
    from_centre = np.where(there, _gap(at, at[np.arange(len(at)), centre][:, None]), np.inf)
    from_centre[np.arange(len(at)), centre] = -1.0
    order = np.argsort(from_centre, axis=1, kind="stable")
    return np.take_along_axis(np.where(there, members, -1), order, axis=1)


def _gap(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances over the last axis, µm, to the nanometre."""
    away: NDArray[np.float64] = np.hypot(a[..., 0] - b[..., 0], a[..., 1] - b[..., 1])
    return np.round(away, DECIMALS)


def _checked(centres_um: ArrayLike) -> NDArray[np.float64]:
    centres = np.asarray(centres_um, dtype=np.float64)
    if centres.ndim != 2 or centres.shape[1] != 2:
        raise ContractError(f"centres have shape {centres.shape}, not (n, 2)", where="centres_um", mend="give x and y")
    if not (np.isfinite(centres).all() or np.isnan(centres).all()):
        raise ContractError(
            "some locations have a place and others have none",
            where="centres_um",
            mend="leave out the locations without a place, or make all NaN",
        )
    return centres
