"""Regions: squares three patches wide that hold a location's patch in one of their nine cells.

Stamp (ICLR 2026) looks at a location at two scales, the patch about its centre and a region of 3 x 3 patches, and asks
in which cell of the region the patch lies. Cells are numbered row by row, 0 to 8. With p half a patch, the region whose
cell (row, column) is the patch begins at

    x1 = cx - (2 column + 1) p,    y1 = cy - (2 row + 1) p

All nine that lie within the image are equally likely. Where none does (the patch hangs over an edge, or the image is
too small) the region is centred on the location and its cell is `NOWHERE`, no answer to any question; what lies outside
the image is white, as in every window, and the scale is kept. (The release of Stamp clips such a region, which shows
another scale, and hands the -1 to a cross-entropy, which has no such class.)

Windows lie along the image's own axes, so cells do too: they are laid out in pixels of the image, an exact number of
µm apart along each axis, and only centres are given in the section's frame. In a rotated or mirrored image "above" is
what is above in the picture.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.cards import digest
from triglyph.errors import ContractError, ScaleError, StorageError
from triglyph.tissue.frames import Affine
from triglyph.tissue.windows import WindowReader

if TYPE_CHECKING:
    from triglyph.tissue.section import Section

SIDE = 3
"""Patches along a region's side."""
NOWHERE = -1
"""The cell of a region that does not lie within its image."""
TOLERANCE_PX = 1e-6
"""Maps to µm and back lose the last bits of a pixel coordinate."""


class Regions(NamedTuple):
    """Where the regions of n locations lie."""

    centres_um: NDArray[np.float64]
    """(n, 2) centres of the regions, in the section's frame"""
    cell: NDArray[np.int64]
    """(n,) 0 to 8, row by row: which cell is the location's patch; `NOWHERE` where no region fits"""


class Views(NamedTuple):
    """A location at two scales."""

    patch: NDArray[np.uint8]
    """(px, px, 3)"""
    region: NDArray[np.uint8]
    """(px, px, 3), three times as wide"""
    ref: NDArray[np.uint8]
    """(ref_px, ref_px, 3), the patch made small"""


def draws(n: int, *, seed: int, draw: int, section: str) -> NDArray[np.float64]:
    """(n,) numbers in [0, 1), one a location: a function of (seed, draw, section, row), whatever n.

    Parameters
    ----------
    n
        Locations of the section.
    seed
        Of the run, or of the cuts that runs share.
    draw
        How often the section has been drawn from before: the epoch, say.
    section
        Its id.
    """
    return np.random.default_rng([seed, draw, zlib.crc32(section.encode())]).random(n)


