"""Lizard (Graham et al., ICCV workshops 2021): H&E of the colon with nuclei of six classes.

    Lizard_Images1/Lizard_Images1/<name>.png, Lizard_Images2/…
    Lizard_Labels/Lizard_Labels/Labels/<name>.mat   inst_map (H, W), id (N, 1), class (N, 1)
    …/info.csv                                      Filename, Source, Split (1 train, 2 valid, 3 test)
    …/*split*.csv                                   sample_name, train_test_val_split (goes before info.csv)

Folders may be nested and named otherwise. The published figures are over the 70 images that PathoCell's
`lizard_default_train_test_val_split.csv` calls test. The slides were scanned or resampled at 20x, about 0.5 µm/px.

`--compat release` lays the tiles of each image out anew, as `montage` says. PathoCell keeps its tiles as pickles in
LMDB, which are never read; the same tiles are cut from the published images. (That PathoCell cut them with flush far
tiles is its tile-maker's default, not known of the published file.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from triglyph.errors import ContractError, SourceError
from triglyph.tissue.checks import safe_id
from triglyph.tissue.decode import LARGEST_BYTES, decode
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.readers.base import ReadOptions, SectionSource
from triglyph.tissue.readers.montage import montage, tiles
from triglyph.tissue.readers.nuclei import GRID_PX, Nuclei, nuclei_draft, scale_of
from triglyph.tissue.readers.scales import Scale
from triglyph.units import Mpp

CLASSES = ("background", "Neutrophil", "Epithelial", "Lymphocyte", "Plasma", "Eosinophil", "Connective tissue")
"""By number in the .mat files."""
SCALE = Scale(Mpp(0.5), "declared 0.5 µm/px: 20x, by Lizard's authors")
SPLITS = {"1": "train", "2": "valid", "3": "test"}


class LizardReader:
    """Reader of Lizard: one section an image."""

    platform = "lizard"
    understands = frozenset({"mpp", "patient_pattern", "compat"})

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """One section per image that has labels."""
        labels = {p.stem: p for p in sorted(source.rglob("*.mat"))} if source.is_dir() else {}
        images = {p.stem: p for p in sorted(source.rglob("*.png")) if p.stem in labels} if labels else {}
        if not images:
            raise SourceError(
                "not Lizard: no .png has a .mat of its name", where=source, mend="give the folder of images and labels"
            )
        split = next(iter([*sorted(source.rglob("*split*.csv")), *sorted(source.rglob("info.csv"))]), None)
        shared = {} if split is None else {"split": split}
        return [
            SectionSource(
                safe_id(name, where=path), self.platform, source, {"image": path, "labels": labels[name], **shared}
            )
            for name, path in sorted(images.items())
        ]

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """One image; the last row and column of squares are left out where there are two of each."""
        path, where = section.file("labels"), f"{section.root}, section {section.section_id}"
        cells, kinds = read_labels(path)
        found = Nuclei.checked(decode(section.file("image")), cells, kinds, classes=CLASSES, where=path)
        if options.compat == "release":
            found = montage(tiles(found, GRID_PX, where=where))
        return nuclei_draft(
            section,
            options,
            found,
            CLASSES,
            scale=scale_of(options, SCALE),
            drop="where there are two",
            organ="colon",
            subset=_subset(section),
        )


def read_labels(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The map of cells of a .mat file, and that of classes.

    Raises
    ------
    SourceError
        It is no such file, is larger than it may be, or a cell has no class or two.
    """
    from zlib import error as ZlibError

    from scipy.io import loadmat, matlab, whosmat

    mend = "give the labels as they are published"
    try:
        sizes = {name: shape for name, shape, _ in whosmat(path)}
        if lacking := [name for name in ("inst_map", "id", "class") if name not in sizes]:
            raise SourceError(f"no labels of Lizard: it has no {lacking[0]!r}", where=path, mend=mend)
        if max(int(np.prod(sizes[name], dtype=object)) for name in ("inst_map", "id", "class")) * 8 > LARGEST_BYTES:
            raise SourceError(f"a map of {sizes['inst_map']} is too large", where=path, mend=mend)
        found = loadmat(path, variable_names=["inst_map", "id", "class"])
    except (OSError, ValueError, TypeError, NotImplementedError, EOFError, ZlibError, matlab.MatReadError) as error:
        raise SourceError(f"not readable as a MATLAB file ({error})", where=path, mend=mend) from error
    cells, ids, kinds = found["inst_map"], found["id"].ravel(), found["class"].ravel()
    if cells.ndim != 2 or any(a.dtype.kind not in "iuf" for a in (cells, ids, kinds)):
        raise SourceError(f"inst_map is {cells.dtype} {cells.shape}", where=path, mend=mend)
    present, which = np.unique(cells, return_inverse=True)
    if len(ids) != len(kinds) or len(np.unique(ids)) < len(ids) or np.setdiff1d(present, [0, *ids]).size:
        raise SourceError("a cell has no class, or two", where=path, mend=mend)
    of = dict(zip(ids.tolist(), kinds.tolist(), strict=True))
    classes = np.array([of[i] if i else 0 for i in present.tolist()], dtype=np.float64)
    return cells, classes[which.reshape(cells.shape)]


def _subset(section: SectionSource) -> str:
    if "split" not in section.files:
        return ""
    path = section.file("split")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise SourceError(f"the split is not readable ({error})", where=path, mend="copy it again") from error
    for name, column in (("sample_name", "train_test_val_split"), ("Filename", "Split")):
        if {name, column} <= set(table.columns):
            rows = table[column][[Path(n).stem == section.section_id for n in table[name]]]
            if len(rows) == 1:
                return SPLITS.get(rows.iloc[0], rows.iloc[0])
            raise ContractError(
                f"{len(rows)} rows for image {section.section_id}", where=path, mend="one row an image, or no such file"
            )
    raise SourceError("the split names no images", where=path, mend="give sample_name and train_test_val_split")
