"""Surroundings: which types of cells lie around a cell or a location, within a stated radius."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.tissue.simulate.anatomy.tissue import Cells
from triglyph.tissue.simulate.knobs.names import CELL_TYPES


def neighbour_shares(cells: Cells, radius_um: float, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each type among the neighbours of the cells `chosen`, themselves not counted.

    Returns
    -------
    NDArray
        (cells, types); rows of cells that were not chosen, and of cells without a neighbour, are 0.
    """
    shares = np.zeros((len(cells), len(CELL_TYPES)))
    counts = _count(cells, cells.xy_um[chosen], radius_um)
    counts[np.arange(len(chosen)), cells.kind[chosen]] -= 1
    shares[chosen] = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return shares


def surrounding_shares(
    cells: Cells, centres_um: NDArray[np.float64], inner_um: float, outer_um: float
) -> NDArray[np.float64]:
    """(locations, types) share of each type among the cells between `inner_um` and `outer_um` of each centre.

    A row is 0 where the ring holds no cell, and everywhere where `outer_um` is not above `inner_um`.
    """
    counts = np.maximum(_count(cells, centres_um, outer_um) - _count(cells, centres_um, inner_um), 0)
    return np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1))


def _count(cells: Cells, centres_um: NDArray[np.float64], radius_um: float) -> NDArray[np.float64]:
    """(centres, types) cells of each type within the radius."""
    counts = np.zeros((len(centres_um), len(CELL_TYPES)))
    for kind in range(len(CELL_TYPES)):
        points = cells.xy_um[cells.kind == kind]
        if len(points) and len(centres_um):
            counts[:, kind] = cKDTree(points).query_ball_point(centres_um, radius_um, return_length=True)
    return counts
