"""`lazyslide:<name>`, against a stand-in for the package: named if absent, held to the contract if present."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from triglyph.encoders import registry
from triglyph.errors import ContractError, RecipeError


class Model:
    task = "vision"
    license, commercial, is_gated = ["MIT", "CC-BY"], True, False
    description, bib_key, paper_url, github_url = "A tiny model", "Someone2025", None, None
    hf_url = "https://huggingface.co/someone/tiny"
    encode_dim = 5
    transform = staticmethod(lambda w: torch.as_tensor(w).permute(2, 0, 1)[:, ::28, ::28].float() / 255)

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Linear(3 * 8 * 8, 5)

    def get_transform(self):
        return self.transform

    @torch.inference_mode()
    def encode_image(self, image):
        return self.model(image.flatten(1))


class Untransformed(Model):
    transform = None


class Wrong(Model):
    def encode_image(self, image):
        return super().encode_image(image)[:, :2]


@pytest.fixture
def package(monkeypatch):
    module = ModuleType("lazyslide_models")
    module.MODEL_REGISTRY = {"tiny": Model, "untransformed": Untransformed, "wrong": Wrong}
    module.list_models = lambda task: list(module.MODEL_REGISTRY) if task == "vision" else []
    monkeypatch.setitem(sys.modules, "lazyslide_models", module)
    registry.encoder_class.cache_clear()
    yield module
    registry.encoder_class.cache_clear()


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lazyslide_models", None)
    registry.encoder_class.cache_clear()
    with pytest.raises(RecipeError, match=r"pip install 'triglyph\[lazyslide\]'"):
        registry.build("lazyslide:virchow2")


@pytest.mark.usefixtures("package")
def test_a_model_gets_a_card_and_keeps_the_contract():
    card = registry.card("lazyslide:tiny")
    assert (card.dim, card.licence, card.hub_id, card.gated) == (5, "MIT, CC-BY", "someone/tiny", False)
    assert card.window_um == 112
    encoder = registry.build("lazyslide:tiny")
    windows = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    out = encoder.encode(encoder.prepare(windows)).pooled
    assert out.shape == (3, 5)
    out.requires_grad_()  # not an inference tensor: a head may be trained on it
    coarser = registry.build("lazyslide:tiny", mpp=1.0)
    assert coarser.card.window_um == 224
    assert coarser.fingerprint() != encoder.fingerprint() == registry.build("lazyslide:tiny").fingerprint()
    assert "tower.weight" in encoder.state_dict()
    assert registry.availability("lazyslide:tiny") == "to fetch"


@pytest.mark.usefixtures("package")
def test_models_that_cannot_keep_it_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="did you mean tiny"):
        registry.build("lazyslide:tinny")
    with pytest.raises(RecipeError, match="does not show its transform"):
        registry.build("lazyslide:untransformed")
    with pytest.raises(RecipeError, match="cannot start from random"):
        registry.build("lazyslide:tiny", random_init=True)
    with pytest.raises(RecipeError, match="does not load weights of yours"):
        registry.build("lazyslide:tiny", weights=tmp_path)
    wrong = registry.build("lazyslide:wrong")
    with pytest.raises(ContractError, match=r"gave \(1, 2\), not \(n, 5\)"):
        wrong.encode(wrong.prepare(np.zeros((1, 224, 224, 3), np.uint8)))
