"""People and sections: what is a patient's, what is a section's, and the draft that comes of them.

A patient has shares of domains, a stain, a scale and a chemistry. Its sections are cut from one block: they share
those and most of their anatomy, and count as near copies.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.tissue.draft import ImageSource, SectionDraft
from triglyph.tissue.frames import Affine
from triglyph.tissue.pyramid import write_pyramid
from triglyph.tissue.simulate.anatomy import Tissue, build_tissue
from triglyph.tissue.simulate.language import write_captions
from triglyph.tissue.simulate.molecules import count_molecules, patient_chemistry, programmes
from triglyph.tissue.simulate.presets import CELL_TYPES, DOMAINS, STATES, Simulation, Spots
from triglyph.tissue.simulate.stain import paint, patient_dye
from triglyph.tissue.simulate.streams import stream
from triglyph.units import Mpp, Um

SIMULATOR = "triglyph.tissue.simulate"
VERSION = 1
"""Raised whenever the same record gives other bytes."""


def patient_id(patient_index: int) -> str:
    """`P01` for the first."""
    return f"P{patient_index + 1:02d}"


def section_id(patient_index: int, section_index: int) -> str:
    """`P01-S1` for the first section of the first patient."""
    return f"{patient_id(patient_index)}-S{section_index + 1}"


def patient_shares(config: Simulation, patient: int) -> NDArray[np.float64]:
    """(len(DOMAINS),) share of tissue that each domain takes in a patient."""
    anatomy = config.anatomy
    mean = np.array([anatomy.fractions[name] for name in DOMAINS])
    shares = stream(config.seed, "shares", patient).dirichlet(anatomy.fraction_concentration * mean / mean.sum())
    shares = np.maximum(shares, 0.02)
    return shares / shares.sum()


def simulate_section(config: Simulation, patient_index: int, section_index: int, image_path: Path) -> SectionDraft:
    """One section: its H&E is written to `image_path`, everything else is in the draft.

    Parameters
    ----------
    config
        The simulated world.
    patient_index, section_index
        From 0. The same four arguments give the same bytes, in any order and any process.
    image_path
        Where the pyramidal TIFF goes.

    Raises
    ------
    StorageError
        The image cannot be written.
    """
    keys = (patient_index, section_index)
    tissue = build_tissue(config, patient_index, section_index, patient_shares(config, patient_index))
    dye = patient_dye(config, patient_index)
    pixels = paint(config, tissue, dye, stream(config.seed, "paint", *keys))
    write_pyramid(pixels, image_path, mpp=dye.mpp, quality=config.stain.quality, tile=config.stain.tile)
    image = ImageSource(
        path=image_path, to_um=Affine.scale(dye.mpp), mpp=Mpp(dye.mpp), mpp_source="simulated", name="he"
    )
    return SectionDraft(
        section_id=section_id(patient_index, section_index),
        patient=patient_id(patient_index),
        platform="simulated",
        table=_table(config, tissue, patient_index, section_index),
        location_um=Um(config.spots.diameter_um),
        pitch_um=Um(config.spots.pitch_um),
        images=[image],
        block=f"{patient_id(patient_index)}-B1",
        organ=config.organ,
        source={
            "simulator": SIMULATOR,
            "version": VERSION,
            "preset": config.name,
            "config": config.digest(),
            "seed": config.seed,
            "truth_composition": list(CELL_TYPES),
            "truth_domains": list(DOMAINS),
            "truth_states": list(STATES),
        },
    )


def _table(config: Simulation, tissue: Tissue, patient: int, section: int) -> ad.AnnData:
    centres, rows, columns = _lattice(config.spots, config.anatomy.side_um)
    discs = _Discs(tissue, config.spots.diameter_um)
    keep = discs.mean(tissue.cover, centres) >= config.spots.min_tissue
    centres, rows, columns = centres[keep], rows[keep], columns[keep]

    shares = np.stack([discs.mean(domain, centres) for domain in tissue.domains], 1)
    shares /= shares.sum(1, keepdims=True)
    states = np.stack([discs.mean(state, centres) for state in tissue.states], 1)
    radius_um = config.spots.diameter_um / 2
    membership = _membership(tissue, centres, radius_um, 0.0)
    kinds = sp.csr_matrix(np.eye(len(CELL_TYPES))[tissue.cells.kind])
    by_type = (membership @ kinds).toarray()
    number = by_type.sum(1)
    composition = by_type / np.maximum(number, 1)[:, None]

    world = programmes(config)
    counts = count_molecules(
        config,
        world,
        patient_chemistry(config, patient),
        tissue.cells,
        _membership(tissue, centres, radius_um, config.molecules.bleed_um),
        discs.mean(tissue.compartments.debris, centres),
        stream(config.seed, "counts", patient, section),
    )
    area_mm2 = np.pi * (config.spots.diameter_um / 2) ** 2 * 1e-6
    words = stream(config.seed, "words", patient, section)
    obs = pd.DataFrame(
        {
            "caption": write_captions(config.language, shares, composition, number / area_mm2, words),
            "label": np.array(DOMAINS, dtype=object)[shares.argmax(1)],
            "array_row": rows,
            "array_col": columns,
            "truth_cells": number.astype(np.int64),
        },
        index=pd.Index([f"{r:03d}x{c:03d}" for r, c in zip(rows, columns, strict=True)], dtype=object),
    )
    var = pd.DataFrame(
        {"ensembl_id": np.full(len(world.symbols), "", dtype=object), "measured": True},
        index=pd.Index(world.symbols, dtype=object),
    )
    obsm = {
        "spatial": centres,
        "truth_composition": composition,
        "truth_domains": shares.astype(np.float64),
        "truth_states": states.astype(np.float64),
    }
    return ad.AnnData(X=counts, obs=obs, var=var, obsm=obsm)


def _lattice(spots: Spots, side_um: float) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Centres of a hexagonal lattice and their rows and columns, counted as Visium does: odd rows have odd columns."""
    first = spots.margin_um + spots.diameter_um / 2
    down, across = spots.pitch_um * np.sqrt(3) / 2, spots.pitch_um / 2
    rows, columns = np.mgrid[0 : int((side_um - 2 * first) / down) + 1, 0 : int((side_um - 2 * first) / across) + 1]
    on = (rows + columns) % 2 == 0
    row, column = rows[on], columns[on]
    return first + np.stack([column * across, row * down], 1), row, column