def place_regions(
    centres_um: ArrayLike, chosen: ArrayLike, *, patch_um: float, to_um: Affine, size_px: tuple[int, int]
) -> Regions:
    """One region for each location, uniformly among those of its nine that lie within the image.

    Parameters
    ----------
    centres_um
        (n, 2) centres of the locations, in the section's frame.
    chosen
        (n,) numbers in [0, 1) that decide; see `draws`.
    patch_um
        Side of a patch.
    to_um
        Level-0 pixels of the image to the section's frame.
    size_px
        Width and height of level 0.

    Raises
    ------
    ContractError
        A location has no place.
    ScaleError
        A patch has no area.
    """
    centres, chosen = np.asarray(centres_um, dtype=np.float64).reshape(-1, 2), np.asarray(chosen, dtype=np.float64)
    if not np.isfinite(centres).all():
        raise ContractError(
            "a location without a place has no region around it",
            where=f"row {np.flatnonzero(~np.isfinite(centres).all(axis=1))[0]}",
            mend="read regions of placed sections alone",
        )
    if not (np.isfinite(patch_um) and patch_um > 0):
        raise ScaleError(f"a patch of {patch_um} µm has no area", where="place_regions")
    at = to_um.inverse()(centres)
    # Along each axis of the image a patch is as many pixels as it takes, also where they are not square.
    patch_px = patch_um / np.asarray(to_um.steps)
    half_px, cells = patch_px / 2, np.arange(SIDE)
    starts = at[:, :, None] - (2 * cells + 1) * half_px[:, None]
    stops = starts + SIDE * patch_px[:, None]
    # (n, axis, cell along the axis)
    fits = (starts >= -TOLERANCE_PX) & (stops <= np.asarray(size_px)[:, None] + TOLERANCE_PX)
    both = (fits[:, 1, :, None] & fits[:, 0, None, :]).reshape(len(at), SIDE * SIDE)
    count = both.sum(axis=1)
    nth = np.minimum(np.floor(chosen * count), count - 1)
    cell = np.where(count > 0, np.argmax(np.cumsum(both, axis=1) > nth[:, None], axis=1), NOWHERE)
    row, column = np.divmod(np.where(count > 0, cell, SIDE * SIDE // 2), SIDE)
    offset = SIDE // 2 - np.stack([column, row], axis=1)
    return Regions(to_um(at + offset * patch_px), cell.astype(np.int64))


def shrink(patches: NDArray[np.uint8], ref_px: int) -> NDArray[np.uint8]:
    """Patches (..., px, px, 3) as (..., ref_px, ref_px, 3): the mean over each square of pixels, rounded.

    `ref_px` is the side of one token of a vision transformer, so that a whole patch becomes one token. The square of
    tissue stays what it was.

    Raises
    ------
    ScaleError
        `px` is no multiple of `ref_px`.
    """
    *lead, height, width, colours = patches.shape
    if height != width or height % ref_px:
        raise ScaleError(
            f"a patch of {width} x {height} px does not shrink to {ref_px} px by a whole factor",
            where="shrink",
            mend="cut square patches whose side is a multiple of the transformer's own patch",
        )
    step = height // ref_px
    squares = patches.reshape(*lead, ref_px, step, ref_px, step, colours)
    found: NDArray[np.uint8] = np.floor(squares.mean(axis=(-4, -2)) + 0.5).astype(np.uint8)
    return found


def read_views(
    reader: WindowReader, centre_um: ArrayLike, region_um: ArrayLike, *, patch_um: float, px: int, ref_px: int
) -> Views:
    """A location's patch, its region, and the patch made small.

    Parameters
    ----------
    reader
        Of the slide.
    centre_um, region_um
        (2,) centres of the location and of its region, in the section's frame; the second as of `place_regions`.
    patch_um
        Side of the patch; the region's is three times that.
    px
        Side of both in pixels.
    ref_px
        Side of the small one.

    Raises
    ------
    ScaleError
        As `WindowReader.read`, or `px` is no multiple of `ref_px`.
    """
    patch = reader.read(centre_um, patch_um, px)
    return Views(patch, reader.read(region_um, SIDE * patch_um, px), shrink(patch, ref_px))


@dataclass(frozen=True)
class RegionCuts:
    """How regions of whole sections are cut; each draw may be kept in `section.windows`, to be cut once.

    A run that cycles through a few draws reads no slide after the first of each: epoch e reads draw `e % k`.

    Parameters
    ----------
    px
        Side of a region in pixels, that of a patch.
    patch_um
        Side of a patch; a region's is three times that.
    seed
        With the number of a draw and the location it decides which region is cut. Runs of one seed share what is kept.
    image
        Of the section.
    """

    px: int
    patch_um: float
    seed: int = 0
    image: str = "he"

    def places(self, section: Section, draw: int, rows: NDArray[np.intp] | None = None) -> Regions:
        """The regions of some locations of a section, or of all; no pixel is read.

        Raises
        ------
        SourceError
            The section has no such image, or a picture for each location instead.
        ContractError
            It is unplaced.
        """
        info, which = section.image_info(self.image), slice(None) if rows is None else rows
        return place_regions(
            section.centres_um[which],
            draws(section.n_locations, seed=self.seed, draw=draw, section=section.id)[which],
            patch_um=self.patch_um,
            to_um=info.to_um,
            size_px=info.size_px,
        )

    def fingerprint(self, draw: int) -> str:
        """Names the pixels of a draw in `section.windows`."""
        cut = {"image": self.image, "px": self.px, "region_um": SIDE * self.patch_um, "seed": self.seed, "draw": draw}
        return digest(cut)

    def cache(self, section: Section, draw: int, *, progress: Callable[[int], None] | None = None) -> str:
        """Fill `section.windows` with a draw's regions unless they are there; returns their fingerprint.

        Parameters
        ----------
        progress
            Called with numbers of rows that add up to the section's locations.
        """
        fingerprint, store = self.fingerprint(draw), section.windows
        report = progress or (lambda _: None)
        if store.has(fingerprint):
            report(section.n_locations)
            return fingerprint
        about = {
            "name": f"regions-{self.px}px",
            "kind": "windows",
            "input_px": self.px,
            "draw": draw,
            "seed": self.seed,
        }
        about |= {"image": self.image, "mpp": SIDE * self.patch_um / self.px}
        shape = (section.n_locations, self.px, self.px, 3)
        try:
            with store.writing(fingerprint, shape=shape, dtype=np.uint8, card=about) as (values, there):
                for row, window in self._windows(section, self.places(section, draw).centres_um):
                    values[row] = window
                    report(1)
                there[:] = True
        except StorageError:
            # Another process may have written the same meanwhile, which is as good.
            if not store.has(fingerprint):
                raise
        return fingerprint

    def read(self, section: Section, rows: NDArray[np.intp], draw: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Regions of some locations, out of `section.windows` where the draw is kept, else from the slide.

        Parameters
        ----------
        rows
            (k,) locations.
        draw
            Number of the draw.

        Returns
        -------
        windows
            (k, px, px, 3) uint8.
        cell
            (k,) as in `Regions`.
        """
        places, fingerprint = self.places(section, draw, rows), self.fingerprint(draw)
        if section.windows.has(fingerprint):
            return np.asarray(section.windows.read(fingerprint).values[rows]), places.cell
        out = np.empty((len(rows), self.px, self.px, 3), dtype=np.uint8)
        for at, window in self._windows(section, places.centres_um):
            out[at] = window
        return out, places.cell

    def _windows(self, section: Section, centres_um: NDArray[np.float64]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        reader = section.image(self.image)
        try:
            yield from reader.read_many(centres_um, SIDE * self.patch_um, self.px)
        finally:
            reader.close()
