"""`simpleshot`: nearest class prototypes in frozen embeddings, from all training locations and from a few.

SimpleShot (Wang et al., arXiv 1911.04623): the mean of the support is taken off, features are brought to unit length,
a class is the mean of its support, and a location is of the class whose prototype is nearest. Few-shot episodes draw
their support from the training locations; all locations of the test sections are asked in every episode.
"""

from __future__ import annotations

import logging
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.labels.classes import AUROC_AGGREGATIONS, AUROC_METRIC, Scored, score_rows
from triglyph.bench.labels.labelled import (
    BALANCED_ACCURACY,
    MACRO_F1,
    Labelled,
    LabelProtocol,
    Sides,
    judged_classes,
    per_section_rows,
)
from triglyph.bench.protocol import ProtocolCard
from triglyph.bench.rows import Measure, Rows
from triglyph.metrics.result import Result
from triglyph.metrics.retrieval import unit_rows

Floats = NDArray[np.float64]
log = logging.getLogger(__name__)
_BLOCK_BYTES = 32 << 20
QUARTILES = {"lower-quartile": 25.0, "median": 50.0, "upper-quartile": 75.0}


class SimpleShot(LabelProtocol):
    """Nearest prototype, with all training locations as support and with k a class."""

    name: ClassVar[str] = "simpleshot"
    task: ClassVar[str] = "few-shot"

    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    episodes: int = Field(default=1000, ge=1)

    def card(self) -> ProtocolCard:
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary="nearest class prototype in frozen embeddings; full support, and episodes of a few shots a class",
            fitted={
                "mean of each feature": "the support",
                "prototypes": "the support: all labelled training locations, or in an episode k of each class, drawn "
                "at random from the training sections; a class with fewer gives all",
            },
            metrics={
                "auroc": f"full support, of the negative squared distance to a prototype; {AUROC_METRIC}",
                "balanced-accuracy": f"full support; {BALANCED_ACCURACY}",
                "macro-f1": f"full support; {MACRO_F1}",
                "balanced-accuracy@K-shot": f"median over {self.episodes} episodes of the {BALANCED_ACCURACY}; with "
                "lower and upper quartile over the episodes, under `:lower-quartile` and `:upper-quartile`",
            },
            aggregations=AUROC_AGGREGATIONS,
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        sides = self.sides(subject, trial)
        codes = np.searchsorted(sides.classes, sides.y)
        # Far from the origin, differences of large squares would lose their digits; no distance changes.
        origin = sides.x.mean(axis=0)
        train, n_classes = sides.x - origin, len(sides.classes)
        full = support(train, codes, n_classes)
        scored, measures = [], []
        for side in sides.test:
            distance = distances(side.features - origin, [full])[:, 0]
            truth = side.labels[:, None] == np.array(sides.classes)[None, :]
            scored.append(Scored(side.section, side.rows, -distance, truth))
            of = self.scores(rows, side, np.array(sides.classes)[distance.argmin(axis=1)], sides.classes)
            measures += [(side.section.id, metric, measure) for metric, measure in of.items()]
        for shots in self.shots:
            drawn = self._episodes(train, codes, n_classes, shots)
            for side in sides.test:
                measures += self._few(sides, side, side.features - origin, drawn, shots)
        self._warn(sides)
        out = score_rows(rows, scored, classes=sides.classes, direction=self.direction)
        return out + per_section_rows(rows, measures, direction=self.direction)

    def _episodes(self, train: Floats, codes: NDArray[np.intp], n_classes: int, shots: int) -> list[Support]:
        rng = np.random.default_rng([self.seed, shots])
        members = [np.flatnonzero(codes == c) for c in range(n_classes)]
        out = []
        for _ in range(self.episodes):
            drawn = [of[rng.choice(len(of), size=min(shots, len(of)), replace=False)] for of in members]
            chosen = np.concatenate(drawn)
            out.append(support(train[chosen], codes[chosen], n_classes))
        return out

    def _few(
        self, sides: Sides, side: Labelled, features: Floats, episodes: list[Support], shots: int
    ) -> list[tuple[str, str, Measure]]:
        judged = judged_classes(side.labels, sides.classes, min_locations=self.min_locations)
        at = [(sides.classes.index(str(c)), np.flatnonzero(side.labels == c)) for c in judged]
        recalls = np.full((len(episodes), len(at)), np.nan)
        step = max(1, _BLOCK_BYTES // (8 * len(features) * (len(sides.classes) + 1)))
        for start in range(0, len(episodes), step):
            part = slice(start, start + step)
            predicted = distances(features, episodes[part]).argmin(axis=2)  # (locations, episodes)
            for i, (code, rows) in enumerate(at):
                recalls[part, i] = (predicted[rows] == code).mean(axis=0)
        values = recalls.mean(axis=1) if at else np.full(len(episodes), np.nan)
        n = sum(len(rows) for _, rows in at)
        return [
            (
                side.section.id,
                f"balanced-accuracy@{shots}-shot" + ("" if which == "median" else f":{which}"),
                Measure(value=float(np.percentile(values, share)), n=n, chance=1.0 / len(sides.classes)),
            )
            for which, share in QUARTILES.items()
        ]

    def _warn(self, sides: Sides) -> None:
        names, numbers = np.unique(sides.y, return_counts=True)
        few = [f"{name} ({n})" for name, n in zip(names, numbers, strict=True) if n < max(self.shots, default=0)]
        if few:
            log.warning("classes with fewer training locations than shots give all they have: %s", ", ".join(few))


Support = tuple[Floats, Floats]
"""(d,) mean of the support and (classes, d) prototypes."""


def support(x: Floats, codes: NDArray[np.intp], n_classes: int) -> Support:
    """Mean and prototypes of support features (n, d) whose classes are `codes` (n,); every class has some."""
    mean = x.mean(axis=0)
    member = np.eye(n_classes)[codes]
    return mean, (member.T @ unit_rows(x - mean)) / member.sum(axis=0)[:, None]


def distances(x: Floats, supports: list[Support]) -> Floats:
    """(n, supports, classes) squared distances of centred, normalised locations (n, d) to the prototypes."""
    means, prototypes = np.stack([m for m, _ in supports]), np.stack([p for _, p in supports])
    count, n_classes, d = prototypes.shape
    dots = (x @ prototypes.reshape(-1, d).T).reshape(len(x), count, n_classes)
    shift = np.einsum("sd,scd->sc", means, prototypes)
    square = (x**2).sum(axis=1)[:, None] - 2 * x @ means.T + (means**2).sum(axis=1)
    length = np.sqrt(np.maximum(square, 0.0))[:, :, None]
    cosine = np.divide(dots - shift, length, out=np.zeros_like(dots), where=length > 1e-12)
    return np.asarray((length > 1e-12) - 2 * cosine + (prototypes**2).sum(axis=2))
