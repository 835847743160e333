"""Multiplexed protein of the same anatomy: what antibodies would show of the cells that the H&E shows.

Every pixel belongs to the cell whose outline is nearest; a channel is that cell's level in its nucleus, its cytoplasm
or its membrane, by type and state. What the camera sees of it has the patient's staining strength, crosstalk from the
channel before, autofluorescence, blur and noise. `write_protein` makes a pyramidal OME-TIFF of 16-bit channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from triglyph.errors import RecipeError
from triglyph.storage import atomic_file
from triglyph.tissue.simulate.anatomy.tissue import Cells
from triglyph.tissue.simulate.fields import Field, resize
from triglyph.tissue.simulate.knobs import CELL_TYPES, STATES, Anatomy
from triglyph.tissue.simulate.locations import is_square
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
_TILE, _SMALLEST, _BATCH = 256, 512, 512


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

    def over_locations(self, image: Field) -> NDArray[np.float64]:
        """(locations,) mean of an image over each location."""
        spots, centres = self.specimen.config.spots, self.specimen.centres_um
        half = spots.diameter_um / 2
        reach = max(int(half / self.mpp), 0)
        dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        inside = np.ones(dx.shape, dtype=bool) if is_square(spots) else np.hypot(dx, dy) * self.mpp <= half
        index = (centres / self.mpp).astype(np.int64)[:, None, :] + np.stack([dx, dy], -1)[inside]
        index = np.clip(index, 0, self.side - 1)
        return image[index[..., 1], index[..., 0]].astype(np.float64).mean(1)

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
    import tifffile

    proteins, path = Proteins(specimen), Path(path)
    side, number = proteins.side, len(proteins.channels)
    sizes = [side]
    while sizes[-1] > _SMALLEST:
        sizes.append(sizes[-1] // 2)
    below: list[NDArray[np.uint16]] = []
    truth: list[NDArray[np.float64]] = []

    def channels() -> Iterator[NDArray[np.uint16]]:
        before = None
        for name in proteins.channels:
            levels = proteins.levels(name)
            truth.append(proteins.over_locations(levels))
            pixels = proteins.seen(name, levels, before)
            below.append(_halved(pixels))
            before = levels
            yield pixels

    options = {
        "tile": (_TILE, _TILE),
        "photometric": "minisblack",
        "compression": "adobe_deflate",
        "compressionargs": {"level": 6},
        "predictor": True,
        "resolutionunit": "CENTIMETER",
        "metadata": None,
        "software": False,
        "maxworkers": 1,
        "dtype": np.uint16,
    }
    per_cm = 1e4 / proteins.mpp
    with atomic_file(path) as partial, tifffile.TiffWriter(partial, bigtiff=side**2 * number > 2**29) as writer:
        writer.write(
            _tiles(channels),
            shape=(number, side, side),
            subifds=len(sizes) - 1,
            description=_ome_xml(proteins),
            resolution=(per_cm, per_cm),
            **options,
        )
        level = below
        for k, size in enumerate(sizes[1:], start=1):
            writer.write(
                _tiles(lambda level=level: iter(level)),  # type: ignore[misc]
                shape=(number, size, size),
                subfiletype=1,
                resolution=(per_cm / 2**k, per_cm / 2**k),
                **options,
            )
            level = [_halved(pixels) for pixels in level]
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
        reach = int(np.ceil((cells.long_um[batch].max() / 2 + rim_um[batch].max()) / mpp)) + 1
        # The centre of pixel (i, j) lies at ((j + 0.5) mpp, (i + 0.5) mpp).
        centre = cells.xy_um[batch] / mpp - 0.5
        corner = np.round(centre).astype(np.int64) - reach
        axis = np.arange(2 * reach + 1)
        dx = ((corner[:, :1] + axis - centre[:, :1]) * mpp).astype(np.float32)[:, None, :]
        dy = ((corner[:, 1:] + axis - centre[:, 1:]) * mpp).astype(np.float32)[:, :, None]
        cos, sin = (f(cells.angle[batch]).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        half_long, half_short = (
            (size[batch] / 2).astype(np.float32)[:, None, None] for size in (cells.long_um, cells.short_um)
        )
        # Along the ray from the centre: the distance, less the ellipse's radius in that direction.
        distance = np.sqrt(dx * dx + dy * dy)
        scaled = np.sqrt(((dx * cos + dy * sin) / half_long) ** 2 + ((dy * cos - dx * sin) / half_short) ** 2)
        radius = np.where(scaled > 1e-4, distance / np.maximum(scaled, np.float32(1e-4)), half_short)
        outside = distance - radius
        outside[outside > rim_um[batch].astype(np.float32)[:, None, None] + np.float32(mpp)] = np.inf
        size = len(axis)
        for cell, (left, top), depth in zip(batch.tolist(), corner.tolist(), outside, strict=True):
            x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size, side), min(top + size, side)
            if x0 < x1 and y0 < y1:
                mine, held = depth[y0 - top : y1 - top, x0 - left : x1 - left], nearest[y0:y1, x0:x1]
                closer = mine < held
                held[closer] = mine[closer]
                owner[y0:y1, x0:x1][closer] = cell
    return owner, nearest


def _borders(owner: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels of a cell that lie beside a pixel of another cell."""
    border = np.zeros(owner.shape, dtype=bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        apart = (owner[one] != owner[other]) & (owner[one] >= 0) & (owner[other] >= 0)
        border[one] |= apart
        border[other] |= apart
    return border


def _ome_xml(proteins: Proteins) -> str:
    channels = "".join(
        f'<Channel ID="Channel:0:{i}" Name={quoteattr(name)} SamplesPerPixel="1"/>'
        for i, name in enumerate(proteins.channels)
    )
    scale = " ".join(f'PhysicalSize{a}="{proteins.mpp}" PhysicalSize{a}Unit="&#181;m"' for a in "XY")
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="'
        "http://www.openmicroscopy.org/Schemas/OME/2016-06 http://www.openmicroscopy.org/Schemas/OME/2016-06/ome.xsd"
        '"><Image ID="Image:0" Name="protein"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" '
        f'SizeX="{proteins.side}" SizeY="{proteins.side}" SizeC="{len(proteins.channels)}" SizeZ="1" SizeT="1" '
        f'BigEndian="false" {scale}>{channels}<TiffData IFD="0" PlaneCount="{len(proteins.channels)}"/>'
        "</Pixels></Image></OME>"
    )


def _halved(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The 2 x 2 box average, rounded; an odd last row or column is dropped."""
    side = len(pixels) // 2 * 2
    even = pixels[:side, :side].astype(np.uint32)
    return ((even[0::2, 0::2] + even[0::2, 1::2] + even[1::2, 0::2] + even[1::2, 1::2] + 2) >> 2).astype(np.uint16)


def _tiles(images: Callable[[], Iterator[NDArray[np.uint16]]]) -> Iterator[NDArray[np.uint16]]:
    """Tiles of one image after another, in reading order; those at the edge are filled with zeros."""
    for pixels in images():
        short = -len(pixels) % _TILE
        whole = np.pad(pixels, (0, short))
        for top in range(0, len(whole), _TILE):
            for left in range(0, len(whole), _TILE):
                yield np.ascontiguousarray(whole[top : top + _TILE, left : left + _TILE])
