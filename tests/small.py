"""Small sections and cohorts that tests make."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import tifffile

from triglyph.tissue.cohort import Cohort
from triglyph.tissue.draft import ImageSource, SectionDraft
from triglyph.tissue.frames import Affine

GENES = ("EPCAM", "KRT8", "CD3E", "COL1A1", "CD68", "PECAM1", "MKI67", "VIM", "MS4A1", "ACTA2", "GAPDH", "ACTB")


def write_slide(path: Path, *, side_px: int = 1024, seed: int = 0) -> Path:
    """A tiled TIFF of smooth colour noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 255, (side_px // 8, side_px // 8, 3), dtype=np.uint8)
    tifffile.imwrite(path, np.repeat(np.repeat(coarse, 8, 0), 8, 1), tile=(128, 128), photometric="rgb", metadata=None)
    return path


def draft(
    section: str = "S1",
    *,
    patient: str = "P1",
    folder: Path | None = None,
    side: int = 6,
    mpp: float = 0.5,
    seed: int = 0,
    genes: tuple[str, ...] = GENES,
    **changes: object,
) -> SectionDraft:
    """A section of side x side spots, with an image where `folder` is given."""
    rng = np.random.default_rng(seed)
    n = side * side
    counts = sp.csr_matrix(rng.poisson(3.0, (n, len(genes))).astype(np.int32))
    rows, columns = np.divmod(np.arange(n), side)
    kinds = np.array(["tumour", "stroma", "lymphoid"])[rng.integers(0, 3, n)]
    captions = [f"{k} tissue, sample {i % 5}" if i % 7 else "" for i, k in enumerate(kinds)]
    table = ad.AnnData(
        counts,
        obs=pd.DataFrame(
            {"caption": captions, "label": kinds, "array_row": rows, "array_col": columns},
            index=[f"{r}x{c}" for r, c in zip(rows, columns, strict=True)],
        ),
        var=pd.DataFrame({"ensembl_id": "", "measured": True}, index=list(genes)),
        obsm={"spatial": np.stack([columns, rows], 1) * 60.0 + 100.0},
    )
    images = []
    if folder is not None:
        path = write_slide(folder / f"{section}.tif", seed=seed)
        images = [ImageSource(path=path, to_um=Affine.scale(mpp), mpp=mpp, mpp_source="made for a test")]
    made = SectionDraft(
        section_id=section,
        patient=patient,
        platform="test",
        table=table,
        location_um=55.0,
        pitch_um=60.0,
        images=images,
    )
    for key, value in changes.items():
        setattr(made, key, value)
    return made


def cohort(folder: Path, *, patients: int = 3, side: int = 6, images: bool = True) -> Cohort:
    """A cohort with one section a patient, at `folder`/cohort; its slides are in `folder`/slides."""
    shutil.copytree(_written(patients, side, images).name, folder, dirs_exist_ok=True)
    return Cohort.open(folder / "cohort")


@cache
def _written(patients: int, side: int, images: bool) -> TemporaryDirectory:
    """Written once a process, gone at its end: a section takes half a second to write, and a moment to copy."""
    kept = TemporaryDirectory(prefix="triglyph-small-")
    slides = Path(kept.name) / "slides"
    slides.mkdir()
    made = Cohort.create(Path(kept.name) / "cohort", name="small")
    for p in range(patients):
        made.add(draft(f"S{p}", patient=f"P{p}", folder=slides if images else None, side=side, seed=p))
    return kept
