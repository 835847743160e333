from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from triglyph.configs import deep_merge, parse_override
from triglyph.encoders import registry
from triglyph.errors import RecipeError
from triglyph.training.recipe import differences, load_recipe, shipped_recipes

BASE: dict[str, Any] = {
    "name": "test",
    "data": {"split": "patients"},
    "model": {
        "dim": 2048,
        "head": {"kind": "spatialwhisperer"},
        "towers": {
            "image": {"encoder": "stain-texture", "mode": "locked"},
            "expression": {"encoder": "gene-mlp", "mode": "scratch", "options": {"hidden": 64}},
            "text": {"encoder": "bert-small", "mode": "scratch"},
        },
        "pairs": {"image-expression": 1.0, "text-expression": 2.0},
    },
    "training": {"lr": 1e-5, "batch_size": 512},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(BASE))
    return file


def test_an_override_of_one_key_leaves_its_neighbours(path: Path) -> None:
    # The defect of the reference: a delta inside `model` brought back the default width of the shared space.
    recipe = load_recipe(path, overrides=["model.towers.text.mode=locked", "model.head.dropout=0.1"])
    assert recipe.model.dim == 2048
    assert recipe.model.head.kind == "spatialwhisperer"
    assert recipe.model.towers["text"].encoder == "bert-small"
    assert recipe.model.towers["expression"].options == {"hidden": 64}
    assert recipe.training.batch_size == 512


def test_overrides_reach_into_options_and_are_typed(path: Path) -> None:
    recipe = load_recipe(
        path,
        overrides=["model.towers.expression.options.genes=50", "training.lr=3e-4", "training.betas=[0.9, 0.99]"],
    )
    assert recipe.model.towers["expression"].options == {"hidden": 64, "genes": 50}
    assert recipe.training.lr == pytest.approx(3e-4)
    assert recipe.training.betas == (0.9, 0.99)


def test_a_later_override_wins(path: Path) -> None:
    assert load_recipe(path, overrides=["seed=1", "seed=2"]).seed == 2


def test_towers_and_pairs_are_taken_out_by_null(path: Path) -> None:
    recipe = load_recipe(path, overrides=["model.towers.text=null", "model.pairs.text-expression=null"])
    assert recipe.model.modalities == ("image", "expression")
    assert recipe.model.pairs == {"image-expression": 1.0}


def test_names_of_pairs_come_in_one_order(path: Path) -> None:
    assert list(load_recipe(path).model.pairs) == ["image-expression", "expression-text"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epoch=3", r"training.epoch is no key of a recipe; did you mean epochs\?"),
        ("model.towers.image.encodr=x", r"did you mean encoder\?"),
        ("model.head.kind=linar", "model.head.kind"),
        ("traning.lr=1", r"traning is no key of a recipe; did you mean training"),
        ("training.lr=fast", "training.lr"),
        ("training.lr=-1", "training.lr"),
        ("model.pairs.image-protein=1", "'image-protein' is not a pair"),
        ("model.pairs.image-text=-1", "must be 0 or more"),
        ("model.towers.text=null", "pairs name text, which has no tower"),
        ("model.pairs.expression-image=1", "image-expression is given twice"),
        ("model.pairs.text-expression=0", "the tower of text is in no pair"),
        ("data.train=[S1]", "give either split, or train"),
        ("model.towers.text.standardise=true", "standardise needs mode: locked"),
        ("noequals", "is not key=value"),
        ("a..b=1", "is not key=value"),
        ("training.lr=[1", "is not YAML"),
    ],
)
def test_what_is_not_understood_is_named(path: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(path, overrides=[override])


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({**BASE, "data": {}}))
    with pytest.raises(RecipeError, match="give either split, or train"):
        load_recipe(file)
    file.write_text(yaml.safe_dump({k: v for k, v in BASE.items() if k != "name"}))
    with pytest.raises(RecipeError, match="name is missing"):
        load_recipe(file)


def test_a_key_given_twice_in_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: a\nname: b\n")
    with pytest.raises(RecipeError, match="given twice: name"):
        load_recipe(file)


def test_unreadable_files_are_clear_errors(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    for text in ("a: [", "- just\n- a list", ""):
        file.write_text(text)
        with pytest.raises(RecipeError):
            load_recipe(file)


def test_an_unknown_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match=r"did you mean tiny\?"):
        load_recipe("tinny")


def test_what_is_written_is_read_back_equal(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    recipe.write(tmp_path / "out.yaml")
    assert load_recipe(tmp_path / "out.yaml") == recipe
    assert "min_lr" in (tmp_path / "out.yaml").read_text()


def test_merging_never_changes_what_it_is_given() -> None:
    base = {"a": {"b": 1, "c": {"d": 2}}}
    merged = deep_merge(base, parse_override("a.c.e=3"))
    assert merged == {"a": {"b": 1, "c": {"d": 2, "e": 3}}}
    assert base == {"a": {"b": 1, "c": {"d": 2}}}


def test_differences_name_leaves_on_both_sides() -> None:
    assert differences({"a": {"b": 1}, "x": 1}, {"a": {"b": 2, "c": 3}, "x": 1}) == {"a.b": (1, 2), "a.c": (None, 3)}


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_whole_and_name_encoders_that_exist(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary
    for modality, tower in recipe.model.towers.items():
        assert registry.card(tower.encoder).modality == modality


def test_recipes_are_shipped() -> None:
    assert {"tiny", "demo", "demo-stain-texture", "her2st"} <= set(shipped_recipes())


def test_streaming_is_for_batches_of_neighbourhoods_alone() -> None:
    with pytest.raises(RecipeError, match="sections_at_once"):
        load_recipe("demo", overrides=["training.sections_at_once=4"])
