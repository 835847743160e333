"""Simulated sections in the folder layouts of the platforms' vendors, so that readers are tested by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from triglyph.storage import atomic_file
from triglyph.tissue.simulate.cohort import section_id
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.molecules.bins import effective_dispersion
from triglyph.tissue.simulate.picture.protein import write_protein
from triglyph.tissue.simulate.picture.stain import patient_dye
from triglyph.tissue.simulate.specimen import Specimen


def check_layout(config: Simulation) -> None:
    """Refuse a world that its platform's layout cannot hold, before anything of it is made.

    Raises
    ------
    RecipeError
        The lattice is not the platform's, or larger or smaller than the platform has it.
    """
    from triglyph.tissue.simulate.vendors.st import check_st
    from triglyph.tissue.simulate.vendors.visium import check_visium
    from triglyph.tissue.simulate.vendors.visium_hd import check_visium_hd

    # A folder of Xenium holds molecules, whatever lattice they are binned on later.
    checks = {"st": check_st, "visium": check_visium, "visium-hd": check_visium_hd}
    if config.spots.platform in checks:
        checks[config.spots.platform](config)


def write_vendor(specimen: Specimen, folder: Path) -> Path:
    """Write one section as its platform's own software would, whole or not at all.

    Parameters
    ----------
    specimen
        Its `config.spots.platform` names the layout.
    folder
        Must not exist.

    Raises
    ------
    RecipeError
        The platform's layout cannot hold the world (`check_layout`).
    StorageError
        The folder exists, or the disk is full or read-only.
    """
    from triglyph.tissue.simulate.vendors.st import write_st
    from triglyph.tissue.simulate.vendors.visium import write_visium
    from triglyph.tissue.simulate.vendors.visium_hd import write_visium_hd
    from triglyph.tissue.simulate.vendors.xenium import write_xenium

    check_layout(specimen.config)
    writers = {"st": write_st, "visium": write_visium, "visium-hd": write_visium_hd, "xenium": write_xenium}
    return writers[specimen.config.spots.platform](specimen, folder)


def vendor_name(config: Simulation, patient: int, section: int) -> str:
    """What the files in a vendor's folder call a section; her2st has names of its own."""
    from triglyph.tissue.simulate.vendors.st import st_name

    return st_name(patient, section) if config.spots.platform == "st" else section_id(patient, section)


def write_truth(specimen: Specimen, path: Path, *, protein: Path) -> Path:
    """Write what a vendor's folder must not tell: the table with its truth, and the protein image.

    Parameters
    ----------
    specimen
        The section.
    path
        Where its table goes, `.h5ad`. `uns` names the columns of the `truth_` arrays of `obsm`; `uns["truth_mpp"]` is
        the true scale of the H&E in µm per pixel.
    protein
        Folder for `<section>.ome.tif`, where the world has protein channels.

    Raises
    ------
    StorageError
        The disk is full or read-only.
    """
    config, table = specimen.config, specimen.table.copy()
    names = specimen.truth_columns
    if config.protein.channels:
        seen = write_protein(specimen, protein / f"{section_id(*specimen.keys)}.ome.tif")
        table.obsm["truth_protein"] = seen.truth
        names["truth_protein"] = list(seen.channels)
    for key, columns in names.items():
        table.uns[key] = np.array(columns, dtype=object)
    table.uns["truth_mpp"] = patient_dye(config, specimen.patient).mpp
    table.uns["truth_dispersion"] = effective_dispersion(specimen)
    with atomic_file(path) as partial:
        table.write_h5ad(partial, convert_strings_to_categoricals=False)
    return path
