"""Patches: square pixel neighbourhoods of a batch of cells, computed together and then laid on an image one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Window = tuple[slice, slice]


class Patches:
    """Neighbourhoods of equal size around each cell.

    Parameters
    ----------
    xy_um
        (cells, 2) centres.
    half_um
        What must fit in on each side of a centre.
    mpp
        µm per pixel of the image.
    """

    def __init__(self, xy_um: NDArray[np.float64], half_um: float, mpp: float) -> None:
        half = int(np.ceil(half_um / mpp)) + 1
        self.size = 2 * half + 1
        """Pixels along each side."""
        # The centre of pixel (i, j) lies at ((j + 0.5) mpp, (i + 0.5) mpp).
        centre = xy_um / mpp - 0.5
        self._corner = np.round(centre).astype(np.int64) - half
        at = self._corner[:, :, None] + np.arange(self.size) - centre[:, :, None]
        self.dx_um = (at[:, 0] * mpp).astype(np.float32)[:, None, :]
        """(cells, 1, size) of the columns from the cell's centre."""
        self.dy_um = (at[:, 1] * mpp).astype(np.float32)[:, :, None]
        """(cells, size, 1) of the rows from the cell's centre."""

    def windows(self, shape: tuple[int, ...]) -> Iterator[tuple[int, Window, Window]]:
        """Of each cell: its number, rows and columns of the image of `shape` that it meets, and those of its patch."""
        height, width = shape[:2]
        for number, (left, top) in enumerate(self._corner.tolist()):
            x0, y0 = max(left, 0), max(top, 0)
            x1, y1 = min(left + self.size, width), min(top + self.size, height)
            if x0 < x1 and y0 < y1:
                there = (slice(y0, y1), slice(x0, x1))
                yield number, there, (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def column(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """(cells,) values as (cells, 1, 1), to go with patches (cells, size, size)."""
    return values.astype(np.float32)[:, None, None]
