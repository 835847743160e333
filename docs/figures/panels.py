"""What the figures of docs/simulator.md share: pictures of a specimen in µm, panels of tissue, files small enough."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from triglyph.report.style import INK
from triglyph.tissue.simulate.picture.he import he_pixels
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen

IMAGES = Path(__file__).parent.parent / "images"
LARGEST_BYTES = 600_000
_QUALITIES = (88, 82, 76, 70, 64, 58, 52)

Box = tuple[float, float, float, float]
"""Left, upper, width and height in µm."""


def specimen(name: str, patient: int, overrides: Sequence[str] = (), section: int = 0) -> Specimen:
    """A section of a patient (from 0) of the preset `name`."""
    return Specimen(preset(name, overrides=overrides), patient, section)


def he(s: Specimen) -> tuple[NDArray[np.uint8], float]:
    """The H&E and its µm per pixel."""
    pixels, dye = he_pixels(s)
    return pixels, dye.mpp


def crop(pixels: NDArray[np.uint8], mpp: float, box: Box, width_px: int) -> NDArray[np.uint8]:
    """The part `box` of a picture, `width_px` wide; white where it reaches beyond the picture."""
    left, upper, width_um, height_um = box
    height_px = round(width_px * height_um / width_um)
    image = Image.fromarray(pixels)
    scale = mpp * width_px / width_um
    x0, y0 = max(left, 0.0), max(upper, 0.0)
    x1, y1 = min(left + width_um, image.width * mpp), min(upper + height_um, image.height * mpp)
    size = max(round((x1 - x0) / mpp * scale), 1), max(round((y1 - y0) / mpp * scale), 1)
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    part = image.resize(size, method, box=(x0 / mpp, y0 / mpp, x1 / mpp, y1 / mpp))
    page = Image.new("RGB", (width_px, height_px), "white")
    page.paste(part, (round((x0 - left) / mpp * scale), round((y0 - upper) / mpp * scale)))
    return np.asarray(page)


def frame(axes: Axes, box: Box, *, bar: bool = False, outline: bool = True) -> None:
    """An axes that shows `box` in µm, y down, without ticks."""
    left, upper, width_um, height_um = box
    axes.set(xticks=[], yticks=[], xlim=(left, left + width_um), ylim=(upper + height_um, upper), aspect="equal")
    for spine in axes.spines.values():
        spine.set(visible=outline, linewidth=0.5, color="0.55")
    if bar:
        scale_bar(axes, box)


def scale_bar(axes: Axes, box: Box) -> None:
    """A round length of about a fourth of the panel in its lower left corner, on a plate."""
    left, upper, width_um, height_um = box
    lengths = [length * 10**k for k in range(5) for length in (1, 2, 5)]
    bar_um = min(lengths, key=lambda length: abs(length - width_um / 4))
    inch_um = width_um / (axes.get_position().width * axes.figure.get_figwidth())
    pad, height = 0.05 * inch_um, 0.2 * inch_um
    x, y = left + pad, upper + height_um - pad
    axes.add_patch(
        Rectangle((x, y - height), bar_um + 2 * pad, height, facecolor="white", edgecolor="none", alpha=0.85, zorder=8)
    )
    axes.plot([x + pad, x + pad + bar_um], [y - pad] * 2, color=INK, lw=2, solid_capstyle="butt", zorder=9)
    name = f"{bar_um / 1000:g} mm" if bar_um >= 1000 else f"{bar_um:g} µm"
    axes.text(x + pad + bar_um / 2, y - 1.5 * pad, name, ha="center", va="bottom", fontsize=7, color=INK, zorder=9)


def place_axes(
    figure: Figure, shape: tuple[int, int], panel: tuple[float, float], *, gutter: float, above: float,
    below: float = 0.0, left: float = 0.0,
) -> NDArray[np.object_]:  # fmt: skip
    """Axes of `panel` (width, height) inches, with room above and below each row; the figure is made to fit."""
    rows, columns = shape
    width, height = left + columns * panel[0] + (columns - 1) * gutter, rows * (above + panel[1] + below)
    figure.set_layout_engine("none")
    figure.set_size_inches(width, height)
    grid = np.empty(shape, dtype=object)
    for row, column in np.ndindex(shape):
        x, y = left + column * (panel[0] + gutter), height - above - panel[1] - row * (above + panel[1] + below)
        grid[row, column] = figure.add_axes((x / width, y / height, panel[0] / width, panel[1] / height))
    return grid


def show(axes: Axes, pixels: NDArray[np.uint8], mpp: float, box: Box, *, width_px: int, bar: bool = True) -> None:
    """The part `box` of a picture, in µm."""
    left, upper, width_um, height_um = box
    extent = (left, left + width_um, upper + height_um, upper)
    axes.imshow(crop(pixels, mpp, box, width_px), extent=extent, interpolation="antialiased")
    frame(axes, box, bar=bar)


def tiles(
    axes: Axes, centres_um: NDArray[np.float64], values: NDArray[np.floating], pitch_um: float, *, sides: int = 6,
    cmap: str = "magma", limits: tuple[float, float] | None = None,
) -> PolyCollection:  # fmt: skip
    """Values at locations, each filling its place on the lattice: a hexagon, or with 4 `sides` a square."""
    turns = np.pi / sides + np.arange(sides) * 2 * np.pi / sides + (np.pi / 6 if sides == 6 else 0.0)
    corners = pitch_um / 2 / np.cos(np.pi / sides) * np.stack([np.sin(turns), np.cos(turns)], 1)
    drawn = PolyCollection(centres_um[:, None] + corners, array=values, cmap=cmap, linewidths=0.15, edgecolors="face")
    low, high = limits or tuple(np.quantile(values, (0.02, 0.98)))
    drawn.set_clim(low, high)
    axes.add_collection(drawn)
    return drawn


def save(figure: Figure, path: Path, *, dpi: int) -> None:
    """As the best JPEG of at most `LARGEST_BYTES`; raises ValueError where none is small enough."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="jpg", dpi=dpi, pil_kwargs={"quality": quality, "optimize": True})
        if len(buffer.getvalue()) <= LARGEST_BYTES:
            path.write_bytes(buffer.getvalue())
            return
    raise ValueError(f"{path.name} is larger than {LARGEST_BYTES} bytes at {dpi} dpi: make it smaller")