class _Discs:
    """Means of maps over the discs of spots."""

    def __init__(self, tissue: Tissue, diameter_um: float) -> None:
        self._step, radius = tissue.step_um, diameter_um / 2
        reach = int(radius / self._step)
        dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        self._offsets = np.stack([dx, dy], -1)[np.hypot(dx, dy) * self._step <= radius]

    def mean(self, field: NDArray[np.float32], centres: NDArray[np.float64]) -> NDArray[np.float64]:
        index = (centres / self._step).astype(np.int64)[:, None, :] + self._offsets
        index = np.clip(index, 0, len(field) - 1)
        return field[index[..., 1], index[..., 0]].astype(np.float64).mean(1)


def _membership(tissue: Tissue, centres: NDArray[np.float64], radius_um: float, bleed_um: float) -> sp.csr_matrix:
    """(locations, cells): 1 for a cell in the spot, falling to 0 across its border over about `bleed_um`."""
    xy = tissue.cells.xy_um
    found = cKDTree(xy).query_ball_point(centres, radius_um + 3 * bleed_um, return_sorted=True)
    lengths = np.array([len(cells) for cells in found])
    indices = np.array([cell for cells in found for cell in cells], dtype=np.int64)
    weight = np.ones(len(indices))
    if bleed_um:
        delta = xy[indices] - np.repeat(centres, lengths, axis=0)
        weight = 1 / (1 + np.exp((np.hypot(delta[:, 0], delta[:, 1]) - radius_um) / bleed_um))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return sp.csr_matrix((weight, indices, indptr), shape=(len(centres), len(xy)))
