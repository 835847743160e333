"""Columns that say something of whole patients or sections: a mutation, a scanner, a site.

They stand in `clinical.csv`, in `sections.csv`, or, for a plain `.h5ad`, in its `obs`, the same for all locations of
a section. A trial has sections alone, so what opens the cohort attaches its tables; nothing is read before a protocol
asks for a column.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import pandas as pd

from triglyph.bench.contracts import SectionLike, Trial
from triglyph.bench.parts import whole_of
from triglyph.errors import ContractError, SourceError

_KEY = "tables of the cohort"


class Tables(Protocol):
    """What is used of a `tissue.Cohort`."""

    @property
    def manifest(self) -> pd.DataFrame:
        """One row per section."""

    @property
    def clinical(self) -> pd.DataFrame:
        """One row per patient; `SourceError` where there is no such table."""


def attach(trial: Trial, cohort: Tables) -> Trial:
    """The trial itself, which now finds the columns of the cohort's tables."""
    trial.memo[_KEY] = cohort
    return trial


def section_values(trial: Trial, column: str, sections: Iterable[SectionLike]) -> dict[str, str]:
    """Section id -> its value in a column, "" where unknown; whole numbers without a point.

    The column is looked for in `sections.csv`, then in `clinical.csv`, then in the `obs` of the sections' own tables.

    Raises
    ------
    ContractError
        No table has the column, or it varies within a section.
    """
    sections = list(sections)
    tables: Tables | None = trial.memo.get(_KEY)
    known: list[str] = []
    if tables is not None:
        manifest = tables.manifest
        if column in manifest.columns:
            return {s.id: _text(manifest.loc[whole_of(s).id, column]) for s in sections}
        try:
            clinical = tables.clinical
        except SourceError:  # a cohort need not have the table
            clinical = pd.DataFrame()
        if column in clinical.columns:
            of = clinical[column]
            return {s.id: _text(of.get(s.patient)) for s in sections}
        known += [*map(str, manifest.columns), *map(str, clinical.columns)]
    observed = {s.id: _of_table(s, column) for s in sections}
    missing = [name for name, value in observed.items() if value is None]
    if missing:
        raise ContractError(
            f"no table of patients or sections has a column {column!r}",
            where=f"split {trial.split!r}",
            mend=f"there are {', '.join(known)}" if known else "write a clinical.csv, or name a column of obs",
        )
    return {name: value for name, value in observed.items() if value is not None}


def patient_values(trial: Trial, column: str, sections: Iterable[SectionLike]) -> dict[str, str]:
    """Patient id -> its value in a column, "" where unknown.

    Raises
    ------
    ContractError
        No table has the column, or sections of one patient differ in it.
    """
    sections = list(sections)
    values = section_values(trial, column, sections)
    out: dict[str, str] = {}
    for section in sections:
        value, before = values[section.id], out.get(section.patient, "")
        if value and before and value != before:
            raise ContractError(
                f"patient {section.patient} has {before!r} and {value!r}",
                where=f"column {column!r}",
                mend="give each patient one value",
            )
        out[section.patient] = value or before
    return out


def _of_table(section: Any, column: str) -> str | None:
    """None where the section's table has no such column."""
    obs = section.table.obs
    if column not in obs:
        return None
    values = {_text(value) for value in obs[column].unique()} - {""}
    if len(values) > 1:
        raise ContractError(
            f"the column {column!r} has {len(values)} values in one section",
            where=f"section {section.id}",
            mend="name a column of patients or sections",
        )
    return values.pop() if values else ""


def _text(value: Any) -> str:
    if value is None or pd.isna(value):
        return ""
    # A column of 0 and 1 with a gap is read as floats.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
