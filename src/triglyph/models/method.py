"""What every method has: towers, one encoder a modality, and what the trainer and the judge ask of it.

A method is a file here: a typed `MethodConfig`, and a `Method` made of it and of encoders. The trainer builds the
encoders, gives batches (`triglyph.models.base`) and minimises `Output.losses["total"]`; the method knows nothing of it.
Methods are found by name through entry points (`triglyph.methods`).
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from triglyph.cards import Frozen
from triglyph.configs import near
from triglyph.encoders.base import Encoder, EncoderCard, Modality
from triglyph.errors import ContractError, RecipeError
from triglyph.models.base import Batch, Output
from triglyph.models.heads import Standardise
from triglyph.models.lora import adapters, is_adapter
from triglyph.models.towers import MODALITIES, TowerConfig
from triglyph.tissue.regions import SIDE, RegionCuts

GROUP = "triglyph.methods"


class NeighbourhoodConfig(Frozen):
    """Batches made of groups of neighbours instead of single locations."""

    size: int = Field(default=9, ge=2)
    """Locations of a group, its centre among them."""
    reach: float = Field(default=3.0, gt=0)
    """Members further from the centre than so many pitches (median distance to the nearest neighbour) are not its
    neighbours: they fill the group, and nothing is aggregated from them."""


class RegionConfig(Frozen):
    """Which of a location's nine regions (`triglyph.tissue.regions`) is read when."""

    draws: int | None = Field(default=4, ge=1)
    """So many draws are cut once, kept beside the section and gone through in turn, one an epoch; null draws anew in
    every epoch and reads the slide each time."""
    seed: int = Field(default=0, ge=0)
    """Of the draws. It is not that of the recipe, so that runs of several seeds read the same kept pixels."""

    def draw(self, epoch: int) -> int:
        """The number of the draw of an epoch."""
        return epoch if self.draws is None else epoch % self.draws

    def cuts(self, card: EncoderCard) -> RegionCuts:
        """How regions are cut for an image encoder: at its own pixels, at three times its µm per pixel.

        Raises
        ------
        RecipeError
            The encoder reads native pixels, whatever their scale.
        """
        if card.window_um is None or card.input_px is None:
            raise RecipeError(
                f"{card.name} states no scale, so a region of {SIDE} patches is no size in µm",
                where="model.towers.image",
                mend="use an encoder whose card has an mpp",
            )
        return RegionCuts(px=card.input_px, patch_um=card.window_um, seed=self.seed)


