"""`hescape-expression`: does alignment help or hurt the prediction of expression from an image?

HESCAPE runs HEST-Benchmark's regression on image embeddings before and after contrastive alignment with expression,
and finds them worse after it. Here both are judged on the same trial in one table: `NAME`, the aligned embedding, and
`NAME: before alignment`, what the tower's encoder gave its head. Of a frozen tower the latter is the unimodal encoder;
where the tower was fine-tuned, judge the unimodal encoder's stored features as well (`--embedding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.contracts import Array, Embedder, Subject, Trial
from triglyph.bench.expression.predictors import Learner, ShuffledPairs
from triglyph.bench.features import Features
from triglyph.bench.hest.protocol import HestBenchmark, Pca
from triglyph.bench.protocol import ProtocolCard
from triglyph.errors import ContractError
from triglyph.metrics.result import Result

BEFORE = "before alignment"


class HescapeExpression(HestBenchmark):
    """HEST-Benchmark's ridge without PCA, on an aligned embedding and on what it was made of."""

    name: ClassVar[str] = "hescape-expression"
    differs: ClassVar[str] = "without PCA; aligned embeddings and the features that they are made of side by side"

    features: Literal["embedding"] = "embedding"
    """Both are always judged."""
    pca: Pca = "none"

    def card(self) -> ProtocolCard:
        card = super().card()
        return card.model_copy(
            update={
                "citation": f"{card.citation}; Gindra et al., HESCAPE, ICCV workshops 2025",
                "aggregations": {
                    **card.aggregations,
                    f"rows of NAME: {BEFORE}": "the same of the pooled features of the subject's encoder; none where "
                    "these are the embedding",
                },
            }
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        out = super().run(subject, trial)
        source = subject.source
        if isinstance(source.source if isinstance(source, ShuffledPairs) else source, Features | Learner):
            return out
        before = replace(
            subject,
            name=f"{subject.name}: {BEFORE}",
            source=Unaligned(source),
            role="baseline" if subject.role == "method" else subject.role,
        )
        return out + super().run(before, trial)


@dataclass(frozen=True)
class Unaligned:
    """An embedder seen before its heads: `embed` is what `pooled` was."""

    source: Embedder

    @property
    def modalities(self) -> Sequence[str]:
        """Of the source."""
        return self.source.modalities

    @property
    def training_sections(self) -> Sequence[str]:
        """Of the source: its rows stand beside each other, at one level."""
        return self.source.training_sections

    def embed(self, section: Any, modality: Any) -> tuple[Array, NDArray[np.bool_]]:
        """(n, dim) of the source's encoder."""
        return self.source.pooled(section, modality)

    def pooled(self, section: Any, modality: Any) -> tuple[Array, NDArray[np.bool_]]:
        """As `embed`."""
        return self.source.pooled(section, modality)

    def embed_text(self, texts: list[str]) -> Array:
        """Refused: words lie in the space of alignment."""
        raise ContractError("there are no words before alignment", mend="judge the aligned model")
