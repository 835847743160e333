"""HESCAPE's experiment: every cell is trained once, judged against the encoder as it came, and told in one table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import small
from triglyph.cli import app
from triglyph.errors import RecipeError, SplitError
from triglyph.metrics.result import Result, read_results
from triglyph.report.alignment_effect import Effect, changes, figure, markdown, read_effects
from triglyph.tissue.split import Fold, Split
from triglyph.training.loop import fit
from triglyph.training.recipe import load_recipe
from triglyph.training.run import Run
from triglyph.workflows.hescape import hescape

TINY = [
    "model.dim=8",
    "model.towers.image.options={dim: 16, depth: 1, heads: 1, patch_px: 32}",
    "model.towers.image.lora.rank=2",
    "model.towers.expression.options={dim: 8, hidden: 8, genes: 10}",
    "training.epochs=1",
    "training.batch_size=16",
]


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = []
    for level in ("0x", "2x"):
        folder = tmp_path_factory.mktemp(level)
        cohort = small.cohort(folder, patients=5)
        fold = Fold(name="0", train=("S0", "S1"), test=("S2", "S3", "S4"))
        cohort.save_split(Split(name="patients", level="patient", folds=(fold,)))
        made.append(cohort.path.rename(folder / f"batch-{level}"))
    return made


@pytest.fixture(scope="module")
def tower(cohorts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tile-vit trained before."""
    sets = [*TINY, "model.towers.image.mode=scratch", "data.split=null", "data.train=[S0, S1]"]
    return fit("hescape-tiny", overrides=sets, cohort=cohorts[0], out=tmp_path_factory.mktemp("t") / "r", show=False)


