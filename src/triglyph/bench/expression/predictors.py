"""Who predicts expression: ridge on any embedding, models that predict by themselves, and what costs nothing.

Whatever is judged comes down to one function, from a section to (n, targets) and which of the n locations it predicts.
An `Embedder` becomes one by what the protocol fits on the training side. A `Learner` learns for itself, such as the
core-panel baselines here. A `Predictor` is trained already and is asked for genes by name.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.bench.contracts import Array, Embedder, SectionLike, Subject, Trial
from triglyph.bench.expression.placing import place
from triglyph.bench.expression.targets import GeneTargets, Scale
from triglyph.bench.parts import cut, pooled, whole_of
from triglyph.bench.ridge import fit_ridge
from triglyph.errors import ContractError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Predict = Callable[[SectionLike], tuple[Floats, Bools]]
Fit = Callable[[Sequence[tuple[Floats, Floats]]], Callable[[Floats], Floats]]
"""From features (n, d) and targets (n, genes) of each training section, in order, to predictions of features."""
CORE_ALPHAS = tuple(float(a) for a in np.logspace(0, 5, 11))
NEIGHBOUR_ALPHAS = tuple(float(a) for a in np.logspace(0, 6, 13))
_BLOCK_BYTES = 64 << 20

log = logging.getLogger(__name__)


@runtime_checkable
class Predictor(Protocol):
    """A model that predicts genes by name."""

    @property
    def training_sections(self) -> Sequence[str]:
        """Ids of the sections that anything in it was fitted on."""

    @property
    def scale(self) -> Scale:
        """What its numbers are."""

    def predict(self, section: Any, genes: Sequence[str]) -> tuple[Array, Bools]:
        """(n, genes) and which of the n locations it has a prediction for."""


class Learner(abc.ABC):
    """Learns the targets of a trial from its training side; has no embedding of its own."""

    training_sections: Sequence[str] = ()
    modalities: tuple[str, ...] = ()

    @abc.abstractmethod
    def learn(self, targets: GeneTargets) -> Predict:
        """Fitted on `targets.trial.train` alone."""

    def embed(self, section: Any, modality: Any) -> tuple[Array, Bools]:
        """Refused."""
        raise ContractError(f"{type(self).__name__} predicts genes and has no embedding", where=section.id)

    pooled = embed

    def embed_text(self, texts: list[str]) -> Array:
        """Refused."""
        raise ContractError(f"{type(self).__name__} cannot read text")


def predict_with(subject: Subject, targets: GeneTargets, *, modality: str, features: str, fit: Fit) -> Predict:
    """What a subject predicts, after whatever must be fitted on the training side.

    Raises
    ------
    ContractError
        The subject has not the modality, predicts on another scale, or gives what does not fit or is not finite.
    """
    if isinstance(subject.source, Predictor):
        return _asked(subject.name, subject.source, targets)
    return learned(subject, targets, modality=modality, features=features, fit=fit)


def learned(subject: Subject, targets: GeneTargets, *, modality: str, features: str, fit: Fit) -> Predict:
    """As `predict_with`, of a `Learner` or an embedding; what a model predicts by itself is not asked for.

    Parameters
    ----------
    features
        `embedding`, or `pooled` for what it was made of.
    fit
        What an embedding is read by.
    """
    if isinstance(subject.source, Learner):
        return subject.source.learn(targets)
    if modality not in subject.modalities:
        raise ContractError(f"{subject.name} has no {modality}", mend="choose another `modality`")
    of = subject.embed if features == "embedding" else subject.pooled

    def read(section: SectionLike) -> tuple[Array, Bools]:
        values, present = of(section, modality)
        if not np.isfinite(values[present]).all():
            raise ContractError(
                f"a feature of {subject.name} is not finite",
                where=f"section {section.id}",
                mend="embed the section again",
            )
        return values, present

    return _read_off(read, targets, fit)


def _asked(name: str, source: Predictor, targets: GeneTargets) -> Predict:
    if source.scale != targets.scale:
        raise ContractError(
            f"{name} predicts {source.scale}, the protocol asks for {targets.scale}", mend="set the protocol's `scale`"
        )

    def predict(section: SectionLike) -> tuple[Floats, Bools]:
        values, present = cut(section, *source.predict(whole_of(section), targets.genes))
        if values.shape != (len(present), len(targets.genes)):
            raise ContractError(f"{name} gives {values.shape} for {len(targets.genes)} genes", where=section.id)
        return np.asarray(values, dtype=np.float64), np.asarray(present, dtype=bool)

    return predict


def _read_off(read: Callable[[SectionLike], tuple[Array, Bools]], targets: GeneTargets, fit: Fit) -> Predict:
    train = []
    for section in targets.trial.train:
        values, present = read(section)
        truth, counted = targets[section]
        kept = np.flatnonzero(present & counted)
        train.append((np.asarray(values[kept], dtype=np.float64), truth[kept]))
    fitted = fit(train)

    def predict(section: SectionLike) -> tuple[Floats, Bools]:
        values, present = read(section)
        rows = np.flatnonzero(present)
        out = np.full((len(present), len(targets.genes)), np.nan)
        if len(rows):
            out[rows] = fitted(np.asarray(values[rows], dtype=np.float64))
        return out, np.asarray(present)

    return predict


# ---- from a core panel


def _has_core(targets: GeneTargets) -> None:
    if not targets.core:
        raise ContractError("there is no core panel to predict from", mend="set the protocol's `core`")


@dataclass(frozen=True)
class MinMAE(Learner):
    """For every target, the core gene with the smallest mean absolute difference on the training locations.

    Martinelli et al., the baseline that leaks nothing when the choice is made on training locations alone.
    """

    def learn(self, targets: GeneTargets) -> Predict:
        _has_core(targets)
        x = np.concatenate([targets.core_values(s) for s in targets.trial.train])
        y = np.concatenate([targets[s][0] for s in targets.trial.train])
        step = max(1, _BLOCK_BYTES // (8 * x.size))
        nearest = np.concatenate(
            [
                np.abs(x[:, :, None] - y[:, None, start : start + step]).mean(axis=0).argmin(axis=0)
                for start in range(0, y.shape[1], step)
            ]
        )
        return lambda section: (targets.core_values(section)[:, nearest], targets[section][1])


@dataclass(frozen=True)
class CoreRidge(Learner):
    """Ridge from the core panel, and from its surroundings where `neighbours` is given."""

    neighbours: int = 0
    """Locations, the own one included, over which the core is averaged; 0 leaves surroundings out."""

    def learn(self, targets: GeneTargets) -> Predict:
        _has_core(targets)

        def read(section: SectionLike) -> tuple[Floats, Bools]:
            x = targets.core_values(whole_of(section))
            if self.neighbours:
                xy = np.asarray(whole_of(section).centres_um, dtype=np.float64)
                near = cKDTree(xy).query(xy, k=min(self.neighbours, len(xy)))[1].reshape(len(xy), -1)
                # Depth is scaled up so that shrinking it costs little.
                x = np.hstack([x, x[near].mean(axis=1), 3 * _core_depth(targets, whole_of(section))])
            return cut(section, x)[0], targets[section][1]

        alphas = NEIGHBOUR_ALPHAS if self.neighbours else CORE_ALPHAS
        fit = partial(fit_ridge, standardise="none", alphas=alphas, where="ridge from the core panel")
        return _read_off(read, targets, fit)


@dataclass(frozen=True)
class CoreDepth(Learner):
    """Ridge from the log count of the core panel: sequencing depth and nothing else."""

    def learn(self, targets: GeneTargets) -> Predict:
        _has_core(targets)
        fit = partial(fit_ridge, standardise="none", alphas=(1.0,), where="library size of the core panel")
        return _read_off(lambda section: (_core_depth(targets, section), targets[section][1]), targets, fit)


def _core_depth(targets: GeneTargets, section: SectionLike) -> Floats:
    return np.log1p(np.expm1(targets.core_values(section)).sum(axis=1, keepdims=True))


# ---- from nothing but the training targets


@dataclass(frozen=True)
class TrainingMean(Learner):
    """Every gene's mean over the training locations."""

    def learn(self, targets: GeneTargets) -> Predict:
        mean = targets.training_mean

        def predict(section: SectionLike) -> tuple[Floats, Bools]:
            counted = targets[section][1]
            return np.tile(mean, (len(counted), 1)), np.ones(len(counted), dtype=bool)

        return predict


