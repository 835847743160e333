"""Random access to the pixels of a slide, at any level of its pyramid.

Two backends behind one small contract: tifffile + imagecodecs for tiled TIFF and OME-TIFF (it decodes straight to RGB
and keeps decoded tiles), OpenSlide for every vendor format. Both return exactly what is asked for, inside the level;
what lies outside is the caller's business.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from triglyph.errors import SourceError

TILE_CACHE_BYTES = 96 * 2**20


class Level(NamedTuple):
    """One level of a pyramid; `step` is level-0 pixels per pixel of this level, per axis."""

    width: int
    height: int
    step_x: float
    step_y: float


class Pixels(Protocol):
    """What the window reader needs of an image."""

    levels: list[Level]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """RGB of shape (height, width, 3); the rectangle lies inside the level."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def open_pixels(path: Path) -> Pixels:
    """The best backend for `path`.

    Raises
    ------
    SourceError
        The file is missing, truncated, not an image we can read at random, or not 8-bit RGB.
    """
    import openslide

    if not path.is_file():
        raise SourceError(
            "the image is not there", where=path, mend="restore it, or edit its path in the section's section.json"
        )
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor in (None, "generic-tiff"):
        return TiffPixels(path)
    return OpenSlidePixels(path)


def level_steps(sizes: Sequence[tuple[int, int]]) -> list[Level]:
    """Levels with their steps, snapped to whole numbers where rounding of the size alone explains the difference.

    9271 px halved is 4635 px: the step is 2, not 2.0002, which would be two pixels off at the far edge.
    """
    w0, h0 = sizes[0]
    levels = []
    for width, height in sizes:
        step_x, step_y = w0 / width, h0 / height
        whole = round(step_x)
        if abs(w0 / whole - width) < 1 and abs(h0 / whole - height) < 1:
            step_x = step_y = float(whole)
        levels.append(Level(width, height, step_x, step_y))
    return levels


class TiffPixels:
    """Tiled TIFF, one file handle per process, decoded tiles kept in a small cache.

    Threads may read at once: `os.pread` moves no shared position, and the cache is guarded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._tiles: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._cached = 0
        self._open()

    def _open(self) -> None:
        import tifffile

        try:
            self._tiff = tifffile.TiffFile(self.path)
            first = self._tiff.pages.first
            pages = [first]
            reduced = first.pages if first.subifds else self._tiff.pages[1:]
            for page in reduced or ():
                page = page.aspage()  # noqa: PLW2901  a frame knows no tags of its own
                if page.is_tiled and (page.is_reduced or first.subifds) and page.samplesperpixel >= 3:
                    pages.append(page)
        except (tifffile.TiffFileError, ValueError, IndexError, OSError) as error:
            raise SourceError(
                f"not readable as a TIFF ({error})", where=self.path, mend="copy the image again; it may be truncated"
            ) from error
        if not first.is_tiled:
            raise SourceError(
                "the TIFF is in strips, not tiles, so a window would cost the whole image",
                where=self.path,
                mend="run `triglyph read` on the source again: it makes a tiled pyramid",
            )
        if first.dtype != np.uint8 or first.samplesperpixel not in (3, 4) or first.planarconfig != 1:
            raise SourceError(
                f"not an 8-bit RGB image ({first.dtype}, {first.samplesperpixel} channels)",
                where=self.path,
                mend="give the brightfield H&E image",
            )
        pages.sort(key=lambda page: -page.imagewidth)
        self._pages = pages
        self._fd = os.open(self.path, os.O_RDONLY)
        self._pid = os.getpid()
        size = os.fstat(self._fd).st_size
        ends = (o + n for p in pages for o, n in zip(p.dataoffsets, p.databytecounts, strict=True))
        if max(ends, default=0) > size:
            raise SourceError(
                f"the image is truncated: {size:,} bytes are there, its directory points beyond",
                where=self.path,
                mend="copy the image again",
            )
        self.levels = level_steps([(p.imagewidth, p.imagelength) for p in pages])

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def close(self) -> None:
        self._tiff.close()
        os.close(self._fd)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        page = self._pages[level]
        tw, th = page.tilewidth, page.tilelength
        across = -(-page.imagewidth // tw)
        rows, columns = range(y // th, (y + height - 1) // th + 1), range(x // tw, (x + width - 1) // tw + 1)
        if len(rows) == len(columns) == 1:
            x0, y0 = x - columns[0] * tw, y - rows[0] * th
            return self._tile(level, rows[0] * across + columns[0])[y0 : y0 + height, x0 : x0 + width]
        out = np.empty((height, width, 3), dtype=np.uint8)
        for r in rows:
            for c in columns:
                tile = self._tile(level, r * across + c)
                x0, y0 = max(x, c * tw), max(y, r * th)
                x1, y1 = min(x + width, (c + 1) * tw), min(y + height, (r + 1) * th)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - r * th : y1 - r * th, x0 - c * tw : x1 - c * tw]
        return out

    def _tile(self, level: int, index: int) -> NDArray[np.uint8]:
        key = (level, index)
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        page = self._pages[level]
        count = page.databytecounts[index]
        if count == 0:  # a sparse TIFF leaves empty tiles out
            tile = np.full((page.tilelength, page.tilewidth, 3), 255, dtype=np.uint8)
        else:
            data = os.pread(self._fd, count, page.dataoffsets[index])
            try:
                decoded = page.decode(data, index, jpegtables=page.jpegtables)[0]
            except (ValueError, RuntimeError) as error:  # imagecodecs raises both
                raise SourceError(
                    f"tile {index} of level {level} does not decode ({error})",
                    where=self.path,
                    mend="copy the image again; it is damaged",
                ) from error
            tile = decoded[0, ..., :3]
        with self._lock:
            self._tiles[key] = tile
            self._cached += tile.nbytes
            while self._cached > TILE_CACHE_BYTES:
                self._cached -= self._tiles.popitem(last=False)[1].nbytes
        return tile


class OpenSlidePixels:
    """Everything OpenSlide reads: SVS, NDPI, MRXS, SCN, BIF, DICOM, Philips and Ventana TIFF."""

    def __init__(self, path: Path) -> None:
        import openslide

        self.path = path
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise SourceError(f"OpenSlide cannot open it ({error})", where=path, mend="copy the slide again") from error
        self.levels = level_steps(self._slide.level_dimensions)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def close(self) -> None:
        self._slide.close()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        import openslide

        # OpenSlide takes positions in whole level-0 pixels and divides by its own (unsnapped) downsample, so that a
        # pixel of a level is hit to within half a level-0 pixel.
        step = self._slide.level_downsamples[level]
        try:
            region = self._slide.read_region((round(x * step), round(y * step)), level, (width, height))
        except openslide.OpenSlideError as error:
            raise SourceError(
                f"OpenSlide cannot read level {level} at ({x}, {y}) ({error})", where=self.path, mend="copy it again"
            ) from error
        rgba = np.asarray(region)
        rgb = rgba[..., :3]
        if rgba[..., 3].min() < 255:  # unscanned glass is transparent: white, as a microscope shows it
            alpha = rgba[..., 3:].astype(np.uint16)
            rgb = ((rgb * alpha + 255 * (255 - alpha)) // 255).astype(np.uint8)
        return rgb


class ArrayPixels:
    """An image in memory, (height, width, 3) uint8: one level."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array
        self.levels = [Level(array.shape[1], array.shape[0], 1.0, 1.0)]

    def close(self) -> None:
        """Nothing to let go of."""

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        return self.array[y : y + height, x : x + width]
