"""Patch files in the layout of HEST: pixels around every spot, ready for an encoder.

img      (n, px, px, 3) uint8 RGB, one chunk per patch, uncompressed; carries the attributes
coords   (n, 2) int, top-left corner (x, y) at level 0
barcode  (n, 1) UTF-8
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triglyph.errors import ContractError, SourceError
from triglyph.storage import atomic_file
from triglyph.units import checked_mpp

_DATASETS = ("img", "coords", "barcode")


@dataclass(frozen=True)
class Patches:
    """A patch file in memory."""

    pixels: NDArray[np.uint8]
    """(n, px, px, 3) RGB."""
    corners_px: NDArray[np.int64]
    """(n, 2) top-left corner (x, y) at level 0."""
    barcodes: tuple[str, ...]
    mpp: float
    """µm per level-0 pixel of the slide (`pixel_size`)."""
    size_level0_px: int
    """Side of a patch at level 0 (`patch_size_src`)."""
    name: str = ""

    @property
    def size_um(self) -> float:
        """Side of a patch in µm."""
        return self.size_level0_px * self.mpp

    @property
    def centres_px(self) -> NDArray[np.float64]:
        """(n, 2) centres at level 0; HEST takes `centre - size // 2`, truncated, as the corner."""
        return self.corners_px.astype(np.float64) + self.size_level0_px // 2


def write_patches_h5(path: Path, patches: Patches) -> None:
    """Write a patch file, atomically and in one pass.

    Raises
    ------
    ContractError
        Pixels, corners and barcodes do not fit together.
    StorageError
        The disk is full or read-only.
    """
    import h5py

    _check(patches, path)
    n, px = len(patches.pixels), patches.pixels.shape[1]
    with atomic_file(path) as partial, h5py.File(partial, "w") as file:
        image = file.create_dataset(
            "img", shape=patches.pixels.shape, dtype=np.uint8, chunks=(1, px, px, 3), maxshape=(None, px, px, 3)
        )
        for row in range(n):
            image[row] = patches.pixels[row]
        image.attrs["patch_size_src"] = patches.size_level0_px
        image.attrs["patch_size_target"] = px
        image.attrs["downsample"] = px / patches.size_level0_px
        image.attrs["pixel_size"] = patches.mpp
        if patches.name:
            image.attrs["name"] = patches.name
        file.create_dataset("coords", data=patches.corners_px.astype(np.int64), maxshape=(None, 2), chunks=True)
        text = np.array(patches.barcodes, dtype=object).reshape(-1, 1)
        file.create_dataset("barcode", data=text, dtype=h5py.string_dtype("utf-8"), maxshape=(None, 1), chunks=True)


def read_patches_h5(path: Path, *, rows: Sequence[int] | slice | None = None) -> Patches:
    """Read a patch file, or some `rows` of it.

    Raises
    ------
    SourceError
        It does not open or is not of this layout.
    ContractError
        Its parts do not fit together.
    ScaleError
        Its `pixel_size` is not a scale.
    """
    import h5py

    take = slice(None) if rows is None else rows
    try:
        with h5py.File(path) as file:
            lacking = [name for name in _DATASETS if name not in file]
            if lacking:
                raise SourceError(
                    f"not a patch file: it lacks {', '.join(lacking)}", where=path, mend="give a HEST patches/*.h5"
                )
            image = file["img"]
            barcodes = file["barcode"][take].reshape(-1)
            attributes = dict(image.attrs)
            found = {"pixels": image[take], "corners_px": file["coords"][take].astype(np.int64)}
    except OSError as error:
        raise SourceError(f"not readable as HDF5 ({error})", where=path, mend="copy the file again") from error
    for key in ("patch_size_src", "pixel_size"):
        if key not in attributes:
            raise SourceError(
                f"`img` lacks the attribute {key!r}", where=path, mend="write the patches again, with their pixels"
            )
    patches = Patches(
        **found,
        barcodes=tuple(b.decode() if isinstance(b, bytes) else str(b) for b in barcodes),
        mpp=checked_mpp(attributes["pixel_size"], where=path),
        size_level0_px=int(attributes["patch_size_src"]),
        name=str(attributes.get("name", "")),
    )
    _check(patches, path)
    return patches


def _check(patches: Patches, path: Path) -> None:
    pixels, n = patches.pixels, len(patches.pixels)
    square = pixels.ndim == 4 and pixels.shape[1] == pixels.shape[2] and pixels.shape[3] == 3
    if not square or pixels.dtype != np.uint8:
        raise ContractError(f"pixels are {pixels.dtype} {pixels.shape}, not uint8 (n, px, px, 3)", where=path)
    if patches.corners_px.shape != (n, 2) or len(patches.barcodes) != n:
        raise ContractError(
            f"{n} patches, corners of shape {patches.corners_px.shape}, {len(patches.barcodes)} barcodes", where=path
        )
    if patches.size_level0_px < 1:
        raise ContractError(f"a patch is {patches.size_level0_px} px at level 0", where=path)
