"""From values per section to Result rows: levels kept apart, patients as the unit, intervals that say what was drawn.

Intervals come from patients where at least `MIN_PATIENTS` of a level are tested, else from blocks of tissue within
each section. Every patient's value is a row of its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.bench.contracts import SectionLike, Subject, Trial
from triglyph.bench.protocol import Protocol
from triglyph.metrics.bootstrap import (
    MIN_BLOCKS,
    MIN_PATIENTS,
    Interval,
    Resamples,
    interval,
    nan_mean,
    spatial_blocks,
)
from triglyph.metrics.merit import bounds_of
from triglyph.metrics.result import Level, Result

Floats = NDArray[np.float64]
BLOCK, PATIENT = "spatial-block", "patient"
LEVELS: tuple[Level, ...] = ("patient", "within-patient", "within-section")


@dataclass(frozen=True)
class Measure:
    """A metric on one section."""

    value: float
    """NaN where it is undefined."""
    n: int
    draws: Floats | None = None
    """(n_boot,) of the block bootstrap; None where the metric has none."""
    n_blocks: int = 0
    n_effective: float | None = None
    """What the blocks are worth (`Resamples.n_effective`) where the metric hangs on few of them; None: all the same."""
    chance: float | None = None
    n_gallery: int | None = None
    n_genes: int | None = None


@dataclass(frozen=True)
class Rows:
    """Makes the rows of one subject under one protocol on one trial."""

    protocol: Protocol
    subject: Subject
    trial: Trial
    levels: Mapping[str, Level]
    """Section id -> level."""

    @classmethod
    def start(cls, protocol: Protocol, subject: Subject, trial: Trial) -> Rows:
        """Checks that nothing tested was trained on, then is ready."""
        return cls(protocol, subject, trial, trial.levels(subject))

    @cached_property
    def _shared(self) -> dict[str, Any]:
        return {
            "task": self.protocol.task,
            "protocol": self.protocol.stamp,
            "model": self.subject.name,
            "role": self.subject.role,
            "split": self.trial.split,
            "fold": self.trial.fold,
            "transductive": (*self.protocol.card().transductive, *self.subject.transductive),
            "seed": self.subject.seed,
            "compat": self.subject.compat,
            "source": self.subject.evidence,
        }

    @property
    def n_boot(self) -> int:
        """Draws for an interval: none for controls, whose spread is that of their refits."""
        return 0 if self.subject.role == "control" else self.protocol.n_boot

    def blocks(self, section: SectionLike, rows: ArrayLike) -> Resamples:
        """The block bootstrap of some of a section's locations."""
        blocks = spatial_blocks(section.centres_um, side_um=self.protocol.block_um)[np.asarray(rows)]
        # A seed of its own for each section: draws of different sections are independent.
        return Resamples(blocks, n_boot=self.n_boot, seed=[self.protocol.seed, zlib.crc32(section.id.encode())])

    def by_level(self, sections: Sequence[str]) -> list[tuple[Level, list[str]]]:
        """Sections of each level, in order; empty levels are left out."""
        groups = [(level, [s for s in sections if self.levels[s] == level]) for level in LEVELS]
        return [(level, ids) for level, ids in groups if ids]

    def row(
        self,
        *,
        metric: str,
        direction: str,
        aggregation: str,
        group: str,
        level: Level,
        value: float,
        n: int,
        ci: Interval | None = None,
        chance: float | None = None,
        n_gallery: int | None = None,
        n_genes: int | None = None,
    ) -> Result:
        """One row with everything that all rows here share."""
        return Result(
            **self._shared,
            metric=metric,
            value=_or_none(value),
            level=level,
            direction=direction,
            group=group,
            aggregation=aggregation,
            ci_low=ci.low if ci else None,
            ci_high=ci.high if ci else None,
            ci_unit=ci.unit if ci else "",
            n_units=ci.n_units if ci else None,
            chance=None if chance is None else _or_none(chance),
            n=n,
            n_genes=n_genes,
            n_gallery=n_gallery,
        )

    def per_section(self, measures: Mapping[str, Measure], *, metric: str, direction: str) -> list[Result]:
        """The rows of one metric: each section, each patient, and the means over both, level by level."""
        out: list[Result] = []
        for level, ids in self.by_level(list(measures)):
            one = {s: measures[s] for s in ids}
            people: dict[str, list[str]] = {}
            for s in ids:
                people.setdefault(self.trial.patients[s], []).append(s)
            enough = len(people) >= MIN_PATIENTS
            emit = partial(self._emit, metric=metric, direction=direction, level=level)
            by_patient = partial(self._patient_interval, metric=metric)
            by_block = partial(_block_interval, metric=metric)

            for s in ids:
                out.append(emit([one[s]], "per-section", s, one[s].value, by_block([[one[s]]])))
            values = [one[s].value for s in ids]
            ci = (
                by_patient(values, [self.trial.patients[s] for s in ids])
                if enough
                else by_block([[m] for m in one.values()])
            )
            out.append(emit(list(one.values()), "per-section", "all", mean_or_nan(values), ci))

            grouped = {patient: [one[s] for s in members] for patient, members in people.items()}
            means = [mean_or_nan([m.value for m in of]) for of in grouped.values()]
            for (patient, of), value in zip(grouped.items(), means, strict=True):
                out.append(emit(of, "per-patient", patient, value, by_block([of])))
            ci = by_patient(means, list(grouped)) if enough else by_block(list(grouped.values()))
            out.append(emit(list(one.values()), "per-patient", "all", mean_or_nan(means), ci))
        return out

    def by_patient(self, sections: Sequence[SectionLike]) -> list[tuple[Level, str, list[SectionLike]]]:
        """Sections of one patient and one level, in order."""
        found: dict[tuple[Level, str], list[SectionLike]] = {}
        for section in sections:
            found.setdefault((self.levels[section.id], section.patient), []).append(section)
        return [(level, patient, of) for (level, patient), of in found.items()]

    def patient_pooled(
        self, measures: Mapping[tuple[Level, str], Measure], *, metric: str, direction: str
    ) -> list[Result]:
        """The rows of a metric taken over all locations of a patient at once: each patient, and their mean."""
        out: list[Result] = []
        for level in LEVELS:
            one = {patient: m for (at, patient), m in measures.items() if at == level}
            if not one:
                continue
            emit = partial(self._emit, metric=metric, direction=direction, level=level)
            out += [
                emit([m], "patient-pooled", patient, m.value, _block_interval([[m]], metric=metric))
                for patient, m in one.items()
            ]
            values = [m.value for m in one.values()]
            ci = (
                self._patient_interval(values, list(one), metric=metric)
                if len(one) >= MIN_PATIENTS
                else _block_interval([[m] for m in one.values()], metric=metric)
            )
            out.append(emit(list(one.values()), "patient-pooled", "all", mean_or_nan(values), ci))
        return out

    def _emit(
        self,
        measures: Sequence[Measure],
        aggregation: str,
        group: str,
        value: float,
        ci: Interval | None,
        *,
        metric: str,
        direction: str,
        level: Level,
    ) -> Result:
        gallery = [m.n_gallery for m in measures if m.n_gallery is not None]
        genes = [m.n_genes for m in measures if m.n_genes is not None]
        chance = [m.chance for m in measures if m.chance is not None]
        return self.row(
            metric=metric,
            direction=direction,
            aggregation=aggregation,
            group=group,
            level=level,
            value=value,
            n=sum(m.n for m in measures),
            ci=ci,
            chance=mean_or_nan(chance) if chance else None,
            n_gallery=round(sum(gallery) / len(gallery)) if gallery else None,
            n_genes=min(genes) if genes else None,
        )

    def _patient_interval(self, values: ArrayLike, patients: Sequence[str], *, metric: str) -> Interval | None:
        """Of the mean over `values`, one per section or patient, when patients are drawn."""
        x = np.asarray(values, dtype=np.float64)
        there = ~np.isnan(x)
        # Who has no value is no unit.
        drawn = Resamples(np.array(patients)[there], n_boot=self.n_boot, seed=self.protocol.seed)
        return interval(
            drawn.mean(x[there])[:, 0],
            value=mean_or_nan(x),
            unit=PATIENT,
            n_units=drawn.n_units,
            min_units=MIN_PATIENTS,
            bounds=bounds_of(metric),
        )


