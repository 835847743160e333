"""What goes wrong on a slide: folds, patches out of focus, pen. Maps on the anatomy's grid, and their way into pixels.

A knob is the expected share of tissue; sections differ (exponentially: most have little, a few have much), and within
a section the share is met exactly. The maps are the truth that goes beside the data.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from triglyph.tissue.simulate.anatomy.ellipses import turned
from triglyph.tissue.simulate.anatomy.tissue import Tissue
from triglyph.tissue.simulate.fields import Field, layered_noise, smooth_noise, step, strip
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.streams import stream

ARTEFACTS = ("folds", "blur", "pen")
_MOST = 0.8
"""No section has a larger share of one artefact."""
_STROKES = 12
_PEN_UM = (180.0, 420.0)
_INKS = {"blue": (1.15, 0.75, 0.15), "green": (1.2, 0.3, 0.75), "black": (1.25, 1.2, 1.15)}
"""Optical density of felt-tip ink in red, green and blue."""
_DEFOCUS_UM = (2.2, 4.5)
_BLOCK = 512


def artefact_maps(config: Simulation, patient: int, section: int, tissue: Tissue) -> dict[str, Field]:
    """Maps of the artefacts whose knob is not 0.

    Returns
    -------
    dict
        name -> (side, side), 0 to 1, on the grid of the tissue's maps. Folds and blur are laid out under tissue and
        around it, a pen also marks glass.
    """
    makers = dict(zip(ARTEFACTS, (_folds, _blur, _pen), strict=True))
    maps = {}
    for name, make in makers.items():
        knob = float(getattr(config.artefacts, name))
        if knob:
            rng = stream(config.seed, f"artefact: {name}", patient, section)
            share = min(float(rng.exponential(knob)), _MOST)
            maps[name] = make(tissue, share, rng)
    return maps


def _level(score: Field, tissue: Tissue, share: float) -> float:
    """The level that `share` of the tissue lies above."""
    return float(np.quantile(score[tissue.cover > 0.5], 1 - share))


def _folds(tissue: Tissue, share: float, rng: np.random.Generator) -> Field:
    """Thin bands along curves, where the tissue lies double."""
    side, um = len(tissue.cover), tissue.step_um
    lines = [
        np.abs(layered_noise([(rng, 1.0)], side, um, ((length, 1.0), (130.0, 0.03)))) for length in (1300.0, 900.0)
    ]
    stretch = layered_noise([(rng, 1.0)], side, um, ((420.0, 1.0), (60.0, 0.12)))
    # A line's field changes by about 1 over 700 µm: a fold is some 15 µm to either side, widest at its middle.
    score = (stretch - np.minimum(lines[0], lines[1]) / 0.018).astype(np.float32)
    return step(score, _level(score, tissue, share), 0.5)


def _blur(tissue: Tissue, share: float, rng: np.random.Generator) -> Field:
    """Broad patches."""
    score = smooth_noise(rng, len(tissue.cover), tissue.step_um, 700.0)
    return step(score, _level(score, tissue, share), 0.25)


def _pen(tissue: Tissue, share: float, rng: np.random.Generator) -> Field:
    """Strokes of a felt-tip pen, gently bent, across the edge of the tissue."""
    side, um = len(tissue.cover), tissue.step_um
    axis = (np.arange(side, dtype=np.float32) + 0.5) * np.float32(um)
    under = tissue.cover > 0.5
    edge = np.argwhere(np.abs(tissue.cover - 0.5) < 0.45)
    hand_um = layered_noise([(rng, 1.0)], side, um, ((900.0, 40.0), (60.0, 3.0)))
    marked = np.zeros((side, side), dtype=np.float32)
    for _ in range(_STROKES):
        missing = share - float(marked[under].mean())
        if missing <= 0.002:
            break
        y, x = edge[rng.integers(len(edge))] * um if len(edge) else rng.uniform(0, side * um, 2)
        turn, width_um = rng.uniform(0, np.pi), rng.uniform(*_PEN_UM)
        cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        along, across = turned(axis[None, :] - x, axis[:, None] - y, cos, sin)
        across = across + hand_um
        stroke = step(-np.abs(across), -width_um / 2, 8.0)
        new = np.where(marked < 0.5, stroke, 0)
        # The last stroke ends where the share is met.
        gains = new[under]
        order = np.argsort(along[under], kind="stable")
        total = np.cumsum(gains[order]) / len(gains)
        if total[-1] > missing:
            end = float(along[under][order][np.searchsorted(total, missing)])
            # A round tip that covers as much as the square one it stands for.
            beyond = np.maximum(along - np.float32(end - 0.39 * width_um), 0)
            stroke = step(-np.hypot(across, beyond), -width_um / 2, 8.0)
        marked = np.maximum(marked, stroke)
    return marked


def fold(haematoxylin: Field, eosin: Field, folds: Field) -> tuple[Field, Field]:
    """Densities where tissue lies double: twice as dense, and creased at the fold's edges."""
    more = 1 + 0.95 * folds + folds * (1 - folds)
    # Glass stays glass: only what has taken up stain is doubled.
    there = np.minimum(10 * eosin, 1)
    return haematoxylin * more + 0.06 * folds * there, eosin * more


class Ink:
    """A pen's colour on one section."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._density = np.array(list(_INKS.values())[int(rng.integers(len(_INKS)))], dtype=np.float32)

    def over(self, pixels: NDArray[np.uint8], pen: Field, streak: Field) -> None:
        """Draw over rows of pixels (rows, width, 3), in place; `streak` (0 ± 1) makes it uneven."""
        if not pen.any():
            return
        dose = np.clip(pen, 0, 1) * np.clip(1 + 0.18 * streak, 0.3, None)
        through = np.exp(-np.log(10) * dose[..., None] * self._density)
        pixels[:] = (pixels * through + 0.5).astype(np.uint8)


def defocus(pixels: NDArray[np.uint8], blur: Field, *, mpp: float, scale: float, rng: np.random.Generator) -> None:
    """Blur pixels (side, side, 3) in place where the map `blur` says so.

    Parameters
    ----------
    scale
        Grid points of the map per pixel.
    rng
        Draws how far out of focus the section is: a Gaussian of 2.2 to 4.5 µm.
    """
    sigma = float(rng.uniform(*_DEFOCUS_UM)) / mpp
    margin, side = int(3 * sigma) + 1, len(pixels)
    done = []
    for top in range(0, side, _BLOCK):
        rows = (top, min(top + _BLOCK, side))
        mask = np.clip(strip(blur, rows, side, scale), 0, 1)
        for left in range(0, side, _BLOCK):
            part = mask[:, left : left + _BLOCK, None]
            if not part.any():
                continue
            y0, x0 = max(rows[0] - margin, 0), max(left - margin, 0)
            sharp = pixels[y0 : rows[1] + margin, x0 : left + _BLOCK + margin].astype(np.float32)
            soft = gaussian_filter(sharp, (sigma, sigma, 0), truncate=3.0)
            inside = (slice(rows[0] - y0, rows[1] - y0), slice(left - x0, left - x0 + part.shape[1]))
            done.append((rows, left, (sharp[inside] * (1 - part) + soft[inside] * part + 0.5).astype(np.uint8)))
    # Written at the end, so that no block is blurred from a blurred neighbour.
    for rows, left, block in done:
        pixels[rows[0] : rows[1], left : left + block.shape[1]] = block
