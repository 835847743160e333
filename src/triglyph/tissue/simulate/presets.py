"""Every knob of the simulator, in µm where it is a length; presets are frozen and change only with their name.

A preset fixes the world (anatomy, molecules, stain, language) and its seed; the number of patients is not part of
it, so that a cohort can grow: patient 7 is the same in a cohort of 7 and of 60.
"""

from __future__ import annotations

from pydantic import Field

from triglyph.cards import Frozen
from triglyph.errors import RecipeError

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
STATES = ("proliferation", "fibrosis", "hypoxia", "inflammation")


class Nucleus(Frozen):
    """How the nuclei of one cell type look."""

    long_um: float
    """Mean long diameter."""
    short_um: float
    """Mean short diameter."""
    spread: float = 0.12
    """Standard deviation of the log of the size."""
    haematoxylin: float = 0.8
    """Optical density of the body, times the patient's stain strength."""
    vesicular: float = 0.0
    """0: solid chromatin; 1: clear centre and a dark rim."""
    nucleoli: float = 0.0
    """Probability of a visible nucleolus."""
    irregular: float = 0.06
    """Amplitude of the outline's departure from an ellipse."""
    texture: float = 0.15
    """Amplitude of chromatin clumps, relative to the body."""
    cytoplasm_um: float = 0.0
    """Width of a drawn rim of cytoplasm around the nucleus."""
    eosin: float = 0.3
    """Optical density of that rim."""


class Anatomy(Frozen):
    """Domains, compartments inside them, and the cells they hold."""

    side_um: float = 2250.0
    grid_um: float = 2.5
    tissue_fraction: float = Field(default=0.86, gt=0.1, le=1.0)
    """Share of the frame under tissue."""
    fractions: dict[str, float]
    """Mean share of each domain."""
    fraction_concentration: float = 30.0
    """Dirichlet concentration of the patients' shares: higher is more alike."""
    domain_um: float = 330.0
    """Length scale of domains."""
    wobble_um: tuple[float, float] = (90.0, 32.0)
    """Length scales of the boundaries' interdigitation."""
    boundary_um: float = 30.0
    """Width over which one domain passes into the next."""
    state_um: float = 140.0
    """Length scale of gradients inside domains (cellularity, infiltration, states)."""
    cellularity: float = 0.42
    """Standard deviation of log cell density inside domains."""
    infiltration: float = 0.9
    """Standard deviation of log density of immune cells inside domains."""
    purity: float = 0.7
    """How much the share of tumour nests varies inside invasive cancer."""
    section_change: float = 0.3
    """How far adjacent sections of one block differ in their fields: 0 the same, 1 unrelated."""
    nest_um: float = 46.0
    duct_um: tuple[float, float] = (110.0, 165.0)
    """Diameters of ducts in situ."""
    gland_um: tuple[float, float] = (50.0, 78.0)
    fat_um: float = 52.0
    vessel_um: tuple[float, float] = (14.0, 40.0)
    vessels_per_mm2: float = 14.0
    cells_per_mm2: dict[str, dict[str, float]]
    """domain -> cell type -> mean density."""
    nuclei: dict[str, Nucleus]
    growth: float = 0.2
    """Nuclei of tumour cells grow by this (log diameter) per unit of the state `proliferation`."""


class Molecules(Frozen):
    """Counts from cells."""

    median_depth: float = 3000.0
    """Counts a spot, median over a section of a median patient."""
    patient_depth: float = 0.25
    """Standard deviation of the patients' log depth."""
    depth_per_cells: float = Field(default=0.7, ge=0)
    """Exponent that ties depth to the RNA of the cells in a spot; 0 removes the tie."""
    depth_noise: float = 0.15
    """Standard deviation of the spots' own log depth."""
    dispersion: float = Field(default=0.06, ge=0)
    """Negative-binomial overdispersion: variance = mean + dispersion x mean²."""
    marker: float = 2.6
    """Log fold of a cell type's markers over other types."""
    type_noise: float = 0.35
    """Standard deviation of log expression between types for any gene."""
    state: float = 0.8
    """Log fold per unit of a state, for the genes of its programme."""
    cell_noise: float = 0.15
    """Standard deviation of the cells' log RNA content."""
    bleed_um: float = Field(default=7.0, ge=0)
    """Width of the passage from inside to outside a spot over which transcripts of a cell still reach it; 0: none."""
    ambient: float = Field(default=0.06, ge=0, lt=1)
    """Share of counts that is the section's mean profile, not the spot's."""
    patient_gene: float = 0.2
    """Standard deviation of the patient x gene offsets, log."""


class Stain(Frozen):
    """Haematoxylin and eosin on glass under a microscope."""

    mpp: tuple[float, float] = (0.45, 0.55)
    """Range of true µm per pixel over patients."""
    hue: float = 0.035
    """Standard deviation of the patients' stain vectors around the mean one (unit vectors in OD space)."""
    strength: float = 0.12
    """Standard deviation of the patients' log stain strength, each stain by itself."""
    white: tuple[float, float] = (240.0, 250.0)
    """Range of the grey level of empty glass."""
    grain: float = 1.6
    """Standard deviation of camera noise, grey levels."""
    state: float = 0.32
    """Log change of density per unit of a state: eosin of stroma with fibrosis, of tumour with hypoxia."""
    fibre_um: float = 7.0
    """Thickness of collagen bundles."""
    quality: int = 90
    tile: int = 256


