"""Maps of a section: its H&E, and one value or one class per location drawn to scale over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from triglyph.report.style import INK, scale_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PatchCollection

    from triglyph.tissue.section import Section


def draw_tissue(axes: Axes, section: Section, *, fade: float = 0.0, max_px: int = 900) -> None:
    """The H&E in µm, whitened by `fade` (0 to 1) so that what is drawn over it stands out; then its scale bar.

    A section without an image gets empty axes of the right size.
    """
    centres = section.centres_um
    margin = (section.info.pitch_um or section.location_um) * 1.5
    x0, y0 = centres.min(0) - margin
    x1, y1 = centres.max(0) + margin
    if section.has_image():
        reader = section.image()
        image, to_um = reader.thumbnail(max_px)
        reader.close()
        height, width = image.shape[:2]
        (left, top), (right, bottom) = to_um([[0, 0], [width, height]])
        shown = (image.astype(np.float32) * (1 - fade) + 255 * fade).astype(np.uint8)
        axes.imshow(shown, extent=(left, right, bottom, top), interpolation="antialiased", zorder=0)
        # Nothing is shown beside the image, nor does the bar lie there.
        x0, x1 = max(x0, left), min(x1, right)
        y0, y1 = max(y0, min(top, bottom)), min(y1, max(top, bottom))
    axes.set_xlim(x0, x1)
    axes.set_ylim(y1, y0)
    axes.set_aspect("equal")
    axes.set_axis_off()
    scale_bar(axes, width_um=float(x1 - x0))


def draw_values(
    axes: Axes,
    section: Section,
    values: NDArray[np.floating[Any]],
    *,
    cmap: str = "magma",
    limits: tuple[float, float] | None = None,
    alpha: float = 0.9,
) -> PatchCollection:
    """One number per location, NaN left out; returns the artist, for a colour bar."""
    shown = np.isfinite(values)
    patches = _patches(section, shown)
    low, high = limits or tuple(np.nanpercentile(values, [2, 98]))
    patches.set(array=values[shown], cmap=cmap, clim=(low, high), alpha=alpha)
    axes.add_collection(patches)
    return patches


def draw_classes(
    axes: Axes, section: Section, classes: NDArray[np.object_], palette: Mapping[str, str], *, alpha: float = 0.9
) -> None:
    """One class per location; "" is left out."""
    from matplotlib.colors import to_rgba

    shown = classes != ""
    patches = _patches(section, shown)
    patches.set_facecolor([to_rgba(palette[c], alpha) for c in classes[shown]])
    axes.add_collection(patches)


def draw_hollow(axes: Axes, section: Section, where: NDArray[np.bool_], *, colour: str) -> None:
    """Locations that were looked at and not decided: a ring around what is under it."""
    patches = _patches(section, where)
    patches.set(facecolor=(1, 1, 1, 0.55), edgecolor=colour, linewidth=0.7)
    axes.add_collection(patches)


def draw_crosses(axes: Axes, section: Section, where: NDArray[np.bool_], *, colour: str = INK) -> None:
    """A cross over each of some locations, as large as they are."""
    from matplotlib.collections import LineCollection

    arm = 0.36 * max(section.location_um, 0.86 * (section.info.pitch_um or 0.0))
    corners = np.array([[[-arm, -arm], [arm, arm]], [[-arm, arm], [arm, -arm]]])
    lines = section.centres_um[where][:, None, None, :] + corners
    axes.add_collection(LineCollection(list(lines.reshape(-1, 2, 2)), colors=colour, linewidths=0.9, zorder=5))


def class_legend(axes: Axes, palette: Mapping[str, str]) -> None:
    """Names of the classes beside their colours, alone on `axes`."""
    from matplotlib.lines import Line2D

    axes.set_axis_off()
    handles = [Line2D([], [], marker="o", linestyle="", color=c, markersize=7, label=n) for n, c in palette.items()]
    axes.legend(handles=handles, loc="center left", fontsize=8.5, labelcolor=INK, handletextpad=0.3)


def _patches(section: Section, shown: NDArray[np.bool_]) -> PatchCollection:
    """Locations at their true size, or slightly larger where the lattice leaves room, so that small spots are seen."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle, Rectangle

    size = section.location_um
    if section.info.location_shape == "square":
        half = size / 2
        return PatchCollection(
            [Rectangle((x - half, y - half), size, size) for x, y in section.centres_um[shown]], linewidth=0
        )
    radius = max(size, 0.86 * (section.info.pitch_um or size)) / 2
    return PatchCollection([Circle((x, y), radius) for x, y in section.centres_um[shown]], linewidth=0)
