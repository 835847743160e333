"""H&E by the Beer-Lambert law: densities of haematoxylin and eosin, a stain matrix a patient, light on glass.

Tissue is painted in strips of rows: smooth maps of the anatomy are enlarged to pixels, fibres and grain are added, the
cells' canvas is laid on top, and two densities become three channels. Strips are low enough to stay in the processor's
cache; memory is a few strips, three byte canvases and the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from triglyph.tissue.simulate.anatomy.tissue import Tissue
from triglyph.tissue.simulate.fields import Field, sample, strip
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.people import person
from triglyph.tissue.simulate.picture.artefacts import Ink, defocus, fold
from triglyph.tissue.simulate.picture.nuclei import DENSITY_UNITS, Canvas, draw_cells
from triglyph.tissue.simulate.picture.tints import Tints, tints
from triglyph.tissue.simulate.streams import stream

# Optical density in red, green and blue, unit length: between the vectors of Ruifrok and Johnston (2001), which are of
# pure stains, and the reference of Macenko (2009), taken from slides.
_HAEMATOXYLIN = np.array([0.628, 0.706, 0.327])
_EOSIN = np.array([0.165, 0.888, 0.428])
_STRIP_PX = 500_000
_LUT = 4096
_PERIOD_UM = 1024.0


@dataclass(frozen=True)
class Dye:
    """The stain and the microscope of one patient."""

    mpp: float
    matrix: NDArray[np.float64]
    """(2, 3) optical density of haematoxylin and eosin per channel, strength included."""
    white: NDArray[np.float64]
    """(3,) grey level of empty glass."""


def patient_dye(config: Simulation, patient: int) -> Dye:
    """The stain of a patient: hue and strength of its own and of the site that stained it, white and scale."""
    rng, stain = stream(config.seed, "dye", patient), config.stain
    site = stream(config.seed, "dye site", person(config, patient).stain_site)
    vectors = np.stack([_HAEMATOXYLIN, _EOSIN]) + stain.hue * rng.standard_normal((2, 3))
    vectors += stain.site_hue * site.standard_normal((2, 3))
    vectors = np.clip(vectors, 0.02, None)
    vectors /= np.sqrt((vectors**2).sum(1, keepdims=True))
    strength = np.exp(stain.strength * rng.standard_normal((2, 1)))
    strength *= np.exp(stain.site_strength * site.standard_normal((2, 1)))
    white = rng.uniform(*stain.white) + rng.normal(0, 1.2, 3)
    # Four decimals, so that a file which states the resolution can state it exactly.
    mpp = round(float(rng.uniform(*stain.mpp)), 4)
    return Dye(mpp=mpp, matrix=vectors * strength, white=np.clip(white, 0, 255))


def image_side_px(config: Simulation, mpp: float) -> int:
    """Pixels along each side; a multiple of 64, so that six pyramid levels halve exactly."""
    return int(np.ceil(config.anatomy.side_um / mpp / 64)) * 64


def paint(
    config: Simulation,
    tissue: Tissue,
    dye: Dye,
    rng: np.random.Generator,
    *,
    artefacts: dict[str, Field] | None = None,
) -> NDArray[np.uint8]:
    """The section as pixels, (side, side, 3).

    Parameters
    ----------
    artefacts
        Maps from `artefacts.artefact_maps`; none by default.
    """
    # Children of the generator: what goes wrong takes no number from what goes right.
    pen_rng, focus_rng = rng.spawn(2)
    ink = Ink(pen_rng)
    side, scale = image_side_px(config, dye.mpp), dye.mpp / tissue.step_um
    canvas = Canvas.empty((side, side))
    cells = tissue.cells
    patchy = config.stain.subspot * config.molecules.subspot
    darker = patchy * sample(tissue.patch, cells.xy_um, tissue.step_um).astype(np.float64) if patchy else None
    draw_cells(canvas, cells, config.anatomy.nuclei, mpp=dye.mpp, rng=rng, dial=config.dial, darker=darker)
    _draw_debris(canvas, tissue, dye.mpp, rng)
    _draw_blood(canvas, tissue, dye.mpp, rng)
    # The image is a little larger than the frame; the maps go on unchanged to its edge.
    beyond = int(np.ceil(side * scale)) + 1 - len(tissue.cover)
    grow = (0, max(beyond, 0))
    spoiled = {name: np.pad(field, (grow, grow), mode="edge") for name, field in (artefacts or {}).items()}
    maps, textures = tints(config, tissue, beyond), _Textures.draw(config, dye.mpp, side, rng)
    pixels = np.empty((side, side, 3), dtype=np.uint8)
    height = max(8, _STRIP_PX // side)
    for top in range(0, side, height):
        rows = (top, min(top + height, side))
        haematoxylin, eosin = _densities(maps, textures, canvas, rows, side, scale)
        if "folds" in spoiled:
            folds = np.clip(strip(spoiled["folds"], rows, side, scale), 0, 1)
            haematoxylin, eosin = fold(haematoxylin, eosin, folds)
        _light(haematoxylin, eosin, dye, textures, rows, pixels[rows[0] : rows[1]])
    if "blur" in spoiled:
        defocus(pixels, spoiled["blur"], mpp=dye.mpp, scale=scale, rng=focus_rng)
    if "pen" in spoiled:
        # Ink lies on the cover glass, over whatever is in or out of focus below.
        for top in range(0, side, height):
            rows = (top, min(top + height, side))
            pen = strip(spoiled["pen"], rows, side, scale)
            ink.over(pixels[rows[0] : rows[1]], pen, _rows(textures.mottle, rows))
    return pixels


@dataclass(frozen=True)
class _Textures:
    """Periodic noise, extended so that every strip is a view of it."""

    fibre: NDArray[np.float32]
    """(_LUT,) periodic profile across fibres, 0 to 1."""
    granule: NDArray[np.float32]
    """0 ± 1, clumps of about 2 µm."""
    mottle: NDArray[np.float32]
    """0 ± 1, clumps of about 12 µm; bends fibres and breaks evenness."""
    camera: NDArray[np.float32]
    """Camera noise in grey levels."""

    @classmethod
    def draw(cls, config: Simulation, mpp: float, side: int, rng: np.random.Generator) -> _Textures:
        per_um = _LUT / _PERIOD_UM
        thick = gaussian_filter1d(rng.standard_normal(_LUT), config.stain.fibre_um / 2.2 * per_um, mode="wrap")
        thin = gaussian_filter1d(rng.standard_normal(_LUT), 0.8 * per_um, mode="wrap")
        profile = thick / thick.std() + 0.8 * thin / thin.std()
        rank = np.argsort(np.argsort(profile, kind="stable"), kind="stable")
        # Sides are primes, so that no two tiles repeat together.
        return cls(
            fibre=((rank + 0.5) / _LUT).astype(np.float32),
            granule=_tile(rng, 1.1 / mpp, 1021, side),
            mottle=_tile(rng, 6.0 / mpp, 1013, side),
            camera=_widen((config.stain.grain * rng.standard_normal((1019, 1019))).astype(np.float32), side),
        )


def _tile(rng: np.random.Generator, sigma_px: float, period: int, width: int) -> NDArray[np.float32]:
    noise = gaussian_filter(rng.standard_normal((period, period)).astype(np.float32), sigma_px, mode="wrap")
    return _widen(noise / noise.std(), width)


def _widen(tile: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.tile(tile, (1, width // tile.shape[1] + 1))[:, :width])


def _rows(tile: NDArray[np.float32], rows: tuple[int, int]) -> NDArray[np.float32]:
    """Rows of an endless tiling."""
    first = rows[0] % len(tile)
    last = first + rows[1] - rows[0]
    return tile[first:last] if last <= len(tile) else tile[np.arange(first, last) % len(tile)]


def _densities(
    maps: Tints, textures: _Textures, canvas: Canvas, rows: tuple[int, int], side: int, scale: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    def enlarge(field: Field) -> Field:
        return strip(field, rows, side, scale)

    # In place throughout: a temporary array here costs as much as the arithmetic.
    here = slice(*rows)
    granule, mottle = _rows(textures.granule, rows), _rows(textures.mottle, rows)
    across = enlarge(maps.phase_um)
    across += 2.2 * mottle
    across *= np.float32(_LUT / _PERIOD_UM)
    index = across.astype(np.int64)
    index &= _LUT - 1
    profile = np.take(textures.fibre, index)
    # Dense where the profile is high; below `loose` the tissue has parted and glass shows.
    bundle = profile - enlarge(maps.loose)
    bundle *= 5
    bundle += 0.6
    np.clip(bundle, 0, 1, out=bundle)
    profile *= 0.75
    profile += 0.6
    profile += 0.08 * granule
    bundle *= profile
    # Only a share of the eosin lies in fibres.
    bundle -= 1
    bundle *= enlarge(maps.fibre)
    bundle += 1
    uneven = enlarge(maps.coarse)
    uneven *= granule
    uneven += 0.12 * mottle
    uneven += 1
    # Interpolated edges are as wide as the grid; tissue ends more sharply, and not along a ruler.
    solid = enlarge(maps.solid)
    solid *= 2.6
    solid += 0.14 * granule - 0.8
    uneven *= np.clip(solid, 0, 1, out=solid)
    eosin = enlarge(maps.eosin)
    eosin *= bundle
    eosin *= uneven
    haematoxylin = enlarge(maps.haematoxylin)
    haematoxylin *= uneven

    cover = np.multiply(canvas.cover[here], np.float32(1 / 255), dtype=np.float32)
    cytoplasm = np.multiply(canvas.eosin[here], np.float32(1 / DENSITY_UNITS), dtype=np.float32)
    cytoplasm *= 1 + 0.12 * granule
    np.maximum(eosin, cytoplasm, out=eosin)
    eosin *= 1 - 0.65 * cover
    haematoxylin *= 1 - cover
    haematoxylin += np.multiply(canvas.haematoxylin[here], np.float32(1 / DENSITY_UNITS), dtype=np.float32)
    return np.maximum(haematoxylin, 0, out=haematoxylin), np.maximum(eosin, 0, out=eosin)


def _light(
    haematoxylin: NDArray[np.float32],
    eosin: NDArray[np.float32],
    dye: Dye,
    textures: _Textures,
    rows: tuple[int, int],
    out: NDArray[np.uint8],
) -> None:
    """Beer-Lambert: grey level = white x 10^-(density)."""
    noise = _rows(textures.camera, rows)
    for channel in range(3):
        h, e = (np.float32(-np.log(10) * dye.matrix[i, channel]) for i in range(2))
        level = h * haematoxylin
        level += e * eosin
        np.exp(level, out=level)
        level *= np.float32(dye.white[channel])
        level += noise
        level += 0.5
        np.clip(level, 0, 255, out=level)
        out[..., channel] = level


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
