"""Towers: which encoder reads a modality, where its weights come from, and whether it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from triglyph.cards import Frozen
from triglyph.encoders import registry
from triglyph.encoders.base import Encoder, Modality
from triglyph.errors import RecipeError, WeightsError
from triglyph.models.heads import HeadConfig
from triglyph.models.lora import LoraConfig, adapt
from triglyph.storage import read_json

MODALITIES: tuple[Modality, ...] = ("image", "expression", "text")
"""In the order in which the name of a pair gives them."""

Mode = Literal["locked", "lora", "trained", "scratch"]


class TowerConfig(Frozen):
    """The encoder of one modality."""

    encoder: str
    """Name in the registry of encoders."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the encoder."""
    mode: Mode = "locked"
    """`locked` never changes; `lora` learns low-rank adapters alone; `trained` learns from pretrained weights on;
    `scratch` starts from random ones."""
    weights: str | None = None
    """A folder of published weights, or a run of ours whose tower is taken; null takes them from the hub or its cache.
    """
    lora: LoraConfig = LoraConfig()
    """The adapters of `mode: lora`."""
    head: HeadConfig | None = None
    """A head of its own; null has the model's."""
    standardise: bool = False
    """z-score the pooled output of a locked encoder by its training rows, where its features differ in scale."""

    @field_validator("options", mode="before")
    @classmethod
    def _null_is_no_options(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def _only_constants_are_standardised(self) -> TowerConfig:
        if self.standardise and self.mode != "locked":
            raise ValueError("standardise needs mode: locked, since the statistics are taken once")
        return self


def build_encoder(tower: TowerConfig, *, modality: str) -> Encoder:
    """The encoder of a tower, on the CPU; random weights come from torch's random state.

    Raises
    ------
    RecipeError
        No such encoder or option, an encoder of another modality, or `trained` or `lora` without anything pretrained.
    WeightsError
        Pretrained weights are not there, or do not fit.
    """
    where = f"model.towers.{modality}"
    card = registry.card(tower.encoder)
    if card.modality != modality:
        raise RecipeError(
            f"{tower.encoder} reads {card.modality}, not {modality}",
            where=f"{where}.encoder",
            mend=f"encoders of {modality}: {', '.join(registry.names(modality=_modality(modality)))}",
        )
    if tower.mode != "locked" and card.weights == "none":
        raise RecipeError(f"{tower.encoder} has nothing to learn", where=f"{where}.mode", mend="use mode: locked")
    published = card.weights == "hub"
    if tower.mode in ("trained", "lora") and not (published or tower.weights):
        raise RecipeError(
            f"{tower.encoder} has no pretrained weights to train on from",
            where=f"{where}.mode",
            mend="use mode: scratch, or give the run of another tower as its weights",
        )
    if tower.mode in ("trained", "lora") and tower.encoder.startswith(registry.LAZYSLIDE):
        raise RecipeError(f"{tower.encoder} runs without gradients", where=f"{where}.mode", mend="use mode: locked")
    folder = None if tower.weights is None else Path(tower.weights)
    if folder is not None and tower.mode != "scratch" and (release := _release(folder)) is not None:
        encoder = _from_release(release, tower, modality=modality)
    else:
        encoder = registry.build(
            tower.encoder, weights=folder, random_init=tower.mode == "scratch" and published, **tower.options
        )
    if tower.mode == "lora":
        adapt(encoder, tower.lora, where=f"{where}.lora")
    return encoder


def _release(folder: Path) -> Path | None:
    """The release in a run folder of ours, or the folder itself where it is one."""
    return next((f for f in (folder / "model", folder) if (f / "model.safetensors").is_file() and _is_ours(f)), None)


def _is_ours(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and "towers" in read_json(config)


def _from_release(folder: Path, tower: TowerConfig, *, modality: str) -> Encoder:
    """The tower of a model that was trained before, with what it learnt before the first step."""
    from safetensors.torch import load_file

    about = read_json(folder / "config.json")["towers"].get(modality)
    if about is None or about["encoder"] != tower.encoder or not about["saved"]:
        held = "none" if about is None else about["encoder"] if about["saved"] else f"{about['encoder']}, named only"
        raise WeightsError(
            f"the run's tower of {modality} is not a trained {tower.encoder} ({held})",
            where=folder,
            mend="give a run that trained this encoder",
        )
    options = {**about["options"], **tower.options}
    if options != about["options"]:
        raise WeightsError(
            f"the run's {tower.encoder} was built with {about['options']}, the recipe says {tower.options}",
            where=folder,
            mend="leave the options out, or train such a tower",
        )
    encoder = registry.build(tower.encoder, random_init=registry.card(tower.encoder).weights == "hub", **options)
    encoder.load_assets(about["assets"])
    prefix = f"encoders.{modality}."
    tensors = load_file(folder / "model.safetensors")
    mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    wanted = encoder.state_dict()
    if unfit := sorted(
        n for n in {*mine, *wanted} if n not in mine or n not in wanted or mine[n].shape != wanted[n].shape
    ):
        raise WeightsError(
            f"tensors are missing, left over or of another shape: {', '.join(unfit[:4])}",
            where=folder,
            mend="give a run whose tower has no adapters, or restore its release",
        )
    encoder.load_state_dict(mine)
    return encoder


def _modality(name: str) -> Modality:
    return next(m for m in MODALITIES if m == name)
