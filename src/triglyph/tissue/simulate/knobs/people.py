"""Knobs of people, and of what is said and written about them."""

from __future__ import annotations

from pydantic import Field, model_validator

from triglyph.tissue.simulate.knobs.bounds import Bounded, Positive, Share, Spread
from triglyph.tissue.simulate.knobs.states import Dial


class People(Bounded):
    """Sites, patients, blocks and sections."""

    sites: int = Field(default=1, ge=1)
    """Places that stain, and places that do the chemistry; a patient is given one of each, independently."""
    confounding: float = Field(default=0.0, ge=0, le=1)
    """0: site and subtype are crossed; 1: the subtype decides the site, of stain and chemistry alike."""
    subtype: Spread = 0.0
    """How far the two subtypes lie apart in the states that they move, in units of the states."""
    absent: float = Field(default=0.0, ge=0, lt=1)
    """Chance that a patient lacks a domain altogether (never invasive cancer or connective tissue)."""
    blocks: int = Field(default=1, ge=1)
    """Blocks a patient; sections are dealt to them in order."""
    block_change: float = Field(default=0.8, ge=0, le=1)
    """How far blocks of one patient differ in their domains' shares: 0 the same, 1 unrelated."""
    registration_um: float = Field(default=0.0, ge=0)
    """Root mean square over sections of the shift of locations against the image."""
    registration_bend_um: float = Field(default=0.0, ge=0)
    """Root mean square of the smooth departure from that shift."""


class Labels(Bounded):
    """What an annotator and a clinic would write down."""

    region_um: float = Field(default=0.0, ge=0)
    """Annotators draw regions: the domain map is blurred by this before each location takes the largest."""
    annotator: float = Field(default=0.0, ge=0)
    """Standard deviation of the annotator's bias for or against each domain, in log share, smooth over the section."""
    annotator_um: float = Field(default=500.0, gt=0)
    """Length scale of that bias."""
    unlabelled: float = Field(default=0.0, ge=0, lt=1)
    """Share of locations left without a label."""
    phenotype: Dial = Dial()
    """Weights of the three kinds of programmes in `obs["phenotype"]`, `high` above its median over the world."""
    mutation: float = 1.6
    """Log odds of the mutation per standard deviation of the composition that drives it."""
    hazard: float = 0.8
    """Log hazard per standard deviation of the composition that drives the outcome."""
    censored: float = Field(default=0.35, ge=0, lt=1)
    """Expected share of patients whose outcome is not seen."""


class Donors(Bounded):
    """Donors of whom expression and text are known, and no image."""

    gap: float = Field(default=0.6, ge=0)
    """Standard deviation of the log factor between their platform and the patients', gene by gene."""
    depth: Positive = 2.0
    """Their depth relative to the patients'."""
    locations: int = Field(default=400, ge=1)
    """Profiles a donor."""


class Language(Bounded):
    """Captions."""

    missing: float = Field(default=0.04, ge=0, le=1)
    """Share of locations without a caption."""
    wrong: float = Field(default=0.0, ge=0, le=1)
    """Share of locations whose caption belongs to another location of the section, of another domain where there is."""
    section_level: float = Field(default=0.0, ge=0, le=1)
    """Share of locations that carry the section's caption instead of their own."""
    border: Share = 0.3
    """A second domain is named from this share of a spot on."""
    sparse_per_mm2: Positive = 1800.0
    dense_per_mm2: Positive = 5200.0
    some: Share = 0.10
    """A cell type is `some` from this share of cells on."""
    many: Share = 0.28

    @model_validator(mode="after")
    def _shares_fit(self) -> Language:
        if self.missing + self.section_level + self.wrong > 1 + 1e-9:
            raise ValueError("missing, section_level and wrong are shares of all locations and add up to more than 1")
        for low, high in (("some", "many"), ("sparse_per_mm2", "dense_per_mm2")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} lies above {high}")
        return self
