"""Nuclei and the cytoplasm around them, stamped as optical densities at a true µm per pixel.

Sprites of similar size are computed together as one array and then laid on the canvas one by one with `maximum`, so
that overlaps do not add up to black.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from triglyph.tissue.simulate.anatomy.ellipses import turned
from triglyph.tissue.simulate.anatomy.tissue import Cells
from triglyph.tissue.simulate.knobs.anatomy import Nucleus
from triglyph.tissue.simulate.knobs.names import CELL_TYPES
from triglyph.tissue.simulate.knobs.states import STATES, Dial
from triglyph.tissue.simulate.picture.patches import Patches, column

DENSITY_UNITS = 100.0
"""Optical densities are kept as bytes: 1.0 is 100."""
_EDGE_UM = 0.6
_BATCH_PX = 150_000
"""Pixels of the sprites computed together: few enough for the processor's cache."""


@dataclass(frozen=True)
class Canvas:
    """What cells add to an image."""

    nuclei: NDArray[np.uint8]
    """(height, width, 2): `haematoxylin` and `cover`, side by side because both are stamped at once."""
    eosin: NDArray[np.uint8]
    """(height, width) optical density x 100 of cytoplasm."""

    @property
    def haematoxylin(self) -> NDArray[np.uint8]:
        """(height, width) optical density x 100 of nuclei."""
        return self.nuclei[..., 0]

    @property
    def cover(self) -> NDArray[np.uint8]:
        """(height, width) 255 where a nucleus hides what lies below."""
        return self.nuclei[..., 1]

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> Canvas:
        """An empty canvas of (height, width)."""
        return cls(np.zeros((*shape, 2), dtype=np.uint8), np.zeros(shape, dtype=np.uint8))


def draw_cells(
    canvas: Canvas,
    cells: Cells,
    looks: dict[str, Nucleus],
    *,
    mpp: float,
    rng: np.random.Generator,
    dial: Dial = Dial(),  # noqa: B008  frozen
    darker: NDArray[np.float64] | None = None,
) -> None:
    """Stamp every cell on `canvas`.

    Parameters
    ----------
    dial
        How far states show in nuclei.
    darker
        (cells,) added to the log density of each nucleus; none by default.
    """
    number = len(cells)
    clumps = _clumps(rng, mpp)
    turns = rng.uniform(0, 2 * np.pi, (2, number))
    # Nuclei cut at their cap are pale.
    shade = 0.10 * rng.standard_normal(number) - 0.5 * rng.random(number) ** 5
    lots = rng.random((4, number))
    # Sections are thicker than the focus is deep: some nuclei lie above or below it.
    # No edge is narrower than a pixel, or thin nuclei would look like stairs.
    edges_um = max(_EDGE_UM, mpp) * np.exp(1.5 * rng.random(number) ** 2)
    if darker is not None:
        shade = shade + darker
    active, pleomorphic = (
        dial.strength(name)[0] * np.clip(cells.states[:, STATES.index(name)], -2, 2)
        for name in ("proliferation", "pleomorphism")
    )
    for kind, name in enumerate(CELL_TYPES):
        look = looks[name]
        chosen = np.flatnonzero(cells.kind == kind)
        if look.cytoplasm_um:
            _stamp_cytoplasm(canvas.eosin, cells, chosen, look, mpp)
        # Batches of like size waste few pixels on margins.
        chosen = chosen[np.argsort(cells.long_um[chosen], kind="stable")]
        for batch in _batches(cells, chosen, 1.4, mpp):
            degree, own = pleomorphic[batch] * (name == "tumour"), shade[batch]
            if name == "tumour":
                # Hyperchromasia hits some nuclei of a pleomorphic tumour, not all alike.
                own = own + 0.14 * active[batch] + 0.16 * degree * (0.4 + 1.2 * lots[0, batch])
            chromatin = _Chromatin(
                own, look.irregular * np.exp(0.4 * degree), look.texture * np.exp(0.35 * degree), turns[:, batch],
                lots[:, batch], edges_um[batch],
            )  # fmt: skip
            _stamp_nuclei(canvas, cells, batch, look, mpp, clumps, chromatin)


@dataclass(frozen=True)
class _Chromatin:
    """What differs between nuclei of one type; a row, or a column of a matrix, for each."""

    shade: NDArray[np.float64]
    """Added to the log density."""
    irregular: NDArray[np.float64]
    texture: NDArray[np.float64]
    turns: NDArray[np.float64]
    """(2, n) directions of the bulges."""
    lots: NDArray[np.float64]
    """(4, n) uniform numbers."""
    edge_um: NDArray[np.float64]
    """Width of the edge."""


def _batches(cells: Cells, chosen: NDArray[np.int64], room: float, mpp: float) -> Iterator[NDArray[np.int64]]:
    """Parts of `chosen`, whose sprites measure about `room` x the long diameter, of some `_BATCH_PX` pixels."""
    start = 0
    while start < len(chosen):
        side_px = cells.long_um[chosen[start]] * room / mpp + 4
        number = max(8, int(_BATCH_PX / side_px**2))
        yield chosen[start : start + number]
        start += number


