"""Sections of one block laid onto each other by their stain: what knowing the place in the tumour would give.

Adjacent sections of a block are near copies, so that position alone predicts much of a section's expression. To know
how much, they must lie in one frame. Expression is never looked at.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.metrics.correlation import mean_defined, pearson

Floats = NDArray[np.float64]


def place(
    moving_um: Floats, moving_stain: Floats, *, onto_um: Floats, onto_stain: Floats, angles: int = 36, shifts: int = 3
) -> Floats | None:
    """Centres of one section in the frame of another: the turn, flip and shift with the most alike stain.

    The middles are laid onto each other, every turn of a grid is tried with small shifts, the best is refined twice.

    Parameters
    ----------
    moving_um, onto_um
        (n, 2) and (m, 2) centres, µm.
    moving_stain, onto_stain
        (n, d) and (m, d) features to be made alike; each is taken about its section's mean.
    angles
        Turns tried at first.
    shifts
        Shifts of two pitches tried to each side.

    Returns
    -------
    (n, 2), µm; None where the two cannot be laid onto each other: less than half would overlap, or no stain varies.
    """
    if min(len(moving_um), len(onto_um)) < 2:
        return None
    about = moving_um - moving_um.mean(axis=0)
    middle = onto_um.mean(axis=0)
    tree, pitch = cKDTree(onto_um), _pitch(onto_um)
    a, b = moving_stain - moving_stain.mean(axis=0), onto_stain - onto_stain.mean(axis=0)

    def moved(turn: float, flip: float, dx: float, dy: float) -> Floats:
        c, s = np.cos(turn), np.sin(turn)
        return np.asarray((about * [flip, 1.0]) @ np.array([[c, s], [-s, c]]) + middle + [dx, dy])

    def fit(parameters: tuple[float, float, float, float]) -> float:
        distance, index = tree.query(moved(*parameters))
        on = distance < pitch
        overlap = on.mean()
        if overlap < 0.5:
            return -np.inf
        alike = mean_defined(pearson(a[on], b[index[on]])).value
        return -np.inf if np.isnan(alike) else float(alike * overlap)

    step = 2 * np.pi / angles
    grid = np.arange(-shifts, shifts + 1) * 2 * pitch
    best = max(itertools.product(np.arange(angles) * step, (1.0, -1.0), grid, grid), key=fit)
    if fit(best) == -np.inf:
        return None
    for fine in (0.3, 0.1):
        turns = best[0] + np.arange(-3, 4) * step * fine
        xs, ys = (best[i] + np.arange(-3, 4) * 2 * pitch * fine for i in (2, 3))
        best = max(itertools.product(turns, (best[1],), xs, ys), key=fit)
    return moved(*best)


def _pitch(xy_um: Floats) -> float:
    return float(np.median(cKDTree(xy_um).query(xy_um, k=2)[0][:, 1]))
