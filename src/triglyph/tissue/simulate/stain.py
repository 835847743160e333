"""H&E by the Beer-Lambert law: densities of haematoxylin and eosin, a stain matrix a patient, light on glass.

Tissue is painted in strips of rows: smooth maps of the anatomy are enlarged to pixels, fibres and grain are added, the
cells' canvas is laid on top, and two densities become three channels. Memory is a few strips and three byte canvases.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from triglyph.tissue.simulate.anatomy import Tissue
from triglyph.tissue.simulate.fields import Field, sample, strip
from triglyph.tissue.simulate.nuclei import DENSITY_UNITS, Canvas, draw_cells
from triglyph.tissue.simulate.presets import DOMAINS, STATES, Simulation
from triglyph.tissue.simulate.streams import stream

# Optical density in red, green and blue, unit length: between the vectors of Ruifrok and Johnston (2001), which are of
# pure stains, and the reference of Macenko (2009), taken from slides.
_HAEMATOXYLIN = np.array([0.628, 0.706, 0.327])
_EOSIN = np.array([0.150, 0.890, 0.430])
_ROWS = 256
_LUT = 4096


@dataclass(frozen=True)
class Dye:
    """The stain and the microscope of one patient."""

    mpp: float
    matrix: NDArray[np.float64]
    """(2, 3) optical density of haematoxylin and eosin per channel, strength included."""
    white: NDArray[np.float64]
    """(3,) grey level of empty glass."""


def patient_dye(config: Simulation, patient: int) -> Dye:
    """The stain of a patient: hue, strength and white of its own."""
    rng, stain = stream(config.seed, "dye", patient), config.stain
    vectors = np.stack([_HAEMATOXYLIN, _EOSIN]) + stain.hue * rng.standard_normal((2, 3))
    vectors = np.clip(vectors, 0.02, None)
    vectors /= np.sqrt((vectors**2).sum(1, keepdims=True))
    strength = np.exp(stain.strength * rng.standard_normal((2, 1)))
    white = rng.uniform(*stain.white) + rng.normal(0, 1.2, 3)
    # Four decimals, so that a file which states the resolution can state it exactly.
    mpp = round(float(rng.uniform(*stain.mpp)), 4)
    return Dye(mpp=mpp, matrix=vectors * strength, white=np.clip(white, 0, 255))


def image_side_px(config: Simulation, mpp: float) -> int:
    """Pixels along each side; a multiple of 64, so that six pyramid levels halve exactly."""
    return int(np.ceil(config.anatomy.side_um / mpp / 64)) * 64


def paint(config: Simulation, tissue: Tissue, dye: Dye, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The section as pixels, (side, side, 3)."""
    side = image_side_px(config, dye.mpp)
    shape = (side, side)
    canvas = Canvas.empty(shape)
    draw_cells(canvas, tissue.cells, config.anatomy.nuclei, mpp=dye.mpp, rng=rng)
    _draw_debris(canvas, tissue, dye.mpp, rng)
    _draw_blood(canvas, tissue, dye.mpp, rng)
    # The image is a little larger than the frame; the maps go on unchanged to its edge.
    beyond = int(np.ceil(side * dye.mpp / tissue.step_um)) + 1 - len(tissue.cover)
    maps, textures = _Maps.of(tissue, config.stain.state, beyond), _Textures.draw(config, dye.mpp, rng)
    pixels = np.empty((*shape, 3), dtype=np.uint8)
    for top in range(0, side, _ROWS):
        rows = (top, min(top + _ROWS, side))
        haematoxylin, eosin = _densities(maps, textures, canvas, rows, shape, dye.mpp / tissue.step_um)
        pixels[rows[0] : rows[1]] = _light(haematoxylin, eosin, dye, textures, rows)
    return pixels


