"""Tiles of labelled images, and many of them side by side in one: how SpatialWhisperer's evaluation made its images.

Its provider cuts images into tiles of 224 px whose last row and column lie flush with the far edge, so that they
overlap their neighbours, and numbers them row by row. The evaluation lays tiles by number into a near-square grid, not
into the place they came from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from triglyph.errors import ContractError
from triglyph.tissue.readers.nuclei import Nuclei


def near_square(n: int) -> tuple[int, int]:
    """Rows and columns of the grid for `n` tiles: a square, or one column more than the side of the last full one."""
    side = math.isqrt(n)
    columns = side if side * side == n else side + 1
    return math.ceil(n / columns), columns


def tiles(found: Nuclei, px: int, *, where: object) -> list[Nuclei]:
    """Squares of `px` that cover an image, row by row.

    Raises
    ------
    ContractError
        The image is smaller than one.
    """
    height, width = found.cells.shape
    if min(height, width) < px:
        raise ContractError(
            f"an image of {width} x {height} px holds no tile of {px}", where=where, mend="leave it out with --only"
        )
    starts = [[min(i * px, size - px) for i in range(math.ceil(size / px))] for size in (height, width)]
    squares = [(slice(y, y + px), slice(x, x + px)) for y in starts[0] for x in starts[1]]
    return [Nuclei(found.image[at], found.cells[at], found.kinds[at]) for at in squares]


def montage(pieces: Sequence[Nuclei], *, slot_px: int | None = None, ground: int = 0) -> Nuclei:
    """Pieces of one size in a near-square grid, each in the middle of a slot; their cells are numbered anew.

    Parameters
    ----------
    slot_px
        Side of a slot; the pieces' own height and width if None.
    ground
        Grey level between pieces, and in slots that stay empty.
    """
    height, width = pieces[0].cells.shape
    high, wide = (height, width) if slot_px is None else (slot_px, slot_px)
    rows, columns = near_square(len(pieces))
    image = np.full((rows * high, columns * wide, 3), ground, dtype=np.uint8)
    cells = np.zeros(image.shape[:2], dtype=np.int64)
    kinds = np.zeros_like(cells)
    known = 0
    for i, piece in enumerate(pieces):
        y, x = i // columns * high + (high - height) // 2, i % columns * wide + (wide - width) // 2
        at = slice(y, y + height), slice(x, x + width)
        image[at], kinds[at] = piece.image, piece.kinds
        cells[at] = np.where(piece.cells > 0, piece.cells + known, 0)
        known += int(piece.cells.max())
    return Nuclei(image, cells, kinds)
