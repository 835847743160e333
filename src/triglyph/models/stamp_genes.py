"""Stamp's first stage: a gene encoder that knows its surroundings (Han et al., ICLR 2026, arXiv 2602.13944).

Genes in anomaly-rank order are masked and named again, from the location itself (intrinsic gene reconstruction, IGR)
and from its neighbours (contextual, CGR). Batches are neighbourhoods: groups of nine locations, the first their centre.
The loss is the sum of both; the paper trains with IGR alone first (`context_from`).

Stamp_G, the embedding, is the mean over the tokens of a location. `readout` can put beside it, or in its place, the
mean over the locations around it: what plain pooling gives, which contextual training has to be compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from triglyph.encoders.base import Encoder
from triglyph.encoders.packed import pack
from triglyph.encoders.stamp import FIRST, MASK, StampGenes
from triglyph.errors import RecipeError
from triglyph.models.base import Batch, Output
from triglyph.models.method import Method, MethodConfig, NeighbourhoodConfig
from triglyph.objectives.masked_genes import (
    Context,
    Groups,
    Masked,
    by_slot,
    mask_tokens,
    name_genes,
    pooled_context,
)
from triglyph.tissue.surroundings import surroundings

EVALUATION_SEED = 0
"""Of the tokens that are hidden in evaluation: the same every time."""


class StampGenesConfig(MethodConfig):
    """The tower of expression, and what it is asked to name."""

    masked: float = Field(default=0.15, gt=0, lt=1)
    """Share of tokens that are hidden."""
    intrinsic: float = Field(default=1.0, ge=0)
    """Weight of IGR."""
    context: Context | None = "pooled"
    """Form of CGR; null trains without."""
    contextual: float = Field(default=1.0, ge=0)
    """Weight of CGR."""
    context_from: float = Field(default=0.5, ge=0, lt=1)
    """CGR joins after this fraction of the steps; the paper trains one epoch without and one with it."""
    neighbourhood: NeighbourhoodConfig = NeighbourhoodConfig()
    readout: Literal["own", "around", "own+around"] = "own"
    """The embedding of a location: its own; the mean over all within `readout_reach`, itself among them; or both."""
    readout_reach: float = Field(default=1.5, gt=0)
    """In pitches: 1.5 takes in the eight neighbours of a square lattice, the six of a hexagonal one."""

    @model_validator(mode="after")
    def _one_tower_that_learns(self) -> StampGenesConfig:
        if self.modalities != ("expression",):
            raise ValueError("it has one tower, of expression")
        if self.towers["expression"].mode not in ("scratch", "trained"):
            raise ValueError("the tower learns: mode scratch, or trained from weights of a run")
        if not self.intrinsic and not (self.contextual and self.context):
            raise ValueError("both losses are off, so there is nothing to train")
        return self

    @property
    def groups(self) -> NeighbourhoodConfig:
        """Batches are made of neighbourhoods."""
        return self.neighbourhood


class StampModel(Method):
    """The gene encoder and the heads that name genes.

    Parameters
    ----------
    config
        What to train.
    encoders
        `expression`: a `StampGenes` that has its vocabulary.
    """

    name = "stamp-genes"
    config_class = StampGenesConfig

    def __init__(self, config: StampGenesConfig, encoders: Mapping[str, Encoder]) -> None:
        super().__init__(config, encoders)
        encoder = self.encoder("expression")
        if not isinstance(encoder, StampGenes):
            raise RecipeError(
                f"{encoder.card.name} does not read lists of genes",
                where="model.towers.expression.encoder",
                mend="use stamp-genes",
            )
        self.intrinsic = _head(encoder)
        self.contextual = _head(encoder) if config.context and config.contextual else None

    @property
    def genes(self) -> StampGenes:
        """The encoder."""
        found = self.encoders["expression"]
        assert isinstance(found, StampGenes)
        return found

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Of what is trained."""
        return ("intrinsic", *(["contextual"] if self.contextual is not None else []))

    def forward(self, batch: Batch) -> Output:
        """Losses of a batch of neighbourhoods; its `group` (n,) and `near` (n,) say who is whose neighbour."""
        config, entry = self.config, batch["expression"]
        ids, lengths = pack(entry["ids"], entry["mask"])
        hidden = self._hidden(ids)
        rows = self.genes.hidden(hidden.ids, lengths)
        losses = {}
        if config.intrinsic and hidden.chosen.any():
            losses["intrinsic"] = name_genes(rows[hidden.chosen], ids[hidden.chosen], self.intrinsic)
        if self.contextual is not None and self.progress >= config.context_from:
            groups = Groups(batch["group"], batch["near"])
            if config.context == "pooled":
                loss = pooled_context(rows, ids, lengths, groups, self.contextual)
            else:
                context, targets = by_slot(rows, ids, hidden.chosen, lengths, groups, context=config.context)
                loss = name_genes(context, targets, self.contextual) if len(targets) else None
            if loss is not None:
                losses["contextual"] = loss
        weights = {"intrinsic": config.intrinsic, "contextual": config.contextual}
        # A batch in which nothing is hidden and nobody has a neighbour teaches nothing, and has a gradient of zero.
        total = sum((weights[name] * value for name, value in losses.items()), start=0.0 * rows.sum())
        return Output(losses={**losses, "total": total})

    def _hidden(self, ids: Tensor) -> Masked:
        generator = None
        if not self.training:
            generator = torch.Generator(ids.device).manual_seed(EVALUATION_SEED)
        return mask_tokens(
            ids,
            share=self.config.masked,
            mask=MASK,
            first=FIRST,
            n_tokens=self.genes.n_tokens,
            generator=generator,
        )

    # ---- Stamp_G

    def project(self, modality: str, pooled: Tensor) -> Tensor:
        """The encoder's own mean over tokens."""
        return pooled

    def of_section(self, modality: str, projected: Tensor, centres_um: NDArray[np.float64]) -> Tensor:
        """As `readout` says; a location without a place has itself around it."""
        if self.config.readout == "own" or not len(projected):
            return projected
        weights = torch.from_numpy(surroundings(centres_um, pitches=self.config.readout_reach).toarray())
        around = weights.to(projected) @ projected
        return around if self.config.readout == "around" else torch.cat([projected, around], dim=1)


def _head(encoder: StampGenes) -> nn.Linear:
    head = nn.Linear(encoder.card.dim, encoder.n_tokens)
    nn.init.xavier_normal_(head.weight)
    nn.init.zeros_(head.bias)
    return head