@dataclass(frozen=True)
class _Maps:
    """Maps on the anatomy's grid that the strips enlarge."""

    cover: Field
    haematoxylin: Field
    eosin: Field
    fibre: Field
    """Share of the eosin that lies in fibres."""
    loose: Field
    """How wide the clefts between fibres are."""
    phase: Field
    hole: Field
    coarse: Field
    """Strength of granular texture."""

    @classmethod
    def of(cls, tissue: Tissue, change: float, beyond: int) -> _Maps:
        """The maps of a tissue, `beyond` grid points longer; states change densities by `change` (log)."""
        part, states = tissue.compartments, tissue.states
        fibrosis = np.clip(states[STATES.index("fibrosis")], -2, 2)
        collagen = np.exp(change * fibrosis)
        hypoxic = np.exp(change * np.clip(states[STATES.index("hypoxia")], -2, 2))
        inflamed = tissue.domains[DOMAINS.index("immune infiltrate")]
        necrosis = part.debris
        tumour = np.maximum(part.nest, part.duct)
        stroma = np.clip(part.stroma - necrosis - inflamed, 0, 1)
        fat = tissue.domains[DOMAINS.index("adipose tissue")]
        eosin = (
            stroma * 0.26 * collagen * (1 - 0.75 * fat)
            + part.rim * 0.2
            + part.nest * 0.23 * hypoxic
            + part.duct * 0.25 * hypoxic
            + part.gland * 0.30
            + inflamed * 0.14 * (1 - tumour)
            + necrosis * 0.40
            + part.wall * 0.42
            + part.membrane * 0.22
        )
        haematoxylin = (
            (part.nest * 0.16 + part.duct * 0.09) / hypoxic
            + part.gland * 0.10
            + inflamed * 0.12
            + necrosis * 0.10
            + stroma * 0.025
        )
        maps = cls(
            cover=tissue.cover,
            haematoxylin=np.clip(haematoxylin, 0, None),
            eosin=np.clip(eosin, 0.02, None),
            fibre=stroma * 0.75 + part.wall * 0.3,
            loose=stroma * np.clip(0.22 - 0.16 * fibrosis, 0, 0.7),
            phase=part.fibre_phase_um,
            hole=part.lumen,
            coarse=0.10 + 0.10 * tumour + 0.20 * necrosis + 0.1 * inflamed,
        )
        grow = (0, max(beyond, 0))
        return cls(*(np.pad(getattr(maps, f.name), (grow, grow), mode="edge").astype(np.float32) for f in fields(cls)))


@dataclass(frozen=True)
class _Textures:
    fibre: NDArray[np.float32]
    """(_LUT,) periodic profile across fibres, 0 to 1."""
    period_um: float
    granule: NDArray[np.float32]
    """Periodic tile, 0 ± 1, clumps of about 2 µm."""
    mottle: NDArray[np.float32]
    """Periodic tile, 0 ± 1, clumps of about 12 µm; bends fibres and breaks evenness."""
    camera: NDArray[np.float32]
    """Periodic tile of camera noise in grey levels."""

    @classmethod
    def draw(cls, config: Simulation, mpp: float, rng: np.random.Generator) -> _Textures:
        period_um = 1024.0
        per_um = _LUT / period_um
        thick = gaussian_filter1d(rng.standard_normal(_LUT), config.stain.fibre_um / 2.2 * per_um, mode="wrap")
        thin = gaussian_filter1d(rng.standard_normal(_LUT), 0.8 * per_um, mode="wrap")
        profile = thick / thick.std() + 0.45 * thin / thin.std()
        rank = np.argsort(np.argsort(profile, kind="stable"), kind="stable")
        return cls(
            fibre=((rank + 0.5) / _LUT).astype(np.float32),
            period_um=period_um,
            granule=_tile(rng, 1.1 / mpp, 1021),
            mottle=_tile(rng, 6.0 / mpp, 1013),
            camera=(config.stain.grain * rng.standard_normal((1019, 1019))).astype(np.float32),
        )


def _tile(rng: np.random.Generator, sigma_px: float, side: int) -> NDArray[np.float32]:
    noise = gaussian_filter(rng.standard_normal((side, side)), sigma_px, mode="wrap")
    return (noise / noise.std()).astype(np.float32)


