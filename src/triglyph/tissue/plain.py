"""A plain AnnData seen as a cohort, so that anybody's embedding can be judged: `bench run NAME --cohort FILE.h5ad`.

Nothing is written and nothing guessed: the patient column is named, the unit of `obsm["spatial"]` is stated, and `X`
(or a layer) must hold raw counts where a protocol asks for expression. Without coordinates a section has no place:
what needs one (position, blocks of tissue for intervals) is left out, the rest works.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.cards import digest
from triglyph.errors import ContractError, SourceError, SplitError
from triglyph.storage import file_digest, read_json
from triglyph.tissue.checks import checked_patient
from triglyph.tissue.readers.tables import open_anndata
from triglyph.tissue.split import Split, patient_folds

LEAVE_ONE_OUT = "leave-one-patient-out"


class PlainSection:
    """Rows of an AnnData that are of one section."""

    def __init__(self, id: str, patient: str, rows: NDArray[np.intp], cohort: PlainCohort) -> None:
        self.id, self.patient, self.rows, self.cohort = id, patient, rows, cohort

    @cached_property
    def table(self) -> ad.AnnData:
        """Its rows."""
        return self.cohort.table[self.rows]

    @cached_property
    def centres_um(self) -> NDArray[np.float64]:
        """(n, 2) µm; NaN where the file has no coordinates."""
        if "spatial" not in self.cohort.table.obsm:
            return np.full((len(self.rows), 2), np.nan)
        xy = np.asarray(self.cohort.table.obsm["spatial"], dtype=np.float64)[self.rows, :2]
        return xy * self.cohort.um_per_unit

    @property
    def captions(self) -> list[str]:
        """One per location, "" where missing."""
        return [str(c) for c in self._strings("caption")]

    @property
    def labels(self) -> NDArray[np.object_]:
        """One class per location, "" where unknown."""
        return self._strings(self.cohort.label)

    def _strings(self, column: str) -> NDArray[np.object_]:
        obs = self.cohort.table.obs
        if column not in obs:
            return np.full(len(self.rows), "", dtype=object)
        values = obs[column].iloc[self.rows]
        return values.astype(object).where(values.notna(), "").to_numpy()

    def expression(self) -> tuple[sp.csr_matrix, tuple[str, ...], tuple[str, ...], NDArray[np.bool_]]:
        """Raw counts (n, genes), symbols, Ensembl ids ("" where not stated), mask of measured genes.

        Raises
        ------
        ContractError
            The values are not counts.
        """
        var = self.cohort.table.var
        counts = sp.csr_matrix(self.cohort.counts[self.rows], dtype=np.float64)
        if counts.nnz and ((counts.data < 0).any() or (counts.data != np.round(counts.data)).any()):
            raise ContractError(
                "the table holds values that are not counts",
                where=f"{self.cohort.path}, section {self.id}",
                mend="name the layer of raw counts with --counts-layer",
            )
        n = len(var)
        ensembl = var["ensembl_id"].astype(str) if "ensembl_id" in var else [""] * n
        measured = var["measured"].to_numpy(dtype=bool) if "measured" in var else np.ones(n, dtype=bool)
        return counts, tuple(var.index.astype(str)), tuple(ensembl), measured

    def has_image(self, name: str = "he") -> bool:
        """Never: a table has no pixels."""
        return False


class PlainCohort:
    """An AnnData whose rows are told apart by patient and section.

    Parameters
    ----------
    table
        In memory.
    path
        Where it came from.
    patient, section
        Columns of `obs`; without a section column all rows of a patient are one section.
    label
        Column of `obs` with classes.
    counts_layer
        Layer of raw counts; `X` if None.
    um_per_unit
        µm per unit of `obsm["spatial"]`.

    Raises
    ------
    SourceError
        A column or layer is not there.
    ContractError
        A patient is missing, or a section has two.
    """

    def __init__(
        self,
        table: ad.AnnData,
        path: Path,
        *,
        patient: str = "patient",
        section: str | None = None,
        label: str = "label",
        counts_layer: str | None = None,
        um_per_unit: float = 1.0,
    ) -> None:
        for what, column in (("patient", patient), ("section", section)):
            if column is not None and column not in table.obs:
                raise SourceError(
                    f"obs has no column {column!r}",
                    where=path,
                    mend=f"name it with --{what}-column; there are {', '.join(map(str, table.obs.columns)) or 'none'}",
                )
        if counts_layer is not None and counts_layer not in table.layers:
            raise SourceError(
                f"there is no layer {counts_layer!r}", where=path, mend=f"layers: {', '.join(table.layers) or 'none'}"
            )
        if not um_per_unit > 0:
            raise ContractError(f"{um_per_unit} µm per unit", where=path, mend="give a positive number")
        for what, index in (("locations", table.obs_names), ("genes", table.var_names)):
            if index.has_duplicates:
                raise ContractError(
                    f"{what} with one name: {', '.join(map(str, index[index.duplicated()].unique()[:3]))}",
                    where=path,
                    mend=f"make the names of {what} unique",
                )
        if section is not None and table.obs[section].isna().any():
            raise ContractError(
                f"{int(table.obs[section].isna().sum())} locations have no section",
                where=f"{path}, column {section}",
                mend="say of which section they are, or leave them out",
            )
        self.table, self.path, self.label, self.um_per_unit = table, path, label, um_per_unit
        self._options = [patient, section, label, counts_layer, um_per_unit]
        self.counts: Any = table.X if counts_layer is None else table.layers[counts_layer]
        self.name = path.stem
        people = self._people(table.obs[patient], section, patient)
        names = people if section is None else table.obs[section].astype(str).to_numpy()
        self.patients: dict[str, str] = {}
        self._sections: dict[str, PlainSection] = {}
        for name in sorted(set(names.tolist())):
            rows = np.flatnonzero(names == name)
            of = sorted(set(people[rows].tolist()))
            if len(of) > 1:
                raise ContractError(f"section {name} is of several patients: {', '.join(of)}", where=path)
            self.patients[name] = of[0]
            self._sections[name] = PlainSection(name, of[0], rows, self)

    @classmethod
    def read(cls, path: Path, **options: Any) -> PlainCohort:
        """From an `.h5ad` file; options as above."""
        return cls(open_anndata(path), path, **options)

    def _people(self, column: pd.Series, section: str | None, name: str) -> NDArray[np.str_]:
        if column.isna().any():
            raise ContractError(
                f"{int(column.isna().sum())} locations have no patient",
                where=f"{self.path}, column {name}",
                mend="say whose they are, or leave them out",
            )
        known = {value: checked_patient(str(value), where=f"{self.path}, column {name}") for value in column.unique()}
        return np.array([known[v] for v in column], dtype=np.str_)

    @property
    def ids(self) -> list[str]:
        """Section ids, sorted."""
        return list(self._sections)

    def __iter__(self) -> Iterator[PlainSection]:
        return iter(self._sections.values())

    def __getitem__(self, section: str) -> PlainSection:
        if section not in self._sections:
            raise SourceError(f"no section {section!r}", where=self.path, mend=f"there are {', '.join(self.ids[:20])}")
        return self._sections[section]

    @cached_property
    def _digest(self) -> str:
        return digest({"file": file_digest(self.path), "patients": self.patients, "read as": self._options})

    def digest(self) -> str:
        """Sixteen hex digits that change with the file or with how it is read."""
        return self._digest

    @property
    def splits(self) -> list[str]:
        """What `split` knows without a file."""
        return [LEAVE_ONE_OUT]

    def split(self, name: str) -> Split:
        """`leave-one-patient-out`, or a JSON file of a split, checked against the sections that are here."""
        if name == LEAVE_ONE_OUT:
            return patient_folds(self.patients, name=name)
        path = Path(name)
        if not path.is_file():
            raise SplitError(
                f"no split {name!r}", where=self.path, mend=f"give {LEAVE_ONE_OUT}, or the JSON file of a split"
            )
        split = Split.model_validate(read_json(path))
        split.check(self.patients)
        return split
