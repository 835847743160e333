"""Anatomy: domains with smooth boundaries, compartments inside them (nests, ducts, glands, fat, vessels), and cells.

Everything is a map on one grid (`grid_um`), from which cells are drawn as an inhomogeneous point process and which the
stain paints. Sections of one block share most of their maps and none of their cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import ndtr

from triglyph.tissue.simulate.anatomy.compartments import Compartments, carve
from triglyph.tissue.simulate.anatomy.domains import fibres, lay_out
from triglyph.tissue.simulate.fields import Field, layered_noise, sample, smooth_noise, step
from triglyph.tissue.simulate.knobs.anatomy import Anatomy
from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.knobs.states import STATES
from triglyph.tissue.simulate.streams import stream

_TYPE = {name: i for i, name in enumerate(CELL_TYPES)}
# Along the outline of what they line: tangential; across it (columnar): radial.
_TANGENTIAL = ("endothelial", "adipocyte")
_ELONGATED_ALONG_FIBRES = ("fibroblast",)
_SHOWN = 2.5
"""States show up to this far from 0."""


@dataclass(frozen=True)
class Cells:
    """Cells of a section; every array has one row per cell."""

    xy_um: NDArray[np.float64]
    """(n, 2) centres in the section's frame."""
    kind: NDArray[np.int64]
    """(n,) index into `CELL_TYPES`."""
    long_um: NDArray[np.float64]
    """(n,) long diameter of the nucleus."""
    short_um: NDArray[np.float64]
    angle: NDArray[np.float64]
    """(n,) direction of the long diameter, radians."""
    states: NDArray[np.float64]
    """(n, len(STATES)) local value of each state, about N(0, 1)."""
    body_um: NDArray[np.float64] | None = None
    """(n, 2) long and short diameter of what a cell's molecules fill: the nucleus without what is seen in morphology
    alone, so that counts do not know of it. None: the nucleus as it looks."""

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def looks_um(self) -> NDArray[np.float64]:
        """(n, 2) long and short diameter of the nucleus as it looks."""
        return np.stack([self.long_um, self.short_um], 1)


@dataclass(frozen=True)
class Tissue:
    """The maps of a section (each side x side on the grid) and its cells."""

    step_um: float
    cover: Field
    """1 under tissue, 0 on glass, smooth at the edge."""
    domains: NDArray[np.float32]
    """(len(DOMAINS), side, side), summing to 1 over domains."""
    compartments: Compartments
    states: NDArray[np.float32]
    """(len(STATES), side, side) each about N(0, 1), plus what the patient's subtype adds."""
    patch: Field
    """Patches smaller than a spot, N(0, 1): where RNA is well kept and nuclei stain darkly."""
    cells: Cells


class _Fields:
    """Fields of one section: a share common to the block, and the section's own change."""

    def __init__(self, config: Simulation, patient: int, section: int) -> None:
        self._seed, self._block = config.seed, (patient, config.block_of(patient, section))
        self._own = (patient, section)
        self._change, self._step = config.anatomy.section_change, config.anatomy.grid_um
        self.side = round(config.anatomy.side_um / config.anatomy.grid_um)

    def __call__(self, name: str, *octaves: tuple[float, float], change: float = 1.0) -> Field:
        own = change * self._change
        layers = [(stream(self._seed, f"block field: {name}", *self._block), float(np.sqrt(1 - own**2)))]
        if own:
            layers.append((stream(self._seed, f"section field: {name}", *self._own), own))
        return layered_noise(layers, self.side, self._step, octaves)


def build_tissue(
    config: Simulation,
    patient: int,
    section: int,
    shares: NDArray[np.float64],
    *,
    state_shift: NDArray[np.float64] | None = None,
) -> Tissue:
    """The maps and cells of one section.

    Parameters
    ----------
    shares
        (len(DOMAINS),) share of the tissue that each domain takes in this block; 0: it is absent.
    state_shift
        (len(STATES),) added to the states everywhere; none by default.
    """
    anatomy, draw = config.anatomy, _Fields(config, patient, section)
    block = (patient, config.block_of(patient, section))
    cover = _cover(anatomy, draw, stream(config.seed, "outline", *block))
    course = fibres(anatomy, draw, float(stream(config.seed, "fibres", *block).uniform(0, np.pi)))
    domains = lay_out(anatomy, draw, course, shares, cover, stream(config.seed, "domains", *block))
    states = np.stack([draw(f"state: {name}", (anatomy.state_um, 1.0)) for name in STATES])
    if state_shift is not None:
        states += state_shift[:, None, None].astype(np.float32)
    fibrosis = visible(config, states, "fibrosis")
    # Ducts, glands and vessels run through a block: adjacent sections cut the same ones.
    compartments = carve(anatomy, draw, domains, course, fibrosis, stream(config.seed, "compartments", *block))
    # Lymphocytes follow inflammation as far as it shows; what it leaves varies by itself, so that they vary as much.
    seen = min(config.dial.strength("inflammation")[0], 1.0)
    immune = visible(config, states, "inflammation")
    if seen < 1:
        immune = immune + np.float32(np.sqrt(1 - seen**2)) * draw("lymphocytes", (anatomy.state_um, 1.0))
    gradients = _Gradients(cellularity=draw("cellularity", (anatomy.state_um, 1.0)), immune=immune)
    rng = stream(config.seed, "cells", patient, section)
    cells = _cells(config, cover, domains, compartments, states, gradients, rng)
    patch = smooth_noise(
        stream(config.seed, "patches", patient, section), draw.side, anatomy.grid_um, config.molecules.patch_um
    )
    return Tissue(anatomy.grid_um, cover, domains, compartments, states, patch, cells)