def _repeat(tile: NDArray[np.float32], rows: tuple[int, int], width: int) -> NDArray[np.float32]:
    """Rows of an endless tiling; sides are primes, so that no two tiles repeat together."""
    part = tile[np.arange(*rows) % len(tile)]
    return np.tile(part, (1, width // tile.shape[1] + 1))[:, :width]


def _densities(
    maps: _Maps, textures: _Textures, canvas: Canvas, rows: tuple[int, int], shape: tuple[int, int], scale: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    def enlarge(field: Field) -> Field:
        return strip(field, rows, shape, scale)

    here = slice(*rows)
    granule, mottle = _repeat(textures.granule, rows, shape[1]), _repeat(textures.mottle, rows, shape[1])
    across = (enlarge(maps.phase) + 2.2 * mottle) * np.float32(_LUT / textures.period_um)
    profile = textures.fibre[across.astype(np.int64) % _LUT]
    fibre, loose = enlarge(maps.fibre), enlarge(maps.loose)
    # Dense where the profile is high; below `loose` the tissue has parted and glass shows.
    bundle = np.clip((profile - loose) * 5 + 0.6, 0, 1) * (0.72 + 0.5 * profile + 0.08 * granule)
    coarse = enlarge(maps.coarse)
    uneven = 1 + coarse * granule + 0.12 * mottle
    hole = np.clip(enlarge(maps.hole), 0, 1)
    solid = np.clip(enlarge(maps.cover), 0, 1) * (1 - hole)
    eosin = enlarge(maps.eosin) * (1 - fibre + fibre * bundle) * uneven * solid
    haematoxylin = enlarge(maps.haematoxylin) * uneven * solid

    cover = canvas.cover[here].astype(np.float32) / 255
    cytoplasm = canvas.eosin[here].astype(np.float32) / np.float32(DENSITY_UNITS) * (1 + 0.12 * granule)
    eosin = np.maximum(eosin, cytoplasm) * (1 - 0.65 * cover)
    haematoxylin = haematoxylin * (1 - cover) + canvas.haematoxylin[here].astype(np.float32) / np.float32(DENSITY_UNITS)
    return np.clip(haematoxylin, 0, None), np.clip(eosin, 0, None)


def _light(
    haematoxylin: NDArray[np.float32],
    eosin: NDArray[np.float32],
    dye: Dye,
    textures: _Textures,
    rows: tuple[int, int],
) -> NDArray[np.uint8]:
    """Beer-Lambert: grey level = white x 10^-(density)."""
    noise = _repeat(textures.camera, rows, haematoxylin.shape[1])
    channels = []
    for channel in range(3):
        h, e = (np.float32(-np.log(10) * dye.matrix[i, channel]) for i in range(2))
        level = np.exp(h * haematoxylin + e * eosin) * np.float32(dye.white[channel]) + noise
        channels.append(np.clip(level + 0.5, 0, 255).astype(np.uint8))
    return np.stack(channels, -1)


def _draw_debris(canvas: Canvas, tissue: Tissue, mpp: float, rng: np.random.Generator) -> None:
    """Nuclear dust in necrosis: dark dots of 1 to 2.5 µm."""
    _dots(canvas.haematoxylin, tissue, tissue.compartments.debris, 3500.0, (0.5, 1.3), (60, 120), mpp, rng)


def _draw_blood(canvas: Canvas, tissue: Tissue, mpp: float, rng: np.random.Generator) -> None:
    """Red cells in vessels: discs of about 6.5 µm, eosin only."""
    _dots(canvas.eosin, tissue, tissue.compartments.blood, 14000.0, (2.9, 3.5), (60, 85), mpp, rng)


def _dots(
    target: NDArray[np.uint8],
    tissue: Tissue,
    where: Field,
    per_mm2: float,
    radius_um: tuple[float, float],
    density: tuple[int, int],
    mpp: float,
    rng: np.random.Generator,
) -> None:
    side_um = where.shape[0] * tissue.step_um
    xy = rng.uniform(0, side_um, (round(per_mm2 * side_um**2 * 1e-6), 2))
    radius = rng.uniform(*radius_um, len(xy))
    level = rng.integers(*density, len(xy))
    keep = rng.random(len(xy)) < sample(where * tissue.cover, xy, tissue.step_um)
    height, width = target.shape
    for (x, y), r, value in zip(xy[keep] / mpp, radius[keep] / mpp, level[keep], strict=True):
        x0, x1, y0, y1 = max(int(x - r), 0), min(int(x + r) + 2, width), max(int(y - r), 0), min(int(y + r) + 2, height)
        distance = np.hypot(np.arange(x0, x1) + 0.5 - x, (np.arange(y0, y1) + 0.5 - y)[:, None])
        view = target[y0:y1, x0:x1]
        np.maximum(view, (np.clip(r - distance + 0.5, 0, 1) * value).astype(np.uint8), out=view)
