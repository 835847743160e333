"""Stamp's first stage: a gene encoder that knows its surroundings (Han et al., ICLR 2026, arXiv 2602.13944).

Genes in anomaly-rank order are masked and named again, from the location itself (intrinsic gene reconstruction, IGR)
and from its neighbours (contextual, CGR). Batches are neighbourhoods: groups of nine locations, the first their centre.
The loss is the sum of both; the paper trains with IGR alone first (`context_from`).

What sets patients and batches apart tells neighbours' genes too, and would be learnt first: with `baseline: section` a
gene is told from how common it is in its own section, and only what varies within sections is left to be learnt.

Stamp_G, the embedding, is the mean over the tokens of a location, less that of the training locations, and divided by
one number, so that directions keep their share of the variance. `readout` can put beside it, or in its place, the mean
over the locations around it: what plain pooling gives, which contextual training has to be compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, field_validator, model_validator
from torch import Tensor, nn

from triglyph.encoders.base import Encoder, Modality
from triglyph.encoders.packed import pack
from triglyph.encoders.stamp import FIRST, MASK, StampGenes
from triglyph.errors import ContractError, RecipeError
from triglyph.models.base import Batch, Output
from triglyph.models.method import Method, MethodConfig, NeighbourhoodConfig
from triglyph.objectives.gather import Mean, means_over_processes
from triglyph.objectives.masked_genes import (
    Baseline,
    Context,
    Groups,
    Masked,
    by_slot,
    mask_tokens,
    name_genes,
    pooled_context,
    reached,
)
from triglyph.objectives.spectral import Sampled, contextual_axes, gene_shares, within_section_axes
from triglyph.tissue.surroundings import surroundings

EVALUATION_SEED = 0
"""Of the tokens that are hidden in evaluation: the same every time."""
SPECTRAL_SEED = 0
"""Of the first vector of the decomposition that a spectral start is: the same every time."""
PRIOR_TOKENS = 1000.0
"""A section's frequencies count as many tokens as it has, and these of all sections together."""
BRANCH, RANKS = 0.3, 0.1
"""With a start from axes, of layers' outputs and of rank embeddings: small, so that the start is not drowned."""
HEAD = 0.1
"""With a baseline, of the weights of heads: at first they say little more than it does."""


