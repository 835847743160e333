"""Nuclei as a window shows them, in its pixels: sizes, shapes, spacing, and how much lies at each scale.

What a reader at one scale learns to see. Nothing here knows a µm: a nucleus that is drawn twice as large has four
times the area and lies in another band. Haematoxylin is first put into units of its section (zero mean, unit spread
over windows all over it), so that one patient's stronger stain is not mistaken for anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial import cKDTree
from skimage.color import hed_from_rgb
from skimage.filters import threshold_otsu

Floats = NDArray[np.float64]

LEAST_PX = 8
"""Smaller specks are no nuclei."""
RADII_PX = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.5, 8.0)
"""Of the granulometry: how much of the nuclei lies further than this from their border."""
SIGMAS_PX = (0.8, 1.1, 1.6, 2.2, 3.1, 4.4, 6.2, 8.8)
"""Of the Laplacians of Gaussians."""
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
DIM = 2 + 3 * len(QUANTILES) + 3 + len(RADII_PX) + 1 + len(SIGMAS_PX)


def haematoxylin(window: NDArray[np.uint8]) -> Floats:
    """(px, px) optical density of haematoxylin, of (px, px, 3) uint8."""
    density = -np.log(np.maximum(window, 1) / 255.0)
    return np.asarray(density @ hed_from_rgb[:, 0])


@dataclass(frozen=True)
class Stain:
    """Haematoxylin of a section."""

    mean: float
    spread: float
    threshold: float
    """Above it, in units of the spread from the mean, is a nucleus."""

    @classmethod
    def of(cls, windows: list[NDArray[np.uint8]]) -> Stain:
        """From some windows all over a section."""
        seen = np.stack([haematoxylin(w) for w in windows])
        # Pen and folds are not what a section's stain is told by.
        seen = np.clip(seen, *np.quantile(seen, (0.02, 0.98)))
        mean, spread = float(seen.mean()), float(seen.std()) + 1e-9
        smooth = np.stack([ndimage.gaussian_filter((of - mean) / spread, 1.0) for of in seen])
        return cls(mean, spread, float(threshold_otsu(smooth)))


def nuclear_features(window: NDArray[np.uint8], stain: Stain) -> Floats:
    """(DIM,) of one (px, px, 3) uint8 window, every length in its pixels; lengths, areas and energies as logarithms.

    Number of nuclei and the share of the window that they cover; quantiles of their area, eccentricity and distance to
    the next; mean and spread of stain within, and spread without; granulometry; energy of the Laplacian of Gaussian at
    each sigma, total and shares. Without nuclei their quantiles are those of one of `LEAST_PX`, round and alone.
    """
    seen = (haematoxylin(window) - stain.mean) / stain.spread
    mask = ndimage.gaussian_filter(seen, 1.0) > stain.threshold
    labels, _ = ndimage.label(mask)
    area = np.bincount(labels.ravel())
    area[0] = 0
    kept = area >= LEAST_PX
    mask, number = kept[labels], int(kept.sum())
    y, x = np.nonzero(mask)
    which = np.cumsum(kept)[labels[y, x]] - 1
    sizes = area[kept].astype(np.float64)
    centre_y, centre_x = (np.bincount(which, of, minlength=number) / sizes for of in (y, x))
    dy, dx = y - centre_y[which], x - centre_x[which]
    yy, xx, xy = (np.bincount(which, of, minlength=number) / sizes for of in (dy * dy, dx * dx, dx * dy))
    # Axes of the ellipse with these moments; a pixel has a moment of 1/12 of its own.
    half, root = (yy + xx) / 2 + 1 / 12, np.sqrt(((yy - xx) / 2) ** 2 + xy**2)
    eccentricity = np.sqrt(np.clip(1 - (half - root) / (half + root), 0, 1))
    centres = np.stack([centre_y, centre_x], axis=1)
    far = float(len(window))
    spacing = cKDTree(centres).query(centres, k=2)[0][:, 1] if number > 1 else np.array([far])
    depth = ndimage.distance_transform_edt(mask)[mask]
    inside, outside = seen[mask], seen[~mask]
    energies = _energies(seen)
    return np.concatenate([
        [np.log1p(number), mask.mean()],
        np.log(_quantiles(sizes, LEAST_PX)),
        _quantiles(eccentricity, 0.0),
        np.log(_quantiles(spacing, far)),
        [_of(np.mean, inside), _of(np.std, inside), _of(np.std, outside)],
        [_of(np.mean, depth > r) for r in RADII_PX],
        [np.log(energies.sum())],
        energies / energies.sum(),
    ])  # fmt: skip


def _quantiles(values: Floats, empty: float) -> Floats:
    return np.quantile(values, QUANTILES) if len(values) else np.full(len(QUANTILES), float(empty))


def _of(statistic: Callable[[Floats], float], values: Floats) -> float:
    return float(statistic(values)) if values.size else 0.0


def _energies(seen: Floats) -> Floats:
    """(sigmas,) mean squares of scale-normalised Laplacians of Gaussians, by Parseval's theorem under a Hann window."""
    px = len(seen)
    taper = np.hanning(px)[:, None] * np.hanning(px)[None, :]
    power = np.abs(fft.rfft2((seen - seen.mean()) * taper)) ** 2
    power[:, 1 : (px + 1) // 2] *= 2  # the half of the plane that a real transform leaves out
    squared = (2 * np.pi) ** 2 * (fft.fftfreq(px)[:, None] ** 2 + fft.rfftfreq(px)[None, :] ** 2)
    of = [(power * (s**2 * squared * np.exp(-(s**2) * squared / 2)) ** 2).sum() for s in SIGMAS_PX]
    return np.array(of) / px**2 / (taper**2).sum() + 1e-12
