"""What the readers of pairs share: a table of picture files becomes an unplaced section without genes.

One row is one location: a picture file (or a square of one) and its caption, its class, or both. The table is read and
hashed once per run, for a source of a million pairs is thousands of sections of one file.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from triglyph.errors import ContractError, SourceError
from triglyph.storage import file_digest
from triglyph.tissue.checks import safe_id, storable_name
from triglyph.tissue.draft import PictureSource, SectionDraft
from triglyph.tissue.pictures import COLUMNS, picture_file, picture_size
from triglyph.tissue.readers.base import Notes, Origin, ReadOptions, SectionSource

PREPROCESS = "resize_crop"
"""Published code resizes a picture to what the encoder reads, bicubic, and takes its middle: no scale is kept."""
UNSCALED = f"declared unscaled (--preprocess {PREPROCESS})"
_KINDS = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class PairTable:
    """A table of pairs, all columns text, with "" where empty. What is no text in JSON stays as JSON: 12, true."""

    path: Path
    rows: pd.DataFrame

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        return file_digest(self.path)

    def column(self, name: str, *, mend: str) -> pd.Series:
        """A column, stripped.

        Raises
        ------
        SourceError
            There is none of that name.
        """
        if name not in self.rows:
            shown = ", ".join(map(str, self.rows.columns[:20]))
            raise SourceError(f"the table has no column {name!r}", where=self.path, mend=f"{mend}; it has {shown}")
        return self.rows[name].str.strip()


def read_pairs(path: Path, *, columns: Container[str | None] | None = None) -> PairTable:
    """A CSV or TSV with a header, or JSON objects one a line.

    Parameters
    ----------
    columns
        Of a CSV, those to keep where they are there; all if None.

    Raises
    ------
    SourceError
        It is not readable as such, or is empty.
    """
    if path.suffix not in _KINDS:
        raise SourceError("not a table of pairs", where=path, mend=f"give one of {', '.join(_KINDS)}")
    try:
        if path.suffix == ".jsonl":
            objects = [{name: _text(value) for name, value in one.items()} for one in _objects(path)]
            rows = pd.DataFrame(objects, dtype=object).fillna("")
        else:
            rows = pd.read_csv(
                path,
                sep="\t" if path.suffix == ".tsv" else ",",
                dtype=str,
                keep_default_na=False,
                usecols=None if columns is None else lambda name: name in columns,
            )
    except (OSError, ValueError) as error:
        raise SourceError(f"the table is not readable ({error})", where=path, mend="copy it again") from error
    if rows.empty:
        raise SourceError("the table has no rows", where=path, mend="check the file")
    return PairTable(path, rows)


def _objects(path: Path) -> list[dict[str, Any]]:
    found = []
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                one = json.loads(line)
            except json.JSONDecodeError as error:
                raise SourceError(f"not JSON ({error})", where=f"{path}, line {number}", mend="correct it") from error
            if not isinstance(one, dict):
                raise SourceError("not a JSON object", where=f"{path}, line {number}", mend="one object a line")
            found.append(one)
    return found


def _text(value: Any) -> str:
    """A value of JSON; a number must not change because another line lacks it, as in a column of pandas."""
    missing = value is None or (isinstance(value, float) and isnan(value))
    return "" if missing else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def sections_of(
    names: Iterable[str], *, platform: str, root: Path, table: Path, prefix: str = ""
) -> list[SectionSource]:
    """One source a name, sorted; the name is the section's id after `prefix`."""
    ids = [safe_id(prefix + name, where=table) for name in sorted(set(names))]
    return [SectionSource(id, platform, root, {"table": table}) for id in ids]


def one_of(values: Iterable[str], *, where: object, column: str) -> str:
    """The one patient of a section.

    Raises
    ------
    ContractError
        There are several.
    """
    found = sorted(set(values))
    if len(found) > 1:
        raise ContractError(
            f"one section of {len(found)} patients: {', '.join(found[:5])}",
            where=f"{where}, column {column!r}",
            mend="tell sections apart with --section-column, or correct the column",
        )
    return found[0]


