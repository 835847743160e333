"""Simulated sections in the folder layouts of the platforms' vendors, so that readers are tested by them."""

from __future__ import annotations

from pathlib import Path

from triglyph.tissue.simulate.specimen import Specimen


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
        The lattice is not the platform's.
    StorageError
        The folder exists, or the disk is full or read-only.
    """
    from triglyph.tissue.simulate.vendors.st import write_st
    from triglyph.tissue.simulate.vendors.visium import write_visium
    from triglyph.tissue.simulate.vendors.visium_hd import write_visium_hd
    from triglyph.tissue.simulate.vendors.xenium import write_xenium

    writers = {"st": write_st, "visium": write_visium, "visium_hd": write_visium_hd, "xenium": write_xenium}
    return writers[specimen.config.spots.platform](specimen, folder)
