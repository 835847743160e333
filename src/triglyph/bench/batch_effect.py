"""`batch-effect`: how far an embedding of the test sections shows which section it is of, and what it shows of tissue.

An encoder that forgets everything mixes sections perfectly. So metrics of mixing and of biology are rows of one run,
over the same locations, and where one side cannot be had there is no run: with one batch, or one class.

All labelled locations of the test sections stand in one space, at most `max_locations` of each section, drawn with
`seed`. Sections of different `level` are never in one space.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import stdtrit

from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.hescape.clinical import section_values
from triglyph.bench.labels.labelled import Labelled, LabelProtocol
from triglyph.bench.protocol import FoldError, ProtocolCard
from triglyph.bench.ridge import PER_SECTION_NOTE, Standardise
from triglyph.bench.rows import PATIENT, Rows
from triglyph.errors import ContractError
from triglyph.metrics.bootstrap import COVERAGE, MIN_PATIENTS, Interval
from triglyph.metrics.clusters import large_classes
from triglyph.metrics.mixing import N_NEIGHBOURS, PERPLEXITY, mixing
from triglyph.metrics.neighbours_retrieval import label_retrieval
from triglyph.metrics.result import Result

Floats = NDArray[np.float64]
Strings = NDArray[np.str_]
log = logging.getLogger(__name__)

SECTION = "section"
MIXING = ("silhouette-batch", "ilisi", "batch-predictability")
"""Metrics of the batch; the others are of the label."""


class BatchEffect(LabelProtocol):
    """Silhouettes, LISI, connectivity and predictability of batches, beside those of labels."""

    name: ClassVar[str] = "batch-effect"
    task: ClassVar[str] = "batch-effect"

    batch: str = Field(default=SECTION, min_length=1)
    """What should not show: `section`, `patient`, or a column of `sections.csv` or `clinical.csv`, such as a site."""
    scale: Standardise = "training"
    """Where mean and deviation of each feature come from; `per-section` is itself a correction of batches."""
    max_locations: int = Field(default=500, ge=2)
    """Of a section; the silhouettes take time in the square of all locations."""
    perplexity: int = Field(default=PERPLEXITY, ge=1)
    n_neighbours: int = Field(default=N_NEIGHBOURS, ge=1)
    k: int = Field(default=20, ge=1)
    """Candidates of other patients that vote for a location's label."""

    def card(self) -> ProtocolCard:
        scaled = {
            "training": "training sections",
            "per-section": "each test section",
            "none": "nowhere: features as they are",
        }[self.scale]
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary=f"how far an embedding shows the {self.batch}, beside how far it shows the label",
            citation="Luecken et al., Benchmarking atlas-level data integration, Nature Methods 2022",
            fitted={"mean and deviation of each feature": scaled},
            transductive=(PER_SECTION_NOTE,) if self.scale == "per-section" else (),
            metrics={
                "silhouette-batch": "mean over classes of 1 - |silhouette| of the batches within the class; 1 is mixed",
                "ilisi": f"(median effective number of batches among {3 * self.perplexity} weighted neighbours - 1) / "
                "(batches - 1); 1 is mixed",
                "batch-predictability": f"how often most of {self.n_neighbours} neighbours are of the own batch, mean "
                "over batches; lower is mixed, chance is 1 / batches",
                "silhouette-biology": "(mean silhouette of the labels + 1) / 2",
                "clisi": "(classes - median effective number of classes) / (classes - 1)",
                "graph-connectivity": "mean over classes of the share of the class in the largest component of its own "
                "neighbours; falls where a class lies apart in every batch",
                f"label-knn@{self.k}": f"share of locations whose label has the most votes of the {self.k} nearest by "
                "cosine of other patients, mean over classes; a draw among t labels counts 1/t; classes of one patient "
                "are left out",
                "undefined": "silhouette-batch where no class lies in two batches; label-knn with one patient",
            },
            aggregations={
                "pooled": "group = all: over the labelled locations of all test sections of a level in one space, at "
                f"most {self.max_locations} of each; intervals by the jackknife over patients, Student's t, from "
                f"{MIN_PATIENTS} patients on"
            },
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        sides = [self._drawn(side) for side in sorted(self.tested(subject, trial), key=lambda s: s.section.id)]
        sides = [side for side in sides if len(side.rows)]
        batches = self._batches(trial, sides)
        out: list[Result] = []
        reasons: list[str] = []
        found = {side.section.id: side for side in sides}
        prepare = self._scaler(subject, trial)
        for level, ids in rows.by_level([s for s in found if batches[s]]):
            of = [found[s] for s in ids]
            space = _Space(
                np.concatenate([prepare(side.features) for side in of]),
                np.concatenate([np.full(len(side.rows), batches[side.section.id]) for side in of]),
                np.concatenate([side.labels for side in of]),
                np.concatenate([np.full(len(side.rows), side.section.patient) for side in of]),
            )
            if lacking := space.lacking(self.batch):
                reasons.append(f"level {level}: {lacking}")
                log.warning("%s: %s; nothing is measured there", self.name, reasons[-1])
                continue
            values, chance = self._measured(space)
            intervals = self._intervals(space, values) if rows.n_boot else {}
            out += [
                rows.row(
                    metric=metric,
                    direction=f"{self.modality}->{self.batch if metric in MIXING else 'label'}",
                    aggregation="pooled",
                    group="all",
                    level=level,
                    value=value,
                    n=len(space.x),
                    ci=intervals.get(metric),
                    chance=chance.get(metric),
                )
                for metric, value in values.items()
            ]
        if not out:
            raise FoldError(
                "; ".join(reasons) or f"no labelled test section has a {self.batch}",
                where=f"{self.name}, split {trial.split!r}, fold {trial.fold or '0'}",
                mend="test on labelled sections of two batches or more, or name another `batch`: mixing says nothing "
                "without biology beside it",
            )
        return out

    def _drawn(self, side: Labelled) -> Labelled:
        """At most `max_locations` of a section, of classes that are large enough in it."""
        kept = np.flatnonzero(large_classes(side.labels, at_least=self.min_locations))
        if len(kept) > self.max_locations:
            # A stream of its own for each section: draws do not depend on which others are tested.
            rng = np.random.default_rng([self.seed, zlib.crc32(side.section.id.encode())])
            kept = np.sort(rng.choice(kept, self.max_locations, replace=False))
        return Labelled(side.section, side.rows[kept], side.features[kept], side.labels[kept])

    def _batches(self, trial: Trial, sides: Sequence[Labelled]) -> Mapping[str, str]:
        """Section id -> batch; "" where unknown, and then the section is left out."""
        sections = [side.section for side in sides]
        if self.batch in (SECTION, PATIENT):
            return {s.id: s.id if self.batch == SECTION else s.patient for s in sections}
        values = section_values(trial, self.batch, sections)
        if unknown := [name for name, value in values.items() if not value]:
            log.warning("%s: sections without a %s are left out: %s", self.name, self.batch, ", ".join(unknown))
        return values

    def _scaler(self, subject: Subject, trial: Trial) -> Callable[[Floats], Floats]:
        """From the features (n, d) of one section to those that are compared."""
        from sklearn.preprocessing import StandardScaler

        if self.scale != "training":
            return _per_section if self.scale == "per-section" else lambda x: x
        scaler, n = StandardScaler(), 0
        read = subject.embed if self.features == "embedding" else subject.pooled
        for section in sorted(trial.train, key=lambda s: s.id):
            values, present = read(section, self.modality)
            x = np.asarray(values[np.flatnonzero(present)], dtype=np.float64)
            if not np.isfinite(x).all():
                raise ContractError(
                    f"a feature of {subject.name} is not finite",
                    where=f"section {section.id}",
                    mend="embed the section again",
                )
            if len(x):
                scaler.partial_fit(x)
                n += len(x)
        if n < 2:
            raise ContractError(
                f"{n} training locations have features of {self.modality} to scale by",
                where=f"{subject.name}, split {trial.split!r}",
                mend="set `scale` to `none`, or train on sections that have it",
            )
        return lambda x: np.asarray(scaler.transform(x))

    def _measured(self, space: _Space) -> tuple[dict[str, float], dict[str, float]]:
        """Every metric in one space, and the chance level of those that have one."""
        m = mixing(
            space.x,
            batches=space.batches,
            biology=space.labels,
            perplexity=self.perplexity,
            n_neighbours=self.n_neighbours,
        )
        if m.perplexity < self.perplexity:
            log.info("%s: perplexity %d, for %d locations", self.name, m.perplexity, m.n)
        vote = label_retrieval(space.x, space.labels, space.patients, ks=(self.k,)).majority[:, 0]
        by_class = [vote[(space.labels == c) & ~np.isnan(vote)] for c in np.unique(space.labels)]
        judged = [of.mean() for of in by_class if len(of)]
        values = {
            "silhouette-batch": m.silhouette_batch,
            "ilisi": m.ilisi,
            "batch-predictability": m.section_predictability,
            "silhouette-biology": m.silhouette_biology,
            "clisi": m.clisi,
            "graph-connectivity": m.graph_connectivity,
            f"label-knn@{self.k}": float(np.mean(judged)) if judged else float("nan"),
        }
        return values, {"batch-predictability": m.chance_predictability, f"label-knn@{self.k}": 1.0 / m.n_classes}

    def _intervals(self, space: _Space, values: Mapping[str, float]) -> dict[str, Interval]:
        """Jackknife over patients: everything is measured again without each of them."""
        people = np.unique(space.patients)
        if len(people) < MIN_PATIENTS:
            return {}
        without = [self._measured(space.without(who))[0] for who in people]
        found = {m: _jackknife(np.array([of[m] for of in without]), value) for m, value in values.items()}
        return {m: ci for m, ci in found.items() if ci is not None}


