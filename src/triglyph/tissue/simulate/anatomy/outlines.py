"""Outlines of nuclei and cells, and which cell a point falls in.

A nucleus is an ellipse. A cell is its nucleus grown by up to `EXPANSION_UM`, as instruments do that see nuclei alone;
it stops where another nucleus is nearer. Distances are taken along the ray from a nucleus' centre, which is exact on
the ellipse's axes and a little long between them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.tissue.simulate.anatomy.ellipses import in_radii, radius_towards
from triglyph.tissue.simulate.anatomy.tissue import Cells

EXPANSION_UM = 5.0
CORNERS = 24
"""Corners of an outline."""
_NEAR = 6
_POINTS = 1 << 16
_HALVINGS = 4


def nucleus_radius(cells: Cells, chosen: NDArray[np.int64], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """µm from the centre of each nucleus to its outline, towards `angle` (radians; the shape of `chosen`)."""
    return radius_towards(cells.looks_um[chosen], angle - cells.angle[chosen])


def body_radius(cells: Cells, chosen: NDArray[np.int64], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """As `nucleus_radius`, of what molecules fill (`Cells.body_um`): no pleomorphism moves it."""
    body_um = cells.looks_um if cells.body_um is None else cells.body_um
    return radius_towards(body_um[chosen], angle - cells.angle[chosen])


def assign(cells: Cells, xy_um: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The cell that each point falls in, and its distance from the nearest nucleus.

    Returns
    -------
    tuple
        (n,) index of the cell, -1 for none; (n,) µm to the outline of the nearest nucleus, 0 inside one, and infinity
        where there is none within reach.
    """
    cell = np.full(len(xy_um), -1, dtype=np.int32)
    distance = np.full(len(xy_um), np.inf, dtype=np.float32)
    if not len(cells):
        return cell, distance
    tree, reach = cKDTree(cells.xy_um), float(cells.long_um.max()) / 2 + 4 * EXPANSION_UM
    near = min(_NEAR, len(cells))
    cos: NDArray[np.float64] = np.cos(cells.angle)
    sin: NDArray[np.float64] = np.sin(cells.angle)
    for start in range(0, len(xy_um), _POINTS):
        part = slice(start, start + _POINTS)
        points = xy_um[part]
        _, index = tree.query(points, k=near, distance_upper_bound=reach)
        index = index.reshape(-1, near)
        found = index < len(cells)
        safe = np.where(found, index, 0)
        delta = points[:, None, :] - cells.xy_um[safe]
        dx, dy = delta[..., 0], delta[..., 1]
        along, across = in_radii(dx, dy, cos[safe], sin[safe], cells.long_um[safe] / 2, cells.short_um[safe] / 2)
        # The outline lies where the scaled distance is 1, on the same ray.
        scaled = np.maximum(np.hypot(along, across), 1e-9)
        beyond = np.where(found, np.hypot(dx, dy) * (1 - 1 / scaled), np.inf)
        best = beyond.argmin(1)
        row = np.arange(len(points))
        nearest = beyond[row, best]
        cell[part] = np.where(nearest <= EXPANSION_UM, safe[row, best], -1)
        distance[part] = np.maximum(nearest, 0.0)
    return cell, distance


def nucleus_outlines(cells: Cells) -> NDArray[np.float64]:
    """(cells, CORNERS, 2) corners of every nucleus, anticlockwise where y points up."""
    angle, chosen = _rays(cells)
    return _corners(cells, angle, nucleus_radius(cells, chosen, angle))


def cell_outlines(cells: Cells) -> NDArray[np.float64]:
    """(cells, CORNERS, 2) corners of every cell; a cell holds its nucleus whole."""
    angle, chosen = _rays(cells)
    inner = nucleus_radius(cells, chosen, angle)
    lower, upper = np.zeros_like(inner), np.full_like(inner, EXPANSION_UM)
    free = _own(cells, angle, inner + 0.999 * upper)
    # Halving finds the border with the nearest neighbour to a third of a µm.
    for _ in range(_HALVINGS):
        middle = (lower + upper) / 2
        mine = _own(cells, angle, inner + middle)
        lower, upper = np.where(mine, middle, lower), np.where(mine, upper, middle)
    return _corners(cells, angle, inner + np.where(free, EXPANSION_UM, lower))


def areas_um2(outlines: NDArray[np.float64]) -> NDArray[np.float64]:
    """(cells,) area of each polygon of (cells, corners, 2)."""
    following = np.roll(outlines, -1, axis=1)
    cross = outlines[..., 0] * following[..., 1] - outlines[..., 1] * following[..., 0]
    return np.abs(cross.sum(1)) / 2


def _rays(cells: Cells) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    angle = np.tile(np.arange(CORNERS) * 2 * np.pi / CORNERS, (len(cells), 1))
    return angle, np.tile(np.arange(len(cells))[:, None], (1, CORNERS))


def _corners(cells: Cells, angle: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.float64]:
    return cells.xy_um[:, None, :] + np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def _own(cells: Cells, angle: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.bool_]:
    points = _corners(cells, angle, radius)
    cell, _ = assign(cells, points.reshape(-1, 2))
    return np.asarray(cell.reshape(angle.shape) == np.arange(len(cells))[:, None])
