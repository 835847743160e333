from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import children
import small
from triglyph.configs import deep_merge
from triglyph.errors import RecipeError, StorageError
from triglyph.training.loop import fit
from triglyph.training.recipe import typed
from triglyph.training.run import Run

RECIPE: dict[str, Any] = {
    "name": "resume",
    "data": {"train": ["S0", "S1"], "val": ["S2"]},
    "model": {
        "dim": 8,
        "head": {"kind": "mlp", "dropout": 0.2},
        "towers": {
            "image": {
                "encoder": "tile-vit",
                "mode": "scratch",
                "options": {"dim": 16, "depth": 1, "heads": 1, "patch_px": 32},
            },
            "expression": {"encoder": "gene-mlp", "mode": "scratch", "options": {"dim": 8, "hidden": 8, "genes": 10}},
            "text": {
                "encoder": "bert-small",
                "mode": "scratch",
                "options": {"dim": 8, "depth": 1, "heads": 1, "vocabulary_size": 64},
            },
        },
        "pairs": {"image-expression": 1.0, "image-text": 0.5, "expression-text": 1.0},
    },
    "training": {
        "epochs": 3,
        "batch_size": 16,
        "frozen_warmup": 0.2,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "checkpoint_every": 3,
    },
}
STEPS = 12


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.cohort(tmp_path_factory.mktemp("resume")).path


@pytest.fixture(scope="module")
def whole(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert children.run(children.fit, RECIPE, cohort, out) == 0
    return out


def assert_equal_runs(a: Path, b: Path) -> None:
    """Logs, release and checkpoint, bit for bit."""
    for name in ("log.jsonl", "metrics.csv", "model/model.safetensors", "model/config.json", "towers.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    left, right = (torch.load(p / "checkpoints/last.ckpt", weights_only=True) for p in (a, b))
    assert left["step"] == right["step"] == STEPS
    for key in left["model"]:
        assert torch.equal(left["model"][key], right["model"][key]), key
    for number, state in left["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, right["optimizer"]["state"][number][key]), key


def test_a_run_logs_every_step_once_and_learns(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS))
    rows = (whole / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 3
    assert "val_total" in rows[0]
    assert lines[-1]["loss"]["total"] < lines[0]["loss"]["total"]
    manifest = Run(whole).manifest()
    assert manifest["training_sections"] == ["S0", "S1"]
    assert manifest["training_patients"] == ["P0", "P1"]
    assert manifest["starts"] == 1


@pytest.mark.parametrize(
    ("moment", "number", "workers"),
    [
        ("towers written", 1, 0),
        ("step logged", 2, 0),
        ("step logged", 5, 0),
        ("step logged", 5, 2),
        ("line half written", 8, 0),
        ("epoch logged", 1, 0),
        ("epoch logged", 2, 2),
        ("checkpoint half written", 3, 0),
        ("checkpoint written", 4, 0),
        ("checkpoint written", 6, 0),
        ("release written", 1, 0),
    ],
)
def test_a_killed_run_started_again_ends_bit_for_bit_as_an_uninterrupted_one(
    cohort: Path, whole: Path, tmp_path: Path, moment: str, number: int, workers: int
) -> None:
    recipe = deep_merge(RECIPE, {"training": {"workers": workers}})
    out = tmp_path / "run"
    assert children.run(children.fit, recipe, cohort, out, moment, number) == -9
    assert not (out / "manifest.json").exists()
    if workers:
        assert children.gone(out)
    assert children.run(children.fit, recipe, cohort, out) == 0
    assert_equal_runs(whole, out)


def test_a_run_killed_at_random_times_ends_the_same(cohort: Path, whole: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    out, kills = tmp_path / "run", 0
    for delay in [0.05, *rng.uniform(0.05, 0.6, 9)]:
        kills += children.run(children.fit, RECIPE, cohort, out, kill_after=float(delay)) == -9
    assert children.run(children.fit, RECIPE, cohort, out) == 0
    assert_equal_runs(whole, out)
    assert kills > 0


def test_a_finished_run_run_again_does_nothing(cohort: Path, whole: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    assert fit(typed(RECIPE, where="test"), cohort=cohort, out=whole, show=False) == whole
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == before


def test_another_recipe_in_the_same_folder_is_refused_with_the_keys(cohort: Path, whole: Path) -> None:
    other = deep_merge(RECIPE, {"training": {"lr": 0.5}, "model": {"dim": 9}})
    with pytest.raises(RecipeError, match=r"model\.dim: 8 there, 9 now; training\.lr: 0\.001 there, 0\.5 now"):
        fit(typed(other, where="test"), cohort=cohort, out=whole, show=False)
    more_workers = deep_merge(RECIPE, {"training": {"workers": 1}})
    fit(typed(more_workers, where="test"), cohort=cohort, out=whole, show=False)


def test_other_data_under_the_same_recipe_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cohort\.sections\.S0"):
        fit(typed(RECIPE, where="test"), cohort=small.cohort(tmp_path, side=5), out=whole, show=False)


def test_a_folder_with_other_things_is_left_alone(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(StorageError, match=r"other things \(thesis\.docx\)"):
        fit(typed(RECIPE, where="test"), cohort=cohort, out=tmp_path, show=False)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]


def test_a_checkpoint_that_holds_code_is_not_run(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    children.run(children.fit, RECIPE, cohort, out, "checkpoint written", 1)
    trap = tmp_path / "trap"
    torch.save({"format": 1, "logs": {}, "x": _Trap(trap)}, out / "checkpoints/last.ckpt")
    with pytest.raises(StorageError, match="does not load"):
        Run(out).resume()
    assert not trap.exists()


def test_a_log_that_lost_lines_is_noticed(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    children.run(children.fit, RECIPE, cohort, out, "checkpoint written", 2)
    (out / "log.jsonl").write_text("")
    with pytest.raises(StorageError, match="bytes are missing"):
        Run(out).resume()


class _Trap:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_cpu_minutes_are_those_of_the_run_and_not_of_its_process(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = iter([1000.0])
    spent = 1000.0

    def now() -> float:
        nonlocal spent
        spent += next(before, 0.25)
        return spent

    monkeypatch.setattr("triglyph.training.loop.cpu_seconds", now)
    recipe = deep_merge(RECIPE, {"training": {"epochs": 1}})
    out = fit(typed(recipe, where="test"), cohort=cohort, out=tmp_path / "run", show=False)
    assert 0 < Run(out).manifest()["cpu_minutes"] < 1
