"""Compartments inside domains: what a cell lies in, what the stain paints, and which way fibres run.

Maps on the anatomy's grid, each 0 to 1: `epithelium` (tumour nests, ducts in situ, gland walls), `lumen` (holes that
are white under the microscope), `fat`, `vessel` walls, `debris` (necrosis). What is left is stroma.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.tissue.simulate.fields import Field, step
from triglyph.tissue.simulate.presets import DOMAINS, Anatomy

_INVASIVE, _IN_SITU, _IMMUNE, _STROMA, _GLANDS, _FAT, _NECROSIS = range(len(DOMAINS))


@dataclass(frozen=True)
class Compartments:
    """Maps of what lies where; see the module's text."""

    nest: Field
    """Nests and cords of invasive tumour."""
    duct: Field
    """Ducts filled by tumour."""
    gland: Field
    """Walls of normal glands."""
    wall: Field
    """Walls of vessels."""
    rim: Field
    """Dense collagen around ducts and glands."""
    membrane: Field
    """Rims of fat cells."""
    lumen: Field
    """White holes: lumens of glands and vessels, fat droplets."""
    blood: Field
    """Lumens of vessels, where red cells lie."""
    debris: Field
    fibre_phase_um: Field
    """Grows by 1 for each µm across the fibres; its level lines are the fibres."""
    fibre_angle: Field
    """Direction of the fibres, radians."""
    wall_angle: Field
    """Direction from the centre of the nearest gland, vessel or fat cell, radians."""

    @property
    def epithelium(self) -> Field:
        """Everything that is epithelial, tumour or not."""
        return np.maximum(np.maximum(self.nest, self.duct), self.gland)

    @property
    def stroma(self) -> Field:
        """What is none of the others."""
        return (1 - self.epithelium) * (1 - self.lumen) * (1 - self.wall)

    def place(self, cell_type: str, domain: str) -> Field:
        """Where in a domain a cell type prefers to lie, 0 to 1."""
        if cell_type == "tumour":
            return {"invasive cancer": self.nest, "cancer in situ": self.duct}.get(domain, 1 - self.lumen)
        if cell_type == "epithelial":
            return self.gland if domain == "breast glands" else self.stroma
        if cell_type == "endothelial":
            return self.wall + 0.01 * self.stroma
        if cell_type == "adipocyte":
            return self.membrane
        if domain in ("immune infiltrate", "necrosis"):
            return 1 - self.lumen
        if cell_type == "fibroblast":
            return self.stroma
        # Immune cells crowd the stroma and enter epithelium in part.
        return self.stroma + 0.12 * self.epithelium


def carve(
    anatomy: Anatomy,
    field: Callable[[float], Field],
    domains: NDArray[np.float32],
    fibrosis: Field,
    rng: np.random.Generator,
) -> Compartments:
    """Carve the compartments of every domain.

    Parameters
    ----------
    field
        Gives a standard smooth field of a length scale in µm.
    domains
        (domains, side, side) soft domains.
    fibrosis
        The state that thins nests and thickens stroma.
    """
    grid = _Grid(anatomy, domains.shape[1], rng)
    wobble = field(24.0)
    purity = anatomy.purity * field(anatomy.state_um) - 0.3 * fibrosis
    nest = domains[_INVASIVE] * step(field(anatomy.nest_um) + 0.35 * wobble + purity + 0.25, 0.0, 0.4)
    tumour_in_necrosis = domains[_NECROSIS] * step(field(30.0), 1.1, 0.4)
    wall_angle = np.zeros_like(nest)

    near = grid.nearest(domains[_IN_SITU] > 0.05, spacing_um=anatomy.duct_um[1] * 1.12, diameter_um=anatomy.duct_um)
    reach = near.reach + 0.1 * wobble
    duct = domains[_IN_SITU] * step(-reach, -1.0, 0.12)
    rim = domains[_IN_SITU] * step(-reach, -1.28, 0.1) * (1 - step(-reach, -1.06, 0.1))
    comedo = duct * step(-reach, -0.42, 0.15) * (near.diameter_um > np.mean(anatomy.duct_um))

    near = grid.nearest(domains[_GLANDS] > 0.05, spacing_um=anatomy.gland_um[1] * 1.15, diameter_um=anatomy.gland_um)
    reach = near.reach + 0.12 * wobble
    inside = domains[_GLANDS] * step(-reach, -1.0, 0.15)
    gland_lumen = inside * step(-reach, -0.45, 0.12)
    gland = inside - gland_lumen
    rim = np.maximum(rim, 0.6 * domains[_GLANDS] * step(-reach, -1.22, 0.12) * (1 - step(-reach, -1.05, 0.1)))
    wall_angle = np.where(inside > 0.3, near.angle, wall_angle)

    rim_um, fat_angle = grid.borders(domains[_FAT] > 0.05, spacing_um=anatomy.fat_um)
    fat = step(domains[_FAT], 0.5, 0.5)
    droplet = fat * step(rim_um + 0.3 * wobble, 2.0, 2.6)
    membrane = domains[_FAT] * (1 - droplet) * step(-rim_um, -9.0, 4.0)
    wall_angle = np.where(fat > 0.3, fat_angle, wall_angle)

    home = (domains[_STROMA] + domains[_INVASIVE] * (1 - nest) + 0.5 * domains[_GLANDS] * (1 - inside)) > 0.6
    vessels = grid.scatter(home, anatomy.vessels_per_mm2, anatomy.vessel_um)
    outer = 1.0 + 5.0 / np.maximum(vessels.diameter_um, 1.0)
    blood = home * step(-vessels.reach, -1.0, 0.15) * (1 - duct) * (1 - inside)
    wall = home * step(-vessels.reach, -outer, 0.12) * (1 - blood) * (1 - duct) * (1 - inside)
    wall_angle = np.where(wall > 0.2, vessels.angle, wall_angle)

    phase, angle = _fibres(anatomy, field, rng)
    debris = np.maximum(domains[_NECROSIS] * (1 - tumour_in_necrosis), comedo)
    return Compartments(
        nest=np.maximum(nest * (1 - wall) * (1 - blood), 0),
        duct=duct * (1 - comedo),
        gland=gland,
        wall=wall,
        rim=rim,
        membrane=membrane,
        lumen=np.clip(gland_lumen + droplet + blood, 0, 1),
        blood=blood,
        debris=debris,
        fibre_phase_um=phase,
        fibre_angle=angle,
        wall_angle=wall_angle.astype(np.float32),
    )


