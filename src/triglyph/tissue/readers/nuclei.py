"""What the readers of labelled nuclei share: an image, a map of cells and a map of classes become counted squares.

A cell is a number in the map of cells, its class that of its first pixel (row by row), its place its centroid. A
location is a square of a grid that holds a cell, and counts the cells of each class (`triglyph.tissue.cells`).
SpatialWhisperer's evaluation defines the labels so; it also leaves out the last row and column of squares that hold a
cell, since those may reach beyond the image.

Files come from others: sizes are compared before anything is read, and links out of a file are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.errors import ContractError, RecipeError, SourceError
from triglyph.tissue.cells import CELLS, CLASSES
from triglyph.tissue.decode import LARGEST_BYTES
from triglyph.tissue.draft import ImageSource, SectionDraft
from triglyph.tissue.frames import Affine
from triglyph.tissue.pyramid import write_pyramid
from triglyph.tissue.readers.base import Notes, ReadOptions, SectionSource, by_pattern, origin, provenance
from triglyph.tissue.readers.scales import Scale
from triglyph.units import Mpp, Um, checked_mpp

GRID_PX = 224
RELEASE = Scale(
    Mpp(0.5), "declared 0.5 µm/px, as the release of SpatialWhisperer does: native pixels, whatever they are"
)
Drop = Literal["always", "where there are two", "never"]
"""When the last row and column of squares are left out; the release keeps both where either is the only one."""


@dataclass(frozen=True)
class Nuclei:
    """An image with its labels."""

    image: NDArray[np.uint8]
    """(height, width, 3)"""
    cells: NDArray[np.int64]
    """(height, width), 0 where there is none."""
    kinds: NDArray[np.int64]
    """(height, width), 0 for the background."""

    @classmethod
    def checked(cls, image: Any, cells: Any, kinds: Any, *, classes: Sequence[str], where: object) -> Nuclei:
        """From arrays of a file.

        Raises
        ------
        SourceError
            Their shapes or types do not go together, or a class has no name.
        """
        mend = "give the files as they are published"
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise SourceError(f"the image is {image.dtype} {image.shape}, not 8-bit RGB", where=where, mend=mend)
        if not image.shape[:2] == cells.shape == kinds.shape:
            raise SourceError(
                f"image {image.shape[:2]}, cells {cells.shape} and classes {kinds.shape} differ", where=where, mend=mend
            )
        for name, array, most in (("cell", cells, 2**53), ("class", kinds, len(classes) - 1)):
            if array.dtype.kind not in "iuf" or (array != np.floor(array)).any() or array.min() < 0:
                raise SourceError(f"the {name} map does not hold whole numbers from 0", where=where, mend=mend)
            if array.max() > most:
                raise SourceError(f"{name} {array.max():g} has no name", where=where, mend=f"known are 0 to {most}")
        return cls(image, cells.astype(np.int64), kinds.astype(np.int64))

    def centroids(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Class (m,) and centroid (m, 2), x and y in pixels, of every cell."""
        ids, first, which = np.unique(self.cells, return_index=True, return_inverse=True)
        pixels = np.bincount(which.ravel())
        rows, columns = np.indices(self.cells.shape)
        xy = np.stack([np.bincount(which.ravel(), weights=v.ravel()) / pixels for v in (columns, rows)], axis=1)
        there = ids > 0
        return self.kinds.ravel()[first[there]], xy[there]


def read_hdf(path: Path, *, kinds: str, classes: Sequence[str]) -> Nuclei:
    """An HDF5 file of PathoCell: `img` (3, H, W), `gt_inst` (1, H, W) and the map of classes `kinds` (1, H, W).

    Raises
    ------
    SourceError
        It is no such file, or is larger than it may be, or its data lie in other files.
    """
    import h5py

    mend = "give the file as it is published"
    try:
        with h5py.File(path) as file:
            found = {}
            for name in ("img", "gt_inst", kinds):
                data = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
                if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
                    raise SourceError(f"it holds no {name!r} of its own", where=path, mend=mend)
                if data.ndim != 3 or data.shape[0] != (3 if name == "img" else 1) or data.dtype.kind not in "iuf":
                    raise SourceError(f"{name!r} is {data.dtype} {data.shape}", where=path, mend=mend)
                if data.size * 8 > LARGEST_BYTES:
                    raise SourceError(f"{name!r} is {data.shape}, which is too large", where=path, mend=mend)
                found[name] = data[:]
    except (OSError, KeyError, RuntimeError) as error:
        raise SourceError(f"not readable as HDF5 ({error})", where=path, mend=mend) from error
    image = _eight_bits(np.moveaxis(found["img"], 0, -1), where=path)
    return Nuclei.checked(image, found["gt_inst"][0], found[kinds][0], classes=classes, where=path)


