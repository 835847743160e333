"""Images through genes: a ridge predicts expression from image features, and a model of expression embeds that.

The two-stage baseline of SpatialWhisperer's table (there: UNI2-h features to 17,851 genes, then Geneformer): whoever
can predict expression from an image can ask an expression-text model about images without ever aligning the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.bench.contracts import Array, Trial
from triglyph.bench.genes import common_genes
from triglyph.bench.parts import cut, whole_of
from triglyph.bench.ridge import fit_ridge
from triglyph.errors import ContractError
from triglyph.metrics.expression import log1p_cp10k

if TYPE_CHECKING:
    from triglyph.apply.trained import TrainedModel
    from triglyph.encoders.base import Encoder

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
WHOLE = 10_000.0
"""Rank encoders read whole numbers: predicted CP10k are told to one part in so many."""


@dataclass
class ThroughGenes:
    """An `Embedder` of image and text, whose images are embedded as the expression predicted for them."""

    trained: TrainedModel
    image: Callable[[Any], tuple[Floats, Bools]]
    """Features (n, d) of a section and which locations have them."""
    predict: Callable[[Floats], Floats]
    """(n, d) features to (n, genes) log1p CP10k."""
    genes: tuple[tuple[str, str], ...]
    """Symbol and Ensembl id of each gene that is predicted."""
    training_sections: Sequence[str]
    modalities: tuple[str, ...] = ("image", "text")
    kept: dict[Any, tuple[Array, Bools]] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(cls, trained: TrainedModel, encoder: Encoder, trial: Trial) -> ThroughGenes:
        """Ridge from `encoder`'s features to all genes that the trial's sections with an image share.

        Parameters
        ----------
        trained
            A model with an expression and a text tower.
        encoder
            Of images, frozen.
        trial
            Whose training sections with an image the ridge is fitted on.

        Raises
        ------
        ContractError
            No training section has an image.
        """
        from triglyph.training.features import encode_section

        fingerprint = encoder.fingerprint()

        def features(section: Any) -> tuple[Floats, Bools]:
            whole = whole_of(section)
            encode_section(whole, encoder, fingerprint=fingerprint)
            stored = whole.embeddings.read(fingerprint)
            values, present = cut(section, np.asarray(stored.values), np.asarray(stored.present))
            return values.astype(np.float64), present

        pictured = [s for s in trial.train if whole_of(s).has_image()]
        if not pictured:
            raise ContractError("no training section has an image", where=f"split {trial.split!r}")
        symbols = common_genes([*pictured, *(s for s in trial.test if whole_of(s).has_image())])
        sides = []
        for section in pictured:
            x, present = features(section)
            target, counted = _profiles(section, symbols)
            kept = present & counted
            sides.append((x[kept], target[kept]))
        _, names, ids, _ = pictured[0].expression()
        ensembl = dict(zip(names, ids, strict=True))
        seen = dict.fromkeys([*trained.training_sections, *(s.id for s in trial.train)])
        return cls(
            trained,
            features,
            fit_ridge(sides, where="through genes"),
            tuple((g, ensembl[g]) for g in symbols),
            tuple(seen),
        )

    def embed(self, section: Any, modality: Any) -> tuple[Array, Bools]:
        """(n, dim) in the model's space, and which of the n locations have the modality."""
        if modality != "image":
            return self.trained.embed(section, modality)
        if section.id not in self.kept:
            self.kept[section.id] = self._pictured(section)
        return self.kept[section.id]

    pooled = embed

    def embed_text(self, texts: list[str]) -> Array:
        """(k, dim), as the model's."""
        return self.trained.embed_text(texts)

    def _pictured(self, section: Any) -> tuple[Array, Bools]:
        import torch

        from triglyph.encoders.base import Expression
        from triglyph.encoders.expression import ExpressionEncoder

        x, present = self.image(section)
        rows = np.flatnonzero(present)
        # Back to the scale of counts, which encoders expect: 10,000 a location.
        profile = np.expm1(np.maximum(self.predict(x[rows]), 0.0))
        symbols, ids = zip(*self.genes, strict=True)
        encoder = self.trained.model.encoder("expression")
        if isinstance(encoder, ExpressionEncoder) and encoder.whole_counts:
            profile = np.rint(profile * WHOLE)
        raw = Expression(sp.csr_matrix(profile), symbols, ids, np.ones(len(symbols), dtype=bool))
        with torch.no_grad():
            pooled = encoder.encode(encoder.prepare(raw)).pooled.float().cpu().numpy()
        values = np.full((len(present), pooled.shape[1]), np.nan, dtype=np.float32)
        values[rows] = pooled
        return self.trained.project("expression", values, present, section.centres_um), present


def _profiles(section: Any, symbols: Sequence[str]) -> tuple[Floats, Bools]:
    """(n, genes) log1p CP10k over `symbols`, and which locations have a count of them."""
    counts, names, _, _ = section.expression()
    at = {symbol: i for i, symbol in enumerate(names)}
    chosen = sp.csr_matrix(sp.csc_matrix(counts)[:, [at[g] for g in symbols]])
    there = np.asarray(chosen.sum(axis=1)).ravel() > 0
    return np.asarray(log1p_cp10k(chosen).toarray()), there
