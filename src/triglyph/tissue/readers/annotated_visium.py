"""Visium sections whose spots others have annotated: layers of the cortex (DLPFC), and a breast cancer (HBC).

Counts, places and pictures are a Space Ranger output and read as one (`visium`). Beside them lies a table of labels:

    dlpfc: <id>/metadata.tsv (layer_guess_reordered, layer_guess) or <id>_truth.txt (barcode, layer) in it or beside it
    hbc:   metadata.tsv (fine_annot_type, ground_truth or annot_type) in the output's folder or the one above

DLPFC is Maynard et al. 2021 (spatialLIBD): 12 sections of three donors. HBC is the Human Breast Cancer, Block A, of 10x
Genomics: one person. Which spot is which is looked up by barcode, never by the order of rows.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from triglyph.errors import ContractError, RecipeError, SourceError
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.readers.base import Origin, ReadOptions, SectionSource
from triglyph.tissue.readers.visium import VisiumReader

DONORS: Mapping[str, str] = {
    **dict.fromkeys(("151507", "151508", "151509", "151510"), "Br5292"),
    **dict.fromkeys(("151669", "151670", "151671", "151672"), "Br5595"),
    **dict.fromkeys(("151673", "151674", "151675", "151676"), "Br8100"),
}
"""Section of DLPFC -> its donor."""
LAYERS = ("L1", "L2", "L3", "L4", "L5", "L6", "WM")
"""Classes of DLPFC; the sections of Br5595 hold L3 to L6 and WM."""
REGIONS = ("fine_annot_type", "ground_truth", "annot_type")
"""Columns of HBC's table: 20 regions, by either name, and the four kinds of tissue that they are of."""
BARCODES = ("barcode", "ID")
MISSING = ("", "NA", "nan", "NaN", "<NA>")
_LAYER = re.compile(r"(?:layer|l)[ _]?([1-6])", re.IGNORECASE)


class AnnotatedVisium(abc.ABC):
    """A Space Ranger output with a table of labels beside it."""

    platform: ClassVar[str]
    understands = VisiumReader.understands | {"label_column"}
    columns: ClassVar[tuple[str, ...]]
    """What a table of labels may call its classes; the first that is there is taken."""

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """As `visium`, of the sections that belong to the data set."""
        out = []
        for found in VisiumReader().discover(source, options):
            name = self.named(found)
            candidates = self.tables(found, name)
            labels = next((p for p in candidates if p.is_file()), candidates[0])
            out.append(replace(found, section_id=name, platform=self.platform, files={**found.files, "labels": labels}))
        if not any(section.files["labels"].is_file() for section in out):
            raise SourceError(
                f"not {self.platform}: no section has a table of labels, such as {out[0].files['labels'].name}",
                where=source,
                mend="put the table beside the Space Ranger output, or read it with --platform visium",
            )
        return sorted(out, key=lambda section: section.section_id)

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """The section as `visium` reads it, `obs["label"]`, and the other annotations under their own names."""
        path = section.file("labels")
        table = read_labels(path)
        column = self._column(table, options, path)
        draft = VisiumReader().read(section, options, own=self.whose(section), beside=("labels",))
        barcodes = draft.table.obs_names
        if not barcodes.isin(table.index).any():
            raise SourceError(
                f"no label belongs to a spot with counts; its first is of {table.index[0]!r}",
                where=f"{path}, section {section.section_id}, barcodes such as {barcodes[0]!r}",
                mend="check that the table is of this section",
            )
        at = table.reindex(barcodes).fillna("")
        for name in self.columns:
            if name in at:
                draft.table.obs[name] = at[name].to_numpy(dtype=object)
        labels = [self.label(text, where=path) for text in at[column]]
        draft.table.obs["label"] = np.array(labels, dtype=object)
        without = sum(not label for label in labels)
        draft.source["notes"].append(f"labels are the column {column!r} of {path.name}; {without} spots have none")
        return draft

    @abc.abstractmethod
    def named(self, section: SectionSource) -> str:
        """The id of a section, by its folder."""

    @abc.abstractmethod
    def tables(self, section: SectionSource, name: str) -> list[Path]:
        """Where its table of labels may lie, the likeliest first."""

    @abc.abstractmethod
    def whose(self, section: SectionSource) -> Origin:
        """Whose tissue it is, unless the user says otherwise."""

    def label(self, text: str, *, where: Path) -> str:
        """The class that a value of the table stands for, "" for none."""
        return text

    def _column(self, table: pd.DataFrame, options: ReadOptions, path: Path) -> str:
        asked = self.columns if options.label_column is None else (options.label_column,)
        found = next((name for name in asked if name in table), None)
        if found is None:
            wanted = " or ".join(map(repr, asked))
            raise (SourceError if options.label_column is None else RecipeError)(
                f"the table of labels has no column {wanted}",
                where=path,
                mend=f"name one of {', '.join(map(str, table.columns[:40]))} with --label-column",
            )
        return found


