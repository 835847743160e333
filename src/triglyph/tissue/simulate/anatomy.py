"""Anatomy: domains with smooth boundaries, compartments inside them (nests, ducts, glands, fat, vessels), and cells.

Everything is a map on one grid (`grid_um`), from which cells are drawn as an inhomogeneous point process and which the
stain paints. Sections of one block share most of their maps and none of their cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.tissue.simulate.compartments import Compartments, carve
from triglyph.tissue.simulate.fields import Field, sample, smooth_noise, step
from triglyph.tissue.simulate.presets import CELL_TYPES, DOMAINS, STATES, Anatomy, Simulation
from triglyph.tissue.simulate.streams import stream

_TYPE = {name: i for i, name in enumerate(CELL_TYPES)}
# Along the outline of what they line: tangential; across it (columnar): radial.
_TANGENTIAL = ("endothelial", "adipocyte")
_ELONGATED_ALONG_FIBRES = ("fibroblast",)


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

    def __len__(self) -> int:
        return len(self.kind)


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
    """(len(STATES), side, side)"""
    cells: Cells


class _Fields:
    """Fields of one section: a share common to the block, and the section's own change."""

    def __init__(self, config: Simulation, patient: int, section: int) -> None:
        anatomy = config.anatomy
        self._block = stream(config.seed, "block fields", patient)
        self._own = stream(config.seed, "section fields", patient, section)
        self._change = anatomy.section_change
        self._step = anatomy.grid_um
        self.side = round(anatomy.side_um / anatomy.grid_um)

    def __call__(self, length_um: float) -> Field:
        shared = smooth_noise(self._block, self.side, self._step, length_um)
        own = smooth_noise(self._own, self.side, self._step, length_um)
        return np.float32(np.sqrt(1 - self._change**2)) * shared + np.float32(self._change) * own


def build_tissue(config: Simulation, patient: int, section: int, shares: NDArray[np.float64]) -> Tissue:
    """The maps and cells of one section.

    Parameters
    ----------
    shares
        (len(DOMAINS),) share of the tissue that each domain takes in this patient.
    """
    anatomy, fields = config.anatomy, _Fields(config, patient, section)
    cover = _cover(anatomy, fields)
    domains = _domains(anatomy, fields, shares, cover)
    states = np.stack([fields(anatomy.state_um) for _ in STATES])
    # Ducts, glands and vessels run through a block: adjacent sections cut the same ones.
    rng = stream(config.seed, "compartments", patient)
    compartments = carve(anatomy, fields, domains, states[STATES.index("fibrosis")], rng)
    gradients = _Gradients(cellularity=fields(anatomy.state_um), immune=states[STATES.index("inflammation")])
    rng = stream(config.seed, "cells", patient, section)
    cells = _cells(anatomy, cover, domains, compartments, states, gradients, rng)
    return Tissue(anatomy.grid_um, cover, domains, compartments, states, cells)


@dataclass(frozen=True)
class _Gradients:
    cellularity: Field
    immune: Field


def _cover(anatomy: Anatomy, fields: _Fields) -> Field:
    """An irregular piece that covers `tissue_fraction` of the frame."""
    side = fields.side
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    # A superellipse, bent by noise; its level is chosen so that the covered share is exact.
    distance = (np.abs(axis[:, None]) ** 5 + np.abs(axis[None, :]) ** 5) ** 0.2
    outline = distance + 0.05 * fields(500.0) + 0.015 * fields(80.0) + 0.004 * fields(15.0)
    level = np.quantile(outline, anatomy.tissue_fraction)
    width = 6.0 / (anatomy.side_um / 2)
    return np.clip((level - outline) / width + 0.5, 0, 1).astype(np.float32)


def _domains(anatomy: Anatomy, fields: _Fields, shares: NDArray[np.float64], cover: Field) -> NDArray[np.float32]:
    """Soft domains: the largest of smooth fields wins; offsets are fitted so that each takes its share."""
    coarse, fine = anatomy.wobble_um
    score = np.stack(
        [fields(anatomy.domain_um) + 0.32 * fields(coarse) + 0.1 * fields(fine) for _ in DOMAINS]
    )  # (domains, side, side)
    under = cover > 0.5
    offsets = np.log(shares)
    inside = score[:, under][:, ::17]
    for _ in range(40):
        won = np.bincount((inside + offsets[:, None]).argmax(0), minlength=len(DOMAINS)) / inside.shape[1]
        offsets += 0.25 * (np.log(shares) - np.log(np.maximum(won, 1e-3)))
    score += offsets[:, None, None].astype(np.float32)
    # Scores differ by about 1 over `domain_um / 2`, hence the slope that makes the passage `boundary_um` wide.
    score *= np.float32(2 * anatomy.domain_um / anatomy.boundary_um / 2)
    score -= score.max(0)
    weights = np.exp(score)
    return weights / weights.sum(0)