class MethodConfig(Frozen):
    """What every method's configuration has."""

    reads: ClassVar[tuple[Modality, ...]] = MODALITIES
    """What it can have a tower of."""
    towers: dict[Modality, TowerConfig]
    """A tower set to null is taken out, so that a recipe can be cut down from the command line."""

    @field_validator("towers", mode="before")
    @classmethod
    def _drop_null_towers(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those with a tower, in the fixed order."""
        return tuple(m for m in MODALITIES if m in self.towers)

    @property
    def locked(self) -> tuple[Modality, ...]:
        """Those whose encoder never changes."""
        return tuple(m for m in self.modalities if self.towers[m].mode == "locked")

    @property
    def adapted(self) -> tuple[Modality, ...]:
        """Those whose encoder learns through adapters alone."""
        return tuple(m for m in self.modalities if self.towers[m].mode == "lora")

    @property
    def cached(self) -> tuple[Modality, ...]:
        """Those whose pooled output is a constant that is computed once and kept."""
        return self.locked

    @property
    def needs(self) -> tuple[tuple[str, ...], ...]:
        """A location is trained on if it has all modalities of one of these."""
        return tuple((m,) for m in self.modalities)

    @property
    def groups(self) -> NeighbourhoodConfig | None:
        """How batches are made of neighbours; None draws locations by themselves."""
        return None

    @property
    def wider(self) -> RegionConfig | None:
        """Which regions around its window are shown with each; None shows windows alone."""
        return None


class Method(nn.Module, abc.ABC):
    """Towers and what is made of them.

    Parameters
    ----------
    config
        What to build.
    encoders
        One per tower. They keep their weights; whatever else there is starts from torch's random state.
    """

    name: ClassVar[str]
    """As in recipes and releases."""
    config_class: ClassVar[type[MethodConfig]]

    def __init__(self, config: MethodConfig, encoders: Mapping[str, Encoder]) -> None:
        super().__init__()
        self.config: Any = config
        for modality, tower in config.towers.items():
            if modality not in encoders or encoders[modality].card.modality != modality:
                raise ContractError(
                    f"no {modality} encoder for its tower", where=modality, mend=f"build {tower.encoder}"
                )
        self.encoders = nn.ModuleDict({m: encoders[m] for m in config.modalities})
        self.scalers = nn.ModuleDict(
            {m: Standardise(encoders[m].card.dim) for m in config.modalities if config.towers[m].standardise}
        )
        self.heads_only = False
        """During the frozen warm-up: towers stay as they are, heads learn."""
        self.progress = 1.0
        """How much of the training is done, 0 to 1; the trainer says so before every step."""
        for modality in self.locked:
            self.encoders[modality].requires_grad_(requires_grad=False)

    @abc.abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Embeddings and losses of a batch."""

    @property
    @abc.abstractmethod
    def loss_names(self) -> tuple[str, ...]:
        """Of the terms that `Output.losses` may hold beside `total`."""

    def start(self, sample: Iterable[Batch]) -> None:
        """Learn what must be known before the first step. Called at every start; a resumed run then restores weights.

        Parameters
        ----------
        sample
            Training batches from all over an epoch, in evaluation; made as they are asked for.
        """

    def finish(self, sample: Iterable[Batch]) -> None:
        """Learn what a release must know of the training data, after the last step; `sample` as in `start`."""

    def scalars(self) -> dict[str, dict[str, float]]:
        """What else is worth a line in the log: what -> name -> value."""
        return {}

    @abc.abstractmethod
    def project(self, modality: str, pooled: Tensor) -> Tensor:
        """(k, dim) from what `pooled` gave for rows of one section."""

    def of_section(self, modality: str, projected: Tensor, centres_um: NDArray[np.float64]) -> Tensor:
        """(k, dim) the embedding of k locations of one section, from what `project` gave for all of them.

        Parameters
        ----------
        centres_um
            (k, 2); NaN where a section is unplaced.
        """
        return projected

    @property
    def fusions(self) -> tuple[str, ...]:
        """Ways in which it makes one embedding of a location's image and expression, its own first; () for none."""
        return ()

    def fusion(self, name: str = "") -> str:
        """One of `fusions`, "" for its own.

        Raises
        ------
        ContractError
            It makes none, or not this one.
        """
        if not self.fusions:
            raise ContractError(
                f"this model of the method {self.name} makes no one embedding of image and expression",
                where=f"its towers: {', '.join(self.modalities)}",
                mend=f"ask for {' or '.join(self.modalities)}",
            )
        if name and name not in self.fusions:
            raise ContractError(
                f"this model has no fusion {name!r}, it has {', '.join(self.fusions)}",
                where=f"method {self.name}",
                mend="ask for one of these; one that is learnt must be in the recipe",
            )
        return name or self.fusions[0]

    def fuse(self, image: Tensor, expression: Tensor, fusion: str = "") -> Tensor:
        """One embedding of locations that have both, of unit length: (k, dim), or (k, 2 dim) for `concat`.

        What needs no training is here, `concat` and `sum`; a method that learns how to fuse adds to it.

        Parameters
        ----------
        image, expression
            (k, dim) embeddings of the same locations.
        fusion
            One of `fusions`; "" takes its own.
        """
        side_by_side = self.fusion(fusion) == "concat"
        both = torch.cat([image, expression], dim=-1) if side_by_side else image + expression
        return F.normalize(both, dim=-1)

    @property
    def reads_surroundings(self) -> bool:
        """Whether the embedding of a location is made of its neighbours', too."""
        return False

    def transductive(self) -> tuple[str, ...]:
        """What of the embeddings comes from the sections that the model is applied to, in words."""
        return ()

    # ---- what is what

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those the model reads."""
        return tuple(self.config.modalities)

    @property
    def locked(self) -> tuple[Modality, ...]:
        """Those whose encoder never changes."""
        return tuple(self.config.locked)

    @property
    def adapted(self) -> tuple[Modality, ...]:
        """Those whose encoder learns through adapters alone."""
        return tuple(self.config.adapted)

    def encoder(self, modality: str) -> Encoder:
        """The encoder of a modality."""
        if modality not in self.encoders:
            raise ContractError(f"the model has no tower for {modality}", where=", ".join(self.modalities))
        found = self.encoders[modality]
        assert isinstance(found, Encoder)
        return found

    def scaler(self, modality: str) -> Standardise:
        """The statistics of a standardised tower."""
        found = self.scalers[modality]
        assert isinstance(found, Standardise)
        return found

    # ---- what learns

    def train(self, mode: bool = True) -> Method:  # noqa: FBT001, FBT002 - the signature of nn.Module
        """Training mode; encoders that do not learn stay in evaluation mode, so their output is a constant."""
        super().train(mode)
        for modality in self.modalities:
            if self.heads_only or modality in (*self.locked, *self.adapted):
                self.encoders[modality].eval()
            if modality in self.adapted and not self.heads_only:
                # Around its adapters the encoder is a constant: neither its dropout nor its statistics take part.
                for module in adapters(self.encoders[modality]).values():
                    module.train(mode)
        return self

    @property
    def apart(self) -> tuple[nn.Module, ...]:
        """Modules whose losses see the rest detached: how large their gradients are must change nothing of it, so that
        they are clipped by themselves."""
        return ()

    def applied(self, modality: str) -> Encoder:
        """The encoder of a modality as the trained model reads it."""
        return self.encoder(modality)

    def learnable(self) -> dict[str, Tensor]:
        """The part of the state that training changes: all but locked encoders, and but what adapters are put on."""
        constant = tuple(f"encoders.{m}." for m in (*self.locked, *self.adapted))
        return {n: t for n, t in self.state_dict().items() if not n.startswith(constant) or self._adapter(n)}

    def _adapter(self, name: str) -> bool:
        return is_adapter(name) and name.startswith(tuple(f"encoders.{m}." for m in self.adapted))

    def pooled(self, modality: str, entry: Mapping[str, Any]) -> Tensor:
        """(k, dim_in) output of a tower's encoder, before its head; `entry` as in `triglyph.models.base`."""
        if "features" in entry:
            features: Tensor = entry["features"]
            return features
        inputs = {name: tensor for name, tensor in entry.items() if name not in ("rows", "copies")}
        with torch.set_grad_enabled(torch.is_grad_enabled() and modality not in self.locked and not self.heads_only):
            pooled = self.encoder(modality).encode(inputs).pooled
        # Copies of one input are encoded once.
        return pooled.index_select(0, entry["copies"]) if "copies" in entry else pooled


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


@cache
def method_class(name: str) -> type[Method]:
    """The method of a name.

    Raises
    ------
    RecipeError
        There is none, or its entry point does not lead to a method of that name.
    """
    entries = _entries()
    if name not in entries:
        raise RecipeError(
            f"there is no method {name!r}",
            where="method",
            mend=f"known: {', '.join(sorted(entries))}{near(name, entries)}",
        )
    found = entries[name].load()
    if not (isinstance(found, type) and issubclass(found, Method) and found.name == name):
        raise RecipeError(
            f"the entry point {name!r} is not a Method of that name",
            where=entries[name].value,
            mend="let it name the class itself",
        )
    return found
