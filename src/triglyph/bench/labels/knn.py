"""`knn-20`: what the nearest training locations say of a location's class.

Features are centred by the training mean and brought to unit length. Training locations as far away as the k-th
nearest all vote, so that the answer does not depend on the order of the sections; of classes with as many votes the
one with the nearest location wins.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.labels.labelled import BALANCED_ACCURACY, MACRO_F1, LabelProtocol, per_section_rows
from triglyph.bench.protocol import PER_SECTION, ProtocolCard
from triglyph.bench.rows import Rows
from triglyph.metrics.result import Result
from triglyph.metrics.retrieval import unit_rows

Floats = NDArray[np.float64]
_BLOCK_BYTES = 64 << 20
_TIED = 1e-9
"""Squared distances of unit vectors this close are equal."""


class NearestNeighbours(LabelProtocol):
    """Majority vote of the k nearest training locations."""

    name: ClassVar[str] = "knn-20"
    task: ClassVar[str] = "knn"

    ks: tuple[int, ...] = Field(default=(20, 1), min_length=1)

    def card(self) -> ProtocolCard:
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary="majority vote of the 20 (and of the 1) nearest training locations in frozen embeddings",
            fitted={"mean of each feature": "training sections", "neighbours": "labelled training locations"},
            metrics={
                "balanced-accuracy@k": BALANCED_ACCURACY,
                "macro-f1@k": MACRO_F1,
                "distance": "Euclidean between centred features of unit length; fewer than k training locations all "
                "vote, and so do those as far away as the k-th",
                "ties": "of classes with as many votes the one with the nearest location, then the first by name",
            },
            aggregations=PER_SECTION,
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        sides = self.sides(subject, trial)
        mean = sides.x.mean(axis=0)
        classes, codes = np.array(sides.classes), np.searchsorted(sides.classes, sides.y)
        train = unit_rows(sides.x - mean)
        measures = []
        for side in sides.test:
            found = vote(train, codes, unit_rows(side.features - mean), ks=self.ks)
            drawn = rows.blocks(side.section, side.rows)
            for k, predicted in found.items():
                of = self.scores(rows, side, classes[predicted], sides.classes, drawn=drawn)
                measures += [(side.section.id, f"{metric}@{k}", measure) for metric, measure in of.items()]
        return per_section_rows(rows, measures, direction=self.direction)


def vote(
    train: Floats, codes: NDArray[np.intp], queries: Floats, *, ks: tuple[int, ...]
) -> dict[int, NDArray[np.intp]]:
    """k -> (q,) class voted for by the nearest training locations.

    Parameters
    ----------
    train
        (n, d)
    codes
        (n,) class of each, from 0.
    queries
        (q, d)
    """
    member = np.eye(int(codes.max()) + 1)[codes]  # (n, classes)
    out = {k: np.empty(len(queries), dtype=np.intp) for k in ks}
    square = (train**2).sum(axis=1)
    step = max(1, _BLOCK_BYTES // (8 * len(train)))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        asked = queries[part]
        distance = square[None, :] - 2 * asked @ train.T + (asked**2).sum(axis=1)[:, None]
        nearest = np.stack([distance[:, codes == c].min(axis=1, initial=np.inf) for c in range(member.shape[1])], 1)
        for k in ks:
            reach = np.partition(distance, min(k, len(train)) - 1, axis=1)[:, [min(k, len(train)) - 1]]
            votes = (distance <= reach + _TIED) @ member
            most = votes == votes.max(axis=1, keepdims=True)
            closest = np.where(most, nearest, np.inf)
            out[k][part] = (closest <= closest.min(axis=1, keepdims=True) + _TIED).argmax(axis=1)
    return out