def _clumps(rng: np.random.Generator, mpp: float) -> NDArray[np.float32]:
    """A texture of chromatin clumps about 1 µm wide, 0 ± 1; larger than any nucleus."""
    side = int(140 / mpp)
    noise = gaussian_filter(rng.standard_normal((side, side)).astype(np.float32), 0.6 / mpp, mode="wrap")
    return noise / noise.std()


def _lay(target: NDArray[np.uint8], patches: Patches, sprites: NDArray[np.uint8]) -> None:
    """Maximum of canvas and sprites; what falls outside is cut."""
    for number, there, here in patches.windows(target.shape):
        view = target[there]
        np.maximum(view, sprites[number][here], out=view)


def _stamp_nuclei(
    canvas: Canvas,
    cells: Cells,
    batch: NDArray[np.int64],
    look: Nucleus,
    mpp: float,
    clumps: NDArray[np.float32],
    own: _Chromatin,
) -> None:
    turns, lots = own.turns, own.lots
    long_um, short_um = cells.long_um[batch] / 2, cells.short_um[batch] / 2
    # A spindle's tips fade over more than its flanks.
    reach_um = float((long_um * (1 + 1.2 * own.irregular + 0.4 * own.edge_um / short_um)).max())
    patches = Patches(cells.xy_um[batch], reach_um, mpp)
    cos = column(np.cos(cells.angle[batch]))
    sin = column(np.sin(cells.angle[batch]))
    along, across = turned(patches.dx_um, patches.dy_um, cos, sin)
    p, q = along / column(long_um), across / column(short_um)
    radius = np.sqrt(p * p + q * q) + np.float32(1e-4)
    p, q = p / radius, q / radius
    # cos 2φ, sin 2φ, cos 3φ of the direction, without trigonometry for each pixel.
    double, double_sin, triple = p * p - q * q, 2 * p * q, p * (p * p - 3 * q * q)
    outline = 1 + column(own.irregular) * (
        column(np.cos(turns[0])) * double + column(np.sin(turns[0])) * double_sin + column(np.cos(turns[1])) * triple
    )
    radius = (radius / outline).astype(np.float32)
    # Edges fade over a length across the flanks, which are most of the outline; spindles taper.
    scale_um = np.minimum(np.sqrt(long_um * short_um), 1.4 * short_um)
    inside = np.clip((1 - radius) * column(scale_um / own.edge_um) + 0.5, 0, 1)

    body: NDArray[np.float32] | np.float32 = np.float32(1)
    if look.vesicular:
        rim = np.exp(-(((radius - 0.86) / 0.13) ** 2))
        clearing = column(look.vesicular * (0.35 + 1.3 * lots[3]))
        body = body + clearing * (0.4 * rim - 0.42 * np.clip(1 - radius * radius, 0, 1))
    # Every nucleus has its own window of the texture.
    size = patches.size
    free = len(clumps) - size
    corner = np.floor(lots[:2] * free).astype(np.int64)
    windows = sliding_window_view(clumps, (size, size))
    body = body + column(own.texture) * windows[corner[0], corner[1]]
    if look.nucleoli:
        has = (lots[2] < look.nucleoli).astype(np.float32)
        offset = (lots[3] - 0.5) * 0.8
        spot_um2 = (along - column(offset * long_um)) ** 2 + (across + column(offset * short_um * 0.7)) ** 2
        body += column(0.75 * has) * np.exp(-spot_um2 / np.float32(0.8**2))
    density = look.haematoxylin * np.exp(own.shade) * DENSITY_UNITS
    sprites = np.empty((*inside.shape, 2), dtype=np.uint8)
    sprites[..., 0] = np.clip(body * inside * column(density), 0, 255)
    sprites[..., 1] = inside * 255
    _lay(canvas.nuclei, patches, sprites)


def _stamp_cytoplasm(
    target: NDArray[np.uint8], cells: Cells, chosen: NDArray[np.int64], look: Nucleus, mpp: float
) -> None:
    chosen = chosen[np.argsort(cells.long_um[chosen], kind="stable")]
    for batch in _batches(cells, chosen, 1.4 + 2 * look.cytoplasm_um / look.long_um, mpp):
        reach = np.sqrt(cells.long_um[batch] * cells.short_um[batch]) / 2 + look.cytoplasm_um
        patches = Patches(cells.xy_um[batch], float(reach.max()) + 1, mpp)
        distance = np.sqrt(patches.dx_um**2 + patches.dy_um**2)
        inside = np.clip((column(reach) - distance) / 1.6 + 0.5, 0, 1)
        _lay(target, patches, (inside * np.float32(look.eosin * DENSITY_UNITS)).astype(np.uint8))