def _eight_bits(image: NDArray[Any], *, where: object) -> NDArray[np.uint8]:
    """8 bits as they are; the upper 8 of 16, as the release takes them."""
    if image.dtype != np.uint16:
        return np.ascontiguousarray(image)
    if image.max() < 256:
        raise SourceError(f"16-bit values end at {image.max()}", where=where, mend="store them in 8 bits")
    return np.ascontiguousarray(image >> 8).astype(np.uint8)


def scale_of(options: ReadOptions, known: Scale) -> Scale:
    """What the user says, else `known`; `RELEASE` where sections are laid out as the release does.

    Raises
    ------
    RecipeError
        Both are said.
    """
    if options.compat == "release":
        if options.mpp is not None:
            raise RecipeError("the release declares 0.5 µm/px", where="--mpp", mend="leave out --mpp or --compat")
        return RELEASE
    return known if options.mpp is None else Scale(checked_mpp(options.mpp, where="--mpp"), "--mpp")


def nuclei_draft(
    section: SectionSource,
    options: ReadOptions,
    found: Nuclei,
    classes: Sequence[str],
    *,
    scale: Scale,
    drop: Drop,
    organ: str,
    subset: str,
    grid_px: int = GRID_PX,
    side_px: int = GRID_PX,
    notes: Notes | None = None,
) -> SectionDraft:
    """The section of an image's squares.

    Parameters
    ----------
    classes
        By number; the first is the background.
    drop
        When the last row and column of squares are left out.
    subset
        `train`, `valid` or `test`, by the provider; "" where nobody says it.
    grid_px, side_px
        Distance and side of the squares.

    Raises
    ------
    ContractError
        No square is left.
    """
    notes, where = notes or Notes(), f"{section.root}, section {section.section_id}"
    kinds, centres = found.centroids()
    if not len(kinds):
        raise ContractError("no cell is labelled", where=where, mend="leave the section out with --only")
    at = (centres // grid_px).astype(np.int64)
    last = at.max(axis=0)
    if drop == "always" or (drop == "where there are two" and (last > 0).all()):
        inside = (at < last).all(axis=1)
        notes.add(f"left out {int((~inside).sum()):,} cells of the last row and column of squares")
        kinds, at = kinds[inside], at[inside]
    if not len(kinds):
        raise ContractError(
            "no square is left without the last row and column", where=where, mend="leave the section out with --only"
        )
    squares, which = np.unique(at[:, ::-1], axis=0, return_inverse=True)  # row, column
    counts = np.zeros((len(squares), len(classes)), dtype=np.int32)
    np.add.at(counts, (which.ravel(), kinds), 1)
    labels = np.array(classes[1:], dtype=object)[counts[:, 1:].argmax(axis=1)]
    labels[~counts[:, 1:].any(axis=1)] = ""
    obs = pd.DataFrame(
        {"label": labels, "array_row": squares[:, 0], "array_col": squares[:, 1], "set": subset},
        index=pd.Index([f"{y}x{x}" for y, x in squares], dtype=object),
    )
    path = options.scratch / f"{section.section_id}.tif"
    write_pyramid(found.image, path, mpp=scale.mpp, lossless=True)
    whose = origin(section, options, own=by_pattern(section, options))
    return SectionDraft(
        section_id=section.section_id,
        patient=whose.patient,
        block=whose.block,
        platform=section.platform,
        table=ad.AnnData(
            sp.csr_matrix((len(obs), 0), dtype=np.int32),
            obs=obs,
            var=pd.DataFrame({"ensembl_id": []}, index=pd.Index([], dtype=object)),
            obsm={"spatial": (squares[:, ::-1] + 0.5) * grid_px * scale.mpp, CELLS: counts},
            uns={CLASSES: np.array(classes, dtype=object)},
        ),
        location_um=Um(side_px * scale.mpp),
        pitch_um=Um(grid_px * scale.mpp),
        location_shape="square",
        images=[ImageSource(path, Affine.scale(scale.mpp), scale.mpp, scale.source)],
        species=whose.species or "human",
        organ=whose.organ or organ,
        source=provenance(
            section,
            used=list(section.files),
            patient_source=whose.source,
            notes=notes.lines,
            compat=options.compat or "",
        ),
    )
