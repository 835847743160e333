"""Who predicts expression: ridge on any embedding, models that predict by themselves, and what costs nothing.

Whatever is judged comes down to one function, from a section to (n, targets) and which of the n locations it predicts.
An `Embedder` becomes one by ridge on the training side. A `Learner` learns for itself, such as the core-panel baselines
here. A `Predictor` is trained already and is asked for genes by name.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.bench.contracts import Array, SectionLike, Subject
from triglyph.bench.expression.placing import place
from triglyph.bench.expression.targets import Scale, Targets
from triglyph.bench.parts import cut, pooled, whole_of
from triglyph.bench.ridge import Standardise, fit_ridge
from triglyph.errors import ContractError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Predict = Callable[[SectionLike], tuple[Floats, Bools]]
CORE_ALPHAS = tuple(float(a) for a in np.logspace(0, 5, 11))
NEIGHBOUR_ALPHAS = tuple(float(a) for a in np.logspace(0, 6, 13))
_BLOCK_BYTES = 64 << 20


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
    def learn(self, targets: Targets) -> Predict:
        """Fitted on `targets.trial.train` alone."""

    def embed(self, section: Any, modality: Any) -> tuple[Array, Bools]:
        """Refused."""
        raise ContractError(f"{type(self).__name__} predicts genes and has no embedding", where=section.id)

    pooled = embed

    def embed_text(self, texts: list[str]) -> Array:
        """Refused."""
        raise ContractError(f"{type(self).__name__} cannot read text")


def predict_with(
    subject: Subject,
    targets: Targets,
    *,
    modality: str,
    features: str,
    standardise: Standardise,
    alphas: tuple[float, ...],
) -> Predict:
    """What a subject predicts, after whatever must be fitted on the training side.

    Raises
    ------
    ContractError
        The subject has not the modality, predicts on another scale, or gives a shape that does not fit.
    """
    source: Any = subject.source
    if isinstance(source, Learner):
        return source.learn(targets)
    if isinstance(source, Predictor):
        return _asked(subject.name, source, targets)
    if modality not in subject.modalities:
        raise ContractError(f"{subject.name} has no {modality}", mend="choose another `modality`")
    read = subject.embed if features == "embedding" else subject.pooled
    return _ridge(
        lambda section: read(section, modality),
        targets,
        standardise=standardise,
        alphas=alphas,
        where=f"{subject.name}, split {targets.trial.split!r}",
    )


def _asked(name: str, source: Predictor, targets: Targets) -> Predict:
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


def _ridge(
    read: Callable[[SectionLike], tuple[Array, Bools]],
    targets: Targets,
    *,
    standardise: Standardise,
    alphas: tuple[float, ...],
    where: str,
) -> Predict:
    train = []
    for section in targets.trial.train:
        values, present = read(section)
        truth, counted = targets[section]
        kept = np.flatnonzero(present & counted)
        train.append((np.asarray(values[kept], dtype=np.float64), truth[kept]))
    ridge = fit_ridge(train, standardise=standardise, alphas=alphas, where=where)

    def predict(section: SectionLike) -> tuple[Floats, Bools]:
        values, present = read(section)
        rows = np.flatnonzero(present)
        out = np.full((len(present), len(targets.genes)), np.nan)
        out[rows] = ridge(np.asarray(values[rows], dtype=np.float64))
        return out, np.asarray(present)

    return predict


# ---- from a core panel


def _has_core(targets: Targets) -> None:
    if not targets.core:
        raise ContractError("there is no core panel to predict from", mend="set the protocol's `core`")


@dataclass(frozen=True)
class MinMAE(Learner):
    """For every target, the core gene with the smallest mean absolute difference on the training locations.

    Martinelli et al., the baseline that leaks nothing when the choice is made on training locations alone.
    """

    def learn(self, targets: Targets) -> Predict:
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

    def learn(self, targets: Targets) -> Predict:
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
        return _ridge(read, targets, standardise="none", alphas=alphas, where="ridge from the core panel")


@dataclass(frozen=True)
class CoreDepth(Learner):
    """Ridge from the log count of the core panel: sequencing depth and nothing else."""

    def learn(self, targets: Targets) -> Predict:
        _has_core(targets)
        return _ridge(
            lambda section: (_core_depth(targets, section), targets[section][1]),
            targets,
            standardise="none",
            alphas=(1.0,),
            where="library size of the core panel",
        )


def _core_depth(targets: Targets, section: SectionLike) -> Floats:
    return np.log1p(np.expm1(targets.core_values(section)).sum(axis=1, keepdims=True))


# ---- from nothing but the training targets


@dataclass(frozen=True)
class TrainingMean(Learner):
    """Every gene's mean over the training locations."""

    def learn(self, targets: Targets) -> Predict:
        mean = targets.training_mean

        def predict(section: SectionLike) -> tuple[Floats, Bools]:
            counted = targets[section][1]
            return np.tile(mean, (len(counted), 1)), np.ones(len(counted), dtype=bool)

        return predict


