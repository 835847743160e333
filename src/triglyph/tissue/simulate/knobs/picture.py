"""Knobs of what a microscope sees: stain, what goes wrong on a slide, and proteins."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from triglyph.tissue.simulate.knobs.bounds import (
    Bounded,
    GreyRange,
    Positive,
    Scale,
    ScaleRange,
    Spread,
    each_once,
)
from triglyph.tissue.simulate.knobs.names import PROTEIN_CHANNELS


class Stain(Bounded):
    """Haematoxylin and eosin on glass under a microscope."""

    mpp: ScaleRange = (0.45, 0.55)
    """Range of true µm per pixel over patients."""
    hue: Spread = 0.035
    """Standard deviation of the patients' stain vectors around the mean one (unit vectors in OD space)."""
    strength: Spread = 0.12
    """Standard deviation of the patients' log stain strength, each stain by itself."""
    white: GreyRange = (240.0, 250.0)
    """Range of the grey level of empty glass."""
    grain: Spread = 1.6
    """Standard deviation of camera noise, grey levels."""
    state: float = 0.32
    """Log change of density per unit of a state: eosin of stroma with fibrosis, of tumour with hypoxia."""
    site_hue: Spread = 0.0
    """Standard deviation of the sites' stain vectors, as `hue`."""
    site_strength: Spread = 0.0
    """Standard deviation of the sites' log stain strength."""
    subspot: float = 0.35
    """Log change of nuclear density per unit of `Molecules.subspot` and of the patches' field."""
    fibre_um: Positive = 7.0
    """Thickness of collagen bundles."""
    quality: int = Field(default=90, ge=1, le=100)
    """Of JPEG."""
    tile: int = Field(default=256, ge=16, multiple_of=16)
    """Side of the file's tiles in pixels."""


class Artefacts(Bounded):
    """What goes wrong on a slide: expected shares of the tissue's area. Most sections have little, a few have much."""

    folds: float = Field(default=0.0, ge=0, lt=1)
    blur: float = Field(default=0.0, ge=0, lt=1)
    pen: float = Field(default=0.0, ge=0, lt=1)


class Protein(Bounded):
    """A multiplexed-protein image of the same anatomy."""

    channels: Annotated[tuple[str, ...], each_once(PROTEIN_CHANNELS, "channel")] = ()
    """None unless named: of `PROTEIN_CHANNELS`, each once."""
    mpp: Scale = 1.0
    noise: Spread = 0.03
    """Standard deviation of camera noise, relative to full scale."""
