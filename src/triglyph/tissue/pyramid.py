"""Writing pixels as a tiled pyramidal TIFF that openslide, QuPath and tifffile open.

Each level is the 2 x 2 box average of the one above it: pixel (i, j) of level k + 1 covers exactly rows 2i, 2i + 1 and
columns 2j, 2j + 1 of level k; an odd last row or column has no pixel below. Levels are reduced-image pages of one
file. Bytes depend on the pixels and options alone: no date, no software name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from triglyph.errors import ContractError
from triglyph.storage import atomic_file
from triglyph.units import checked_mpp

Pixels = NDArray[np.uint8]
Grey = TypeVar("Grey", np.uint8, np.uint16)
Rows = Callable[[int, int], Pixels]
"""`rows(start, stop)` gives the pixel rows from `start` up to `stop`, (stop - start, width, 3)."""

_SMALLEST = 512


def write_pyramid(
    pixels: Pixels | Rows,
    path: Path,
    *,
    mpp: float,
    shape: tuple[int, int] | None = None,
    quality: int = 90,
    tile: int = 256,
    lossless: bool = False,
) -> Path:
    """Write an RGB image as a pyramid, atomically.

    Parameters
    ----------
    pixels
        (height, width, 3) uint8, or a function that gives rows; then `shape` is needed, rows are asked for in order,
        `tile` at a time, and only levels 1 and up are kept in memory (a third of the image).
    mpp
        µm per pixel; written as the resolution, in pixels per centimetre.
    shape
        (height, width).
    quality
        Of JPEG, 1 to 100.
    tile
        Side of the tiles in pixels, a multiple of 16.
    lossless
        Deflate in place of JPEG.

    Raises
    ------
    ContractError
        The pixels are not 8-bit RGB, or an option is out of range.
    ScaleError
        `mpp` is not a scale.
    StorageError
        The disk is full or read-only.
    """
    import tifffile

    mpp = checked_mpp(mpp, where=path)
    if tile < 16 or tile % 16 or not 1 <= quality <= 100:
        raise ContractError(
            f"tiles of {tile} px at quality {quality} cannot be written",
            where=path,
            mend="choose a tile that is a multiple of 16 and a quality of 1 to 100",
        )
    if callable(pixels):
        if shape is None:
            raise ContractError("rows are given without the image's shape", where=path, mend="give shape=(h, w)")
        rows, size = pixels, shape
    else:
        _check(pixels, pixels.shape, path)
        given = pixels
        rows, size = (lambda start, stop: given[start:stop]), (pixels.shape[0], pixels.shape[1])
    # tifffile writes the resolution as a fraction; four decimals of pixels per centimetre hold any mpp to 1e-8.
    options = {
        "tile": (tile, tile),
        # Of what is given; tifffile stores JPEG as YCbCr with chroma at half resolution, as scanners do.
        "photometric": "rgb",
        "compression": "adobe_deflate" if lossless else "jpeg",
        "compressionargs": {"level": 6 if lossless else quality},
        "predictor": lossless,
        "resolution": (1e4 / mpp, 1e4 / mpp),
        "resolutionunit": "CENTIMETER",
        "metadata": None,
        "software": False,
        "maxworkers": 1,
        "dtype": np.uint8,
    }
    if not lossless:
        options["subsampling"] = (2, 2)
    with atomic_file(path) as partial, tifffile.TiffWriter(partial, bigtiff=size[0] * size[1] > 2**30) as writer:
        below: list[Pixels] = []
        writer.write(_tiles(_halving(rows, size, tile, below, path), size, tile), shape=(*size, 3), **options)
        level, scale = np.concatenate(below), 1
        while min(level.shape[:2]) > 0 and max(size) // scale > _SMALLEST:
            scale *= 2
            options["resolution"] = (1e4 / mpp / scale, 1e4 / mpp / scale)
            bands = (level[top : top + tile] for top in range(0, len(level), tile))
            writer.write(_tiles(bands, level.shape[:2], tile), shape=level.shape, subfiletype=1, **options)
            level = halve(level)
    return path


def halve(pixels: NDArray[Grey]) -> NDArray[Grey]:
    """The 2 x 2 box average of 8 or 16 bits, rounded; an odd last row or column is dropped."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    # Twice the bits hold the sum of four.
    even = pixels[: 2 * height, : 2 * width].astype(f"u{2 * pixels.itemsize}")
    total = even[0::2, 0::2] + even[0::2, 1::2] + even[1::2, 0::2] + even[1::2, 1::2]
    return ((total + 2) >> 2).astype(pixels.dtype)


def _halving(rows: Rows, size: tuple[int, int], tile: int, below: list[Pixels], path: Path) -> Iterator[Pixels]:
    """Bands of `tile` rows; what they average to is kept in `below`. Tiles are even, so no pair is ever cut."""
    for top in range(0, size[0], tile):
        stop = min(top + tile, size[0])
        band = rows(top, stop)
        _check(band, (stop - top, size[1], 3), path)
        below.append(halve(band))
        yield band


def _tiles(bands: Iterator[Pixels], size: tuple[int, ...], tile: int) -> Iterator[Pixels]:
    """Tiles in reading order; those at the edge are filled by repeating the last pixel, which JPEG does not ring on."""
    for band in bands:
        fill = ((0, tile - band.shape[0]), (0, -size[1] % tile), (0, 0))
        whole = np.pad(band, fill, mode="edge")
        for left in range(0, whole.shape[1], tile):
            yield np.ascontiguousarray(whole[:, left : left + tile])


def _check(pixels: Pixels, shape: tuple[int, ...], path: Path) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape != tuple(shape) or pixels.shape[2] != 3:
        raise ContractError(
            f"pixels of shape {pixels.shape} and type {pixels.dtype} are not 8-bit RGB of shape {tuple(shape)}",
            where=path,
            mend="give (height, width, 3) uint8",
        )
    if 0 in pixels.shape:
        raise ContractError("the image is empty", where=path, mend="give at least one pixel")
