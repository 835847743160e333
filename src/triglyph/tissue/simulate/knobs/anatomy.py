"""Knobs of anatomy: domains, what is carved into them, and cells."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from triglyph.tissue.simulate.knobs.bounds import Bounded, Positive, Range, Share, Spread, keyed
from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS


class Nucleus(Bounded):
    """How the nuclei of one cell type look."""

    long_um: Positive
    """Mean long diameter."""
    short_um: Positive
    """Mean short diameter."""
    spread: Spread = 0.12
    """Standard deviation of the log of the size."""
    haematoxylin: Spread = 0.8
    """Optical density of the body, times the patient's stain strength."""
    vesicular: Share = 0.0
    """0: solid chromatin; 1: clear centre and a dark rim."""
    nucleoli: Share = 0.0
    """Probability of a visible nucleolus."""
    irregular: Spread = 0.06
    """Amplitude of the outline's departure from an ellipse."""
    texture: Spread = 0.15
    """Amplitude of chromatin clumps, relative to the body."""
    cytoplasm_um: Spread = 0.0
    """Width of a drawn rim of cytoplasm around the nucleus."""
    eosin: Spread = 0.3
    """Optical density of that rim."""

    @model_validator(mode="after")
    def _long_is_longer(self) -> Nucleus:
        if self.long_um < self.short_um:
            raise ValueError(f"long_um {self.long_um:g} is less than short_um {self.short_um:g}")
        return self


_Densities = Annotated[dict[str, Spread], keyed(CELL_TYPES, "cell type", every=False)]


class Anatomy(Bounded):
    """Domains, compartments inside them, and the cells they hold."""

    side_um: Positive = 2250.0
    grid_um: Positive = 2.5
    tissue_fraction: float = Field(default=0.86, gt=0.1, le=1.0)
    """Share of the frame under tissue."""
    fractions: Annotated[dict[str, Spread], keyed(DOMAINS, "domain")]
    """Mean share of each domain; 0: nowhere. `People.absent` takes one from some patients."""
    fraction_concentration: Positive = 30.0
    """Dirichlet concentration of the patients' shares: higher is more alike."""
    domain_um: Positive = 330.0
    """Length scale of domains."""
    wobble_um: tuple[Positive, Positive] = (90.0, 32.0)
    """Length scales of the boundaries' interdigitation, coarse and fine."""
    boundary_um: Positive = 30.0
    """Width over which one domain passes into the next."""
    state_um: Positive = 140.0
    """Length scale of gradients inside domains (cellularity, infiltration, states)."""
    cellularity: Spread = 0.42
    """Standard deviation of log cell density inside domains."""
    infiltration: Spread = 0.9
    """Standard deviation of log density of immune cells inside domains."""
    purity: Spread = 0.7
    """How much the share of tumour nests varies inside invasive cancer."""
    section_change: Share = 0.3
    """How far adjacent sections of one block differ in their fields: 0 the same, 1 unrelated."""
    nest_um: Positive = 46.0
    duct_um: Range = (90.0, 210.0)
    """Diameters of ducts in situ."""
    gland_um: Range = (34.0, 76.0)
    fat_um: Positive = 58.0
    vessel_um: Range = (14.0, 40.0)
    vessels_per_mm2: Spread = 14.0
    cells_per_mm2: Annotated[dict[str, _Densities], keyed(DOMAINS, "domain")]
    """domain -> cell type -> mean density; a type that is not named is not there."""
    nuclei: Annotated[dict[str, Nucleus], keyed(CELL_TYPES, "cell type")]
    growth: float = 0.2
    """Nuclei of tumour cells grow by this (log diameter) per unit of the state `proliferation`."""

    @model_validator(mode="after")
    def _fits_together(self) -> Anatomy:
        if self.side_um < 8 * self.grid_um:
            raise ValueError(f"side_um {self.side_um:g} holds fewer than 8 steps of grid_um {self.grid_um:g}")
        if self.wobble_um[0] < self.wobble_um[1]:
            raise ValueError("wobble_um is a coarse and a fine length: give the larger one first")
        if not any(self.fractions.values()):
            raise ValueError("fractions: some domain must have a share")
        return self