@dataclass(frozen=True)
class AlignedPosition(Learner):
    """Mean expression of the nearest training locations of the same block, sections laid onto each other.

    Sections are turned, flipped and shifted onto the tested one by their stain (`stain`), never by expression: see
    `placing.place`. Sections of a block without a training section get no prediction.
    """

    stain: Any
    """Features of `image` whose columns 0, 1, 6 are means of haematoxylin, eosin and red, as `stain-texture` has."""
    k: int = 8

    def learn(self, targets: Targets) -> Predict:
        from sklearn.neighbors import KNeighborsRegressor

        def seen(section: SectionLike) -> tuple[Floats, Floats, NDArray[np.intp]]:
            values, present = pooled(self.stain, section, "image")
            rows = np.flatnonzero(present)
            return np.asarray(section.centres_um)[rows], np.asarray(values[rows], dtype=np.float64)[:, [0, 1, 6]], rows

        def predict(section: SectionLike) -> tuple[Floats, Bools]:
            n = len(section.centres_um)
            out, there = np.full((n, len(targets.genes)), np.nan), np.zeros(n, dtype=bool)
            block = [s for s in targets.trial.train if block_of(s) == block_of(section) != ""]
            if not block:
                return out, there
            xy, stain, rows = seen(section)
            placed, values = [], []
            for other in block:
                other_xy, other_stain, kept = seen(other)
                placed.append(place(other_xy, other_stain, onto_um=xy, onto_stain=stain))
                values.append(targets[other][0][kept])
            near = KNeighborsRegressor(self.k, weights="distance").fit(np.concatenate(placed), np.concatenate(values))
            out[rows] = near.predict(xy)
            there[rows] = True
            return out, there

        return predict


def block_of(section: Any) -> str:
    """Patient and block of a section; "" where it does not say which block it is of."""
    info = getattr(whole_of(section), "info", None)
    block = str(getattr(info, "block", ""))
    return f"{section.patient}/{block}" if block else ""


@dataclass(frozen=True)
class ShuffledPairs(Learner):
    """The subject's own features, paired with targets of other training locations: what ridge makes of nothing."""

    subject: Subject
    modality: str
    features: str
    standardise: Standardise
    alphas: tuple[float, ...]
    seed: int = 0

    @property
    def training_sections(self) -> Sequence[str]:  # type: ignore[override]
        """Those of the subject."""
        return self.subject.source.training_sections

    def learn(self, targets: Targets) -> Predict:
        rng = np.random.default_rng(self.seed)
        read = self.subject.embed if self.features == "embedding" else self.subject.pooled
        orders = {s.id: rng.permutation(len(s.centres_um)) for s in targets.trial.train}

        def shuffled(section: SectionLike) -> tuple[Array, Bools]:
            values, present = read(section, self.modality)
            if section.id not in orders or not any(section is s for s in targets.trial.train):
                return values, present
            return values[orders[section.id]], present[orders[section.id]]

        where = f"shuffled pairs of {self.subject.name}"
        return _ridge(shuffled, targets, standardise=self.standardise, alphas=self.alphas, where=where)
