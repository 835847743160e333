"""Pictures with captions or labels: Quilt-1M, any table, the skin tiles; and training on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import small
from picture_files import picture
from triglyph.errors import ContractError, RecipeError, SourceError
from triglyph.tissue.cohort import Cohort
from triglyph.training.loop import fit
from triglyph.training.recipe import typed
from triglyph.workflows.read import read

VIDEOS = ("-2UxAkjfVr0", "AbCdEfGhIjK", "zyxwvutsrqp")


@pytest.fixture(scope="module")
def quilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, two pictures each with two sentences; rows that have to fall away beside them."""
    folder = tmp_path_factory.mktemp("quilt")
    rows: list[dict[str, Any]] = []
    for v, video in enumerate(VIDEOS):
        for i in range(2):
            name = f"{video}_image_{v}{i}aa-bb.png"
            picture(folder / "quilt_1m" / name, (600, 400), seed=10 * v + i)
            usual = {"image_path": name, "subset": "quilt", "split": "train", "magnification": 2.0, "not_histology": 0}
            rows += [{**usual, "caption": f"sentence {k} on picture {i} of video {v}"} for k in range(2)]
            rows += [{**usual, "caption": "a gross picture", "not_histology": 1}]
            rows += [{**usual, "caption": "from afar", "magnification": 1.0}]
    rows.append({"image_path": "1234.jpg", "caption": "of a paper", "subset": "pubmed", "split": "val"})
    table = pd.DataFrame(rows)
    table["curated"] = [f"Sample: {c}" for c in table["caption"]]
    table.to_csv(folder / "quilt_1M_lookup.csv")
    return folder


@pytest.fixture(scope="module")
def videos(quilt: Path) -> Cohort:
    """Read with three squares a sentence."""
    report = read([quilt], out=quilt.parent / "quilt-cohort", platform="quilt", crops=3)
    assert not report.failed
    return Cohort.open(report.cohort)


def test_quilt_becomes_a_section_a_video_with_squares_of_the_middle(
    videos: Cohort, quilt: Path, tmp_path: Path
) -> None:
    assert videos.patients == {f"video_{v}": v for v in VIDEOS}
    section = videos["video_AbCdEfGhIjK"]
    obs = section.table.obs
    assert section.n_locations == 2 * 2 * 3
    assert section.info.n_genes == 0
    assert set(section.captions) == {f"sentence {k} on picture {i} of video 1" for k in range(2) for i in range(2)}
    corners = obs[["picture_x", "picture_y"]].to_numpy() - 112
    assert (corners >= [150, 88]).all()
    assert (corners + 224 <= [450, 312]).all()
    assert (corners == np.round(corners)).all()
    # Every sentence draws for itself, and draws the same again.
    drawn = corners.reshape(4, 3, 2)
    assert len(np.unique(drawn.reshape(4, -1), axis=0)) == 4
    assert section.info.pictures.mpp is None
    assert "declared unscaled" in section.info.pictures.mpp_source
    pixels = np.asarray(Image.open(quilt / "quilt_1m" / obs["picture"].iloc[0]))
    x, y = corners[0].astype(int)
    np.testing.assert_array_equal(section.location_windows().read(0, 224, 0.5), pixels[y : y + 224, x : x + 224])
    out = {"only": ["video_AbCdEfGhIjK"], "platform": "quilt", "crops": 3}
    again = read([quilt], out=tmp_path / "again", caption_column="curated", **out)
    other = Cohort.open(again.cohort)["video_AbCdEfGhIjK"]
    np.testing.assert_array_equal(other.table.obs["picture_x"], obs["picture_x"])
    assert other.captions == [f"Sample: {c}" for c in section.captions]
    assert other.table.obs["caption_original"].tolist() == section.captions
    reseeded = read([quilt], out=tmp_path / "seed", seed=1, **out)
    assert (Cohort.open(reseeded.cohort)["video_AbCdEfGhIjK"].table.obs["picture_x"] != obs["picture_x"]).any()


def test_a_picture_that_is_gone_fails_its_video_or_is_left_out_and_noted(quilt: Path, tmp_path: Path) -> None:
    table = pd.read_csv(quilt / "quilt_1M_lookup.csv", index_col=0)
    table.loc[0, "image_path"] = f"{VIDEOS[0]}_image_gone.png"
    table.to_csv(quilt / "other.csv")
    name = f"video_{VIDEOS[0]}"
    said = {"platform": "quilt", "only": [name], "crops": 1}
    (row,) = read([quilt / "other.csv"], out=tmp_path / "error", **said).rows
    assert row.status == "failed"
    assert "_image_gone.png" in row.detail
    (row,) = read([quilt / "other.csv"], out=tmp_path / "drop", missing="drop", **said).rows
    assert row.status == "read"
    assert any("_image_gone.png" in note for note in row.notes)
    Image.new("L", (600, 400)).save(quilt / "quilt_1m" / f"{VIDEOS[0]}_image_gone.png")
    (row,) = read([quilt / "other.csv"], out=tmp_path / "grey", **said).rows
    assert "1 of 3 pictures cannot be read" in row.detail
    assert "mode L" in row.detail
    table.loc[0, "image_path"] = "1234.jpg"
    table.to_csv(quilt / "other.csv")
    with pytest.raises(ContractError, match="nothing says which video"):
        read([quilt / "other.csv"], out=tmp_path / "no", **said)


