"""`triglyph annotate`: labels in plain words, calibrated, abstaining and flagging, beside the section and out of it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import tifffile
from scipy.special import softmax

import small
import triglyph as tg
from triglyph.apply.labelling import Abstain, LabelCalibration, asked
from triglyph.apply.reference import Reference
from triglyph.cli import app, main
from triglyph.errors import ContractError, RecipeError, TriglyphError
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.split import Fold, Split
from triglyph.workflows.annotate import annotate
from triglyph.workflows.train import train

CLASSES = ("tumour", "stroma", "lymphoid")
RECIPE = """
name: words
data: {split: patients}
model:
  dim: 8
  head: {kind: linear}
  towers:
    image: {encoder: stain-texture, mode: locked, standardise: true}
    expression: {encoder: gene-mlp, mode: scratch, options: {dim: 8, hidden: 8, genes: 10}}
    text: {encoder: bert-small, mode: scratch, options: {dim: 8, depth: 1, heads: 1, vocabulary_size: 64}}
  pairs: {image-expression: 1.0, image-text: 1.0, expression-text: 1.0}
training: {epochs: 1, batch_size: 16, lr: 1e-3}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cohort of four patients, the first two trained on, and the run."""
    folder = tmp_path_factory.mktemp("annotate")
    cohort = small.cohort(folder, patients=4)
    fold = Fold(name="0", train=("S0", "S1"), test=("S2", "S3"))
    cohort.save_split(Split(name="patients", level="patient", folds=(fold,)))
    (folder / "words.yaml").write_text(RECIPE)
    train(str(folder / "words.yaml"), cohort=cohort.path, out=folder / "run", quiet=True)
    return cohort.path, folder / "run"


@pytest.fixture
def cohort(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy that a test may write to; its slides are beside it."""
    shutil.copytree(made[0].parent / "slides", tmp_path / "slides")
    return Path(shutil.copytree(made[0], tmp_path / "cohort"))


def label(cohort: Path, run: Path, **changes: Any) -> Any:
    return annotate(cohort, **{"model": run, "labels": CLASSES, "device": "cpu", "quiet": True, **changes})


def test_labels_are_the_classes_whose_words_lie_closest_and_stand_in_the_table(made, cohort):
    run = made[1]
    report = label(cohort, run)
    assert (report.annotated, report.exit_code) == (["S0", "S1", "S2", "S3"], 0)
    section = Cohort.open(cohort)["S2"]
    model = tg.TrainedModel.open(run)
    cosine = model.embed(section, "image")[0] @ model.embed_text(list(CLASSES)).T
    table = section.to_anndata()
    np.testing.assert_allclose(table.obsm["zero-shot_cosine"], cosine, atol=1e-5)
    np.testing.assert_allclose(
        table.obsm["zero-shot_probability"], softmax(cosine * model.model.logit_scale("image-text"), axis=1), atol=1e-4
    )
    assert list(table.obs["zero-shot"]) == [CLASSES[i] for i in cosine.argmax(axis=1)]
    about = json.loads(table.uns["triglyph"]["annotations"]["zero-shot"]["about"])
    assert about["strange"]["reference"]["sections"] == ["S0", "S1"]
    assert about["calibration"] is None
    assert report.counts["S2"]["tumour"] == (table.obs["zero-shot"] == "tumour").sum()
    # Counts and labels stay as they were.
    np.testing.assert_array_equal(table.X.toarray(), Cohort.open(made[0])["S2"].table.X.toarray())


def test_it_goes_on_where_it_was_and_asked_otherwise_replaces_its_own_name_alone(made, cohort, monkeypatch):
    run = made[1]
    label(cohort, run, sections=("S2",), name="words")
    label(cohort, run, sections=("S2",))
    path = cohort / "sections/S2/annotations/words.parquet"
    before = path.stat().st_mtime_ns
    report = label(cohort, run, name="words")
    assert (report.already, report.annotated) == (["S2"], ["S0", "S1", "S3"])
    assert path.stat().st_mtime_ns == before
    assert label(cohort, run, name="words", labels=("tumour", "fat")).annotated == ["S0", "S1", "S2", "S3"]
    section = Cohort.open(cohort)["S2"]
    assert section.annotations.read("words").classes == ("tumour", "fat")
    assert section.annotations.read("zero-shot").classes == CLASSES


