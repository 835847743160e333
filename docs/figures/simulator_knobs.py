"""Knobs turned up, each at the zoom at which it is seen: `python docs/figures/simulator_knobs.py [OUT]`.

Places were chosen by eye, so that what a knob does is in the window; within a row, places are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from panels import IMAGES, Box, frame, he, place_axes, save, show, specimen, tiles

from triglyph.report.style import INK, new_figure, styled
from triglyph.tissue.simulate.molecules.programs import MARKERS
from triglyph.tissue.simulate.picture.stain import paint, patient_dye
from triglyph.tissue.simulate.registration import registration_error
from triglyph.tissue.simulate.streams import stream

PANEL_IN = (2.7, 1.8)
WIDTH_PX = 440
SPOT_UM = 55.0
COMMON = ("people.absent=0", "anatomy.fraction_concentration=30")
CLEAN = ("artefacts.folds=0", "artefacts.blur=0", "artefacts.pen=0")
AT_HALF = ("stain.mpp=[0.5,0.5]",)
SMALL = (*COMMON, *CLEAN, "anatomy.side_um=1500")
PATIENT, PLACE_UM, NEST_UM = 0, (420.0, 990.0), (395.0, 1080.0)
"""Tumour beside stroma, and a nest of tumour there."""

Axes3 = NDArray[np.object_]


def window(x: float, y: float, width_um: float) -> Box:
    """A window of the panels' shape around a place in µm."""
    height_um = width_um * PANEL_IN[1] / PANEL_IN[0]
    return x - width_um / 2, y - height_um / 2, width_um, height_um


def say(axes: Axes, text: str) -> None:
    """A value, in the panel's upper left corner."""
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 1.8, "alpha": 0.88}
    axes.text(0.018, 0.973, text, transform=axes.transAxes, fontsize=7.5, va="top", bbox=plate, zorder=12)


def dials(row: Axes3) -> None:
    """Programmes seen in picture and counts, and in the picture alone."""
    box = window(*PLACE_UM, 480)
    for axes, (shared, morphology) in zip(row, ((0, 0), (1.5, 0), (0, 1.5)), strict=True):
        values = (f"dial.shared={shared}", f"dial.morphology_only={morphology}")
        pixels, mpp = he(specimen("visium", PATIENT, (*SMALL, *AT_HALF, *values)))
        show(axes, pixels, mpp, box, width_px=WIDTH_PX)
        say(axes, f"shared {shared:g}, morphology_only {morphology:g}")


def mixture(row: Axes3) -> None:
    """Shares of domains."""
    for axes, share in zip(row, (0.0, 0.06, 0.3), strict=True):
        keys = (*CLEAN, *AT_HALF, "people.absent=0", "anatomy.fraction_concentration=1000", "anatomy.side_um=2000")
        pixels, mpp = he(specimen("visium", 1, (*keys, f"anatomy.fractions.necrosis={share}")))
        show(axes, pixels, mpp, window(900, 560, 1500), width_px=WIDTH_PX)
        say(axes, f"necrosis {share:g}")


def patients(row: Axes3) -> None:
    """The same tissue as slides of three patients would show it: stain and scale."""
    s = specimen("visium", PATIENT, SMALL)
    for axes, patient in zip(row, (5, 3, 1), strict=True):
        dye = patient_dye(s.config, patient)
        pixels = paint(s.config, s.tissue, dye, stream(s.config.seed, "paint", *s.keys))
        show(axes, pixels, dye.mpp, window(*NEST_UM, 224 * dye.mpp), width_px=WIDTH_PX)
        say(axes, f"{dye.mpp:.2f} µm/px")


def artefacts(row: Axes3) -> None:
    """What goes wrong on a slide, one at a time."""
    chosen = (
        ("folds", 0.04, 2, window(1300, 1000, 2000)),
        ("blur", 0.1, 2, window(1537, 2322, 380)),
        ("pen", 0.06, 3, window(1300, 900, 2600)),
    )
    for axes, (name, share, patient, box) in zip(row, chosen, strict=True):
        keys = (*COMMON, *CLEAN, *AT_HALF, "anatomy.side_um=2600", f"artefacts.{name}={share}")
        s = specimen("visium", patient, keys)
        pixels, mpp = he(s)
        show(axes, pixels, mpp, box, width_px=WIDTH_PX)
        if name == "blur":
            at = (np.arange(len(s.tissue.cover)) + 0.5) * s.tissue.step_um
            axes.contour(at, at, s.artefacts["blur"], levels=[0.5], colors="black", linewidths=0.8, linestyles="--")
        say(axes, f"{name} {share:g}")


