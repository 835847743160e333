"""Smooth random fields on a grid of known spacing, and their enlargement to pixels.

A field is drawn on a coarse grid (half its length scale), smoothed there and enlarged by bicubic interpolation: the
cost depends on the length scale, not on the number of pixels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

Field = NDArray[np.float32]


def smooth_noise(rng: np.random.Generator, side: int, step_um: float, length_um: float) -> Field:
    """A Gaussian field of mean 0 and standard deviation 1.

    Parameters
    ----------
    side
        Grid points along each side.
    step_um
        Distance of grid points.
    length_um
        Distance over which values stay alike; below two grid steps the field is white noise, smoothed there.
    """
    spacing = max(length_um / 2, step_um)
    n = math.ceil(side * step_um / spacing) + 8
    coarse = gaussian_filter(rng.standard_normal((n, n)), 1.0, mode="wrap")
    span = side * step_um / spacing
    # A random phase, so that the coarse grid does not show in the same place in every field.
    x, y = rng.uniform(1.5, 4.5, 2)
    field = resize(coarse.astype(np.float32), (side, side), box=(x, y, x + span, y + span))
    return (field - field.mean()) / field.std()


def resize(field: Field, shape: tuple[int, int], *, box: tuple[float, float, float, float] | None = None) -> Field:
    """`field`, or its part `box` (left, upper, right, lower; in grid points), at `shape` (rows, columns); bicubic."""
    image = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=box))


def strip(field: Field, rows: tuple[int, int], shape: tuple[int, int], scale: float) -> Field:
    """Pixel rows `rows` of `field` enlarged to an image of `shape`, `scale` grid points per pixel.

    Strips of one field join without a seam: each is interpolated from the whole field.
    """
    box = (0.0, rows[0] * scale, shape[1] * scale, rows[1] * scale)
    return resize(field, (rows[1] - rows[0], shape[1]), box=box)


def sample(field: Field, xy_um: NDArray[np.float64], step_um: float) -> Field:
    """The nearest grid value at each point of `xy_um` (n, 2)."""
    index = np.clip((xy_um / step_um).astype(np.int64), 0, np.array(field.shape)[::-1] - 1)
    return field[index[:, 1], index[:, 0]]


def step(x: NDArray[np.floating[Any]], at: float | NDArray[np.floating[Any]], width: float) -> Field:
    """A smooth step from 0 to 1 around `at`, `width` wide."""
    t = np.clip((x - (at - width / 2)) / width, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)
