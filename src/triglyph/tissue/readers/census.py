"""CELLxGENE Census: pseudobulks of cells with identical metadata, from local `.h5ad` files or from the Census itself.

A source is an `.h5ad` as CELLxGENE gives it (raw counts in `raw.X`, else `X`), a folder of them, or a `.json` that asks
for the remote Census (the `census` extra): `{"census_version": "2023-12-15", "organism": "Homo sapiens", "uri": null}`,
with the uri of a local copy if there is one.

One dataset is one section, and one *patient*: a pseudobulk pools the donors of a study. Its metadata are the columns
of words with fewer than 500 values among the dataset's cells, without donors and identifiers. Kept are primary cells
of the wanted assays with at least 100 genes.

A pseudobulk is the sum of raw counts, not their mean: sums are whole numbers, depth is kept in `n_cells`, and rank
tokens are the same, since a factor common to a row does not change its order. Cells are read in blocks.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.errors import ContractError, SourceError
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.readers.base import Notes, Origin, ReadOptions, SectionSource, origin, provenance, read_record
from triglyph.tissue.readers.counts import Counts, one_column_per_symbol, species_of
from triglyph.tissue.readers.tables import gene_names, plain_columns

ASSAYS = ("10x 3' v2", "10x 3' v3", "10x 5' v1", "10x 5' v2")
"""Assays with molecular identifiers, so that counts need no correction for gene length."""
MIN_GENES = 100
"""Cells with fewer genes are left out."""
MAX_VALUES = 500
"""A column with as many values or more describes cells, not groups of them."""
IGNORED = ("soma_joinid", "donor_id", "leiden", "observation_joinid", "is_primary_data", "dataset_id")
BLOCK = 4096
"""Cells read at once."""
DENSE_BYTES = 64 * 2**20
"""Of a dense table held at once; a row of 60,000 genes has 240 kB."""


class Cells(abc.ABC):
    """Cells of a source: metadata in memory, counts in blocks."""

    obs: pd.DataFrame
    """One row a cell."""
    symbols: NDArray[np.object_]
    ensembl_ids: NDArray[np.object_]

    @abc.abstractmethod
    def counts(self, rows: NDArray[np.intp]) -> sp.csr_matrix:
        """Raw counts (k, genes) of the cells at ascending positions `rows`."""

    def blocks(self, rows: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.intp], sp.csr_matrix]]:
        """The same, `BLOCK` cells at a time."""
        for a in range(0, len(rows), BLOCK):
            yield rows[a : a + BLOCK], self.counts(rows[a : a + BLOCK])


class LocalCells(Cells):
    """Cells of an `.h5ad`, whose counts stay on disk.

    Parameters
    ----------
    path
        The file.
    file
        It, open.
    layer
        Of raw counts; None for `raw.X` where there is one, else `X`.
    """

    def __init__(self, path: Path, file: Any, layer: str | None, notes: Notes) -> None:
        self.obs = ad.io.read_elem(file["obs"])
        if not {"dataset_id", "assay", "is_primary_data"} & set(self.obs):
            raise SourceError(
                "not cells of CELLxGENE: obs has none of dataset_id, assay, is_primary_data",
                where=path,
                mend="use --platform anndata",
            )
        raw = layer is None and "raw" in file
        key = f"layers/{layer}" if layer is not None else "raw/X" if raw else "X"
        if key not in file:
            raise SourceError(f"the table has no {key}", where=path, mend="name raw counts with --counts-layer")
        matrix = file[key]
        if hasattr(matrix, "keys"):
            if matrix.attrs.get("encoding-type") != "csr_matrix":
                raise SourceError(
                    f"{key} is stored by gene, and cells cannot be read from it in parts",
                    where=path,
                    mend="write it again as CSR: adata.X = adata.X.tocsr()",
                )
            self._matrix: Any = ad.io.sparse_dataset(matrix)
        else:
            self._matrix = matrix
        self._dense = not hasattr(matrix, "keys")
        self.symbols, self.ensembl_ids = gene_names(ad.io.read_elem(file["raw/var" if raw else "var"]), notes)

    def counts(self, rows: NDArray[np.intp]) -> sp.csr_matrix:
        # One stretch is much faster than scattered rows; what lies between is dropped.
        if self._dense:
            width = max(1, DENSE_BYTES // max(1, self._matrix.shape[1] * self._matrix.dtype.itemsize))
            parts = np.split(rows, np.flatnonzero(np.diff(rows // width)) + 1)
            stretches = [sp.csr_matrix(self._matrix[p[0] : p[-1] + 1][p - p[0]]) for p in parts]
            return sp.csr_matrix(sp.vstack(stretches, format="csr"))
        a, b = int(rows[0]), int(rows[-1]) + 1
        if b - a > 4 * len(rows):
            return sp.csr_matrix(self._matrix[rows])
        return sp.csr_matrix(sp.csr_matrix(self._matrix[a:b])[rows - a])


class RemoteCells(Cells):
    """Cells of the Census, through `cellxgene-census`.

    Parameters
    ----------
    census
        From `cellxgene_census.open_soma`.
    organism
        `Homo sapiens`.
    dataset
        Cells of one dataset; None for the metadata of all.
    """

    def __init__(self, census: Any, organism: str, dataset: str | None) -> None:
        import cellxgene_census as cc

        self._census, self._organism = census, organism
        if dataset is None:
            # A hundred million cells: one column of the primary ones is enough to name the datasets.
            self.obs = cc.get_obs(census, organism, value_filter="is_primary_data == True", column_names=["dataset_id"])
            return
        self.obs = cc.get_obs(census, organism, value_filter=f"dataset_id == '{dataset}'")
        var = cc.get_var(census, organism)
        self._genes = var["soma_joinid"].to_numpy()
        self.symbols = var["feature_name"].astype(object).to_numpy()
        self.ensembl_ids = var["feature_id"].astype(object).to_numpy()

    def counts(self, rows: NDArray[np.intp]) -> sp.csr_matrix:
        import cellxgene_census as cc

        ids = self.obs["soma_joinid"].to_numpy()[rows]
        found = cc.get_anndata(
            self._census,
            self._organism,
            obs_coords=ids.tolist(),
            obs_column_names=["soma_joinid"],
            var_column_names=["soma_joinid"],
        )
        # Answers come in an order of their own.
        row = pd.Index(found.obs["soma_joinid"]).get_indexer(ids)
        column = pd.Index(found.var["soma_joinid"]).get_indexer(self._genes)
        return sp.csr_matrix(found.X)[row][:, column]


class CensusReader:
    """Reader of CELLxGENE cells."""

    platform = "census"
    understands = frozenset({"exclude", "min_genes", "assay", "counts_layer"})

    def __init__(self) -> None:
        self._names: dict[Path, tuple[list[str], list[str]]] = {}

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """One section per dataset that is not excluded; only metadata are read."""
        suffixes = (".h5ad", ".json")
        files = [source] if source.is_file() else sorted(p for p in source.glob("*") if p.suffix in suffixes)
        files = [f for f in files if f.suffix in suffixes]
        if not files:
            raise SourceError("there are no cells", where=source, mend="give .h5ad files, or a .json for the Census")
        found = []
        for path in files:
            role = "table" if path.suffix == ".h5ad" else "query"
            names, _ = self._of(path, options)
            found += [SectionSource(name, self.platform, path.parent, {role: path}) for name in names]
        return found

    def _of(self, path: Path, options: ReadOptions) -> tuple[list[str], list[str]]:
        """Datasets of a file that are not excluded, and what was excluded, in words."""
        if path not in self._names:
            with opened(path, options, Notes()) as cells:
                names = set(_datasets(cells.obs, path).unique())
            notes = []
            if options.exclude is not None:
                excluded = options.exclude.among(names)
                notes.append(options.exclude.note(len(excluded), len(names), "datasets", excluded))
                names -= excluded
            self._names[path] = sorted(names), notes
        return self._names[path]

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """The pseudobulks of one dataset."""
        notes = Notes()
        role = "table" if "table" in section.files else "query"
        path = section.file(role)
        where = f"{path}, dataset {section.section_id}"
        notes.lines += self._of(path, options)[1]
        with opened(path, options, notes, dataset=section.section_id) as cells:
            mine = (_datasets(cells.obs, path) == section.section_id).to_numpy()
            rows = np.flatnonzero(mine & _wanted(cells.obs, options, notes, where))
            columns = grouping_columns(cells.obs.iloc[rows])
            bulk = pseudobulks(
                cells, rows, columns, least=MIN_GENES if options.min_genes is None else options.min_genes
            )
            if bulk.few:
                notes.add(f"left out {bulk.few:,} cells of too few genes")
            if not len(bulk.obs):
                raise ContractError("no cell is left", where=where, mend="check --assay and --min-genes")
            names = bulk.obs.index.to_numpy(dtype=object)
            counts = one_column_per_symbol(Counts(bulk.counts, names, cells.symbols, cells.ensembl_ids), notes)
        var = pd.DataFrame({"ensembl_id": counts.ensembl_ids}, index=pd.Index(counts.symbols, dtype=object))
        whose = origin(
            section, options, own=Origin(section.section_id, "dataset_id: a pseudobulk pools a study's donors")
        )
        return SectionDraft(
            section_id=section.section_id,
            patient=whose.patient,
            block=whose.block,
            platform=self.platform,
            table=ad.AnnData(counts.matrix, obs=plain_columns(bulk.obs, notes), var=var),
            location_um=None,
            pitch_um=None,
            location_shape="none",
            species=whose.species or species_of(counts.ensembl_ids),
            organ=whose.organ,
            source=provenance(
                section,
                used=[role],
                patient_source=whose.source,
                pseudobulks={"columns": columns, "cells": int(bulk.obs["n_cells"].sum()), "counts": "sum"},
                notes=notes.lines,
            ),
        )


@contextmanager
def opened(path: Path, options: ReadOptions, notes: Notes, *, dataset: str | None = None) -> Iterator[Cells]:
    """The cells of a file, or of the Census as a `.json` asks for it.

    Raises
    ------
    SourceError
        The file is no AnnData or no query, or `cellxgene-census` is not installed.
    """
    if path.suffix == ".json":
        query = read_record(path)
        if unknown := sorted(set(query) - {"census_version", "organism", "uri"}):
            raise SourceError(f"unknown key {unknown[0]!r}", where=path, mend="use census_version, organism and uri")
        try:
            import cellxgene_census as cc
        except ImportError:
            raise SourceError(
                "cellxgene-census is not installed", where=path, mend="pip install 'triglyph[census]'"
            ) from None
        with cc.open_soma(census_version=query.get("census_version", "stable"), uri=query.get("uri")) as census:
            yield RemoteCells(census, query.get("organism", "Homo sapiens"), dataset)
        return
    import h5py

    try:
        file = h5py.File(path)
    except OSError as error:
        raise SourceError(f"not readable as HDF5 ({error})", where=path, mend="copy the file again") from error
    with file:
        if "obs" not in file or "var" not in file:
            raise SourceError("not an AnnData: it lacks obs or var", where=path, mend="give an .h5ad")
        yield LocalCells(path, file, options.counts_layer, notes)


def _datasets(obs: pd.DataFrame, path: Path) -> pd.Series:
    return obs["dataset_id"].astype(str) if "dataset_id" in obs else pd.Series(path.stem, index=obs.index)


def _wanted(obs: pd.DataFrame, options: ReadOptions, notes: Notes, where: object) -> NDArray[np.bool_]:
    """Primary cells of the wanted assays."""
    keep = np.ones(len(obs), dtype=bool)
    if "is_primary_data" in obs:
        keep &= obs["is_primary_data"].astype(str).str.lower().to_numpy() == "true"
    else:
        notes.add("no column says which cells are primary data; all are kept")
    if "assay" in obs:
        keep &= obs["assay"].astype(str).isin(options.assay or ASSAYS).to_numpy()
    else:
        notes.add("no column says the assay; all cells are kept")
    if not keep.any():
        shown = ", ".join(sorted(set(obs["assay"].astype(str)))[:8]) if "assay" in obs else ""
        raise ContractError(
            "no cell is primary data of a wanted assay", where=where, mend=f"give --assay; the cells have {shown}"
        )
    return keep


def grouping_columns(obs: pd.DataFrame) -> list[str]:
    """Columns of words with fewer than `MAX_VALUES` values that do not tell every cell apart; sorted."""
    found = []
    for name in obs.columns:
        column = obs[name]
        words = (
            isinstance(column.dtype, pd.CategoricalDtype)
            or column.dtype.kind in "OSUT"
            or str(column.dtype) == "string"
        )
        if name in IGNORED or str(name).endswith("_ontology_term_id") or not words:
            continue
        values = column.nunique()
        if values < min(MAX_VALUES, max(2, len(obs))):
            found.append(str(name))
    return sorted(found)


class Pseudobulks(NamedTuple):
    """Sums of cells."""

    counts: sp.csr_matrix
    """(groups, genes) int64"""
    obs: pd.DataFrame
    """The groups' metadata and `n_cells`; indexed by a digest of the metadata, in order of the metadata"""
    few: int
    """Cells that had too few genes"""