class Spots(Frozen):
    """The hexagonal lattice of locations."""

    diameter_um: float = 55.0
    pitch_um: float = 100.0
    margin_um: float = 40.0
    """Spots keep this distance from the image's edge."""
    min_tissue: float = 0.6
    """Share of a spot that must lie on tissue."""


class Language(Frozen):
    """Captions."""

    missing: float = Field(default=0.04, ge=0, le=1)
    """Share of locations without a caption."""
    border: float = 0.3
    """A second domain is named from this share of a spot on."""
    sparse_per_mm2: float = 1800.0
    dense_per_mm2: float = 5200.0
    some: float = 0.10
    """A cell type is `some` from this share of cells on."""
    many: float = 0.28


class Simulation(Frozen):
    """One simulated world; every patient and section in it follows from this record alone."""

    name: str
    seed: int = Field(default=0, ge=0)
    sections_per_patient: tuple[int, ...] = (2, 1, 1)
    """Patients take these in turn."""
    organ: str = "breast"
    anatomy: Anatomy
    molecules: Molecules = Molecules()
    stain: Stain = Stain()
    spots: Spots = Spots()
    language: Language = Language()

    def sections_of(self, patient_index: int) -> int:
        """Number of sections of a patient."""
        return self.sections_per_patient[patient_index % len(self.sections_per_patient)]


_NUCLEI = {
    "tumour": Nucleus(
        long_um=10.6, short_um=8.4, spread=0.14, haematoxylin=0.72, vesicular=0.45, nucleoli=0.55, irregular=0.09,
        texture=0.22, cytoplasm_um=3.2, eosin=0.30,
    ),
    "epithelial": Nucleus(
        long_um=8.6, short_um=6.0, spread=0.08, haematoxylin=0.88, vesicular=0.15, irregular=0.04, cytoplasm_um=2.5,
        eosin=0.38,
    ),
    "fibroblast": Nucleus(long_um=14.0, short_um=3.2, spread=0.18, haematoxylin=0.75, irregular=0.08),
    "T cell": Nucleus(long_um=6.6, short_um=6.2, spread=0.06, haematoxylin=1.15, irregular=0.03, texture=0.2),
    "B cell": Nucleus(
        long_um=7.8, short_um=7.2, spread=0.08, haematoxylin=0.92, irregular=0.03, texture=0.25, cytoplasm_um=0.8,
        eosin=0.16,
    ),
    "macrophage": Nucleus(
        long_um=8.4, short_um=6.0, spread=0.12, haematoxylin=0.62, vesicular=0.3, irregular=0.14, cytoplasm_um=4.0,
        eosin=0.26,
    ),
    "endothelial": Nucleus(long_um=11.0, short_um=3.0, spread=0.12, haematoxylin=0.9, irregular=0.05),
    "adipocyte": Nucleus(long_um=8.0, short_um=2.6, spread=0.12, haematoxylin=0.8, irregular=0.05),
}  # fmt: skip

_CELLS: dict[str, dict[str, float]] = {
    "invasive cancer": {
        "tumour": 3600, "fibroblast": 520, "T cell": 420, "B cell": 60, "macrophage": 280, "endothelial": 90,
    },
    "cancer in situ": {
        "tumour": 5200, "fibroblast": 360, "T cell": 180, "B cell": 20, "macrophage": 120, "endothelial": 60,
        "epithelial": 160,
    },
    "immune infiltrate": {
        "T cell": 6200, "B cell": 5600, "fibroblast": 240, "macrophage": 300, "endothelial": 120,
    },
    "connective tissue": {
        "fibroblast": 1500, "T cell": 150, "B cell": 30, "macrophage": 150, "endothelial": 150,
    },
    "breast glands": {
        "epithelial": 3400, "fibroblast": 640, "T cell": 130, "B cell": 30, "macrophage": 60, "endothelial": 80,
    },
    "adipose tissue": {"adipocyte": 330, "endothelial": 60, "macrophage": 60, "fibroblast": 60, "T cell": 20},
    "necrosis": {"macrophage": 480, "T cell": 260, "tumour": 220, "fibroblast": 60},
}  # fmt: skip

_FRACTIONS = {
    "invasive cancer": 0.27,
    "cancer in situ": 0.13,
    "immune infiltrate": 0.11,
    "connective tissue": 0.22,
    "breast glands": 0.12,
    "adipose tissue": 0.09,
    "necrosis": 0.06,
}

_PRESETS = {
    "demo": Simulation(
        name="demo",
        anatomy=Anatomy(fractions=_FRACTIONS, cells_per_mm2=_CELLS, nuclei=_NUCLEI),
    ),
    "tiny": Simulation(
        name="tiny",
        sections_per_patient=(2, 1),
        anatomy=Anatomy(
            side_um=820.0, domain_um=180.0, fractions=_FRACTIONS, cells_per_mm2=_CELLS, nuclei=_NUCLEI
        ),
        stain=Stain(mpp=(0.6, 0.7)),
    ),
}  # fmt: skip


def preset(name: str, *, seed: int = 0) -> Simulation:
    """The preset `name`, with its seed.

    Raises
    ------
    RecipeError
        There is no such preset.
    """
    if name not in _PRESETS:
        raise RecipeError(f"there is no preset {name!r}", where="simulate", mend=f"choose one of {preset_names()}")
    return Simulation.model_validate({**_PRESETS[name].model_dump(), "seed": seed})


def preset_names() -> list[str]:
    """The presets there are."""
    return sorted(_PRESETS)
