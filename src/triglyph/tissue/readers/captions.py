"""Any table of pictures and captions: CSV, TSV, or JSON objects one a line.

One row is one location. Columns are `image` (or --image-column: a path relative to the table's folder), `caption` (or
--caption-column) and `patient` (or --patient-column); `label` and every other column are kept. Sections are the values
of --section-column, else of the patients.

No file says the scale of a picture, so the user does: --mpp for all, a column `mpp`, or --preprocess resize_crop, which
declares them unscaled: the middle square of each picture is then resized to whatever an encoder reads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from triglyph.errors import RecipeError, ScaleError, SourceError
from triglyph.tissue.checks import checked_patient
from triglyph.tissue.draft import PictureSource, SectionDraft
from triglyph.tissue.readers.base import Notes, Origin, ReadOptions, SectionSource, origin
from triglyph.tissue.readers.pairs import (
    UNSCALED,
    PairTable,
    middle_squares,
    one_of,
    pairs_draft,
    read_pairs,
    sections_of,
    whole_pictures,
)
from triglyph.units import checked_mpp

_KINDS = ("*.csv", "*.tsv", "*.jsonl")
IMAGE, CAPTION, PATIENT, MPP = "image", "caption", "patient", "mpp"


class CaptionsReader:
    """Reader of picture-caption tables."""

    platform = "captions"
    understands = frozenset(
        {"mpp", "image_column", "caption_column", "patient_column", "section_column", "preprocess", "missing"}
    )

    def __init__(self) -> None:
        self._read: dict[Path, PairTable] = {}

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """One section per value of `section_column`, else per patient, else one, named as the table."""
        path = _table_in(source)
        table = self._table(path)
        table.column(options.image_column or IMAGE, mend="give --image-column NAME")
        return sections_of(_sections(table, options), platform=self.platform, root=path.parent, table=path)

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """The pictures of one section, whole, with their captions."""
        notes, path = Notes(), section.file("table")
        table = self._table(path)
        mine = _sections(table, options) == section.section_id
        where = f"{path}, section {section.section_id}"
        pictures = table.column(options.image_column or IMAGE, mend="give --image-column NAME")[mine]
        captions = table.column(options.caption_column or CAPTION, mend="give --caption-column NAME")[mine]
        whose = origin(section, options, own=_own(table, mine, options, where))
        folder = path.parent
        sizes = whole_pictures(pictures.tolist(), folder, options, notes, where=where)
        scaled, source = _scale(table, options, where)
        rows = np.flatnonzero(mine)[sizes.index]
        used = {options.image_column or IMAGE, options.caption_column or CAPTION, MPP}
        obs = pd.concat(
            [
                sizes[["picture"]].set_index(rows),
                middle_squares(sizes).set_index(rows),
                captions.loc[table.rows.index[rows]].rename("caption").set_axis(rows),
                table.rows.drop(columns=[c for c in used if c in table.rows]).iloc[rows].set_axis(rows),
            ],
            axis=1,
        )
        obs = obs.loc[:, ~obs.columns.duplicated()]
        obs["picture_mpp"] = np.nan if scaled is None else scaled[rows]
        obs.index = pd.Index([f"row {row + 1}" for row in rows], dtype=object)
        resize = PictureSource(folder, source, resize="bicubic" if scaled is None else "area")
        return pairs_draft(section, obs, resize, whose, table=table, notes=notes)

    def _table(self, path: Path) -> PairTable:
        if path not in self._read:
            self._read[path] = read_pairs(path)
        return self._read[path]


def _table_in(source: Path) -> Path:
    if source.is_file():
        return source
    found = sorted(p for kind in _KINDS for p in source.glob(kind))
    if len(found) != 1:
        raise SourceError(
            f"{len(found)} tables of pairs are in the folder", where=source, mend=f"give one, of {', '.join(_KINDS)}"
        )
    return found[0]


def _sections(table: PairTable, options: ReadOptions) -> np.ndarray:
    if options.section_column is not None:
        return table.column(options.section_column, mend="correct --section-column").to_numpy(dtype=object)
    if options.patient is None and (options.patient_column is not None or PATIENT in table.rows):
        return table.column(options.patient_column or PATIENT, mend="correct --patient-column").to_numpy(dtype=object)
    return np.full(len(table.rows), table.path.stem, dtype=object)


def _own(table: PairTable, mine: np.ndarray, options: ReadOptions, where: object) -> Origin:
    if options.patient is not None or options.patients is not None:
        return Origin("", "")
    name = options.patient_column or PATIENT
    mend = "give --patient-column NAME, --patients FILE.csv (columns section, patient) or --patient ID"
    found = table.column(name, mend=mend)[mine]
    return Origin(checked_patient(one_of(found, where=where, column=name), where=where), f"column {name!r}")


def _scale(table: PairTable, options: ReadOptions, where: object) -> tuple[np.ndarray | None, str]:
    """µm per pixel of every row, or None where the user declares them unscaled; and who said so."""
    stated = [options.mpp is not None, options.preprocess is not None, MPP in table.rows]
    if sum(stated[:2]) > 1:
        raise RecipeError("--mpp and --preprocess contradict each other", where=where, mend="give one")
    if options.preprocess is not None:
        return None, UNSCALED
    if options.mpp is not None:
        return np.full(len(table.rows), checked_mpp(options.mpp, where="--mpp")), "--mpp"
    if not stated[2]:
        raise ScaleError(
            "the scale of the pictures is not known",
            where=where,
            mend="give --mpp, a column `mpp`, or --preprocess resize_crop, which declares them unscaled",
        )
    mpp = [checked_mpp(v, where=f"{table.path}, row {i}") for i, v in enumerate(table.rows[MPP], start=1)]
    return np.array(mpp, dtype=np.float64), "column 'mpp'"
