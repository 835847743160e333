"""Legacy Spatial Transcriptomics, in the layout of her2st: one section a folder.

    counts/<id>.tsv.gz  spots/<id>_selection.tsv  images/<id>.jpg  labels/<id>_labeled_coordinates.tsv

A section is named by its patient's letter and its number, `A1`, so that readers can tell the patient as they do in
her2st. Arrays count from 1. `new_x`, `new_y` are array coordinates as they were found in the image: they hold the
smooth part of the registration error, and `pixel_x`, `pixel_y` all of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from triglyph.errors import RecipeError
from triglyph.storage import atomic_folder
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.picture.he import he_pixels
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.simulate.vendors.tenx import write_csv_gz

PITCH_UM = 200.0
UNKNOWN_LABEL = "undetermined"
_QUALITY = 95
_LETTERS = 26


def st_name(patient: int, section: int) -> str:
    """`A1` for the first section of the first patient, `AA1` for that of the 27th."""
    letters, rest = "", patient + 1
    while rest:
        rest, last = divmod(rest - 1, _LETTERS)
        letters = chr(ord("A") + last) + letters
    return f"{letters}{section + 1}"


def check_st(config: Simulation) -> None:
    """Refuse a world that this layout cannot hold.

    Raises
    ------
    RecipeError
        The lattice is no square one of 200 µm.
    """
    spots = config.spots
    if spots.lattice != "square" or spots.pitch_um != PITCH_UM:
        raise RecipeError(
            f"a {spots.lattice} lattice of {spots.pitch_um:g} µm is no array of Spatial Transcriptomics",
            where=f"simulation {config.name!r}, spots",
            mend=f"choose a square lattice of {PITCH_UM:g} µm",
        )


def write_st(specimen: Specimen, folder: Path) -> Path:
    """Write one section as a her2st folder; `write_vendor` has checked that it fits."""
    table = specimen.table
    name = st_name(*specimen.keys)
    pixels, dye = he_pixels(specimen)
    array = table.obs[["array_col", "array_row"]].to_numpy() + 1
    error = table.obsm["spatial"] - table.obsm["truth_spatial"]
    found = array + (error - error.mean(0)) / PITCH_UM
    at = np.round(table.obsm["spatial"] / dye.mpp, 2)
    keys = [f"{x}x{y}" for x, y in array]
    with atomic_folder(folder) as partial:
        for part in ("counts", "spots", "images", "labels"):
            (partial / part).mkdir()
        counts = pd.DataFrame(table.X.toarray(), index=keys, columns=table.var_names)
        write_csv_gz(partial / "counts" / f"{name}.tsv.gz", counts, sep="\t", index=True)
        selection = {
            "x": array[:, 0],
            "y": array[:, 1],
            "new_x": np.round(found[:, 0], 3),
            "new_y": np.round(found[:, 1], 3),
            "pixel_x": at[:, 0],
            "pixel_y": at[:, 1],
        }
        _write_tsv(partial / "spots" / f"{name}_selection.tsv", pd.DataFrame({**selection, "selected": 1}))
        labels = table.obs["label"].to_numpy(dtype=object)
        if (labels != "").any():
            marked = {
                "Row.names": [f"{x:.0f}x{y:.0f}" for x, y in at],
                "x": selection["new_x"],
                "y": selection["new_y"],
                "pixel_x": at[:, 0],
                "pixel_y": at[:, 1],
                "label": np.where(labels == "", UNKNOWN_LABEL, labels),
            }
            _write_tsv(partial / "labels" / f"{name}_labeled_coordinates.tsv", pd.DataFrame(marked))
        Image.fromarray(pixels).save(partial / "images" / f"{name}.jpg", quality=_QUALITY)
    return folder


def _write_tsv(path: Path, table: pd.DataFrame) -> None:
    path.write_text(table.to_csv(sep="\t", index=False, lineterminator="\n"), encoding="utf-8")
