"""Sections without a place, and sections in which every location has a picture file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from PIL import Image

import small
from picture_files import picture
from triglyph.bench.audit.whole import audit_split
from triglyph.encoders import registry
from triglyph.errors import ContractError, ScaleError, SourceError, SplitError, TriglyphError
from triglyph.report.qc import write_qc
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.draft import PictureSource, SectionDraft
from triglyph.tissue.frames import Affine
from triglyph.tissue.pixels import ArrayPixels
from triglyph.tissue.section import Section
from triglyph.tissue.split import Fold, Split, patient_folds
from triglyph.tissue.splitting import blocked_within
from triglyph.tissue.windows import WindowReader
from triglyph.training.features import cache_windows, encode_rows, present, raw_chunks
from triglyph.workflows.audit import audit
from triglyph.workflows.info import info

NOWHERE: dict[str, Any] = {"location_um": None, "pitch_um": None, "location_shape": "none"}


def pictured(folder: Path, rows: list[dict[str, Any]], *, name: str = "S1", **changes: Any) -> SectionDraft:
    """A section of `rows` of obs and no genes; squares are 100 px about (80, 70) at 0.5 µm/px unless they say else."""
    usual = {"picture_x": 80.0, "picture_y": 70.0, "picture_px": 100.0, "picture_mpp": 0.5, "caption": "some tissue"}
    obs = pd.DataFrame([{**usual, **row} for row in rows], index=[f"r{i}" for i in range(len(rows))])
    table = ad.AnnData(sp.csr_matrix((len(rows), 0), dtype=np.int32), obs=obs)
    return SectionDraft(
        section_id=name,
        patient=f"P-{name}",
        platform="test",
        table=table,
        pictures=PictureSource(folder, "made for a test", **changes),
        **NOWHERE,
    )


def test_an_unplaced_section_says_so_and_everything_copes(tmp_path: Path) -> None:
    cohort = Cohort.create(tmp_path / "cohort")
    for p in range(3):
        draft = small.draft(f"S{p}", patient=f"P{p}", seed=p, **NOWHERE)
        del draft.table.obsm["spatial"]
        section = cohort.add(draft)
    assert not section.placed
    assert np.isnan(section.centres_um).all()
    assert not section.to_spatialdata().shapes
    with pytest.raises(ContractError, match="no place"):
        _ = section.location_um
    assert not present(section, "image").any()
    assert present(section, "expression").all()
    write_qc(section, tmp_path / "qc.png")
    assert info(section.path).facts["locations"] == "36 without a place"
    cohort.save_split(patient_folds(cohort.patients, name="one-out", folds=None, seed=0))
    (only,) = audit(cohort.path, split="one-out").audits
    assert not [f for f in only.findings if f.severity == "fail"]
    with pytest.raises(SplitError, match="does not say where"):
        blocked_within({section.id: (section.table.obs_names, section.centres_um)}, name="blocks")
    # Only what says so is unplaced, and what says so has no place.
    lost = small.draft("lost")
    lost.table.obsm["spatial"] = np.full((36, 2), np.nan)
    for wrong, why in (
        (lost, "have no position"),
        (small.draft("both", **NOWHERE), "holds positions"),
        (small.draft("size", location_shape="none"), "location_um"),
        (small.draft("image", folder=tmp_path, **NOWHERE), "a whole image"),
    ):
        with pytest.raises(ContractError, match=why):
            Section.write(wrong, tmp_path / "wrong")


def test_a_picture_with_a_scale_is_read_as_a_slide_would_be(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "in" / "a.png", (240, 200))
    picture(tmp_path / "in" / "b" / "c.png", (160, 140), seed=1)
    rows = [{"picture": "b/c.png"}, {"picture": "a.png", "picture_x": 101.5}, {"picture": ""}, {"picture": "b/c.png"}]
    section = Section.write(pictured(tmp_path / "in", rows), tmp_path / "cohort" / "S1")
    assert present(section, "image").tolist() == [True, True, False, True]
    assert not present(section, "expression").any()
    windows = section.location_windows()
    slide = WindowReader(Path("a.png"), to_um=Affine.scale(0.5), pixels=ArrayPixels(pixels))
    np.testing.assert_array_equal(windows.read(1, 40, 1.0), slide.read((50.75, 35.0), 40.0, 40))
    np.testing.assert_array_equal(windows.read(1, 30, None), slide.read_level0((50.75, 35.0), 30))
    with pytest.raises(ScaleError, match="enlarge"):
        windows.read(1, 300, 0.3)
    assert section.table.obs["picture"].iloc[windows.order(np.array([0, 1, 3]))].tolist()[0] == "a.png"
    # Each row has its own pixels, in whatever order they come; those without a picture are absent.
    card = registry.card("tile-vit")
    for chunk, raw in raw_chunks(section, card, np.array([3, 1, 0]), size=2):
        for row, window in zip(chunk, raw, strict=True):
            np.testing.assert_array_equal(window, windows.read(int(row), 64, 1.75))
    cached = section.windows.read(cache_windows(section, card))
    assert cached.present.tolist() == [True, True, False, True]
    values, there = encode_rows(section, registry.build("stain-texture"))
    assert np.isnan(values[2]).all()
    assert np.isfinite(values[there]).all()
    with pytest.raises(SourceError, match="picture of its own"):
        section.image()
    assert "2 files" in info(section.path).facts["pictures"]
    section.to_anndata().write_h5ad(tmp_path / "out.h5ad")
    assert ad.read_h5ad(tmp_path / "out.h5ad").uns["triglyph"]["pictures"]["mpp_source"] == "made for a test"
    # Moved together, the section still finds them.
    (tmp_path / "cohort").rename(tmp_path / "moved")
    Section.open(tmp_path / "moved" / "S1").verify()


def test_unscaled_squares_fill_the_window_and_bicubic_is_the_published_one(tmp_path: Path) -> None:
    tile = picture(tmp_path / "in" / "t.png", (395, 395))
    whole = {"picture": "t.png", "picture_x": 197.5, "picture_y": 197.5, "picture_px": 395, "picture_mpp": np.nan}
    sections = {
        how: Section.write(pictured(tmp_path / "in", [whole], resize=how), tmp_path / how)
        for how in ("area", "bicubic")
    }
    got = {how: section.location_windows().read(0, 224, 0.5) for how, section in sections.items()}
    np.testing.assert_array_equal(got["bicubic"], np.asarray(Image.fromarray(tile).resize((224, 224), 3)))
    slide = WindowReader(Path("t.png"), to_um=Affine.scale(1.0), pixels=ArrayPixels(tile))
    np.testing.assert_array_equal(got["area"], slide.read((197.5, 197.5), 395, 224))
    assert sections["area"].info.pictures.mpp is None
    with pytest.raises(ScaleError, match=r"395 px would be enlarged 1.52 times"):
        sections["area"].location_windows().read(0, 600, 0.5)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"picture": "../secret.png"}, "leads out of its folder"),
        ({"picture": "/etc/hostname"}, "leads out of its folder"),
        ({"picture": "link.png"}, "leads out of its folder"),
        ({"picture": "..\\secret.png"}, "leads out of its folder"),
        ({"picture": "gone.png"}, "'gone.png' is not there"),
        ({"picture": "text.png"}, "does not open"),
        ({"picture": "grey.png"}, "mode L"),
        ({"picture_x": 49.0}, "do not lie in their picture"),
        ({"picture_px": 0.0}, "do not lie in their picture"),
        ({"picture_mpp": np.nan}, "1 of 2 pictures have no scale"),
        ({"picture_mpp": 250.0}, "outside"),
        ({"picture_x": "left"}, "not numbers"),
    ],
)
def test_a_wrong_row_is_refused_by_name_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    picture(tmp_path / "secret.png", (160, 140))
    picture(tmp_path / "in" / "a.png", (160, 140))
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in" / "text.png").write_text("no picture")
    Image.new("L", (160, 140)).save(tmp_path / "in" / "grey.png")
    with pytest.raises(TriglyphError, match=why):
        Section.write(pictured(tmp_path / "in", [{"picture": "a.png"}, {"picture": "a.png", **change}]), tmp_path / "S")
    assert not (tmp_path / "S").exists()


def test_what_became_of_a_file_since_is_said_by_its_name(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / "in" / name, (160, 140))
    section = Section.write(pictured(tmp_path / "in", [{"picture": "a.png"}, {"picture": "b.png"}]), tmp_path / "S")
    data = (tmp_path / "in" / "b.png").read_bytes()
    (tmp_path / "in" / "b.png").write_bytes(data[: len(data) // 2])
    for look in (section.verify, lambda: section.location_windows().read(1, 64, 1.75)):
        with pytest.raises(SourceError) as caught:
            look()
        assert str(caught.value.where).endswith("b.png")
    (tmp_path / "in" / "a.png").unlink()
    with pytest.raises(SourceError, match="'a.png' is not there"):
        section.location_windows().read(0, 64, 1.75)


def test_pictures_on_both_sides_are_found_by_their_bytes_whatever_they_are_called(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    names = [f"{i}.png" for i in range(9)]
    for seed, name in enumerate(names):
        picture(folder / name, (160, 140), seed=seed)
    for i in range(3):
        (folder / f"copy-{i}.png").write_bytes((folder / names[i]).read_bytes())
    cohort = Cohort.create(tmp_path / "cohort")
    for name, files in {
        "S0": [*names[:4], "1.png"],
        "copied": ["copy-0.png", "copy-1.png", "copy-2.png", "4.png"],
        "blank": ["copy-0.png", "5.png"],
        "own": ["6.png", "7.png"],
    }.items():
        cohort.add(pictured(folder, [{"picture": f} for f in files], name=name))

    def audited(level: Any = "patient", **fold: Any) -> Any:
        return audit_split(cohort, Split(name="x", level=level, folds=(Fold(name="0", train=("S0",), **fold),)))

    found = audited(test=("copied", "blank", "own"))
    copied, blank = found.named("same-section-twice")
    assert (copied.severity, blank.severity) == ("fail", "advise")  # one file may be an empty tile
    assert "3 of the 4 picture files of section copied" in copied.what
    assert "1 of the 2 picture files of section blank" in blank.what
    assert "same-section-twice" in found.checked
    assert not [u for u in found.unchecked if u.name == "same-section-twice"]
    # Of a divided section, only what lies on the two sides is compared.
    (within,) = audited("within-section", test=("S0",), test_locations={"S0": ("r0", "r1")}).named("same-section-twice")
    assert "1 of the 2 picture files of the tested part of S0" in within.what
    apart = audited("within-section", test=("S0",), test_locations={"S0": ("r0",)})
    assert "same-section-twice" in apart.checked
    assert not apart.named("same-section-twice")
    # Pictures and counts cannot be compared with each other.
    cohort.add(small.draft("S2", patient="P2"))
    mixed = audited(test=("own", "S2"))
    assert {u.why for u in mixed.unchecked if u.name == "same-section-twice"} == {"counts: no genes in S0"}
    assert not audited(test=("S2",)).checked.count("same-section-twice")
