"""Contrastive alignment of any subset of image, expression and text.

Each modality has a *tower*: an encoder and a projection head into one shared space. A tower is `locked` (its encoder
never changes; its pooled output may come from a cache), learns by `lora` (adapters alone), is `trained` (from
pretrained weights) or from `scratch`. Any pairs of modalities are trained, each with a weight, by InfoNCE (`clip`) or
pairwise sigmoids (`siglip`). SpatialWhisperer (ICML 2026) is the towers Geneformer locked, BioBERT trained, UNI2-h
locked, with the pairs expression-text and image-expression. Two modalities that are never seen together may be bridged
by one that is seen with each.

Three names are kept apart: `pooled` is what an encoder gives, `projected` what its head makes of it, and `embeddings`
are projected and L2-normalised. Rows without a modality are not in its entry of the batch: they are never encoded and
no statistic sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from triglyph.cards import Frozen
from triglyph.encoders.base import Encoder, Modality
from triglyph.models.base import Batch, Output
from triglyph.models.heads import HeadConfig, build_head
from triglyph.models.method import Method, MethodConfig
from triglyph.models.towers import MODALITIES
from triglyph.objectives.bridge import bridge_losses, bridge_name
from triglyph.objectives.contrastive import INIT_BIAS, INIT_TEMPERATURE, Pair, Temperature, contrastive_loss
from triglyph.objectives.gather import gather_batch, is_distributed

SECTION = "section"
"""Name of the sections among the keys of a batch; no modality is called so."""


class TemperatureConfig(Frozen):
    """The learnt logit scale."""

    share: Literal["shared", "per-pair"] = "shared"
    init: float = Field(default=INIT_TEMPERATURE, gt=0)
    max_scale: float | None = Field(default=100.0, gt=0)
    """None never clamps, as the release of SpatialWhisperer."""
    init_bias: float = INIT_BIAS
    """Of `siglip`, learnt beside the scale."""


class BridgeConfig(Frozen):
    """How two modalities that are not seen together are drawn together by a third (`triglyph.objectives.bridge`)."""

    through: Modality
    """The pivot, which is trained as a pair with each of them."""
    weight: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    """Of the bridge's loss, which is added to the mean over the pairs: at a half it counts as either of two pairs."""
    beside_pair: bool = False
    """Bridge the two although they are trained as a pair as well."""


class AlignmentConfig(MethodConfig):
    """Towers, head, pairs and temperature."""

    pairs: dict[str, float]
    """`image-expression`, ... -> weight; 0 or null takes a pair out."""
    bridges: dict[str, BridgeConfig] = Field(default_factory=dict)
    """`image-text`, ... -> how it is bridged, or the pivot's name alone; null takes a bridge out."""
    objective: Literal["clip", "siglip"] = "clip"
    dim: int = Field(default=256, ge=1)
    """Width of the shared space."""
    head: HeadConfig = HeadConfig()
    temperature: TemperatureConfig = TemperatureConfig()
    negatives: Literal["all", "section"] = "all"
    """Whose rows a pair is told from: the whole batch's, or its own section's alone, so that what sets sections apart
    (stain, chemistry) is of no use. Goes with `training.sections_per_batch`."""
    centre: tuple[Modality, ...] = ()
    """Modalities whose projections are centred in each section before they are normalised: what a section's locations
    have in common is taken away. In training over its rows in the batch, afterwards over all of it: `transductive`."""

    @field_validator("pairs", "bridges", mode="before")
    @classmethod
    def _drop_null(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    @field_validator("pairs", mode="after")
    @classmethod
    def _canonical(cls, value: dict[str, float]) -> dict[str, float]:
        pairs = _by_ordered_name(value)
        for name, weight in pairs.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"the weight of {name} is {weight:g}; it must be 0 or more")
        return pairs

    @field_validator("bridges", mode="before")
    @classmethod
    def _the_pivot_alone(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {"through": about} if isinstance(about, str) else about for name, about in value.items()}

    @field_validator("bridges", mode="after")
    @classmethod
    def _canonical_bridges(cls, value: dict[str, BridgeConfig]) -> dict[str, BridgeConfig]:
        return _by_ordered_name(value)

    @model_validator(mode="after")
    def _towers_and_pairs_fit(self) -> AlignmentConfig:
        used = {modality for pair in self.active_pairs for modality in pair}
        if not used:
            raise ValueError("no pair has a weight above 0, so there is nothing to train")
        if missing := sorted(used - set(self.towers)):
            raise ValueError(f"pairs name {', '.join(missing)}, which has no tower")
        if idle := sorted(set(self.towers) - used):
            raise ValueError(f"the tower of {', '.join(idle)} is in no pair; set it to null or give it a pair")
        if "text" in self.centre:
            raise ValueError("text is not centred: a question asked of a section belongs to none")
        if foreign := sorted(set(self.centre) - set(self.towers)):
            raise ValueError(f"centre names {', '.join(foreign)}, which has no tower")
        return self

    @model_validator(mode="after")
    def _bridges_have_both_pairs(self) -> AlignmentConfig:
        for name, bridge in self.bridges.items():
            a, b = name.split("-")
            if bridge.through in (a, b):
                raise ValueError(f"the bridge {name} goes through {bridge.through}, which is one of its ends")
            halves = _by_ordered_name({f"{end}-{bridge.through}": end for end in (a, b)})
            if untrained := [half for half in halves if not self.pairs.get(half)]:
                raise ValueError(
                    f"the bridge {name} goes through {bridge.through}: train {' and '.join(untrained)} too"
                )
            if self.pairs.get(name) and not bridge.beside_pair:
                raise ValueError(
                    f"{name} is trained as a pair, so it needs no bridge; set its weight in `pairs` to 0, or "
                    "`beside_pair` of the bridge to true"
                )
        return self

    @property
    def active_pairs(self) -> dict[Pair, float]:
        """(a, b) -> weight, of pairs that are trained."""
        return {(n.split("-")[0], n.split("-")[1]): w for n, w in self.pairs.items() if w > 0}

    @property
    def active_bridges(self) -> dict[Pair, str]:
        """(a, b) -> the pivot between them."""
        return {(n.split("-")[0], n.split("-")[1]): bridge.through for n, bridge in self.bridges.items()}

    @property
    def needs(self) -> tuple[Pair, ...]:
        """Both sides of a pair that is trained."""
        return tuple(self.active_pairs)


