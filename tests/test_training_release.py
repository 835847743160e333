from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import children
import small
from test_training_resume import RECIPE
from triglyph.apply.trained import TrainedModel
from triglyph.configs import deep_merge
from triglyph.errors import ContractError, StorageError, WeightsError
from triglyph.models.alignment import Alignment
from triglyph.tissue.cohort import Cohort
from triglyph.training.refit import refit_heads
from triglyph.training.release import load_model, save_model
from triglyph.training.schedule import reproducible, seed_step

LOCKED = deep_merge(
    RECIPE,
    {
        "model": {
            "towers": {"image": {"encoder": "stain-texture", "mode": "locked", "options": None, "standardise": True}}
        }
    },
)
LOCKED["model"]["towers"]["image"]["options"] = {}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small.cohort(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a locked, standardised image tower and two learnt ones."""
    out = tmp_path_factory.mktemp("run") / "r"
    assert children.run(children.fit, LOCKED, cohort.path, out) == 0
    return out


def test_a_release_loads_to_the_same_embeddings(cohort: Cohort, run: Path, tmp_path: Path) -> None:
    first = TrainedModel.open(run)
    save_model(first.model, tmp_path / "again")
    second = load_model(tmp_path / "again")
    assert not second.training
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    section = cohort["S2"]
    for modality in first.modalities:
        values, there = first.embed(section, modality)
        np.testing.assert_allclose(np.linalg.norm(values[there], axis=1), 1, atol=1e-5)
        assert np.isnan(values[~there]).all()
        np.testing.assert_array_equal(values, TrainedModel(second, {}).embed(section, modality)[0])


def test_a_locked_encoder_is_named_and_not_copied(run: Path) -> None:
    config = json.loads((run / "model/config.json").read_text())
    assert {m: t["saved"] for m, t in config["towers"].items()} == {"image": False, "expression": True, "text": True}
    assert not any(name.startswith("encoders.image.") for name in load_file(run / "model/model.safetensors"))


def test_free_text_and_captions_meet_in_one_space(cohort: Cohort, run: Path) -> None:
    model, section = TrainedModel.open(run), cohort["S2"]
    values, there = model.embed(section, "text")
    texts = [c for c in section.captions if c]
    np.testing.assert_allclose(model.embed_text(texts), values[there], atol=1e-5)
    with pytest.raises(ContractError, match="blank"):
        model.embed_text(["tumour", " "])


def test_statistics_of_standardised_features_are_those_of_training_rows(cohort: Cohort, run: Path) -> None:
    model = TrainedModel.open(run)
    pooled = np.concatenate([model.pooled(cohort[s], "image")[0] for s in ("S0", "S1")])
    np.testing.assert_allclose(model.model.scaler("image").mean.numpy(), pooled.mean(0), rtol=1e-4, atol=1e-5)


def test_the_manifest_says_what_was_seen(run: Path) -> None:
    model = TrainedModel.open(run)
    assert model.training_sections == ("S0", "S1", "S2")
    assert model.split_name == ""
    assert model.manifest["encoders"]["image"]["mode"] == "locked"
    assert model.manifest["rows"]["image+expression+text"] > 0


def damaged(run: Path, folder: Path, change: Any) -> Path:
    """A copy of the release with its tensors changed."""
    folder.mkdir()
    (folder / "config.json").write_bytes((run / "model/config.json").read_bytes())
    tensors = load_file(run / "model/model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_releases_load_strictly(run: Path, tmp_path: Path) -> None:
    name = "heads.text.4.bias"
    with pytest.raises(WeightsError, match=f"missing: {name}"):
        load_model(damaged(run, tmp_path / "a", lambda t: t.pop(name)))
    with pytest.raises(WeightsError, match="left over: more"):
        load_model(damaged(run, tmp_path / "b", lambda t: t.update(more=torch.zeros(1))))
    with pytest.raises(WeightsError, match=f"of another shape: {name}"):
        load_model(damaged(run, tmp_path / "c", lambda t: t.update({name: torch.zeros(3)})))
    with pytest.raises(WeightsError, match="not the one this model was trained with"):
        load_model(damaged(run, tmp_path / "d", lambda t: t["encoders.expression.first.weight"].add_(1)))
    with pytest.raises(StorageError, match="no such file"):
        load_model(tmp_path)
    (tmp_path / "c/model.safetensors").write_bytes(b"cut off")
    with pytest.raises(WeightsError, match="not readable"):
        load_model(tmp_path / "c")


def test_loading_leaves_the_random_state_alone(run: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(run / "model")
    assert torch.equal(torch.rand(3), expected)


def test_training_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with reproducible(on_cpu=True):
        seed_step(0, 1, 2)
        first = torch.rand(3)
        seed_step(0, 1, 2)
        assert torch.equal(torch.rand(3), first)
        seed_step(0, 2, 2)
        assert not torch.equal(torch.rand(3), first)
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_unfinished_run_is_not_opened(run: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    with pytest.raises(StorageError, match="the run is not finished"):
        TrainedModel.open(tmp_path)
    with pytest.raises(StorageError, match="not a run"):
        TrainedModel.open(tmp_path / "nowhere")


# ---- heads fitted again


def planted(model: Alignment, n: int = 600, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features of which each modality is a linear view of one hidden cause; some rows lack some."""
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(n, 6))
    found = {}
    for m in model.modalities:
        dim = model.encoder(m).card.dim
        values = (cause @ rng.normal(size=(6, dim)) + 0.1 * rng.normal(size=(n, dim))).astype(np.float32)
        if m in model.scalers:
            scale = model.scaler(m).scale.numpy()
            values = values / np.where(scale > 0, scale, 1) + model.scaler(m).mean.numpy()
        here = rng.random(n) < 0.9
        values[~here] = np.nan
        found[m] = values, here
    return found


