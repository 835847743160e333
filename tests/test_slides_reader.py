"""Slides alone: squares of tissue, and labels of whole slides read off them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from test_bench_mutation import one
from triglyph.cli import main
from triglyph.errors import ContractError, ScaleError, SourceError
from triglyph.metrics.result import read_results
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.pyramid import write_pyramid
from triglyph.tissue.readers.base import ReadOptions, find_reader

WIDE, HIGH, SIDE = 1000, 620, 112


def slide(path: Path, *, seed: int = 0, dark: bool = False, mpp: float = 1.0) -> Path:
    """Glass and ink, and tissue from x = 224 to 560 and y = 112 to 448: three squares each way."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.normal(243, 2, (HIGH, WIDE, 1)), 0, 255).repeat(3, axis=2)
    pixels[500:600, 600:900] = 40  # a pen, grey
    purple = np.array([110, 50, 120] if dark else [200, 140, 190])
    pixels[112:448, 224:560] = np.clip(purple + rng.normal(0, 12, (336, 336, 3)), 0, 255)
    return write_pyramid(pixels.astype(np.uint8), path, mpp=mpp, lossless=True)


def draft(source: Path, scratch: Path, **options):
    said = ReadOptions(scratch=scratch, **options)
    reader = find_reader("slides")
    return reader.read(reader.discover(source, said)[0], said)


def test_squares_of_tissue_are_kept_and_glass_and_ink_are_not(tmp_path: Path) -> None:
    slide(tmp_path / "A.tif")
    made = draft(tmp_path, tmp_path / "s", patient="P")
    assert list(made.table.obs_names) == [f"{r}x{c}" for r in (1, 2, 3) for c in (2, 3, 4)]
    assert made.table.obsm["spatial"][0].tolist() == [2.5 * SIDE, 1.5 * SIDE]
    assert (made.location_um, made.pitch_um, made.location_shape) == (112.0, 112.0, "square")
    assert made.table.obs["tissue"].min() > 0.9
    assert made.source["notes"] == ["kept 9 of 40 squares of 112 µm: at least half tissue"]
    wide = draft(tmp_path, tmp_path / "s", patient="P", pitch_um=224.0)
    # Every other square, the first at the corner: 2 and 4 across, of rows 0, 2, 4 the one with tissue.
    assert list(wide.table.obs_names) == ["1x1", "1x2"]
    assert wide.table.obsm["spatial"].tolist() == [[280.0, 280.0], [504.0, 280.0]]


def test_the_scale_moves_the_squares_and_not_the_tissue(tmp_path: Path) -> None:
    slide(tmp_path / "A.tif", mpp=0.5)
    made = draft(tmp_path, tmp_path / "s", patient="P")
    # Tissue from 112 to 280 µm and from 56 to 224 µm: one square is all in it, two are half, and a corner is a quarter.
    assert dict(zip(made.table.obs_names, made.table.obs["tissue"].round(1), strict=True)) == {
        "0x1": 0.5,
        "1x1": 1.0,
        "1x2": 0.5,
    }
    finer = draft(tmp_path, tmp_path / "s", patient="P", location_um=56.0)
    assert list(finer.table.obs_names) == [f"{r}x{c}" for r in (1, 2, 3) for c in (2, 3, 4)]


def test_a_patient_is_in_the_name_of_tcga_and_nowhere_else(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    slide(tmp_path / "one" / "TCGA-05-4244-01Z-00-DX1.tif")
    assert draft(tmp_path / "one", tmp_path / "s").patient == "TCGA-05-4244"
    slide(tmp_path / "two" / "A7.tif")
    with pytest.raises(ContractError, match="patient is not known"):
        draft(tmp_path / "two", tmp_path / "s")
    assert draft(tmp_path / "two", tmp_path / "s", patient_pattern="^([A-Z])").patient == "A"


def test_what_cannot_be_read_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no slides"):
        draft(tmp_path, tmp_path / "s", patient="P")
    write_pyramid(np.full((400, 400, 3), 240, np.uint8), tmp_path / "white.tif", mpp=1.0)
    with pytest.raises(ContractError, match="none of its 9 squares of 112 µm is half tissue"):
        draft(tmp_path, tmp_path / "s", patient="P")
    slide(tmp_path / "white.tif")
    with pytest.raises(ContractError, match="would share tissue"):
        draft(tmp_path, tmp_path / "s", patient="P", pitch_um=100.0)
    with pytest.raises(ScaleError):
        draft(tmp_path, tmp_path / "s", patient="P", mpp=0.25)


def test_a_label_of_slides_is_read_off_them_from_the_folder_to_the_table(tmp_path: Path) -> None:
    source, cohort, out = tmp_path / "slides", tmp_path / "cohort", tmp_path / "out"
    source.mkdir()
    for i in range(6):
        slide(source / f"TCGA-05-{1000 + i}-01Z-00-DX1.tif", seed=i, dark=i % 2 == 1)
    assert main(["read", str(source), "--platform", "slides", "--out", str(cohort)]) == 0
    people = sorted(set(Cohort.open(cohort).patients.values()))
    assert people[0] == "TCGA-05-1000"
    table = "".join(f"{p},{i % 2}\n" for i, p in enumerate(people))
    (cohort / "clinical.csv").write_text(f"patient,EGFR\n{table}")
    assert main(["split", str(cohort), "--name", "folds", "--folds", "2", "--stratify", "EGFR"]) == 0
    assert main(["embed", str(cohort), "--encoder", "stain-texture"]) == 0
    asked = ["slide-classification", "--set", "label_column=EGFR", "--set", "n_seeds=1", "--embedding", "stain-texture"]
    allowed = ["--allow", "near-duplicates"]  # made slides are alike
    assert main(["bench", "run", *asked, *allowed, "--cohort", str(cohort), "--split", "folds", "--out", str(out)]) == 0
    rows = read_results(out)
    for metric in ("auroc", "balanced-accuracy"):
        row = one(rows, model="stain-texture", metric=metric, aggregation="patients of all folds")
        assert (row.value, row.n, row.level, row.direction) == (1.0, 6, "patient", "image->EGFR")
    assert one(rows, model="majority", metric="auroc", aggregation="patients of all folds").value == 0.5