def visible(config: Simulation, states: NDArray[np.floating[Any]], name: str) -> NDArray[np.float32]:
    """The state `name` as far as it shows under the microscope, within ± `_SHOWN`; 0 everywhere where its dial is 0.

    `states` is (len(STATES), ...).
    """
    strength = np.float32(config.dial.strength(name)[0])
    return strength * np.clip(states[STATES.index(name)], -_SHOWN, _SHOWN).astype(np.float32)


@dataclass(frozen=True)
class _Gradients:
    cellularity: Field
    immune: Field


def _cover(anatomy: Anatomy, draw: _Fields, rng: np.random.Generator) -> Field:
    """An irregular piece that covers `tissue_fraction` of the frame: cut straight on some sides, torn on others."""
    side = draw.side
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    x, y = axis[None, :], axis[:, None]
    # A superellipse, its corners cut by a few straight strokes of the knife.
    distance = (np.abs(x) ** 5 + np.abs(y) ** 5) ** np.float32(1 / 5)
    first = rng.uniform(0, 2 * np.pi)
    for turn in first + np.arange(5) * 2 * np.pi / 5 + rng.normal(0, 0.3, 5):
        reach = rng.uniform(0.96, 1.25)
        distance = np.maximum(distance, (x * np.cos(turn) + y * np.sin(turn)).astype(np.float32) / np.float32(reach))
    um = np.float32(2 / anatomy.side_um)
    torn = step(draw("torn edges", (420.0, 1.0)), 0.3, 1.4)
    # Small pieces are bent in proportion.
    outline = distance + um * np.float32(min(1.0, anatomy.side_um / 2000.0)) * (
        draw("outline", (700.0, 45.0), (220.0, 14.0), (30.0, 1.6))
        + torn * draw("tatters", (90.0, 16.0), (32.0, 9.0), (12.0, 4.0))
    )
    level = np.quantile(outline, anatomy.tissue_fraction)
    return np.clip((level - outline) / (6.0 * um) + 0.5, 0, 1).astype(np.float32)


def _cells(
    config: Simulation,
    cover: Field,
    domains: NDArray[np.float32],
    compartments: Compartments,
    states: NDArray[np.float32],
    gradients: _Gradients,
    rng: np.random.Generator,
) -> Cells:
    """Cells of every type as a Poisson process with a local rate, pushed apart until nuclei hardly overlap."""
    anatomy = config.anatomy
    grid_um = anatomy.grid_um
    # Lymphoid tissue and glands are packed; their density varies half as much.
    packed = domains[DOMAINS.index("immune infiltrate")] + domains[DOMAINS.index("breast glands")]
    spread = anatomy.cellularity * (1 - 0.5 * packed)
    general = np.exp(spread * gradients.cellularity - spread**2 / 2) * cover
    crowding = np.log(_crowding(anatomy.infiltration, config.dial.strength("inflammation")[0]))
    immune = np.exp(anatomy.infiltration * gradients.immune - np.float32(anatomy.infiltration**2 / 2 + crowding))
    immune[domains[DOMAINS.index("immune infiltrate")] > 0.6] = 1.0
    covered = [weight * cover for weight in domains]
    totals = [float(weight.sum()) for weight in covered]
    points, kinds = [], []
    for number_of_type, name in enumerate(CELL_TYPES):
        rate = np.zeros_like(cover)
        for weight, total, domain in zip(covered, totals, DOMAINS, strict=True):
            density = anatomy.cells_per_mm2[domain].get(name, 0.0)
            if density and total:
                place = weight * compartments.place(name, domain)
                # The density is the domain's mean, so the place a cell prefers is rescaled to mean 1 over the domain.
                mean = float(place.sum()) / total
                if mean > 1e-6:
                    rate += np.float32(density * 1e-6 * grid_um**2 / max(mean, 0.05)) * place
        rate *= general
        if name in ("T cell", "B cell", "macrophage"):
            rate *= immune
        number = rng.poisson(rate)
        rows, columns = np.nonzero(number)
        repeat = number[rows, columns]
        xy = np.repeat(np.stack([columns, rows], 1), repeat, axis=0) + rng.random((repeat.sum(), 2))
        points.append(xy * grid_um)
        kinds.append(np.full(len(xy), number_of_type))
    xy_um, kind = np.concatenate(points), np.concatenate(kinds)
    local = np.stack([sample(state, xy_um, grid_um) for state in states], 1).astype(np.float64)
    size, stretch = _sizes(config, kind, local, sample(compartments.centre, xy_um, grid_um), rng)
    looks = [anatomy.nuclei[name] for name in CELL_TYPES]
    long_um = np.array([look.long_um for look in looks])[kind] * size * stretch
    short_um = np.array([look.short_um for look in looks])[kind] * size / stretch
    # Half the cytoplasm counts as body: epithelium packs evenly, and nuclei hardly touch.
    rim_um = np.array([look.cytoplasm_um for look in looks])[kind]
    xy_um = _push_apart(xy_um, np.sqrt(long_um * short_um) / 2 + rim_um / 2, anatomy.side_um)
    # No cell floats in a lumen, a fat droplet or a gap.
    solid = cover * (1 - compartments.lumen) * (1 - compartments.cleft)
    keep = sample(solid, xy_um, grid_um) > 0.4
    angle = _angles(kind, xy_um, compartments, grid_um, rng)
    # What is seen in morphology alone moves no cell: it comes after the cells have found their places.
    uneven = _unevenness(config, kind, local, rng)
    body_um = np.stack([np.maximum(long_um, short_um), np.minimum(long_um, short_um)], 1)
    long_um, short_um = (body_um * uneven[:, None]).T
    return Cells(xy_um[keep], kind[keep], long_um[keep], short_um[keep], angle[keep], local[keep], body_um[keep])


