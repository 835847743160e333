"""ARCHS4 gene files, version 2: bulk (and some single-cell) profiles of GEO, all aligned alike.

    data/expression                       (genes, samples) counts, chunked and compressed
    meta/genes/symbol, ensembl_gene       (`ensembl_gene_id` before 2.2)
    meta/samples/geo_accession, series_id, title, source_name_ch1, characteristics_ch1, singlecellprobability ...

Lachmann et al., Nat Commun 9:1366 (2018). A file is tens of gigabytes and is read in blocks of samples, never whole.

Nothing says whose tissue a profile is of, so the independent unit is the study: a *donor* is all samples of one series,
and of the series that share a sample with it (a super-series holds those of others). A donor is one section; with
--samples-per-section, donors are packed into sections of at most so many samples, and a larger one is cut into several
sections of the same patient, so that no split can tear a donor apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.cards import digest
from triglyph.errors import ContractError, RecipeError, SourceError
from triglyph.genes.ids import ensembl_stem
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.readers.base import Notes, Origin, ReadOptions, SectionSource, origin
from triglyph.tissue.readers.counts import Counts, one_column_per_symbol, species_of

MIN_GENES = 250
"""Profiles with fewer genes are left out, as SpatialWhisperer does."""
BLOCK_BYTES = 64 * 2**20
"""Of counts held while a block of samples is read."""
META = ("title", "source_name_ch1", "characteristics_ch1", "series_id", "singlecellprobability")
_SERIES = re.compile(r"[,;\s]+")
_SYMBOLS, _IDS = ("symbol", "gene_symbol"), ("ensembl_gene", "ensembl_gene_id", "ensembl_id")


@dataclass(frozen=True)
class _Donor:
    """Samples that belong together: a series and those linked to it."""

    name: str
    series: tuple[str, ...]
    rows: NDArray[np.intp]


@dataclass(frozen=True)
class _Section:
    patient: str
    series: tuple[str, ...]
    rows: NDArray[np.intp]
    """Ascending positions in the file."""


class Archs4Reader:
    """Reader of ARCHS4 gene files."""

    platform = "archs4"
    understands = frozenset({"exclude", "min_genes", "samples_per_section"})

    def __init__(self) -> None:
        self._sections: dict[Path, tuple[dict[str, _Section], str, list[str]]] = {}

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """One section per donor, or per pack of donors, in one `.h5` or a folder of them."""
        files = [source] if source.is_file() else sorted(source.glob("*.h5"))
        found = []
        for path in files:
            found += [
                SectionSource(name, self.platform, path.parent, {"expression": path})
                for name in self._of(path, options)[0]
            ]
        if not found:
            raise SourceError("there is no ARCHS4 gene file", where=source, mend="give human_gene_v2.x.h5")
        return found

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """The profiles of one section that are not excluded and have enough genes."""
        notes, path = Notes(), section.file("expression")
        sections, accessions, excluded = self._of(path, options)
        notes.lines += excluded
        mine = sections[section.section_id]
        where = f"{path}, section {section.section_id}"
        least = MIN_GENES if options.min_genes is None else options.min_genes
        with _opened(path) as file:
            symbols, ids = _genes(file, path)
            kept, blocks = [], []
            for rows, block in sample_blocks(file["data/expression"], mine.rows):
                good = np.diff(block.indptr) >= least
                kept.append(rows[good])
                blocks.append(block[good])
            rows = np.concatenate(kept)
            if len(rows) < len(mine.rows):
                notes.add(f"left out {len(mine.rows) - len(rows):,} profiles of fewer than {least} genes")
            if not len(rows):
                raise ContractError(
                    f"none of its {len(mine.rows):,} profiles has {least} genes",
                    where=where,
                    mend="leave the section out, or pack more into one with --samples-per-section",
                )
            samples = file["meta/samples"]
            names = _texts(samples["geo_accession"], rows)
            obs = pd.DataFrame(
                {k: _texts(samples[k], rows) for k in META if k in samples}, index=pd.Index(names, dtype=object)
            )
        if "singlecellprobability" in obs:
            obs["singlecellprobability"] = pd.to_numeric(obs["singlecellprobability"], errors="coerce")
        counts = one_column_per_symbol(
            Counts(sp.vstack(blocks, format="csr"), obs.index.to_numpy(), symbols, ids), notes
        )
        var = pd.DataFrame({"ensembl_id": counts.ensembl_ids}, index=pd.Index(counts.symbols, dtype=object))
        whose = origin(section, options, own=Origin(mine.patient, "series_id: the samples of a series are one donor"))
        return SectionDraft(
            section_id=section.section_id,
            patient=whose.patient,
            block=whose.block,
            platform=self.platform,
            table=ad.AnnData(counts.matrix, obs=obs, var=var),
            location_um=None,
            pitch_um=None,
            location_shape="none",
            species=whose.species or species_of(counts.ensembl_ids),
            organ=whose.organ,
            source={
                "platform": self.platform,
                # Tens of gigabytes are not hashed anew for each of thousands of sections.
                "files": {"expression": {"path": path.name, "bytes": path.stat().st_size, "accessions": accessions}},
                "patient_source": whose.source,
                "series": list(mine.series),
                "min_genes": least,
                "notes": notes.lines,
            },
        )

    def _of(self, path: Path, options: ReadOptions) -> tuple[dict[str, _Section], str, list[str]]:
        """Sections of a file, the digest of its accessions, and what was excluded from it, in words."""
        if path not in self._sections:
            with _opened(path) as file:
                samples = file["meta/samples"]
                accessions, series = (_texts(samples[k]) for k in ("geo_accession", "series_id"))
            excluded: frozenset[str] = frozenset()
            if options.exclude is not None:
                excluded = options.exclude.among({*accessions, *(s for text in series for s in _SERIES.split(text))})
            donors = donors_of(accessions, series, excluded)
            notes = []
            if options.exclude is not None:
                less = len(accessions) - sum(len(d.rows) for d in donors)
                notes.append(options.exclude.note(less, len(accessions), "samples", excluded))
            self._sections[path] = _packed(donors, options.samples_per_section), digest(accessions), notes
        return self._sections[path]


def donors_of(accessions: list[str], series: list[str], excluded: frozenset[str] = frozenset()) -> list[_Donor]:
    """Samples grouped by series, series that share a sample together; excluded samples and series are left out.

    Parameters
    ----------
    accessions, series
        Of every sample; series may list several (`GSE1,GSE2`).
    excluded
        Accessions of samples or of series.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    of_sample = [tuple(s for s in _SERIES.split(text) if s) or (a,) for a, text in zip(accessions, series, strict=True)]
    for names in of_sample:  # also of excluded samples: what links two series links them whatever is left out
        for name in names[1:]:
            parent[root(name)] = root(names[0])
    rows: dict[str, list[int]] = {}
    members: dict[str, set[str]] = {}
    for row, (accession, names) in enumerate(zip(accessions, of_sample, strict=True)):
        if accession not in excluded and excluded.isdisjoint(names):
            rows.setdefault(root(names[0]), []).append(row)
            members.setdefault(root(names[0]), set()).update(names)
    donors = []
    for key, mine in rows.items():
        linked = tuple(sorted(members[key], key=_number))
        donors.append(_Donor(linked[0], linked, np.array(mine, dtype=np.intp)))
    return sorted(donors, key=lambda d: _number(d.name))


