"""Language: a caption for each location, written from what is there, and prompts for each class.

A caption names the domain, how densely cellular it is and which cells stand out. Every phrase comes from the tables
below, so that a test can read a caption back and hold it against the composition.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from triglyph.tissue.simulate.presets import CELL_TYPES, DOMAINS, Language

DOMAIN_PHRASES: dict[str, tuple[str, ...]] = {
    "invasive cancer": ("invasive carcinoma", "invasive ductal carcinoma", "infiltrating tumour", "invasive cancer"),
    "cancer in situ": ("ductal carcinoma in situ", "in situ carcinoma", "DCIS", "cancer in situ"),
    "immune infiltrate": ("lymphoid aggregate", "dense immune infiltrate", "lymphocytic infiltrate"),
    "connective tissue": ("fibrous stroma", "connective tissue", "collagenous stroma"),
    "breast glands": ("normal glands", "benign breast glands", "normal glandular epithelium"),
    "adipose tissue": ("adipose tissue", "fat", "mature adipose tissue"),
    "necrosis": ("necrosis", "necrotic debris", "necrotic tissue"),
}
DENSITY_PHRASES: dict[str, tuple[str, ...]] = {
    "sparse": ("sparsely cellular", "with few cells"),
    "moderate": ("moderately cellular", "of moderate cellularity"),
    "dense": ("densely cellular", "with crowded cells"),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "tumour cells": ("tumour",),
    "epithelial cells": ("epithelial",),
    "fibroblasts": ("fibroblast",),
    "lymphocytes": ("T cell", "B cell"),
    "macrophages": ("macrophage",),
    "endothelial cells": ("endothelial",),
}
"""How captions name cells; types that look alike under the microscope share a name."""
AMOUNT_PHRASES: dict[str, tuple[str, ...]] = {
    "some": ("scattered", "some"),
    "many": ("many", "abundant", "numerous"),
}
_OPENINGS = ("{domain}", "H&E of {domain}", "tissue showing {domain}", "{domain} is seen")
_BORDERS = ("at the border of {other}", "next to {other}", "adjoining {other}")
# Types that a domain is made of say nothing new about it.
_EXPECTED = {
    "invasive cancer": "tumour cells",
    "cancer in situ": "tumour cells",
    "immune infiltrate": "lymphocytes",
    "connective tissue": "fibroblasts",
    "breast glands": "epithelial cells",
}

CLASS_PROMPTS: dict[str, list[str]] = {
    domain: [*phrases, *(f"H&E of {phrase}" for phrase in phrases), f"tissue showing {phrases[0]}"]
    for domain, phrases in DOMAIN_PHRASES.items()
}
"""Prompts of the zero-shot judge for each label, fixed before any model is trained."""


def write_captions(
    knobs: Language,
    domains: NDArray[np.float64],
    composition: NDArray[np.float64],
    cells_per_mm2: NDArray[np.float64],
    rng: np.random.Generator,
) -> list[str]:
    """A caption per location, "" where it is missing.

    Parameters
    ----------
    domains
        (n, len(DOMAINS)) share of each domain.
    composition
        (n, len(CELL_TYPES)) share of each cell type.
    cells_per_mm2
        (n,)
    """
    captions = []
    for shares, mixture, density in zip(domains, composition, cells_per_mm2, strict=True):
        order = np.argsort(-shares, kind="stable")
        domain = DOMAINS[order[0]]
        text = _pick(_OPENINGS, rng).format(domain=_pick(DOMAIN_PHRASES[domain], rng))
        if shares[order[1]] >= knobs.border:
            other = _pick(DOMAIN_PHRASES[DOMAINS[order[1]]], rng)
            text += " " + _pick(_BORDERS, rng).format(other=other)
        text += ", " + _pick(DENSITY_PHRASES[density_class(knobs, float(density))], rng)
        named = []
        for group, types in GROUPS.items():
            share = float(sum(mixture[CELL_TYPES.index(name)] for name in types))
            amount = amount_class(knobs, share)
            if amount and group != _EXPECTED.get(domain):
                named.append((share, f"{_pick(AMOUNT_PHRASES[amount], rng)} {group}"))
        named.sort(reverse=True)
        if named:
            text += ", with " + " and ".join(phrase for _, phrase in named[:3])
        captions.append("" if rng.random() < knobs.missing else text)
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


def _pick(phrases: tuple[str, ...], rng: np.random.Generator) -> str:
    return phrases[int(rng.integers(len(phrases)))]