def _cells(
    anatomy: Anatomy,
    cover: Field,
    domains: NDArray[np.float32],
    compartments: Compartments,
    states: NDArray[np.float32],
    gradients: _Gradients,
    rng: np.random.Generator,
) -> Cells:
    """Cells of every type as a Poisson process with a local rate, pushed apart until nuclei hardly overlap."""
    grid_um = anatomy.grid_um
    # Lymphoid tissue and glands are packed; their density varies half as much.
    packed = domains[DOMAINS.index("immune infiltrate")] + domains[DOMAINS.index("breast glands")]
    spread = anatomy.cellularity * (1 - 0.5 * packed)
    general = np.exp(spread * gradients.cellularity - spread**2 / 2)
    immune = np.exp(anatomy.infiltration * gradients.immune - anatomy.infiltration**2 / 2)
    points, kinds = [], []
    for number_of_type, name in enumerate(CELL_TYPES):
        rate = np.zeros_like(cover)
        for weight, domain in zip(domains, DOMAINS, strict=True):
            density = anatomy.cells_per_mm2[domain].get(name, 0.0)
            if density:
                place = compartments.place(name, domain)
                if domain == "immune infiltrate" and name in ("T cell", "B cell"):
                    # B cells fill the crowded follicles, T cells the looser ground between them.
                    follicle = step(gradients.cellularity, 0.0, 1.6)
                    place = place * (0.15 + follicle if name == "B cell" else 1.15 - follicle)
                total = float((weight * cover).sum())
                # The density is the domain's mean, so the place a cell prefers is rescaled to mean 1 over the domain.
                mean = float((weight * cover * place).sum()) / total if total else 0.0
                if mean > 1e-6:
                    rate += np.float32(density * 1e-6 * grid_um**2) * weight * place / np.float32(max(mean, 0.05))
        rate *= cover * general
        if name in ("T cell", "B cell", "macrophage"):
            rate *= np.where(domains[DOMAINS.index("immune infiltrate")] > 0.6, 1.0, immune)
        number = rng.poisson(rate)
        rows, columns = np.nonzero(number)
        repeat = number[rows, columns]
        xy = np.repeat(np.stack([columns, rows], 1), repeat, axis=0) + rng.random((repeat.sum(), 2))
        points.append(xy * grid_um)
        kinds.append(np.full(len(xy), number_of_type))
    xy_um, kind = np.concatenate(points), np.concatenate(kinds)
    local = np.stack([sample(state, xy_um, grid_um) for state in states], 1).astype(np.float64)
    long_um, short_um = _sizes(anatomy, kind, local, rng)
    # Half the cytoplasm counts as body: epithelium packs evenly, and nuclei hardly touch.
    rim_um = np.array([anatomy.nuclei[name].cytoplasm_um for name in CELL_TYPES])[kind]
    xy_um = _push_apart(xy_um, np.sqrt(long_um * short_um) / 2 + rim_um / 2, anatomy.side_um)
    keep = sample(cover, xy_um, grid_um) > 0.5
    angle = _angles(kind, xy_um, compartments, grid_um, rng)
    return Cells(xy_um[keep], kind[keep], long_um[keep], short_um[keep], angle[keep], local[keep])


def _sizes(
    anatomy: Anatomy, kind: NDArray[np.int64], local: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nuclei = [anatomy.nuclei[name] for name in CELL_TYPES]
    spread = np.array([n.spread for n in nuclei])[kind]
    size = np.exp(spread * np.clip(rng.standard_normal(len(kind)), -2.5, 2.5) - spread**2 / 2)
    stretch = np.exp(0.07 * rng.standard_normal(len(kind)))
    proliferation = np.clip(local[:, STATES.index("proliferation")], -2.0, 2.0)
    size = size * np.where(kind == _TYPE["tumour"], np.exp(anatomy.growth * proliferation), 1.0)
    long_um = np.array([n.long_um for n in nuclei])[kind] * size * stretch
    short_um = np.array([n.short_um for n in nuclei])[kind] * size / stretch
    return np.maximum(long_um, short_um), np.minimum(long_um, short_um)


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