def test_a_failing_section_loses_no_other_and_is_done_when_it_is_mended(made, cohort):
    run, slide = made[1], cohort.parent / "slides/S2.tif"
    whole = slide.read_bytes()
    shutil.rmtree(cohort / "sections/S2/embeddings", ignore_errors=True)
    slide.write_bytes(b"not a slide any more")
    report = label(cohort, run)
    assert (report.annotated, list(report.failed), report.exit_code) == (["S0", "S1", "S3"], ["S2"], 1)
    assert "S2.tif" in report.failed["S2"]
    slide.write_bytes(whole)
    again = label(cohort, run)
    assert (again.already, again.annotated, again.exit_code) == (["S0", "S1", "S3"], ["S2"], 0)


def test_a_calibration_is_fitted_on_training_labels_and_serves_a_cohort_without_any(made, cohort, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made[1], run)
    report = label(cohort, run, calibration="fit")
    fitted = json.loads(report.calibration.read_text())
    assert (fitted["sections"], fitted["patients"]) == (["S0", "S1"], ["P0", "P1"])
    first = Cohort.open(cohort)["S2"].annotations.read("zero-shot")
    scale, offset = (np.array([fitted["classes"][c][k] for c in CLASSES]) for k in ("scale", "offset"))
    np.testing.assert_allclose(first.probability, softmax(first.cosine * scale + offset, axis=1))
    # Elsewhere there is neither a label nor a training section; what is needed of them lies with the run.
    foreign = Cohort.create(tmp_path / "foreign")
    draft = small.draft("X", patient="X", folder=tmp_path, seed=2)
    draft.table.obs["label"] = ""
    foreign.add(draft)
    label(foreign.path, run, calibration=str(report.calibration), abstain="probability<0.5")
    with_file = Cohort.open(foreign.path)["X"].annotations.read("zero-shot")
    np.testing.assert_allclose(with_file.probability, first.probability, atol=1e-5)
    assert np.isfinite(with_file.distance).all()
    np.testing.assert_array_equal(with_file.label == "unsure", with_file.best < 0.5)
    assert (with_file.label == "unsure").sum() > 0
    with pytest.raises(ContractError, match="other classes, phrases or templates"):
        label(foreign.path, run, calibration=str(report.calibration), labels=("tumour", "stroma"))
    shutil.rmtree(run / "reference")
    with pytest.raises(ContractError, match="(?s)S0, S1 are not here.*--trained-on"):
        label(foreign.path, run)
    assert label(foreign.path, run, trained_on=cohort).already == []
    assert label(foreign.path, run).already == ["X"]


def test_what_was_never_seen_is_flagged_and_a_new_patient_of_the_same_kind_is_not():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(20, 20))

    def patient(shift: float = 0.0) -> np.ndarray:
        return (rng.normal(size=(200, 20)) + 0.7 * rng.normal(size=20)) @ mix + shift

    reference = Reference.fit([patient() for _ in range(8)], [f"P{i}" for i in range(8)], about={})
    threshold = reference.threshold(0.99)
    # Were training locations measured from themselves, a tenth of a new patient would be flagged.
    flagged = np.mean([(reference.distance(patient()) > threshold).mean() for _ in range(40)])
    assert 0.003 < flagged < 0.03
    assert (reference.distance(patient(shift=20.0)) > threshold).mean() > 0.95
    assert reference.about["left_out"] == "patients"
    # The unit and the zero of a feature are nobody's business; one that never varied matters only when it does.
    moved = [np.hstack([p * 1000 + 5, np.ones((len(p), 1))]) for p in (patient(), patient(), patient())]
    other = Reference.fit(moved, ["a", "b", "c"], about={})
    plain = Reference.fit([(m[:, :20] - 5) / 1000 for m in moved], ["a", "b", "c"], about={})
    assert other.threshold(0.99) == pytest.approx(plain.threshold(0.99), rel=0.15)