@dataclass(frozen=True)
class AlignedPosition(Learner):
    """Mean expression of the nearest training locations of the same block, sections laid onto each other.

    Whole sections are turned, flipped and shifted onto the tested one by their stain (`stain`), never by expression:
    see `placing.place`. The other part of a divided section lies as it is. Where nothing of the block is trained on, or
    can be laid onto the section, there is no prediction.
    """

    stain: Any
    """Features of `image` whose columns 0, 1, 6 are means of haematoxylin, eosin and red, as `stain-texture` has."""
    k: int = 8

    def learn(self, targets: GeneTargets) -> Predict:
        from sklearn.neighbors import KNeighborsRegressor

        def predict(section: SectionLike) -> tuple[Floats, Bools]:
            n = len(section.centres_um)
            out, there = np.full((n, len(targets.genes)), np.nan), np.zeros(n, dtype=bool)
            rows = np.flatnonzero(pooled(self.stain, section, "image")[1])
            placed, values = [], []
            memo = targets.trial.memo  # what is predicted changes from protocol to protocol, places do not
            for other in targets.trial.train:
                if not block_of(other) or block_of(other) != block_of(section):
                    continue
                key = ("placed", self.stain, whole_of(other).id, whole_of(section).id)
                if key not in memo:
                    memo[key] = self._laid(whole_of(other), whole_of(section))
                (centres,) = cut(other, memo[key])
                kept = np.flatnonzero(np.isfinite(centres).all(axis=1))
                placed.append(centres[kept])
                values.append(targets[other][0][kept])
            n_seen = sum(map(len, placed))
            if n_seen and len(rows):
                near = KNeighborsRegressor(min(self.k, n_seen), weights="distance")
                near.fit(np.concatenate(placed), np.concatenate(values))
                out[rows] = near.predict(np.asarray(section.centres_um)[rows])
                there[rows] = True
            return out, there

        return predict

    def _laid(self, section: SectionLike, onto: SectionLike) -> Floats:
        """(n, 2) of a whole section in the frame of another, µm; NaN where it has no stain or does not fit."""
        out = np.full((len(section.centres_um), 2), np.nan)
        (moving_um, moving, rows), (onto_um, still, _) = self._stained(section), self._stained(onto)
        placed = moving_um if section.id == onto.id else place(moving_um, moving, onto_um=onto_um, onto_stain=still)
        if placed is None:
            log.warning("section %s cannot be laid onto %s by its stain, and is left out", section.id, onto.id)
        else:
            out[rows] = placed
        return out

    def _stained(self, section: SectionLike) -> tuple[Floats, Floats, NDArray[np.intp]]:
        """Centres and stain of the locations of a whole section that have one, and which these are."""
        values, present = pooled(self.stain, section, "image")
        rows = np.flatnonzero(present)
        return np.asarray(section.centres_um)[rows], np.asarray(values[rows], dtype=np.float64)[:, [0, 1, 6]], rows