def _crowding(infiltration: float, strength: float) -> float:
    """How many more immune cells exp(infiltration x inflammation) would make at a dial of `strength` than at 1.

    1 up to a strength of 1, where the field's variance is kept. Above, the mean of exp(slope z) for a standard normal z
    cut at `_SHOWN`: a stronger dial gathers immune cells in fewer places and makes no more of them.
    """

    def mean(slope: float) -> float:
        within = np.exp(slope**2 / 2) * (ndtr(_SHOWN - slope) - ndtr(-_SHOWN - slope))
        return float(within + ndtr(-_SHOWN) * 2 * np.cosh(slope * _SHOWN))

    return mean(infiltration * max(strength, 1.0)) / mean(infiltration)


def _sizes(
    config: Simulation,
    kind: NDArray[np.int64],
    local: NDArray[np.float64],
    centre: Field,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factors on the size and on the long against the short diameter, (n,) each."""
    anatomy = config.anatomy
    spread = np.array([anatomy.nuclei[name].spread for name in CELL_TYPES])[kind]
    size = np.exp(spread * np.clip(rng.standard_normal(len(kind)), -2.5, 2.5) - spread**2 / 2)
    stretch = np.exp(0.07 * rng.standard_normal(len(kind)))
    growth = np.exp(anatomy.growth * np.clip(visible(config, local.T, "proliferation"), -2.0, 2.0))
    size = size * np.where(kind == _TYPE["tumour"], growth, 1.0)
    # B cells of germinal centres are blasts.
    return size * np.where(kind == _TYPE["B cell"], 1 + 0.22 * centre, 1.0), stretch


def _unevenness(
    config: Simulation, kind: NDArray[np.int64], local: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Factors on the size of tumour nuclei where they are pleomorphic, (n,): larger on the whole, and less alike."""
    degree = np.clip(visible(config, local.T, "pleomorphism"), -2.0, 2.0).astype(np.float64)
    more = np.maximum(0.14 * degree, -0.10) + 0.05 * np.abs(degree)
    factor = np.exp(0.05 * degree + more * np.clip(rng.standard_normal(len(kind)), -2.0, 2.5))
    return np.where(kind == _TYPE["tumour"], factor, 1.0)


def _push_apart(xy: NDArray[np.float64], radius: NDArray[np.float64], side_um: float) -> NDArray[np.float64]:
    """Move overlapping nuclei away from each other, a few small steps each."""
    reach = 2 * float(np.quantile(radius, 0.98))
    for _ in range(6):
        pairs = cKDTree(xy).query_pairs(reach, output_type="ndarray")
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        a, b = pairs.T
        gap = xy[b] - xy[a]
        distance = np.maximum(np.hypot(gap[:, 0], gap[:, 1]), 1e-3)
        overlap = np.clip(0.97 * (radius[a] + radius[b]) - distance, 0, None)
        push = gap / distance[:, None] * (0.4 * overlap)[:, None]
        xy = xy.copy()
        np.add.at(xy, a, -push)
        np.add.at(xy, b, push)
    return np.clip(xy, 0.0, side_um - 1e-6)


def _angles(
    kind: NDArray[np.int64],
    xy_um: NDArray[np.float64],
    compartments: Compartments,
    step_um: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Fibroblasts lie along fibres, lining cells along walls, columnar ones across; the others at random."""
    angle = rng.uniform(0, np.pi, len(kind))
    jitter = rng.standard_normal(len(kind))
    for names, source, turn, spread in (
        (_ELONGATED_ALONG_FIBRES, compartments.fibre_angle, 0.0, 0.25),
        (_TANGENTIAL, compartments.wall_angle, np.pi / 2, 0.15),
        (("epithelial",), compartments.wall_angle, 0.0, 0.3),
    ):
        chosen = np.isin(kind, [_TYPE[name] for name in names])
        angle[chosen] = sample(source, xy_um[chosen], step_um) + turn + spread * jitter[chosen]
    return angle
