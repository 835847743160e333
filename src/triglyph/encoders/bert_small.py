"""`bert-small`: a small BERT to train from scratch on the captions of a cohort.

Its WordPiece vocabulary is learnt by `fit` from training captions, and saved with the model. The embedding is the mean
over tokens: from scratch, a CLS token learns slower.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from triglyph.encoders.base import Encoded, EncoderCard, Inputs
from triglyph.encoders.bert import TextEncoder, bert_tower, masked_mean
from triglyph.encoders.wordpiece import learn_vocabulary


class BertSmall(TextEncoder):
    """A BERT of a few layers.

    Parameters
    ----------
    dim, depth, heads
        Width, number of layers, attention heads.
    vocabulary_size
        Rows of the token embedding; `fit` learns at most as many tokens.
    max_tokens
        Longest caption.
    """

    card = EncoderCard(
        name="bert-small",
        summary="Small BERT with a vocabulary learnt from training captions; the offline default for text.",
        licence="Apache-2.0",
        commercial_use=True,
        citation="Devlin et al., NAACL 2019 (BERT)",
        homepage="https://github.com/huggingface/transformers",
        modality="text",
        dim=128,
        pooling="mean",
        weights="random",
        fitted=True,
        max_tokens=64,
    )
    lowercase = True

    def __init__(
        self, *, dim: int = 128, depth: int = 2, heads: int = 4, vocabulary_size: int = 2048, max_tokens: int = 64
    ) -> None:
        super().__init__()
        self.max_tokens, self.vocabulary_size = max_tokens, vocabulary_size
        self._shape = {"dim": dim, "depth": depth, "heads": heads}
        self.bert = bert_tower(
            {
                "vocab_size": vocabulary_size,
                "hidden_size": dim,
                "num_hidden_layers": depth,
                "num_attention_heads": heads,
                "intermediate_size": 4 * dim,
                "max_position_embeddings": max_tokens,
            },
            pooler=False,
        )
        count = sum(p.numel() for p in self.parameters())
        update = {"dim": dim, "max_tokens": max_tokens, "parameters": count}
        self.card = type(self).card.model_copy(update=update)

    def options(self) -> dict[str, Any]:
        return {**self._shape, "vocabulary_size": self.vocabulary_size, "max_tokens": self.max_tokens}

    def fit(self, training: Iterable[Any]) -> None:
        """Learn the vocabulary from lists of captions, one list a training section."""
        captions = (caption for section in training for caption in section)
        self._use(learn_vocabulary(captions, size=self.vocabulary_size, lowercase=self.lowercase))

    def encode(self, inputs: Inputs) -> Encoded:
        mask = inputs["mask"]
        tokens = self.bert(input_ids=inputs["ids"], attention_mask=mask).last_hidden_state
        return Encoded(masked_mean(tokens, mask), tokens, mask)
