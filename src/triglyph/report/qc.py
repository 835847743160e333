"""The picture that shows whether a section was read rightly.

On the left the whole H&E, in the middle the part under the locations with every location drawn at its true size and
coloured by its counts, on the right the histogram of counts and in words: patient, platform, scale and where it came
from, and whatever the reader left out. A wrong scale, a flipped axis or a shifted array is seen at once: spots leave
the tissue, or do not tile.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from triglyph.report.qc_samples import draw_samples, facts
from triglyph.storage import atomic_file
from triglyph.tissue.cells import CELLS
from triglyph.tissue.frames import Affine
from triglyph.tissue.section import ImageInfo, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

THUMBNAIL_PX = 1600
_INK, _GREY = "#1a1a1a", "#6b6b6b"
_PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#994455", "#997700", "#004488")


def write_qc(section: Section, path: Path) -> Path:
    """Draw a section's picture to `path` (PNG), atomically.

    Raises
    ------
    SourceError
        The section's image does not open.
    StorageError
        The disk is full or read-only.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    info = section.info
    cells = section.table.obsm.get(CELLS)
    counted = section.table.X if cells is None else cells
    totals = np.asarray(counted.sum(axis=1), dtype=np.float64).ravel()
    genes = np.diff(section.table.X.indptr)
    figure = Figure(figsize=(17, 6.6), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    if info.location_um is None:
        draw_samples(figure, section)
    else:
        _draw_tissue(figure, section, totals, info.location_um)
    if info.n_genes:
        _histogram(figure.add_axes((0.79, 0.63, 0.2, 0.26)), totals)
    _words(figure.add_axes((0.775, 0.02, 0.22, 0.54)), section, totals, genes)
    figure.text(0.012, 0.985, info.id, ha="left", va="top", fontsize=17, fontweight="bold", color=_INK)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
    return path


def _draw_tissue(figure: Figure, section: Section, totals: NDArray[np.float64], size_um: float) -> None:
    """The whole image, and beside it the locations at their true size."""
    info, image = section.info, _image(section)
    whole = _whole(section.centres_um, size_um, image)
    near = _near(section.centres_um, size_um, image)
    plain, spots = _axes(figure, (0.012, 0.35), whole), _axes(figure, (0.372, 0.35), near)
    _show_tissue(plain, image, whole)
    _show_tissue(spots, image, near)
    drawn = _draw_locations(spots, section, totals, size_um, over_image=image is not None)
    if image is None:
        _draw_labels(plain, section, size_um)
    else:
        _outline(plain, near)
    place = spots.get_position()
    bar = figure.colorbar(drawn, cax=figure.add_axes((place.x1 + 0.006, place.y0, 0.008, place.height)))
    bar.ax.tick_params(which="both", labelsize=8, colors=_GREY, length=2)
    bar.outline.set_visible(False)
    plain_numbers(bar.ax.yaxis)
    _scale_bar(plain, whole)
    _scale_bar(spots, near)
    plain.set_title(_image_title(image), fontsize=10, color=_GREY, loc="left")
    spots.set_title(
        f"{info.n_locations:,} {'spots' if info.location_shape == 'circle' else 'bins'} of {size_um:g} µm "
        "at true size, coloured by counts",
        fontsize=10,
        color=_GREY,
        loc="left",
    )


Thumbnail = tuple[NDArray[np.uint8], Affine, ImageInfo]


def _image(section: Section) -> Thumbnail | None:
    """Pixels, their map to µm, and the record of the full image, or of the preview, or nothing."""
    from PIL import Image

    from triglyph.tissue.windows import WindowReader

    infos = sorted(section.info.images, key=lambda i: i.role)  # "full" sorts before "preview"
    if not infos:
        return None
    info = infos[0]
    path = section.image_path(info)
    if info.role == "full":
        reader = WindowReader(path, to_um=info.to_um, mpp_source=info.mpp_source)
        try:
            pixels, to_um = reader.thumbnail(THUMBNAIL_PX)
        finally:
            reader.close()
        return pixels, to_um, info
    with Image.open(path) as picture:
        rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB")), info.to_um, info


Box = tuple[float, float, float, float]
"""Left, right, top, bottom in µm."""


def _whole(centres: NDArray[np.float64], size_um: float, image: Thumbnail | None) -> Box:
    """The whole image, or all locations."""
    if image is None:
        return _near(centres, size_um, image)
    pixels, to_um, _ = image
    height, width = pixels.shape[:2]
    corners = to_um([(0, 0), (width, 0), (0, height), (width, height)])
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return float(left), float(right), float(top), float(bottom)


def _near(centres: NDArray[np.float64], size_um: float, image: Thumbnail | None) -> Box:
    """The locations with a margin, wider below for the scale bar; no more than the image."""
    (left, top), (right, bottom) = centres.min(axis=0) - size_um, centres.max(axis=0) + size_um
    side = max(right - left, bottom - top, 4 * size_um)
    left, right, top = left - 0.05 * side, right + 0.05 * side, top - 0.05 * side
    bottom += 0.11 * side
    if image is not None:
        x0, x1, y0, y1 = _whole(centres, size_um, image)
        left, right, top, bottom = max(left, x0), min(right, x1), max(top, y0), min(bottom, y1)
    return float(left), float(right), float(top), float(bottom)


def _axes(figure: Figure, columns: tuple[float, float], box: Box) -> Axes:
    """Axes of the shape of `box`, as large as fits, at the top left of their column (left, width)."""
    left, width = columns
    bottom, height = 0.03, 0.86
    wide, high = figure.get_size_inches()
    shape = (box[1] - box[0]) / (box[3] - box[2])
    room = width * wide, height * high
    w, h = (room[0], room[0] / shape) if room[0] / shape <= room[1] else (room[1] * shape, room[1])
    return figure.add_axes((left, bottom + height - h / high, w / wide, h / high))


def _outline(axes: Axes, box: Box) -> None:
    """Where the middle picture lies."""
    from matplotlib.patches import Rectangle

    left, right, top, bottom = box
    axes.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=_INK, linewidth=0.8, linestyle=":")
    )