def block_of(section: Any) -> str:
    """Patient and block of a section; "" where it does not say which block it is of."""
    info = getattr(whole_of(section), "info", None)
    block = str(getattr(info, "block", ""))
    return f"{section.patient}/{block}" if block else ""


# ---- a control


@dataclass(frozen=True)
class ShuffledPairs:
    """An embedder with the features of training locations at other ones: what a fit makes of pairs that mean nothing.

    They change places within their section, or within the part of it that is trained on; all others keep theirs.
    """

    source: Embedder
    trial: Trial
    seed: int = 0

    @property
    def modalities(self) -> Sequence[str]:
        """Of the source."""
        return self.source.modalities

    @property
    def training_sections(self) -> Sequence[str]:
        """Of the source."""
        return self.source.training_sections

    def embed(self, section: Any, modality: Any) -> tuple[Array, Bools]:
        """(n, dim) and which of the n locations have it, of a whole section."""
        return self._moved(section, *self.source.embed(section, modality))

    def pooled(self, section: Any, modality: Any) -> tuple[Array, Bools]:
        """As `embed`, before anything was aligned."""
        return self._moved(section, *self.source.pooled(section, modality))

    def embed_text(self, texts: list[str]) -> Array:
        """Of the source."""
        return self.source.embed_text(texts)

    def _moved(self, section: Any, values: Array, present: Bools) -> tuple[Array, Bools]:
        order = self._orders.get(section.id)
        return (values, present) if order is None else (values[order], present[order])

    @cached_property
    def _orders(self) -> dict[str, NDArray[np.intp]]:
        """Section -> (n,) whose features a location gets."""
        rng = np.random.default_rng(self.seed)
        out = {}
        for section in self.trial.train:
            whole = whole_of(section)
            order = np.arange(len(whole.centres_um))
            (rows,) = cut(section, order.copy())
            order[rows] = rows[rng.permutation(len(rows))]
            out[whole.id] = order
        return out