def test_pictures_with_captions_and_counts_with_captions_train_together(videos: Cohort, tmp_path: Path) -> None:
    # A sibling of the cohort: pictures are referred to by relative path.
    cohort = Cohort.open(Path(shutil.copytree(videos.path, videos.path.with_name("mixed"))))
    bulk = small.draft("bulk", patient="D", location_um=None, pitch_um=None, location_shape="none")
    del bulk.table.obsm["spatial"]
    cohort.add(bulk)
    towers: dict[str, Any] = {
        "image": {
            "encoder": "tile-vit",
            "mode": "scratch",
            "options": {"dim": 16, "depth": 1, "heads": 1, "patch_px": 32},
        },
        "expression": {"encoder": "gene-mlp", "mode": "scratch", "options": {"dim": 8, "hidden": 8, "genes": 10}},
        "text": {"encoder": "bert-small", "mode": "scratch", "options": {"dim": 8, "depth": 1, "heads": 1}},
    }
    for name, steps in (("tile-vit", 2), ("stain-texture", 1)):
        if name == "stain-texture":
            towers = {"image": {"encoder": name, "mode": "locked", "standardise": True}, "text": towers["text"]}
        recipe = {
            "name": "pairs",
            "data": {"train": cohort.ids[:3], "val": cohort.ids[3:]},
            "model": {"dim": 8, "towers": towers, "pairs": {f"{m}-text": 1.0 for m in towers if m != "text"}},
            "training": {"epochs": 1, "batch_size": 24},
        }
        run = fit(typed(recipe, where="test"), cohort=cohort, out=tmp_path / name, show=False)
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert len(log) == steps
        assert all(np.isfinite(value) for line in log for value in line["loss"].values())


def test_any_table_of_captions_is_read_and_says_its_scale(tmp_path: Path) -> None:
    rows = [{"file": f"p/{i}.png", "words": f"caption {i}", "who": f"A{i % 2}", "label": "x"} for i in range(4)]
    for i in range(4):
        picture(tmp_path / "p" / f"{i}.png", (120, 160), seed=i)
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pd.DataFrame([{"image": r["file"], "caption": r["words"], "patient": r["who"], "mpp": 0.5} for r in rows]).to_csv(
        tmp_path / "t.csv", index=False
    )
    told = {"image_column": "file", "caption_column": "words", "patient_column": "who", "platform": "captions"}
    line = read([tmp_path / "t.jsonl"], out=tmp_path / "a", preprocess="resize_crop", **told)
    table = read([tmp_path / "t.csv"], out=tmp_path / "b", platform="captions")
    a, b = Cohort.open(line.cohort)["A1"], Cohort.open(table.cohort)["A1"]
    assert a.captions == b.captions == ["caption 1", "caption 3"]
    assert a.patient == b.patient == "A1"
    assert a.labels.tolist() == ["x", "x"]
    assert a.info.pictures.resize == "bicubic"
    assert b.info.pictures.mpp == (0.5, 0.5)
    assert b.info.pictures.mpp_source == "column 'mpp'"
    assert b.table.obs["picture_px"].tolist() == [120.0, 120.0]
    (row, _) = read([tmp_path / "t.jsonl"], out=tmp_path / "c", **told).rows
    assert row.error is not None
    assert row.error.what == "the scale of the pictures is not known"
    del told["patient_column"]
    (row,) = read([tmp_path / "t.jsonl"], out=tmp_path / "d", preprocess="resize_crop", **told).rows
    assert row.error is not None
    assert "--patient-column" in str(row.error.mend)
    (tmp_path / "bad.jsonl").write_text('{"image": "p/0.png"}\n{broken')
    with pytest.raises(SourceError) as caught:
        read([tmp_path / "bad.jsonl"], out=tmp_path / "e", platform="captions")
    assert "line 2" in str(caught.value.where)


def test_skin_tiles_are_sections_of_cases_with_clinical_labels(tmp_path: Path) -> None:
    data, rows = tmp_path / "data", []
    for case, kind, side in (("17", "tumor_skin_naevus_naevus", 395), ("44", "nontumor_skin_muscle_skeletal", 400)):
        for i in range(2):
            name = f"tiles/{kind}/{kind}_ws_{case}_{i}.png"
            picture(data / name, (side, side), seed=i)
            rows.append({"file": f"data/{name}", "class": kind, "set": "Test", "case": case, "malignicy": "tumor"})
    pd.DataFrame(rows).to_csv(data / "tiles-v2.csv")
    cohort = Cohort.open(read([tmp_path], out=tmp_path / "c", platform="kriegsmann").cohort)
    assert cohort.patients == {"case_17": "17", "case_44": "44"}
    section = cohort["case_17"]
    assert section.labels.tolist() == ["Naevi", "Naevi"]
    assert set(section.table.obs["set"]) == {"Test"}
    assert section.info.pictures.mpp == pytest.approx((100 / 395,) * 2)
    assert section.info.organ == "skin"
    assert cohort["case_44"].info.pictures.mpp == pytest.approx((0.25, 0.25))
    published = read([data], out=tmp_path / "p", platform="kriegsmann", preprocess="resize_crop", only=["case_44"])
    window = Cohort.open(published.cohort)["case_44"].location_windows().read(1, 224, 0.5)
    with Image.open(data / rows[3]["file"].removeprefix("data/")) as tile:
        np.testing.assert_array_equal(window, np.asarray(tile.resize((224, 224), Image.Resampling.BICUBIC)))
    with pytest.raises(RecipeError, match="no use for --crops"):
        read([data], out=tmp_path / "x", platform="kriegsmann", crops=2)
    mixed = pd.DataFrame(rows).assign(case="17", set=["Train", "Test", "Test", "Test"])
    mixed.to_csv(data / "tiles-v2.csv")
    with pytest.raises(ContractError, match="case 17 lies in 2 sets"):
        read([data], out=tmp_path / "x", platform="kriegsmann")