def _show_tissue(axes: Axes, image: Thumbnail | None, box: Box) -> None:
    from matplotlib.transforms import Affine2D

    left, right, top, bottom = box
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)  # y grows downwards, as in the image
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d0d0d0")
    if image is None:
        axes.set_facecolor("#f7f7f7")
        return
    pixels, to_um, _ = image
    height, width = pixels.shape[:2]
    drawn = axes.imshow(pixels, extent=(0, width, height, 0), interpolation="antialiased")
    drawn.set_transform(Affine2D(to_um.matrix) + axes.transData)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _draw_locations(
    axes: Axes, section: Section, totals: NDArray[np.float64], size_um: float, *, over_image: bool
) -> ScalarMappable:
    """Every location at its true size; colour is the logarithm of its counts, 1st to 99th percentile."""
    from matplotlib.collections import EllipseCollection, PatchCollection
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    centres = section.centres_um
    shown = np.maximum(totals, 1)
    low, high = np.quantile(shown, 0.01), np.quantile(shown, 0.99)
    circle, half = section.info.location_shape == "circle", size_um / 2
    drawn: EllipseCollection | PatchCollection
    if circle:
        size = np.full(len(centres), size_um)
        drawn = EllipseCollection(
            size, size, np.zeros(len(centres)), units="xy", offsets=centres, offset_transform=axes.transData
        )
    else:
        drawn = PatchCollection([Rectangle((x - half, y - half), 2 * half, 2 * half) for x, y in centres])
    drawn.set_array(shown)
    drawn.set_cmap("viridis")
    drawn.set_norm(LogNorm(low, max(high, 1.1 * low), clip=True))
    drawn.set_linewidth(0.5 if circle and over_image else 0.0)
    drawn.set_edgecolor("white" if circle and over_image else "none")
    drawn.set_alpha(0.85 if over_image else 1.0)
    axes.add_collection(drawn)
    return drawn


def _draw_labels(axes: Axes, section: Section, size_um: float) -> None:
    """Where there is no image: the locations, coloured by label where they have one."""
    from matplotlib.collections import EllipseCollection

    labels = section.labels
    names = sorted({label for label in labels if label})
    colours = {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(names)}
    size = np.full(section.n_locations, size_um)
    axes.add_collection(
        EllipseCollection(
            size,
            size,
            np.zeros(section.n_locations),
            units="xy",
            offsets=section.centres_um,
            offset_transform=axes.transData,
            facecolors=[colours.get(label, "#c8c8c8") for label in labels],
            linewidths=0,
        )
    )
    for name in names[: len(_PALETTE)]:
        axes.scatter([], [], color=colours[name], s=30, label=name)
    if names:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.01), ncols=3, fontsize=8, frameon=False, handletextpad=0.1)


