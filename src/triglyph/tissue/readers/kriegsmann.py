"""Tiles of skin of Kriegsmann et al. (Front Oncol 2022), heiDATA 10.11588/data/7QCR8S.

    tiles-v2.csv                    file, class, set (Train, Validation, Test), case, …
    tiles/<class>/<class>_…_<n>.jpg  100 x 100 µm, about 395 x 395 px

129,364 tiles of 16 classes from 386 cases; a case is one section, and its patient. A tile is 100 µm wide, so its own
width in pixels says its scale. `--preprocess resize_crop` reads tiles as the published evaluation does: the whole tile
resized to what the encoder reads, bicubic, whatever the scale.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from triglyph.errors import ContractError, SourceError
from triglyph.tissue.checks import agree
from triglyph.tissue.draft import PictureSource, SectionDraft
from triglyph.tissue.readers.base import Notes, Origin, ReadOptions, SectionSource, origin
from triglyph.tissue.readers.pairs import (
    UNSCALED,
    PairTable,
    middle_squares,
    pairs_draft,
    read_pairs,
    sections_of,
    whole_pictures,
)
from triglyph.units import checked_mpp

TABLE, TILE_UM = "tiles-v2.csv", 100.0
SCALE = "tiles of 100 µm (Kriegsmann et al. 2022), by their width in pixels"
CLASSES = {
    "nontumor_skin_chondraltissue_chondraltissue": "Chondral tissue",
    "nontumor_skin_dermis_dermis": "Dermis",
    "nontumor_skin_elastosis_elastosis": "Elastosis",
    "nontumor_skin_epidermis_epidermis": "Epidermis",
    "nontumor_skin_hairfollicle_hairfollicle": "Hair follicle",
    "nontumor_skin_muscle_skeletal": "Skeletal muscle",
    "nontumor_skin_necrosis_necrosis": "Necrosis",
    "nontumor_skin_nerves_nerves": "Nerves",
    "nontumor_skin_sebaceousglands_sebaceousglands": "Sebaceous glands",
    "nontumor_skin_subcutis_subcutis": "Subcutis",
    "nontumor_skin_sweatglands_sweatglands": "Eccrine glands",
    "nontumor_skin_vessel_vessel": "Vessels",
    "tumor_skin_epithelial_bcc": "Basal cell carcinoma",
    "tumor_skin_epithelial_sqcc": "Squamous cell carcinoma",
    "tumor_skin_melanoma_melanoma": "Melanoma",
    "tumor_skin_naevus_naevus": "Naevi",
}
"""Class of the table -> the clinical name that models are asked with."""
SETS = ("Train", "Validation", "Test")


class KriegsmannReader:
    """Reader of the skin tiles: one section a case."""

    platform = "kriegsmann"
    understands = frozenset({"mpp", "preprocess", "missing"})

    def __init__(self) -> None:
        self._read: dict[Path, PairTable] = {}

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """One section per case of the table."""
        found = [p for p in (source, source / TABLE, source / "data" / TABLE) if p.is_file()]
        if not found:
            raise SourceError(
                f"not the skin tiles: there is no {TABLE}", where=source, mend="give the folder that holds it"
            )
        table = self._table(found[0])
        return sections_of(
            table.rows["case"], platform=self.platform, root=found[0].parent, table=found[0], prefix="case_"
        )

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """The tiles of one case, labelled; `set` and the table's own `class` stand beside the label."""
        notes, path = Notes(), section.file("table")
        table = self._table(path)
        rows = table.rows[("case_" + table.rows["case"]) == section.section_id].reset_index(drop=True)
        where = f"{path}, section {section.section_id}"
        folder = _tiles_root(path, table.rows["file"].iloc[0])
        sizes = whole_pictures(rows["file"].tolist(), folder, options, notes, where=where)
        rows = rows.loc[sizes.index]
        obs = pd.concat([sizes[["picture"]], middle_squares(sizes), rows[["class", "set", "case"]]], axis=1)
        obs["label"] = rows["class"].map(CLASSES)
        obs["picture_mpp"] = np.nan if options.preprocess else _mpp(sizes, options, where)
        obs.index = pd.Index([Path(p).stem for p in obs["picture"]], dtype=object)
        pictures = (
            PictureSource(folder, UNSCALED, resize="bicubic")
            if options.preprocess
            else PictureSource(folder, SCALE if options.mpp is None else "--mpp")
        )
        whose = origin(section, options, own=Origin(str(rows["case"].iloc[0]), "column 'case'", organ="skin"))
        return pairs_draft(section, obs, pictures, whose, table=table, notes=notes)

    def _table(self, path: Path) -> PairTable:
        if path not in self._read:
            self._read[path] = _checked(read_pairs(path, columns={"file", "class", "set", "case"}))
        return self._read[path]


def _checked(table: PairTable) -> PairTable:
    for name in ("file", "class", "set", "case"):
        table.rows[name] = table.column(name, mend="give the table as it is published")
    for name, known in (("class", CLASSES), ("set", SETS)):
        unknown = sorted(set(table.rows[name]) - set(known))
        if unknown:
            raise ContractError(
                f"unknown {name} {unknown[0]!r}", where=table.path, mend=f"known are {', '.join(known)}"
            )
    if (table.rows["case"] == "").any():
        row = int(np.flatnonzero(table.rows["case"] == "")[0])
        raise ContractError("a tile has no case", where=f"{table.path}, row {row + 1}", mend="fill the column")
    sets = table.rows.groupby("case")["set"].nunique()
    if (sets > 1).any():
        raise ContractError(
            f"case {sets.index[sets > 1][0]} lies in {sets.max()} sets", where=table.path, mend="keep it in one"
        )
    return table


def _tiles_root(path: Path, file: str) -> Path:
    """The published paths begin with `data/`, which is where the table itself lies once it is unpacked."""
    return path.parent.parent if file.startswith("data/") and path.parent.name == "data" else path.parent


def _mpp(sizes: pd.DataFrame, options: ReadOptions, where: object) -> np.ndarray:
    mpp = TILE_UM / sizes["width"].to_numpy(dtype=np.float64)
    if options.mpp is not None:
        given = checked_mpp(options.mpp, where="--mpp")
        for value in np.unique(mpp):
            agree(float(value), SCALE, given, "--mpp", where=where)
        return np.full(len(mpp), given)
    return mpp
