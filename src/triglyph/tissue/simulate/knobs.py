"""Every knob of the simulator, in µm where it is a length.

A `Simulation` fixes the world (anatomy, molecules, people, stain, platform, language) and its seed. The number of
patients is not part of it, so that a cohort can grow: patient 7 is the same in a cohort of 7 and of 60.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from triglyph.tissue.simulate.bounds import (
    Bounded,
    GreyRange,
    Positive,
    Range,
    Scale,
    ScaleRange,
    Share,
    Spread,
    each_once,
    keyed,
)

CELL_TYPES = ("tumour", "epithelial", "fibroblast", "T cell", "B cell", "macrophage", "endothelial", "adipocyte")
DOMAINS = (
    "invasive cancer",
    "cancer in situ",
    "immune infiltrate",
    "connective tissue",
    "breast glands",
    "adipose tissue",
    "necrosis",
)
SHARED_STATES = ("proliferation", "fibrosis", "hypoxia", "inflammation")
"""Seen in morphology and in expression alike."""
MORPHOLOGY_STATES = ("pleomorphism", "oedema")
"""Seen in morphology alone."""
EXPRESSION_STATES = ("oestrogen response", "lipid metabolism", "stress response")
"""Seen in expression alone."""
STATES = (*SHARED_STATES, *MORPHOLOGY_STATES, *EXPRESSION_STATES)
"""Smooth fields over the tissue, each about N(0, 1); every one is a programme of the cells it acts on."""
SUBTYPES = ("luminal", "basal")
PROTEIN_CHANNELS = (
    "DAPI", "panCK", "CD3", "CD8", "CD20", "CD68", "SMA", "CD31", "Vimentin", "Ki67", "ER", "HER2", "PD-L1",
)  # fmt: skip
"""What `protein` can show; `protein.CHANNELS` says how."""
SQUARE_PLATFORMS = ("visium_hd", "xenium")
"""Their locations are square bins of single molecules."""


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


class Dial(Bounded):
    """How much each kind of programme moves what it acts on: 0 not at all, 1 as `Molecules.state`, `Stain.state`."""

    shared: float = Field(default=1.0, ge=0)
    morphology_only: float = Field(default=1.0, ge=0)
    expression_only: float = Field(default=1.0, ge=0)

    def strength(self, state: str) -> tuple[float, float]:
        """Strength of a state in (morphology, expression)."""
        if state in SHARED_STATES:
            return self.shared, self.shared
        if state in MORPHOLOGY_STATES:
            return self.morphology_only, 0.0
        return 0.0, self.expression_only


class Molecules(Bounded):
    """Counts from cells.

    On platforms of single molecules (`visium_hd`, `xenium`) depth is `Transcripts.per_cell`, and molecules bleed by
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


class Protein(Bounded):
    """A multiplexed-protein image of the same anatomy."""

    channels: Annotated[tuple[str, ...], each_once(PROTEIN_CHANNELS, "channel")] = ()
    """None unless named: of `PROTEIN_CHANNELS`, each once."""
    mpp: Scale = 1.0
    noise: Spread = 0.03
    """Standard deviation of camera noise, relative to full scale."""


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


class Spots(Bounded):
    """The platform's locations."""

    platform: Literal["st", "visium", "visium_hd", "xenium"] = "visium"
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
        if self.platform in SQUARE_PLATFORMS and self.pitch_um < self.diameter_um:
            raise ValueError(f"pitch_um {self.pitch_um:g} is less than diameter_um {self.diameter_um:g}: bins overlap")
        return self


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


class Simulation(Bounded):
    """One simulated world; every patient and section in it follows from this record alone."""

    name: str
    seed: int = Field(default=0, ge=0)
    sections_per_patient: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(2, 1, 1), min_length=1)
    """Patients take these in turn."""
    organ: str = "breast"
    anatomy: Anatomy
    dial: Dial = Dial()
    molecules: Molecules = Molecules()
    people: People = People()
    labels: Labels = Labels()
    stain: Stain = Stain()
    artefacts: Artefacts = Artefacts()
    spots: Spots = Spots()
    transcripts: Transcripts = Transcripts()
    language: Language = Language()
    donors: Donors = Donors()
    protein: Protein = Protein()

    @model_validator(mode="after")
    def _blocks_fit(self) -> Simulation:
        radius, near = self.spots.diameter_um / 2, self.molecules.niche_um
        if near <= radius:
            raise ValueError(
                f"molecules.niche_um {near:g} does not reach out of a location of spots.diameter_um "
                f"{self.spots.diameter_um:g}: nothing lies around it"
            )
        room, least = self.anatomy.side_um, 2 * self.spots.margin_um + self.spots.diameter_um
        if room < least:
            raise ValueError(
                f"anatomy.side_um {room:g} has no room for one location of spots.diameter_um "
                f"{self.spots.diameter_um:g} between two spots.margin_um"
            )
        return self

    def sections_of(self, patient_index: int) -> int:
        """Number of sections of a patient."""
        return self.sections_per_patient[patient_index % len(self.sections_per_patient)]

    def block_of(self, patient_index: int, section_index: int) -> int:
        """The block that a section is cut from; a block's sections are adjacent."""
        per_block = -(-self.sections_of(patient_index) // self.people.blocks)
        return section_index // per_block
