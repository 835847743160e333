"""Towers: which encoder reads a modality, and whether it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from triglyph.cards import Frozen
from triglyph.encoders import registry
from triglyph.encoders.base import Encoder, Modality
from triglyph.errors import RecipeError

MODALITIES: tuple[Modality, ...] = ("image", "expression", "text")
"""In the order in which the name of a pair gives them."""

Mode = Literal["locked", "trained", "scratch"]


class TowerConfig(Frozen):
    """The encoder of one modality."""

    encoder: str
    """Name in the registry of encoders."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the encoder."""
    mode: Mode = "locked"
    """`locked` never changes; `trained` starts from pretrained weights; `scratch` from random ones."""
    weights: str | None = None
    """A folder of published weights; null takes them from the hub or its cache."""
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
        No such encoder or option, an encoder of another modality, or `trained` without anything pretrained.
    WeightsError
        Pretrained weights are not there.
    """
    where = f"model.towers.{modality}"
    card = registry.card(tower.encoder)
    if card.modality != modality:
        raise RecipeError(
            f"{tower.encoder} reads {card.modality}, not {modality}",
            where=f"{where}.encoder",
            mend=f"encoders of {modality}: {', '.join(registry.names(modality=_modality(modality)))}",
        )
    pretrained = card.weights == "hub"
    if tower.mode == "trained" and not pretrained:
        raise RecipeError(
            f"{tower.encoder} has no pretrained weights to train on from",
            where=f"{where}.mode",
            mend="use mode: scratch",
        )
    if tower.mode == "scratch" and card.weights == "none":
        raise RecipeError(f"{tower.encoder} has nothing to learn", where=f"{where}.mode", mend="use mode: locked")
    return registry.build(
        tower.encoder,
        weights=None if tower.weights is None else Path(tower.weights),
        random_init=tower.mode == "scratch" and pretrained,
        **tower.options,
    )


def _modality(name: str) -> Modality:
    return next(m for m in MODALITIES if m == name)
