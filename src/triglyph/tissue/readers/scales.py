"""Where a section's scale comes from: the pitch of its array, the image file, the vendor's metadata, or the user.

The array is the best ruler there is, for it was printed: a least-squares map from array coordinates in µm to pixels
gives µm per pixel along both axes, and its residual shows whether the pitch is the right one. Every statement of the
scale that is there is compared with the others; one that contradicts by more than 2 % is an error, never averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ScaleError, SourceError
from triglyph.tissue.checks import MAX_ANISOTROPY, MAX_SCALE_DISAGREEMENT, agree
from triglyph.units import Mpp, checked_mpp

MAX_RESIDUAL = 0.25
"""Root mean square distance of spots from the fitted lattice, in pitches; beyond it this is not that lattice."""
MAX_SKEW = math.radians(5)
"""The fitted axes may be this far from perpendicular."""
COARSEST_FILE_MPP = 10.0
"""Coarser than this, a file's resolution is meant for printing (300 dpi is 85 µm), not a microscope's."""


@dataclass(frozen=True)
class Scale:
    """One statement of µm per pixel and who makes it."""

    mpp: Mpp
    source: str


@dataclass(frozen=True)
class LatticeFit:
    """Array coordinates in µm fitted to pixels."""

    mpp_x: float
    """µm per pixel along the array's x."""
    mpp_y: float
    pitch_um: float
    residual_um: float
    """Root mean square distance of a spot from the fitted lattice."""
    n_spots: int

    @property
    def mpp(self) -> Mpp:
        """The isotropic scale: the mean of the axes."""
        return Mpp((self.mpp_x + self.mpp_y) / 2)

    @property
    def scale(self) -> Scale:
        """The fit as a statement that shows both axes."""
        text = f"array pitch {self.pitch_um:g} µm over {self.n_spots} spots (x {self.mpp_x:.4f}, y {self.mpp_y:.4f})"
        return Scale(self.mpp, text)

    def record(self) -> dict[str, Any]:
        """For provenance."""
        return {
            "mpp_x": round(self.mpp_x, 6),
            "mpp_y": round(self.mpp_y, 6),
            "pitch_um": self.pitch_um,
            "residual_um": round(self.residual_um, 3),
            "n_spots": self.n_spots,
        }


