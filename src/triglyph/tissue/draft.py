"""What a reader or the simulator hands over: a section in memory, not yet written.

The table is an AnnData whose shape is fixed here and checked by `checks.check_draft` before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import anndata as ad

from triglyph.tissue.frames import Affine
from triglyph.units import Mpp, Um

LocationShape = Literal["circle", "square", "none"]
"""`none`: the section is unplaced."""


@dataclass(frozen=True)
class ImageSource:
    """An image on disk and how its level-0 pixels lie in the section's frame."""

    path: Path
    to_um: Affine
    mpp: Mpp
    mpp_source: str
    """Where the scale came from, in words: `array pitch 200 µm`, `TIFF resolution`, `--mpp`, `simulated`."""
    name: str = "he"
    role: Literal["full", "preview"] = "full"
    """A preview (Visium's `tissue_hires_image`) is for looking at; models refuse it unless told otherwise."""


@dataclass(frozen=True)
class PictureSource:
    """Picture files, one or a square of one per location; `pictures.COLUMNS` of `obs` say which."""

    folder: Path
    """What the paths in `obs["picture"]` are relative to."""
    mpp_source: str
    """Where the scale came from; why there is none where the pictures are declared unscaled."""
    name: str = "he"
    resize: Literal["area", "bicubic"] = "area"
    """How unscaled squares are resampled; `bicubic` is what published code does."""


@dataclass
class SectionDraft:
    """One piece of tissue.

    `table` holds one row per location: `X` raw integer counts (CSR); `var_names` gene symbols, unique;
    `var["ensembl_id"]` ("" where unknown); `var["measured"]` (False: the platform did not look, which is not zero);
    `obs_names` barcodes, unique; `obsm["spatial"]` centres in µm. Known columns of `obs`: `caption` (free text, ""
    where missing), `label` (a class, "" where unknown), `array_row`, `array_col`. Other columns are kept.

    What has no place on a piece of tissue (bulk and pseudobulk profiles, pairs of picture and caption) is an *unplaced*
    section: the draft says so with `location_um=None`, `pitch_um=None` and `location_shape="none"`; its centres are
    all NaN, or left out.
    """

    section_id: str
    patient: str
    platform: str
    table: ad.AnnData
    location_um: Um | None
    """Diameter of a spot, or side of a square bin or tile; None where locations have no place."""
    pitch_um: Um | None
    """Distance of neighbouring locations on the lattice; None where there is no lattice."""
    location_shape: LocationShape = "circle"
    images: list[ImageSource] = field(default_factory=list)
    pictures: PictureSource | None = None
    """Of unplaced sections alone; such a section need not have genes."""
    counted: bool = True
    """False: an image alone, of which nobody counted anything; it has no genes."""
    block: str = ""
    """Tissue block: sections of one block are near copies of each other."""
    species: str = "human"
    organ: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    """Provenance: vendor, software version, input files and their hashes. JSON-serialisable."""

    @property
    def placed(self) -> bool:
        """Whether locations have a place on a piece of tissue."""
        return self.location_shape != "none"
