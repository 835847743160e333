"""The truth that a simulated section carries beside its counts, where there is any; real sections have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.bench.contracts import Array, Embedder, SectionLike
from triglyph.bench.features import Features
from triglyph.bench.parts import cut, whole_of
from triglyph.errors import ContractError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SURROUNDINGS = (7, 19)
"""Nearest locations over which shares of domains are averaged, beside the location's own."""


@dataclass(frozen=True)
class Truth:
    """The truth that a simulated section carries."""

    expected: NDArray[np.floating[Any]] | None
    """(n, genes) expected counts, columns as in the section's table."""
    dispersion: float
    """Of the negative binomial around them; 0: Poisson. One number for all locations and genes: where a platform's
    noise is per cell, as in bins of single molecules, it is that of a middling location and an evenly expressed gene.
    """
    domains: Floats | None
    """(n, domains) shares that sum to 1."""
    names: tuple[str, ...]
    """Of the domains; empty where the section does not say."""


def truth_of(section: SectionLike) -> Truth | None:
    """The truth of a section, or None where there is none.

    The section's `info.source` may name the columns of `truth_domains` and give `truth_dispersion`.

    Raises
    ------
    ContractError
        The truth is there and does not fit the table.
    """
    table = getattr(section, "table", None)
    if table is None:
        return None
    expected, domains = table.layers.get("truth_expected"), table.obsm.get("truth_domains")
    if expected is None and domains is None:
        return None
    info = getattr(section, "info", None)
    source: Mapping[str, Any] = {} if info is None else info.source
    names = tuple(str(name) for name in source.get("truth_domains", ()))
    dense = None
    if expected is not None:
        # Not copied: a cohort's tables hold them already.
        dense = np.asarray(expected.toarray() if sp.issparse(expected) else expected)
        if not (np.isfinite(dense).all() and (dense >= 0).all()):
            raise ContractError(
                "expected counts are negative or not finite", where=f"section {section.id}, truth_expected"
            )
    shares = None if domains is None else np.asarray(domains, dtype=np.float64)
    if shares is not None and names and len(names) != shares.shape[1]:
        raise ContractError(
            f"{len(names)} names for {shares.shape[1]} domains",
            where=f"section {section.id}, truth_domains",
            mend="name every column in the section's source",
        )
    return Truth(dense, float(source.get("truth_dispersion", 0.0)), shares, names)


@dataclass(frozen=True)
class Truths:
    """Truth of the sections of a trial, each read once."""

    found: dict[str, Truth | None] = field(default_factory=dict)

    def __getitem__(self, section: SectionLike) -> Truth | None:
        whole = whole_of(section)  # a tested part has the id of its section
        if whole.id not in self.found:
            self.found[whole.id] = truth_of(whole)
        truth = self.found[whole.id]
        if truth is None or whole is section:
            return truth
        expected, domains = (None if a is None else cut(section, a)[0] for a in (truth.expected, truth.domains))
        return replace(truth, expected=expected, domains=domains)

    def all_expected(self, sections: Sequence[SectionLike]) -> bool:
        """Whether every one of them knows its expected counts."""
        return all((t := self[s]) is not None and t.expected is not None for s in sections)

    def all_domains(self, sections: Sequence[SectionLike]) -> bool:
        """Whether every one of them knows its shares of domains."""
        return all((t := self[s]) is not None and t.domains is not None for s in sections)

    def expected(self, section: SectionLike, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> tuple[Floats, float]:
        """(rows, columns) expected counts and their dispersion, of a section that knows them."""
        truth = self[section]
        assert truth is not None
        assert truth.expected is not None
        return truth.expected[np.ix_(rows, columns)].astype(np.float64), truth.dispersion

    def domains(self, section: SectionLike) -> tuple[Floats, tuple[str, ...]]:
        """(n, domains) shares and their names, of a section that knows them."""
        truth = self[section]
        assert truth is not None
        assert truth.domains is not None
        return truth.domains, truth.names


@dataclass(frozen=True)
class TrueDomains(Features):
    """True shares of domains of a location, and their means over the nearest 7 and 19 locations.

    Annotators draw regions, so that what lies around a location also says which label it was given.
    """

    truths: Truths = field(default_factory=Truths)
    judged: Embedder | None = None
    """Locations that this has not are left out; None leaves out none."""
    modality: str = "image"

    def features(self, section: SectionLike) -> tuple[Array, Bools]:
        from scipy.spatial import cKDTree

        shares, _ = self.truths.domains(section)
        xy = np.asarray(section.centres_um, dtype=np.float64)
        parts = [shares]
        for k in SURROUNDINGS:
            near = cKDTree(xy).query(xy, k=min(k, len(xy)))[1].reshape(len(xy), -1)
            parts.append(shares[near].mean(axis=1))
        present = np.ones(len(xy), dtype=bool) if self.judged is None else self.judged.embed(section, self.modality)[1]
        return np.concatenate(parts, axis=1), np.asarray(present)
