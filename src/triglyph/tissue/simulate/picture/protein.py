"""Multiplexed protein of the same anatomy: what antibodies would show of the cells that the H&E shows.

Every pixel belongs to the cell whose outline is nearest; a channel is that cell's level in its nucleus, its cytoplasm
or its membrane, by type and state. What the camera sees of it has the patient's staining strength, crosstalk from the
channel before, autofluorescence, blur and noise. `write_protein` makes a pyramidal OME-TIFF of 16-bit channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from triglyph.errors import RecipeError
from triglyph.tissue.simulate.anatomy.ellipses import in_radii
from triglyph.tissue.simulate.anatomy.tissue import Cells
from triglyph.tissue.simulate.fields import Field, resize
from triglyph.tissue.simulate.knobs.anatomy import Anatomy
from triglyph.tissue.simulate.knobs.names import CELL_TYPES
from triglyph.tissue.simulate.knobs.states import STATES
from triglyph.tissue.simulate.locations import Footprint
from triglyph.tissue.simulate.picture.ome import write_ome_channels
from triglyph.tissue.simulate.picture.patches import Patches, column
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.simulate.streams import stream
from triglyph.units import checked_mpp

FULL = 1023 * 64
"""Grey level of a signal of 1."""
_STEP = 64
"""Grey levels are multiples of this, as from a camera of 10 bits: finer ones would store noise."""


@dataclass(frozen=True)
class Marker:
    """What a channel shows."""

    place: Literal["nucleus", "cytoplasm", "membrane"]
    levels: dict[str, float]
    """Cell type -> level of a positive cell, as a share of full scale; other types have none."""
    positive: dict[str, float] = field(default_factory=dict)
    """Cell type -> share of positive cells where the states are 0; all, unless said otherwise."""
    states: dict[str, float] = field(default_factory=dict)
    """State -> what a unit of it adds to the log odds of being positive, or to the log level where all cells are."""
    wall: float = 0.0
    """Level in the walls of vessels."""


CHANNELS: dict[str, Marker] = {
    "DAPI": Marker(
        "nucleus",
        {
            "tumour": 0.42, "epithelial": 0.46, "fibroblast": 0.42, "T cell": 0.62, "B cell": 0.52, "macrophage": 0.36,
            "endothelial": 0.48, "adipocyte": 0.44,
        },
    ),
    "panCK": Marker("cytoplasm", {"tumour": 0.5, "epithelial": 0.6}),
    "CD3": Marker("membrane", {"T cell": 0.6}),
    "CD8": Marker("membrane", {"T cell": 0.55}, positive={"T cell": 0.35}, states={"inflammation": 0.8}),
    "CD20": Marker("membrane", {"B cell": 0.6}),
    "CD68": Marker("cytoplasm", {"macrophage": 0.55}),
    "SMA": Marker("cytoplasm", {"fibroblast": 0.2}, states={"fibrosis": 0.5}, wall=0.5),
    "CD31": Marker("membrane", {"endothelial": 0.6}),
    "Vimentin": Marker(
        "cytoplasm", {"fibroblast": 0.5, "endothelial": 0.45, "macrophage": 0.4, "T cell": 0.3, "B cell": 0.15}
    ),
    "Ki67": Marker(
        "nucleus",
        {"tumour": 0.6, "T cell": 0.5, "B cell": 0.5},
        positive={"tumour": 0.2, "T cell": 0.04, "B cell": 0.1},
        states={"proliferation": 1.2},
    ),
    "ER": Marker("nucleus", {"tumour": 0.5, "epithelial": 0.4}, positive={"tumour": 0.6, "epithelial": 0.3},
                 states={"oestrogen response": 1.5}),
    "HER2": Marker("membrane", {"tumour": 1.0, "epithelial": 0.06}),
    "PD-L1": Marker(
        "membrane",
        {"macrophage": 0.5, "tumour": 0.4},
        positive={"macrophage": 0.4, "tumour": 0.15},
        states={"inflammation": 1.2},
    ),
}  # fmt: skip
"""The panel. HER2 is the patient's: tumours are amplified, or hardly stain."""
_HER2 = (0.75, 0.10)
_AMPLIFIED = 0.2
_CELL_SPREAD = 0.25
"""Standard deviation of a cell's log level."""
_STRENGTH = 0.15
"""Standard deviation of a patient's log staining strength in a channel."""
_CROSSTALK = 0.04
"""Share of the channel before that is seen in the next one."""
_BLACK, _GLOW = 0.12, 0.02
"""Grey level of the camera in the dark, high enough that noise is not cut off; autofluorescence of tissue."""
_BLUR_UM = 0.45
_MEMBRANE_UM = 0.9
_THIN_UM = 1.4
"""Cytoplasm of a cell that is drawn without any on H&E."""
_TOUCHING = 0.8
"""Membrane where cells touch, relative to a free one."""
_THROUGH = 0.15
"""Share of what lies around a nucleus that is seen over it: sections are thicker than nuclei."""
_BATCH = 512


