"""Locations: the lattice of a platform, means of maps over locations, and which cells' RNA a location catches."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.tissue.simulate.anatomy.tissue import Cells
from triglyph.tissue.simulate.knobs.molecules import Spots


def lattice(spots: Spots, side_um: float) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Centres in µm, rows and columns of every place on the platform.

    A hexagonal lattice counts as Visium does: odd rows have odd columns, and the next spot of a row is two columns on.
    """
    first = spots.margin_um + spots.diameter_um / 2
    hexagonal = spots.lattice == "hexagonal"
    down = spots.pitch_um * (np.sqrt(3) / 2 if hexagonal else 1.0)
    across = spots.pitch_um / (2 if hexagonal else 1)
    rows, columns = np.mgrid[0 : int((side_um - 2 * first) / down) + 1, 0 : int((side_um - 2 * first) / across) + 1]
    on = (rows + columns) % 2 == 0 if hexagonal else np.ones_like(rows, dtype=bool)
    row, column = rows[on], columns[on]
    return first + np.stack([column * across, row * down], 1), row, column


class Footprint:
    """Means of a map over a location: a disc, or a square.

    Parameters
    ----------
    spots
        The platform's locations.
    step_um
        Distance of the map's grid points, or pixels.
    """

    def __init__(self, spots: Spots, step_um: float) -> None:
        self._step, half = step_um, spots.diameter_um / 2
        reach = int(half / self._step)
        dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        inside = np.ones(dx.shape, dtype=bool) if spots.is_square else np.hypot(dx, dy) * self._step <= half
        self._offsets = np.stack([dx, dy], -1)[inside]

    def mean(self, field: NDArray[np.float32], centres_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) mean of `field` over the location at each centre."""
        index = (centres_um / self._step).astype(np.int64)[:, None, :] + self._offsets
        index = np.clip(index, 0, len(field) - 1)
        return field[index[..., 1], index[..., 0]].astype(np.float64).mean(1)


def area_mm2(spots: Spots) -> float:
    """Area of a location."""
    return 1e-6 * (spots.diameter_um**2 if spots.is_square else np.pi * (spots.diameter_um / 2) ** 2)


def membership(cells: Cells, centres_um: NDArray[np.float64], spots: Spots, bleed_um: float) -> sp.csr_matrix:
    """(locations, cells): 1 for a cell in the location, falling to 0 across its border over about `bleed_um`."""
    half = spots.diameter_um / 2
    norm = np.inf if spots.is_square else 2.0
    found = cKDTree(cells.xy_um).query_ball_point(centres_um, half + 3 * bleed_um, p=norm, return_sorted=True)
    lengths = np.array([len(near) for near in found])
    indices = np.array([cell for near in found for cell in near], dtype=np.int64)
    weight = np.ones(len(indices))
    if bleed_um:
        delta = np.abs(cells.xy_um[indices] - np.repeat(centres_um, lengths, axis=0))
        distance = delta.max(1) if spots.is_square else np.hypot(delta[:, 0], delta[:, 1])
        weight = 1 / (1 + np.exp((distance - half) / bleed_um))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return sp.csr_matrix((weight, indices, indptr), shape=(len(centres_um), len(cells)))
