"""`gene-mlp`: an MLP on the most variable genes, to train from scratch.

`fit` chooses the genes by the variance of log1p CP10k among genes that every training section measured, and learns
their mean and deviation. A section is read by Ensembl id or symbol, in any order.

A gene that a section did not measure is not zero: after standardisation it is 0, the training mean, and the others are
scaled by genes / measured genes. That is what input dropout does in training, so a smaller panel looks to the network
like a dropout mask it has met. Where genes are missing, the panel is another, and its total says little about depth:
the library is then estimated from the vocabulary's measured genes and their share of training counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from triglyph.encoders.base import Encoded, EncoderCard, Expression, Inputs
from triglyph.encoders.expression import ExpressionEncoder
from triglyph.errors import ContractError, GeneError
from triglyph.genes.ids import GeneVocabulary
from triglyph.genes.variable import GeneMoments, library_size, log1p_cp10k

_STATISTICS = ("mean", "std", "share", "log_library")


class GeneMLP(ExpressionEncoder):
    """Linear, LayerNorm, GELU, dropout, linear on standardised log1p CP10k.

    Parameters
    ----------
    dim, hidden
        Width of the embedding and of the hidden layer; without a hidden layer (0) it is one linear map.
    genes
        At most so many genes are chosen.
    input_dropout, dropout
        Of genes, and of hidden units, in training.
    library_size
        Also give the network the log library size. Off, so that sequencing depth is no feature.
    """

    card = EncoderCard(
        name="gene-mlp",
        summary="MLP on the most variable genes of the training sections; the offline default for expression.",
        licence="Apache-2.0",
        commercial_use=True,
        citation="Triglyph",
        homepage="https://pypi.org/project/triglyph",
        modality="expression",
        dim=128,
        pooling="none",
        weights="random",
        fitted=True,
    )

    def __init__(
        self,
        *,
        dim: int = 128,
        hidden: int = 256,
        genes: int = 1000,
        input_dropout: float = 0.1,
        dropout: float = 0.1,
        library_size: bool = False,
    ) -> None:
        super().__init__()
        self._options: dict[str, Any] = {
            "dim": dim,
            "hidden": hidden,
            "genes": genes,
            "input_dropout": input_dropout,
            "dropout": dropout,
            "library_size": library_size,
        }
        self.vocabulary: GeneVocabulary | None = None
        self._statistics: dict[str, NDArray[np.float64]] = {}
        self.input_dropout = nn.Dropout(input_dropout)
        self.first = nn.Linear(genes + int(library_size), hidden or dim)
        self.rest = nn.Sequential()
        if hidden:
            self.rest.extend([nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim)])
        count = sum(p.numel() for p in self.parameters())
        self.card = type(self).card.model_copy(update={"dim": dim, "parameters": count})

    def options(self) -> dict[str, Any]:
        return dict(self._options)

    # ---- what is learnt before training

    def fit(self, training: Iterable[Any]) -> None:
        """Choose genes and learn their statistics from `Expression`s, one a training section.

        Raises
        ------
        GeneError
            The training sections share no gene, or none of the shared ones varies.
        """
        moments = GeneMoments()
        for raw in training:
            e = self.checked(raw)
            moments.add(e.counts, e.symbols, e.ensembl_ids, e.measured)
        found = moments.finish()
        chosen = found.most_variable(self._options["genes"])
        if not len(chosen):
            raise GeneError("no gene that the training sections share varies", mend="check that counts are raw")
        self._use(
            GeneVocabulary.of([found.genes[i] for i in chosen]),
            {
                "mean": found.mean[chosen],
                "std": np.sqrt(found.variance[chosen]),
                "share": found.share[chosen],
                "log_library": np.array([found.log_library_mean, found.log_library_std]),
            },
        )

    def assets(self) -> dict[str, Any]:
        if self.vocabulary is None:
            return {}
        statistics = {name: self._statistics[name].tolist() for name in _STATISTICS}
        return {"vocabulary": self.vocabulary.model_dump(mode="json"), **statistics}

    def load_assets(self, assets: dict[str, Any]) -> None:
        if assets:
            vocabulary = GeneVocabulary.model_validate(assets["vocabulary"])
            self._use(vocabulary, {name: np.asarray(assets[name], dtype=np.float64) for name in _STATISTICS})

    def _use(self, vocabulary: GeneVocabulary, statistics: dict[str, NDArray[np.float64]]) -> None:
        self.vocabulary, self._statistics = vocabulary, statistics
        inputs = len(vocabulary) + int(self._options["library_size"])
        if inputs != self.first.in_features:
            # Fewer genes vary than were asked for.
            device, dtype = self.first.weight.device, self.first.weight.dtype
            self.first = nn.Linear(inputs, self.first.out_features, device=device, dtype=dtype)
            count = sum(p.numel() for p in self.parameters())
            self.card = self.card.model_copy(update={"parameters": count})

    # ---- encoding

    def matched(self, expression: Expression) -> tuple[int, int]:
        vocabulary = self._fitted()
        e = self.checked(expression)
        selection = vocabulary.select(e.symbols, e.ensembl_ids, e.measured)
        return int(selection.measured.sum()), len(vocabulary)

    def prepare(self, raw: Any) -> Inputs:
        """`values` (n, genes), standardised, 0 where unmeasured; `scale` (n, 1) genes / measured genes; `library`
        (n, 1), the standardised log library size."""
        vocabulary, e, s = self._fitted(), self.checked(raw), self._statistics
        matrix, there = vocabulary.select(e.symbols, e.ensembl_ids, e.measured)
        counts = e.counts.astype(np.float64) @ matrix
        if there.all():
            library = library_size(e.counts, e.measured)
        else:
            share = s["share"][there].sum()
            # Without any known count there is no estimate, and every value below is masked or zero.
            library = np.asarray(counts.sum(axis=1)).ravel() / (share if share > 0 else 1.0)
        logs = log1p_cp10k(counts, library).toarray()
        values = np.where(there, (logs - s["mean"]) / s["std"], 0)
        mean, std = s["log_library"]
        depth = (np.log1p(library) - mean) / (std if std > 0 else 1.0)
        scale = np.full((len(values), 1), len(vocabulary) / max(1, int(there.sum())))
        return {
            "values": torch.from_numpy(values.astype(np.float32)),
            "scale": torch.from_numpy(scale.astype(np.float32)),
            "library": torch.from_numpy((depth[:, None] * bool(there.any())).astype(np.float32)),
        }

    def encode(self, inputs: Inputs) -> Encoded:
        genes = self.input_dropout(inputs["values"]) * inputs["scale"]
        if self._options["library_size"]:
            genes = torch.cat([genes, inputs["library"]], dim=1)
        return Encoded(self.rest(self.first(genes)))

    def _fitted(self) -> GeneVocabulary:
        if self.vocabulary is None:
            raise ContractError(
                f"{self.card.name} has no genes yet", mend="call `fit` on training sections, or load its assets"
            )
        return self.vocabulary