@pytest.fixture(scope="module")
def done(cohorts: list[Path], tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hescape(**asked(cohorts, tower), out=tmp_path_factory.mktemp("experiment") / "out")


def asked(cohorts: list[Path], tower: Path) -> dict[str, Any]:
    return {
        "cohort": cohorts,
        "split": "patients",
        "image_weights": [f"tile-vit={tower}"],
        "gene_encoders": ["gene-linear"],
        "objectives": ["siglip"],
        "seeds": 2,
        "set": TINY,
        "quiet": True,
    }


def test_every_cell_is_trained_and_judged_with_every_seed(done: Path) -> None:
    cells = {
        f"{image} + gene-linear, siglip" for image in ("stain-texture (frozen)", "tile-vit (frozen)", "tile-vit (lora)")
    }
    about = json.loads((done / "experiment.json").read_text())
    assert set(about["cells"]) == cells
    assert about["left_out"] == ["stain-texture: nothing to adapt, frozen only"]
    for cohort in ("batch-0x", "batch-2x"):
        rows = read_results(done / cohort)
        for task in ("expression", "retrieval", "batch-effect"):
            assert {r.seed for r in rows if r.task == task and r.model in cells} == {0, 1}, task
            assert cells <= {r.model for r in rows if r.task == task}, task
        # The encoder as it came is judged once, under the same constants but for what is read of it.
        assert {r.model for r in rows if r.role == "baseline"} == {"stain-texture", "tile-vit"}
        assert all(r.level == "patient" for r in rows)
        control = {r.model for r in rows if r.role == "control"}
        assert control == {"stain-texture (frozen) + untrained head", "tile-vit (frozen) + untrained head"}
    with (done / "effects.csv").open() as stream:
        table = list(csv.DictReader(stream))
    told = {(c, n) for c in ("batch-0x", "batch-2x") for n in cells | control}
    assert {(row["cohort"], row["cell"]) for row in table} == told
    assert {row["verdict"] for row in table} == {"too few patients for a claim"}
    assert (done / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert "tile-vit (lora) + gene-linear, siglip" in (done / "table.md").read_text()


def test_cells_are_what_their_names_say(done: Path, tower: Path) -> None:
    recipes = {p.parent: load_recipe(p) for p in (done / "batch-0x" / "cells").rglob("recipe.yaml")}
    assert len(recipes) == 6
    assert {r.seed for r in recipes.values()} == {0, 1}
    for folder, recipe in recipes.items():
        image, genes = recipe.model.towers["image"], recipe.model.towers["expression"]
        assert recipe.model.objective == "siglip"
        assert image.mode == ("lora" if "tile-vit-lora" in str(folder) else "locked")
        assert image.weights == (str(tower.resolve()) if image.encoder == "tile-vit" else None)
        assert image.standardise == (image.encoder == "stain-texture")
        assert image.head is not None
        assert (genes.encoder, genes.options["hidden"]) == ("gene-mlp", 0)
    adapted = next(f for f in recipes if "tile-vit-lora" in str(f))
    learnt = Run(adapted).manifest()["parameters"]
    assert 0 < learnt["learnt"] < learnt["all"]


def test_run_again_it_trains_and_judges_nothing(done: Path, cohorts: list[Path], tower: Path) -> None:
    def stamps() -> dict[Path, int]:
        files = [p for part in ("cells", "unimodal") for p in done.glob(f"*/{part}/**/*") if p.is_file()]
        return {p: p.stat().st_mtime_ns for p in files}

    before, table = stamps(), (done / "table.md").read_text()
    hescape(**asked(cohorts, tower), out=done)
    assert stamps() == before
    assert (done / "table.md").read_text() == table


def test_what_cannot_be_run_is_refused_before_anything_is(cohorts: list[Path], tmp_path: Path) -> None:
    for change, said in (
        ({"image_weights": None}, "tile-vit starts untrained"),
        ({"image_weights": ["tile-vit"]}, "is not NAME=FOLDER"),
        ({"image_encoders": ["tile-wit"]}, "no encoder is called"),
        ({"image_encoders": ["stain-texture"], "tuning": ["lora"]}, "0 ways to align"),
        ({"cohort": [cohorts[0], cohorts[0]]}, "a name of its own"),
        ({"seeds": 0}, "0 seeds"),
    ):
        with pytest.raises(RecipeError) as error:
            hescape(**{**asked(cohorts, tmp_path), **change}, out=tmp_path / "out")  # type: ignore[arg-type]
        assert said in str(error.value) + error.value.mend
        assert not list(tmp_path.glob("out/*/cells"))


def test_a_split_that_fails_its_audit_is_not_used(tower: Path, tmp_path: Path) -> None:
    leaky = small.cohort(tmp_path, patients=2)
    leaky.add(small.draft("S9", patient="P9", folder=tmp_path / "slides", seed=0))  # S0, as of somebody else
    fold = Fold(name="0", train=("S0",), test=("S1", "S9"))
    leaky.save_split(Split(name="patients", level="patient", folds=(fold,)))
    with pytest.raises(SplitError, match="the audit fails"):
        hescape(**asked([leaky.path], tower), out=tmp_path / "out")


def test_the_verb_is_understood() -> None:
    words = "hescape --cohort A --cohort B --split patients --out DIR --image-weights tile-vit=RUN --objectives siglip"
    command, bound, _ = app.parse_args(words.split(), exit_on_error=False, print_error=False)
    assert command.__name__ == "hescape"
    assert bound.arguments["cohort"] == [Path("A"), Path("B")]
    with pytest.raises(Exception, match="triplet"):
        app.parse_args([*words.split()[:-1], "triplet"], exit_on_error=False, print_error=False)


def test_the_published_sweep_is_a_recipe() -> None:
    recipe = load_recipe("hescape")
    image = recipe.model.towers["image"]
    assert image.lora.model_dump() | {"targets": None} == {"rank": 8, "alpha": 16.0, "dropout": 0.1, "targets": None}
    assert (recipe.model.dim, recipe.model.temperature.init, recipe.model.temperature.init_bias) == (128, 0.07, -10.0)
    how = recipe.training
    assert (how.batch_size, how.lr, how.weight_decay, how.clip_norm, how.betas) == (256, 1e-5, 0.01, 5.0, (0.9, 0.999))
    assert round(how.warmup * 20_000) == 782


# ---- what the table says


def rows(values: dict[str, list[list[float]]], *, image: str = "cnn") -> list[Result]:
    """Model -> (patients, seeds) Pearson."""
    return [
        Result(
            task="expression", protocol="expression/1/x", metric="pearson", value=v, model=model, split="s",
            role="baseline" if model == image else "method", level="patient", aggregation="per-patient",
            group=f"P{p}", seed=None if model == image else k,
        )
        for model, table in values.items()
        for p, seeds in enumerate(table)
        for k, v in enumerate(seeds)
    ]  # fmt: skip


CELL = "cnn (frozen) + gene-mlp, clip"


def effects(shift: dict[str, float], n: int = 8) -> list[Effect]:
    """An alignment that adds `shift` to each cohort's patients."""
    rng = np.random.default_rng(0)
    found = {}
    for cohort, by in shift.items():
        before = rng.uniform(0.1, 0.3, (n, 1))
        after = before + by + np.array([-0.01, 0.01]) + np.linspace(-0.005, 0.005, n)[:, None]
        found[cohort] = rows({"cnn": before.tolist(), CELL: after.tolist()})
    return read_effects(found, {CELL: "cnn"})


def test_effects_are_differences_of_patients_with_seeds_averaged_inside() -> None:
    (one,) = effects({"tissue": -0.05})
    np.testing.assert_allclose(one.differences, -0.05 + np.linspace(-0.005, 0.005, 8))
    assert one.paired.n_patients == 8
    assert one.paired.difference == pytest.approx(-0.05)
    assert (one.paired.wins, one.paired.losses, one.paired.verdict) == (0, 8, "worse")
    assert one.adapted is None
    assert one.control is None
    assert f"| {CELL} | " in markdown([one])


def test_what_training_adds_is_told_from_what_the_head_does_by_itself() -> None:
    before = [[0.2 + 0.01 * p] for p in range(8)]
    drawn = "cnn (frozen) + untrained head"
    found = rows({"cnn": before, CELL: [[x - 0.02] for (x,) in before], drawn: [[x - 0.03] for (x,) in before]})
    cell, control = read_effects({"tissue": found}, {CELL: "cnn", drawn: "cnn"})
    assert cell.paired.difference == pytest.approx(-0.02)
    assert cell.control is not None
    assert cell.control.difference == pytest.approx(0.01)
    assert control.control is None
    assert control.paired.difference == pytest.approx(-0.03)


def test_the_change_with_batch_effect_is_tested_on_the_same_patients() -> None:
    ((group, cell, moved),) = changes(effects({"batch-0x": 0.02, "batch-1x": -0.01, "batch-2x": -0.08}))
    assert (group, cell) == ("batch", CELL)
    assert moved.difference == pytest.approx(-0.10)
    assert (moved.a, moved.b, moved.verdict) == ("batch-2x", "batch-0x", "worse")
    assert changes(effects({"batch-0x": 0.02, "other-1x": -0.01})) == []
    unlike = [*effects({"batch-0x": 0.0}), *effects({"batch-1x": 0.0}, n=7)]
    assert changes(unlike) == []


def test_the_figure_is_drawn_also_without_intervals() -> None:
    assert figure(effects({"batch-0x": 0.0, "batch-1x": 0.1}, n=2))[:4] == b"\x89PNG"
