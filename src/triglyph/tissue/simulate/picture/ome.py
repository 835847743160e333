"""Pyramidal OME-TIFF: every page's reduced levels are its sub-images, as vendors' instruments write them.

Each level is the 2 x 2 box average of the one above it (`pyramid.halve`). Bytes depend on the pixels and options alone:
no date, no software name, no identifier from the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from triglyph.storage import atomic_file
from triglyph.tissue.pyramid import halve

_TILE = 256
_SMALLEST = 512
_NO_UUID = "urn:uuid:00000000-0000-0000-0000-000000000000"
"""tifffile would draw one from the clock."""
_PLAIN: dict[str, Any] = {"tile": (_TILE, _TILE), "maxworkers": 1, "software": False, "metadata": None}
_LOSSLESS: dict[str, Any] = {"photometric": "minisblack", "compression": "adobe_deflate", "predictor": True}

Level = tuple[Any, dict[str, Any]]
"""Pixels of a level, or its tiles, and what tifffile must be told of them."""


def write_ome(path: Path, pixels: NDArray[Any], *, mpp: float, channel: str | None = None, quality: int = 90) -> None:
    """Write one image in memory: JPEG for RGB, lossless for one channel of 16 bits.

    Parameters
    ----------
    pixels
        (height, width, 3) uint8 or (height, width) uint16.
    mpp
        µm per pixel.
    channel
        Its name, where it has one.
    quality
        Of JPEG, 1 to 100.
    """
    import tifffile

    rgb = pixels.ndim == 3
    lossy = {"photometric": "rgb", "compression": "jpeg", "subsampling": (2, 2), "compressionargs": {"level": quality}}
    record: dict[str, Any] = {
        "axes": "YXS" if rgb else "YX",
        "UUID": _NO_UUID,
        "Creator": "triglyph",
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm",
    }
    if channel is not None:
        record["Channel"] = {"Name": [channel]}

    def levels() -> Iterator[Level]:
        level = pixels
        for _ in range(_depth(max(pixels.shape[:2]))):
            yield level, {}
            level = halve(level)

    with tifffile.TiffWriter(path, ome=True, bigtiff=pixels.nbytes > 2**31) as writer:
        depth = _depth(max(pixels.shape[:2]))
        _write_levels(writer, levels(), depth, {"metadata": record}, _PLAIN | (lossy if rgb else _LOSSLESS))


def write_ome_channels(
    path: Path, channels: Iterable[NDArray[np.uint16]], names: Sequence[str], *, side: int, mpp: float
) -> None:
    """Write channels of 16 bits that are made one after another, lossless and atomically.

    Parameters
    ----------
    channels
        (side, side) each, in the order of `names`; only reduced levels are kept (a third of the image).
    mpp
        µm per pixel; written as the resolution too, in pixels per centimetre.

    Raises
    ------
    StorageError
        The disk is full or read-only.
    """
    import tifffile

    number, depth = len(names), _depth(side)
    options = _PLAIN | _LOSSLESS | {"compressionargs": {"level": 6}, "resolutionunit": "CENTIMETER", "dtype": np.uint16}

    def levels() -> Iterator[Level]:
        below: list[NDArray[np.uint16]] = []

        def first() -> Iterator[NDArray[np.uint16]]:
            for pixels in channels:
                below.append(halve(pixels))
                yield pixels

        images, length = first(), side
        for k in range(depth):
            scale = 1e4 / mpp / 2**k
            yield _tiles(images), {"shape": (number, length, length), "resolution": (scale, scale)}
            images, length = iter(below), length // 2
            below = [halve(pixels) for pixels in below]

    with atomic_file(path) as partial, tifffile.TiffWriter(partial, bigtiff=side**2 * number > 2**29) as writer:
        _write_levels(writer, levels(), depth, {"description": _ome_xml(names, side, mpp)}, options)


def _depth(longest: int) -> int:
    """Number of levels of an image of that many pixels on its longer side."""
    depth = 1
    while longest > _SMALLEST:
        longest, depth = longest // 2, depth + 1
    return depth


def _write_levels(
    writer: Any, levels: Iterator[Level], depth: int, first: dict[str, Any], options: dict[str, Any]
) -> None:
    """Write the first level with room for the others, told what `first` says, and the others as its sub-images."""
    place = first | {"subifds": depth - 1}
    for data, own in levels:
        writer.write(data, **(options | own | place))
        place = {"subfiletype": 1}


def _tiles(images: Iterator[NDArray[np.uint16]]) -> Iterator[NDArray[np.uint16]]:
    """Tiles of one image after another, in reading order; those at the edge are filled with zeros."""
    for pixels in images:
        whole = np.pad(pixels, (0, -len(pixels) % _TILE))
        for top in range(0, len(whole), _TILE):
            for left in range(0, len(whole), _TILE):
                yield np.ascontiguousarray(whole[top : top + _TILE, left : left + _TILE])


def _ome_xml(names: Sequence[str], side: int, mpp: float) -> str:
    channels = "".join(
        f'<Channel ID="Channel:0:{i}" Name={quoteattr(name)} SamplesPerPixel="1"/>' for i, name in enumerate(names)
    )
    scale = " ".join(f'PhysicalSize{a}="{mpp}" PhysicalSize{a}Unit="&#181;m"' for a in "XY")
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="'
        "http://www.openmicroscopy.org/Schemas/OME/2016-06 http://www.openmicroscopy.org/Schemas/OME/2016-06/ome.xsd"
        '"><Image ID="Image:0" Name="protein"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" '
        f'SizeX="{side}" SizeY="{side}" SizeC="{len(names)}" SizeZ="1" SizeT="1" '
        f'BigEndian="false" {scale}>{channels}<TiffData IFD="0" PlaneCount="{len(names)}"/>'
        "</Pixels></Image></OME>"
    )
