"""AUROC of classes on held-out sections, in every aggregation the field prints, each under its own name.

The same scores give quite different numbers (a slide-wide offset moves `pooled`, never `macro`), so all are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.contracts import SectionLike
from triglyph.bench.rows import BLOCK, PATIENT, Measure, Rows, mean_or_nan
from triglyph.metrics.bootstrap import (
    MIN_BLOCKS,
    MIN_PATIENTS,
    Interval,
    Resamples,
    interval,
    nan_mean,
    spatial_blocks,
    worth_together,
)
from triglyph.metrics.merit import bounds_of
from triglyph.metrics.ranking import auroc
from triglyph.metrics.result import Level, Result

Floats = NDArray[np.float64]

AUROC_AGGREGATIONS = {
    "per-class": "group = a class: the mean over sections of its AUROC within the section",
    "macro": "group = all: the mean over classes of `per-class`",
    "pooled": "group = a class: its AUROC over the locations of all sections at once; group = all: mean over classes",
    "per-section": "group = a section: mean over its classes of their AUROC; group = all: the mean of the sections'",
    "per-patient": "group = a patient: the mean of their sections; group = all: the mean of the patients' values",
}
AUROC_METRIC = (
    "one class against the rest; a tie counts one half; a class of one kind only in a section is left out there"
)


@dataclass(frozen=True)
class Scored:
    """Class scores of one section's locations whose truth is known."""

    section: SectionLike
    rows: NDArray[np.intp]
    """(k,) locations of the section."""
    scores: Floats
    """(k, classes)"""
    truth: NDArray[np.bool_]
    """(k, classes)"""


def known_labels(section: SectionLike) -> NDArray[np.str_]:
    """(n,) labels as plain strings, "" where unknown."""
    return np.array([str(label).strip() for label in section.labels], dtype=np.str_)


def score_rows(rows: Rows, scored: Sequence[Scored], *, classes: Sequence[str], direction: str) -> list[Result]:
    """All rows of AUROC in one direction, level by level.

    Parameters
    ----------
    scored
        One entry per test section with at least one known label.
    classes
        Names of the columns of the scores.
    """
    out: list[Result] = []
    by_id = {s.section.id: s for s in scored}
    values = {name: auroc(s.scores, s.truth) for name, s in by_id.items()}
    drawn = {name: rows.blocks(s.section, s.rows) for name, s in by_id.items()}
    draws = {name: drawn[name].auroc(s.scores, s.truth) for name, s in by_id.items()}
    worth = {name: _worth(drawn[name], s.truth) for name, s in by_id.items()}
    measures = {
        name: Measure(
            value=mean_or_nan(values[name]),
            n=len(s.rows),
            draws=nan_mean(draws[name], axis=1),
            n_blocks=drawn[name].n_units,
            n_effective=worth_together(worth[name]),
            chance=0.5,
            n_gallery=len(s.rows),
        )
        for name, s in by_id.items()
    }
    for level, ids in rows.by_level(list(by_id)):
        some = [by_id[s] for s in ids]
        blocks = np.array([drawn[s].n_units for s in ids]), np.stack([worth[s] for s in ids])
        grid = np.stack([values[s] for s in ids])  # (sections, classes)
        out += _macro(rows, some, grid, np.stack([draws[s] for s in ids]), blocks, classes, direction, level)
        out += _pooled(rows, some, classes, direction, level)
    return out + rows.per_section(measures, metric="auroc", direction=direction)


