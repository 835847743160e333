"""What encoders built on transformers' `BertModel` share, be their tokens words or genes.

Padding is masked in attention and in pooling, so that it never changes an output; a row without a single token gives
zeros, not NaN.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from triglyph.encoders.base import Encoder, Inputs, Modality
from triglyph.encoders.wordpiece import WordPiece
from triglyph.errors import ContractError

if TYPE_CHECKING:
    from transformers import BertModel

_UNUSED = re.compile(r"(bert\.)?(cls\.|embeddings\.position_ids$)")
"""Heads of pretraining, and a buffer that old versions saved."""


def bert_tower(config: dict[str, Any], *, pooler: bool) -> BertModel:
    """A `BertModel` of random weights; `config` holds fields of `BertConfig`."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**config, pad_token_id=0), add_pooling_layer=pooler)


def bert_name(name: str) -> str | None:
    """A tensor's name in today's `BertModel`; None for what the encoders do not use."""
    if _UNUSED.match(name):
        return None
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def restore_bert_buffers(bert: nn.Module) -> None:
    """Positions and token types, which no checkpoint holds."""
    embeddings: Any = bert.embeddings
    positions = torch.arange(embeddings.position_embeddings.num_embeddings).expand(1, -1)
    embeddings.register_buffer("position_ids", positions, persistent=False)
    embeddings.register_buffer("token_type_ids", torch.zeros_like(positions), persistent=False)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens, (n, length, dim) and (n, length) -> (n, dim); zeros where there is none."""
    kept = tokens.masked_fill(~mask[..., None], 0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


class TextEncoder(Encoder):
    """Base of text encoders with a WordPiece vocabulary."""

    modality: ClassVar[Modality] = "text"
    lowercase: ClassVar[bool]
    max_tokens: int

    def __init__(self) -> None:
        super().__init__()
        self.wordpiece: WordPiece | None = None

    def prepare(self, raw: Any) -> Inputs:
        """Texts as `ids` and `mask`, (n, length).

        Raises
        ------
        ContractError
            There is no vocabulary yet.
        """
        if self.wordpiece is None:
            mend = "call `fit` on training captions" if self.card.fitted else "load weights, or its assets"
            raise ContractError(f"{self.card.name} has no vocabulary yet", mend=mend)
        if isinstance(raw, str) or not all(isinstance(text, str) for text in raw):
            raise ContractError(f"{self.card.name} reads a list of strings", mend="give one string a location")
        ids, mask = self.wordpiece(raw)
        return {"ids": ids, "mask": mask}

    def assets(self) -> dict[str, Any]:
        return {} if self.wordpiece is None else {"vocabulary": list(self.wordpiece.vocabulary)}

    def load_assets(self, assets: dict[str, Any]) -> None:
        if assets:
            self._use(assets["vocabulary"])

    def _use(self, vocabulary: Iterable[str]) -> None:
        self.wordpiece = WordPiece(tuple(vocabulary), lowercase=self.lowercase, max_tokens=self.max_tokens)
