"""What protocols of labels share: labelled locations with their features, and how predicted classes are scored.

A class is judged in a section if training has it and the section has at least `min_locations` of it. Classes that
training lacks are named in the log, never counted as misses: which classes a fold has is no merit of what is judged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from triglyph.bench.contracts import SectionLike, Subject, Trial
from triglyph.bench.labels.classes import Scored, known_labels, score_rows
from triglyph.bench.protocol import FoldError, Protocol
from triglyph.bench.rows import Measure, Rows
from triglyph.errors import ContractError, RecipeError
from triglyph.metrics.bootstrap import Resamples, nan_mean, worth_together
from triglyph.metrics.result import Result
from triglyph.models.fused import Readable

Floats = NDArray[np.float64]
Strings = NDArray[np.str_]
log = logging.getLogger(__name__)

JUDGED = "classes that training has and that have at least `min_locations` locations in the section"
BALANCED_ACCURACY = f"mean recall over the {JUDGED}"
MACRO_F1 = f"mean F1 over the {JUDGED}; over locations of classes that training has"


@dataclass(frozen=True)
class Labelled:
    """The locations of a section that have both a label and features."""

    section: SectionLike
    rows: NDArray[np.intp]
    """(k,) locations of the section."""
    features: Floats
    """(k, d)"""
    labels: Strings
    """(k,)"""


@dataclass(frozen=True)
class Sides:
    """Both sides of a trial; sections without such locations are left out."""

    train: tuple[Labelled, ...]
    test: tuple[Labelled, ...]

    @cached_property
    def x(self) -> Floats:
        """(n, d) features of all training locations."""
        return np.concatenate([s.features for s in self.train])

    @cached_property
    def y(self) -> Strings:
        """(n,) their labels."""
        return np.concatenate([s.labels for s in self.train])

    @cached_property
    def patients(self) -> Strings:
        """(n,) whose they are."""
        return np.concatenate([np.full(len(s.rows), s.section.patient) for s in self.train])

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Of the training locations, sorted."""
        return tuple(np.unique(self.y).tolist())


class LabelProtocol(Protocol):
    """A protocol that reads labels off frozen features."""

    modality: Readable = "image"
    """`image`, `expression`, `text`; or both first in one: `fused`, as the model fuses them, or `fused-NAME`."""
    features: Literal["embedding", "pooled"] = "embedding"
    """`embedding`: the model's own space; `pooled`: what its frozen encoder gave it."""
    min_locations: int = Field(default=1, ge=1)
    """A class with fewer locations in a section is not judged there."""

    @property
    def direction(self) -> str:
        """Of its rows."""
        return f"{self.modality}->label"

    def constants(self) -> dict[str, Any]:
        """The fields; not image or expression, so that what is read off either can be compared. Captions stay apart."""
        read = "text" if self.modality == "text" else "as the direction of a row says"
        return {**super().constants(), "modality": read}

    def labelled(self, subject: Subject, sections: Sequence[SectionLike]) -> tuple[Labelled, ...]:
        """The labelled locations of sections, those without any left out.

        Raises
        ------
        ContractError
            The subject lacks the modality, or gives a feature that is not finite.
        """
        subject.require(self.modality)
        read = subject.embed if self.features == "embedding" else subject.pooled
        out = []
        for section in sections:
            labels = known_labels(section)
            if not (labels != "").any():
                continue
            values, present = read(section, self.modality)
            rows = np.flatnonzero(np.asarray(present) & (labels != ""))
            features = np.asarray(values[rows], dtype=np.float64)
            if not np.isfinite(features).all():
                at = int(rows[np.argwhere(~np.isfinite(features))[0, 0]])
                raise ContractError(
                    f"features of {subject.name} are not finite and not marked as absent",
                    where=f"section {section.id}, location {at}",
                    mend="mark the location as not present, or embed the section again",
                )
            if len(rows):
                out.append(Labelled(section, rows, features, labels[rows]))
        return tuple(out)

    def tested(self, subject: Subject, trial: Trial) -> tuple[Labelled, ...]:
        """The labelled locations of the test sections.

        Raises
        ------
        FoldError
            No test section has labels.
        ContractError
            The subject has no features where there are labels.
        """
        found = self.labelled(subject, trial.test)
        if not found and any((known_labels(s) != "").any() for s in trial.test):
            raise ContractError(
                f"{subject.name} has no features at labelled locations",
                where=f"test sections of split {trial.split!r}, fold {trial.fold or '0'}",
                mend="embed the sections that have labels",
            )
        if not found:
            raise FoldError(
                "no test section has labels",
                where=f"split {trial.split!r}, fold {trial.fold or '0'}",
                mend="add a column `label` to the tables",
            )
        return found

    def sides(self, subject: Subject, trial: Trial) -> Sides:
        """Both sides; training sections in the order of their ids, so that draws do not depend on the split's.

        Raises
        ------
        FoldError
            Training has fewer than two classes, or no test section has labels.
        ContractError
            The subject has no features where there are labels, or where those of all but one class are.
        """
        train = self.labelled(subject, sorted(trial.train, key=lambda s: s.id))
        n_classes = len(np.unique(np.concatenate([s.labels for s in train]))) if train else 0
        if n_classes < 2:
            there = {str(label) for s in trial.train for label in np.unique(known_labels(s))} - {""}
            if len(there) >= 2:
                what = "no features at labelled locations"
                raise ContractError(
                    f"{subject.name} has {what if not train else f'features of 1 of {len(there)} labelled classes'}",
                    where=f"training sections of split {trial.split!r}, fold {trial.fold or '0'}",
                    mend="embed the sections that have labels",
                )
            raise FoldError(
                f"the training sections hold {n_classes} labelled classes, a probe needs 2",
                where=f"split {trial.split!r}, fold {trial.fold or '0'}",
                mend="add a column `label` to the tables, or train on more sections",
            )
        sides = Sides(train, self.tested(subject, trial))
        unseen = sorted({str(c) for s in sides.test for c in np.unique(s.labels)} - set(sides.classes))
        if unseen:
            log.warning("classes of the test sections that no training section has: %s", ", ".join(unseen))
        return sides

    def scores(
        self, rows: Rows, side: Labelled, predicted: Strings, classes: Sequence[str], *, drawn: Resamples | None = None
    ) -> dict[str, Measure]:
        """As `class_measures`, with this protocol's `min_locations`."""
        return class_measures(rows, side, predicted, classes, min_locations=self.min_locations, drawn=drawn)


