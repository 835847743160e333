"""`triglyph read` end to end: resumable, atomic per section, and honest about what failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from support import SHARED, needs_shared
from triglyph.cli import main
from triglyph.errors import ContractError, RecipeError, SourceError
from triglyph.report.qc import nice_length, write_qc
from triglyph.tissue.cohort import Cohort
from triglyph.workflows.info import info
from triglyph.workflows.read import read
from vendor_layouts import edit_counts, leftovers, st_folder, table, visium_folder


def snapshot(out: Path) -> dict[str, bytes]:
    """Every file of a cohort but locks; the times inside nothing matter."""
    return {
        p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".lock"
    }


def three_sections(folder: Path) -> Path:
    """Three sections of two patients, one of them with an image."""
    st_folder(folder, ("A1", "A2", "B1"))
    for name in ("A2", "B1"):
        (folder / "images" / f"{name}.jpg").unlink()
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three sections to read, and to break."""
    return three_sections(tmp_path / "st")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort they make, read without harm; to look at only."""
    folder = tmp_path_factory.mktemp("whole")
    assert read([three_sections(folder / "st")], out=folder / "cohort", platform="st").exit_code == 0
    return folder / "cohort"


def test_a_folder_becomes_a_cohort_with_a_picture_a_section(source: Path, whole: Path) -> None:
    out = whole
    cohort = Cohort.open(out)
    assert cohort.patients == {"A1": "A", "A2": "A", "B1": "B"}
    assert list(pd.read_csv(out / "sections.csv")["section"]) == ["A1", "A2", "B1"]
    for section in cohort:
        with Image.open(section.path / "qc.png") as picture:
            assert min(picture.size) > 600
    a1 = cohort["A1"]
    assert a1.image_path(a1.image_info()).parent == a1.path / "images"  # the pyramid moved in
    assert a1.image().mpp == pytest.approx(5.0)
    assert not leftovers(out)
    raw = pd.read_csv(source / "counts" / "A1.tsv.gz", sep="\t", index_col=0)
    np.testing.assert_array_equal(a1.expression()[0].toarray(), raw.to_numpy())


def test_running_again_reads_nothing_anew(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    read([source], out=out, platform="st", only=["A1"])
    before = {p: p.stat().st_mtime_ns for p in (out / "sections" / "A1").rglob("*")}
    report = read([source], out=out, platform="st")
    assert [row.status for row in report.rows] == ["already there", "read", "read"]
    assert {p: p.stat().st_mtime_ns for p in (out / "sections" / "A1").rglob("*")} == before


def test_a_picture_that_is_missing_is_drawn_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    read([source], out=out, platform="st", only=["B1"])
    picture = out / "sections" / "B1" / "qc.png"
    first = picture.read_bytes()
    picture.unlink()
    read([source], out=out, platform="st", only=["B1"])
    assert picture.read_bytes() == first


def test_a_section_read_with_other_options_or_files_is_not_passed_off_as_done(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    read([source], out=out, platform="st", only=["B1"])
    report = read([source], out=out, platform="st", only=["B1"], patient="Z")
    assert report.exit_code == 1
    assert isinstance(report.rows[0].error, ContractError)
    assert "options" in report.rows[0].detail
    edit_counts(source / "counts" / "B1.tsv.gz", lambda frame: frame * 1000)
    assert "files" in read([source], out=out, platform="st", only=["B1"]).rows[0].detail


def test_a_broken_section_is_reported_and_the_others_are_read(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cohort"
    (source / "spots" / "A2_selection.tsv").unlink()
    command = ["read", str(source), "--platform", "st", "--out", str(out)]
    assert main(command) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "failed: A2" in said
    assert "spots file is missing" in said
    assert Cohort.open(out).ids == ["A1", "B1"]
    assert not leftovers(out)
    again = st_folder(tmp_path / "again", ("A1", "A2", "B1"))
    (again / "spots" / "A2_selection.tsv").rename(source / "spots" / "A2_selection.tsv")
    assert main(command) == 0
    assert Cohort.open(out).ids == ["A1", "A2", "B1"]


def test_the_command_line_takes_several_sources_and_options(tmp_path: Path) -> None:
    for name in ("s1", "s2"):
        visium_folder(tmp_path / name)
    patients = tmp_path / "patients.csv"
    patients.write_text("section,patient,organ\ns1,P1,heart\ns2,P2,\n")
    sources = [str(tmp_path / name) for name in ("s1", "s2")]
    command = ["read", *sources, "--platform", "visium", "--patients", str(patients), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    cohort = Cohort.open(tmp_path / "out")
    assert cohort.patients == {"s1": "P1", "s2": "P2"}
    assert cohort["s1"].info.organ == "heart"


def test_an_image_must_say_which_section_it_is_of(source: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    (source / "images" / "A1.jpg").rename(image)
    with pytest.raises(RecipeError, match="which of 3 sections"):
        read([source], out=tmp_path / "out", platform="st", image=[str(image)])
    read([source], out=tmp_path / "out", platform="st", image=[f"A1={image}"])
    assert [s.id for s in Cohort.open(tmp_path / "out") if s.has_image()] == ["A1"]


def test_the_wrong_platform_names_the_right_one(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a Space Ranger output") as error:
        read([source], out=tmp_path / "out", platform="visium")
    assert "--platform st" in error.value.mend
    assert not (tmp_path / "out").exists()


def test_what_a_dead_process_left_is_swept(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    read([source], out=out, platform="st", only=["A1"])
    left = out / ".scratch" / "A1"
    left.mkdir(parents=True)
    (left / "A1.tif").write_bytes(b"half")
    picture = out / "sections" / "A1" / "qc.png"
    picture.rename(picture.with_name(".partial-99-qc.png"))
    (out / ".partial-99-sections.csv").write_text("section,pat")
    read([source], out=out, platform="st")
    assert picture.is_file()
    assert not leftovers(out)


def test_killed_at_any_moment_it_finishes_when_run_again(source: Path, whole: Path, tmp_path: Path) -> None:
    """Three kills at random moments in each other's wake, then a run to the end: the same bytes as an unharmed run."""
    out = tmp_path / "killed"
    code = (
        "import sys; from pathlib import Path; from triglyph.workflows.read import read; print('go', flush=True); "
        "read([Path(sys.argv[1])], out=Path(sys.argv[2]), platform='st')"
    )
    rng = np.random.default_rng(7)
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(source), str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0.2, 3.0))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        sections = out / "sections"
        for folder in sections.glob("[!.]*") if sections.is_dir() else ():
            assert (folder / "section.json").is_file()  # whole or not at all
    assert read([source], out=out, platform="st").exit_code == 0
    assert not leftovers(out)
    one, two = snapshot(whole), snapshot(out)
    one["cohort.json"] = two["cohort.json"]  # holds the folder's name
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_reading_is_light_until_it_is_asked_for() -> None:
    code = (
        "import sys, triglyph.workflows.read, triglyph.workflows.info; "
        "heavy = {'torch', 'anndata', 'pandas', 'spatialdata', 'scanpy', 'matplotlib', 'tifffile'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_square_bins_and_previews_have_a_picture_too(tmp_path: Path) -> None:
    found = table(6, pitch=16.0, patient="P")
    found.write_h5ad(tmp_path / "bins.h5ad")
    read([tmp_path / "bins.h5ad"], out=tmp_path / "a", platform="anndata", spatial_unit="um", location_um=16.0)
    read([visium_folder(tmp_path / "run")], out=tmp_path / "b", platform="visium", patient="P")
    for out in ("a", "b"):
        (section,) = Cohort.open(tmp_path / out)
        again = write_qc(section, tmp_path / f"{out}.png")
        assert again.read_bytes() == (section.path / "qc.png").read_bytes()


@pytest.mark.parametrize(("about", "want"), [(1, 1), (1.9, 1), (2, 2), (499, 200), (1234, 1000), (5000, 5000)])
def test_scale_bars_are_of_a_round_length(about: float, want: float) -> None:
    assert nice_length(about) == want


def test_info_says_what_a_folder_is(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = whole
    assert (info(out).kind, info(out).facts["sections"], info(out).facts["patients"]) == ("cohort", 3, 2)
    section = info(out / "sections" / "A1")
    assert section.kind == "section"
    assert "array pitch 200 µm" in str(section.facts)
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: x\n")
    assert info(run).facts["state"].startswith("not finished")
    (run / "manifest.json").write_text(json.dumps({"triglyph": "0.1", "tries": 1}))
    assert info(run).facts["state"] == "finished"
    capsys.readouterr()
    with pytest.raises(SourceError, match="neither a cohort"):
        info(tmp_path)


@needs_shared
def test_a_real_section_is_read_and_its_picture_drawn(tmp_path: Path) -> None:
    assert SHARED is not None
    report = read([SHARED / "her2st"], out=tmp_path / "out", platform="st", only=["C1"])
    assert report.exit_code == 0
    section = Cohort.open(tmp_path / "out")["C1"]
    assert (section.n_locations, section.info.n_genes, section.patient) == (176, 15557, "C")
    assert {"invasive cancer", ""} <= set(section.labels)
