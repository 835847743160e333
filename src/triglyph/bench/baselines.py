"""Cheap subjects that stand in every table, built so that the protocols judge them exactly like a model.

Features of a location that cost nothing (its place, its depth, a constant, one column of stain and texture) are
`Embedder`s of `image`: ridge reads them like any encoder. `ridge_retrieval` maps features to principal components of
expression with a ridge and lets a location's own components be the gallery, which is retrieval without contrastive
training.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.contracts import Array, Embedder, SectionLike, Subject, Trial
from triglyph.bench.genes import TrialExpression
from triglyph.bench.parts import pooled
from triglyph.bench.ridge_expression import PER_SECTION_NOTE, Standardise, fit_ridge
from triglyph.errors import ContractError
from triglyph.metrics.retrieval import unit_rows

Bools = NDArray[np.bool_]


class Features(abc.ABC):
    """An embedder that is features of one modality: `embed` and `pooled` are the same, and there are no words."""

    modality: str = "image"
    training_sections: Sequence[str] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """The one it has."""
        return (self.modality,)

    def pooled(self, section: Any, modality: Any) -> tuple[Array, Bools]:
        """(n, dim) features and which locations have them."""
        if modality != self.modality:
            raise ContractError(f"these are {self.modality} features, not {modality}", where=type(self).__name__)
        return self.features(section)

    def embed(self, section: Any, modality: Any) -> tuple[Array, Bools]:
        """As `pooled`."""
        return self.pooled(section, modality)

    def embed_text(self, texts: list[str]) -> Array:
        """Refused: features have no words."""
        raise ContractError(f"{type(self).__name__} cannot read text", mend="judge a model with a text tower")

    @abc.abstractmethod
    def features(self, section: Any) -> tuple[Array, Bools]:
        """(n, dim) and which of the n locations have them."""


@dataclass(frozen=True)
class StoredFeatures(Features):
    """What a frozen encoder left in `section.embeddings`."""

    fingerprint: str
    modality: str = "image"

    def features(self, section: Any) -> tuple[Array, Bools]:
        stored = section.embeddings.read(self.fingerprint)
        return stored.values, stored.present


@dataclass(frozen=True)
class Columns(Features):
    """Some columns of other features; column 0 of `stain-texture` is the mean of haematoxylin."""

    source: Embedder
    columns: tuple[int, ...]
    modality: str = "image"

    def features(self, section: SectionLike) -> tuple[Array, Bools]:
        values, present = self.source.pooled(section, self.modality)
        return np.asarray(values)[:, list(self.columns)], present


@dataclass(frozen=True)
class Position(Features):
    """Polynomials of a location's place, z-scored within its section: what merely knowing where would give.

    Sections are not rotated onto each other; where they lie differently on their slides this is a weak baseline, and
    on near-copies of one block a strong one.
    """

    degree: int = 4
    modality: str = "image"

    def features(self, section: SectionLike) -> tuple[Array, Bools]:
        xy = np.asarray(section.centres_um, dtype=np.float64)
        spread = xy.std(axis=0)
        x, y = ((xy - xy.mean(axis=0)) / np.where(spread > 0, spread, 1.0)).T
        powers = [(i, j) for i in range(self.degree + 1) for j in range(self.degree + 1 - i) if i + j]
        return np.stack([x**i * y**j for i, j in powers], axis=1), np.ones(len(xy), dtype=bool)


@dataclass(frozen=True)
class Depth(Features):
    """log1p of a location's total count: what sequencing depth alone would give. It reads the test counts."""

    modality: str = "image"

    def features(self, section: SectionLike) -> tuple[Array, Bools]:
        counts, _, _, measured = section.expression()
        total = np.asarray(counts[:, np.flatnonzero(measured)].sum(axis=1)).ravel()
        return np.log1p(total)[:, None], total > 0


@dataclass(frozen=True)
class Constant(Features):
    """Nothing at all: ridge then predicts every gene's training mean."""

    modality: str = "image"

    def features(self, section: SectionLike) -> tuple[Array, Bools]:
        n = len(section.centres_um)
        return np.zeros((n, 1)), np.ones(n, dtype=bool)


def expression_baselines(stain_texture: Embedder | None) -> list[Subject]:
    """Subjects for `ridge-expression`.

    Parameters
    ----------
    stain_texture
        Features whose column 0 is the haematoxylin mean; None leaves the two that need them out.
    """
    subjects = [
        Subject("mean", Constant(), role="baseline"),
        Subject("library size", Depth(), role="baseline", transductive=("depth of the test locations is the input",)),
        Subject("position", Position(), role="baseline", transductive=("positions z-scored within each test section",)),
    ]
    if stain_texture is not None:
        subjects.append(Subject("haematoxylin mean", Columns(stain_texture, (0,)), role="baseline"))
        subjects.append(Subject("stain-texture", stain_texture, role="baseline"))
    return subjects


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
        Genes, as in `ridge-expression`.
    n_components
        At most as many as training locations and genes allow.
    transductive
        What the features see of the test set.
    """
    expression = TrialExpression(trial, n_genes=n_genes, min_detected=min_detected)

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


def retrieval_baselines(trial: Trial, stain_texture: Embedder | None) -> list[Subject]:
    """Subjects for `retrieval` between image and expression."""
    seen = ("positions z-scored within each test section",)
    subjects = [ridge_retrieval(Position(), trial, name="position + ridge", transductive=seen)]
    if stain_texture is not None:
        subjects.append(ridge_retrieval(stain_texture, trial, name="stain-texture + ridge"))
    return subjects