def test_tissue_of_another_stain_is_flagged(made, cohort, tmp_path):
    run, strange = made[1], small.draft("Y", patient="Y", folder=tmp_path, seed=9)
    pixels = tifffile.imread(strange.images[0].path)
    tifffile.imwrite(strange.images[0].path, pixels // 8, tile=(128, 128), photometric="rgb", metadata=None)
    opened = Cohort.open(cohort)
    opened.add(strange)
    report = label(cohort, run, sections=("S2", "Y"))
    n = opened["Y"].n_locations
    assert report.counts["Y"]["strange"] == n
    assert report.counts["S2"]["strange"] < n / 2
    assert label(cohort, run, sections=("Y",), ood=0.0).counts["Y"]["strange"] == 0


def test_geojson_outlines_locations_in_pixels_of_the_image_with_what_qupath_reads(made, cohort, tmp_path):
    report = label(cohort, made[1], out=tmp_path / "out", sections=("S2",), abstain="margin<0.02")
    found = json.loads((tmp_path / "out/S2.geojson").read_text())
    section = Cohort.open(cohort)["S2"]
    annotation = section.annotations.read("zero-shot")
    assert found["type"] == "FeatureCollection"
    assert len(found["features"]) == section.n_locations
    assert len({f["id"] for f in found["features"]}) == section.n_locations
    for i in (0, 7, 35):
        feature = found["features"][i]
        ring = np.array(feature["geometry"]["coordinates"][0])
        np.testing.assert_array_equal(ring[0], ring[-1])
        # 0.5 µm a pixel: spots of 55 µm are 110 pixels wide.
        np.testing.assert_allclose(ring[:-1].mean(axis=0), section.centres_um[i] / 0.5, atol=0.01)
        np.testing.assert_allclose(np.ptp(ring, axis=0), 110.0, atol=0.01)
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert properties["classification"]["name"] == annotation.label[i]
        assert all(0 <= v <= 255 for v in properties["classification"]["color"])
        told = properties["measurements"]
        assert told["probability: stroma"] == pytest.approx(annotation.probability[i, 1], abs=1e-5)
        assert {type(v) for v in told.values()} == {float}
    with (tmp_path / "out/summary.csv").open() as stream:
        rows = {row["section"]: row for row in csv.DictReader(stream)}
    assert int(rows["S2"]["unsure"]) == (annotation.margin < 0.02).sum() == report.counts["S2"]["unsure"]
    assert (tmp_path / "out/S2.png").read_bytes().startswith(b"\x89PNG")


def test_files_show_what_was_asked_last(made, cohort, tmp_path):
    out = tmp_path / "out"
    label(cohort, made[1], out=out, sections=("S2",))
    drawn = (out / "S2.geojson").stat().st_mtime_ns
    label(cohort, made[1], out=out, sections=("S2",))
    assert (out / "S2.geojson").stat().st_mtime_ns == drawn
    # Replaced without files, then asked for them: those of before are stale.
    label(cohort, made[1], sections=("S2",), labels=("tumour", "fat"))
    label(cohort, made[1], out=out, sections=("S2",), labels=("tumour", "fat"))
    assert "fat" in (out / "S2.geojson").read_text()


def test_tables_hold_labels_of_all_sections_over_genes_that_all_measured(made, cohort, tmp_path):
    narrow = small.draft("Z", patient="Z", folder=tmp_path, seed=5)
    narrow.table.var["measured"] = np.arange(12) < 9
    narrow.table.X = narrow.table.X.multiply(np.arange(12) < 9).tocsr()
    Cohort.open(cohort).add(narrow)
    label(cohort, made[1], out=tmp_path / "out", sections=("S2", "Z"), h5ad="one", ood=0.0)
    table = ad.read_h5ad(tmp_path / "out/annotated.h5ad")
    assert table.shape == (2 * 36, 9)
    assert set(table.obs["zero-shot"]) <= set(CLASSES)
    assert table.obsm["zero-shot_probability"].shape == (72, 3)
    assert set(table.uns["triglyph"]["sections"]) == {"S2", "Z"}
    label(cohort, made[1], out=tmp_path / "out", sections=("Z",), h5ad="each", ood=0.0)
    assert list(ad.read_h5ad(tmp_path / "out/Z.h5ad").obs["zero-shot"]) == list(table.obs["zero-shot"][36:])


def test_sections_without_an_image_are_left_out_or_read_by_their_genes(made, cohort, tmp_path):
    Cohort.open(cohort).add(small.draft("D", patient="D", seed=7))
    assert label(cohort, made[1], sections=("S2", "D")).absent == ["D"]
    with pytest.raises(ContractError, match="(?s)no section has a full-resolution image.*expression"):
        label(cohort, made[1], sections=("D",))
    report = label(cohort, made[1], sections=("D",), modality="expression", out=tmp_path / "out")
    assert report.annotated == ["D"]
    assert "no GeoJSON" in report.notes["D"]
    assert (tmp_path / "out/D.png").is_file()
    assert not (tmp_path / "out/D.geojson").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": ("tumour",)}, "every location would be of it"),
        ({"labels": ("tumour", "tumour")}, "given twice"),
        ({"labels": ("tumour", "unsure")}, "not decided"),
        ({"labels": ("tumour", " ")}, "blank"),
        ({"labels": ("none.yaml",)}, "no such file"),
        ({"labels": ("tumour", "stroma"), "abstain": "probability<0.5"}, "not calibrated"),
        ({"abstain": "sometimes"}, "not understood"),
        ({"abstain": "margin<2"}, "not understood"),
        ({"labels": ("tumor", "stroma"), "calibration": "fit"}, "labelled tumor; did you mean tumour"),
        ({"calibration": "none.json"}, "no such file"),
        ({"name": "a/b"}, "cannot name"),
        ({"ood": 1.5}, "quantile"),
        ({"h5ad": "one"}, "--out"),
        ({"sections": ("S9",)}, "no section 'S9'"),
    ],
)
def test_wrong_requests_are_refused_in_words_and_leave_nothing(made, changes, says):
    with pytest.raises(TriglyphError, match=says):
        label(*made, **changes)
    assert not list(made[0].glob("sections/*/annotations"))


