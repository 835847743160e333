"""What the checks look at: a cohort, a split of it, the subject; facts of a section are computed once."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from triglyph.bench.audit.subject import SubjectInfo
from triglyph.errors import ContractError, GeneError
from triglyph.tissue.split import Fold, Split

Rows = NDArray[np.intp]


class CohortLike(Protocol):
    """What an audit uses of a `tissue.Cohort`. Columns of `manifest`, where there is one, are looked at by name."""

    @property
    def ids(self) -> Sequence[str]:
        """Section ids."""

    @property
    def patients(self) -> Mapping[str, str]:
        """Section id -> patient id."""

    def __getitem__(self, section: str, /) -> Any:
        """A `bench.contracts.SectionLike`; `info` and `table` of a `tissue.Section` are used where they are there."""


@dataclass(frozen=True)
class Sides:
    """One fold: what is seen, and what is tested."""

    fold: Fold
    name: str
    """"" where the split has one fold."""
    seen: tuple[str, ...]
    """Sections trained or chosen on, by the split or by the subject, that the cohort has."""
    test: tuple[str, ...]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(seen, tested) of different sections."""
        return ((a, b) for a in self.seen for b in self.test if a != b)


@dataclass
class Case:
    """Everything that is audited.

    Parameters
    ----------
    cohort, split
        The split need not fit.
    subject
        What the split is to judge; None where only the split is audited.
    """

    cohort: CohortLike
    split: Split
    subject: SubjectInfo | None = None
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Class -> other words for it."""
    embedding: str | None = None
    """Fingerprint of stored features, or `obsm` key of a plain table."""
    tile_um: float | None = None
    """Side of the square of tissue that a model sees around a location, µm."""
    seed: int = 0
    copies: set[tuple[str, str]] = field(default_factory=set)
    """Pairs of sections that hold the same tissue, as far as checks have found out."""

    @cached_property
    def patients(self) -> dict[str, str]:
        """Section -> patient."""
        return {str(s): str(p) for s, p in self.cohort.patients.items()}

    @cached_property
    def sides(self) -> tuple[Sides, ...]:
        """The folds, with unknown sections left out."""
        subject = self.subject
        trained = () if subject is None else subject.training_sections
        folds = self.split.folds
        if subject is not None and subject.split == self.split.name and subject.folds:
            folds = tuple(f for f in folds if f.name in subject.folds)
        out = []
        for fold in folds:
            test = [s for s in dict.fromkeys(fold.test) if s in self.patients]
            others = [s for s in trained if s not in fold.test]  # those tested have a check of their own
            seen = [s for s in dict.fromkeys((*fold.train, *fold.val, *others)) if s in self.patients]
            out.append(Sides(fold, fold.name if len(self.split.folds) > 1 else "", tuple(seen), tuple(test)))
        return tuple(out)

    @cached_property
    def sections(self) -> tuple[str, ...]:
        """All that the split names and the cohort has, sorted."""
        return tuple(sorted({s for sides in self.sides for s in (*sides.seen, *sides.test)}))

    def column(self, name: str) -> dict[str, str] | None:
        """Section -> value of a column of the manifest, blanks left out; None where the manifest has no such values."""
        manifest = getattr(self.cohort, "manifest", None)
        if not isinstance(manifest, pd.DataFrame) or name not in manifest.columns:
            return None
        values = {str(s): str(v).strip() for s, v in manifest[name].items() if str(s) in self.patients}
        return {s: v for s, v in values.items() if v} or None

    def info(self, section: str) -> Any:
        """`SectionInfo`, or None where the cohort is not of folders."""
        return getattr(self.cohort[section], "info", None)

    @cached_property
    def uncounted(self) -> str:
        """Why counts cannot be looked at, "" where they can: a plain table may hold none."""
        try:
            for section in self.sections:
                self.cohort[section].expression()
        except (ContractError, GeneError) as error:
            return error.what
        return ""

    @cached_property
    def counted(self) -> tuple[str, ...]:
        """Sections that have genes; pictures with captions have none."""
        return () if self.uncounted else tuple(s for s in self.sections if self.cohort[s].expression()[1])

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """Symbols measured in all sections that have genes, sorted; none where counts cannot be looked at."""
        sets = []
        for section in self.counted:
            _, symbols, _, measured = self.cohort[section].expression()
            sets.append({s for s, m in zip(symbols, measured, strict=True) if m})
        return tuple(sorted(set.intersection(*sets))) if sets else ()

    def placed(self, section: str) -> bool:
        """Whether a section says where its locations are."""
        return bool(np.isfinite(self.cohort[section].centres_um).all())

    def rows(self, sides: Sides, section: str, *, test: bool) -> Rows:
        """Locations of a section on one side of a fold."""
        if section not in (sides.fold.test_locations or {}):
            return np.arange(len(self.cohort[section].centres_um))
        barcodes = [str(b) for b in self.cohort[section].table.obs_names]
        if test:
            tested = set((sides.fold.test_locations or {})[section])
            return np.flatnonzero([b in tested for b in barcodes])
        withheld = set(sides.fold.withheld[section])
        return np.flatnonzero([b not in withheld for b in barcodes])


def plain(name: str) -> tuple[str, ...]:
    """A name without what people spell differently: case, accents, spaces, punctuation, leading zeros.

    `P01`, `p-1` and `P 1` are one; `P1.1` and `P11` are two.
    """
    text = unicodedata.normalize("NFKD", name).casefold()
    kinds = groupby(text, key=lambda c: "digit" if c.isdecimal() else "letter" if c.isalpha() else "")
    runs = [("".join(group), kind) for kind, group in kinds]
    return tuple(run.lstrip("0") or "0" if kind == "digit" else run for run, kind in runs if kind)
