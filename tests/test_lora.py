"""Adapters: the pretrained encoder stays what it was, and what is learnt beside it is saved, resumed and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import children
import encoder_cases as cases
import small
import test_models_alignment as models
from triglyph.apply.trained import TrainedModel
from triglyph.configs import deep_merge
from triglyph.encoders import registry
from triglyph.errors import RecipeError, WeightsError
from triglyph.models.lora import LoraConfig, LoraLinear, adapt, adapters, merge, unmerge
from triglyph.models.towers import TowerConfig, build_encoder
from triglyph.training.recipe import typed
from triglyph.training.release import save_model
from triglyph.training.schedule import parameter_groups

VIT = {"dim": 16, "depth": 1, "heads": 1, "patch_px": 32}


def encoder(seed: int = 0, **options: Any) -> Any:
    return cases.make("tile-vit", seed=seed, **{**VIT, **options})


def disturbed(found: Any) -> Any:
    """With adapters that do something."""
    for module in adapters(found).values():
        nn.init.normal_(module.lora_up.weight, std=0.1)
    return found


def pooled(found: Any) -> torch.Tensor:
    inputs = found.prepare(cases.raw(found))
    return found.eval()(inputs).pooled


# ---- the map


def test_an_adapted_map_equals_its_definition() -> None:
    torch.manual_seed(0)
    base = nn.Linear(5, 7)
    weight, bias, x = base.weight.detach().clone(), base.bias.detach().clone(), torch.randn(3, 5)
    made = LoraLinear(base, LoraConfig(rank=2, alpha=6.0)).eval()
    nn.init.normal_(made.lora_up.weight)
    expected = x @ weight.T + bias + 3.0 * (x @ made.lora_down.weight.T) @ made.lora_up.weight.T
    torch.testing.assert_close(made(x), expected)


def test_an_adapted_encoder_begins_as_the_pretrained_one_bit_for_bit() -> None:
    plain, other = encoder(), encoder()
    adapt(other, LoraConfig())
    assert torch.equal(pooled(plain), pooled(other))
    before = plain.state_dict()
    assert all(torch.equal(before[name], t) for name, t in other.state_dict().items() if name in before)
    assert set(before) < set(other.state_dict())


def test_merging_keeps_the_output_and_unmerging_restores_every_bit() -> None:
    found = encoder()
    adapt(found, LoraConfig())
    disturbed(found)
    before = {name: t.clone() for name, t in found.state_dict().items()}
    apart = pooled(found)
    merge(found)
    merge(found)
    torch.testing.assert_close(pooled(found), apart, rtol=1e-5, atol=1e-6)
    assert not torch.equal(before["vit.blocks.0.attn.qkv.weight"], found.vit.blocks[0].attn.qkv.weight)
    unmerge(found)
    unmerge(found)
    assert all(torch.equal(before[name], t) for name, t in found.state_dict().items())
    assert torch.equal(pooled(found), apart)


def test_dropout_is_of_the_adapters_in_training_alone() -> None:
    torch.manual_seed(0)
    made = LoraLinear(nn.Linear(64, 4), LoraConfig(dropout=0.5))
    x = torch.randn(2, 64)
    assert torch.equal(made.train()(x), made.eval()(x))  # adapters at zero: nothing to drop
    nn.init.normal_(made.lora_up.weight)
    assert not torch.equal(made.train()(x), made.eval()(x))
    assert torch.equal(made.eval()(x), made.eval()(x))


def test_only_adapters_have_gradients() -> None:
    found = disturbed_after_adapting()
    pooled(found).sum().backward()
    for name, parameter in found.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
        assert parameter.requires_grad == ("lora_" in name), name


def disturbed_after_adapting() -> Any:
    found = encoder()
    adapt(found, LoraConfig())
    return disturbed(found)


# ---- which maps, and how many parameters


def test_attention_is_adapted_and_neither_the_patches_nor_the_mlp() -> None:
    found = encoder(depth=2)
    adapt(found, LoraConfig())
    assert set(adapters(found)) == {f"vit.blocks.{i}.attn.{m}" for i in (0, 1) for m in ("qkv", "proj")}
    assert isinstance(found.vit.patch_embed.proj, nn.Conv2d)
    # A target is the end of a name from a dot on: neither `head.proj` nor `xattn.proj` ends in `attn.proj`.
    named = nn.ModuleDict({n: nn.ModuleDict({"proj": nn.Linear(2, 2)}) for n in ("attn", "head", "xattn")})
    adapt(named, LoraConfig())
    assert set(adapters(named)) == {"attn.proj"}
    other = encoder()
    adapt(other, LoraConfig(targets=("proj", "fc1")))
    assert set(adapters(other)) == {"vit.blocks.0.attn.proj", "vit.blocks.0.mlp.fc1"}
    assert type(other.vit.patch_embed.proj) is nn.Conv2d


@pytest.mark.parametrize("name", [n for n in registry.names("image") if registry.card(n).weights != "none"])
def test_every_image_encoder_that_can_learn_has_attention_to_adapt(name: str) -> None:
    with torch.device("meta"):
        found = registry.encoder_class(name)(**cases.SMALL.get(name, {}))
        assert adapt(found, LoraConfig()) > 0
    assert all(".attn" in n or "attention" in n for n in adapters(found))


def test_uni_has_the_parameters_that_hescape_prints_but_for_its_patches() -> None:
    from timm.models.vision_transformer import VisionTransformer

    with torch.device("meta"):
        uni = VisionTransformer(embed_dim=1024, depth=24, num_heads=16, init_values=1e-5, num_classes=0)
        base = sum(p.numel() for p in uni.parameters())
        learnt = adapt(uni, LoraConfig())
    # 24 blocks x rank 8 x (1024 + 3072 for qkv, 1024 + 1024 for proj)
    assert learnt == 24 * 8 * (4096 + 2048) == 1_179_648
    patches = 8 * 3 * 16 * 16 + 8 * 1024  # what its bare `proj` met besides
    head = (1024 * 256 + 256) + 2 * 256 + (256 * 128 + 128)  # its MLP head with a LayerNorm
    assert round((learnt + patches + head) / 1e6, 2) == 1.49
    assert round((base + learnt + patches + head) / 1e6, 2) == 304.84


def test_targets_that_no_map_has_are_refused_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"no linear map is called q_proj") as error:
        adapt(encoder(), LoraConfig(targets=("q_proj",)))
    assert "attn.qkv" in error.value.mend
    found = encoder()
    adapt(found, LoraConfig())
    with pytest.raises(RecipeError, match="adapters already"):
        adapt(found, LoraConfig())


def test_what_has_nothing_to_adapt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    card = registry.card
    hub = card("uni2-h")  # in the place of one of lazyslide's, which may not be installed
    monkeypatch.setattr(registry, "card", lambda name: hub if name.startswith("lazyslide:") else card(name))
    for name, said in (("stain-texture", "nothing to learn"), ("tile-vit", "no pretrained weights")):
        with pytest.raises(RecipeError, match=said):
            build_encoder(TowerConfig(encoder=name, mode="lora"), modality="image")
    with pytest.raises(RecipeError, match="without gradients"):
        build_encoder(TowerConfig(encoder="lazyslide:x", mode="lora"), modality="image")


# ---- in training


RECIPE: dict[str, Any] = {
    "name": "adapters",
    "data": {"train": ["S0", "S1"], "val": ["S2"]},
    "model": {
        "dim": 8,
        "towers": {
            "image": {"encoder": "tile-vit", "mode": "scratch", "options": VIT},
            "expression": {"encoder": "gene-mlp", "mode": "scratch", "options": {"dim": 8, "hidden": 8, "genes": 10}},
        },
        "pairs": {"image-expression": 1.0},
    },
    "training": {"epochs": 2, "batch_size": 16, "lr": 1e-2, "weight_decay": 0.1, "checkpoint_every": 3},
}


def adapted(base: Path) -> dict[str, Any]:
    image = {"mode": "lora", "weights": str(base), "options": None, "lora": {"rank": 2, "alpha": 4}}
    change = {"name": "adapted", "model": {"towers": {"image": image}, "objective": "siglip"}}
    return deep_merge(RECIPE, change)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.cohort(tmp_path_factory.mktemp("lora")).path


@pytest.fixture(scope="module")
def base(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "run"
    assert children.run(children.fit, RECIPE, cohort, out) == 0
    return out


@pytest.fixture(scope="module")
def run(cohort: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapted") / "run"
    assert children.run(children.fit, adapted(base), cohort, out) == 0
    return out


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_training_moves_every_adapter_and_nothing_under_them(base: Path, run: Path) -> None:
    before, after = tensors(base), tensors(run)
    image = {name: t for name, t in after.items() if name.startswith("encoders.image.")}
    assert sorted(n for n in image if "lora_" in n) == sorted(set(image) - set(before))
    assert all(torch.equal(before[name], t) for name, t in image.items() if name in before)
    assert all(t.any() for name, t in image.items() if name.endswith("lora_up.weight"))
    assert any(not torch.equal(before[name], t) for name, t in after.items() if name.startswith("encoders.expression"))


@pytest.mark.parametrize(("moment", "number"), [("towers written", 1), ("step logged", 5), ("checkpoint written", 2)])
def test_a_killed_run_with_adapters_ends_bit_for_bit_as_an_uninterrupted_one(
    cohort: Path, base: Path, run: Path, tmp_path: Path, moment: str, number: int
) -> None:
    out = tmp_path / "run"
    assert children.run(children.fit, adapted(base), cohort, out, moment, number) == -9
    assert children.run(children.fit, adapted(base), cohort, out) == 0
    for name in ("log.jsonl", "metrics.csv", "model/model.safetensors", "towers.json"):
        assert (out / name).read_bytes() == (run / name).read_bytes(), name


def test_a_checkpoint_holds_the_adapters_and_not_what_they_are_put_on(run: Path) -> None:
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["model"]
    image = [name for name in saved if name.startswith("encoders.image.")]
    assert image
    assert all("lora_" in name for name in image)
    assert "temperature.bias" in saved


def test_a_release_with_adapters_loads_to_the_same_embeddings(cohort: Path, run: Path) -> None:
    section = small.Cohort.open(cohort)["S2"]
    one, two = TrainedModel.open(run), TrainedModel.open(run)
    assert len(adapters(one.model.encoder("image"))) == 2
    values = one.embed(section, "image")[0]
    assert torch.equal(torch.from_numpy(values), torch.from_numpy(two.embed(section, "image")[0]))
    for module in adapters(two.model.encoder("image")).values():
        nn.init.zeros_(module.lora_up.weight)
    two = TrainedModel(two.model, two.manifest)
    assert not torch.equal(torch.from_numpy(values), torch.from_numpy(two.embed(section, "image")[0]))


def test_resuming_on_another_base_is_refused(cohort: Path, base: Path, tmp_path: Path) -> None:
    import shutil

    from triglyph.training.loop import fit

    moved, out = tmp_path / "base", tmp_path / "run"
    shutil.copytree(base, moved)
    assert children.run(children.fit, adapted(moved), cohort, out, "checkpoint written", 1) == -9
    other = tmp_path / "other"
    assert children.run(children.fit, deep_merge(RECIPE, {"seed": 7}), cohort, other) == 0
    shutil.rmtree(moved)
    shutil.copytree(other, moved)
    with pytest.raises(WeightsError, match="not the one that the run began with"):
        fit(typed(adapted(moved), where="test"), cohort=cohort, out=out, show=False)


def test_the_release_of_adapters_on_published_weights_holds_no_published_weight(tmp_path: Path) -> None:
    made = models.model("lora", modalities=("image", "expression"))
    for modality in ("image", "expression"):
        tower = made.encoder(modality)
        tower.card = tower.card.model_copy(update={"weights": "hub"})
        adapt(tower, LoraConfig(targets=("linear",)))
    save_model(made, tmp_path / "model")
    held = [n for n in load_file(tmp_path / "model" / "model.safetensors") if n.startswith("encoders.")]
    assert sorted(held) == sorted(
        f"encoders.{m}.linear.lora_{side}.weight" for m in ("image", "expression") for side in ("down", "up")
    )


def test_around_its_adapters_an_encoder_stays_in_evaluation_mode() -> None:
    made = models.model("lora", modalities=("image", "expression"))
    adapt(made.encoder("image"), LoraConfig(targets=("linear",)))
    tower: Any = made.train().encoder("image")
    assert not tower.norm.training
    assert not tower.dropout.training
    assert tower.linear.dropout.training
    made.heads_only = True
    assert not made.train().encoder("image").linear.dropout.training  # type: ignore[union-attr]
    made.heads_only = False
    assert not made.eval().encoder("image").linear.dropout.training  # type: ignore[union-attr]


def test_adapters_are_learnt_at_the_towers_rate_and_decay_as_matrices() -> None:
    made = models.model("lora", modalities=("image", "expression"))
    for modality in ("image", "expression"):
        adapt(made.encoder(modality), LoraConfig(targets=("linear",)))
    config = typed(deep_merge(RECIPE, {"training": {"tower_lr": 0.1}}), where="test").training
    groups = {(g["scale"], g["weight_decay"]): g["params"] for g in parameter_groups(made, config)}
    assert len(groups[0.1, 0.1]) == 4
    assert (0.1, 0.0) not in groups


# ---- a tower of another run


def test_a_tower_of_another_run_is_that_tower(cohort: Path, base: Path, tmp_path: Path) -> None:
    trained = TrainedModel.open(base)
    taken = build_encoder(TowerConfig(encoder="tile-vit", weights=str(base)), modality="image")
    assert taken.fingerprint() == trained.fingerprints["image"]
    assert (
        build_encoder(TowerConfig(encoder="tile-vit", weights=str(base / "model")), modality="image").options() == VIT
    )
    # Its vocabulary comes with it, whatever it is trained on next.
    change = {"encoder": "gene-mlp", "mode": "trained", "weights": str(base), "options": None}
    other = deep_merge(RECIPE, {"data": {"train": ["S2"], "val": []}, "model": {"towers": {"expression": change}}})
    assert children.run(children.fit, other, cohort, tmp_path / "run") == 0
    again = TrainedModel.open(tmp_path / "run")
    assert again.model.encoder("expression").assets() == trained.model.encoder("expression").assets()


def test_a_run_whose_tower_does_not_fit_is_refused(base: Path, run: Path) -> None:
    for tower, said in (
        ({"encoder": "tile-vit", "options": {"depth": 3}}, "was built with"),
        ({"encoder": "conch"}, "not a trained conch"),
    ):
        with pytest.raises(WeightsError, match=said):
            build_encoder(TowerConfig.model_validate({**tower, "weights": str(base)}), modality="image")
    with pytest.raises(WeightsError, match="left over"):
        build_encoder(TowerConfig(encoder="tile-vit", weights=str(run)), modality="image")