def registration(row: Axes3) -> None:
    """Where spots are (dashed), and where they are stated to be."""
    box = window(*PLACE_UM, 400)
    edge = [withStroke(linewidth=2.0, foreground=INK)]
    for axes, shift_um in zip(row, (0, 8, 16), strict=True):
        knobs = (f"people.registration_um={shift_um}", f"people.registration_bend_um={shift_um / 2}")
        s = specimen("visium", PATIENT, (*SMALL, *AT_HALF, *knobs))
        pixels, mpp = he(s)
        show(axes, pixels, mpp, box, width_px=WIDTH_PX)
        error = registration_error(s.config, *s.keys, s.centres_um)
        near = (np.abs(s.centres_um - PLACE_UM) < np.array(box[2:]) / 2 + SPOT_UM).all(1)
        for true, stated in zip(s.centres_um[near], (s.centres_um + error)[near], strict=True):
            axes.add_patch(Circle(tuple(true), SPOT_UM / 2, fill=False, ls="--", lw=1.2, color=INK))
            axes.add_patch(Circle(tuple(stated), SPOT_UM / 2, fill=False, lw=1.3, color="#FFD400", path_effects=edge))
            if shift_um:
                look = {"arrowstyle": "-|>", "mutation_scale": 8, "lw": 1.4, "color": INK, "zorder": 5}
                axes.add_patch(FancyArrowPatch(tuple(true), tuple(stated), shrinkA=0, shrinkB=0, **look))
        say(axes, f"registration_um {shift_um:g}, bend {shift_um / 2:g}")


def bins(row: Axes3, *, patient: int, knob: str, values: tuple[float, ...], genes: str) -> None:
    """Counts in bins of 8 µm, the colours alike in the row; circles are spots of 55 µm."""
    box = window(350, 350, 420)
    drawn = []
    for axes, value in zip(row, values, strict=True):
        keys = (*COMMON, *CLEAN, "spots.diameter_um=8", "spots.pitch_um=8", "anatomy.side_um=700", f"{knob}={value}")
        s = specimen("visium-hd", patient, keys)
        chosen = [s.world.symbols.index(g) for g in genes.split()] if genes else slice(None)
        counts = np.asarray(s.table.X.tocsc()[:, chosen].sum(1)).ravel().astype(float)
        drawn.append(tiles(axes, s.centres_um, counts, 8.0, sides=4))
        frame(axes, box, bar=True)
        for x in np.arange(box[0] - 50, box[0] + box[2] + 50, 100.0):
            for y in np.arange(box[1] - 40, box[1] + box[3] + 50, 100.0):
                axes.add_patch(Circle((x, y), SPOT_UM / 2, fill=False, lw=0.6, color="white"))
        say(axes, f"{knob.split('.')[1]} {value:g}")
    top = float(np.quantile(np.concatenate([np.asarray(d.get_array()) for d in drawn]), 0.98))
    for d in drawn:
        d.set_clim(0, top)


def depth(row: Axes3) -> None:
    """Counts a spot."""
    box = window(1150, 1150, 1800)
    for axes, tie in zip(row, (0.0, 0.5, 1.0), strict=True):
        s = specimen("visium", 7, (*COMMON, "anatomy.side_um=2300", f"molecules.depth_per_cells={tie}"))
        counts = np.asarray(s.table.X.sum(1)).ravel().astype(float)
        pitch = s.config.spots.pitch_um
        tiles(axes, s.centres_um, np.log10(counts / np.median(counts)), pitch, cmap="cividis", limits=(-0.7, 0.7))
        frame(axes, box, bar=True)
        cells = s.cells_by_type.sum(1)
        r = float(np.corrcoef(np.log(counts), np.log1p(cells))[0, 1])
        say(axes, f"depth_per_cells {tie:g}: r with cells {r:.2f}")


ROWS: tuple[tuple[str, str, Callable[[Axes3], None]], ...] = (
    ("dial.*", "programmes seen in picture and counts (shared), and in the picture alone", dials),
    ("anatomy.fractions", "shares of domains; here necrosis", mixture),
    ("stain.*", "224 px of one tissue, stained and scanned as three patients' slides: hue, strength, mpp", patients),
    ("artefacts.*", "folds; patches out of focus (dashed: where the truth says so); pen", artefacts),
    (
        "people.registration_um, registration_bend_um",
        "dashed: where spots are; yellow: where they are stated to be",
        registration,
    ),
    (
        "molecules.subspot",
        "RNA in patches smaller than a spot (circles): all counts in bins of 8 µm",
        partial(bins, patient=1, knob="molecules.subspot", values=(0.0, 0.5, 1.0), genes=""),
    ),
    (
        "transcripts.bleed_um",
        "transcripts that move sideways: markers of tumour in bins of 8 µm",
        partial(bins, patient=5, knob="transcripts.bleed_um", values=(0.0, 5.0, 15.0), genes=MARKERS["tumour"]),
    ),
    (
        "molecules.depth_per_cells",
        "counts of a spot follow its cells (yellow: 5 times the median; blue: a fifth)",
        depth,
    ),
)


def main(out: Path) -> None:
    """Make `simulator_knobs.jpg` in `out`."""
    with styled():
        figure = new_figure(8, 16)
        grid = place_axes(figure, (len(ROWS), 3), PANEL_IN, gutter=0.06, above=0.27, below=0.02)
        for line, (knob, words, draw) in zip(grid, ROWS, strict=True):
            draw(line)
            name = line[0].annotate(
                knob, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=8.5, weight="bold"
            )
            line[0].annotate(
                words, (1, 0), (7, 0), xycoords=name, textcoords="offset points", fontsize=8, color="0.25", va="bottom"
            )
        save(figure, out / "simulator_knobs.jpg", dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