def _fibres(anatomy: Anatomy, field: Callable[[float], Field], rng: np.random.Generator) -> tuple[Field, Field]:
    """Fibres as level lines of a bent plane: parallel nearby, wavy, turning over some 300 µm."""
    side = round(anatomy.side_um / anatomy.grid_um)
    axis = np.arange(side, dtype=np.float32) * np.float32(anatomy.grid_um)
    course = float(rng.uniform(0, np.pi))
    phase = axis[:, None] * np.float32(np.cos(course)) - axis[None, :] * np.float32(np.sin(course))
    phase = phase + 70 * field(420.0) + 16 * field(110.0) + 3.5 * field(30.0)
    down, across = np.gradient(phase)
    # The fibre runs along the level line, at a right angle to the gradient.
    return phase, np.arctan2(across, -down).astype(np.float32)


@dataclass(frozen=True)
class _Near:
    """For every grid point, the nearest of some round structures."""

    reach: Field
    """Distance from its centre as a share of its radius."""
    angle: Field
    diameter_um: Field


class _Grid:
    """Round structures laid on the grid."""

    def __init__(self, anatomy: Anatomy, side: int, rng: np.random.Generator) -> None:
        self._step, self._side, self._rng = anatomy.grid_um, side, rng
        self._extent = side * anatomy.grid_um

    def nearest(self, where: NDArray[np.bool_], *, spacing_um: float, diameter_um: tuple[float, float]) -> _Near:
        """Structures packed at about `spacing_um`."""
        return self._measure(self._packed(spacing_um), where, diameter_um)

    def scatter(self, where: NDArray[np.bool_], per_mm2: float, diameter_um: tuple[float, float]) -> _Near:
        """Structures strewn at random."""
        number = max(1, round(per_mm2 * self._extent**2 * 1e-6))
        return self._measure(self._rng.uniform(0, self._extent, (number, 2)), where, diameter_um)

    def borders(self, where: NDArray[np.bool_], *, spacing_um: float) -> tuple[Field, Field]:
        """Polygons around packed points: distance to the nearest border in µm, and the direction from the point."""
        centres = self._packed(spacing_um)
        rim, angle = self._blank(99.0), self._blank(0.0)
        points = self._points(where)
        if len(points):
            distance, index = cKDTree(centres).query(points, k=2)
            rim[where] = (distance[:, 1] - distance[:, 0]) / 2
            delta = points - centres[index[:, 0]]
            angle[where] = np.arctan2(delta[:, 1], delta[:, 0])
        return rim, angle

    def _measure(self, centres: NDArray[np.float64], where: NDArray[np.bool_], span: tuple[float, float]) -> _Near:
        diameter = self._rng.uniform(*span, len(centres))
        squeeze = np.exp(self._rng.normal(0, 0.12, len(centres)))
        turn = self._rng.uniform(0, np.pi, len(centres))
        reach, angle, size = self._blank(99.0), self._blank(0.0), self._blank(0.0)
        points = self._points(where)
        if len(points):
            _, index = cKDTree(centres).query(points)
            dx, dy = (points - centres[index]).T
            cos, sin = np.cos(turn[index]), np.sin(turn[index])
            along, across = (dx * cos + dy * sin) * squeeze[index], (dy * cos - dx * sin) / squeeze[index]
            reach[where] = np.hypot(along, across) / (diameter[index] / 2)
            angle[where] = np.arctan2(dy, dx)
            size[where] = diameter[index]
        return _Near(reach, angle, size)

    def _packed(self, spacing_um: float) -> NDArray[np.float64]:
        """A hexagonal lattice, jittered by a fifth of its spacing."""
        rows = int(self._extent / (spacing_um * 0.866)) + 3
        columns = int(self._extent / spacing_um) + 3
        row, column = np.mgrid[-1:rows, -1:columns]
        lattice: NDArray[np.float64] = np.stack(
            [(column + 0.5 * (row % 2)) * spacing_um, row * spacing_um * 0.866], -1
        ).reshape(-1, 2)
        return lattice + self._rng.normal(0, 0.13 * spacing_um, lattice.shape) + self._rng.uniform(0, spacing_um, 2)

    def _points(self, where: NDArray[np.bool_]) -> NDArray[np.float64]:
        rows, columns = np.nonzero(where)
        return (np.stack([columns, rows], 1).astype(np.float64) + 0.5) * np.float64(self._step)

    def _blank(self, value: float) -> Field:
        return np.full((self._side, self._side), value, dtype=np.float32)
