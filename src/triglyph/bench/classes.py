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
from triglyph.metrics.bootstrap import MIN_BLOCKS, MIN_PATIENTS, Interval, Resamples, interval, nan_mean, spatial_blocks
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
    measures = {
        name: Measure(
            value=mean_or_nan(values[name]),
            n=len(s.rows),
            draws=nan_mean(draws[name], axis=1),
            n_blocks=drawn[name].n_units,
            chance=0.5,
            n_gallery=len(s.rows),
        )
        for name, s in by_id.items()
    }
    for level, ids in rows.by_level(list(by_id)):
        some = [by_id[s] for s in ids]
        n_blocks = [drawn[s].n_units for s in ids]
        grid = np.stack([values[s] for s in ids])  # (sections, classes)
        out += _macro(rows, some, grid, np.stack([draws[s] for s in ids]), n_blocks, classes, direction, level)
        out += _pooled(rows, some, classes, direction, level)
    return out + rows.per_section(measures, metric="auroc", direction=direction)


def _macro(
    rows: Rows,
    scored: Sequence[Scored],
    grid: Floats,
    draws: Floats,
    n_blocks: Sequence[int],
    classes: Sequence[str],
    direction: str,
    level: Level,
) -> list[Result]:
    patients = [s.section.patient for s in scored]
    if len(set(patients)) >= MIN_PATIENTS:
        people = Resamples(np.array(patients), n_boot=rows.n_boot, seed=rows.protocol.seed)
        by_class, unit, units, least = people.mean(grid, mask=~np.isnan(grid)), PATIENT, people.n_units, MIN_PATIENTS
    else:
        # (n_boot, classes): sections are drawn block-wise, each on its own
        by_class, unit, units, least = nan_mean(draws, axis=0), BLOCK, sum(n_blocks), MIN_BLOCKS
    enough = unit == PATIENT or min(n_blocks) >= MIN_BLOCKS

    def ci(of: Floats) -> Interval | None:
        return interval(of, unit=unit, n_units=units, min_units=least) if enough else None

    sizes = [len(s.rows) for s in scored]
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
                ci=ci(by_class[:, c]),
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
            ci=ci(nan_mean(by_class, axis=1)),
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
        unit, least = PATIENT, MIN_PATIENTS
    else:
        side = rows.protocol.block_um
        blocks = np.concatenate([spatial_blocks(s.section.centres_um, side_um=side)[s.rows] for s in scored])
        drawn = Resamples(blocks, strata=sections, n_boot=rows.n_boot, seed=rows.protocol.seed)
        unit, least = BLOCK, MIN_BLOCKS
    draws = drawn.auroc(scores, truth)
    groups = [(name, values[c], draws[:, c]) for c, name in enumerate(classes)]
    groups.append(("all", mean_or_nan(values), nan_mean(draws, axis=1)))
    return [
        rows.row(
            metric="auroc",
            direction=direction,
            aggregation="pooled",
            group=name,
            level=level,
            value=value,
            n=len(scores),
            ci=interval(of, unit=unit, n_units=drawn.n_units, min_units=least),
            chance=0.5,
            n_gallery=len(scores),
        )
        for name, value, of in groups
    ]