def _block_interval(groups: Sequence[Sequence[Measure]], *, metric: str) -> Interval | None:
    """Of the mean over groups of the mean over a group's sections, each section drawn by its own blocks."""
    # A section without a value is in no mean, and its blocks are no units.
    groups = [of for of in ([m for m in group if not np.isnan(m.value)] for group in groups) if of]
    flat = [m for group in groups for m in group]
    if not flat or any(m.n_blocks < MIN_BLOCKS for m in flat):
        return None
    drawn = [[m.draws for m in group if m.draws is not None] for group in groups]
    if sum(map(len, drawn)) < len(flat):
        return None
    return interval(
        nan_mean([nan_mean(group, axis=0) for group in drawn], axis=0),
        value=mean_or_nan([mean_or_nan([m.value for m in group]) for group in groups]),
        unit=BLOCK,
        n_units=sum(m.n_blocks for m in flat),
        n_effective=sum(m.n_blocks if m.n_effective is None else m.n_effective for m in flat),
        n_strata=len(flat),
        min_units=MIN_BLOCKS,
        bounds=bounds_of(metric),
    )


def mean_or_nan(values: ArrayLike) -> float:
    """Mean over what is defined; NaN where nothing is."""
    return float(nan_mean(np.asarray(values, dtype=np.float64), axis=0))


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
