"""Visium HD, as `outs` of Space Ranger 3 and later.

    binned_outputs/square_{002,008,016}um/{filtered,raw}_feature_bc_matrix.h5
    binned_outputs/square_*/spatial/{tissue_positions.parquet,scalefactors_json.json,tissue_hires_image.png,...}
    feature_slice.h5   spatial/   tissue_image.tif

Squares of 2 µm tile the capture area, which begins at `Spots.margin_um`; larger ones are whole sums of them, those at
the far edge of what is left. A bin is in tissue by the rule of the specimen's own locations, so that its locations are
bins of this folder where their side is 2, 8 or 16 µm.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.errors import RecipeError
from triglyph.storage import atomic_folder, write_json
from triglyph.tissue.pyramid import write_pyramid
from triglyph.tissue.simulate.cohort import section_id
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.locations import Footprint
from triglyph.tissue.simulate.molecules.bins import binned
from triglyph.tissue.simulate.molecules.transcripts import Molecules, draw_transcripts
from triglyph.tissue.simulate.picture.he import he_pixels
from triglyph.tissue.simulate.picture.stain import Dye
from triglyph.tissue.simulate.registration import registration_error
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.simulate.vendors.tenx import gene_features, write_matrix_h5, write_previews

SQUARE_UM = 2
BINS_UM = (2, 8, 16)
_SOFTWARE = "spaceranger-3.1.0"


class Bins(NamedTuple):
    """A lattice of square bins; rows of all arrays are in reading order."""

    side_um: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    centres_um: NDArray[np.float64]
    counts: sp.csr_matrix
    """(bins, genes)"""
    in_tissue: NDArray[np.bool_]

    @property
    def barcodes(self) -> NDArray[np.str_]:
        """(bins,)"""
        places = zip(self.rows.tolist(), self.columns.tolist(), strict=True)
        return np.array([f"s_{self.side_um:03d}um_{row:05d}_{column:05d}-1" for row, column in places])


def bin_everything(specimen: Specimen, molecules: Molecules) -> dict[int, Bins]:
    """The capture area at every bin size; each molecule that lies in it is counted once at each."""
    config = specimen.config
    across = int((config.anatomy.side_um - 2 * config.spots.margin_um) / SQUARE_UM)
    cover, found = specimen.tissue.cover, {}
    finest = _lattice(across, SQUARE_UM, config.spots.margin_um)
    counts = binned(molecules, finest[2], SQUARE_UM)
    for side in BINS_UM:
        step = side // SQUARE_UM
        rows, columns, centres = _lattice(-(-across // step), side, config.spots.margin_um)
        owner = finest[0] // step * (columns.max() + 1) + finest[1] // step
        number = np.arange(len(owner))
        sums = sp.csr_matrix((np.ones(len(owner), dtype=np.int32), (owner, number)), shape=(len(rows), len(owner)))
        footprint = Footprint(config.spots.model_copy(update={"diameter_um": float(side)}), specimen.tissue.step_um)
        in_tissue = footprint.mean(cover, centres) >= config.spots.min_tissue
        found[side] = Bins(side, rows, columns, centres, sp.csr_matrix(sums @ counts), in_tissue)
    return found


def check_visium_hd(config: Simulation) -> None:
    """Refuse a world that this layout cannot hold.

    Raises
    ------
    RecipeError
        The capture area is smaller than one bin.
    """
    if config.anatomy.side_um - 2 * config.spots.margin_um < max(BINS_UM):
        raise RecipeError(
            f"{config.anatomy.side_um:g} µm between margins of {config.spots.margin_um:g} µm have no room for a bin of "
            f"{max(BINS_UM)} µm",
            where=f"simulation {config.name!r}, anatomy.side_um and spots.margin_um",
            mend="choose a larger anatomy.side_um or a smaller spots.margin_um",
        )


def write_visium_hd(specimen: Specimen, folder: Path) -> Path:
    """Write one section as Space Ranger's `outs` of Visium HD; `write_vendor` has checked that it fits."""
    config, name = specimen.config, section_id(*specimen.keys)
    molecules = draw_transcripts(specimen)
    found = bin_everything(specimen, molecules.take(molecules.seen))
    pixels, dye = he_pixels(specimen)
    with atomic_folder(folder) as partial:
        (partial / "spatial").mkdir()
        factors = write_previews(pixels, partial / "spatial")
        for side, bins in found.items():
            target = partial / "binned_outputs" / f"square_{side:03d}um"
            (target / "spatial").mkdir(parents=True)
            _write_bins(specimen, bins, dye, name, target)
            for preview in (partial / "spatial").iterdir():
                shutil.copyfile(preview, target / "spatial" / preview.name)
            scale = {
                "spot_diameter_fullres": side / dye.mpp,
                "bin_size_um": float(side),
                "microns_per_pixel": dye.mpp,
            }
            write_json(target / "spatial" / "scalefactors_json.json", factors | scale)
        _write_slices(partial / "feature_slice.h5", specimen, found[SQUARE_UM], dye, name)
        image = partial / "tissue_image.tif"
        write_pyramid(pixels, image, mpp=dye.mpp, quality=config.stain.quality, tile=config.stain.tile)
    return folder