class DlpfcReader(AnnotatedVisium):
    """Reader of the 12 sections of the dorsolateral prefrontal cortex; the donor follows from the section."""

    platform = "dlpfc"
    columns = ("layer_guess_reordered", "layer_guess")

    def named(self, section: SectionSource) -> str:
        found = [number for number in DONORS if number in section.section_id]
        if len(found) != 1:
            raise SourceError(
                f"{section.section_id!r} is no section of DLPFC",
                where=section.root,
                mend=f"name the folder as its section, one of {', '.join(DONORS)}; or read it with --platform visium",
            )
        return found[0]

    def tables(self, section: SectionSource, name: str) -> list[Path]:
        folders = [section.root, section.root.parent]
        return [section.root / "metadata.tsv", *(folder / f"{name}_truth.txt" for folder in folders)]

    def whose(self, section: SectionSource) -> Origin:
        donor = DONORS[section.section_id]
        return Origin(donor, "donor of the section (Maynard et al. 2021)", block=donor, species="human", organ="brain")

    def label(self, text: str, *, where: Path) -> str:
        if text in ("", "WM"):
            return text
        layer = _LAYER.fullmatch(text)
        if layer is None:
            raise ContractError(
                f"{text!r} is no layer", where=where, mend="layers are Layer1 to Layer6 (or L1, Layer_1) and WM"
            )
        return f"L{layer[1]}"


class HbcReader(AnnotatedVisium):
    """Reader of the annotated Human Breast Cancer, Block A, of 10x Genomics: one person."""

    platform = "hbc"
    columns = REGIONS

    def named(self, section: SectionSource) -> str:
        return section.section_id

    def tables(self, section: SectionSource, name: str) -> list[Path]:
        return [folder / "metadata.tsv" for folder in (section.root, section.root.parent)]

    def whose(self, section: SectionSource) -> Origin:
        return Origin("block-A", "block A is of one person (10x Genomics)", block="A", species="human", organ="breast")


def read_labels(path: Path) -> pd.DataFrame:
    """A table of labels by barcode, every value a string, "" where missing.

    A table with a header names the barcode `barcode` or `ID`, or gives it as a first column without a name, as R writes
    it. A `_truth.txt` has no header and two columns.

    Raises
    ------
    SourceError
        It is not readable, or has no barcodes.
    ContractError
        A barcode occurs twice.
    """
    mend = "give a tab-separated table with a barcode and a label in each row"
    headed = path.suffix != ".txt"
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, header=0 if headed else None)
    except (OSError, ValueError) as error:
        raise SourceError(f"the table of labels is not readable ({error})", where=path, mend=mend) from error
    if not headed:
        if table.shape[1] != 2:
            raise SourceError(f"the table has {table.shape[1]} columns, not 2", where=path, mend=mend)
        table.columns = pd.Index(["barcode", DlpfcReader.columns[-1]])
    if isinstance(table.index, pd.RangeIndex):
        named = [name for name in table if name in BARCODES or str(name).startswith("Unnamed")]
        if not named:
            raise SourceError(
                f"no column holds barcodes; there are {', '.join(map(str, table.columns[:20]))}",
                where=path,
                mend=f"call it {' or '.join(BARCODES)}",
            )
        table = table.set_index(named[0])
    table.index = pd.Index([str(barcode).strip() for barcode in table.index], dtype=object)
    if table.index.has_duplicates:
        twice = table.index[table.index.duplicated()][0]
        raise ContractError(f"barcode {twice} has two rows", where=path, mend="keep one")
    stripped = table.map(str.strip)
    return stripped.mask(stripped.isin(MISSING), "")
