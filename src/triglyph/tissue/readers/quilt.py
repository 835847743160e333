"""Quilt-1M: frames of teaching videos, and sentences that were said over them.

    quilt_1M_lookup.csv     image_path, caption, subset, split, magnification (0, 1, 2), not_histology, …
    quilt_1m/<image_path>   the pictures; also found in images/ or beside the table

Rows that are histology at the highest magnification are kept, as SpatialWhisperer does; other subsets (papers, tweets)
state no magnification and fall away with them. From each row, squares of 224 px are drawn in the middle half of the
picture. Every row of a picture is kept with its own sentence (published code kept the last one), and every row draws
for itself (published code drew the same squares in all pictures of one size).

A video is the unit of a claim, so it stands for the patient: its id is the file name up to `_image_`.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from triglyph.errors import ContractError, RecipeError, SourceError
from triglyph.tissue.draft import PictureSource, SectionDraft
from triglyph.tissue.readers.base import Notes, Origin, ReadOptions, SectionSource, origin
from triglyph.tissue.readers.pairs import PairTable, pairs_draft, read_pairs, sections_of, whole_pictures
from triglyph.units import checked_mpp

TABLE = "quilt_1M_lookup.csv"
FOLDERS = ("quilt_1m", "images", ".")
CROPS, CROP_PX, MIDDLE = 10, 224, 0.5
MAGNIFICATION = 2
NO_SCALE = "declared unscaled: Quilt-1M states a class of magnification and no µm per pixel"
_VIDEO = re.compile(r"([A-Za-z0-9_-]{11})_image_")
_COLUMNS = ("image_path", "caption", "subset", "split", "magnification", "not_histology")
_TRIED = 1000


class QuiltReader:
    """Reader of Quilt-1M: one section a video."""

    platform = "quilt"
    understands = frozenset({"mpp", "patient_column", "caption_column", "crops", "seed", "missing"})

    def __init__(self) -> None:
        self._read: dict[tuple[Path, str | None, str | None], PairTable] = {}

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """One section per video, or per value of `patient_column`."""
        table = source if source.is_file() else source / TABLE
        if not table.is_file():
            raise SourceError(
                f"not Quilt-1M: it has no {TABLE}",
                where=source,
                mend="give the folder that holds it, or a table like it",
            )
        found = self._table(table, options)
        return sections_of(found.rows["video"], platform=self.platform, root=table.parent, table=table, prefix="video_")

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """Squares of one video's pictures, each with the sentence of its row."""
        if options.crops is not None and options.crops < 1:
            raise RecipeError(f"{options.crops} squares per caption", where="--crops", mend="draw at least one")
        notes, path = Notes(), section.file("table")
        table = self._table(path, options)
        rows = table.rows[("video_" + table.rows["video"]) == section.section_id].reset_index(drop=True)
        folder = _pictures_folder(path.parent, table.rows["image_path"])
        where = f"{path}, section {section.section_id}"
        sizes = whole_pictures(rows["image_path"].tolist(), folder, options, notes, where=where)
        small = sizes[["width", "height"]].min(axis=1) < CROP_PX
        if small.any():
            notes.add(f"left out {int(small.sum()):,} pictures of less than {CROP_PX} px")
        sizes = sizes[~small]
        if sizes.empty:
            raise ContractError(f"no picture is {CROP_PX} px wide and high", where=where, mend="leave the video out")
        obs = _squares(rows.loc[sizes.index], sizes, options)
        obs["picture_mpp"] = np.nan if options.mpp is None else checked_mpp(options.mpp, where="--mpp")
        whose = origin(section, options, own=Origin(str(rows["video"].iloc[0]), _patient_source(options)))
        return pairs_draft(
            section,
            obs,
            PictureSource(folder, NO_SCALE if options.mpp is None else "--mpp"),
            whose,
            table=table,
            notes=notes,
            crops={"per_row": options.crops or CROPS, "px": CROP_PX, "middle": MIDDLE, "seed": options.seed or 0},
        )

    def _table(self, path: Path, options: ReadOptions) -> PairTable:
        key = path, options.patient_column, options.caption_column
        if key not in self._read:
            self._read[key] = _kept(path, options)
        return self._read[key]