def fit_lattice(lattice_um: ArrayLike, pixels: ArrayLike, *, pitch_um: float, where: object) -> LatticeFit:
    """Fit `pixels = A lattice_um + b` by least squares, free in rotation, flip and either axis's scale.

    Parameters
    ----------
    lattice_um
        (n, 2) array coordinates times their spacing in µm.
    pixels
        (n, 2) the same spots in level-0 pixels.
    pitch_um
        Distance of neighbouring spots, for messages and tolerances.

    Raises
    ------
    ScaleError
        Fewer than three spots or all in a line, axes that disagree by more than 5 % or are not perpendicular, or spots
        further from the lattice than a quarter of the pitch.
    """
    lattice, px = np.asarray(lattice_um, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    finite = np.isfinite(lattice).all(axis=1) & np.isfinite(px).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise ScaleError("a position is not a finite number", where=f"{where}, row {row}", mend="correct the position")
    mend = "check that array and pixel columns belong together, and that the platform is the right one"
    design = np.column_stack([lattice - lattice.mean(axis=0), np.ones(len(lattice))]) if len(lattice) else lattice
    if len(lattice) < 3 or np.linalg.matrix_rank(design) < 3:
        raise ScaleError(
            f"{len(lattice)} spots in a line or fewer than three fit no lattice", where=where, mend="give --mpp"
        )
    coefficients = np.linalg.lstsq(design, px, rcond=None)[0]
    along_x, along_y = coefficients[0], coefficients[1]
    step_x, step_y = float(np.hypot(*along_x)), float(np.hypot(*along_y))
    if min(step_x, step_y) < 1e-9:
        raise ScaleError("the pixel positions do not change along the array", where=where, mend=mend)
    fit = LatticeFit(
        mpp_x=1 / step_x,
        mpp_y=1 / step_y,
        pitch_um=pitch_um,
        residual_um=_rms(px - design @ coefficients) * 2 / (step_x + step_y),
        n_spots=len(lattice),
    )
    if fit.residual_um > MAX_RESIDUAL * pitch_um:
        raise ScaleError(
            f"spots lie {fit.residual_um:.0f} µm off a lattice of {pitch_um:g} µm (root mean square): it fits neither "
            "axis",
            where=where,
            mend=mend,
        )
    if abs(fit.mpp_x - fit.mpp_y) > MAX_ANISOTROPY * min(fit.mpp_x, fit.mpp_y):
        raise ScaleError(
            f"the array's axes give different scales: x {fit.mpp_x:.4f} and y {fit.mpp_y:.4f} µm/px",
            where=where,
            mend=mend,
        )
    if abs(float(along_x @ along_y)) > math.sin(MAX_SKEW) * step_x * step_y:
        raise ScaleError("the array's axes are not perpendicular in the image", where=where, mend=mend)
    checked_mpp(fit.mpp, where=where)
    return fit


def settle_scale(statements: Sequence[Scale], *, given: float | None, where: object) -> Scale:
    """The scale to use: the first statement, or what the user gives, once all agree.

    `given` (--mpp) settles a contradiction between the others if it agrees with one of them.

    Raises
    ------
    ScaleError
        Nobody states a scale, or two statements differ by more than 2 %; both numbers are shown.
    """
    if given is None:
        if not statements:
            raise ScaleError(
                "the scale of the image is not known", where=where, mend="give --mpp (µm per level-0 pixel)"
            )
        for other in statements[1:]:
            agree(statements[0].mpp, statements[0].source, other.mpp, other.source, where=where)
        return statements[0]
    user = Scale(checked_mpp(given, where="--mpp"), "--mpp")
    close = [s for s in statements if abs(s.mpp - user.mpp) <= MAX_SCALE_DISAGREEMENT * min(s.mpp, user.mpp)]
    if statements and not close:
        agree(user.mpp, user.source, statements[0].mpp, statements[0].source, where=where)
    others = "; ".join(f"{s.source}: {s.mpp:.4f}" for s in statements)
    return Scale(user.mpp, f"--mpp ({others})" if others else "--mpp")


def nearest_pitch(centres: NDArray[np.float64]) -> float:
    """Median distance of a location to its nearest neighbour, in the unit of `centres`; NaN below two locations."""
    from scipy.spatial import cKDTree

    if len(centres) < 2:
        return math.nan
    distances, _ = cKDTree(centres).query(centres, k=2)
    return float(np.median(distances[:, 1]))


def file_scale(path: Path) -> Scale | None:
    """What an image file says of its own scale; None where it says nothing.

    OpenSlide properties for vendors' slides; for TIFF the OME pixel size, Aperio's `MPP`, or the resolution tags. The
    dpi of JPEG and PNG is a printer's and is not read, nor is a TIFF resolution coarser than 10 µm/px.

    Raises
    ------
    SourceError
        The file does not open.
    ScaleError
        Its two axes differ by more than 5 %.
    """
    import openslide

    if not path.is_file():
        raise SourceError("the image is not there", where=path, mend="check the path")
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor not in (None, "generic-tiff"):
        try:
            with openslide.OpenSlide(path) as slide:
                properties = dict(slide.properties)
        except openslide.OpenSlideError as error:
            raise SourceError(f"OpenSlide cannot open it ({error})", where=path, mend="copy the slide again") from error
        x, y = properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y")
        return _axes(float(x), float(y), f"{vendor} slide properties", path) if x and y else None
    with path.open("rb") as stream:
        if stream.read(2) not in (b"II", b"MM"):
            return None
    return _tiff_scale(path)


def _tiff_scale(path: Path) -> Scale | None:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            if tiff.ome_metadata:
                found = _ome_scale(tiff.ome_metadata, path)
                if found is not None:
                    return found
            description = page.description or ""
            if "MPP" in description and "|" in description:
                for part in description.split("|"):
                    key, _, value = part.partition("=")
                    if key.strip() == "MPP":
                        return Scale(checked_mpp(value.strip(), where=path), "Aperio description")
            if not {"XResolution", "YResolution", "ResolutionUnit"} <= {tag.name for tag in page.tags.values()}:
                return None
            unit = {2: 25400.0, 3: 10000.0}.get(int(page.tags["ResolutionUnit"].value))
            ratios = [page.tags[name].value for name in ("XResolution", "YResolution")]
    except (tifffile.TiffFileError, ValueError, IndexError, KeyError, OSError) as error:
        raise SourceError(
            f"not readable as a TIFF ({error})", where=path, mend="copy the image again; it may be truncated"
        ) from error
    if unit is None or any(not n or not d for n, d in ratios):
        return None
    x, y = (unit * d / n for n, d in ratios)
    return _axes(x, y, "TIFF resolution", path) if max(x, y) <= COARSEST_FILE_MPP else None


def _ome_scale(xml: str, path: Path) -> Scale | None:
    import xml.etree.ElementTree as ET

    factors = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
    try:
        pixels = next((e for e in ET.fromstring(xml).iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    except ET.ParseError as error:
        raise SourceError(f"the OME header is not XML ({error})", where=path, mend="write the image again") from error
    if pixels is None or "PhysicalSizeX" not in pixels.attrib or "PhysicalSizeY" not in pixels.attrib:
        return None
    sizes = []
    for axis in "XY":
        unit = pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm")
        if unit not in factors:
            return None
        sizes.append(float(pixels.attrib[f"PhysicalSize{axis}"]) * factors[unit])
    return _axes(sizes[0], sizes[1], "OME pixel size", path)


def _axes(x: float, y: float, source: str, path: Path) -> Scale:
    if abs(x - y) > MAX_ANISOTROPY * min(x, y):
        raise ScaleError(
            f"the image's axes have different scales: x {x:.4f}, y {y:.4f} µm/px ({source})",
            where=path,
            mend="correct the file's resolution",
        )
    return Scale(checked_mpp((x + y) / 2, where=path), source)


def _rms(offsets: NDArray[np.float64]) -> float:
    return float(np.sqrt((offsets**2).sum(axis=1).mean()))
