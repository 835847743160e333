"""The two frames of a Xenium run: the instrument's, in which molecules lie, and the H&E's, drawn and scanned later.

    instrument = turn(tissue + registration error) + shift

The H&E is drawn in the tissue's frame. The alignment file states the turn and the shift alone, so that the registration
error is left between the frames as `People.registration_um` says. Landmarks are pairs of one nucleus in both pictures:
up to their own error they know the registration error too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from triglyph.tissue.frames import Affine
from triglyph.tissue.simulate.registration import registration_error
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.simulate.streams import stream

PIXEL_UM = 0.2125
"""Of the instrument's pictures, on every instrument."""
LANDMARKS = 4
"""The frame is cut into this many parts along each side; each that holds nuclei gives one landmark."""
_VISIT_UM = 5.0
"""Distance of the points at which the range of the registration error is taken."""


@dataclass(frozen=True)
class InstrumentFrame:
    """Where things of a specimen lie in the instrument's frame."""

    specimen: Specimen

    @cached_property
    def stated(self) -> Affine:
        """From the tissue's µm to the instrument's µm, as the alignment file has it."""
        config = self.specimen.config
        knobs = config.transcripts
        turn, *shift = stream(config.seed, "he frame", *self.specimen.keys).standard_normal(3)
        angle = np.deg2rad(knobs.he_turn_degrees * turn)
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        corners = Affine(a=cos, b=-sin, c=0.0, d=sin, e=cos, f=0.0)(self._region_um)
        # The instrument's region begins at 0 and holds the whole frame, wherever the registration error moves it.
        start = np.abs(shift) * knobs.he_shift_um - corners.min(0)
        return Affine(a=cos, b=-sin, c=float(start[0]), d=sin, e=cos, f=float(start[1]))

    @cached_property
    def _region_um(self) -> NDArray[np.float64]:
        """(4, 2) corners of the smallest upright square or oblong that holds the frame under its registration error."""
        config = self.specimen.config
        axis = (np.arange(np.ceil(config.anatomy.side_um / _VISIT_UM)) + 0.5) * _VISIT_UM
        everywhere = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        error = registration_error(config, *self.specimen.keys, everywhere)
        low, high = error.min(0), config.anatomy.side_um + error.max(0)
        return np.array([[low[0], low[1]], [low[0], high[1]], [high[0], low[1]], [high[0], high[1]]])

    @cached_property
    def shape_px(self) -> tuple[int, int]:
        """Rows and columns of the instrument's pictures."""
        far = self.stated(self._region_um).max(0)
        return int(np.ceil(far[1] / PIXEL_UM)) + 1, int(np.ceil(far[0] / PIXEL_UM)) + 1

    def place(self, xy_um: NDArray[np.float64], at_um: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Points (n, 2) of the tissue in the instrument's µm; with `at_um`, under the error found there."""
        where = xy_um if at_um is None else at_um
        error = registration_error(self.specimen.config, *self.specimen.keys, where)
        return np.asarray(self.stated(xy_um + error))

    def outlines(self, corners_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """Outlines (cells, corners, 2) in the instrument's µm; a cell is moved whole."""
        at = np.repeat(self.specimen.tissue.cells.xy_um, corners_um.shape[1], axis=0)
        return self.place(corners_um.reshape(-1, 2), at).reshape(corners_um.shape)

    def alignment(self, mpp: float) -> NDArray[np.float64]:
        """(3, 3) from pixels of the H&E to pixels of the instrument's pictures."""
        to_pixels = Affine.scale(1 / PIXEL_UM)
        return Affine.scale(mpp).then(self.stated).then(to_pixels).matrix

    def keypoints(self, mpp: float) -> pd.DataFrame:
        """Landmarks: `fixed` in pixels of the instrument's pictures, `alignment` in those of the H&E."""
        config, cells = self.specimen.config, self.specimen.tissue.cells
        part = np.floor(cells.xy_um / config.anatomy.side_um * LANDMARKS).astype(np.int64) @ [1, LANDMARKS]
        size = cells.long_um * cells.short_um
        # The largest nucleus of each part: one that a person would find again.
        order = np.lexsort((-size, part))
        first = order[np.concatenate([[True], np.diff(part[order]) > 0])] if len(order) else order
        rng = stream(config.seed, "landmarks", *self.specimen.keys)
        error = config.transcripts.landmark_um / np.sqrt(2) * rng.standard_normal((LANDMARKS**2, 2))
        fixed = (self.place(cells.xy_um[first]) + error[part[first]]) / PIXEL_UM
        moved = cells.xy_um[first] / mpp
        names = ("fixedX", "fixedY", "alignmentX", "alignmentY")
        return pd.DataFrame(np.column_stack([fixed, moved]), columns=list(names))
