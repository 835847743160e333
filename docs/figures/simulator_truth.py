"""The truth maps and the knob sheet of docs/simulator.md: `python docs/figures/simulator_truth.py [OUT]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from triglyph.report.style import new_figure, scale_bar, styled
from triglyph.tissue.simulate.knobs import CELL_TYPES, DOMAINS, STATES
from triglyph.tissue.simulate.molecules.programs import MARKERS, NICHES
from triglyph.tissue.simulate.picture.he import he_pixels
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen

DOMAIN_COLOURS = ("#B2182B", "#EF8A62", "#4393C3", "#F4D9C6", "#7FBC41", "#FFF3B0", "#4D4D4D")
TYPE_COLOURS = ("#B2182B", "#7FBC41", "#E3A587", "#2166AC", "#67A9CF", "#F1A340", "#C51B7D", "#998EC3")
PATIENT, SIDE_UM = 5, 2300.0


def picture(specimen: Specimen) -> tuple[NDArray[np.uint8], float]:
    """Pixels and µm per pixel."""
    pixels, dye = he_pixels(specimen)
    return pixels, dye.mpp


def frame(axes: Axes, title: str, side_um: float, *, bar: bool = False) -> None:
    """A square of tissue in µm, no axes."""
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[], xlim=(0, side_um), ylim=(side_um, 0), aspect="equal")
    for spine in axes.spines.values():
        spine.set_visible(False)
    if bar:
        scale_bar(axes, width_um=side_um)


def spots(axes: Axes, specimen: Specimen, values: NDArray[Any], title: str, cmap: str = "magma") -> None:
    """Values at locations."""
    x, y = specimen.centres_um.T
    low, high = np.quantile(values, (0.02, 0.98))
    axes.scatter(x, y, c=values, s=26, cmap=cmap, vmin=low, vmax=max(high, low + 1e-9), lw=0)
    frame(axes, title, SIDE_UM)


def truth_maps(out: Path) -> None:
    """One section: what is seen, and the truth behind it."""
    s = Specimen(preset("niche", overrides=[f"anatomy.side_um={SIDE_UM:g}", "stain.mpp=[0.5,0.51]"]), PATIENT, 0)
    pixels, _ = picture(s)
    cells, table = s.tissue.cells, s.table
    with styled():
        figure = new_figure(12.0, 9.6)
        grid = figure.subplots(3, 4).ravel()
        grid[0].imshow(pixels[::4, ::4], extent=(0, SIDE_UM, SIDE_UM, 0))
        frame(grid[0], "H&E", SIDE_UM, bar=True)
        colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in DOMAIN_COLOURS]) / 255
        drawn = np.tensordot(s.tissue.domains[:, ::3, ::3], colours, axes=(0, 0))
        cover = s.tissue.cover[::3, ::3, None]
        grid[1].imshow(drawn * cover + 1 - cover, extent=(0, SIDE_UM, SIDE_UM, 0))
        frame(grid[1], "domains", SIDE_UM)
        inset = [
            grid[1].plot([], [], "s", color=c, label=d, ms=5)[0] for c, d in zip(DOMAIN_COLOURS, DOMAINS, strict=True)
        ]
        grid[1].legend(handles=inset, fontsize=6, loc="upper left", bbox_to_anchor=(0, 0), ncols=3, columnspacing=0.8)
        grid[2].scatter(*cells.xy_um.T, c=np.array(TYPE_COLOURS)[cells.kind], s=0.7, lw=0)
        frame(grid[2], f"{len(cells):,} cells by type", SIDE_UM)
        inset = [
            grid[2].plot([], [], "o", color=c, label=d, ms=4)[0] for c, d in zip(TYPE_COLOURS, CELL_TYPES, strict=True)
        ]
        grid[2].legend(handles=inset, fontsize=6, loc="upper left", bbox_to_anchor=(0, 0), ncols=4, columnspacing=0.8)
        for axes, state, kind in (
            (grid[3], "fibrosis", "shared"),
            (grid[4], "oedema", "morphology only"),
            (grid[5], "oestrogen response", "expression only"),
        ):
            shown = np.where(s.tissue.cover[::3, ::3] > 0.5, s.tissue.states[STATES.index(state), ::3, ::3], np.nan)
            axes.imshow(shown, cmap="RdBu_r", vmin=-2.5, vmax=2.5, extent=(0, SIDE_UM, SIDE_UM, 0))
            frame(axes, f"{state} ({kind})", SIDE_UM)
        niche = list(NICHES).index("stroma at the tumour")
        spots(grid[6], s, s.niches[:, niche], "niche: stroma at the tumour", "viridis")
        gene = s.world.symbols.index("COL1A1")
        spots(grid[7], s, np.log1p(s.expected[:, gene]), "COL1A1, expected (log1p)")
        spots(grid[8], s, np.log1p(table.X[:, gene].toarray().ravel()), "COL1A1, counted (log1p)")
        immune = [s.world.symbols.index(g) for g in MARKERS["T cell"].split()]
        spots(grid[9], s, np.log1p(table.X[:, immune].toarray().sum(1)), "T-cell markers, counted")
        spots(grid[10], s, s.expected.sum(1), "depth, expected counts a spot", "cividis")
        label = np.array([DOMAINS.index(name) if name else -1 for name in s.labels])
        grid[11].scatter(*s.centres_um[label >= 0].T, c=np.array(DOMAIN_COLOURS)[label[label >= 0]], s=26, lw=0)
        grid[11].scatter(*s.centres_um[label < 0].T, facecolors="none", edgecolors="0.6", s=18, lw=0.5)
        frame(grid[11], "labels an annotator gives", SIDE_UM)
        save(figure, out / "simulator_truth.jpg")


# Knob, values from little to much, a patient, and the place of the window (x, y, side in µm).
SHEET: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("dial.morphology_only", ("0", "1", "2.5"), "programmes seen in morphology alone"),
    ("dial.shared", ("0", "1", "2.5"), "programmes seen in both"),
    ("molecules.subspot", ("0", "0.7", "1.4"), "patches smaller than a spot"),
    ("stain.site_hue", ("0", "0.05", "0.1"), "stain of the site"),
    ("artefacts.blur", ("0", "0.3", "0.7"), "out of focus"),
    ("artefacts.folds", ("0", "0.1", "0.25"), "folds"),
    ("artefacts.pen", ("0", "0.1", "0.25"), "pen"),
)
WINDOW_UM = 1000.0


def knob_sheet(out: Path) -> None:
    """What knobs of the picture look like: the same place of the same patient, a knob turned up."""
    with styled():
        figure = new_figure(6.6, 15.2)
        grid = figure.subplots(len(SHEET), 3)
        for line, (knob, values, name) in zip(grid, SHEET, strict=True):
            for axes, value in zip(line, values, strict=True):
                keys = [f"{knob}={value}", "anatomy.side_um=1200", "stain.mpp=[0.5,0.51]", "people.absent=0"]
                pixels, mpp = picture(Specimen(preset("visium", overrides=keys), 1, 0))
                start, side = round(100 / mpp), round(WINDOW_UM / mpp)
                axes.imshow(pixels[start : start + side, start : start + side], extent=(0, WINDOW_UM, WINDOW_UM, 0))
                frame(axes, f"{knob} = {value}", WINDOW_UM, bar=value == values[0])
            line[0].set_ylabel(name, fontsize=9)
        save(figure, out / "simulator_knobs.jpg")


def save(figure: Any, path: Path) -> None:
    """As a JPEG small enough for a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.canvas.draw()
    figure.savefig(path, dpi=120, pil_kwargs={"quality": 78, "optimize": True})


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "images"
    truth_maps(target)
    knob_sheet(target)
