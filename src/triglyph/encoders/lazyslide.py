"""`lazyslide:<name>`: any image model of lazyslide-models, if the extra is installed.

These bring their own download, architecture and transform; ours is the contract around them: a card, windows at a
stated scale, a fingerprint. They run without gradients, so their tower can only be locked.
"""

from __future__ import annotations

import difflib
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from triglyph.encoders.base import Encoded, Encoder, EncoderCard, Inputs
from triglyph.encoders.image import ImageEncoder
from triglyph.errors import ContractError, RecipeError

DEFAULT_PX, DEFAULT_MPP = 224, 0.5
_TASKS = ("vision", "multimodal")


def encoder_class(name: str) -> type[Encoder]:
    """The class of `lazyslide:<name>`.

    Raises
    ------
    RecipeError
        The extra is not installed, or has no image model of that name.
    """
    source = _source(name)
    models = sorted(n for task in _TASKS for n in source.list_models(task))
    if name not in models:
        close = difflib.get_close_matches(name, models, n=3, cutoff=0.4)
        mend = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(models)}"
        raise RecipeError(f"lazyslide-models has no image model {name!r}", mend=mend)
    model = source.MODEL_REGISTRY[name]
    if not model.encode_dim:
        raise RecipeError(f"lazyslide-models does not say the width of {name!r}", mend="use another model")
    card = EncoderCard(
        name=f"lazyslide:{name}",
        summary=model.description or "",
        licence=", ".join([model.license] if isinstance(model.license, str) else model.license or []),
        commercial_use=model.commercial,
        citation=model.bib_key or model.paper_url or "",
        homepage=model.hf_url or model.github_url or "",
        modality="image",
        dim=int(model.encode_dim),
        pooling="as published",
        hub_id=(model.hf_url or "").removeprefix("https://huggingface.co/"),
        gated=bool(model.is_gated),
        weights="hub",
        input_px=DEFAULT_PX,
        mpp=DEFAULT_MPP,
    )
    return type("LazySlideEncoder", (LazySlideEncoder,), {"card": card, "source_name": name})


class LazySlideEncoder(ImageEncoder):
    """A model of lazyslide-models.

    Parameters
    ----------
    input_px, mpp
        The window given to its own transform, which resizes to what the model needs.
    """

    source_name: str

    def __init__(self, *, input_px: int = DEFAULT_PX, mpp: float = DEFAULT_MPP) -> None:
        super().__init__()
        self.card = type(self).card.model_copy(update={"input_px": input_px, "mpp": mpp})
        self._model = _source(self.source_name).MODEL_REGISTRY[self.source_name]()
        self._transform = self._model.get_transform()
        if self._transform is None or not isinstance(self._model.model, nn.Module):
            raise RecipeError(f"{self.card.name} does not show its transform and its module", mend="use another model")
        self.tower = self._model.model

    def options(self) -> dict[str, Any]:
        return {"input_px": self.card.input_px, "mpp": self.card.mpp}

    def prepare(self, raw: Any) -> Inputs:
        """Windows through the model's own transform, `pixels` (n, 3, height, width) float32."""
        windows = super().prepare(raw)["pixels"].numpy()
        if not len(windows):
            raise ContractError(f"{self.card.name} was given no window")
        return {"pixels": torch.stack([torch.as_tensor(self._transform(np.ascontiguousarray(w))) for w in windows])}

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> Encoded:
        pooled = torch.as_tensor(self._model.encode_image(inputs["pixels"]))
        if pooled.shape != (len(inputs["pixels"]), self.card.dim):
            raise ContractError(f"{self.card.name} gave {tuple(pooled.shape)}, not (n, {self.card.dim})")
        # What was made in inference mode cannot enter a graph; its copy can.
        return Encoded(pooled.clone().float())


def _source(name: str) -> ModuleType:
    try:
        import lazyslide_models
    except ImportError:
        raise RecipeError(
            f"lazyslide:{name} needs lazyslide-models, which is not installed",
            mend="pip install 'triglyph[lazyslide]'",
        ) from None
    module: ModuleType = lazyslide_models
    return module
