"""Grouping locations into neighbourhoods of nine: this package beside all-pairs forms of the same greedy grouping.

    OMP_NUM_THREADS=1 uv run --no-sync python benchmarks/neighbourhoods.py

One thread, CPU seconds, best of `ROUNDS` (the all-pairs forms once), on a hexagonal lattice and on random places of the
same density. All forms begin groups in the same order, and on random places, where nothing ties, must give the same
groups, which is checked.

- `neighbourhoods`: this package, up to `LARGEST` locations.
- `kneighbors, k = n`: for every beginning a list of all locations by distance, as in the published code of Stamp, by
  scikit-learn; the first of them that are free are taken.
- `all pairs, lean`: for every beginning the distances to what is still free, in one NumPy expression, and a partition;
  the leanest form without a tree that we know.
- `floor`: one query of the nine nearest of every location, which any way of grouping needs at least.

All-pairs forms are timed at the sizes of `TIMED` and extrapolated to `LARGEST` by the growth between them, t ~ n^a,
which is printed; times that were not measured are marked ~.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.neighbors import NearestNeighbors

from triglyph.tissue.neighbourhoods import neighbourhoods

TIMED, LARGEST, SIZE, PITCH_UM, ROUNDS = (5_000, 20_000), 100_000, 9, 100.0, 3

Way = Callable[[NDArray[np.float64]], NDArray[np.int64]]


def hexagonal(n: int) -> NDArray[np.float64]:
    """A lattice about as high as wide."""
    columns = round(math.sqrt(n))
    y, x = np.divmod(np.arange(n), columns)
    return np.stack([(x + y % 2 / 2) * PITCH_UM, y * PITCH_UM * math.sqrt(3) / 2], axis=1)


def random(n: int) -> NDArray[np.float64]:
    """As many places to the area."""
    return np.random.default_rng(0).random((n, 2)) * PITCH_UM * math.sqrt(n * math.sqrt(3) / 2)


def beginnings(n: int) -> NDArray[np.int64]:
    """The order of `neighbourhoods(..., seed=0)`."""
    return np.random.default_rng(0).permutation(n)


def ours(centres: NDArray[np.float64]) -> NDArray[np.int64]:
    return neighbourhoods(centres, size=SIZE, seed=0)


def sorted_all(centres: NDArray[np.float64]) -> NDArray[np.int64]:
    n = len(centres)
    model = NearestNeighbors().fit(centres)
    free, groups = np.ones(n, dtype=bool), []
    for first in beginnings(n):
        if free[first]:
            listed = model.kneighbors(centres[first : first + 1], n_neighbors=n, return_distance=False)[0]
            members = listed[free[listed]][:SIZE]
            free[members] = False
            groups.append(np.pad(members, (0, SIZE - len(members)), constant_values=-1))
    return np.array(groups)


def lean(centres: NDArray[np.float64]) -> NDArray[np.int64]:
    n = len(centres)
    left, x, y = np.arange(n), *np.ascontiguousarray(centres.T)
    free, groups = np.ones(n, dtype=bool), []
    for first in beginnings(n):
        if free[first]:
            away = (x - centres[first, 0]) ** 2 + (y - centres[first, 1]) ** 2
            taken = np.argpartition(away, SIZE)[:SIZE] if len(left) > SIZE else np.arange(len(left))
            members = left[taken]
            free[members] = False
            rest = free[left]
            left, x, y = left[rest], x[rest], y[rest]
            groups.append(np.pad(members, (0, SIZE - len(members)), constant_values=-1))
    return np.array(groups)


def nine_nearest(centres: NDArray[np.float64]) -> NDArray[np.int64]:
    return cKDTree(centres).query(centres, k=SIZE)[1]


def seconds(way: Way, centres: NDArray[np.float64], rounds: int) -> tuple[float, NDArray[np.int64]]:
    best = math.inf
    for _ in range(rounds):
        start = time.process_time()
        found = way(centres)
        best = min(best, time.process_time() - start)
    return best, found


def growth(times: dict[int, float]) -> float:
    """Exponent a of t ~ n^a between the smallest and the largest size."""
    a, b = min(times), max(times)
    return math.log(times[b] / times[a]) / math.log(b / a)


def main() -> None:
    quick: dict[str, Way] = {"neighbourhoods": ours, "floor": nine_nearest}
    all_pairs: dict[str, Way] = {"kneighbors, k = n": sorted_all, "all pairs, lean": lean}
    for name, places in (("hexagonal", hexagonal), ("random", random)):
        times: dict[str, dict[int, float]] = {way: {} for way in (*quick, *all_pairs)}
        for n in (*TIMED, LARGEST):
            centres = places(n)
            groups: dict[str, NDArray[np.int64]] = {}
            for way, function in quick.items():
                times[way][n], groups[way] = seconds(function, centres, ROUNDS)
            if n == LARGEST:
                continue
            for way, function in all_pairs.items():
                times[way][n], groups[way] = seconds(function, centres, 1)
                same = {tuple(sorted(g)) for g in groups[way]} == {tuple(sorted(g)) for g in groups["neighbourhoods"]}
                assert same or name == "hexagonal", way
        grows = {way: growth(found) for way, found in times.items()}
        for way in all_pairs:
            times[way][LARGEST] = times[way][TIMED[-1]] * (LARGEST / TIMED[-1]) ** grows[way]
        fast = times["neighbourhoods"][LARGEST]
        sizes = "".join(f"{n:>11,}" for n in (*TIMED, LARGEST))
        print(f"\n{name} places, CPU s\n{'':>20}{sizes}{'growth':>8}{f'× at {LARGEST:,}':>14}")
        for way, found in times.items():
            shown = "".join(
                f"{('~' if way in all_pairs and n == LARGEST else '') + format(t, '.3f'):>11}" for n, t in found.items()
            )
            print(f"{way:>20}{shown}{grows[way]:>8.2f}{found[LARGEST] / fast:>14.2f}")


if __name__ == "__main__":
    main()
