"""Round structures on a grid: ducts, acini, vessels, follicles and fat cells.

Centres are packed on a jittered lattice or strewn at random; every grid point then learns where it lies relative to
the structure it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.tissue.simulate.anatomy.ellipses import turned
from triglyph.tissue.simulate.fields import Field

_FAR = 99.0


@dataclass(frozen=True)
class Near:
    """For every grid point, the structure it belongs to; far from all, `reach` is 99."""

    reach: Field
    """Distance from its centre as a share of its radius."""
    angle: Field
    """Direction from its centre, radians."""
    diameter_um: Field
    lot: Field
    """A number between 0 and 1 that is the structure's own."""

    def or_else(self, where: NDArray[np.bool_], other: Near) -> Near:
        """`other` at the grid points of `where`."""
        return Near(*(np.where(where, getattr(other, f.name), getattr(self, f.name)) for f in fields(self)))


@dataclass(frozen=True)
class Polygons:
    """For every grid point, the polygon it lies in."""

    rim_um: Field
    """Distance from the border, which is rounded where three polygons meet; 99 outside all."""
    angle: Field
    """Direction from the polygon's point, radians."""
    index: NDArray[np.int64]
    """Which polygon; 0 outside all."""
    centres_um: NDArray[np.float64]
    """(polygons, 2)"""


class RoundThings:
    """Lays structures on a grid of `side` points, `step_um` apart."""

    def __init__(self, side: int, step_um: float, rng: np.random.Generator) -> None:
        self._step, self._side, self._rng = step_um, side, rng
        self._extent = side * step_um

    def packed(self, where: NDArray[np.bool_], *, spacing_um: float, diameter_um: tuple[float, float]) -> Near:
        """Structures packed at about `spacing_um`, measured on the grid points of `where`."""
        return self._measure(self._lattice(spacing_um), where, diameter_um)

    def scattered(self, where: NDArray[np.bool_], per_mm2: float, diameter_um: tuple[float, float]) -> Near:
        """Structures strewn at random."""
        number = max(2, round(per_mm2 * self._extent**2 * 1e-6))
        return self._measure(self._rng.uniform(0, self._extent, (number, 2)), where, diameter_um)

    def polygons(self, where: NDArray[np.bool_], *, spacing_um: float) -> Polygons:
        """Polygons around packed points."""
        centres = self._lattice(spacing_um, jitter=0.19)
        # Some merge with their neighbours, so that sizes differ.
        centres = centres[self._rng.random(len(centres)) > 0.13]
        rim, angle = self._blank(_FAR), self._blank(0.0)
        index = np.zeros(where.shape, dtype=np.int64)
        points = self._points(where)
        if len(points):
            distance, nearest = cKDTree(centres).query(points, k=3)
            second, third = distance[:, 1] - distance[:, 0], distance[:, 2] - distance[:, 0]
            # The harmonic sum rounds the corners, where second and third neighbour are equally near.
            rim[where] = 0.5 / (1 / np.maximum(second, 1e-3) + 0.8 / np.maximum(third, 1e-3))
            delta = points - centres[nearest[:, 0]]
            angle[where] = np.arctan2(delta[:, 1], delta[:, 0])
            index[where] = nearest[:, 0]
        return Polygons(rim, angle, index, centres)

    def at_centres(self, field: Field, polygons: Polygons) -> Field:
        """For every grid point, the value of `field` at the centre of its polygon."""
        place = np.clip((polygons.centres_um / self._step).astype(np.int64), 0, self._side - 1)
        values: Field = field[place[:, 1], place[:, 0]][polygons.index]
        return values

    def _measure(self, centres: NDArray[np.float64], where: NDArray[np.bool_], span: tuple[float, float]) -> Near:
        n = len(centres)
        diameter = self._rng.uniform(*span, n)
        squeeze = np.exp(self._rng.normal(0, 0.16, n))
        turn, lots = self._rng.uniform(0, np.pi, n), self._rng.random(n)
        near = Near(self._blank(_FAR), self._blank(0.0), self._blank(0.0), self._blank(0.0))
        rows, columns = np.nonzero(where)
        points = self._points(where)
        # Beyond twice the largest radius nothing is asked of a structure.
        distance, nearest = cKDTree(centres).query(points, k=2, distance_upper_bound=span[1])
        close = np.isfinite(distance[:, 0])
        rows, columns, points, nearest = rows[close], columns[close], points[close], nearest[close]
        # Of the nearest two the one that is reached deeper: a large duct is not cut by its small neighbour.
        nearest = np.where(nearest == n, nearest[:, :1], nearest)
        delta = points[:, None, :] - centres[nearest]
        cos, sin = np.cos(turn)[nearest], np.sin(turn)[nearest]
        along, across = turned(delta[..., 0], delta[..., 1], cos, sin)
        reach = np.hypot(along * squeeze[nearest], across / squeeze[nearest]) / (diameter[nearest] / 2)
        pick = (np.arange(len(points)), reach.argmin(1))
        chosen, gap = nearest[pick], delta[pick]
        near.reach[rows, columns] = reach[pick]
        near.angle[rows, columns] = np.arctan2(gap[:, 1], gap[:, 0])
        near.diameter_um[rows, columns] = diameter[chosen]
        near.lot[rows, columns] = lots[chosen]
        return near

    def _lattice(self, spacing_um: float, jitter: float = 0.13) -> NDArray[np.float64]:
        """A hexagonal lattice; `jitter` is a share of its spacing."""
        rows = int(self._extent / (spacing_um * 0.866)) + 3
        columns = int(self._extent / spacing_um) + 3
        row, column = np.mgrid[-1:rows, -1:columns]
        lattice: NDArray[np.float64] = np.stack(
            [(column + 0.5 * (row % 2)) * spacing_um, row * spacing_um * 0.866], -1
        ).reshape(-1, 2)
        return lattice + self._rng.normal(0, jitter * spacing_um, lattice.shape) + self._rng.uniform(0, spacing_um, 2)

    def _points(self, where: NDArray[np.bool_]) -> NDArray[np.float64]:
        rows, columns = np.nonzero(where)
        return (np.stack([columns, rows], 1).astype(np.float64) + 0.5) * np.float64(self._step)

    def _blank(self, value: float) -> Field:
        return np.full((self._side, self._side), value, dtype=np.float32)