def _lattice(
    across: int, side: int, origin_um: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    rows, columns = (axis.ravel() for axis in np.mgrid[0:across, 0:across])
    return rows, columns, origin_um + (np.stack([columns, rows], 1) + 0.5) * side


def _write_bins(specimen: Specimen, bins: Bins, dye: Dye, name: str, target: Path) -> None:
    stated = bins.centres_um + registration_error(specimen.config, *specimen.keys, bins.centres_um)
    barcodes, features = bins.barcodes, gene_features(specimen.world.symbols)
    for kind, chosen in (("filtered", np.flatnonzero(bins.in_tissue)), ("raw", np.arange(len(barcodes)))):
        path = target / f"{kind}_feature_bc_matrix.h5"
        held = barcodes[chosen].tolist()
        write_matrix_h5(path, bins.counts[chosen], held, features, library=name, software=_SOFTWARE)
    positions = {
        "barcode": barcodes,
        "in_tissue": bins.in_tissue.astype(np.int64),
        "array_row": bins.rows,
        "array_col": bins.columns,
        "pxl_row_in_fullres": stated[:, 1] / dye.mpp,
        "pxl_col_in_fullres": stated[:, 0] / dye.mpp,
    }
    pd.DataFrame(positions).to_parquet(target / "spatial" / "tissue_positions.parquet", index=False)


def _write_slices(path: Path, specimen: Specimen, bins: Bins, dye: Dye, name: str) -> None:
    """`feature_slice.h5`: squares of 2 µm gene by gene, and how the lattice lies in the image."""
    import h5py

    shift = registration_error(specimen.config, *specimen.keys, bins.centres_um).mean(0)
    # Indices are of centres, pixels of corners: square 0 lies half a square from the capture area's edge.
    start = (specimen.config.spots.margin_um + SQUARE_UM / 2 + shift) / dye.mpp
    step, across = SQUARE_UM / dye.mpp, int(bins.rows.max()) + 1
    to_image = np.array([[step, 0.0, start[0]], [0.0, step, start[1]], [0.0, 0.0, 1.0]])
    to_square = np.array([[1 / step, 0.0, -start[0] / step], [0.0, 1 / step, -start[1] / step], [0.0, 0.0, 1.0]])
    layout = {"file_format": "1.0", "name": "simulated", "transform": np.eye(3).tolist()}
    metadata: dict[str, Any] = {
        "sample_id": name,
        "sample_desc": "simulated",
        "nrows": across,
        "ncols": across,
        "slide_name": "simulated",
        "spot_pitch": float(SQUARE_UM),
        "hd_layout_json": json.dumps(layout),
        "transform_matrices": {
            "spot_colrow_to_microscope_colrow": to_image.tolist(),
            "microscope_colrow_to_spot_colrow": to_square.tolist(),
            # There is no CytAssist image.
            "spot_colrow_to_cytassist_colrow": None,
            "cytassist_colrow_to_spot_colrow": None,
        },
    }
    by_gene, features = bins.counts.tocsc(), gene_features(specimen.world.symbols)
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs["metadata_json"] = json.dumps(metadata)
        for column in features:
            file[f"features/{column}"] = features[column].to_numpy().astype("S")
        for gene in np.flatnonzero(np.diff(by_gene.indptr)):
            part = slice(by_gene.indptr[gene], by_gene.indptr[gene + 1])
            squares = by_gene.indices[part]
            file[f"feature_slices/{gene}/row"] = bins.rows[squares].astype(np.uint16)
            file[f"feature_slices/{gene}/col"] = bins.columns[squares].astype(np.uint16)
            file[f"feature_slices/{gene}/data"] = by_gene.data[part].astype(np.uint32)
