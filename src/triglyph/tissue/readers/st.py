"""Legacy Spatial Transcriptomics: 100 µm spots on a square lattice of 200 µm, in the layout of her2st.

    counts/<id>.tsv.gz (or .tsv)             raw counts, spots x genes, rows named by rounded array position `10x21`
    spots/<id>_selection.tsv                 x, y (rounded), new_x, new_y (array), pixel_x, pixel_y of spots on tissue
    images/<id>.jpg (.jpeg .png .tif .tiff)  the full H&E, optional
    labels/<id>_labeled_coordinates.tsv      a class per spot, joined on rounded x, y, optional

The scale is fitted on the 200 µm pitch: `new_x`, `new_y` against the pixels.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from triglyph.errors import ContractError, SourceError
from triglyph.tissue.draft import ImageSource, SectionDraft
from triglyph.tissue.readers.base import (
    Notes,
    ReadOptions,
    SectionSource,
    by_pattern,
    keep_inside,
    origin,
    provenance,
)
from triglyph.tissue.readers.counts import Counts, one_column_per_symbol
from triglyph.tissue.readers.pictures import section_image
from triglyph.tissue.readers.scales import LatticeFit, Scale, file_scale, fit_lattice, settle_scale
from triglyph.units import Um

SPOT_UM, PITCH_UM = Um(100.0), Um(200.0)
PATIENT_PATTERN = r"^([A-Za-z]+)\d+$"
"""her2st names a section by its patient's letter and a number: `C2` is of patient `C`."""
UNKNOWN_LABELS = ("undetermined", "")
_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_COUNTS = (".tsv.gz", ".tsv")
_POSITIONS = ("x", "y", "new_x", "new_y", "pixel_x", "pixel_y")


class StReader:
    """Reader of legacy Spatial Transcriptomics folders.

    The patient is the part of the section's id that `patient_pattern` captures, unless the user names patients. Under
    this rule one patient gave one tissue block (as in her2st), so `block` is the patient too.
    """

    platform = "st"
    understands = frozenset({"mpp", "image", "lossless", "patient_pattern"})

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """One section per file in `counts/`."""
        folder = source / "counts"
        found = {_stem(p): p for p in sorted(folder.glob("*")) if p.name.endswith(_COUNTS)} if folder.is_dir() else {}
        if not found:
            raise SourceError(
                "not a Spatial Transcriptomics folder: it has no counts/*.tsv.gz",
                where=source,
                mend="give the folder that holds counts/ and spots/, or another --platform",
            )
        sections = []
        for name, counts in found.items():
            files = {"counts": counts, "spots": source / "spots" / f"{name}_selection.tsv"}
            images = [p for p in (source / "images" / f"{name}{suffix}" for suffix in _IMAGES) if p.is_file()]
            if len(images) > 1:
                raise SourceError(
                    f"section {name} has several images",
                    where=", ".join(map(str, images)),
                    mend="keep one, or name it with --image",
                )
            if images:
                files["image"] = images[0]
            labels = source / "labels" / f"{name}_labeled_coordinates.tsv"
            if labels.is_file():
                files["labels"] = labels
            sections.append(SectionSource(name, self.platform, source, files))
        return sections

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """Counts joined with positions on the rounded array coordinates; centres in µm from the pixels."""
        notes = Notes()
        whose = origin(section, options, own=by_pattern(section, options, PATIENT_PATTERN))
        counts = one_column_per_symbol(_read_counts(section.file("counts")), notes)
        spots = _read_spots(section.file("spots"), notes)
        fit = fit_lattice(
            spots[["new_x", "new_y"]].to_numpy() * PITCH_UM,
            spots[["pixel_x", "pixel_y"]].to_numpy(),
            pitch_um=PITCH_UM,
            where=section.files["spots"],
        )
        image_path = options.image or section.files.get("image")
        scale = _scale(section, fit, image_path, options)
        table = _table(section, counts, spots, scale, notes)
        used = ["counts", "spots"]
        if "labels" in section.files:
            table.obs["label"] = _labels(section.files["labels"], table.obs_names, notes)
            used.append("labels")
        images: list[ImageSource] = []
        if image_path is not None:
            images.append(
                section_image(image_path, scale=scale, section_id=section.section_id, options=options, notes=notes)
            )
            used += ["image"] if options.image is None else []
        table = keep_inside(table, images, options, notes)
        facts = {"patient_source": whose.source, "scale": fit.record() | {"mpp": scale.mpp, "source": scale.source}}
        return SectionDraft(
            section_id=section.section_id,
            patient=whose.patient,
            block=whose.block,
            platform=self.platform,
            table=table,
            location_um=SPOT_UM,
            pitch_um=PITCH_UM,
            images=images,
            species=whose.species or "human",
            organ=whose.organ,
            source=provenance(section, used=used, notes=notes.lines, **facts),
        )


def _stem(path: Path) -> str:
    return next(path.name.removesuffix(suffix) for suffix in _COUNTS if path.name.endswith(suffix))


def _scale(section: SectionSource, fit: LatticeFit, image: Path | None, options: ReadOptions) -> Scale:
    stated = [fit.scale]
    if image is not None and (own := file_scale(image)) is not None:
        stated.append(own)
    return settle_scale(stated, given=options.mpp, where=f"{section.root}, section {section.section_id}")


