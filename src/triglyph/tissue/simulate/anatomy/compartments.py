"""Compartments inside domains: what a cell lies in, what the stain paints, and which way fibres run.

Maps on the anatomy's grid, each 0 to 1: `epithelium` (tumour nests, ducts in situ, gland walls), `lumen` (holes that
are white under the microscope), `wall` of vessels, `debris` (necrosis). What is left is stroma.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triglyph.tissue.simulate.anatomy.domains import Fibres
from triglyph.tissue.simulate.anatomy.rounds import RoundThings
from triglyph.tissue.simulate.fields import Draw, Field, step
from triglyph.tissue.simulate.knobs.anatomy import Anatomy
from triglyph.tissue.simulate.knobs.names import DOMAINS

_INVASIVE, _IN_SITU, _IMMUNE, _STROMA, _GLANDS, _FAT, _NECROSIS = range(len(DOMAINS))
# Acini are lined by one to two layers of cells, so their walls are equally thick whatever their size.
_GLAND_WALL_UM = 18.0
_LARGE_DUCT_UM, _LARGE_DUCTS_PER_MM2 = (110.0, 210.0), 7.0


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
    fat: Field
    """Fat cells with their rims."""
    lumen: Field
    """White holes: lumens of glands, ducts and vessels, fat droplets."""
    blood: Field
    """Lumens of vessels, where red cells lie."""
    debris: Field
    cleft: Field
    """Where the section has parted: cracks along fibres, gaps around nests."""
    collagen: Field
    """Dense bundles in stroma; between them it is loose."""
    follicle: Field
    """Follicles of B cells in lymphoid tissue; T cells lie between them."""
    centre: Field
    """Germinal centres of follicles."""
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
        solid = (1 - self.lumen) * (1 - self.cleft)
        if cell_type == "tumour":
            return solid * {"invasive cancer": self.nest, "cancer in situ": self.duct}.get(domain, np.float32(1.0))
        if cell_type == "epithelial":
            return self.gland if domain == "breast glands" else self.stroma
        if cell_type == "endothelial":
            return self.wall + 0.01 * self.stroma
        if cell_type == "adipocyte":
            return self.membrane
        if domain == "immune infiltrate" and cell_type == "B cell":
            return solid * (0.12 + self.follicle - 0.25 * self.centre)
        if domain == "immune infiltrate" and cell_type == "T cell":
            return solid * (1.06 - self.follicle)
        if domain in ("immune infiltrate", "necrosis"):
            return solid
        if cell_type == "fibroblast":
            # Fibroblasts lie between bundles rather than in them.
            return self.stroma * (1 - self.cleft) * (1 - 0.45 * self.collagen)
        # Immune cells crowd the stroma and enter epithelium in part.
        return (self.stroma * (1 - 0.5 * self.collagen) + 0.12 * self.epithelium) * (1 - self.cleft)


def carve(
    anatomy: Anatomy,
    draw: Draw,
    domains: NDArray[np.float32],
    course: Fibres,
    fibrosis: Field,
    rng: np.random.Generator,
) -> Compartments:
    """Carve the compartments of every domain.

    Parameters
    ----------
    draw
        Gives fields by name.
    domains
        (domains, side, side) soft domains.
    course
        The fibres of the section.
    fibrosis
        The state, as far as it shows: it thins nests and thickens bundles.
    rng
        Places ducts, glands and vessels.
    """
    things = RoundThings(domains.shape[1], anatomy.grid_um, rng)
    wobble = draw("wobble", (24.0, 1.0))
    none = np.zeros(domains.shape[1:], dtype=np.float32)

    nest, gap = _nests(anatomy, draw, domains, course, wobble, fibrosis, rng)

    near = things.packed(domains[_IN_SITU] > 0.05, spacing_um=1.05 * anatomy.duct_um[1], diameter_um=anatomy.duct_um)
    reach = near.reach + 0.06 * wobble + draw("duct outlines", (70.0, 0.1))
    duct = domains[_IN_SITU] * step(-reach, -1.0, 0.12)
    rim = domains[_IN_SITU] * step(-reach, -1.3, 0.14) * (1 - step(-reach, -1.04, 0.08))
    comedo = duct * step(-reach, -0.5, 0.2) * (near.lot < 0.35)
    holes = things.packed(duct > 0.5, spacing_um=40.0, diameter_um=(15.0, 27.0))
    cribriform = duct * step(-holes.reach, -1.0, 0.25) * step(-reach, -0.82, 0.1) * (near.lot > 0.65)
    # A ductal carcinoma shrinks from its wall here and there.
    shrunken = step(draw("duct gaps", (60.0, 1.0)), 0.9, 0.6)
    gap = np.maximum(gap, duct * step(-np.abs(reach - 0.96), -0.04, 0.03) * shrunken)

    near = things.packed(domains[_GLANDS] > 0.05, spacing_um=0.92 * anatomy.gland_um[1], diameter_um=anatomy.gland_um)
    # Among acini lie a few large ducts, their lining in folds.
    large = things.scattered(domains[_GLANDS] > 0.05, _LARGE_DUCTS_PER_MM2, _LARGE_DUCT_UM)
    near = near.or_else(large.reach < 1.2, large)
    reach = near.reach + 0.1 * wobble
    inside = domains[_GLANDS] * step(-reach, -1.0, 0.15)
    depth_um = (1 - reach) * near.diameter_um / 2 + 0.035 * near.diameter_um * draw("gland folds", (32.0, 1.0))
    lining_um = _GLAND_WALL_UM + 0.07 * np.clip(near.diameter_um - anatomy.gland_um[1], 0, None)
    gland_lumen = inside * step(depth_um, lining_um, 3.0)
    gland = inside - gland_lumen
    outer_um = (reach - 1) * near.diameter_um / 2
    rim = np.maximum(rim, 0.5 * domains[_GLANDS] * step(outer_um, 3.0, 2.0) * (1 - step(outer_um, 9.0, 6.0)))
    wall_angle = np.where(inside > 0.3, near.angle, none)

    # Fat cells are whole or absent: their border with stroma is a row of bubbles, not a cut.
    cells = things.polygons(domains[_FAT] > 0.02, spacing_um=anatomy.fat_um)
    # Strands of collagen part its lobules.
    septa = step(course.bands(rng, 62.0, draw("bend of septa", (150.0, 30.0))), 1.35, 0.6)
    home = things.at_centres(domains[_FAT] + 0.12 * wobble - 0.9 * septa, cells)
    present = (home > 0.5) & (cells.rim_um < 90)
    rim_um = cells.rim_um + 0.35 * wobble
    droplet = present * step(rim_um, 1.9, 2.4)
    fat = np.where(present, step(rim_um, 0.0, 2.0), 0.0).astype(np.float32)
    membrane = fat * (1 - droplet)
    wall_angle = np.where(present, cells.angle, wall_angle)

    home = (domains[_STROMA] + domains[_INVASIVE] * (1 - nest) + 0.5 * domains[_GLANDS] * (1 - inside)) > 0.6
    vessels = things.scattered(home, anatomy.vessels_per_mm2, anatomy.vessel_um)
    outer = 1.0 + 5.0 / np.maximum(vessels.diameter_um, 1.0)
    reach = vessels.reach + 0.08 * wobble
    free = home * (1 - duct) * (1 - inside) * (1 - fat)
    blood = free * step(-reach, -1.0, 0.15)
    wall = free * step(-reach, -outer, 0.12) * (1 - blood)
    wall_angle = np.where(wall > 0.2, vessels.angle, wall_angle)

    near = things.packed(domains[_IMMUNE] > 0.3, spacing_um=260.0, diameter_um=(130.0, 240.0))
    reach = near.reach + 0.08 * wobble + draw("follicle outlines", (80.0, 0.1))
    follicle = domains[_IMMUNE] * step(-reach, -1.0, 0.3)
    centre = follicle * step(-reach, -0.62, 0.12) * (near.lot < 0.7) * (near.diameter_um > 150)

    collagen, cracks = _bundles(draw, course, fibrosis, rng)
    filled = np.maximum(np.maximum(nest, duct), np.maximum(inside, fat))
    stroma = (1 - filled) * (1 - domains[_IMMUNE]) * (1 - wall - blood)
    tumour_in_necrosis = domains[_NECROSIS] * step(draw("viable islands", (30.0, 1.0)), 1.1, 0.4)
    return Compartments(
        nest=np.maximum(nest * (1 - wall) * (1 - blood) * (1 - fat), 0),
        duct=duct * (1 - comedo) * (1 - cribriform),
        gland=gland * (1 - fat),
        wall=wall,
        rim=rim * (1 - fat),
        membrane=membrane,
        fat=fat,
        lumen=np.clip(gland_lumen * (1 - fat) + droplet + blood + cribriform, 0, 1),
        blood=blood,
        debris=np.maximum(domains[_NECROSIS] * (1 - tumour_in_necrosis), comedo) * (1 - fat),
        cleft=np.clip(np.maximum(gap, cracks * np.clip(stroma, 0, 1)), 0, 1),
        collagen=collagen,
        follicle=follicle,
        centre=centre,
        fibre_phase_um=course.phase_um,
        fibre_angle=course.angle,
        wall_angle=wall_angle.astype(np.float32),
    )


def _nests(
    anatomy: Anatomy,
    draw: Draw,
    domains: NDArray[np.float32],
    course: Fibres,
    wobble: Field,
    fibrosis: Field,
    rng: np.random.Generator,
) -> tuple[Field, Field]:
    """Nests of invasive tumour, and the gaps that shrinkage leaves around them.

    They are round in some places, cords along the fibres in others, and single files at the front.
    """
    invasive = domains[_INVASIVE]
    score = draw("nests", (anatomy.nest_um, 0.94), (2.5 * anatomy.nest_um, 0.35))
    bend = draw("bend of cords", (60.0, 9.0))
    cords = course.bands(rng, 30.0, bend) + draw("breaks of cords", (70.0, 0.55))
    # The front is where the domain gives way: there, and in patches, cords take over.
    pattern = draw("growth patterns", (1.1 * anatomy.domain_um, 1.0)) + 1.6 * (1 - invasive)
    ordered = step(pattern, 0.35, 0.9)
    score = score * (1 - ordered) + cords * ordered - 0.1 * ordered + 0.3 * wobble
    purity = anatomy.purity * draw("purity", (anatomy.state_um, 1.0)) - 0.3 * fibrosis
    score = score + purity + np.float32(0.5)
    nest = invasive * step(score, 0.0, 0.35)
    shrunken = step(draw("shrinkage", (170.0, 1.0)), 0.75, 0.8)
    gap = invasive * shrunken * step(score, -0.26, 0.1) * (1 - step(score, -0.08, 0.12))
    return nest, 0.9 * gap


def _bundles(draw: Draw, course: Fibres, fibrosis: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    """Bundles of collagen, and the cracks between them."""
    bend = draw("bend of bundles", (160.0, 26.0), (45.0, 6.0))
    bundle = 0.95 * course.bands(rng, 40.0, bend) + draw("dense stroma", (300.0, 0.55), (50.0, 0.3))
    collagen = step(bundle + 0.55 * fibrosis, 0.0, 1.8)
    # Cracks run along fibres where the stroma is loose, and wander as tears now and then.
    slit = course.bands(rng, 34.0, bend) + 0.6 * draw("torn stroma", (260.0, 1.0)) - 0.5 * bundle - 0.25 * fibrosis
    slits = step(slit, 2.45, 0.35)
    tear = np.abs(draw("tears", (620.0, 1.0), (60.0, 0.06)))
    opening = 0.035 * np.clip(draw("tearing", (420.0, 1.0)) - 1.3, 0, 1)
    tears = (opening > 0.004) * step(-tear, -opening, 0.014)
    return collagen, np.maximum(slits, tears)