@dataclass(frozen=True)
class _Space:
    """Locations of several sections in one space."""

    x: Floats
    """(n, d)"""
    batches: Strings
    labels: Strings
    patients: Strings

    def lacking(self, batch: str) -> str:
        """What it would take to judge it, in words; "" for nothing."""
        for groups, what in ((self.batches, batch), (self.labels, "class")):
            found = np.unique(groups)
            if len(found) < 2:
                return f"only one {what}, {found[0]}"
        return ""

    def without(self, patient: str) -> _Space:
        """The locations of everybody else."""
        kept = self.patients != patient
        return _Space(self.x[kept], self.batches[kept], self.labels[kept], self.patients[kept])


def _per_section(x: Floats) -> Floats:
    spread = x.std(axis=0)
    return np.asarray((x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def _jackknife(without: Floats, value: float) -> Interval | None:
    """Student's interval around `value` with the jackknife's error, within 0 and 1.

    Parameters
    ----------
    without
        (units,) the metric without each unit; undefined in any of them, there is no interval.
    """
    n = len(without)
    if np.isnan(value) or np.isnan(without).any():
        return None
    error = float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
    reach = float(stdtrit(n - 1, (1.0 + COVERAGE) / 2)) * error
    return Interval(max(0.0, value - reach), min(1.0, value + reach), PATIENT, n)