def _scale_bar(axes: Axes, box: Box) -> None:
    from matplotlib.patches import Rectangle

    left, right, top, bottom = box
    side = max(right - left, bottom - top)
    length = nice_length((right - left) / 4)
    x, y, thick = left + 0.03 * side, bottom - 0.03 * side, 0.008 * side
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    frame = (x - 0.012 * side, y - 0.042 * side), length + 0.024 * side, 0.062 * side
    axes.add_patch(Rectangle(*frame, facecolor="white", alpha=0.85, linewidth=0, zorder=4))
    axes.add_patch(Rectangle((x, y), length, thick, facecolor=_INK, linewidth=0, zorder=5))
    axes.text(x + length / 2, y - 0.006 * side, text, ha="center", va="bottom", fontsize=9, color=_INK, zorder=5)


def nice_length(about_um: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `about_um`."""
    power = 10.0 ** np.floor(np.log10(about_um))
    return float(max(m * power for m in (1, 2, 5) if m * power <= about_um * (1 + 1e-9)))


def _image_title(image: Thumbnail | None) -> str:
    if image is None:
        return "no image; locations coloured by label where there is one"
    info = image[2]
    size = f"{info.size_px[0]:,} × {info.size_px[1]:,} px"
    return f"{'H&E' if info.role == 'full' else 'preview'}, {size} at {info.mpp:.4f} µm/px"


def plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 300 * max(low, 1e-9) else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _histogram(axes: Axes, totals: NDArray[np.float64]) -> None:
    positive = np.maximum(totals, 1)
    low, high = float(positive.min()), float(positive.max())
    # Few counts are whole numbers far apart on a logarithmic axis: no more bins than there are numbers.
    bins = np.geomspace(low * 0.95, max(high, low * 1.2) * 1.05, min(36, max(6, len(np.unique(positive)) // 2)))
    axes.hist(positive, bins=bins.tolist(), color="#3b6f8f", linewidth=0)
    axes.set_xscale("log")
    plain_numbers(axes.xaxis)
    median = float(np.median(totals))
    axes.axvline(max(median, 1), color="#d1495b", linewidth=1.4)
    axes.set_title(f"counts per location, median {median:,.0f}", fontsize=10, color=_GREY, loc="left")
    axes.tick_params(labelsize=8, colors=_GREY)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _words(axes: Axes, section: Section, totals: NDArray[np.float64], genes: NDArray[Any]) -> None:
    info = section.info
    axes.axis("off")
    full = next((i for i in info.images if i.role == "full"), None)
    image = full or next(iter(info.images), None)
    scale = info.source.get("scale", {})
    empty = int((totals == 0).sum())
    rows = [
        ("patient", info.patient + (f", block {info.block}" if info.block else "")),
        ("platform", ", ".join(v for v in (info.platform, info.species, info.organ) if v)),
    ]
    if info.n_genes:
        rows += [
            ("genes", f"{info.n_genes:,}; {np.median(genes):,.0f} per location (median)"),
            ("counts", f"{totals.sum():,.0f}" + (f"; {empty:,} locations have none" if empty else "")),
        ]
    elif section.placed:
        rows.append(("cells", f"{totals.sum():,.0f}; {np.median(totals):,.0f} per location (median)"))
    if section.placed:
        known = f"{image.mpp if image else scale['mpp']:.4f} µm/px" if image or "mpp" in scale else "in µm as given"
        rows += [
            ("pitch", f"{info.pitch_um:g} µm" if info.pitch_um else "no lattice"),
            ("scale", known),
            ("from", image.mpp_source if image else scale.get("source", "positions given in µm")),
        ]
    else:
        rows += facts(section)
    rows += [("note", note) for note in info.source.get("notes", [])]
    y, step = 1.0, 0.048
    for key, text in rows:
        lines = textwrap.wrap(text, 44)[:5] or [""]
        if y - step * len(lines) < 0:
            axes.text(0.0, y, "…", fontsize=9, color=_GREY, va="top")
            break
        axes.text(0.0, y, key, fontsize=9, color=_GREY, va="top")
        for line in lines:
            axes.text(0.19, y, line, fontsize=9, color=_INK, va="top")
            y -= step
        y -= 0.022
