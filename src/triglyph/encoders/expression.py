"""What all expression encoders share: whatever the panel and the order of genes, a section is read by gene identity."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from triglyph.encoders.base import Encoder, Expression, Inputs, Modality
from triglyph.errors import ContractError
from triglyph.genes.medians import Measured
from triglyph.genes.tokens import RankVocabulary


class ExpressionEncoder(Encoder, abc.ABC):
    """Base of expression encoders."""

    modality: ClassVar[Modality] = "expression"
    whole_counts: ClassVar[bool] = False
    """Whether it ranks genes, and so reads whole numbers alone; a factor of a whole row then changes nothing."""

    @abc.abstractmethod
    def matched(self, expression: Expression) -> tuple[int, int]:
        """How many of the encoder's genes a section measured, and how many it knows."""

    def checked(self, raw: Any) -> Expression:
        """`raw`, if it is an `Expression` whose parts fit together."""
        if not isinstance(raw, Expression):
            raise ContractError(f"{self.card.name} reads an Expression, not {type(raw).__name__}")
        genes = raw.counts.shape[1]
        if not len(raw.symbols) == len(raw.ensembl_ids) == len(raw.measured) == genes:
            raise ContractError(
                f"{genes} columns of counts, {len(raw.symbols)} symbols, {len(raw.ensembl_ids)} Ensembl ids and "
                f"{len(raw.measured)} marks of measurement"
            )
        return raw


class RankEncoder(ExpressionEncoder, abc.ABC):
    """Base of those that read a location as the list of its genes in rank order."""

    whole_counts = True
    vocabulary: RankVocabulary | None = None
    """Published with the weights, learnt by `fit`, or of a saved model."""

    @abc.abstractmethod
    def use(self, vocabulary: RankVocabulary, *, where: Path | str) -> None:
        """Take a vocabulary, if it fits the architecture; `where` names its origin in errors."""

    def known(self) -> RankVocabulary:
        """The vocabulary.

        Raises
        ------
        ContractError
            There is none yet.
        """
        if self.vocabulary is None:
            mend = "call `fit` on training sections, load published weights, or load its assets"
            raise ContractError(f"{self.card.name} has no vocabulary of genes yet", mend=mend)
        return self.vocabulary

    def assets(self) -> dict[str, Any]:
        return {} if self.vocabulary is None else self.vocabulary.to_json()

    def load_assets(self, assets: dict[str, Any]) -> None:
        if assets:
            self.use(RankVocabulary.from_json(assets), where="assets")

    def matched(self, expression: Expression) -> tuple[int, int]:
        vocabulary, e = self.known(), self.checked(expression)
        return vocabulary.known(e.symbols, e.ensembl_ids, e.measured), len(vocabulary.tokens)

    def readable(self, inputs: Inputs) -> Tensor:
        """Rows with a gene of the vocabulary."""
        return inputs["mask"].any(dim=1)

    def rank_inputs(self, raw: Any, *, max_tokens: int) -> Inputs:
        """`ids` and `mask`, (n, length): genes in rank order. A location without a known count has no real token."""
        e = self.checked(raw)
        ids, lengths = self.known().encode(e.counts, e.symbols, e.ensembl_ids, e.measured, max_tokens=max_tokens)
        mask = torch.arange(ids.shape[1]) < torch.from_numpy(lengths)[:, None]
        return {"ids": torch.from_numpy(ids), "mask": mask}


class MeasuredSections:
    """Training `Expression`s as `genes.medians` and `genes.means` read them, as often as they like."""

    def __init__(self, encoder: ExpressionEncoder, training: Iterable[Any]) -> None:
        self.encoder, self.training = encoder, training

    def __iter__(self) -> Iterator[Measured]:
        for raw in self.training:
            e = self.encoder.checked(raw)
            yield e.counts, e.symbols, e.ensembl_ids, e.measured
