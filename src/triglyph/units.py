"""Physical units in types: micrometres, pixels, and micrometres per pixel.

Every number with a unit carries it in its name (`size_um`, `pitch_px`, `mpp`) and, in signatures, in its type.
"""

from __future__ import annotations

import math
from typing import NewType

from triglyph.errors import ScaleError

Um = NewType("Um", float)
"""Micrometres in a section's frame."""
Px = NewType("Px", float)
"""Pixels of an image's level 0; pixel (row i, column j) covers [j, j+1) x [i, i+1)."""
Mpp = NewType("Mpp", float)
"""Micrometres per level-0 pixel."""

MPP_RANGE = (0.02, 50.0)
"""Outside it a scale is a unit mix-up, not a microscope (oil immersion is 0.05; a Visium preview is 20)."""


def checked_mpp(value: object, *, where: object) -> Mpp:
    """`value` as micrometres per pixel, or a `ScaleError` that names `where` it was read."""
    mend = "give the true scale with --mpp (µm per level-0 pixel)"
    try:
        mpp = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ScaleError(f"the pixel size {value!r} is not a number", where=where, mend=mend) from None
    if not math.isfinite(mpp) or not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        low, high = MPP_RANGE
        raise ScaleError(f"a pixel size of {mpp:g} µm/px is outside {low:g}-{high:g}", where=where, mend=mend)
    return Mpp(mpp)
