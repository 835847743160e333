"""Language: captions of locations, domains and sections, in words that a cohort carries and in words held out of it.

A caption of a location names the domain, how densely cellular it is and which cells stand out. Every phrase comes from
the tables below, so that a test can read a caption back and hold it against the composition. Each idea has words that
captions carry (`SEEN`) and words that none of them ever does (`HELD_OUT`), down to the templates: a model that was
trained on the first is judged on the second for what it understood, not for what it remembers.

What is done to captions is drawn for each location from a stream of its own, one lot in [0, 1): from the bottom up
`missing`, then `section_level`; from the top down `wrong`; between them the location's own. So every knob is a share
of all locations, and none of the first and the last moves where the other strikes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triglyph.tissue.simulate.fields import sample
from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS
from triglyph.tissue.simulate.knobs.people import Language
from triglyph.tissue.simulate.streams import stream

if TYPE_CHECKING:
    from triglyph.tissue.simulate.specimen import Specimen

Phrases = dict[str, tuple[str, ...]]

DOMAIN_PHRASES: Phrases = {
    "invasive cancer": ("invasive carcinoma", "invasive ductal carcinoma", "infiltrating tumour", "invasive cancer"),
    "cancer in situ": ("ductal carcinoma in situ", "in situ carcinoma", "DCIS", "cancer in situ"),
    "immune infiltrate": ("lymphoid aggregate", "dense immune infiltrate", "lymphocytic infiltrate"),
    "connective tissue": ("fibrous stroma", "connective tissue", "collagenous stroma"),
    "breast glands": ("normal glands", "benign breast glands", "normal glandular epithelium"),
    "adipose tissue": ("adipose tissue", "fat", "mature adipose tissue"),
    "necrosis": ("necrosis", "necrotic debris", "necrotic tissue"),
}
HELD_OUT_DOMAIN_PHRASES: Phrases = {
    "invasive cancer": ("infiltrating adenocarcinoma", "invasive neoplasm", "infiltrative malignant growth"),
    "cancer in situ": ("intraductal neoplasia", "pre-invasive malignancy within ducts"),
    "immune infiltrate": ("tertiary lymphoid structure", "leucocyte-rich area", "nodular lymphoid proliferation"),
    "connective tissue": ("collagen-rich interstitium", "fibrocollagenous matrix"),
    "breast glands": ("unremarkable mammary lobules", "non-neoplastic terminal duct lobular units"),
    "adipose tissue": ("fatty parenchyma", "lobules of adipocytes"),
    "necrosis": ("devitalised tissue", "dead tissue"),
}
DENSITY_PHRASES: Phrases = {
    "sparse": ("sparsely cellular", "with few cells"),
    "moderate": ("moderately cellular", "of moderate cellularity"),
    "dense": ("densely cellular", "with crowded cells"),
}
HELD_OUT_DENSITY_PHRASES: Phrases = {
    "sparse": ("hypocellular", "poor in nuclei"),
    "moderate": ("of intermediate cell density", "neither crowded nor empty"),
    "dense": ("hypercellular", "packed with nuclei"),
}
GROUPS: Phrases = {
    "tumour cells": ("tumour",),
    "epithelial cells": ("epithelial",),
    "fibroblasts": ("fibroblast",),
    "lymphocytes": ("T cell", "B cell"),
    "macrophages": ("macrophage",),
    "endothelial cells": ("endothelial",),
}
"""How captions name cells; types that look alike under the microscope share a name."""
HELD_OUT_GROUP_PHRASES: Phrases = {
    "tumour cells": ("neoplastic cells", "malignant cells"),
    "epithelial cells": ("cells of the gland lining", "non-neoplastic luminal cells"),
    "fibroblasts": ("stromal spindle cells", "matrix-producing cells"),
    "lymphocytes": ("mononuclear immune cells", "small round lymphoid cells"),
    "macrophages": ("histiocytes", "phagocytes"),
    "endothelial cells": ("vessel-lining cells", "capillary cells"),
}
AMOUNT_PHRASES: Phrases = {
    "some": ("scattered", "some"),
    "many": ("many", "abundant", "numerous"),
}
HELD_OUT_AMOUNT_PHRASES: Phrases = {
    "some": ("occasional", "a sprinkling of"),
    "many": ("plentiful", "a wealth of"),
}
EXTENT_PHRASES: Phrases = {
    "small": ("a focus of", "small areas of"),
    "medium": ("areas of", "regions of"),
    "large": ("large areas of", "widespread"),
}
"""How much of a section a domain takes."""
HELD_OUT_EXTENT_PHRASES: Phrases = {
    "small": ("a minute patch of", "a tiny zone of"),
    "medium": ("patches of", "zones of"),
    "large": ("broad expanses of", "a predominance of"),
}
# Types that a domain is made of say nothing new about it.
_EXPECTED = {
    "invasive cancer": "tumour cells",
    "cancer in situ": "tumour cells",
    "immune infiltrate": "lymphocytes",
    "connective tissue": "fibroblasts",
    "breast glands": "epithelial cells",
}
_EXTENTS = {"small": 0.02, "medium": 0.10, "large": 0.25}
"""Smallest share of the section for each extent; below the first a domain is not named."""
KINDS = ("own", "wrong", "section", "missing")
"""What a location may carry."""


class Vocabulary(NamedTuple):
    """Words and templates for everything that captions say."""

    domains: Phrases
    densities: Phrases
    amounts: Phrases
    groups: Phrases
    extents: Phrases
    openings: tuple[str, ...]
    """Templates of a location: of {domain}, {border}, {density} and {cells}; border and cells may be empty."""
    borders: tuple[str, ...]
    of_domain: tuple[str, ...]
    """Templates of a domain: of {extent}, {domain}, {density} and {cells}."""
    of_section: tuple[str, ...]
    """Templates of a section: of {organ}, {parts}, {density} and {cells}."""
    cells: str
    joint: str


SEEN = Vocabulary(
    domains=DOMAIN_PHRASES,
    densities=DENSITY_PHRASES,
    amounts=AMOUNT_PHRASES,
    groups={name: (name,) for name in GROUPS},
    extents=EXTENT_PHRASES,
    openings=(
        "{domain}{border}, {density}{cells}",
        "H&E of {domain}{border}, {density}{cells}",
        "tissue showing {domain}{border}, {density}{cells}",
        "{domain} is seen{border}, {density}{cells}",
    ),
    borders=(" at the border of {other}", " next to {other}", " adjoining {other}"),
    of_domain=("{extent} {domain}, {density}{cells}", "this section has {extent} {domain}, {density}{cells}"),
    of_section=("section of {organ} with {parts}, {density}{cells}", "{organ} tissue: {parts}, {density}{cells}"),
    cells=", with {list}",
    joint=" and ",
)
"""The words that captions of a cohort carry."""
HELD_OUT = Vocabulary(
    domains=HELD_OUT_DOMAIN_PHRASES,
    densities=HELD_OUT_DENSITY_PHRASES,
    amounts=HELD_OUT_AMOUNT_PHRASES,
    groups=HELD_OUT_GROUP_PHRASES,
    extents=HELD_OUT_EXTENT_PHRASES,
    openings=(
        "microscopy is consistent with {domain}{border}; {density}{cells}",
        "{density}: {domain}{border}{cells}",
        "the field contains {domain}{border}{cells}; overall {density}",
    ),
    borders=(" bordering on {other}", " in contact with {other}"),
    of_domain=("one finds {extent} {domain}; {density}{cells}", "{density}: {extent} {domain}{cells}"),
    of_section=("the slide comes from the {organ} and contains {parts}; overall {density}{cells}",),
    cells="; {list} can be made out",
    joint=" as well as ",
)
"""The same ideas in words that no caption of a cohort carries."""


def _prompts(domains: Phrases, openings: tuple[str, ...], last: str) -> dict[str, list[str]]:
    return {
        domain: [*(text.format(phrase) for text in openings for phrase in phrases), last.format(phrases[0])]
        for domain, phrases in domains.items()
    }


CLASS_PROMPTS = _prompts(DOMAIN_PHRASES, ("{}", "H&E of {}"), "tissue showing {}")
"""Prompts of the zero-shot judge for each label, fixed before any model is trained."""
HELD_OUT_CLASS_PROMPTS = _prompts(
    HELD_OUT_DOMAIN_PHRASES, ("{}", "microscopy is consistent with {}"), "the field contains {}"
)
"""The same in words that no caption carries."""


class Captions(NamedTuple):
    """What locations carry, and the truth about it."""

    texts: list[str]
    """"" where it is missing."""
    kinds: list[str]
    """One of `KINDS` for each location."""


def write_captions(
    knobs: Language,
    domains: NDArray[np.float64],
    composition: NDArray[np.float64],
    cells_per_mm2: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    lots: NDArray[np.float64],
    section_text: str = "",
) -> Captions:
    """A caption per location, as the cohort carries it.

    Parameters
    ----------
    domains
        (n, len(DOMAINS)) share of each domain.
    composition
        (n, len(CELL_TYPES)) share of each cell type.
    cells_per_mm2
        (n,)
    rng
        Chooses words.
    lots
        (n,) in [0, 1): below `missing` the caption is missing, in the next `section_level` it is `section_text`, from
        1 - `wrong` on it is that of another location, of another domain where the section has one.
    section_text
        The section's caption.
    """
    own = _locations(knobs, SEEN, domains, composition, cells_per_mm2, rng)
    top = domains.argmax(1)
    texts, kinds = [], []
    for i, (text, lot) in enumerate(zip(own, lots, strict=True)):
        carried, kind = text, "own"
        if lot < knobs.missing:
            carried, kind = "", "missing"
        elif lot < knobs.missing + knobs.section_level:
            carried, kind = section_text, "section"
        elif lot >= 1 - knobs.wrong and len(own) > 1:
            others = np.flatnonzero(top != top[i])
            others = others if len(others) else np.delete(np.arange(len(own)), i)
            # Where in the top share the lot fell says which other one: no draw that other locations could feel.
            chosen = int((lot - (1 - knobs.wrong)) / knobs.wrong * len(others))
            carried, kind = own[others[min(chosen, len(others) - 1)]], "wrong"
        texts.append(carried)
        kinds.append(kind)
    return Captions(texts, kinds)


def held_out_captions(
    knobs: Language,
    domains: NDArray[np.float64],
    composition: NDArray[np.float64],
    cells_per_mm2: NDArray[np.float64],
    rng: np.random.Generator,
) -> list[str]:
    """A caption per location in held-out words alone: always its own content, never missing; see `write_captions`."""
    return _locations(knobs, HELD_OUT, domains, composition, cells_per_mm2, rng)


def section_caption(specimen: Specimen, *, words: Vocabulary = SEEN) -> str:
    """What the whole section shows: its domains by how much of it they take, its cellularity, its cells."""
    tissue, knobs = specimen.tissue, specimen.config.language
    rng = stream(specimen.config.seed, _part("section words", words), *specimen.keys)
    shares = (tissue.domains * tissue.cover).sum((1, 2), dtype=np.float64)
    shares /= shares.sum()
    order = [int(d) for d in np.argsort(-shares, kind="stable") if extent_class(float(shares[d]))]
    parts = [
        f"{_pick(words.extents[extent_class(float(shares[d]))], rng)} {_pick(words.domains[DOMAINS[d]], rng)}"
        for d in order
    ]
    area_mm2 = float(tissue.cover.sum(dtype=np.float64)) * tissue.step_um**2 * 1e-6
    mixture = np.bincount(tissue.cells.kind, minlength=len(CELL_TYPES)) / max(len(tissue.cells), 1)
    density = density_class(knobs, len(tissue.cells) / area_mm2)
    return _pick(words.of_section, rng).format(
        organ=specimen.config.organ,
        parts=_listed(parts, words),
        density=_pick(words.densities[density], rng),
        cells=_named(knobs, words, DOMAINS[order[0]], mixture, rng),
    )


def domain_captions(specimen: Specimen, *, words: Vocabulary = SEEN) -> dict[str, str]:
    """For each domain that the section has (`_EXTENTS`): how much of it, how cellular, which cells stand out."""
    tissue, knobs = specimen.tissue, specimen.config.language
    rng = stream(specimen.config.seed, _part("domain words", words), *specimen.keys)
    top = np.where(tissue.cover > 0.5, tissue.domains.argmax(0), -1)
    under = np.bincount(top[top >= 0], minlength=len(DOMAINS))
    of_cell = sample(top.astype(np.float32), tissue.cells.xy_um, tissue.step_um).astype(np.int64)
    captions = {}
    for d, domain in enumerate(DOMAINS):
        extent = extent_class(under[d] / under.sum())
        if not extent:
            continue
        kinds = tissue.cells.kind[of_cell == d]
        mixture = np.bincount(kinds, minlength=len(CELL_TYPES)) / max(len(kinds), 1)
        density = density_class(knobs, len(kinds) / (under[d] * tissue.step_um**2 * 1e-6))
        captions[domain] = _pick(words.of_domain, rng).format(
            extent=_pick(words.extents[extent], rng),
            domain=_pick(words.domains[domain], rng),
            density=_pick(words.densities[density], rng),
            cells=_named(knobs, words, domain, mixture, rng),
        )
    return captions


def density_class(knobs: Language, cells_per_mm2: float) -> str:
    """`sparse`, `moderate` or `dense`."""
    if cells_per_mm2 < knobs.sparse_per_mm2:
        return "sparse"
    return "dense" if cells_per_mm2 >= knobs.dense_per_mm2 else "moderate"


def amount_class(knobs: Language, share: float) -> str:
    """`many`, `some`, or "" for too few to name."""
    if share >= knobs.many:
        return "many"
    return "some" if share >= knobs.some else ""


def extent_class(share: float) -> str:
    """`large`, `medium`, `small`, or "" for a domain too small to name."""
    found = [name for name, least in _EXTENTS.items() if share >= least]
    return found[-1] if found else ""


def _locations(
    knobs: Language,
    words: Vocabulary,
    domains: NDArray[np.float64],
    composition: NDArray[np.float64],
    cells_per_mm2: NDArray[np.float64],
    rng: np.random.Generator,
) -> list[str]:
    """The content of every location, in `words`."""
    captions = []
    for shares, mixture, density in zip(domains, composition, cells_per_mm2, strict=True):
        first, second = np.argsort(-shares, kind="stable")[:2]
        template, domain = _pick(words.openings, rng), _pick(words.domains[DOMAINS[first]], rng)
        border = ""
        if shares[second] >= knobs.border:
            other = _pick(words.domains[DOMAINS[second]], rng)
            border = _pick(words.borders, rng).format(other=other)
        cellular = _pick(words.densities[density_class(knobs, float(density))], rng)
        cells = _named(knobs, words, DOMAINS[first], mixture, rng)
        captions.append(template.format(domain=domain, border=border, density=cellular, cells=cells))
    return captions


def _named(
    knobs: Language, words: Vocabulary, domain: str, mixture: NDArray[np.float64], rng: np.random.Generator
) -> str:
    """The cells that stand out, at most three groups, those left out of which `domain` is made; may be empty."""
    named = []
    for group, types in GROUPS.items():
        share = float(sum(mixture[CELL_TYPES.index(name)] for name in types))
        amount = amount_class(knobs, share)
        if amount and group != _EXPECTED.get(domain):
            named.append((share, f"{_pick(words.amounts[amount], rng)} {_pick(words.groups[group], rng)}"))
    # Of equal shares the first of the table comes first, whatever words were chosen for it.
    named.sort(key=lambda found: -found[0])
    if not named:
        return ""
    return words.cells.format(list=words.joint.join(phrase for _, phrase in named[:3]))


def _listed(parts: list[str], words: Vocabulary) -> str:
    if len(parts) == 1:
        return parts[0]
    return ", ".join(parts[:-1]) + words.joint + parts[-1]


def _part(name: str, words: Vocabulary) -> str:
    """Held-out words have streams of their own."""
    return name if words is SEEN else f"held-out {name}"


def _pick(phrases: tuple[str, ...], rng: np.random.Generator) -> str:
    return phrases[int(rng.integers(len(phrases)))]