def test_a_column_of_the_table_is_never_taken(made, cohort):
    assert "column 'label' of its own" in label(cohort, made[1], name="label", sections=("S2",)).failed["S2"]


def test_a_model_without_words_is_refused(made, tmp_path):
    silent = ["model.towers.text=null", "model.pairs.image-text=0", "model.pairs.expression-text=0"]
    train(str(made[0].parent / "words.yaml"), cohort=made[0], set=silent, out=tmp_path / "run", quiet=True)
    with pytest.raises(ContractError, match="reads image and expression, and no words"):
        label(made[0], tmp_path / "run")


def test_classes_come_with_synonyms_and_templates_from_a_file(tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text("classes: {tumour: [carcinoma, neoplasm], stroma: }\ntemplates: ['{} tissue']\n")
    prompts = asked([str(path)])
    assert prompts.sentences("tumour") == ["carcinoma tissue", "neoplasm tissue"]
    assert prompts.sentences("stroma") == ["stroma tissue"]
    with pytest.raises(RecipeError, match="stands alone"):
        asked([str(path), "tumour"])
    path.write_text("classes: {tumour: [], stroma: []}\ntemplates: ['tissue']\n")
    with pytest.raises(RecipeError, match="has not one {} for the phrase"):
        asked([str(path)])
    assert Abstain.parse("probability < 0.6", calibrated=True) == Abstain(by="probability", below=0.6)


def test_the_verb_takes_labels_one_after_the_other(made, cohort, capsys):
    assert "annotate" in app
    words = ["annotate", str(cohort), "--model", str(made[1]), "--labels", *CLASSES, "--sections", "S2"]
    assert main([*words, "--device", "cpu"]) == 0
    printed = capsys.readouterr().err
    assert "1 annotated" in printed
    assert "lymphoid" in printed
    assert main([*words[:5], "tumour", "--sections", "S2"]) == 2


def test_a_calibration_of_another_model_is_refused(made, tmp_path):
    path = tmp_path / "calibration.json"
    fitted = {"scale": 1.0, "offset": 0.0, "locations": 3}
    LabelCalibration(
        model="0" * 16,
        modality="image",
        prompts=asked(CLASSES),
        classes=dict.fromkeys(CLASSES, fitted),
        sections=(),
        patients=(),
    ).save(path)
    with pytest.raises(ContractError, match="fitted with another model"):
        label(*made, calibration=str(path))