def _read_counts(path: Path) -> Counts:
    mend = "copy the file again; it should be a tab-separated table of spots x genes"
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            symbols = stream.readline().rstrip("\r\n").split("\t")[1:]  # pandas would rename the ones that occur twice
        frame = pd.read_csv(path, sep="\t", index_col=0, header=None, skiprows=1, low_memory=False)
    except pd.errors.EmptyDataError:
        raise SourceError("the counts file has no rows", where=path, mend=mend) from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise SourceError(f"the counts file is not readable ({error})", where=path, mend=mend) from error
    if frame.shape[1] != len(symbols) or not len(frame):
        raise SourceError(
            f"the counts file has {len(symbols)} gene names and rows of {frame.shape[1]} values", where=path, mend=mend
        )
    text = [i for i, dtype in enumerate(frame.dtypes) if dtype.kind not in "iufb"]
    if text:
        column = pd.to_numeric(frame.iloc[:, text[0]], errors="coerce")
        row = int(np.flatnonzero(column.isna())[0])
        raise SourceError(
            f"{frame.iloc[row, text[0]]!r} is not a count",
            where=f"{path}, line {row + 2} (spot {frame.index[row]}), gene {symbols[text[0]]}",
            mend="give raw counts",
        )
    names = np.array([str(i) for i in frame.index], dtype=object)
    genes = np.array(symbols, dtype=object)
    return Counts(sp.csr_matrix(frame.to_numpy()), names, genes, np.full(len(genes), "", dtype=object))


def _read_spots(path: Path, notes: Notes) -> pd.DataFrame:
    try:
        spots = pd.read_csv(path, sep="\t")
    except (OSError, ValueError) as error:
        raise SourceError(f"the spots file is not readable ({error})", where=path, mend="copy it again") from error
    lacking = [c for c in _POSITIONS if c not in spots]
    if lacking:
        raise SourceError(
            f"the spots file lacks the columns {', '.join(lacking)}",
            where=path,
            mend=f"give a tab-separated table with {', '.join(_POSITIONS)}",
        )
    numbers = spots[list(_POSITIONS)].apply(pd.to_numeric, errors="coerce")
    bad = np.flatnonzero(~np.isfinite(numbers.to_numpy()).all(axis=1))
    if bad.size:
        raise SourceError(
            f"{bad.size} spots have no position", where=f"{path}, line {bad[0] + 2}", mend="correct or remove the line"
        )
    if "selected" in spots and (off := spots["selected"] != 1).any():
        notes.add(f"left out {int(off.sum())} spots that are not marked as under tissue")
        numbers = numbers[~off]
    numbers.index = pd.Index(_keys(numbers), dtype=object)
    if numbers.index.has_duplicates:
        twice = str(numbers.index[numbers.index.duplicated()][0])
        lines = np.flatnonzero(numbers.index == twice) + 2
        raise ContractError(
            f"spot {twice} occurs more than once",
            where=f"{path}, lines {', '.join(map(str, lines))}",
            mend="keep one of them",
        )
    return numbers


def _keys(table: pd.DataFrame) -> list[str]:
    return [f"{round(x)}x{round(y)}" for x, y in zip(table["x"], table["y"], strict=True)]


def _table(section: SectionSource, counts: Counts, spots: pd.DataFrame, scale: Scale, notes: Notes) -> ad.AnnData:
    known = np.isin(counts.barcodes, spots.index.to_numpy())
    if not known.any():
        raise SourceError(
            f"none of the {len(known)} spots of {section.files['counts'].name} is in the spots file "
            f"(first: {', '.join(counts.barcodes[:3])})",
            where=section.files["spots"],
            mend="check that both files are of one section",
        )
    if not known.all():
        names = ", ".join(counts.barcodes[~known][:5])
        notes.add(f"left out {int((~known).sum())} spots that have counts and no position ({names})")
    empty = len(spots) - len(set(spots.index) & set(counts.barcodes))
    if empty:
        notes.add(f"{empty} spots have a position and no counts; they are not in the table")
    barcodes = counts.barcodes[known]
    at = spots.loc[barcodes.tolist()]
    obs = pd.DataFrame(
        {
            "array_row": at["y"].to_numpy(dtype=np.int64),
            "array_col": at["x"].to_numpy(dtype=np.int64),
            "array_x": at["new_x"].to_numpy(),
            "array_y": at["new_y"].to_numpy(),
        },
        index=pd.Index(barcodes, dtype=object),
    )
    var = pd.DataFrame({"ensembl_id": counts.ensembl_ids}, index=pd.Index(counts.symbols, dtype=object))
    table = ad.AnnData(X=counts.matrix[known], obs=obs, var=var)
    table.obsm["spatial"] = at[["pixel_x", "pixel_y"]].to_numpy() * scale.mpp
    return table


def _labels(path: Path, barcodes: pd.Index, notes: Notes) -> list[str]:
    try:
        found = pd.read_csv(path, sep="\t", keep_default_na=False, na_values={"x": ["", "NA"], "y": ["", "NA"]})
    except (OSError, ValueError) as error:
        raise SourceError(f"the labels file is not readable ({error})", where=path, mend="copy it again") from error
    lacking = [c for c in ("x", "y", "label") if c not in found]
    if lacking:
        raise SourceError(f"the labels file lacks {', '.join(lacking)}", where=path, mend="give x, y and label")
    placed = found.dropna(subset=["x", "y"])
    labels: dict[str, str] = {}
    for key, label in zip(_keys(placed), placed["label"].astype(str), strict=True):
        if labels.setdefault(key, label) != label:
            raise ContractError(f"spot {key} has two labels", where=path, mend="keep one of them")
    out = ["" if (label := labels.get(b, "")) in UNKNOWN_LABELS else label for b in barcodes]
    unknown = sum(labels.get(b, "") == UNKNOWN_LABELS[0] for b in barcodes)
    if unknown:
        notes.add(f"{unknown} spots are labelled {UNKNOWN_LABELS[0]!r}; their label is empty")
    if not any(out):
        raise SourceError("no label belongs to a spot with counts", where=path, mend="check that it is of this section")
    return out
