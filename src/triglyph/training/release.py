"""The release of a model: `model.safetensors` and `config.json`, and nothing that has to be unpickled.

Locked encoders with published weights are not copied: they are named, with the fingerprint that they must have when
they are loaded again. (Of a checkpoint that others published without them nobody knows it: there it is null, and hub id
and revision are all that names them.) Nor are those that adapters are put on; their adapters are. Everything else is
saved, and loaded strictly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import triglyph
from triglyph.encoders import registry
from triglyph.encoders.base import Encoder, Modality
from triglyph.errors import StorageError, WeightsError
from triglyph.models.lora import adapt, is_adapter
from triglyph.models.method import Method, MethodConfig, method_class
from triglyph.models.towers import build_encoder
from triglyph.storage import atomic_folder, read_json, write_json

FORMAT = 1
TENSORS, CONFIG = "model.safetensors", "config.json"


def save_model(model: Method, folder: Path) -> None:
    """Write a release into a new folder, atomically."""
    from safetensors.torch import save_file

    with atomic_folder(folder) as partial:
        save_file({name: t.detach().cpu().contiguous() for name, t in _saved(model).items()}, partial / TENSORS)
        write_json(partial / CONFIG, describe(model))


def describe(model: Method) -> dict[str, Any]:
    """`config.json`: enough to build the model again and to know what it is made of."""
    towers = {}
    for modality in model.modalities:
        encoder = model.encoder(modality)
        towers[modality] = {
            "encoder": encoder.card.name,
            "options": encoder.options(),
            "assets": encoder.assets(),
            # An encoder on the meta device is a name without weights.
            "fingerprint": None if any(t.is_meta for t in encoder.state_dict().values()) else encoder.fingerprint(),
            "saved": not _named_only(model, modality),
            "card": encoder.card.model_dump(mode="json"),
        }
    return {
        "format": FORMAT,
        "triglyph": triglyph.__version__,
        "method": model.name,
        "config": model.config.model_dump(mode="json"),
        "towers": towers,
    }


def load_model(folder: Path, *, weights: dict[str, Path] | None = None) -> Method:
    """Load a release, in evaluation mode, on the CPU.

    Parameters
    ----------
    folder
        `RUN/model`.
    weights
        modality -> folder of published weights, for locked encoders that are not where the recipe had them.

    Raises
    ------
    StorageError
        Not a release, or of another format.
    WeightsError
        Tensors are missing, left over or of another shape, or a named encoder is not the one trained with.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    found = read_json(folder / CONFIG)
    if found.get("format") != FORMAT:
        raise StorageError(
            f"a release of format {found.get('format')}; this version reads {FORMAT}", where=folder, mend="train again"
        )
    method = method_class(found["method"])
    config = method.config_class.model_validate(found["config"])
    encoders: dict[str, Encoder] = {}
    # Heads and encoders are drawn at random and overwritten: the caller's random state is not ours to use up.
    with torch.random.fork_rng(devices=[]):
        for modality in config.towers:
            encoders[modality] = _encoder(modality, found["towers"][modality], config, (weights or {}).get(modality))
        model = method(config, encoders)
    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, FileNotFoundError) as error:
        raise WeightsError(f"not readable ({error})", where=folder / TENSORS, mend="restore the file") from error
    _load_strict(model, tensors, where=folder / TENSORS)
    for modality, about in found["towers"].items():
        if about["fingerprint"] not in (None, model.encoder(modality).fingerprint()):
            raise WeightsError(
                f"the {modality} encoder {about['encoder']} is not the one this model was trained with",
                where=folder / CONFIG,
                mend="give the weights it was trained with",
            )
    return model.eval()


def _named_only(model: Method, modality: str) -> bool:
    """An encoder that training left alone, and whose weights can be had again, is not copied into the release."""
    return modality in (*model.locked, *model.adapted) and model.encoder(modality).card.weights != "random"


def _saved(model: Method) -> dict[str, Tensor]:
    named = tuple(f"encoders.{m}." for m in model.modalities if _named_only(model, m))
    adapted = tuple(f"encoders.{m}." for m in model.adapted)
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(named) or (name.startswith(adapted) and is_adapter(name))
    }


def _encoder(modality: Modality, about: dict[str, Any], config: MethodConfig, weights: Path | None) -> Encoder:
    tower = config.towers[modality]
    if about["saved"]:
        published = registry.card(about["encoder"]).weights == "hub"
        encoder = registry.build(about["encoder"], random_init=published, **about["options"])
        if tower.mode == "lora":
            adapt(encoder, tower.lora)
    else:
        moved = tower if weights is None else tower.model_copy(update={"weights": str(weights)})
        encoder = build_encoder(moved, modality=modality)
    if about["assets"] != encoder.assets():
        encoder.load_assets(about["assets"])
    return encoder


def _load_strict(model: Method, tensors: dict[str, Tensor], *, where: Path) -> None:
    expected = _saved(model)
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    shapes = sorted(k for k in set(expected) & set(tensors) if expected[k].shape != tensors[k].shape)
    problems = {"missing": missing, "left over": extra, "of another shape": shapes}
    if any(problems.values()):
        said = "; ".join(f"{kind}: {', '.join(names[:4])}" for kind, names in problems.items() if names)
        raise WeightsError(f"the tensors do not fit the model ({said})", where=where, mend="restore the release")
    model.load_state_dict(tensors, strict=False)
