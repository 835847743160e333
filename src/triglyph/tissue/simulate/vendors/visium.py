"""Visium, as `outs` of Space Ranger 2 and later, beside which lies the full-resolution image.

    filtered_feature_bc_matrix.h5   raw_feature_bc_matrix.h5   tissue_image.tif
    spatial/tissue_positions.csv  scalefactors_json.json  tissue_hires_image.png  tissue_lowres_image.png

The raw matrix has the spots off tissue too, which catch a little of what floats about. The stated spot diameter spans
65 µm, as it does in real outputs, so that it is no ruler for spots of 55 µm.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.errors import RecipeError
from triglyph.storage import atomic_folder, write_json
from triglyph.tissue.pyramid import write_pyramid
from triglyph.tissue.simulate.cohort import section_id
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.locations import lattice
from triglyph.tissue.simulate.picture.he import he_pixels
from triglyph.tissue.simulate.registration import registration_error
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.simulate.streams import stream
from triglyph.tissue.simulate.vendors.tenx import gene_features, mixed, write_matrix_h5, write_previews

PITCH_UM = 100.0
ROWS, COLUMNS = 78, 128
"""Of the array; a row has every second column."""
SPOT_SPAN_UM, FIDUCIAL_UM = 65.0, 105.0
"""What `spot_diameter_fullres` and `fiducial_diameter_fullres` span."""
_OFF_TISSUE = 0.02
"""Counts of a spot off tissue, relative to the section's median."""
_BASES = np.array(list("ACGT"))


def check_visium(config: Simulation) -> None:
    """Refuse a world that this layout cannot hold.

    Raises
    ------
    RecipeError
        The lattice is no hexagonal one of 100 µm, or has more than 78 rows or 128 columns.
    """
    spots = config.spots
    _, rows, columns = lattice(spots, config.anatomy.side_um)
    fits = spots.lattice == "hexagonal" and spots.pitch_um == PITCH_UM
    if not fits or rows.max() >= ROWS or columns.max() >= COLUMNS:
        raise RecipeError(
            f"a {spots.lattice} lattice of {spots.pitch_um:g} µm, {rows.max() + 1} x {columns.max() + 1}, is no Visium "
            "array",
            where=f"simulation {config.name!r}, spots and anatomy.side_um",
            mend=f"choose a hexagonal lattice of {PITCH_UM:g} µm, at most {ROWS} rows and {COLUMNS} columns",
        )


def write_visium(specimen: Specimen, folder: Path) -> Path:
    """Write one section as Space Ranger's `outs`; `write_vendor` has checked that it fits."""
    config, name = specimen.config, section_id(*specimen.keys)
    centres, rows, columns = lattice(config.spots, config.anatomy.side_um)
    table = specimen.table
    barcodes = spot_barcodes(rows, columns)
    number = {place: i for i, place in enumerate(zip(rows.tolist(), columns.tolist(), strict=True))}
    places = zip(table.obs["array_row"].tolist(), table.obs["array_col"].tolist(), strict=True)
    under = np.array([number[place] for place in places])
    stated = centres + registration_error(config, *specimen.keys, centres)
    pixels, dye = he_pixels(specimen)
    raw = _with_empty_spots(specimen, table.X, under, len(centres))
    positions = pd.DataFrame(
        {
            "barcode": barcodes,
            "in_tissue": np.isin(np.arange(len(centres)), under).astype(np.int64),
            "array_row": rows,
            "array_col": columns,
            "pxl_row_in_fullres": np.round(stated[:, 1] / dye.mpp).astype(np.int64),
            "pxl_col_in_fullres": np.round(stated[:, 0] / dye.mpp).astype(np.int64),
        }
    )
    with atomic_folder(folder) as partial:
        (partial / "spatial").mkdir()
        for kind, chosen in (("filtered", under), ("raw", np.arange(len(centres)))):
            order = chosen[np.argsort(barcodes[chosen])]
            write_matrix_h5(
                partial / f"{kind}_feature_bc_matrix.h5",
                raw[order],
                barcodes[order].tolist(),
                gene_features(table.var_names),
                library=name,
                software="spaceranger-2.1.0",
            )
        text = positions.to_csv(index=False, lineterminator="\n")
        (partial / "spatial" / "tissue_positions.csv").write_text(text, encoding="utf-8")
        factors = write_previews(pixels, partial / "spatial")
        factors |= {
            "spot_diameter_fullres": SPOT_SPAN_UM / dye.mpp,
            "fiducial_diameter_fullres": FIDUCIAL_UM / dye.mpp,
        }
        write_json(partial / "spatial" / "scalefactors_json.json", factors)
        image = partial / "tissue_image.tif"
        write_pyramid(pixels, image, mpp=dye.mpp, quality=config.stain.quality, tile=config.stain.tile)
    return folder


def spot_barcodes(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.str_]:
    """(n,) the barcode printed at each place of the array, 16 bases and `-1`; the same on every slide."""
    code = mixed(rows * COLUMNS + columns)
    bases = _BASES[(code[:, None] >> np.arange(0, 32, 2, dtype=np.uint32)) & 3]
    return np.array(["".join(row) + "-1" for row in bases])


def _with_empty_spots(
    specimen: Specimen, counts: sp.csr_matrix, under: NDArray[np.int64], number: int
) -> sp.csr_matrix:
    """(number, genes) counts of all places; those off tissue catch some of the section's mean profile."""
    mean = specimen.expected.mean(0)
    rng = stream(specimen.config.seed, "off tissue", *specimen.keys)
    off = np.setdiff1d(np.arange(number), under)
    caught = sp.csr_matrix(rng.poisson(_OFF_TISSUE * mean, (len(off), len(mean))).astype(np.int32))
    order = np.argsort(np.concatenate([under, off]))
    return sp.vstack([counts, caught], format="csr")[order]
