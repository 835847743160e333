"""Ellipses: nuclei, ducts and strokes, in coordinates along and across their long axis."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Real = TypeVar("Real", np.float32, np.float64)


def turned(
    dx: NDArray[Real], dy: NDArray[Real], cos: NDArray[Real] | Real, sin: NDArray[Real] | Real
) -> tuple[NDArray[Real], NDArray[Real]]:
    """Coordinates along an axis and across it, of points (dx, dy) from its origin.

    Parameters
    ----------
    dx, dy
        Shapes that broadcast with each other and with `cos` and `sin`.
    cos, sin
        Of the axis' direction.
    """
    return dx * cos + dy * sin, dy * cos - dx * sin


def in_radii(
    dx: NDArray[Real],
    dy: NDArray[Real],
    cos: NDArray[Real] | Real,
    sin: NDArray[Real] | Real,
    half_long: NDArray[Real] | Real,
    half_short: NDArray[Real] | Real,
) -> tuple[NDArray[Real], NDArray[Real]]:
    """Coordinates in units of the ellipse's own radii: its outline is the unit circle.

    Parameters
    ----------
    dx, dy, cos, sin
        As in `turned`, from the ellipse's centre and of its long diameter.
    half_long, half_short
        Half of its diameters, in the unit of `dx`.
    """
    along, across = turned(dx, dy, cos, sin)
    return along / half_long, across / half_short


def radius_towards(diameters_um: NDArray[np.float64], turn: NDArray[np.float64]) -> NDArray[np.float64]:
    """µm from the centre of ellipses (..., 2) to their outline, at `turn` (...) radians from the long diameter."""
    a, b = diameters_um[..., 0] / 2, diameters_um[..., 1] / 2
    return np.asarray(a * b / np.hypot(b * np.cos(turn), a * np.sin(turn)))
