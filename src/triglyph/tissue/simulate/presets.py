"""Named worlds: presets of the simulator's knobs. A preset is frozen; it changes only with its name or the version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from triglyph.configs import deep_merge, near, parse_override, validated
from triglyph.errors import RecipeError
from triglyph.tissue.simulate.knobs.anatomy import Anatomy, Nucleus
from triglyph.tissue.simulate.knobs.molecules import Molecules, Spots
from triglyph.tissue.simulate.knobs.people import Labels, Language, People
from triglyph.tissue.simulate.knobs.picture import Artefacts, Stain
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.knobs.states import Dial

_NUCLEI = {
    "tumour": Nucleus(
        long_um=10.6, short_um=8.4, spread=0.17, haematoxylin=0.82, vesicular=0.4, nucleoli=0.5, irregular=0.12,
        texture=0.22, cytoplasm_um=3.0, eosin=0.24,
    ),
    "epithelial": Nucleus(
        long_um=8.6, short_um=6.0, spread=0.12, haematoxylin=0.92, vesicular=0.15, irregular=0.07, cytoplasm_um=2.5,
        eosin=0.21,
    ),
    "fibroblast": Nucleus(long_um=14.0, short_um=3.2, spread=0.24, haematoxylin=0.88, irregular=0.13),
    "T cell": Nucleus(long_um=6.6, short_um=6.0, spread=0.09, haematoxylin=1.15, irregular=0.06, texture=0.2),
    "B cell": Nucleus(
        long_um=7.8, short_um=7.0, spread=0.09, haematoxylin=0.95, irregular=0.06, texture=0.25, cytoplasm_um=0.8,
        eosin=0.16,
    ),
    "macrophage": Nucleus(
        long_um=8.4, short_um=6.0, spread=0.12, haematoxylin=0.66, vesicular=0.3, irregular=0.16, cytoplasm_um=3.4,
        eosin=0.15,
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
        "T cell": 7200, "B cell": 6600, "fibroblast": 240, "macrophage": 300, "endothelial": 120,
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

_BREAST = Anatomy(fractions=_FRACTIONS, cells_per_mm2=_CELLS, nuclei=_NUCLEI)

_REAL = Simulation(
    name="her2st-like",
    sections_per_patient=(3,),
    anatomy=_BREAST.model_copy(update={"side_um": 3600.0, "fraction_concentration": 3.0, "domain_um": 520.0}),
    dial=Dial(expression_only=0.8),
    molecules=Molecules(
        filler_genes=2000,
        base_spread=1.4,
        median_depth=5000.0,
        patient_depth=0.8,
        depth_per_cells=1.0,
        depth_noise=0.3,
        dispersion=0.03,
        marker=1.7,
        type_noise=0.8,
        state=0.8,
        filler_in_programme=0.12,
        bleed_um=10.0,
        ambient=0.15,
        site_gene=0.25,
        patient_gene=0.6,
        block_gene=0.1,
        section_gene=0.08,
        patient_profile=0.38,
        private=0.05,
        niche=1.0,
        subspot=0.3,
    ),
    people=People(sites=3, subtype=0.8, absent=0.4, registration_um=8.0, registration_bend_um=4.0),
    artefacts=Artefacts(folds=0.01, blur=0.03, pen=0.005),
    labels=Labels(region_um=90.0, annotator=2.0, unlabelled=0.06),
    stain=Stain(mpp=(0.25, 0.8), hue=0.045, strength=0.18, site_hue=0.03, site_strength=0.12),
    spots=Spots(platform="st", diameter_um=100.0, pitch_um=200.0, lattice="square", margin_um=60.0),
    language=Language(missing=0.1, wrong=0.05, section_level=0.1),
)
"""The default: as hard as real tissue, and calibrated against it (docs/simulator.md)."""

_VISIUM: dict[str, Any] = {
    "sections_per_patient": (2,),
    "anatomy": {"side_um": 3200.0},
    "molecules": {"bleed_um": 7.0},
    "spots": {"platform": "visium", "diameter_um": 55.0, "pitch_um": 100.0, "lattice": "hexagonal", "margin_um": 40.0},
}
_MOLECULES_SEEN: dict[str, Any] = {
    "sections_per_patient": (1,),
    "anatomy": {"side_um": 1500.0},
    "molecules": {"filler_genes": 400, "patient_depth": 0.4},
}


def _like(base: Simulation, name: str, *deltas: Mapping[str, Any]) -> Simulation:
    """`base` under another name, with some knobs set otherwise."""
    values = base.model_dump()
    for delta in deltas:
        values = deep_merge(values, delta)
    return Simulation.model_validate({**values, "name": name})


_CLEAN = Simulation(name="clean", anatomy=_BREAST)
_PRESETS = {
    "her2st-like": _REAL,
    "visium": _like(_REAL, "visium", _VISIUM),
    "visium-hd": _like(
        _REAL,
        "visium-hd",
        _MOLECULES_SEEN,
        {"spots": {"platform": "visium-hd", "diameter_um": 16.0, "pitch_um": 16.0, "lattice": "square"}},
        {"transcripts": {"bleed_um": 5.0}},
    ),
    "xenium": _like(
        _REAL,
        "xenium",
        _MOLECULES_SEEN,
        {"spots": {"platform": "xenium", "diameter_um": 50.0, "pitch_um": 50.0, "lattice": "square"}},
    ),
    # Domains are small and neighbours decide: what a cell expresses depends on the cells around it.
    "niche": _like(
        _REAL, "niche", _VISIUM, {"anatomy": {"side_um": 2300.0, "domain_um": 260.0}, "molecules": {"niche": 4.0}}
    ),
    # The subtype decides where a patient was stained and measured, and sites differ twice as much.
    "confounded": _like(
        _REAL,
        "confounded",
        _VISIUM,
        {"anatomy": {"side_um": 2300.0}},
        {"people": {"sites": 2, "confounding": 1.0}},
        {"molecules": {"site_gene": 0.5}, "stain": {"site_hue": 0.06, "site_strength": 0.25}},
    ),
    # Large domains, of classes that can be told apart in a few minutes of training: no cancer in situ, whose cells are
    # those of invasive cancer, and nothing that only the picture shows.
    "demo": _like(
        _CLEAN,
        "demo",
        {"anatomy": {"domain_um": 480.0, "fractions": {"cancer in situ": 0.0}}},
        {"dial": {"morphology_only": 0.0}},
    ),
    "tiny": _like(
        _CLEAN,
        "tiny",
        {"sections_per_patient": (2, 1), "anatomy": {"side_um": 820.0, "domain_um": 180.0}},
        {"stain": {"mpp": (0.6, 0.7)}},
    ),
}

DIFFICULTIES = {"easy": 0.5, "standard": 1.0, "hard": 1.5}
"""What every knob that makes tissue hard is multiplied by."""
_HARDENING: dict[str, tuple[str, ...]] = {
    "molecules": (
        "patient_depth", "depth_noise", "dispersion", "ambient", "bleed_um", "site_gene", "patient_gene", "block_gene",
        "section_gene", "patient_profile", "private",
    ),
    "stain": ("hue", "strength", "site_hue", "site_strength", "grain"),
    "people": ("registration_um", "registration_bend_um", "absent"),
    "labels": ("region_um", "annotator", "unlabelled"),
    "transcripts": ("bleed_um", "low_quality", "control"),
    "language": ("missing", "wrong", "section_level"),
    "artefacts": ("folds", "blur", "pen"),
}  # fmt: skip
_AT_MOST = 0.9
_SHARES = (
    "ambient", "private", "absent", "unlabelled", "low_quality", "control", "missing", "wrong", "section_level",
    "folds", "blur", "pen",
)  # fmt: skip
_DEPTHS = (("molecules", "median_depth"), ("transcripts", "per_cell"))
"""Depth of round spots, and of single molecules: divided by the factor."""


def preset(name: str, *, seed: int = 0, difficulty: str = "standard", overrides: Iterable[str] = ()) -> Simulation:
    """The preset `name`, with its seed.

    Parameters
    ----------
    name
        One of `preset_names()`.
    seed
        Everything that is drawn follows from it.
    difficulty
        One of `DIFFICULTIES`: scales noise, batch effects, private biology, and errors of labels and captions; depth
        is divided by it.
    overrides
        `key=value` of single knobs, after that: `molecules.niche=0`, `people.confounding=0.5`.

    Raises
    ------
    RecipeError
        There is no such preset, difficulty or knob, or a value does not fit.
    """
    for value, known, what in ((name, preset_names(), "preset"), (difficulty, list(DIFFICULTIES), "difficulty")):
        if value not in known:
            raise RecipeError(
                f"there is no {what} {value!r}", where="simulate", mend=f"choose one of {known}{near(value, known)}"
            )
    values = {**_PRESETS[name].model_dump(), "seed": seed}
    if difficulty != "standard":
        values = _harder(values, DIFFICULTIES[difficulty])
    for override in overrides:
        values = deep_merge(values, parse_override(override))
    return validated(Simulation, values, where="simulate --set", noun="simulation")


def preset_names() -> list[str]:
    """The presets there are."""
    return sorted(_PRESETS)


def _harder(values: dict[str, Any], factor: float) -> dict[str, Any]:
    for part, knobs in _HARDENING.items():
        for knob in knobs:
            scaled = values[part][knob] * factor
            values = deep_merge(values, {part: {knob: min(scaled, _AT_MOST) if knob in _SHARES else scaled}})
    for part, knob in _DEPTHS:
        values = deep_merge(values, {part: {knob: values[part][knob] / factor}})
    return values