def judged_classes(labels: Strings, classes: Sequence[str], *, min_locations: int) -> Strings:
    """Those of `classes` that have at least `min_locations` among `labels`, sorted."""
    names, numbers = np.unique(labels, return_counts=True)
    return np.asarray(names[(numbers >= min_locations) & np.isin(names, list(classes))])


def class_measures(
    rows: Rows,
    side: Labelled,
    predicted: Strings,
    classes: Sequence[str],
    *,
    min_locations: int,
    drawn: Resamples | None = None,
) -> dict[str, Measure]:
    """Balanced accuracy and macro F1 of the predicted classes of one section's locations.

    Parameters
    ----------
    predicted
        (k,) of `classes`.
    classes
        Those of training.
    drawn
        `rows.blocks` of the locations, where the caller has it already.
    """
    drawn = drawn or rows.blocks(side.section, side.rows)
    judged = judged_classes(side.labels, classes, min_locations=min_locations)
    known = np.isin(side.labels, list(classes))
    if not len(judged):
        nothing = Measure(value=float("nan"), n=0, n_blocks=drawn.n_units)
        return {"balanced-accuracy": nothing, "macro-f1": nothing}
    truth = side.labels[:, None] == judged[None, :]
    guess = (predicted[:, None] == judged[None, :]) & known[:, None]
    hit = truth & guess
    hits, there, said = (v.sum(axis=0) for v in (hit, truth, guess))
    worth = worth_together(drawn.n_effective(truth))
    hit_share, there_share, said_share = (drawn.mean(v) for v in (hit, truth, guess))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(there_share > 0, hit_share / there_share, np.nan)
        f1 = np.where(there_share + said_share > 0, 2 * hit_share / (there_share + said_share), np.nan)
    return {
        "balanced-accuracy": Measure(
            value=float((hits / there).mean()),
            n=int(there.sum()),
            draws=nan_mean(recall, axis=1),
            n_blocks=drawn.n_units,
            n_effective=worth,
            chance=1.0 / len(classes),
        ),
        "macro-f1": Measure(
            value=float((2 * hits / (there + said)).mean()),
            n=int(known.sum()),
            draws=nan_mean(f1, axis=1),
            n_blocks=drawn.n_units,
            n_effective=worth,
        ),
    }


Groups = dict[str, tuple[str, ...]]
"""Name of a super-class -> the labels it merges."""
GROUP_AUROC = (
    "one super-class of `groups` against the rest, over all labelled locations; also per class and pooled, as `auroc` "
    "of group GROUP"
)


def check_groups(groups: Mapping[str, Sequence[str]], labels: Sequence[str]) -> None:
    """Refuse super-classes that are empty or named like a label; say which of their labels are nowhere.

    Parameters
    ----------
    labels
        All that the trial has.

    Raises
    ------
    RecipeError
        A super-class merges nothing, or has the name of a label.
    """
    for name, members in groups.items():
        if not members or name in labels:
            raise RecipeError(
                f"group {name!r} " + ("merges no label" if not members else "has the name of a label"),
                where="groups",
                mend="write `groups: {cancer: [invasive cancer, cancer in situ]}`, under a name of its own",
            )
        if nowhere := sorted(set(members) - set(labels)):
            log.warning("group %r: no section has the labels %s", name, ", ".join(nowhere))


def group_rows(rows: Rows, scored: Sequence[Scored], *, name: str, direction: str) -> list[Result]:
    """AUROC of one super-class: `auroc` of that group per class and pooled, `auroc@<name>` per section and patient.

    Parameters
    ----------
    scored
        One column: the score of the super-class.
    """
    out = []
    for row in score_rows(rows, scored, classes=(name,), direction=direction):
        if row.aggregation in ("per-section", "per-patient"):
            out.append(row.model_copy(update={"metric": f"auroc@{name}"}))
        elif row.aggregation in ("per-class", "pooled") and row.group == name:
            out.append(row)
    return out


def per_section_rows(rows: Rows, measures: Sequence[tuple[str, str, Measure]], *, direction: str) -> list[Result]:
    """Rows of (section, metric, measure) triples, metric by metric in the order in which they came."""
    found: dict[str, dict[str, Measure]] = {}
    for section, metric, measure in measures:
        found.setdefault(metric, {})[section] = measure
    return [row for metric, of in found.items() for row in rows.per_section(of, metric=metric, direction=direction)]
