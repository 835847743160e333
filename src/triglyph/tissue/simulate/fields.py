"""Smooth random fields on a grid of known spacing, and their enlargement to pixels.

A field is drawn on a coarse grid (half its length scale), smoothed there and enlarged by bicubic interpolation: the
cost depends on the length scale, not on the number of pixels. Fields of several octaves are summed on a grid that
suits the shortest, so that each field is enlarged to the full grid once.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

Field = NDArray[np.float32]


class Draw(Protocol):
    """Gives a field by name; the name is its stream, so fields do not depend on the order they are asked for."""

    def __call__(self, name: str, *octaves: tuple[float, float], change: float = 1.0) -> Field:
        """Sum of standard normal fields, each given as (length in µm, weight).

        `change` scales how far the field differs between adjacent sections.
        """


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
    # Not more than the field's own side: inside one coarse step it would hold one value.
    spacing = min(max(length_um / 2, step_um), side * step_um)
    n = math.ceil(side * step_um / spacing) + 8
    coarse = gaussian_filter(rng.standard_normal((n, n)), 1.0, mode="wrap")
    span = side * step_um / spacing
    # A random phase, so that the coarse grid does not show in the same place in every field.
    x, y = rng.uniform(1.5, 4.5, 2)
    field = resize(coarse.astype(np.float32), (side, side), box=(x, y, x + span, y + span))
    return (field - field.mean()) / field.std()


def layered_noise(
    layers: list[tuple[np.random.Generator, float]], side: int, step_um: float, octaves: tuple[tuple[float, float], ...]
) -> Field:
    """Octaves (length in µm, weight) of several generators, each with its own weight, summed and enlarged once."""
    extent = side * step_um
    # A quarter of the shortest length still follows it closely; the sum is cheap there.
    between = max(min(length for length, _ in octaves) / 4, step_um)
    n = min(math.ceil(extent / between), side)
    total = np.zeros((n, n), dtype=np.float32)
    for rng, weight in layers:
        for length_um, share in octaves:
            total += np.float32(weight * share) * smooth_noise(rng, n, extent / n, length_um)
    return total if n == side else resize(total, (side, side))


def resize(field: Field, shape: tuple[int, int], *, box: tuple[float, float, float, float] | None = None) -> Field:
    """`field`, or its part `box` (left, upper, right, lower; in grid points), at `shape` (rows, columns); bicubic."""
    image = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=box))


def strip(field: Field, rows: tuple[int, int], width: int, scale: float) -> Field:
    """Pixel rows `rows` of `field` enlarged to `width` columns, `scale` (below 1) grid points per pixel.

    Columns are interpolated by bicubic, rows between them linearly: few grid rows are widened for many pixel rows.
    Strips of one field join without a seam, whatever their height.
    """
    place = np.clip((np.arange(*rows) + 0.5) * scale - 0.5, 0, len(field) - 1)
    above = np.minimum(place.astype(np.int64), len(field) - 2)
    first, last = int(above[0]), int(above[-1]) + 2
    wide = resize(field[first:last], (last - first, width), box=(0.0, 0.0, width * scale, float(last - first)))
    part = (place - above).astype(np.float32)[:, None]
    out = np.empty((len(place), width), dtype=np.float32)
    # All pixel rows between two grid rows at a time: nothing is gathered.
    starts = np.searchsorted(above, np.arange(first, last))
    for i in range(last - first - 1):
        here = slice(starts[i], starts[i + 1])
        np.multiply(wide[i + 1] - wide[i], part[here], out=out[here])
        out[here] += wide[i]
    return out


def sample(field: Field, xy_um: NDArray[np.float64], step_um: float) -> Field:
    """The nearest grid value at each point of `xy_um` (n, 2)."""
    index = np.clip((xy_um / step_um).astype(np.int64), 0, np.array(field.shape)[::-1] - 1)
    return field[index[:, 1], index[:, 0]]


def step(x: NDArray[np.floating[Any]], at: float | NDArray[np.floating[Any]], width: float) -> Field:
    """A smooth step from 0 to 1 around `at`, `width` wide."""
    t = np.subtract(x, at - width / 2, dtype=np.float32)
    t *= np.float32(1 / width)
    np.clip(t, 0, 1, out=t)
    rest = np.float32(3) - 2 * t
    t *= t
    t *= rest
    return t
