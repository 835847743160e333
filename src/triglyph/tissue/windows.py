"""The window reader: a square of tissue of a stated size in µm, at a stated number of pixels.

Physical scale is the promise of this package, so it is kept here and nowhere else. A window is placed to a fraction
of a pixel; shrinking integrates over each output pixel's exact footprint (area filter), enlarging interpolates
linearly and is allowed up to `MAX_ENLARGEMENT`. Windows lie along the image's own axes: where an image is rotated
against the section's frame, the centre and the size are exact and the content is turned with the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ScaleError
from triglyph.tissue.frames import Affine
from triglyph.tissue.pixels import Level, Pixels, open_pixels

MAX_ENLARGEMENT = 1.5
WHITE = 255


class Plan(NamedTuple):
    """How a window of one size is read; the same for every centre."""

    level: int
    span_x: float
    """Width of the window in pixels of that level."""
    span_y: float
    enlargement: float
    """How much larger than level 0 the output is; at most 1 where nothing is invented."""


class WindowReader:
    """Windows of one image, addressed in the section's µm frame.

    Parameters
    ----------
    path
        A slide or tiled TIFF.
    to_um
        Level-0 pixels to the section's frame.
    mpp_source
        Where the scale came from, for messages.
    pixels
        The image, where it is open already; `path` then only names it.
    """

    def __init__(self, path: Path, *, to_um: Affine, mpp_source: str = "", pixels: Pixels | None = None) -> None:
        self.path, self.to_um, self.mpp_source = path, to_um, mpp_source
        self.pixels: Pixels = open_pixels(path) if pixels is None else pixels
        self._to_px = to_um.inverse()

    @property
    def mpp(self) -> float:
        """µm per level-0 pixel."""
        return self.to_um.mpp

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of level 0."""
        return self.pixels.levels[0].width, self.pixels.levels[0].height

    @property
    def size_um(self) -> tuple[float, float]:
        """Width and height of the image in µm."""
        (w, h), (sx, sy) = self.size_px, self.to_um.steps
        return w * sx, h * sy

    def plan(self, size_um: float, out_px: int) -> Plan:
        """Level and spans for windows of `size_um`, given at `out_px`.

        Raises
        ------
        ScaleError
            The output would be enlarged by more than `MAX_ENLARGEMENT` over level 0.
        """
        if not (math.isfinite(size_um) and size_um > 0 and out_px >= 1):
            raise ScaleError(f"a window of {size_um} µm at {out_px} px has no area", where=self.path)
        mpp_x, mpp_y = self.to_um.steps
        wanted = size_um / out_px
        enlargement = max(mpp_x, mpp_y) / wanted
        if enlargement > MAX_ENLARGEMENT * (1 + 1e-9):
            raise ScaleError(
                f"a window at {wanted:.3f} µm/px would enlarge this image of {self.mpp:.3f} µm/px "
                f"{enlargement:.2f} times; {MAX_ENLARGEMENT} is the most",
                where=f"{self.path} (scale from {self.mpp_source or 'the section'})",
                mend="use an encoder made for a coarser scale, or a better image",
            )
        # The coarsest level that is still at least as fine as the output.
        levels = self.pixels.levels
        fits = [
            i
            for i, s in enumerate(levels)
            if s.step_x * mpp_x <= wanted * (1 + 1e-3) and s.step_y * mpp_y <= wanted * (1 + 1e-3)
        ]
        level = max(fits, key=lambda i: levels[i].step_x, default=0)
        step = levels[level]
        return Plan(level, size_um / (mpp_x * step.step_x), size_um / (mpp_y * step.step_y), enlargement)

    def read(self, centre_um: ArrayLike, size_um: float, out_px: int) -> NDArray[np.uint8]:
        """One window.

        Parameters
        ----------
        centre_um
            (2,), in the section's frame.
        size_um
            Side of the square of tissue.
        out_px
            Side of the output.

        Returns
        -------
        (out_px, out_px, 3) uint8; what lies outside the image is white.
        """
        plan = self.plan(size_um, out_px)
        level = self.pixels.levels[plan.level]
        x, y = self._to_px(np.asarray(centre_um, dtype=np.float64))
        left, top = x / level.step_x - plan.span_x / 2, y / level.step_y - plan.span_y / 2
        x0, taps_x = _taps(left, plan.span_x, out_px)
        y0, taps_y = _taps(top, plan.span_y, out_px)
        source = self._padded(plan.level, level, x0, y0, taps_x.shape[1], taps_y.shape[1])
        return _resample(source, taps_x, taps_y)

    def read_level0(self, centre_um: ArrayLike, size_px: int) -> NDArray[np.uint8]:
        """`size_px` native pixels about a centre, whatever their size in µm; only to compare with published code.

        Returns
        -------
        (size_px, size_px, 3) uint8
        """
        # The map to µm and back may lose the last bit of a whole pixel coordinate.
        x, y = np.floor(self._to_px(np.asarray(centre_um, dtype=np.float64)) + 1e-6).astype(int)
        half = size_px // 2
        return self._padded(0, self.pixels.levels[0], int(x) - half, int(y) - half, size_px, size_px)

    def read_many(self, centres_um: ArrayLike, size_um: float, out_px: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Windows of many centres as (row, window), in the order that decodes each tile of the file once."""
        centres = np.asarray(centres_um, dtype=np.float64)
        for row in self.reading_order(centres):
            yield int(row), self.read(centres[row], size_um, out_px)

    def reading_order(self, centres_um: NDArray[np.float64]) -> NDArray[np.intp]:
        """Rows sorted along the file: by bands of 512 level-0 pixels, then from left to right."""
        xy = self._to_px(centres_um)
        return np.lexsort((xy[:, 0], xy[:, 1] // 512))

    def thumbnail(self, max_px: int = 1024) -> tuple[NDArray[np.uint8], Affine]:
        """The whole image with its longer side at most `max_px`, and its map to µm; for looking at."""
        levels = self.pixels.levels
        w0, h0 = self.size_px
        shrink = max(w0, h0) / max_px
        level = max(
            (i for i, s in enumerate(levels) if s.step_x <= max(shrink, 1)), key=lambda i: levels[i].step_x, default=0
        )
        step = levels[level]
        source = self.pixels.read(level, 0, 0, step.width, step.height)
        if shrink <= 1:
            return source, self.to_um
        out_w, out_h = max(1, round(w0 / shrink)), max(1, round(h0 / shrink))
        _, taps_x = _taps(0.0, float(step.width), out_w)
        _, taps_y = _taps(0.0, float(step.height), out_h)
        image = _resample(source, taps_x[:, : step.width], taps_y[:, : step.height])
        stretch = Affine(a=step.width * step.step_x / out_w, b=0, c=0, d=0, e=step.height * step.step_y / out_h, f=0)
        return image, stretch.then(self.to_um)

    def close(self) -> None:
        """Let go of the file."""
        self.pixels.close()

    def _padded(self, index: int, level: Level, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, level.width), min(y + height, level.height)
        if (left, top, right, bottom) == (x, y, x + width, y + height):
            return self.pixels.read(index, x, y, width, height)
        out = np.full((height, width, 3), WHITE, dtype=np.uint8)
        if right > left and bottom > top:
            inside = self.pixels.read(index, left, top, right - left, bottom - top)
            out[top - y : bottom - y, left - x : right - x] = inside
        return out


class SlideWindows:
    """Windows of a section's locations, by row, out of one image; what encoders read through.

    Parameters
    ----------
    reader
        Over the image; closed with this.
    centres_um
        (n, 2) centres of all locations.
    """

    def __init__(self, reader: WindowReader, centres_um: NDArray[np.float64]) -> None:
        self.reader, self.centres_um = reader, centres_um

    def order(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """`rows` in the order that decodes each tile of the file once."""
        return rows[self.reader.reading_order(self.centres_um[rows])]

    def read(self, row: int, px: int, mpp: float | None) -> NDArray[np.uint8]:
        """(px, px, 3) about a location at `mpp`; native pixels where that is None."""
        centre = self.centres_um[row]
        return self.reader.read_level0(centre, px) if mpp is None else self.reader.read(centre, px * mpp, px)

    def close(self) -> None:
        """Let go of the file."""
        self.reader.close()


def _taps(start: float, span: float, out: int) -> tuple[int, sp.csr_matrix]:
    """First source pixel and the (out, taps) weights of a 1-D window [start, start + span) at `out` samples."""
    first = math.floor(start)
    # A thousandth of a source pixel is far below what anyone can see, and lets neighbours share their weights.
    return _taps_at(first, round(start - first, 3), round(span, 6), out)


@lru_cache(maxsize=4096)
def _taps_at(first: int, fraction: float, span: float, out: int) -> tuple[int, sp.csr_matrix]:
    shift, weights = _weights(fraction, span, out)
    return first + shift, weights


@lru_cache(maxsize=2048)
def _weights(fraction: float, span: float, out: int) -> tuple[int, sp.csr_matrix]:
    """Weights for a start in [0, 1); the shift is -1 where interpolation looks one pixel to the left."""
    step = span / out
    if step >= 1:
        edges = fraction + step * np.arange(out + 1)
        low = np.floor(edges[:-1]).astype(np.int32)
        taps = math.ceil(step) + 1
        columns = low[:, None] + np.arange(taps, dtype=np.int32)
        overlap = np.minimum(edges[1:, None], columns + 1) - np.maximum(edges[:-1, None], columns)
        values, shift = np.clip(overlap, 0, None), 0
    else:
        centres = fraction + step * (np.arange(out) + 0.5) - 0.5 + 1  # + 1: columns count from pixel -1
        low = np.floor(centres).astype(np.int32)
        columns = low[:, None] + np.arange(2, dtype=np.int32)
        right = (centres - low)[:, None]
        values, shift = np.concatenate([1 - right, right], axis=1), -1
    values /= values.sum(axis=1, keepdims=True)
    keep = values > 1e-9
    indptr = np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int32)
    indices = columns[keep]
    weights = sp.csr_matrix(
        (values[keep].astype(np.float32), indices, indptr), shape=(out, int(indices.max()) + 1), copy=False
    )
    return shift, weights


def _resample(source: NDArray[np.uint8], taps_x: sp.csr_matrix, taps_y: sp.csr_matrix) -> NDArray[np.uint8]:
    """Rows first, then columns; (H, W, 3) -> (taps_y rows, taps_x rows, 3)."""
    height, width, _ = source.shape
    if _identity(taps_x) and _identity(taps_y):
        return np.array(source)
    rows = taps_y @ source.reshape(height, width * 3).astype(np.float32)
    turned = rows.reshape(-1, width, 3).transpose(1, 0, 2).reshape(width, -1)
    both = (taps_x @ turned).reshape(taps_x.shape[0], -1, 3).transpose(1, 0, 2)
    return np.ascontiguousarray((both + 0.5).astype(np.uint8))


def _identity(taps: sp.csr_matrix) -> bool:
    return taps.shape[0] == taps.shape[1] == taps.nnz
