"""Real beside simulated H&E at three scales: `python docs/figures/simulator_look.py FOLDER_OF_HER2ST [OUT]`.

Real tissue: HER2-positive breast tumours of Andersson et al., Nature Communications 12:6012 (2021), images of sections
B4 and C2. Simulated: patients of the preset `demo`, 3.2 mm wide. Nothing is chosen by eye but the places in the real
sections; in simulated ones the window that holds most tumour and stroma in even parts is shown.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter

from triglyph.tissue.simulate.knobs import DOMAINS
from triglyph.tissue.simulate.picture.he import he_pixels
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen

Image.MAX_IMAGE_PIXELS = None
HER2ST_MPP = 0.69
"""From the 200 µm pitch of the array against the spots' pixels."""
WINDOWS_UM = (1500.0, 400.0)
BARS_UM = (1000.0, 200.0, 50.0)
REAL = {
    # section -> (left, upper, side) of the whole in px, centres of the two windows in px
    "C2": ((1600, 2900, 6500), ((7100, 5600), (7000, 6100))),
    "B4": ((1000, 2900, 7800), ((3000, 5700), (2900, 5250))),
}
SIMULATED = (0, 1)
PANEL_PX = 560


@dataclass(frozen=True)
class Row:
    """One section at three scales."""

    name: str
    panels: tuple[NDArray[np.uint8], ...]
    """Three pictures of PANEL_PX x PANEL_PX."""
    widths_um: tuple[float, ...]


def crop(pixels: NDArray[np.uint8], centre_px: tuple[float, float], side_px: float) -> NDArray[np.uint8]:
    """A square around a place, at the panel's size."""
    x, y = (c - side_px / 2 for c in centre_px)
    image = Image.fromarray(pixels)
    box = (max(x, 0), max(y, 0), min(x + side_px, image.width), min(y + side_px, image.height))
    return np.asarray(image.resize((PANEL_PX, PANEL_PX), Image.Resampling.LANCZOS, box=box))


def real(folder: Path, section: str) -> Row:
    """A section of her2st."""
    pixels = np.asarray(Image.open(folder / "images" / f"{section}.jpg"))
    (left, upper, side), centres = REAL[section]
    panels = [crop(pixels, (left + side / 2, upper + side / 2), side)]
    panels += [crop(pixels, at, um / HER2ST_MPP) for at, um in zip(centres, WINDOWS_UM, strict=True)]
    return Row(f"real, {section}", tuple(panels), (side * HER2ST_MPP, *WINDOWS_UM))


def simulated(patient: int) -> Row:
    """A section of the preset `demo`, made 3.2 mm wide."""
    world = preset("demo")
    world = world.model_copy(update={"anatomy": world.anatomy.model_copy(update={"side_um": 3200.0})})
    specimen = Specimen(world, patient, 0)
    tissue, (pixels, dye) = specimen.tissue, he_pixels(specimen)
    panels, widths = [crop(pixels, (len(pixels) / 2, len(pixels) / 2), len(pixels))], [len(pixels) * dye.mpp]
    for um in WINDOWS_UM:
        window = round(um / tissue.step_um)
        shares = np.stack([uniform_filter(domain * tissue.cover, window) for domain in tissue.domains])
        # As much tumour as stroma, other domains as they come, and no glass.
        tumour, stroma = (shares[DOMAINS.index(name)] for name in ("invasive cancer", "connective tissue"))
        fitness = np.minimum(tumour, 0.4) + np.minimum(stroma, 0.4) - 0.1 * shares.max(0)
        fitness[uniform_filter(tissue.cover, window) < 0.97] = 0
        half = window // 2 + 1
        inner = fitness[half:-half, half:-half]
        y, x = (int(i) + half for i in np.unravel_index(inner.argmax(), inner.shape))
        panels.append(crop(pixels, (x * tissue.step_um / dye.mpp, y * tissue.step_um / dye.mpp), um / dye.mpp))
        widths.append(um)
    return Row(f"simulated, patient {patient + 1}", tuple(panels), tuple(widths))


def draw_bar(axes: Axes, bar_um: float, width_um: float) -> None:
    """A scale bar on a white plate in the lower left corner."""
    length, unit = bar_um / width_um, f"{bar_um / 1000:g} mm" if bar_um >= 1000 else f"{bar_um:g} µm"
    plate = mpl.patches.Rectangle((0.025, 0.025), length + 0.05, 0.085, transform=axes.transAxes, fc="white", lw=0)
    plate.set_alpha(0.85)
    axes.add_patch(plate)
    axes.plot(
        [0.05, 0.05 + length], [0.045] * 2, color="black", lw=2.2, solid_capstyle="butt", transform=axes.transAxes
    )
    axes.text(0.05 + length / 2, 0.055, unit, ha="center", va="bottom", fontsize=7.5, transform=axes.transAxes)


def main(folder: Path, out: Path) -> None:
    """Make `real_and_simulated.jpg` in `out`."""
    rows = [*(real(folder, section) for section in REAL), *(simulated(patient) for patient in SIMULATED)]
    figure, grid = plt.subplots(len(rows), 3, figsize=(7.6, 10.1), dpi=170)
    for row, line in zip(rows, grid, strict=True):
        for axes, panel, width_um, bar_um in zip(line, row.panels, row.widths_um, BARS_UM, strict=True):
            axes.imshow(panel, extent=(0, 1, 0, 1), interpolation="antialiased")
            axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))
            for spine in axes.spines.values():
                spine.set(linewidth=0.5, color="0.6")
            draw_bar(axes, bar_um, width_um)
        line[0].set_ylabel(row.name, fontsize=10)
    for axes, title in zip(grid[0], ("whole section", "1.5 mm", "0.4 mm"), strict=True):
        axes.set_title(title, fontsize=10)
    figure.text(
        0.5, 0.004, "Real tissue: Andersson et al., Nature Communications 12:6012 (2021)", ha="center", fontsize=7.5
    )  # fmt: skip
    figure.subplots_adjust(left=0.045, right=0.995, top=0.972, bottom=0.022, wspace=0.03, hspace=0.03)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "real_and_simulated.jpg", pil_kwargs={"quality": 72, "optimize": True})


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parent.parent / "images")