def pseudobulks(cells: Cells, rows: NDArray[np.intp], columns: list[str], *, least: int) -> Pseudobulks:
    """Sums of raw counts over cells that agree in `columns`.

    Parameters
    ----------
    rows
        Ascending positions of the cells.
    columns
        Of their metadata; a missing value is a value.
    least
        Cells with fewer genes are left out.

    Raises
    ------
    ContractError
        A count is not a whole number.
    """
    group, words, names = _groups(cells.obs[columns], rows)
    total = sp.csr_matrix((len(names), len(cells.symbols)), dtype=np.int64)
    n_cells = np.zeros(len(names), dtype=np.int64)
    for block_rows, block in cells.blocks(rows):
        block.eliminate_zeros()
        if not np.array_equal(block.data, np.floor(block.data)) or (block.data < 0).any():
            raise ContractError("counts are not whole numbers", mend="name raw counts with --counts-layer")
        good = np.flatnonzero(np.diff(block.indptr) >= least)
        mine = group[np.searchsorted(rows, block_rows[good])]
        member = sp.csr_matrix((np.ones(len(good), np.int64), (mine, good)), shape=(len(names), block.shape[0]))
        total = total + member @ block.astype(np.int64)
        n_cells += np.bincount(mine, minlength=len(names))
    obs = words.assign(n_cells=n_cells)
    obs.index = pd.Index([f"pb-{hashlib.sha256(n.encode()).hexdigest()[:12]}" for n in names], dtype=object)
    kept = n_cells > 0
    return Pseudobulks(sp.csr_matrix(total)[kept], obs[kept], len(rows) - int(n_cells.sum()))


def _groups(obs: pd.DataFrame, rows: NDArray[np.intp]) -> tuple[NDArray[np.int64], pd.DataFrame, NDArray[np.object_]]:
    """Groups of the rows that agree in every column, as words with "" for what is missing.

    Returns
    -------
    Group of each row (k,); words of each group, and the same joined, by which groups are in order.
    """
    # Words are joined for groups alone: of a million cells they would be gigabytes.
    group = np.zeros(len(rows), dtype=np.int64)
    for name in obs.columns:
        code, values = pd.factorize(obs[name].iloc[rows])
        word, different = pd.factorize(np.array(["", *map(str, values)], dtype=object))
        group = pd.factorize(group * len(different) + word[code + 1])[0].astype(np.int64)
    _, first = np.unique(group, return_index=True)
    words = obs.iloc[rows[first]].astype(object)
    words = words.where(words.notna(), "").astype(str).reset_index(drop=True)
    names = np.array(["\x1f".join(row) for row in words.to_numpy()], dtype=object)
    order = np.argsort(names, kind="stable")
    return np.argsort(order)[group], words.iloc[order].reset_index(drop=True), names[order]
