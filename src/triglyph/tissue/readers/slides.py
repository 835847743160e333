"""Slides alone, without counts: squares of tissue on a lattice, for labels of whole slides.

    <folder>/<slide>.svs (.tif .tiff .ndpi .mrxs .scn .bif .vms .svslide)

A slide is a section. Squares of `--location-um` (112 µm, which is 224 px at 0.5 µm/px) lie `--pitch-um` apart (their
width, if left out); one is kept if at least half of it is tissue: pixels, an eighth of its width, whose colour channels
differ by 15 of 255 or more, which those of glass and grey ink do not. The scale is the file's own, or `--mpp`.

The patient of a TCGA slide is in its name (`TCGA-05-4244-01Z-…` is of `TCGA-05-4244`); others are named by the user.
"""

from __future__ import annotations

import math
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.errors import ContractError, SourceError
from triglyph.tissue.checks import safe_id
from triglyph.tissue.draft import ImageSource, SectionDraft
from triglyph.tissue.readers.base import Notes, ReadOptions, SectionSource, by_pattern, origin, provenance
from triglyph.tissue.readers.pictures import section_image
from triglyph.tissue.readers.scales import file_scale, settle_scale
from triglyph.tissue.windows import WindowReader
from triglyph.units import Um

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide")
SIDE_UM = 112.0
TCGA = r"^(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})"
CHROMA = 15
"""Of 255: how far the colour channels of a pixel differ at least where there is tissue."""
TISSUE = 0.5
"""Of a square, at least."""
_PIXELS = 8
"""Along a square, in the picture that tissue is looked for in."""


class SlidesReader:
    """Reader of a folder of slides, or of one slide."""

    platform = "slides"
    understands = frozenset({"mpp", "lossless", "patient_pattern", "location_um", "pitch_um"})

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """One section per slide, by its file name."""
        inside = sorted(source.iterdir()) if source.is_dir() else [source]
        slides = [p for p in inside if p.is_file() and p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
        if not slides:
            raise SourceError(
                "no slides", where=source, mend=f"give a folder of files that end in {', '.join(SUFFIXES)}, or one"
            )
        return [SectionSource(safe_id(p.stem, where=p), self.platform, p.parent, {"image": p}) for p in slides]

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """The slide, and its squares of tissue in µm."""
        notes, path = Notes(), section.file("image")
        where = f"{section.root}, section {section.section_id}"
        whose = origin(
            section, options, own=by_pattern(section, options, TCGA if section.section_id.startswith("TCGA-") else None)
        )
        stated = [own] if (own := file_scale(path)) is not None else []
        scale = settle_scale(stated, given=options.mpp, where=where)
        image = section_image(path, scale=scale, section_id=section.section_id, options=options, notes=notes)
        side = options.location_um or SIDE_UM
        pitch = options.pitch_um or side
        if pitch < side:
            raise ContractError(
                f"squares of {side:g} µm lie {pitch:g} µm apart, and would share tissue",
                where="--pitch-um",
                mend="give a pitch that is no smaller than --location-um",
            )
        rows, columns, share = tissue_squares(image, side_um=side, pitch_um=pitch)
        kept = share >= TISSUE
        if not kept.any():
            raise ContractError(
                f"none of its {len(share):,} squares of {side:g} µm is half tissue",
                where=where,
                mend="check the slide, or leave it out with --only",
            )
        notes.add(f"kept {int(kept.sum()):,} of {len(share):,} squares of {side:g} µm: at least half tissue")
        rows, columns = rows[kept], columns[kept]
        table = ad.AnnData(
            sp.csr_matrix((len(rows), 0), dtype=np.int32),
            obs=pd.DataFrame(
                {"array_row": rows, "array_col": columns, "tissue": share[kept]},
                index=pd.Index([f"{r}x{c}" for r, c in zip(rows, columns, strict=True)], dtype=object),
            ),
            var=pd.DataFrame({"ensembl_id": []}, index=pd.Index([], dtype=object)),
            obsm={"spatial": np.column_stack([columns, rows]) * pitch + side / 2},
        )
        return SectionDraft(
            section_id=section.section_id,
            patient=whose.patient,
            block=whose.block,
            platform=self.platform,
            table=table,
            location_um=Um(side),
            pitch_um=Um(pitch),
            location_shape="square",
            images=[image],
            counted=False,
            species=whose.species or "human",
            organ=whose.organ,
            source=provenance(section, used=["image"], patient_source=whose.source, notes=notes.lines),
        )


def tissue_squares(
    image: ImageSource, *, side_um: float, pitch_um: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Row, column (k,) of every square that lies within an image, and which share of it is tissue.

    Parameters
    ----------
    side_um, pitch_um
        Width and distance of squares; the first lies at the image's corner.
    """
    reader = WindowReader(image.path, to_um=image.to_um, mpp_source=image.mpp_source)
    try:
        width, height = reader.size_um
        picture, to_um = reader.thumbnail(math.ceil(max(width, height) / side_um * _PIXELS))
    finally:
        reader.close()
    coloured = np.ptp(picture.astype(np.int16), axis=2) >= CHROMA
    # (H + 1, W + 1): how many pixels above and left are tissue, so that a square costs four of them.
    total = np.pad(coloured.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    counts = [max(0, math.floor((length - side_um) / pitch_um) + 1) for length in (height, width)]
    rows, columns = (of.ravel() for of in np.meshgrid(*map(np.arange, counts), indexing="ij"))
    step_x, step_y = to_um.steps
    x, y = (np.rint(of * pitch_um / step).astype(np.int64) for of, step in ((columns, step_x), (rows, step_y)))
    right = np.minimum(np.rint((columns * pitch_um + side_um) / step_x).astype(np.int64), picture.shape[1])
    below = np.minimum(np.rint((rows * pitch_um + side_um) / step_y).astype(np.int64), picture.shape[0])
    inside = total[below, right] - total[y, right] - total[below, x] + total[y, x]
    area = np.maximum((right - x) * (below - y), 1)
    return rows, columns, inside / area