def _packed(donors: list[_Donor], size: int | None) -> dict[str, _Section]:
    if size is not None and size < 1:
        raise RecipeError(f"{size} samples a section", where="--samples-per-section", mend="give 1 or more")
    found: dict[str, _Section] = {}
    pack: list[_Donor] = []

    def close() -> None:
        if pack:
            name = pack[0].name if len(pack) == 1 else f"{pack[0].name}-{pack[-1].name}"
            rows = np.sort(np.concatenate([d.rows for d in pack]))
            found[name] = _Section(name, tuple(s for d in pack for s in d.series), rows)
            pack.clear()

    for donor in donors:
        n = len(donor.rows)
        if size is None or sum(len(d.rows) for d in pack) + n > size:
            close()
        if size is not None and n > size:
            for k in range(-(-n // size)):
                found[f"{donor.name}.{k + 1}"] = _Section(
                    donor.name, donor.series, donor.rows[k * size : (k + 1) * size]
                )
        else:
            pack.append(donor)
    close()
    return found


def sample_blocks(expression: Any, rows: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.intp], sp.csr_matrix]]:
    """Counts of some samples, block by block, as (rows, counts (samples, genes)).

    Parameters
    ----------
    expression
        HDF5 dataset (genes, samples). Blocks end where its chunks do, so that each chunk is decompressed once.
    rows
        Ascending positions of samples.
    """
    genes = expression.shape[0]
    chunk = expression.chunks[1] if expression.chunks else 1
    width = max(1, BLOCK_BYTES // max(1, genes * expression.dtype.itemsize) // chunk) * chunk
    for block in np.split(rows, np.flatnonzero(np.diff(rows // width)) + 1):
        dense = expression[:, block[0] : block[-1] + 1][:, block - block[0]]
        yield block, sp.csr_matrix(dense.T)


def _number(accession: str) -> tuple[int, str]:
    """GSE9 comes before GSE10."""
    digits = re.sub(r"\D", "", accession)
    return int(digits) if digits else 0, accession


def _opened(path: Path) -> Any:
    import h5py

    mend = "give an ARCHS4 gene file of version 2 (human_gene_v2.x.h5), whole"
    try:
        file = h5py.File(path)
    except OSError as error:
        raise SourceError(f"not readable as HDF5 ({error})", where=path, mend=mend) from error
    wanted = ("data/expression", "meta/genes", "meta/samples/geo_accession", "meta/samples/series_id")
    if lacking := [name for name in wanted if name not in file]:
        file.close()
        raise SourceError(f"not an ARCHS4 gene file of version 2: it lacks {lacking[0]}", where=path, mend=mend)
    shape, n = file["data/expression"].shape, len(file["meta/samples/geo_accession"])
    if len(shape) != 2 or shape[1] != n:
        file.close()
        raise SourceError(f"expression is {shape}, for {n:,} samples", where=path, mend=mend)
    return file


def _genes(file: Any, path: Path) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Symbols, and Ensembl ids ("" where unknown); a gene without a symbol goes by its id."""
    group = file["meta/genes"]
    found = []
    for names in (_SYMBOLS, _IDS):
        name = next((n for n in names if n in group), None)
        found.append([] if name is None else _texts(group[name]))
    symbols, ids = found
    n = file["data/expression"].shape[0]
    symbols, ids = symbols or ids, [ensembl_stem(i) for i in ids] or [""] * n
    if not len(symbols) == len(ids) == n:
        raise SourceError(f"{len(symbols)} symbols for {n} genes", where=path, mend="copy the file again")
    named = [s or i or f"gene {j}" for j, (s, i) in enumerate(zip(symbols, ids, strict=True))]
    return np.array(named, dtype=object), np.array(ids, dtype=object)


def _texts(values: Any, rows: NDArray[np.intp] | None = None) -> list[str]:
    """A one-dimensional dataset as text; of the ascending `rows`, read as one stretch."""
    found = values[:] if rows is None else values[int(rows[0]) : int(rows[-1]) + 1][rows - rows[0]]
    return [v.decode("utf-8", "replace").strip() if isinstance(v, bytes) else str(v).strip() for v in found]