def recall(model: Alignment, features: dict[str, tuple[np.ndarray, np.ndarray]]) -> float:
    """Recall@10 of expression by image over rows that have both."""
    both = features["image"][1] & features["expression"][1]
    with torch.no_grad():
        a, b = (model.embed(m, torch.from_numpy(features[m][0][both])).numpy() for m in ("image", "expression"))
    scores = a @ b.T
    return float(((scores > np.diag(scores)[:, None]).sum(1) < 10).mean())


def test_heads_fitted_again_find_the_correspondence_and_shuffled_ones_do_not(run: Path) -> None:
    model = TrainedModel.open(run).model
    before = {name: t.clone() for name, t in model.state_dict().items()}
    features = planted(model)
    n = int((features["image"][1] & features["expression"][1]).sum())
    real = refit_heads(model, features, seed=0, epochs=20, lr=3e-3, batch_size=100)
    null = refit_heads(model, features, seed=0, epochs=20, lr=3e-3, batch_size=100, shuffle_pairs=True)
    assert recall(real, features) > 0.5
    assert recall(null, features) < 4 * 10 / n
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(real.scaler("image").mean, model.scaler("image").mean)


def test_refits_are_a_function_of_the_seed(run: Path) -> None:
    model = TrainedModel.open(run).model
    features = planted(model, n=120)
    a, b, c = (
        refit_heads(model, features, seed=s, epochs=1, batch_size=40, shuffle_pairs=True).state_dict()
        for s in (1, 1, 2)
    )
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["heads.image.1.weight"], c["heads.image.1.weight"])


def test_captions_stay_with_their_text_when_pairs_are_shuffled(run: Path) -> None:
    # With one caption for all there is nothing to learn from text, shuffled or not: its head gets no gradient.
    model = TrainedModel.open(run).model
    features = planted(model, n=120)
    one = refit_heads(model, features, seed=1, epochs=1, batch_size=40, duplicates=np.zeros(120), shuffle_pairs=True)
    torch.manual_seed(1)
    start = Alignment(model.config, {m: model.encoder(m) for m in model.modalities})
    assert torch.equal(one.state_dict()["heads.text.1.weight"], start.state_dict()["heads.text.1.weight"])


def test_refits_refuse_what_does_not_fit(run: Path) -> None:
    model = TrainedModel.open(run).model
    features = planted(model, n=50)
    with pytest.raises(ContractError, match="no features of text"):
        refit_heads(model, {m: features[m] for m in ("image", "expression")}, seed=0)
    with pytest.raises(ContractError, match="different lengths"):
        refit_heads(model, {**features, "text": planted(model, n=40)["text"]}, seed=0)
    nowhere = {m: (v, np.zeros(50, dtype=bool)) for m, (v, _) in features.items()}
    with pytest.raises(ContractError, match="no two rows"):
        refit_heads(model, nowhere, seed=0)