def whole_pictures(
    pictures: Sequence[str], folder: Path, options: ReadOptions, notes: Notes, *, where: object
) -> pd.DataFrame:
    """Sizes of the pictures that are there: columns picture, width, height; the index are positions in `pictures`.

    Raises
    ------
    SourceError
        Files are missing (unless `options.missing` is `drop`), or are no pictures; all are counted.
    ContractError
        A path leads out of the folder, or nothing is left.
    """
    sizes: dict[str, tuple[int, int]] = {}
    gone: list[str] = []
    broken: list[SourceError] = []
    for picture in dict.fromkeys(pictures):
        try:
            file = picture_file(folder, picture, where=where)
        except SourceError:
            gone.append(picture)
            continue
        try:
            sizes[picture] = picture_size(file)
        except SourceError as error:
            broken.append(error)
    if gone and options.missing == "error":
        raise SourceError(
            f"{len(gone):,} of {len(set(pictures)):,} pictures are not there, the first {gone[0]!r}",
            where=f"{where}, folder {folder}",
            mend="fetch them, or leave them out with --missing drop",
        )
    if broken:
        names = ", ".join(Path(str(error.where)).name for error in broken[:5])
        raise SourceError(
            f"{len(broken):,} of {len(set(pictures)):,} pictures cannot be read ({names}{' …' * (len(broken) > 5)}); "
            f"the first: {broken[0].what}",
            where=broken[0].where,
            mend="copy them again, convert them, or remove their rows",
        )
    if gone:
        notes.add(f"left out {len(gone):,} pictures that are not there ({', '.join(gone[:3])} …)")
    kept = [i for i, p in enumerate(pictures) if p in sizes]
    if not kept:
        raise ContractError("none of its pictures is there", where=f"{where}, folder {folder}", mend="fetch them")
    found = [(pictures[i], *sizes[pictures[i]]) for i in kept]
    return pd.DataFrame(found, columns=["picture", "width", "height"], index=kept)


def middle_squares(sizes: pd.DataFrame) -> pd.DataFrame:
    """The largest square in the middle of each picture: columns picture_x, picture_y, picture_px."""
    side = np.minimum(sizes["width"], sizes["height"])
    return pd.DataFrame(
        {"picture_x": sizes["width"] / 2, "picture_y": sizes["height"] / 2, "picture_px": side.astype(np.float64)},
        index=sizes.index,
    )


def pairs_draft(
    section: SectionSource,
    obs: pd.DataFrame,
    pictures: PictureSource,
    whose: Origin,
    *,
    table: PairTable,
    notes: Notes,
    **facts: Any,
) -> SectionDraft:
    """The section of rows `obs`, which has the columns of `triglyph.tissue.pictures` and is indexed by barcode.

    Other columns are kept where the store can hold their name.
    """
    kept: list[str] = []
    seen: set[str] = set()
    for name in [*COLUMNS, "caption", "label", *obs.columns]:
        if name in obs and storable_name(name) and name.lower() not in seen | {"region", "instance_id"}:
            kept.append(name)
            seen.add(name.lower())
    if lost := [str(c) for c in obs.columns if c not in kept]:
        notes.add(f"left out columns whose names cannot be stored: {', '.join(lost[:10])}")
    n = len(obs)
    counts = sp.csr_matrix((n, 0), dtype=np.int32)
    found = ad.AnnData(counts, obs=obs[kept], var=pd.DataFrame({"ensembl_id": []}, index=pd.Index([], dtype=object)))
    files = {"table": {"path": table.path.name, "sha256": table.sha256}}
    return SectionDraft(
        section_id=section.section_id,
        patient=whose.patient,
        block=whose.block,
        platform=section.platform,
        table=found,
        location_um=None,
        pitch_um=None,
        location_shape="none",
        pictures=pictures,
        species=whose.species or "human",
        organ=whose.organ,
        source={
            "platform": section.platform,
            "files": files,
            "patient_source": whose.source,
            "notes": notes.lines,
            **facts,
        },
    )
