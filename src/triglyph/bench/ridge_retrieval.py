"""Retrieval without contrastive training: ridge from features to principal components of expression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.contracts import Array, Embedder, SectionLike, Subject, Trial
from triglyph.bench.expression.targets import Targets
from triglyph.bench.parts import pooled
from triglyph.bench.ridge import PER_SECTION_NOTE, Standardise, fit_ridge
from triglyph.errors import ContractError
from triglyph.metrics.retrieval import unit_rows

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class _Mapped:
    """Principal components of expression: measured ones, and those predicted from features."""

    training_sections: tuple[str, ...]
    predict: Callable[[Any], tuple[Array, Bools]]
    measure: Callable[[Any], tuple[Array, Bools]]
    modalities: tuple[str, ...] = ("image", "expression")
    cache: dict[tuple[str, str], tuple[Array, Bools]] = field(default_factory=dict)

    def embed(self, section: Any, modality: Any) -> tuple[Array, Bools]:
        key = (section.id, modality)
        if key not in self.cache:
            self.cache[key] = {"image": self.predict, "expression": self.measure}[modality](section)
        return self.cache[key]

    pooled = embed

    def embed_text(self, texts: list[str]) -> Array:
        raise ContractError("a ridge to expression cannot read text", mend="judge a model with a text tower")


def ridge_retrieval(
    features: Embedder,
    trial: Trial,
    *,
    name: str,
    n_genes: int = 1000,
    min_detected: float = 0.1,
    n_components: int = 50,
    standardise: Standardise = "training",
    transductive: tuple[str, ...] = (),
) -> Subject:
    """Ridge from features to principal components of expression, as a subject of `retrieval`.

    Genes, components, their mean and the ridge are fitted on the training sections. A location's vector is, for
    `expression`, its own components, for `image`, the predicted ones; both about the training mean, so that the
    cosine compares deviations from it.

    Parameters
    ----------
    features
        Any embedder of `image`.
    n_genes, min_detected
        Genes, as in `expression`.
    n_components
        At most as many as training locations and genes allow.
    transductive
        What the features see of the test set.
    """
    expression = Targets(trial, n_genes=n_genes, min_detected=min_detected)

    train = []
    for section in trial.train:
        values, present = pooled(features, section, "image")
        target, counted = expression[section]
        kept = np.flatnonzero(present & counted)
        train.append((np.asarray(values[kept], dtype=np.float64), target[kept]))
    stacked = np.concatenate([y for _, y in train])
    centre = stacked.mean(axis=0)
    _, _, axes = np.linalg.svd(stacked - centre, full_matrices=False)
    axes = axes[:n_components].T
    ridge = fit_ridge([(x, (y - centre) @ axes) for x, y in train], standardise=standardise, where=name)

    def measure(section: SectionLike) -> tuple[Array, Bools]:
        target, counted = expression[section]
        return unit_rows((target - centre) @ axes), counted

    def predict(section: SectionLike) -> tuple[Array, Bools]:
        values, present = features.pooled(section, "image")
        rows = np.flatnonzero(present)
        out = np.zeros((len(present), axes.shape[1]))
        out[rows] = unit_rows(ridge(np.asarray(values[rows], dtype=np.float64)))
        return out, present

    ids = tuple(s.id for s in trial.train)
    note = (PER_SECTION_NOTE,) if standardise == "per-section" else ()
    return Subject(name, _Mapped(ids, predict, measure), role="baseline", transductive=(*note, *transductive))