class StampGenesConfig(MethodConfig):
    """The tower of expression, and what it is asked to name."""

    reads: ClassVar[tuple[Modality, ...]] = ("expression",)
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
    baseline: Literal["section"] | None = None
    """Genes are told from their frequency in the section; null from nothing, as in the paper."""
    start: Literal["random", "spectral", "contextual"] = "random"
    """Of gene embeddings; `spectral` takes the axes along which lists of genes differ within sections, `contextual`
    those along which they tell the neighbours' lists."""
    neighbourhood: NeighbourhoodConfig = NeighbourhoodConfig()
    readout: Literal["own", "around", "own+around"] = "own"
    """The embedding of a location: its own; the mean over all within `readout_reach`, itself among them; or both."""
    readout_reach: tuple[PositiveFloat, ...] = Field(default=(1.5,), min_length=1)
    """In pitches, ascending, each a mean of its own: 1.5 takes in the 8 neighbours of a square lattice and the 6 of a
    hexagonal one, 2.3 takes in 20 and 18."""

    @field_validator("readout_reach", mode="before")
    @classmethod
    def _one_reach(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value

    @field_validator("readout_reach")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not np.isfinite(value).all() or (np.diff(value) <= 0).any():
            raise ValueError("readout_reach is finite and ascending, such as [1.5, 2.3]")
        return value

    @model_validator(mode="after")
    def _one_tower_that_learns(self) -> StampGenesConfig:
        if self.modalities != ("expression",):
            raise ValueError("it has one tower, of expression")
        if self.towers["expression"].mode not in ("scratch", "trained"):
            raise ValueError("the tower learns: mode scratch, or trained from weights of a run")
        if self.towers["expression"].head is not None:
            raise ValueError("the embedding is the encoder's own mean; take out towers.expression.head")
        if self.start != "random" and self.towers["expression"].mode != "scratch":
            raise ValueError(f"a {self.start} start would undo what the tower has learnt; it goes with mode scratch")
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
    centre: Tensor
    scale: Tensor
    baselines: Tensor | None

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
        self.register_buffer("centre", torch.zeros(encoder.card.dim))
        self.register_buffer("scale", torch.ones(()))
        # (sections, tokens) log frequencies; of the training data, and so no part of a release.
        self.register_buffer("baselines", None, persistent=False)

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

    # ---- before the first step and after the last

    def start(self, sample: Iterable[Batch]) -> None:
        """Frequencies of genes in each section, and axes as embeddings of genes, where the configuration asks."""
        config = self.config
        if config.baseline is None and config.start == "random":
            return
        pieces, counts = list[Sampled](), dict[int, Tensor]()
        for batch in sample:
            ids, lengths = (t.cpu() for t in pack(batch["expression"]["ids"], batch["expression"]["mask"]))
            section = batch["section"].cpu()
            if config.start != "random":
                shares = gene_shares(ids, lengths, self.genes.n_tokens, weights=self.genes.rank_weights(lengths))
                pieces.append(Sampled(shares, section.numpy(), batch["centres_um"].cpu().numpy()))
            of = torch.repeat_interleave(section, lengths)
            for number in section.unique().tolist():
                found = torch.bincount(ids[of == number], minlength=self.genes.n_tokens).double()
                counts[number] = counts.get(number, 0.0) + found
        if config.baseline == "section":
            self._start_from_frequencies(counts)
        if config.start != "random":
            self._start_from_axes(pieces)

    @torch.no_grad()
    def _start_from_frequencies(self, counts: Mapping[int, Tensor]) -> None:
        self.baselines = _log_frequencies(counts).to(self.intrinsic.weight.device)
        for head in (self.intrinsic, self.contextual):
            if head is not None:
                head.weight.mul_(HEAD)

    @torch.no_grad()
    def _start_from_axes(self, pieces: Sequence[Sampled]) -> None:
        genes, start = self.genes, self.config.start
        if start == "contextual":
            axes = contextual_axes(pieces, dim=genes.card.dim)
        else:
            axes = within_section_axes(pieces, dim=genes.card.dim, seed=SPECTRAL_SEED)
        if not axes.any():
            raise ContractError(
                "lists of genes do not differ within the training sections, so there is no axis to start from",
                where=f"model.start: {start}",
                mend="train on sections of several locations, or use start: random",
            )
        genes.gene_embedding.weight.copy_(torch.from_numpy(axes))
        genes.rank_embedding.weight.mul_(RANKS)
        genes.transformer.scale_branches(BRANCH)

    @torch.no_grad()
    def finish(self, sample: Iterable[Batch]) -> None:
        """The mean of training locations, and the one number that makes their average variance 1.

        Locations without genes have no embedding of their own, and are left out.
        """
        entries = (batch["expression"] for batch in sample)
        pooled = torch.cat([self.pooled("expression", entry)[entry["mask"].any(dim=1)] for entry in entries])
        if not len(pooled):
            return
        self.centre.copy_(pooled.mean(dim=0))
        variance = pooled.var(dim=0, correction=0).mean()
        if variance > 0:
            self.scale.copy_(variance.rsqrt())

    # ---- training

    def forward(self, batch: Batch) -> Output:
        """Losses of a batch of neighbourhoods; its `group` (n,) and `near` (n,) say who is whose neighbour.

        In data-parallel training they are the means over the masked tokens and the centres of all processes. Which
        tokens are masked is drawn in each process, so that a run on two devices hides others than one on one does. A
        process may have no row, and takes part nevertheless.
        """
        config = self.config
        ids, lengths = self._packed(batch)
        hidden = self._hidden(ids)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.heads_only):
            rows = self.genes.hidden(hidden.ids, lengths)
        means: dict[str, Mean] = {}
        if config.intrinsic:
            loss = None
            if hidden.chosen.any():
                owner = torch.repeat_interleave(batch["section"], lengths)[hidden.chosen]
                loss = name_genes(
                    rows[hidden.chosen], ids[hidden.chosen], self.intrinsic, baseline=self._baseline(owner)
                )
            means["intrinsic"] = Mean(loss, int(hidden.chosen.sum()))
        if self.contextual is not None and self.progress >= config.context_from:
            groups = Groups(batch["group"], batch["near"])
            if config.context == "pooled":
                baseline = self._baseline(batch["section"])
                loss = pooled_context(
                    self.genes.pool(rows, lengths), ids, lengths, groups, self.contextual, baseline=baseline
                )
                means["contextual"] = Mean(loss, int(reached(lengths, groups).sum()))
            else:
                slots = by_slot(rows, ids, hidden.chosen, lengths, groups, context=config.context)
                baseline = self._baseline(batch["section"][slots.owner])
                loss = None
                if len(slots.targets):
                    loss = name_genes(slots.rows, slots.targets, self.contextual, baseline=baseline)
                means["contextual"] = Mean(loss, len(slots.targets))
        losses = means_over_processes(means, device=rows.device)
        weights = {"intrinsic": config.intrinsic, "contextual": config.contextual}
        # A batch in which nothing is hidden and nobody has a neighbour teaches nothing, and has a gradient of zero.
        nothing = 0.0 * (self.intrinsic.bias if self.heads_only else rows).sum()
        total = sum((weights[name] * value for name, value in losses.items()), start=nothing)
        return Output(losses={**losses, "total": total})

    def _packed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens, and how many each location has."""
        if "expression" not in batch:  # of several processes, one whose share of a short last step is no group
            none = batch["section"][:0]
            return none, none
        return pack(batch["expression"]["ids"], batch["expression"]["mask"])

    def _baseline(self, section: Tensor) -> Baseline | None:
        """What genes of rows of these sections are told from; in validation too, whose sections are numbered anew."""
        if self.baselines is None:
            return None
        if not self.training:
            # The frequencies of all training sections together: a section that was not trained on has none of its own.
            return Baseline(self.baselines[-1:], torch.zeros_like(section))
        # Sections that no sampled batch held have those of all together, which come last.
        return Baseline(self.baselines, section.clamp(max=len(self.baselines) - 1))

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
        """The encoder's mean over tokens, less the training locations', divided by one number."""
        return (pooled - self.centre) * self.scale

    @property
    def reads_surroundings(self) -> bool:
        return self.config.readout != "own"

    def of_section(self, modality: str, projected: Tensor, centres_um: NDArray[np.float64]) -> Tensor:
        """As `readout` says; a location without a place has itself around it."""
        if self.config.readout == "own" or not len(projected):
            return projected
        own = projected.cpu().numpy()
        around = [surroundings(centres_um, pitches=reach) @ own for reach in self.config.readout_reach]
        parts = around if self.config.readout == "around" else [own, *around]
        return torch.from_numpy(np.concatenate(parts, axis=1)).to(projected)


def _head(encoder: StampGenes) -> nn.Linear:
    head = nn.Linear(encoder.card.dim, encoder.n_tokens)
    nn.init.xavier_normal_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _log_frequencies(counts: Mapping[int, Tensor]) -> Tensor:
    """(sections + 1, tokens) log frequencies of tokens in sections 0, 1, ..., smoothed by those of all together, which
    come last; a section that was not seen has those of all."""
    total = sum(counts.values(), start=torch.zeros(()).double()) + 0.5
    overall = total / total.sum()
    found = [counts.get(s, torch.zeros_like(overall)) + PRIOR_TOKENS * overall for s in range(max(counts) + 1)]
    return torch.stack([f.div(f.sum()).log() for f in (*found, overall)]).float()
