"""Planar affine maps between an image's pixels and a section's µm frame.

Pixel coordinates are continuous: pixel (row i, column j) covers x in [j, j+1), y in [i, i+1).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.cards import Frozen
from triglyph.errors import ScaleError
from triglyph.units import Mpp


class Affine(Frozen):
    """`x' = a x + b y + c`, `y' = d x + e y + f`; from level-0 pixels to µm unless said otherwise."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    @classmethod
    def scale(cls, mpp: float, *, origin_um: tuple[float, float] = (0.0, 0.0)) -> Affine:
        """The frame that is the image itself, measured in µm."""
        return cls(a=mpp, b=0.0, c=origin_um[0], d=0.0, e=mpp, f=origin_um[1])

    @classmethod
    def from_matrix(cls, matrix: ArrayLike) -> Affine:
        """From a 2x3 or 3x3 matrix."""
        m = np.asarray(matrix, dtype=np.float64)
        return cls(a=m[0, 0], b=m[0, 1], c=m[0, 2], d=m[1, 0], e=m[1, 1], f=m[1, 2])

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The 3x3 matrix."""
        return np.array([[self.a, self.b, self.c], [self.d, self.e, self.f], [0.0, 0.0, 1.0]])

    @property
    def steps(self) -> tuple[Mpp, Mpp]:
        """µm per pixel along the image's x and along its y."""
        return Mpp(math.hypot(self.a, self.d)), Mpp(math.hypot(self.b, self.e))

    @property
    def mpp(self) -> Mpp:
        """Geometric mean of µm per pixel."""
        return Mpp(math.sqrt(abs(self.a * self.e - self.b * self.d)))

    def __call__(self, xy: ArrayLike) -> NDArray[np.float64]:
        """Map points of shape (..., 2)."""
        m = self.matrix
        return np.asarray(xy, dtype=np.float64) @ m[:2, :2].T + m[:2, 2]

    def inverse(self) -> Affine:
        """The map back, from µm to pixels."""
        m = self.matrix
        if abs(np.linalg.det(m)) < 1e-12:
            raise ScaleError("the image's affine is singular", mend="give a map with an area")
        return Affine.from_matrix(np.linalg.inv(m))

    def then(self, after: Affine) -> Affine:
        """`after` applied to what this one gives."""
        return Affine.from_matrix(after.matrix @ self.matrix)