class ProteinImage(NamedTuple):
    """What was written, and the truth about it."""

    path: Path
    channels: tuple[str, ...]
    mpp: float
    truth: NDArray[np.float64]
    """(locations, channels) mean over each location of the levels, 0 to 1, before the camera and without any noise."""


class Proteins:
    """The channels of one specimen.

    Parameters
    ----------
    specimen
        Its `config.protein` says which channels at which scale.

    Raises
    ------
    RecipeError
        No channel is named, one twice, or one that there is not.
    """

    def __init__(self, specimen: Specimen) -> None:
        self.specimen, self.channels = specimen, specimen.config.protein.channels
        unknown = [name for name in self.channels if name not in CHANNELS]
        if unknown or not self.channels or len(set(self.channels)) < len(self.channels):
            raise RecipeError(
                f"there is no channel {unknown[0]!r}" if unknown else "channels are not named, each once",
                where="protein.channels",
                mend=f"choose from {', '.join(CHANNELS)}",
            )
        self.mpp = float(checked_mpp(specimen.config.protein.mpp, where="protein.mpp"))
        self.side = int(np.ceil(specimen.config.anatomy.side_um / self.mpp))
        self.footprint = Footprint(specimen.config.spots, self.mpp)

    @cached_property
    def _masks(self) -> tuple[NDArray[np.int32], dict[str, Field]]:
        """Which cell each pixel belongs to (-1: none), and how much of its nucleus, cytoplasm and membrane is there."""
        cells, mpp = self.specimen.tissue.cells, np.float32(self.mpp)
        rim = _rims(self.specimen.config.anatomy, cells)
        owner, outside = _owners(cells, rim, self.side, self.mpp)
        width = np.append(rim, 0.0).astype(np.float32)[owner]
        nucleus = np.clip(0.5 - outside / mpp, 0, 1)
        around = np.clip(0.5 + (width - outside) / mpp, 0, 1) * (1 - nucleus)
        edge = np.exp(-(((outside - width) / np.float32(_MEMBRANE_UM)) ** 2))
        membrane = around * (np.float32(0.25) + np.float32(0.75) * edge) + np.float32(_THROUGH) * nucleus
        # Crowded cells touch before their cytoplasm ends; there the membrane lies where one passes into the other.
        touching = np.float32(_TOUCHING) * _borders(owner)
        return owner, {
            "nucleus": nucleus,
            "cytoplasm": around + np.float32(_THROUGH) * nucleus,
            "membrane": np.maximum(membrane, touching),
        }

    def level_of_cells(self, channel: str) -> NDArray[np.float64]:
        """(cells,) level of a channel in each cell; 0 where it is negative."""
        specimen, marker, cells = self.specimen, CHANNELS[channel], self.specimen.tissue.cells
        rng = stream(specimen.config.seed, f"protein {channel}", *specimen.keys)
        spread, lots = np.exp(_CELL_SPREAD * rng.standard_normal(len(cells))), rng.random(len(cells))
        push = np.zeros(len(cells))
        for state, effect in marker.states.items():
            strength = specimen.config.dial.strength(state)[1]
            push += strength * effect * np.clip(cells.states[:, STATES.index(state)], -2.5, 2.5)
        level = np.zeros(len(cells))
        for name, value in marker.levels.items():
            mine = cells.kind == CELL_TYPES.index(name)
            if name in marker.positive:
                share = marker.positive[name]
                odds = share / (1 - share) * np.exp(push[mine])
                level[mine] = np.where(lots[mine] < odds / (1 + odds), value, 0.0)
            else:
                level[mine] = value * np.exp(push[mine])
        if channel == "HER2":
            amplified = stream(specimen.config.seed, "HER2", specimen.patient).random() < _AMPLIFIED
            level[cells.kind == CELL_TYPES.index("tumour")] *= _HER2[0 if amplified else 1]
        return np.asarray(level * spread)

    def levels(self, channel: str) -> Field:
        """(side, side) levels of a channel, free of noise; 1 is full scale."""
        owner, masks = self._masks
        marker, level = CHANNELS[channel], np.append(self.level_of_cells(channel), 0.0).astype(np.float32)
        image = level[owner] * masks[marker.place]
        if marker.wall:
            image = np.maximum(image, np.float32(marker.wall) * self._enlarged(self.specimen.tissue.compartments.wall))
        return np.asarray(np.minimum(image, 1.0), dtype=np.float32)

    def seen(self, channel: str, levels: Field, before: Field | None) -> NDArray[np.uint16]:
        """(side, side) what the camera writes.

        Parameters
        ----------
        levels
            Of this channel.
        before
            Levels of the channel before it in the image, or None for the first.
        """
        specimen, seed = self.specimen, self.specimen.config.seed
        strength = np.exp(_STRENGTH * stream(seed, f"protein strength {channel}", specimen.patient).standard_normal())
        signal = levels * np.float32(strength)
        if before is not None:
            signal = signal + np.float32(_CROSSTALK) * before
        signal = gaussian_filter(signal + self._glow, _BLUR_UM / self.mpp)
        noise = stream(seed, f"protein noise {channel}", *specimen.keys).standard_normal(signal.shape, dtype=np.float32)
        signal = signal + np.float32(_BLACK) + np.float32(specimen.config.protein.noise) * noise
        steps = np.clip(signal, 0, 1) * np.float32(FULL // _STEP) + np.float32(0.5)
        return np.asarray(steps.astype(np.uint16) * np.uint16(_STEP))

    @cached_property
    def _glow(self) -> Field:
        """Autofluorescence: faint in all tissue, stronger in debris and red cells."""
        tissue = self.specimen.tissue
        part = tissue.compartments
        return np.float32(_GLOW) * self._enlarged(tissue.cover * (1 + 2 * part.debris + 2 * part.blood))

    def _enlarged(self, grid: Field) -> Field:
        """A map of the anatomy at this image's pixels."""
        whole = self.side * self.mpp / self.specimen.tissue.step_um
        # The image may be a little larger than the frame; the map goes on unchanged to its edge.
        grid = np.pad(grid, (0, max(int(np.ceil(whole)) - len(grid), 0)), mode="edge")
        return np.clip(resize(grid, (self.side, self.side), box=(0.0, 0.0, whole, whole)), 0, None)


def write_protein(specimen: Specimen, path: Path) -> ProteinImage:
    """Write the channels named in `config.protein` as a pyramidal OME-TIFF, atomically.

    Pixel (i, j) of a channel covers the square from (j, i) x mpp to (j + 1, i + 1) x mpp of the section's true frame.
    Levels below the first are reduced images of each channel's page; bytes depend on the specimen alone.

    Raises
    ------
    RecipeError
        No channel is named, one twice, or one that there is not.
    StorageError
        The disk is full or read-only.
    """
    proteins, path = Proteins(specimen), Path(path)
    truth: list[NDArray[np.float64]] = []

    def channels() -> Iterator[NDArray[np.uint16]]:
        before = None
        for name in proteins.channels:
            levels = proteins.levels(name)
            truth.append(proteins.footprint.mean(levels, specimen.centres_um))
            yield proteins.seen(name, levels, before)
            before = levels

    write_ome_channels(path, channels(), proteins.channels, side=proteins.side, mpp=proteins.mpp)
    return ProteinImage(path, proteins.channels, proteins.mpp, np.stack(truth, 1))


def _rims(anatomy: Anatomy, cells: Cells) -> NDArray[np.float64]:
    """(cells,) width of the cytoplasm in µm."""
    return np.array([max(anatomy.nuclei[name].cytoplasm_um, _THIN_UM) for name in CELL_TYPES])[cells.kind]


def _owners(
    cells: Cells, rim_um: NDArray[np.float64], side: int, mpp: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """For each pixel the cell whose nucleus' outline is nearest, and the distance to it (µm, negative inside).

    A pixel that lies beyond the cytoplasm of every cell has no owner (-1), and a distance that is large.
    """
    owner, nearest = np.full((side, side), -1, dtype=np.int32), np.full((side, side), 1e3, dtype=np.float32)
    # Cells of like size together waste few pixels on margins.
    order = np.argsort(cells.long_um, kind="stable")
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        reach_um = float(cells.long_um[batch].max() / 2 + rim_um[batch].max())
        patches = Patches(cells.xy_um[batch], reach_um, mpp)
        dx, dy = patches.dx_um, patches.dy_um
        cos, sin = column(np.cos(cells.angle[batch])), column(np.sin(cells.angle[batch]))
        half_long, half_short = column(cells.long_um[batch] / 2), column(cells.short_um[batch] / 2)
        # Along the ray from the centre: the distance, less the ellipse's radius in that direction.
        distance = np.sqrt(dx * dx + dy * dy)
        p, q = in_radii(dx, dy, cos, sin, half_long, half_short)
        scaled = np.sqrt(p * p + q * q)
        radius = np.where(scaled > 1e-4, distance / np.maximum(scaled, np.float32(1e-4)), half_short)
        outside = distance - radius
        outside[outside > column(rim_um[batch]) + np.float32(mpp)] = np.inf
        for number, there, here in patches.windows(owner.shape):
            mine, held = outside[number][here], nearest[there]
            closer = mine < held
            held[closer] = mine[closer]
            owner[there][closer] = batch[number]
    return owner, nearest


def _borders(owner: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels of a cell that lie beside a pixel of another cell."""
    border = np.zeros(owner.shape, dtype=bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        apart = (owner[one] != owner[other]) & (owner[one] >= 0) & (owner[other] >= 0)
        border[one] |= apart
        border[other] |= apart
    return border