def _kept(path: Path, options: ReadOptions) -> PairTable:
    """Rows of histology at the highest magnification, with `video`, and `caption` as the user asked for it."""
    wanted = {*_COLUMNS, options.patient_column, options.caption_column}
    table = read_pairs(path, columns=wanted)
    for name in ("image_path", "caption", "magnification", "not_histology"):
        table.column(name, mend="give the lookup table as it is published")
    rows = table.rows
    histology = rows["not_histology"].str.strip().str.lower().isin(["0", "0.0", "false"])
    near = pd.to_numeric(rows["magnification"], errors="coerce") == MAGNIFICATION
    rows = rows[histology & near].copy()
    if rows.empty:
        raise SourceError("no row is histology at magnification 2", where=path, mend="give the whole table")
    if options.caption_column not in (None, "caption"):
        rows["caption_original"] = rows["caption"]
        rows["caption"] = table.column(str(options.caption_column), mend="correct --caption-column")[rows.index]
    rows["video"] = _videos(table, rows, options)
    return PairTable(path, rows.reset_index(drop=True))


def _videos(table: PairTable, rows: pd.DataFrame, options: ReadOptions) -> list[str]:
    if options.patient_column is not None:
        named = table.column(options.patient_column, mend="correct --patient-column")[rows.index].tolist()
    else:
        named = [m[1] if (m := _VIDEO.match(Path(p).name)) else "" for p in rows["image_path"]]
    if "" in named:
        row = named.index("")
        raise ContractError(
            f"nothing says which video or patient {named.count(''):,} pictures are of",
            where=f"{table.path}, the first {rows['image_path'].iloc[row]!r}",
            mend="give --patient-column NAME, a column that says it, or remove the rows",
        )
    return named


def _patient_source(options: ReadOptions) -> str:
    return f"column {options.patient_column!r}" if options.patient_column is not None else "video in the file's name"


def _pictures_folder(root: Path, pictures: pd.Series) -> Path:
    some = pictures.drop_duplicates().head(_TRIED).tolist()
    for name in FOLDERS:
        folder = root / name
        if folder.is_dir() and any((folder / p).is_file() for p in some):
            return folder
    raise SourceError(
        f"none of the first {len(some):,} pictures is there",
        where=", ".join(str(root / name) for name in FOLDERS),
        mend=f"unpack the pictures into {FOLDERS[0]}/ beside the table",
    )


def _squares(rows: pd.DataFrame, sizes: pd.DataFrame, options: ReadOptions) -> pd.DataFrame:
    """As many rows per caption as squares are drawn, indexed by picture, number of its caption and of the square."""
    crops, seed = options.crops or CROPS, options.seed or 0
    caption_of = rows.groupby("image_path").cumcount().to_numpy()
    size = sizes[["width", "height"]].to_numpy(dtype=np.float64)
    region = np.minimum(np.maximum(np.floor(size * MIDDLE), CROP_PX), size)
    low = np.ceil((size - region) / 2)
    steps = np.maximum(np.floor((size + region) / 2) - CROP_PX - low, 0).astype(int)
    corners = np.empty((len(rows), crops, 2))
    for i, (picture, k) in enumerate(zip(rows["image_path"], caption_of, strict=True)):
        rng = np.random.default_rng([seed, zlib.crc32(f"{picture}#{k}".encode())])
        corners[i] = low[i] + rng.integers(0, steps[i] + 1, (crops, 2))
    obs = rows.loc[rows.index.repeat(crops), [c for c in rows if c not in ("magnification", "not_histology")]]
    obs = obs.rename(columns={"image_path": "picture"})
    obs[["picture_x", "picture_y"]] = corners.reshape(-1, 2) + CROP_PX / 2
    obs["picture_px"] = float(CROP_PX)
    names = [str(Path(p).with_suffix("")) for p in rows["image_path"]]
    barcodes = [f"{n}-{k}-{j}" for n, k in zip(names, caption_of, strict=True) for j in range(crops)]
    return obs.set_axis(pd.Index(barcodes, dtype=object))
