"""Knobs of what is counted: what cells express, where a platform measures it, and what it sees of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from triglyph.tissue.simulate.knobs.bounds import Bounded, Positive, Range, Share, Spread


class Molecules(Bounded):
    """Counts from cells.

    On platforms of single molecules (`visium-hd`, `xenium`) depth is `Transcripts.per_cell`, and molecules bleed by
    `Transcripts.bleed_um`: there `depth_per_cells`, `depth_noise` and `bleed_um` of this block, which are of round
    spots, do nothing, and `median_depth`, `patient_depth` and `depth_range` act only through a patient's depth
    relative to `median_depth`. `dispersion` is there that of a cell's counts, not of a bin's.
    """

    filler_genes: int = Field(default=0, ge=0)
    """Genes without a name in biology (`SIM0001`, ...), beside the named ones."""
    base_spread: Spread = 0.7
    """Standard deviation of log expression between genes."""
    median_depth: Positive = 3000.0
    """Counts a spot, median over a section of a median patient; within `depth_range`, which moves the median of the
    patients towards the wider side of it."""
    patient_depth: Spread = 0.25
    """Standard deviation of the patients' log depth, before `depth_range` cuts it off."""
    depth_range: Range = (650.0, 10000.0)
    """No patient's depth lies outside: a log-normal, cut off at the ends and not heaped up there."""
    depth_per_cells: float = Field(default=0.7, ge=0)
    """Exponent that ties depth to the RNA of the cells in a spot; 0 removes the tie."""
    depth_noise: Spread = 0.15
    """Standard deviation of the spots' own log depth."""
    dispersion: float = Field(default=0.06, ge=0)
    """Negative-binomial overdispersion: variance = mean + dispersion x mean²."""
    marker: float = 2.6
    """Log fold of a cell type's markers over other types."""
    type_noise: Spread = 0.35
    """Standard deviation of log expression between types for any gene."""
    state: float = 0.8
    """Log fold per unit of a state, for the genes of its programme."""
    filler_in_programme: float = Field(default=0.0, ge=0, le=1)
    """Chance that a filler gene belongs to a programme, for each programme."""
    niche: float = Field(default=0.0, ge=0)
    """Log fold of a niche programme where a cell's neighbours are all of the type that calls it up; 0: no niche."""
    niche_um: float = Field(default=90.0, gt=0)
    """Radius of a cell's neighbourhood."""
    subspot: float = Field(default=0.0, ge=0)
    """Standard deviation of the log RNA that patches of tissue yield; patches are smaller than a spot."""
    patch_um: float = Field(default=18.0, gt=0)
    """Length scale of those patches."""
    cell_noise: Spread = 0.15
    """Standard deviation of the cells' log RNA content."""
    bleed_um: float = Field(default=7.0, ge=0)
    """Width of the passage from inside to outside a spot over which transcripts of a cell still reach it; 0: none."""
    ambient: float = Field(default=0.06, ge=0, lt=1)
    """Share of counts that is the section's mean profile, not the spot's."""
    site_gene: Spread = 0.0
    """Standard deviation of chemistry site x gene offsets, log."""
    patient_gene: Spread = 0.2
    """Standard deviation of patient x gene offsets, log."""
    block_gene: Spread = 0.0
    """Standard deviation of block x gene offsets, log."""
    section_gene: Spread = 0.0
    """Standard deviation of section x gene offsets, log."""
    patient_profile: Spread = 0.0
    """Standard deviation of patient x cell type x gene deviations, log; tumours, being clones, differ twice as much."""
    private: float = Field(default=0.0, ge=0, le=1)
    """Share of a programme's variance over genes that is the patient's own, and so cannot be learnt from others."""

    @model_validator(mode="after")
    def _median_in_range(self) -> Molecules:
        low, high = self.depth_range
        if not low <= self.median_depth <= high:
            raise ValueError(f"median_depth {self.median_depth:g} lies outside depth_range, {low:g} to {high:g}")
        return self


class Spots(Bounded):
    """The platform's locations."""

    platform: Literal["st", "visium", "visium-hd", "xenium"] = "visium"
    diameter_um: Positive = 55.0
    """Diameter of a spot, or side of a square bin."""
    pitch_um: Positive = 100.0
    lattice: Literal["hexagonal", "square"] = "hexagonal"
    margin_um: Spread = 40.0
    """Spots keep this distance from the image's edge."""
    min_tissue: Share = 0.6
    """Share of a spot that must lie on tissue."""

    @model_validator(mode="after")
    def _lattice_is_the_platforms(self) -> Spots:
        if self.lattice == "hexagonal" and self.platform != "visium":
            raise ValueError(f"lattice: {self.platform} has a square one; only visium's is hexagonal")
        if self.is_square and self.pitch_um < self.diameter_um:
            raise ValueError(f"pitch_um {self.pitch_um:g} is less than diameter_um {self.diameter_um:g}: bins overlap")
        return self

    @property
    def is_square(self) -> bool:
        """Whether locations are square bins of single molecules; otherwise they are round spots."""
        return self.platform in ("visium-hd", "xenium")


class Transcripts(Bounded):
    """Single molecules, for the platforms that see them or sum them into bins."""

    per_cell: Positive = 160.0
    """Molecules of a cell of relative RNA 1 over all genes of the world; a panel sees its share of them."""
    spread_um: Spread = 1.4
    """Standard deviation of a molecule's departure from an even spread over nucleus and cytoplasm."""
    bleed_um: Spread = 2.0
    """Standard deviation of lateral diffusion."""
    core_panel: int = Field(default=260, ge=1)
    """Genes of the core panel, which every section has."""
    addon_panel: int = Field(default=90, ge=0)
    """Genes of the add-on panel."""
    addon_share: float = Field(default=0.5, ge=0, le=1)
    """Share of patients that have the add-on panel."""
    low_quality: float = Field(default=0.08, ge=0, lt=1)
    """Share of the genes' molecules decoded with a quality value below 20."""
    control: float = Field(default=0.004, ge=0, lt=1)
    """Share of molecules called as control probes, control codewords or codewords of no gene."""
    he_turn_degrees: Spread = 4.0
    """Standard deviation of the turn of the H&E against the molecules' frame."""
    he_shift_um: Spread = 60.0
    """Root mean square of its shift along each axis: the absolute value of a normal, as no region begins after it."""
    landmark_um: Spread = 1.5
    """Error of the landmarks that tie the two frames."""
