"""`stamp-genes`: Stamp's gene encoder, to train from scratch: a transformer over genes in anomaly-rank order.

Han et al., ICLR 2026, arXiv 2602.13944 (the gene encoder of stage 1; its architecture is Nicheformer's). A location is
the list of its genes, largest count / non-zero mean first, cut to 1,500. Each token is the sum of an embedding of its
gene and one of its rank; post-norm layers read them (or pre-norm ones, `norm_first`), and the mean of the last layer is
the embedding.

`fit` learns genes and means from training sections. Sequences are packed, so nothing is computed for pads, and every
real token enters the mean: the release, which takes over Nicheformer's cut of three leading context tokens without
having any, leaves out the three most anomalous genes and averages over pads (`stamp-release`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triglyph.encoders.base import Encoded, EncoderCard, Inputs
from triglyph.encoders.expression import MeasuredSections, RankEncoder
from triglyph.encoders.packed import PackedTransformer, pack, positions, segment_mean, unpack
from triglyph.errors import ContractError
from triglyph.genes import medians, tokens
from triglyph.genes.means import Scale, means_vocabulary
from triglyph.genes.tokens import RankVocabulary

PAD = tokens.PAD
"""Stands where a list of tokens has ended; never embedded."""
MASK = 1
"""Stands for a gene that a model is asked to name."""
FIRST = medians.FIRST_TOKEN
"""The first token that is a gene."""


class StampGenes(RankEncoder):
    """Stamp's gene encoder.

    Parameters
    ----------
    dim, depth, heads, feedforward
        Width of tokens and embedding, layers, attention heads, width of hidden units. The defaults are Stamp's.
    max_tokens
        Longest list of genes; those of later rank are cut.
    genes
        At most so many genes are in the vocabulary: those that occur at most training locations. None for all.
    dropout
        In the transformer, in training. Stamp has none.
    scale
        What counts are divided by: the exact non-zero `mean`, or the `rounded_mean` of the release.
    norm_first
        Layers norm what they read instead of what they give, so that the embedding keeps how large each gene's vector
        is. False norms every sum, as Stamp does.
    rank_decay
        In the embedding, token r (0, 1, ...) of L weighs 1 / sqrt(1 + (r / rank_decay)²) / L, so that where most genes
        are found at most locations it still matters which come first. None weighs all alike, as Stamp does.
    """

    card = EncoderCard(
        name="stamp-genes",
        summary="Stamp's transformer over genes in anomaly-rank order, trained from scratch on its own vocabulary.",
        licence="Apache-2.0",
        commercial_use=True,
        citation="Han et al., ICLR 2026, arXiv 2602.13944",
        homepage="https://arxiv.org/abs/2602.13944",
        modality="expression",
        dim=512,
        pooling="mean",
        weights="random",
        fitted=True,
        max_tokens=1500,
    )

    def __init__(
        self,
        *,
        dim: int = 512,
        depth: int = 12,
        heads: int = 16,
        feedforward: int = 1024,
        max_tokens: int = 1500,
        genes: int | None = None,
        dropout: float = 0.0,
        scale: Scale = "mean",
        norm_first: bool = False,
        rank_decay: float | None = None,
    ) -> None:
        super().__init__()
        if max_tokens < 1 or (genes is not None and genes < 1):
            raise ContractError(f"{self.card.name} of {max_tokens} tokens and {genes} genes", mend="give at least 1")
        if scale not in ("mean", "rounded_mean"):
            raise ContractError(f"{self.card.name} has no scale {scale!r}", mend="mean or rounded_mean")
        if rank_decay is not None and not rank_decay > 0:
            raise ContractError(f"{self.card.name} with a rank_decay of {rank_decay}", mend="give a positive number")
        self._options: dict[str, Any] = {
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "feedforward": feedforward,
            "max_tokens": max_tokens,
            "genes": genes,
            "dropout": dropout,
            "scale": scale,
            "norm_first": norm_first,
            "rank_decay": rank_decay,
        }
        self.gene_embedding = nn.Embedding(FIRST, dim)
        self.rank_embedding = nn.Embedding(max_tokens, dim)
        self.transformer = PackedTransformer(
            dim, depth=depth, heads=heads, feedforward=feedforward, dropout=dropout, norm_first=norm_first
        )
        self._describe()

    def options(self) -> dict[str, Any]:
        return dict(self._options)

    @property
    def n_tokens(self) -> int:
        """Tokens that have an embedding, `PAD` and `MASK` among them: what a head that names genes chooses from."""
        return self.gene_embedding.num_embeddings

    # ---- what is learnt before training

    def fit(self, training: Iterable[Any]) -> None:
        """Genes and their non-zero means from `Expression`s of raw counts, one a training section.

        Raises
        ------
        GeneError
            No training section has a count of a gene, or counts are not whole numbers.
        """
        sections = MeasuredSections(self, training)
        found = means_vocabulary(sections, max_genes=self._options["genes"], scale=self._options["scale"])
        self.use(found, where="training sections")

    def use(self, vocabulary: RankVocabulary, *, where: Path | str) -> None:
        self.vocabulary = vocabulary
        if vocabulary.size != self.n_tokens:
            weight = self.gene_embedding.weight
            self.gene_embedding = nn.Embedding(
                vocabulary.size, weight.shape[1], device=weight.device, dtype=weight.dtype
            )
            self._describe()

    def _describe(self) -> None:
        count = sum(p.numel() for p in self.parameters())
        update = {"dim": self._options["dim"], "max_tokens": self._options["max_tokens"], "parameters": count}
        self.card = type(self).card.model_copy(update=update)

    # ---- encoding

    def prepare(self, raw: Any) -> Inputs:
        return self.rank_inputs(raw, max_tokens=self._options["max_tokens"])

    def hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The last layer at every token.

        Parameters
        ----------
        ids
            (total,) packed tokens in rank order; `MASK` may stand for some.
        lengths
            (n,) int64, of the lists.

        Returns
        -------
        Tensor
            (total, dim).

        Raises
        ------
        ContractError
            A list is longer than `max_tokens`.
        """
        limit = self.rank_embedding.num_embeddings
        if len(lengths) and (longest := int(lengths.max())) > limit:
            raise ContractError(
                f"a list of {longest} genes, where {self.card.name} reads {limit}",
                mend="cut lists, or raise max_tokens",
            )
        return self.transformer(self.gene_embedding(ids) + self.rank_embedding(positions(lengths)), lengths)

    def rank_weights(self, lengths: Tensor) -> Tensor:
        """(total,) float32 weight of each packed token in the mean that is the embedding; lists of `lengths` (n,)."""
        rank = positions(lengths).float()
        decay = self._options["rank_decay"]
        return torch.ones_like(rank) if decay is None else torch.rsqrt(1.0 + (rank / decay).square())

    def pool(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """(n, dim) embeddings from the last layer (total, dim) of lists of `lengths` (n,); 0 without tokens."""
        if self._options["rank_decay"] is None:
            return segment_mean(rows, lengths)
        return segment_mean(rows * self.rank_weights(lengths)[:, None], lengths)

    def encode(self, inputs: Inputs) -> Encoded:
        """The embedding, 0 for a location without tokens; and the tokens, 0 at pads."""
        ids, lengths = pack(inputs["ids"], inputs["mask"])
        rows = self.hidden(ids, lengths)
        return Encoded(self.pool(rows, lengths), unpack(rows, inputs["mask"]), inputs["mask"])
