"""The contract of every encoder, whatever it reads.

An encoder is an `nn.Module` with a card. `prepare` turns raw input of its modality into tensors on the CPU (it runs
in loader workers); `encode` turns those tensors into `Encoded`. What must be learnt from training data before the
first step (a vocabulary, a gene list) is learnt by `fit`, from training sections alone.

| modality   | raw input of `prepare`                                    |
|------------|-----------------------------------------------------------|
| image      | `uint8` array (n, px, px, 3) of windows at the card's mpp |
| expression | `Expression`                                              |
| text       | `list[str]`                                               |
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from triglyph.cards import Card, digest

Modality = Literal["image", "expression", "text"]
Inputs = dict[str, Tensor]
"""Tensors whose first axis is the row of the batch."""


class HubCard(Card):
    """Where weights are published on the Hugging Face hub."""

    hub_id: str = ""
    revision: str = ""
    gated: bool = False


class EncoderCard(HubCard):
    """What a user must know before using an encoder; readable without importing its code."""

    modality: Modality
    dim: int
    """Width of `Encoded.pooled`."""
    pooling: str
    """`cls`, `mean`, `cls+mean`, `pooler`, `second-to-last-mean`, `none`."""
    weights: Literal["none", "random", "hub"] = "hub"
    """`none`: has no parameters; `random`: starts untrained; `hub`: weights are loaded, strictly."""
    fitted: bool = False
    """Whether `fit` must see training data first."""
    parameters: int | None = None
    # image
    input_px: int | None = None
    mpp: float | None = None
    """µm per pixel of the input; None reads level 0 as it is and is declared as unscaled wherever it is used."""
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    # expression, text
    max_tokens: int | None = None
    transform_version: int = 1
    """Raise it when `prepare` or `encode` changes what it computes, so that stored features are made anew."""
    # leakage
    pretrained_on: tuple[str, ...] = ()
    """Datasets the weights have seen, by name."""
    seen: tuple[str, ...] = ()
    """Sections they have seen: `dataset:section`, `dataset:*`, or a bare section id; the audit looks for them."""

    @property
    def window_um(self) -> float | None:
        """Side of the square of tissue an image encoder sees, µm."""
        return None if self.input_px is None or self.mpp is None else self.input_px * self.mpp


FUNCTIONAL = ("name", "dim", "pooling", "input_px", "mpp", "mean", "std", "max_tokens", "transform_version")
"""Fields of a card that decide an encoder's output; the rest is prose, and correcting it orphans no stored feature."""


class Encoded(NamedTuple):
    """Output of every encoder."""

    pooled: Tensor
    """(n, dim)"""
    tokens: Tensor | None = None
    """(n, length, token_dim)"""
    mask: Tensor | None = None
    """(n, length), True where a token is real"""


@dataclass(frozen=True)
class Expression:
    """Raw counts of locations of one section."""

    counts: sp.csr_matrix
    """(n, genes), integer"""
    symbols: tuple[str, ...]
    ensembl_ids: tuple[str, ...]
    """"" where unknown"""
    measured: NDArray[np.bool_]
    """(genes,), False where the platform did not look: not zero but unknown"""


class Encoder(nn.Module, abc.ABC):
    """Base of all encoders. A subclass sets `card` in `__init__` and says its `options`."""

    card: EncoderCard
    modality: ClassVar[Modality]

    @abc.abstractmethod
    def prepare(self, raw: Any) -> Inputs:
        """Raw input of this modality as CPU tensors, first axis = row."""

    def readable(self, inputs: Inputs) -> Tensor | None:
        """(n,) bool, rows of which the encoder reads anything at all; None: all of them."""
        return None

    @abc.abstractmethod
    def encode(self, inputs: Inputs) -> Encoded:
        """Prepared inputs, on the module's device, as `Encoded`."""

    def forward(self, inputs: Inputs) -> Encoded:
        return self.encode(inputs)

    def options(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this encoder; JSON-serialisable."""
        return {}

    @classmethod
    def learns(cls, options: Mapping[str, Any]) -> bool:
        """Whether an encoder built with `options` must see training data before its first step; see `fit`."""
        return cls.card.fitted

    def fit(self, training: Iterable[Any]) -> None:
        """Learn the vocabulary from raw inputs of training sections. Encoders whose card is not `fitted` refuse.

        `training` can be read more than once, the same each time.
        """
        raise TypeError(f"{self.card.name} has nothing to fit")

    def assets(self) -> dict[str, Any]:
        """What `fit` learnt, JSON-serialisable; part of the fingerprint and of every saved model."""
        return {}

    def load_assets(self, assets: dict[str, Any]) -> None:
        """Restore what `fit` learnt. May resize parameters, so call it before loading a state dict."""
        if assets:
            raise ValueError(f"{self.card.name} has no assets, but {sorted(assets)} were given")

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the weights, the input transform, the scale or the vocabulary."""
        card = self.card.model_dump(mode="json", include=set(FUNCTIONAL))
        h = hashlib.sha256(digest([card, self.options(), self.assets()]).encode())
        for name, tensor in sorted(self.state_dict().items()):
            h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            h.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return h.hexdigest()[:16]
