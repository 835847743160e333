"""`geneformer-12l-30m`: Geneformer, a BERT over genes in rank order, through transformers.

Theodoris et al., Nature 618:616 (2023); the 12-layer model of the 30 M corpus, with the dictionaries of its
repository. The embedding is the mean over real tokens of the second-to-last hidden layer, as SpatialWhisperer uses it.
A published description gives this model 4 attention heads; its `config.json` says 8, and the shapes of its tensors
fit both, so the file decides: `config.json` is compared with the architecture wherever it is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from triglyph.encoders.base import Encoded, EncoderCard, Inputs
from triglyph.encoders.bert import bert_name, bert_tower, masked_mean, restore_bert_buffers
from triglyph.encoders.expression import MeasuredSections, RankEncoder
from triglyph.encoders.hub import HubEncoder
from triglyph.errors import ContractError, WeightsError
from triglyph.genes.medians import FIRST_TOKEN, recomputed_vocabulary
from triglyph.genes.tokens import PAD, RankVocabulary

DEPTH = 12
_MODEL, _CODE = "geneformer-12L-30M", "geneformer"


class Geneformer(RankEncoder, HubEncoder):
    """Geneformer 12L-30M.

    Parameters
    ----------
    max_tokens
        Longest sequence; at most the 2,048 of pretraining.
    depth
        Below 12 it cuts layers off, for tests.
    vocabulary
        `published` reads the dictionaries that come with the weights. `recomputed` makes tokens and non-zero medians
        of the training sections by `fit`, for a tower that starts from scratch: published weights know their genes by
        published tokens.
    """

    card = EncoderCard(
        name="geneformer-12l-30m",
        summary="Rank-based transformer over human genes, 12 layers, pretrained on 30 M single-cell transcriptomes.",
        licence="Apache-2.0",
        commercial_use=True,
        citation="Theodoris et al., Nature 618:616 (2023), doi:10.1038/s41586-023-06139-9",
        homepage="https://huggingface.co/ctheodoris/Geneformer",
        modality="expression",
        dim=512,
        pooling="second-to-last-mean",
        hub_id="ctheodoris/Geneformer",
        revision="9d41e7053af8a702003d99305cee01cd34b62ab7",
        parameters=39_302_144,
        max_tokens=2048,
        pretrained_on=("Genecorpus-30M",),
    )
    tensor_files = (f"{_MODEL}/pytorch_model.bin", f"{_MODEL}/model.safetensors")
    extra_files = {  # noqa: RUF012
        "tokens": (f"{_CODE}/token_dictionary.pkl", "token_dictionary.json", "token_dictionary_gc30M.pkl"),
        "medians": (
            f"{_CODE}/gene_median_dictionary.pkl",
            "gene_median_dictionary.json",
            "gene_median_dictionary_gc30M.pkl",
        ),
    }
    symbol_files = ("gene_name_id_dict.json", "gene_name_id_dict.pkl", "gene_name_id_dict_gc30M.pkl")
    """Optional, local: symbol -> Ensembl id, for sections without ids. They lie beside the token dictionary."""
    config_file = f"{_MODEL}/config.json"

    def __init__(
        self,
        *,
        max_tokens: int = 2048,
        depth: int = DEPTH,
        vocabulary: Literal["published", "recomputed"] = "published",
    ) -> None:
        super().__init__()
        if not 1 <= max_tokens <= (self.card.max_tokens or 0):
            raise ContractError(f"{self.card.name} reads 1 to {self.card.max_tokens} tokens, not {max_tokens}")
        if vocabulary not in ("published", "recomputed"):
            raise ContractError(f"{self.card.name} has no vocabulary {vocabulary!r}", mend="published or recomputed")
        self.max_tokens, self.depth, self.recomputed = max_tokens, depth, vocabulary == "recomputed"
        self.bert = bert_tower(self.architecture(), pooler=False)
        update: dict[str, Any] = {"max_tokens": max_tokens, "fitted": self.recomputed}
        if depth != DEPTH:
            update["parameters"] = sum(p.numel() for p in self.parameters())
        self.card = type(self).card.model_copy(update=update)

    def architecture(self) -> dict[str, Any]:
        return {
            "vocab_size": 25_426,
            "hidden_size": 512,
            "num_hidden_layers": self.depth,
            "num_attention_heads": 8,
            "intermediate_size": 1024,
            "hidden_act": "relu",
            "max_position_embeddings": 2048,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
            "hidden_dropout_prob": 0.02,
            "attention_probs_dropout_prob": 0.02,
        }

    def options(self) -> dict[str, Any]:
        own = {"vocabulary": "recomputed"} if self.recomputed else {}
        return {"max_tokens": self.max_tokens, "depth": self.depth, **own}

    def tower(self) -> nn.Module:
        return self.bert

    def canonical(self, name: str) -> str | None:
        # Fine-tuned releases carry a pooler, which this embedding does not use.
        return None if name.removeprefix("bert.").startswith("pooler.") else bert_name(name)

    def restore_buffers(self) -> None:
        restore_bert_buffers(self.bert)

    # ---- the vocabulary

    @classmethod
    def learns(cls, options: Mapping[str, Any]) -> bool:
        return options.get("vocabulary") == "recomputed"

    def fit(self, training: Iterable[Any]) -> None:
        """Tokens and non-zero medians of `Expression`s of the training sections; see `genes.medians`."""
        if not self.recomputed:
            super().fit(training)
        room = self.architecture()["vocab_size"] - FIRST_TOKEN
        self.use(recomputed_vocabulary(MeasuredSections(self, training), max_genes=room), where="training sections")

    def read_extra(self, files: dict[str, Path]) -> None:
        if self.recomputed:
            raise WeightsError(
                f"{self.card.name} with published weights reads published tokens, not recomputed ones",
                where=files["tokens"],
                mend="leave out the option vocabulary, or use mode: scratch",
            )
        beside = [files["tokens"].with_name(name) for name in self.symbol_files]
        symbols = next((path for path in beside if path.is_file()), None)
        self.use(RankVocabulary.read(files["tokens"], files["medians"], symbols), where=files["tokens"])

    def use(self, vocabulary: RankVocabulary, *, where: Path | str) -> None:
        rows = self.architecture()["vocab_size"]
        if vocabulary.size > rows:
            raise WeightsError(
                f"token ids up to {vocabulary.size - 1}, where the model has {rows} tokens",
                where=where,
                mend="use the dictionaries of the 30M corpus; those of the 95M corpus belong to other models",
            )
        self.vocabulary = vocabulary

    # ---- encoding

    def prepare(self, raw: Any) -> Inputs:
        return self.rank_inputs(raw, max_tokens=self.max_tokens)

    def encode(self, inputs: Inputs) -> Encoded:
        ids, mask = inputs["ids"], inputs["mask"]
        # Attention over nothing has no answer; a row without tokens looks at one pad, and is zeroed below.
        seen = mask | (~mask.any(dim=1, keepdim=True) & (ids == PAD))
        tokens = self.bert(input_ids=ids, attention_mask=seen, output_hidden_states=True).hidden_states[-2]
        return Encoded(masked_mean(tokens, mask), tokens, mask)