V = TypeVar("V")


def _by_ordered_name(values: Mapping[str, V]) -> dict[str, V]:
    """The same under the names of pairs in the one order that they have."""
    out: dict[str, V] = {}
    for name, value in values.items():
        parts = name.split("-")
        if len(set(parts)) != 2 or not set(parts) <= set(MODALITIES):
            raise ValueError(f"{name!r} is not a pair of two of {', '.join(MODALITIES)}, joined by '-'")
        ordered = "-".join(sorted(parts, key=MODALITIES.index))
        if ordered in out:
            raise ValueError(f"{ordered} is given twice")
        out[ordered] = value
    return out


class Alignment(Method):
    """Towers, heads and the contrastive loss.

    Parameters
    ----------
    config
        What to build.
    encoders
        One per tower. They keep their weights; heads and temperature start from torch's random state.
    """

    name = "alignment"
    config_class = AlignmentConfig

    def __init__(self, config: AlignmentConfig, encoders: Mapping[str, Encoder]) -> None:
        super().__init__(config, encoders)
        self.heads = nn.ModuleDict(
            {
                m: build_head(config.towers[m].head or config.head, dim_in=encoders[m].card.dim, dim=config.dim)
                for m in config.modalities
            }
        )
        scaled = dict.fromkeys([*config.active_pairs, *config.active_bridges])
        names = [f"{a}-{b}" for a, b in scaled] if config.temperature.share == "per-pair" else []
        self.temperature = Temperature(
            names,
            init=config.temperature.init,
            max_scale=config.temperature.max_scale,
            bias=config.temperature.init_bias if config.objective == "siglip" else None,
        )

    @property
    def loss_names(self) -> tuple[str, ...]:
        """One a pair, and one a bridge."""
        bridges = (bridge_name(pair, through) for pair, through in self.config.active_bridges.items())
        return (*(f"{a}-{b}" for a, b in self.config.active_pairs), *bridges)

    def scalars(self) -> dict[str, dict[str, float]]:
        """The learnt scale, and bias of sigmoids, of each pair; of all, where it is shared."""
        names = self.temperature.names or ("shared",)
        found = {"logit_scale": {name: self.logit_scale(name) for name in names}}
        if self.temperature.bias is not None:
            found["logit_bias"] = dict(zip(names, self.temperature.bias.tolist(), strict=True))
        return found

    # ---- from a batch to the shared space

    def projected(self, modality: str, pooled: Tensor) -> Tensor:
        """(k, dim) output of a head, not normalised."""
        return self.heads[modality](self.scalers[modality](pooled) if modality in self.scalers else pooled)

    def embed(self, modality: str, pooled: Tensor, sections: Tensor | None = None) -> Tensor:
        """(k, dim) in the shared space: projected, centred where the model does that, L2-normalised in 32-bit.

        Parameters
        ----------
        sections
            (k,) integers, of centred modalities: which section each row is of. None: all are of one.
        """
        return self.normalised(modality, self.projected(modality, pooled), sections)

    def normalised(self, modality: str, projected: Tensor, sections: Tensor | None = None) -> Tensor:
        """(k, dim) of unit length from what heads gave; `sections` as of `embed`."""
        projected = projected.float()
        if modality in self.config.centre:
            projected = centred(projected, sections)
        return F.normalize(projected, dim=-1)

    def project(self, modality: str, pooled: Tensor) -> Tensor:
        """As `projected`; `of_section` normalises."""
        return self.projected(modality, pooled)

    def of_section(self, modality: str, projected: Tensor, centres_um: NDArray[np.float64]) -> Tensor:
        """In the shared space; centred, where the model does that, over these locations."""
        return self.normalised(modality, projected)

    def transductive(self) -> tuple[str, ...]:
        """Centres are taken over whole sections."""
        centred = self.config.centre
        return (f"embeddings of {' and '.join(centred)} centred over each section",) if centred else ()

    def logit_scale(self, pair: str = "") -> float:
        """The learnt scale of a pair; of all, where it is shared."""
        return float(self.temperature(pair).detach())

    def forward(self, batch: Batch) -> Output:
        """Embeddings of the modalities in the batch, and the losses of the pairs in it.

        In data-parallel training both are of the rows of all processes.

        Raises
        ------
        ContractError
            No pair has two rows.
        """
        entries: dict[str, Any] = {m: batch[m] for m in self.modalities if m in batch and len(batch[m]["rows"])}
        projected = {m: self.projected(m, self.pooled(m, entry)).float() for m, entry in entries.items()}
        rows: dict[str, Tensor] = {m: entry["rows"] for m, entry in entries.items()}
        # A location drawn twice is no negative of itself; nor are the owners of one caption, where text takes part.
        keys = {"": batch["index"], **batch.get("duplicates", {})}
        by_section = self.config.negatives == "section" or bool(self.config.centre)
        if by_section:
            keys[SECTION] = batch["section"]
        if is_distributed():
            device = batch["index"].device
            projected = {m: projected.get(m, torch.zeros(0, self.config.dim, device=device)) for m in self.modalities}
            rows = {m: rows.get(m, batch["index"][:0]) for m in self.modalities}
            projected, rows, keys = gather_batch(projected, rows, keys, n=batch["n"])
        sections = keys.pop(SECTION) if by_section else None
        embeddings = {
            m: self.normalised(m, x, None if sections is None else sections[rows[m]]) for m, x in projected.items()
        }
        losses = contrastive_loss(
            embeddings,
            rows,
            pairs=self.config.active_pairs,
            temperature=self.temperature,
            duplicates=keys,
            blocks=sections if self.config.negatives == "section" else None,
        )
        bridged = bridge_losses(embeddings, rows, bridges=self.config.active_bridges, temperature=self.temperature)
        for (a, b), through in self.config.active_bridges.items():
            if (name := bridge_name((a, b), through)) in bridged:
                losses["total"] = losses["total"] + self.config.bridges[f"{a}-{b}"].weight * bridged[name]
        return Output(embeddings=embeddings, rows=rows, losses={**bridged, **losses})


def centred(x: Tensor, sections: Tensor | None = None) -> Tensor:
    """(k, dim) less the mean of each section's rows; a row that is alone in its section stays as it is.

    Parameters
    ----------
    sections
        (k,) integers; None: all rows are of one.
    """
    if len(x) == 0:
        return x
    number = torch.zeros(len(x), dtype=torch.long, device=x.device)
    if sections is not None:
        number = torch.unique(sections, return_inverse=True)[1]
    # A product, since sums by index are taken in no fixed order by several threads.
    member = F.one_hot(number).to(x.dtype)
    counts = member.sum(dim=0)
    means = (member.T @ x) * ((counts > 1) / counts)[:, None]
    return x - member @ means