def _macro(
    rows: Rows,
    scored: Sequence[Scored],
    grid: Floats,
    draws: Floats,
    blocks: tuple[NDArray[np.intp], Floats],
    classes: Sequence[str],
    direction: str,
    level: Level,
) -> list[Result]:
    patients, (n_blocks, worth) = np.array([s.section.patient for s in scored]), blocks
    by_patient = len(set(patients)) >= MIN_PATIENTS
    if by_patient:
        by_class = Resamples(patients, n_boot=rows.n_boot, seed=rows.protocol.seed).mean(grid, mask=~np.isnan(grid))
    else:
        # (n_boot, classes): sections are drawn block-wise, each on its own
        by_class = nan_mean(draws, axis=0)

    def ci(of: Floats, value: float, where: NDArray[np.bool_], worth: Floats) -> Interval | None:
        """Of a mean over the sections `where`: who has no value is no unit. `worth` (sections,) of their blocks."""
        if not where.any() or (not by_patient and n_blocks[where].min() < MIN_BLOCKS):
            return None
        return interval(
            of,
            value=value,
            unit=PATIENT if by_patient else BLOCK,
            n_units=len(set(patients[where])) if by_patient else int(n_blocks[where].sum()),
            n_effective=None if by_patient else float(worth[where].sum()),
            n_strata=1 if by_patient else int(where.sum()),
            min_units=MIN_PATIENTS if by_patient else MIN_BLOCKS,
            bounds=bounds_of("auroc"),
        )

    sizes = [len(s.rows) for s in scored]
    some, together = np.asarray(~np.isnan(grid).all(axis=1)), np.array([worth_together(of) for of in worth])
    out = []
    per_class = nan_mean(grid, axis=0)
    for c, name in enumerate(classes):
        where = ~np.isnan(grid[:, c])
        n = int(np.array(sizes)[where].sum())
        out.append(
            rows.row(
                metric="auroc",
                direction=direction,
                aggregation="per-class",
                group=name,
                level=level,
                value=per_class[c],
                n=n,
                ci=ci(by_class[:, c], per_class[c], where, worth[:, c]),
                chance=0.5,
                n_gallery=round(n / where.sum()) if where.any() else 0,
            )
        )
    out.append(
        rows.row(
            metric="auroc",
            direction=direction,
            aggregation="macro",
            group="all",
            level=level,
            value=mean_or_nan(per_class),
            n=sum(sizes),
            ci=ci(nan_mean(by_class, axis=1), mean_or_nan(per_class), some, together),
            chance=0.5,
            n_gallery=round(sum(sizes) / len(sizes)),
        )
    )
    return out


def _pooled(rows: Rows, scored: Sequence[Scored], classes: Sequence[str], direction: str, level: Level) -> list[Result]:
    scores = np.concatenate([s.scores for s in scored])
    truth = np.concatenate([s.truth for s in scored])
    values = auroc(scores, truth)
    sections = np.concatenate([np.full(len(s.rows), i) for i, s in enumerate(scored)])
    patients = [s.section.patient for s in scored]
    if len(set(patients)) >= MIN_PATIENTS:
        people = np.concatenate([np.full(len(s.rows), s.section.patient) for s in scored])
        drawn = Resamples(people, n_boot=rows.n_boot, seed=rows.protocol.seed)
        unit, strata, least = PATIENT, 1, MIN_PATIENTS
    else:
        side = rows.protocol.block_um
        blocks = np.concatenate([spatial_blocks(s.section.centres_um, side_um=side)[s.rows] for s in scored])
        drawn = Resamples(blocks, strata=sections, n_boot=rows.n_boot, seed=rows.protocol.seed)
        unit, strata, least = BLOCK, len(scored), MIN_BLOCKS
    draws = drawn.auroc(scores, truth)
    worth = _worth(drawn, truth)
    groups = [(name, values[c], draws[:, c], worth[c]) for c, name in enumerate(classes)]
    groups.append(("all", mean_or_nan(values), nan_mean(draws, axis=1), worth_together(worth)))
    return [
        rows.row(
            metric="auroc",
            direction=direction,
            aggregation="pooled",
            group=name,
            level=level,
            value=value,
            n=len(scores),
            ci=interval(
                of,
                value=value,
                unit=unit,
                n_units=drawn.n_units,
                n_effective=units,
                n_strata=strata,
                min_units=least,
                bounds=bounds_of("auroc"),
            ),
            chance=0.5,
            n_gallery=len(scores),
        )
        for name, value, of, units in groups
    ]


def _worth(drawn: Resamples, truth: NDArray[np.bool_]) -> Floats:
    """(classes,) what the units are worth to an AUROC: the locations of its rarer side may lie in a few of them."""
    return np.minimum(drawn.n_effective(truth), drawn.n_effective(~truth))
