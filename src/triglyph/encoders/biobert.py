"""`biobert`: BioBERT v1.1, BERT-base cased trained on PubMed abstracts, through transformers.

Lee et al., Bioinformatics 36:1234 (2020). The embedding is the pooler's output, as SpatialWhisperer uses it: a dense
layer and tanh on the CLS token. Texts are cut to 128 tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from triglyph.encoders.base import Encoded, EncoderCard, Inputs
from triglyph.encoders.bert import TextEncoder, bert_name, bert_tower, restore_bert_buffers
from triglyph.encoders.hub import HubEncoder
from triglyph.encoders.wordpiece import WordPiece
from triglyph.errors import WeightsError

DEPTH = 12


class BioBert(TextEncoder, HubEncoder):
    """BioBERT v1.1; `depth` below 12 cuts layers off, for tests."""

    card = EncoderCard(
        name="biobert",
        summary="BERT-base cased, trained on PubMed abstracts.",
        licence="Apache-2.0 (the authors' repository; none is stated with the weights)",
        commercial_use=False,  # not known to be allowed: no licence is stated with the weights
        citation="Lee et al., Bioinformatics 36:1234 (2020), doi:10.1093/bioinformatics/btz682",
        homepage="https://huggingface.co/dmis-lab/biobert-v1.1",
        modality="text",
        dim=768,
        pooling="pooler",
        hub_id="dmis-lab/biobert-v1.1",
        revision="093e9f52838be77ae0e6058a9bd56087cd7e65a1",
        parameters=108_310_272,
        max_tokens=128,
        pretrained_on=("PubMed",),
    )
    tensor_files = ("pytorch_model.bin", "model.safetensors")
    extra_files = {"vocabulary": ("vocab.txt",)}  # noqa: RUF012
    config_file = "config.json"
    lowercase = False
    max_tokens = 128

    def __init__(self, *, depth: int = DEPTH) -> None:
        super().__init__()
        self.depth = depth
        self.bert = bert_tower(self.architecture(), pooler=True)
        if depth != DEPTH:
            self.card = type(self).card.model_copy(update={"parameters": sum(p.numel() for p in self.parameters())})

    def architecture(self) -> dict[str, Any]:
        return {
            "vocab_size": 28_996,
            "hidden_size": 768,
            "num_hidden_layers": self.depth,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "hidden_act": "gelu",
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
        }

    def options(self) -> dict[str, Any]:
        return {"depth": self.depth}

    def tower(self) -> nn.Module:
        return self.bert

    def canonical(self, name: str) -> str | None:
        return bert_name(name)

    def restore_buffers(self) -> None:
        restore_bert_buffers(self.bert)

    def read_extra(self, files: dict[str, Path]) -> None:
        path = files["vocabulary"]
        wordpiece = WordPiece.read(path, lowercase=self.lowercase, max_tokens=self.max_tokens)
        rows = self.architecture()["vocab_size"]
        if len(wordpiece.vocabulary) != rows:
            raise WeightsError(f"{len(wordpiece.vocabulary)} tokens, where the model has {rows}", where=path)
        self.wordpiece = wordpiece

    def encode(self, inputs: Inputs) -> Encoded:
        output = self.bert(input_ids=inputs["ids"], attention_mask=inputs["mask"])
        return Encoded(output.pooler_output, output.last_hidden_state, inputs["mask"])
