"""PanNuke (Gamper et al., arXiv 2003.10778): samples of 256 x 256 px at 40x of 19 tissues, nuclei of five classes.

    fold2/images/fold2/images.npy   (N, 256, 256, 3)
    fold2/images/fold2/types.npy    (N,) names of tissues
    fold2/masks/fold2/masks.npy     (N, 256, 256, 6): number of the nucleus in the channel of its class; background

Fold 2 is the one that PathoCell's split calls test. A sample is 64 µm wide, less than any window of an encoder, so 50
of them share a section, in the order of their names as text.

By default samples stand apart on white, so far that a window of up to 192 µm meets no other, and each is one location.
`--compat release` cuts each into four tiles of 224 px that overlap and puts them side by side, as SpatialWhisperer's
evaluation does; what a window shows beside its tile is other tissue. (That tiles overlap is the default of the
provider's tile-maker, not known of the published file.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triglyph.errors import SourceError
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.readers.base import ReadOptions, SectionSource
from triglyph.tissue.readers.montage import montage, near_square, tiles
from triglyph.tissue.readers.nuclei import GRID_PX, Nuclei, nuclei_draft, scale_of
from triglyph.tissue.readers.scales import Scale
from triglyph.units import Mpp

CLASSES = (
    "Background",
    "Epithelial",
    "Dead Cells",
    "Connective/Soft tissue cells",
    "Inflammatory",
    "Neoplastic cells",
)
"""The channels of `masks.npy` from last to first."""
SCALE = Scale(Mpp(0.25), "declared 0.25 µm/px: 40x, by PanNuke's authors")
SETS = {"fold1": "valid", "fold2": "test", "fold3": "train"}
BATCH = 50
SIDE_PX, SLOT_PX = 256, 512


class PanNukeReader:
    """Reader of PanNuke: one section for 50 samples of a fold."""

    platform = "pannuke"
    understands = frozenset({"mpp", "patient_pattern", "compat"})

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """Sections `fold2_batch_00000`, `fold2_batch_00050`, …"""
        out = []
        for images in sorted(source.rglob("images.npy")) if source.is_dir() else []:
            fold = images.parent.name
            masks = [p for p in sorted(source.rglob("masks.npy")) if p.parent.name == fold]
            if fold in SETS and masks:
                files = {"images": images, "masks": masks[0], "types": images.with_name("types.npy")}
                n = len(_mapped(images, (SIDE_PX, SIDE_PX, 3)))
                out += [
                    SectionSource(f"{fold}_batch_{start:05d}", self.platform, source, files)
                    for start in range(0, n, BATCH)
                ]
        if not out:
            raise SourceError(
                "not PanNuke: no images.npy and masks.npy in folders of one fold",
                where=source,
                mend="give the folder of fold2/images/fold2/images.npy and fold2/masks/fold2/masks.npy",
            )
        return out

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """One montage; `tissue` says what each location is of."""
        fold, _, start = section.section_id.partition("_batch_")
        images = _mapped(section.file("images"), (SIDE_PX, SIDE_PX, 3))
        masks = _mapped(section.file("masks"), (SIDE_PX, SIDE_PX, len(CLASSES)))
        types = _loaded(section.file("types"))
        if types.dtype.kind != "U" or not len(images) == len(masks) == len(types):
            raise SourceError(
                f"{len(images):,} images, {len(masks):,} masks and {len(types):,} types ({types.dtype})",
                where=section.root,
                mend="give the three arrays of one fold",
            )
        order = sorted(range(len(images)), key=lambda i: f"{fold}_{i}")[int(start) :][:BATCH]
        found = [_sample(images[i], masks[i], where=f"{section.root}, {fold}, sample {i}") for i in order]
        release = options.compat == "release"
        if release:
            found = [montage(tiles(f, GRID_PX, where=section.root)) for f in found]
        draft = nuclei_draft(
            section,
            options,
            montage(found) if release else montage(found, slot_px=SLOT_PX, ground=255),
            CLASSES,
            scale=scale_of(options, SCALE),
            drop="where there are two" if release else "never",
            organ="",
            subset=SETS[fold],
            grid_px=GRID_PX if release else SLOT_PX,
            side_px=GRID_PX if release else SIDE_PX,
        )
        obs = draft.table.obs
        each = len(found[0].cells) // GRID_PX if release else 1
        sample = obs["array_row"] // each * near_square(len(found))[1] + obs["array_col"] // each
        obs["tissue"] = [str(types[order[i]]) for i in sample]
        return draft


def _sample(image: NDArray[Any], masks: NDArray[Any], *, where: object) -> Nuclei:
    """One sample. Nuclei are the connected parts of equal numbers, as PathoCell takes them."""
    from skimage.measure import label

    if image.min() < 0 or image.max() > 255 or not np.isfinite(masks).all():
        raise SourceError("not an image of 8 bits, or not a mask", where=where, mend="copy the arrays again")
    cells = label(masks[..., :-1].max(axis=-1).astype(np.int64), background=0)
    kinds = masks[..., ::-1].argmax(axis=-1)
    return Nuclei.checked(np.asarray(image).astype(np.uint8), cells, kinds, classes=CLASSES, where=where)


def _loaded(path: Path, mode: Any = None) -> NDArray[Any]:
    """An .npy array, never through pickle."""
    try:
        return np.asarray(np.load(path, mmap_mode=mode, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(
            f"not readable as an array of numbers or text ({error})", where=path, mend="copy it again"
        ) from error


def _mapped(path: Path, shape: Sequence[int]) -> NDArray[Any]:
    """An .npy array (n, *shape) of numbers that stays on disk."""
    found = _loaded(path, "r")
    if found.ndim != 4 or found.shape[1:] != tuple(shape) or found.dtype.kind not in "iuf":
        raise SourceError(f"{path.name} is {found.dtype} {found.shape}", where=path, mend=f"it should be n x {shape}")
    return found
