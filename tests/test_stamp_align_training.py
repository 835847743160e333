"""Stamp's second stage, trained end to end: both scales reach the model, and stopping it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import children
import small
from triglyph.apply.trained import TrainedModel
from triglyph.configs import deep_merge
from triglyph.metrics.result import read_results
from triglyph.models.method import RegionConfig
from triglyph.models.stamp_align import StampAlign, StampAlignConfig
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.regions import RegionCuts, shrink
from triglyph.tissue.split import Fold, Split
from triglyph.training.dataset import Locations, Visit, training_rows
from triglyph.training.loop import fit
from triglyph.training.recipe import load_recipe
from triglyph.workflows.bench_run import bench_run

RECIPE: dict[str, Any] = {
    "name": "align",
    "method": "stamp-align",
    "data": {"train": ["S0", "S1"], "val": ["S2"]},
    "model": {
        "dim": 8,
        "towers": {
            "image": {
                "encoder": "tile-vit",
                "mode": "scratch",
                "options": {"dim": 16, "depth": 1, "heads": 1, "patch_px": 16},
            },
            "expression": {"encoder": "gene-mlp", "mode": "scratch", "options": {"dim": 8, "hidden": 8, "genes": 10}},
        },
        "regions": {"draws": 2},
    },
    "training": {"epochs": 2, "batch_size": 12, "sections_per_batch": 2, "checkpoint_every": 2, "clip_norm": 0.5},
}
STEPS = 12


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small.cohort(tmp_path_factory.mktemp("align"), patients=4)


@pytest.fixture(scope="module")
def whole(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert children.run(children.fit, RECIPE, cohort.path, out) == 0
    return out


def test_all_four_losses_are_of_every_step_and_of_validation(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert len(lines) == STEPS
    wanted = {"patch_spot", "region_spot", "patch_region", "localisation", "total"}
    assert all(set(line["loss"]) == wanted and np.isfinite(line["loss"]["total"]) for line in lines)
    header = (whole / "metrics.csv").read_text().splitlines()[0]
    assert all(f"val_{name}" in header for name in wanted)
    assert "logit_scale_shared" in header


@pytest.mark.parametrize(("moment", "number"), [("step logged", 5), ("epoch logged", 1)])
def test_a_killed_run_ends_bit_for_bit_as_an_uninterrupted_one(
    cohort: Cohort, whole: Path, tmp_path: Path, moment: str, number: int
) -> None:
    out = tmp_path / "run"
    assert children.run(children.fit, RECIPE, cohort.path, out, moment, number) == -9
    assert children.run(children.fit, RECIPE, cohort.path, out) == 0
    for name in ("log.jsonl", "metrics.csv", "model/model.safetensors"):
        assert (whole / name).read_bytes() == (out / name).read_bytes(), name


def test_a_gate_changes_no_other_weight_of_a_run_that_clips_gradients(
    cohort: Cohort, whole: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert all(line["grad_norm"] > 0.5 for line in lines), "clipping takes part in every step"
    gated = deep_merge(RECIPE, {"model": {"fusion": "gated"}})
    assert children.run(children.fit, gated, cohort.path, tmp_path / "run") == 0
    plain, found = (load_file(run / "model/model.safetensors") for run in (whole, tmp_path / "run"))
    assert {name for name in found if name not in plain} == {"gate.gate.weight", "gate.gate.bias"}
    assert found["gate.gate.weight"].abs().sum() > 0
    assert all(torch.equal(tensor, found[name]) for name, tensor in plain.items())


def test_a_batch_holds_each_window_its_region_and_the_cell_that_it_is(cohort: Cohort, whole: Path) -> None:
    model = TrainedModel.open(whole).model
    assert isinstance(model, StampAlign)
    rows = training_rows([cohort["S0"], cohort["S1"]], ("image", "expression"), (("image",),))
    encoders = {m: model.encoder(m) for m in ("image", "expression")}
    data = Locations(rows, encoders, cached={}, wider=RegionConfig(draws=2))
    wanted = np.array([3, 40, 17])
    for epoch in (0, 1, 2):
        image = data[Visit(epoch, wanted)]["image"]
        np.testing.assert_array_equal(image["ref"], shrink(image["pixels"].numpy(), 16))
        card = encoders["image"].card
        cuts = RegionCuts(px=card.input_px, patch_um=card.window_um, seed=0)
        for i, row in enumerate(wanted):
            section = rows.sections[int(rows.section[row])]
            region, cell = cuts.read(section, rows.location[[row]], epoch % 2)
            np.testing.assert_array_equal(image["region"][i], region[0])
            assert int(image["cell"][i]) == int(cell[0])
    assert (np.array([int(c) for c in image["cell"]]) >= 0).all()


def test_the_window_is_where_its_cell_says(cohort: Cohort, whole: Path) -> None:
    model = TrainedModel.open(whole).model
    rows = training_rows([cohort["S0"]], ("image", "expression"), (("image",),))
    data = Locations(rows, {m: model.encoder(m) for m in model.modalities}, cached={}, wider=RegionConfig())
    image = data[np.arange(20)]["image"]
    for pixels, region, cell in zip(image["pixels"], image["region"], image["cell"], strict=True):
        small_window = pixels.numpy().astype(float).mean(axis=(0, 1))
        edges = np.linspace(0, len(region), 4).round().astype(int)
        cells = [
            region[edges[r] : edges[r + 1], edges[c] : edges[c + 1]].numpy().astype(float).mean(axis=(0, 1))
            for r in range(3)
            for c in range(3)
        ]
        away = [np.abs(x - small_window).max() for x in cells]
        assert int(np.argmin(away)) == int(cell)


def test_embeddings_are_of_both_modalities_and_need_no_region(cohort: Cohort, whole: Path) -> None:
    model = TrainedModel.open(whole)
    for modality in ("image", "expression"):
        values, present = model.embed(cohort["S2"], modality)
        assert values.shape == (36, 8)
        assert present.all()
        np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1.0, rtol=1e-5)


def test_the_judge_reads_a_run_by_each_of_its_fusions(cohort: Cohort, whole: Path, tmp_path: Path) -> None:
    fold = Fold(train=("S0", "S1"), test=("S3",))
    cohort.save_split(Split(name="fusing", level="patient", folds=(fold,)))
    for modality in ("fused", "fused-sum", "fused-concat"):
        out = bench_run(
            "linear-probe",
            cohort=cohort.path,
            out=tmp_path / modality,
            model=whole,
            split="fusing",
            set=[f"modality={modality}"],
            quiet=True,
        )
        rows = read_results(out)
        own = [r for r in rows if r.model == "run"]
        assert own
        assert {r.direction for r in rows} == {f"{modality}->label"}
        assert {"position", "library size", "stain-texture", "expression-pca-50"} <= {r.model for r in rows}
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["inputs"] == ["expression", "image"]
    model = TrainedModel.open(whole)
    values, present = model.embed(cohort["S3"], "fused")
    assert values.shape == (36, 16)
    assert present.all()


@pytest.mark.parametrize("mode", ["trained", "locked"])
def test_the_tiny_recipes_are_two_stages_of_one_model(cohort: Cohort, genes: Path, tmp_path: Path, mode: str) -> None:
    overrides = [f"model.towers.expression.mode={mode}", f"model.towers.expression.weights={genes}"]
    if mode == "locked":
        overrides.append("model.towers.expression.standardise=true")
    recipe = load_recipe("stamp-align-tiny", overrides=[*overrides, *SHORT])
    out = fit(recipe, cohort=cohort, out=tmp_path / "run", show=False)
    first, second = (TrainedModel.open(run).model.encoder("expression") for run in (genes, out))
    assert second.assets() == first.assets()
    assert second.options() == first.options()
    same = [torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)]
    assert all(same) == (mode == "locked")
    begun = json.loads((out / "towers.json").read_text())["expression"]["fingerprint"]
    assert begun == first.fingerprint()
    values, present = TrainedModel.open(out).embed(cohort["S3"], "fused")
    assert present.all()
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1.0, rtol=1e-5)


SHORT = ("data.split=null", "data.train=[S0, S1]", "training.epochs=1", "training.batch_size=36")


@pytest.fixture(scope="module")
def genes(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(
        load_recipe("stamp-genes-tiny", overrides=SHORT), cohort=cohort, out=tmp_path_factory.mktemp("genes") / "run"
    )


def test_shipped_recipes_are_read() -> None:
    for name in ("stamp-align", "stamp-align-tiny"):
        recipe = load_recipe(name)
        assert isinstance(recipe.model, StampAlignConfig)
    assert load_recipe("stamp-align").training.batch_size == 256
