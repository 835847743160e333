"""The bridge between words and images: who sees what in each arm, and how its gains are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import small
from triglyph.bench.through_genes import ThroughGenes
from triglyph.cli import app
from triglyph.errors import ContractError, RecipeError
from triglyph.metrics.result import read_results
from triglyph.report.transitive import ratio
from triglyph.tissue.split import Fold, Split
from triglyph.training.run import Run
from triglyph.workflows.transitive import ALL, ARMS, BETWEEN, BRIDGE, DIRECT, SHUFFLED, transitive

TINY = [
    "model.dim=8",
    "model.towers.expression.options={dim: 8, hidden: 8, genes: 10}",
    "model.towers.text.options={dim: 8, depth: 1, heads: 1, vocabulary_size: 64}",
    "training.epochs=1",
    "training.batch_size=16",
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """P0 to P2 with images, of which two are tested, and two donors without."""
    folder = tmp_path_factory.mktemp("bridge")
    made = small.cohort(folder, patients=4)
    for d in range(2):
        made.add(small.draft(f"D{d}", patient=f"D{d}", seed=20 + d))
    fold = Fold(name="0", train=("S0", "S1", "D0", "D1"), test=("S2", "S3"))
    made.save_split(Split(name="patients", level="patient", folds=(fold,)))
    made.save_split(Split(name="no-donors", level="patient", folds=(fold.model_copy(update={"train": ("S0", "S1")}),)))
    return made.path


@pytest.fixture(scope="module")
def done(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = tmp_path_factory.mktemp("words") / "held-out.yaml"
    prompts.write_text(yaml.safe_dump({"tumour": ["neoplasm"], "stroma": [], "lymphoid": []}))
    out = tmp_path_factory.mktemp("experiment") / "out"
    return transitive(**asked(cohort), out=out, held_out_prompts=prompts)


def asked(cohort: Path) -> dict[str, Any]:
    return {"cohort": cohort, "split": "patients", "seeds": 1, "set": TINY, "quiet": True}


def test_the_bridge_sees_no_word_of_a_patient_and_no_image_of_a_donor(done: Path) -> None:
    rows = {arm: Run(done / "cells" / arm.replace(" ", "-") / "seed-0/run").manifest()["rows"] for arm in ARMS}
    for arm in (BRIDGE, SHUFFLED):
        assert "image+expression+text" not in rows[arm]
        assert rows[arm]["image+expression"] == 72
        assert rows[arm]["expression+text"] == rows[arm]["text"] > 0
    assert set(rows[DIRECT]) == {"rows", "left_out", "image", "text", "image+text"}
    assert set(rows[BETWEEN]) == {"rows", "left_out", "expression", "text", "expression+text"}
    assert rows[BETWEEN]["text"] == rows[BRIDGE]["text"] < rows[ALL]["text"]
    assert rows[ALL]["image+expression+text"] > 0


def test_every_arm_is_judged_between_image_and_text_alone(done: Path) -> None:
    rows = read_results(done)
    for arm in ARMS:
        mine = [r for r in rows if r.model == arm]
        assert {r.direction for r in mine if r.task == "retrieval"} == {"image->text", "text->image"}
        assert {r.direction for r in mine if r.task == "zero-shot"} == {"text->image"}
        assert {r.level for r in mine} == {"patient"}
        assert [r for r in rows if r.model == f"{arm}: held-out words"]
    for name in ("table.md", "figure.png", "transitive.csv"):
        assert (done / name).stat().st_size > 0


def test_predicted_profiles_are_embedded_as_expression_is(done: Path, cohort: Path) -> None:
    # Given the true profiles as predictions, images are embedded as the expression itself.
    from triglyph.apply.trained import TrainedModel
    from triglyph.metrics.expression import log1p_cp10k
    from triglyph.tissue.cohort import Cohort

    trained = TrainedModel.open(done / "cells/genes-between/seed-0/run")
    section = Cohort.open(cohort)["S2"]
    counts, symbols, ids, _ = section.expression()
    truth = log1p_cp10k(counts).toarray()
    every = np.ones(len(truth), dtype=bool)
    genes = tuple(zip(symbols, ids, strict=True))
    through = ThroughGenes(trained, lambda s: (truth, every), lambda x: x, genes, ())
    found, present = through.embed(section, "image")
    assert present.all()
    np.testing.assert_allclose(found, trained.embed(section, "expression")[0], atol=1e-4)


def test_a_bridge_without_donors_or_a_tower_is_refused(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="2 training sections with an image and 0 without"):
        transitive(**{**asked(cohort), "split": "no-donors"}, out=tmp_path / "a")
    two = ["model.towers.text=null", "model.pairs.image-text=0", "model.pairs.expression-text=0"]
    with pytest.raises(RecipeError, match="needs an image, an expression and a text tower"):
        transitive(**{**asked(cohort), "set": [*TINY, *two]}, out=tmp_path / "b")


def test_the_share_of_a_gain_is_a_ratio_of_means_with_a_jackknife_interval() -> None:
    rng = np.random.default_rng(0)
    to = rng.normal(1.0, 0.2, 30)
    value, low, high = ratio(0.8 * to + rng.normal(0, 0.05, 30), to) or (0, 0, 0)
    assert low < 0.8 < high
    assert value == pytest.approx(0.8, abs=0.03)
    assert high - low < 0.1
    assert ratio(to, -to) is None


def test_the_verb_is_on_the_command_line() -> None:
    assert "transitive" in app
