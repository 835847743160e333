"""What is seen of a section, and the truth behind it: `python docs/figures/simulator_truth.py [OUT]`.

One section of the preset `visium`, 2.3 mm wide, in a world in which no patient lacks a domain.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from panels import IMAGES, Box, frame, he, place_axes, save, show, specimen, tiles

from triglyph.report.style import INK, new_figure, styled
from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS
from triglyph.tissue.simulate.knobs.states import STATES
from triglyph.tissue.simulate.molecules.programs import MARKERS, NICHES
from triglyph.tissue.simulate.registration import registration_error
from triglyph.tissue.simulate.specimen import Specimen

DOMAIN_COLOURS = ("#B2182B", "#EF8A62", "#4393C3", "#F1D9C5", "#7FBC41", "#FFE26A", "#6E6E6E")
TYPE_COLOURS = ("#B2182B", "#5AA02C", "#D9A27E", "#2166AC", "#4FC3F7", "#E08214", "#C51B7D", "#8073AC")
PATIENT, SIDE_UM = 7, 2300.0
OVERRIDES = (
    f"anatomy.side_um={SIDE_UM:g}",
    "people.absent=0",
    "anatomy.fraction_concentration=20",
    "stain.mpp=[0.5,0.5]",
)
BOX: Box = (0.0, 0.0, SIDE_UM, SIDE_UM)
STATES_SHOWN = {
    "fibrosis": "in picture and counts",
    "oedema": "in the picture alone",
    "oestrogen response": "in the counts alone",
}
NICHE = "stroma at the tumour"
MAGNIFIED = 6.0
"""Arrows of the registration error are drawn this many times as long."""
ARTEFACT_COLOURS = {"folds": "#D55E00", "blur": "#56B4E9", "pen": "#009E73"}


def title(axes: Axes, text: str, note: str = "") -> None:
    """A short name, and what it means in lighter type."""
    axes.set_title(text, fontsize=9, pad=14, loc="left")
    axes.text(0, 1.014, note, transform=axes.transAxes, fontsize=7.3, color="0.3", va="bottom")


def colour_bar(figure: Figure, axes: Axes, drawn: ScalarMappable, label: str) -> None:
    """A thin one below a panel."""
    bar = figure.colorbar(drawn, cax=axes.inset_axes((0.16, -0.045, 0.68, 0.026)), orientation="horizontal")
    bar.set_label(label, fontsize=7.3, labelpad=1.5)
    bar.ax.tick_params(labelsize=7, length=2, pad=1.5)
    bar.locator = MaxNLocator(5, steps=[1, 2, 5, 10])
    bar.update_ticks()
    bar.outline.set_linewidth(0.4)


def legend(axes: Axes, names: Iterable[str], colours: Iterable[str], marker: str, columns: int = 3) -> None:
    """Names below a panel."""
    marks = [axes.plot([], [], marker, color=c, label=n, ms=4.5)[0] for n, c in zip(names, colours, strict=False)]
    axes.legend(
        handles=marks, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=columns,
        columnspacing=0.7, handletextpad=0.0, labelspacing=0.25, borderpad=0.1,
    )  # fmt: skip


def outline(axes: Axes, s: Specimen) -> None:
    """Where tissue ends."""
    at = (np.arange(len(s.tissue.cover)) + 0.5) * s.tissue.step_um
    axes.contour(at[::2], at[::2], s.tissue.cover[::2, ::2], levels=[0.5], colors="0.45", linewidths=0.5)


def anatomy(axes: NDArray[np.object_], s: Specimen) -> None:
    """H&E, domains, cells, labels."""
    pixels, mpp = he(s)
    show(axes[0], pixels, mpp, BOX, width_px=520)
    title(axes[0], "H&E", "what a model sees")
    colours = np.array([to_rgb(c) for c in DOMAIN_COLOURS])
    cover = s.tissue.cover[::2, ::2, None]
    drawn = np.tensordot(s.tissue.domains[:, ::2, ::2], colours, axes=(0, 0)) * cover + 1 - cover
    axes[1].imshow(np.clip(drawn, 0, 1), extent=(0, SIDE_UM, SIDE_UM, 0))
    title(axes[1], "Domains", "they pass into each other")
    legend(axes[1], DOMAINS, DOMAIN_COLOURS, "s", columns=2)
    cells = s.tissue.cells
    axes[2].scatter(*cells.xy_um.T, c=np.array(TYPE_COLOURS)[cells.kind], s=0.55, lw=0, rasterized=True)
    title(axes[2], "Cells", f"{len(cells):,}, by type")
    legend(axes[2], CELL_TYPES, TYPE_COLOURS, "o")
    label = np.array([DOMAINS.index(name) if name else -1 for name in s.labels])
    drawn = tiles(axes[3], s.centres_um, label.astype(float), s.config.spots.pitch_um)
    drawn.set_array(None)
    drawn.set_facecolor([DOMAIN_COLOURS[i] if i >= 0 else "white" for i in label])
    drawn.set_edgecolor("white")
    drawn.set_linewidth(0.4)
    title(axes[3], "Labels", "an annotator's; white: none given")


def programmes(figure: Figure, axes: NDArray[np.object_], s: Specimen) -> None:
    """A state of each kind, and a niche."""
    for place, (state, kind) in zip(axes, STATES_SHOWN.items(), strict=False):
        values = np.where(s.tissue.cover > 0.5, s.tissue.states[STATES.index(state)], np.nan)[::2, ::2]
        drawn = place.imshow(values, cmap="RdBu_r", vmin=-2.5, vmax=2.5, extent=(0, SIDE_UM, SIDE_UM, 0))
        title(place, state.capitalize(), f"a programme seen {kind}")
        colour_bar(figure, place, drawn, "state, standard deviations")
    called = s.niches[:, list(NICHES).index(NICHE)]
    drawn = tiles(axes[3], s.centres_um, called, s.config.spots.pitch_um, cmap="viridis", limits=(0, 1))
    title(axes[3], "Niche", "tumour around a spot's fibroblasts")
    colour_bar(figure, axes[3], drawn, f"share of cells within {s.config.molecules.niche_um:g} µm")


def molecules(figure: Figure, axes: NDArray[np.object_], s: Specimen) -> None:
    """Depth, markers expected and counted, and where spots are stated to be."""
    centres, pitch = s.centres_um, s.config.spots.pitch_um
    depth = s.expected.sum(1)
    drawn = tiles(axes[0], centres, depth / 1000, pitch, cmap="cividis")
    title(axes[0], "Depth", "follows the RNA of the cells in a spot")
    colour_bar(figure, axes[0], drawn, "thousand expected counts a spot")
    markers = [s.world.symbols.index(g) for g in MARKERS["fibroblast"].split()]
    counts = np.asarray(s.table.X.tocsc()[:, markers].sum(1)).ravel()
    total = np.asarray(s.table.X.sum(1)).ravel()
    expected = 1000 * s.expected[:, markers].sum(1) / depth
    counted = 1000 * counts / np.maximum(total, 1)
    limits = (float(np.quantile(expected, 0.02)), float(np.quantile(expected, 0.98)))
    for place, values, name in ((axes[1], expected, "Expected"), (axes[2], counted, "Counted")):
        drawn = tiles(place, centres, values, pitch, limits=limits)
        title(place, f"{name} expression", f"{len(markers)} markers of fibroblasts")
        colour_bar(figure, place, drawn, "per 1,000 counts of the spot")
    error = registration_error(s.config, *s.keys, centres)
    axes[3].quiver(
        *centres.T, *error.T, angles="xy", scale_units="xy", scale=1 / MAGNIFIED, width=0.0036, color=INK, headwidth=4
    )
    at = (np.arange(len(s.tissue.cover)) + 0.5) * s.tissue.step_um
    for name, spoiled in s.artefacts.items():
        colour = ARTEFACT_COLOURS[name]
        axes[3].contourf(at[::2], at[::2], spoiled[::2, ::2], levels=[0.5, 2.0], colors=[colour], alpha=0.7)
    mean_um = float(np.hypot(*error.T).mean())
    title(axes[3], "Artefacts and registration", f"stated − true centre: {mean_um:.0f} µm, drawn × {MAGNIFIED:g}")
    legend(axes[3], s.artefacts, [ARTEFACT_COLOURS[name] for name in s.artefacts], "s")


def main(out: Path) -> None:
    """Make `simulator_truth.jpg` in `out`."""
    s = specimen("visium", PATIENT, OVERRIDES)
    with styled():
        figure = new_figure(10, 10)
        grid = place_axes(figure, (3, 4), (2.6, 2.6), gutter=0.16, above=0.4, below=0.62)
        anatomy(grid[0], s)
        programmes(figure, grid[1], s)
        molecules(figure, grid[2], s)
        for axes in grid.ravel():
            if axes is not grid[0, 0]:
                frame(axes, BOX, outline=False)
                outline(axes, s)
        save(figure, out / "simulator_truth.jpg", dpi=140)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
