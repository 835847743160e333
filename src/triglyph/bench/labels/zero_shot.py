"""`zero-shot`: do words alone tell which locations of a held-out section are of a class?

A class is its prompts: each template filled with each of its phrases, embedded, averaged, brought to unit length. The
score of a location is the cosine with its class. Prompts are data and default to the class names as they stand; which
classes are asked for is read off the labels of the test sections, since those define the task.

AUROC ranks locations for one class at a time. Choosing one class for a location compares scores across classes, which
is much harder: macro F1 of the highest score is given raw, where nothing is fitted, and after a calibration of each
class on training locations (see `triglyph.metrics.calibration`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from triglyph.apply.prompts import Prompts, class_vectors
from triglyph.bench.contracts import SectionLike, Subject, Trial
from triglyph.bench.labels.classes import AUROC_AGGREGATIONS, AUROC_METRIC, Scored, known_labels, score_rows
from triglyph.bench.labels.labelled import GROUP_AUROC, Groups, Labelled, check_groups, class_measures, group_rows
from triglyph.bench.protocol import FoldError, Protocol, ProtocolCard
from triglyph.bench.rows import Measure, Rows
from triglyph.errors import ContractError
from triglyph.metrics.calibration import Calibration, fit_calibration
from triglyph.metrics.result import Result
from triglyph.metrics.retrieval import unit_rows

Floats = NDArray[np.float64]
log = logging.getLogger(__name__)
CALIBRATED = "macro-f1@calibrated"


class ZeroShot(Protocol):
    """Locations ranked, and given a class, by words."""

    name: ClassVar[str] = "zero-shot"
    version: ClassVar[str] = "2"
    """Of 2, a ceiling's scores are probabilities, and its class is that of the highest odds over training's."""
    task: ClassVar[str] = "zero-shot"
    has_null: ClassVar[bool] = True

    prompts: Prompts | None = None
    """None: the names of the labels that the test sections have."""
    groups: Groups = Field(default_factory=dict)
    """Super-classes, each scored against the rest by the scores of its classes."""
    grouping: Literal["sum", "max"] = "sum"
    """How a super-class's score comes from those of its classes."""
    calibrate: bool = True
    """Also give macro F1 after a calibration on training locations, where those have labels."""
    min_locations: int = Field(default=1, ge=1)
    """A class with fewer locations in a section does not count in its macro F1."""

    def card(self) -> ProtocolCard:
        fitted = {f"scale and offset of each class, for {CALIBRATED} alone": "labelled locations of training sections"}
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary="locations of held-out sections ranked by their cosine with the words for a class",
            fitted=fitted if self.calibrate else {},
            metrics={
                "auroc": AUROC_METRIC,
                "auroc@GROUP": f"{GROUP_AUROC}; its score is the {self.grouping} of its classes' scores",
                "macro-f1": "of the class with the highest cosine: mean F1 over classes with at least "
                "`min_locations` locations in the section, over locations whose class is asked for; the first class "
                "by name among equal scores",
                CALIBRATED: "the same after calibration; classes without training locations are neither answered nor "
                "asked",
            },
            aggregations=AUROC_AGGREGATIONS,
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        targets = [m for m in ("image", "expression") if m in subject.modalities]
        if "text" not in subject.modalities or not targets:
            raise ContractError(
                f"zero-shot needs text and one more modality, {subject.name} has "
                f"{', '.join(subject.modalities) or 'none'}",
                mend="judge a model that was trained with a text tower",
            )
        there = sorted({str(label) for s in trial.test for label in known_labels(s)} - {""})
        if not there:
            raise FoldError(
                "no test section has labels",
                where=f"split {trial.split!r}, fold {trial.fold or '0'}",
                mend="add a column `label` to the tables",
            )
        prompts = self.prompts or Prompts(classes=dict.fromkeys(there, ()))
        classes = sorted(prompts.classes)
        if not set(classes) & set(there):
            raise FoldError(
                f"no prompt is for a label that is there: prompts for {', '.join(classes)}",
                mend=f"the labels are {', '.join(there)}",
            )
        check_groups(self.groups, [*classes, *there])
        vectors = class_vectors(subject.source.embed_text, prompts, classes)
        out: list[Result] = []
        for target in targets:
            asked = [side for s in trial.test if (side := _scored(subject, s, target, vectors)) is not None]
            if not asked:
                continue
            direction = f"text->{target}"
            out += self.raw(rows, asked, classes, direction)
            if self.calibrate:
                taught = [side for s in trial.train if (side := _scored(subject, s, target, vectors)) is not None]
                out += self.calibrated(rows, taught, asked, classes, direction)
        return out

    def raw(
        self,
        rows: Rows,
        asked: Sequence[Labelled],
        classes: Sequence[str],
        direction: str,
        *,
        answers: Sequence[Labelled] | None = None,
    ) -> list[Result]:
        """AUROC, that of the super-classes, and macro F1, of scores as they are.

        Parameters
        ----------
        asked
            Test sections; their features are the scores (k, classes).
        answers
            The same with scores of which the highest is a location's class; None: those of `asked`.
        """
        scored = [Scored(s.section, s.rows, s.features, s.labels[:, None] == np.array(classes)[None, :]) for s in asked]
        out = score_rows(rows, scored, classes=classes, direction=direction)
        for name in self.groups:
            out += self._group(rows, asked, classes, name, direction)
        return out + self._f1(rows, answers or asked, classes, metric="macro-f1", direction=direction)

    def _group(
        self, rows: Rows, asked: Sequence[Labelled], classes: Sequence[str], name: str, direction: str
    ) -> list[Result]:
        members = self.groups[name]
        columns = [i for i, c in enumerate(classes) if c in members]
        if not columns:
            log.warning("group %r: none of its classes is asked for", name)
            return []
        merge = np.sum if self.grouping == "sum" else np.max
        scored = [
            Scored(
                s.section,
                s.rows,
                np.asarray(merge(s.features[:, columns], axis=1, keepdims=True)),
                np.isin(s.labels, members)[:, None],
            )
            for s in asked
        ]
        return group_rows(rows, scored, name=name, direction=direction)

    def _f1(
        self, rows: Rows, asked: Sequence[Labelled], classes: Sequence[str], *, metric: str, direction: str
    ) -> list[Result]:
        measures: dict[str, Measure] = {}
        for side in asked:
            predicted = np.array(classes)[side.features.argmax(axis=1)]
            of = class_measures(rows, side, predicted, classes, min_locations=self.min_locations)
            measures[side.section.id] = of["macro-f1"]
        return rows.per_section(measures, metric=metric, direction=direction)

    def calibrated(
        self,
        rows: Rows,
        taught: Sequence[Labelled],
        asked: Sequence[Labelled],
        classes: Sequence[str],
        direction: str,
    ) -> list[Result]:
        """Macro F1 after calibration; none where fewer than two classes have training locations.

        Parameters
        ----------
        taught, asked
            Training and test sections; their features are the scores (k, classes).
        """
        labels = np.concatenate([s.labels for s in taught]) if taught else np.zeros(0, dtype=np.str_)
        columns = [i for i, c in enumerate(classes) if (labels == c).any()]
        learnt = [classes[i] for i in columns]
        if len(learnt) < 2:
            log.info("%d of the classes asked for have training locations: no calibration", len(learnt))
            return []
        if lost := sorted(set(classes) - set(learnt)):
            log.warning("classes without training locations, left out after calibration: %s", ", ".join(lost))
        known = np.isin(labels, learnt)
        scores = np.concatenate([s.features for s in taught])[:, columns]
        fitted: Calibration = fit_calibration(scores[known], np.searchsorted(learnt, labels[known]))
        sides = [Labelled(s.section, s.rows, fitted(s.features[:, columns]), s.labels) for s in asked]
        return self._f1(rows, sides, learnt, metric=CALIBRATED, direction=direction)

    def constants(self) -> dict[str, Any]:
        fields = super().constants()
        return {**fields, "prompts": fields["prompts"] or "label names"}


def _scored(subject: Subject, section: SectionLike, target: str, vectors: Floats) -> Labelled | None:
    """The labelled locations of a section with their cosines (k, classes) as features; None where it has none."""
    labels = known_labels(section)
    values, present = subject.embed(section, target)
    known = np.flatnonzero(np.asarray(present) & (labels != ""))
    if not len(known):
        return None
    return Labelled(section, known, unit_rows(values[known]) @ vectors.T, labels[known])
