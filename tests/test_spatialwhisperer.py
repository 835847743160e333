"""SpatialWhisperer as it was published: the recipe's architecture, and a file of the true size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import published_checkpoint as published
from triglyph.apply.checkpoints.spatialwhisperer import convert_spatialwhisperer
from triglyph.encoders import registry
from triglyph.encoders.wordpiece import SPECIAL
from triglyph.models.alignment import Alignment
from triglyph.training.recipe import load_recipe


def test_the_recipe_has_the_published_tensors_and_parameters() -> None:
    config = load_recipe("spatialwhisperer").model
    with torch.device("meta"):
        model = Alignment(config, {m: registry.build(t.encoder, random_init=True) for m, t in config.towers.items()})
    learnable = model.learnable()
    of_text = [n for n in learnable if n.startswith("encoders.text.")]
    of_heads = [n for n in learnable if n.startswith("heads.")]
    assert (len(of_text), len(of_heads), len(learnable)) == (199, 3 * 12, 236)
    millions = {m: sum(p.numel() for p in head.parameters()) / 1e6 for m, head in model.heads.items()}
    assert millions == pytest.approx({"expression": 6.30, "text": 7.35, "image": 10.50}, abs=0.006)
    assert sum(p.numel() for p in model.encoder("text").parameters()) / 1e6 == pytest.approx(108.31, abs=0.005)
    # The published file has 530 MB: the space is 2048 wide, and not 512 as its card says.
    assert sum(t.numel() * t.itemsize for t in learnable.values()) / 1e6 == pytest.approx(530, abs=1)
    assert set(config.active_pairs.values()) == {1.0}
    assert model.temperature.max_scale is None
    assert sum(p.requires_grad for p in model.parameters()) == 199 + 3 * 9 + 1


def test_the_tiny_recipe_has_the_same_shape() -> None:
    whole, tiny = load_recipe("spatialwhisperer"), load_recipe("spatialwhisperer-tiny")
    assert tiny.model.active_pairs == whole.model.active_pairs
    assert tiny.model.locked == whole.model.locked == ("image", "expression")
    assert (tiny.model.head, tiny.model.temperature) == (whole.model.head, whole.model.temperature)
    for key in ("min_lr", "warmup", "frozen_warmup", "betas", "weight_decay"):
        assert getattr(tiny.training, key) == getattr(whole.training, key), key
    sizes = {m: registry.card(t.encoder).weights for m, t in tiny.model.towers.items()}
    assert "hub" not in sizes.values(), "nothing to fetch"


@pytest.mark.slow
def test_a_file_of_the_true_size_is_converted(tmp_path: Path) -> None:
    """530 MB made, read and written; 3 GB of memory, half a minute."""
    state = published.state_dict()
    assert len(state) == 236
    file = published.write(tmp_path / "spatialwhisperer.ckpt", state)
    assert file.stat().st_size / 1e6 == pytest.approx(530, abs=1)
    words = [*SPECIAL, *(f"[unused{i}]" for i in range(28_996 - len(SPECIAL)))]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    manifest = convert_spatialwhisperer(file, tmp_path / "out", vocabulary=tmp_path)
    assert manifest["tensors"] == 236
    with safe_open(tmp_path / "out" / "model" / "model.safetensors", "pt") as tensors:
        assert len(list(tensors.keys())) == 236
        for ours, theirs in (
            ("encoders.text.bert.embeddings.word_embeddings.weight", "text_model.embeddings.word_embeddings.weight"),
            ("heads.expression.skip.weight", "discriminator.transcriptome_block.feature_shortcut.weight"),
            ("heads.image.outer.weight", "discriminator.image_block.feature_nonlinear.3.weight"),
        ):
            assert torch.equal(tensors.get_tensor(ours), state[f"model.{theirs}"])
