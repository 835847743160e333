"""Nuclei and the cytoplasm around them, stamped as optical densities at a true µm per pixel.

Sprites of similar size are computed together as one array and then laid on the canvas one by one with `maximum`, so
that overlaps do not add up to black.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from triglyph.tissue.simulate.anatomy import Cells
from triglyph.tissue.simulate.presets import CELL_TYPES, STATES, Nucleus

DENSITY_UNITS = 100.0
"""Optical densities are kept as bytes: 1.0 is 100."""
_EDGE_UM = 0.55
_BATCH = 512


@dataclass(frozen=True)
class Canvas:
    """What cells add to an image; each (height, width) uint8."""

    haematoxylin: NDArray[np.uint8]
    """Optical density x 100 of nuclei."""
    cover: NDArray[np.uint8]
    """255 where a nucleus hides what lies below."""
    eosin: NDArray[np.uint8]
    """Optical density x 100 of cytoplasm."""

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> Canvas:
        return cls(*(np.zeros(shape, dtype=np.uint8) for _ in range(3)))


def draw_cells(
    canvas: Canvas, cells: Cells, looks: dict[str, Nucleus], *, mpp: float, rng: np.random.Generator
) -> None:
    """Stamp every cell on `canvas`."""
    clumps = _clumps(rng, mpp)
    turns = rng.uniform(0, 2 * np.pi, (2, len(cells)))
    shade = np.exp(0.10 * rng.standard_normal(len(cells)))
    lots = rng.random((4, len(cells)))
    for kind, name in enumerate(CELL_TYPES):
        look = looks[name]
        chosen = np.flatnonzero(cells.kind == kind)
        if look.cytoplasm_um:
            _stamp_cytoplasm(canvas.eosin, cells, chosen, look, mpp)
        # Batches of like size waste few pixels on margins.
        chosen = chosen[np.argsort(cells.long_um[chosen], kind="stable")]
        for start in range(0, len(chosen), _BATCH):
            batch = chosen[start : start + _BATCH]
            _stamp_nuclei(canvas, cells, batch, look, mpp, clumps, turns[:, batch], shade[batch], lots[:, batch])


def _clumps(rng: np.random.Generator, mpp: float) -> NDArray[np.float32]:
    """A periodic texture of chromatin clumps about 1 µm wide; 0 ± 1."""
    noise = gaussian_filter(rng.standard_normal((256, 256)), 0.6 / mpp, mode="wrap")
    return (noise / noise.std()).astype(np.float32)


class _Patch:
    """Square pixel neighbourhoods of a batch of cells, and where they fall on the canvas."""

    def __init__(self, xy_um: NDArray[np.float64], half_um: float, mpp: float) -> None:
        self.half = int(np.ceil(half_um / mpp)) + 1
        # The centre of pixel (i, j) lies at ((j + 0.5) mpp, (i + 0.5) mpp).
        centre = xy_um / mpp - 0.5
        self.corner = np.round(centre).astype(np.int64) - self.half
        axis = np.arange(2 * self.half + 1)
        self.index = axis
        self.dx_um = ((self.corner[:, :1] + axis - centre[:, :1]) * mpp).astype(np.float32)[:, None, :]
        self.dy_um = ((self.corner[:, 1:] + axis - centre[:, 1:]) * mpp).astype(np.float32)[:, :, None]

    def lay(self, target: NDArray[np.uint8], sprites: NDArray[np.uint8]) -> None:
        """Maximum of canvas and sprites; what falls outside is cut."""
        height, width = target.shape
        size = 2 * self.half + 1
        for (left, top), sprite in zip(self.corner.tolist(), sprites, strict=True):
            x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size, width), min(top + size, height)
            if x0 < x1 and y0 < y1:
                view = target[y0:y1, x0:x1]
                np.maximum(view, sprite[y0 - top : y1 - top, x0 - left : x1 - left], out=view)


def _stamp_nuclei(
    canvas: Canvas,
    cells: Cells,
    batch: NDArray[np.int64],
    look: Nucleus,
    mpp: float,
    clumps: NDArray[np.float32],
    turns: NDArray[np.float64],
    shade: NDArray[np.float64],
    lots: NDArray[np.float64],
) -> None:
    long_um, short_um = cells.long_um[batch] / 2, cells.short_um[batch] / 2
    patch = _Patch(cells.xy_um[batch], float(long_um.max()) * (1 + look.irregular) + _EDGE_UM, mpp)
    cos = _column(np.cos(cells.angle[batch]))
    sin = _column(np.sin(cells.angle[batch]))
    along = patch.dx_um * cos + patch.dy_um * sin
    across = patch.dy_um * cos - patch.dx_um * sin
    p, q = along / _column(long_um), across / _column(short_um)
    radius = np.sqrt(p * p + q * q) + np.float32(1e-4)
    p, q = p / radius, q / radius
    # cos 2φ, sin 2φ, cos 3φ of the direction, without trigonometry for each pixel.
    double, double_sin, triple = p * p - q * q, 2 * p * q, p * (p * p - 3 * q * q)
    wobble = np.float32(look.irregular)
    outline = 1 + wobble * (
        _column(np.cos(turns[0])) * double + _column(np.sin(turns[0])) * double_sin + _column(np.cos(turns[1])) * triple
    )
    radius = (radius / outline).astype(np.float32)
    inside = np.clip((1 - radius) * _column(np.sqrt(long_um * short_um)) / np.float32(_EDGE_UM) + 0.5, 0, 1)

    rim = np.exp(-(((radius - 0.86) / 0.13) ** 2))
    body = 1 + np.float32(look.vesicular) * (0.45 * rim - 0.42 * np.clip(1 - radius * radius, 0, 1))
    rows = (np.floor(lots[0] * 256).astype(np.int64)[:, None] + patch.index) % 256
    columns = (np.floor(lots[1] * 256).astype(np.int64)[:, None] + patch.index) % 256
    body += np.float32(look.texture) * clumps[rows[:, :, None], columns[:, None, :]]
    if look.nucleoli:
        has = (lots[2] < look.nucleoli).astype(np.float32)
        offset = (lots[3] - 0.5) * 0.8
        spot_um2 = (along - _column(offset * long_um)) ** 2 + (across + _column(offset * short_um * 0.7)) ** 2
        body += _column(0.75 * has) * np.exp(-spot_um2 / np.float32(0.8**2))
    active = np.clip(cells.states[batch, STATES.index("proliferation")], -2, 2) if look.vesicular > 0.4 else 0.0
    density = look.haematoxylin * shade * np.exp(0.14 * np.asarray(active))
    haematoxylin = np.clip(body * inside * _column(density * np.ones(len(batch))) * DENSITY_UNITS, 0, 255)
    patch.lay(canvas.haematoxylin, haematoxylin.astype(np.uint8))
    patch.lay(canvas.cover, (inside * 255).astype(np.uint8))


def _stamp_cytoplasm(
    target: NDArray[np.uint8], cells: Cells, chosen: NDArray[np.int64], look: Nucleus, mpp: float
) -> None:
    for start in range(0, len(chosen), _BATCH):
        batch = chosen[start : start + _BATCH]
        reach = np.sqrt(cells.long_um[batch] * cells.short_um[batch]) / 2 + look.cytoplasm_um
        patch = _Patch(cells.xy_um[batch], float(reach.max()) + 1, mpp)
        distance = np.sqrt(patch.dx_um**2 + patch.dy_um**2)
        inside = np.clip((_column(reach) - distance) / 1.6 + 0.5, 0, 1)
        patch.lay(target, (inside * np.float32(look.eosin * DENSITY_UNITS)).astype(np.uint8))


def _column(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.astype(np.float32)[:, None, None]
