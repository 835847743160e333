"""Real beside simulated H&E at three scales: `python docs/figures/simulator_look.py FOLDER_OF_HER2ST [OUT]`.

Real tissue: HER2-positive breast tumours of Andersson et al., Nature Communications 12:6012 (2021), images of sections
B4 and C2. Simulated: of each preset the first patients with at least a fifth of invasive cancer. Nothing is chosen by
eye but the places in the real sections; in simulated ones the window that holds most tumour and stroma in even parts,
and little of what went wrong on the slide, is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from panels import IMAGES, Box, he, place_axes, save, show, specimen
from PIL import Image
from scipy.ndimage import uniform_filter

from triglyph.report.style import new_figure, styled
from triglyph.tissue.simulate.knobs.names import DOMAINS
from triglyph.tissue.simulate.specimen import Specimen

Image.MAX_IMAGE_PIXELS = None
HER2ST_MPP = 0.69
"""From the 200 µm pitch of the array against the spots' pixels."""
WINDOWS_UM = (1500.0, 400.0)
REAL_UM = 5000.0
REAL = {
    # section -> centre of the tissue and of the two windows, in px
    "C2": ((4884, 5736), (7100, 5600), (7000, 6100)),
    "B4": ((4698, 6162), (3000, 5700), (2900, 5250)),
}
SIMULATED = {"her2st-like": 2, "demo": 1}
"""Preset -> how many of its patients."""
LEAST_CANCER = 0.2
PANEL_PX = 480


@dataclass(frozen=True)
class Row:
    """One section at three scales."""

    name: str
    pixels: NDArray[np.uint8]
    mpp: float
    width_um: float
    """Of the picture of the whole."""
    centres_um: tuple[tuple[float, float], ...]
    """Of the whole and of the two windows."""

    def boxes(self) -> list[Box]:
        """What its three panels show."""
        widths = (self.width_um, *WINDOWS_UM)
        return [(x - um / 2, y - um / 2, um, um) for (x, y), um in zip(self.centres_um, widths, strict=True)]


def real(folder: Path, section: str) -> Row:
    """A section of her2st."""
    pixels = np.asarray(Image.open(folder / "images" / f"{section}.jpg"))
    centres = tuple((x * HER2ST_MPP, y * HER2ST_MPP) for x, y in REAL[section])
    return Row(f"real\nher2st, {section}", pixels, HER2ST_MPP, REAL_UM, centres)


def patients(name: str) -> Iterator[int]:
    """Those of the preset `name` with enough cancer."""
    cancer = DOMAINS.index("invasive cancer")
    return (p for p in count() if specimen(name, p).person.shares()[cancer] >= LEAST_CANCER)


def densest(s: Specimen, width_um: float) -> tuple[float, float]:
    """Centre of the window with most tumour and stroma in even parts, other domains as they come, and no glass."""
    tissue = s.tissue
    window = round(width_um / tissue.step_um)
    shares = np.stack([uniform_filter(domain * tissue.cover, window) for domain in tissue.domains])
    tumour, stroma = (shares[DOMAINS.index(name)] for name in ("invasive cancer", "connective tissue"))
    fitness = np.minimum(tumour, 0.4) + np.minimum(stroma, 0.4) - 0.1 * shares.max(0)
    fitness[uniform_filter(tissue.cover, window) < 0.97] = -1
    for spoiled in s.artefacts.values():
        fitness -= uniform_filter(spoiled, window)
    half = window // 2 + 1
    inner = fitness[half:-half, half:-half]
    y, x = (int(i) + half for i in np.unravel_index(inner.argmax(), inner.shape))
    return x * tissue.step_um, y * tissue.step_um


def simulated(name: str, patient: int) -> Row:
    """The first section of a patient."""
    s = specimen(name, patient)
    side_um = s.config.anatomy.side_um
    pixels, mpp = he(s)
    return Row(
        f"simulated\n{name}, patient {patient + 1}",
        pixels,
        mpp,
        side_um,
        ((side_um / 2, side_um / 2), *(densest(s, um) for um in WINDOWS_UM)),
    )


def main(folder: Path, out: Path) -> None:
    """Make `real_and_simulated.jpg` in `out`."""
    rows = [real(folder, section) for section in REAL]
    rows += [simulated(name, p) for name, n in SIMULATED.items() for p in islice(patients(name), n)]
    with styled():
        figure = new_figure(8, 12)
        grid = place_axes(figure, (len(rows), 3), (2.5, 2.5), gutter=0.06, above=0.06, left=0.4)
        for row, line in zip(rows, grid, strict=True):
            for axes, box in zip(line, row.boxes(), strict=True):
                show(axes, row.pixels, row.mpp, box, width_px=PANEL_PX)
            line[0].set_ylabel(row.name, fontsize=9, linespacing=1.35)
        for axes, title in zip(grid[0], ("whole section", "1.5 mm", "0.4 mm"), strict=True):
            axes.set_title(title, fontsize=9, loc="center", fontweight="normal")
        save(figure, out / "real_and_simulated.jpg", dpi=165)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else IMAGES)
