"""What alignment does to the prediction of expression: a table and a figure, from the rows of `triglyph hescape`.

An *effect* is aligned less unimodal, patient by patient, seeds averaged within each patient, on one cohort. Cohorts
called `<group>-<level>` belong together: a line joins them, and where the same patients are tested in all of them, the
effect's change from the first to the last is tested on those patients too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triglyph.metrics.paired import Paired, compare, corrected
from triglyph.metrics.result import Result
from triglyph.report.style import INK, MUTED, PALETTE, new_figure, png, styled
from triglyph.storage import atomic_file

Floats = NDArray[np.float64]
METRIC = "pearson"
MIXING, BIOLOGY, RECALL = "batch-predictability", "label-knn@20", "recall@10"
_ADAPTED, _CONTROL = ": adapted features", " (frozen) + untrained head"


@dataclass(frozen=True)
class Effect:
    """One way to align on one cohort, against its image encoder as it came."""

    cohort: str
    cell: str
    image: str
    patients: tuple[str, ...]
    differences: Floats
    """(patients,) aligned less unimodal."""
    paired: Paired
    adapted: Paired | None
    """The adapted encoder's own features less the unadapted ones; None where nothing was adapted."""
    control: Paired | None
    """Aligned less the untrained head on the frozen encoder: what training the head adds; None without that control."""
    aside: Mapping[str, float]
    """Other means: recall and its chance, mixing and labels before and after."""

    @property
    def group(self) -> str:
        """Cohorts that differ in one thing."""
        return self.cohort.rpartition("-")[0] or self.cohort


def read_effects(rows: Mapping[str, Sequence[Result]], cells: Mapping[str, str]) -> list[Effect]:
    """Effects of all cells on all cohorts; tests are corrected over the cells of a cohort.

    Parameters
    ----------
    rows
        Cohort -> its rows.
    cells
        Name of a cell -> its image encoder, whose rows are called by it.
    """
    out: list[Effect] = []
    for cohort, found in rows.items():
        of_cohort: list[Effect] = []
        for cell, image in cells.items():
            before, after, inner = (_by_patient(found, name) for name in (image, cell, cell + _ADAPTED))
            drawn = {} if cell == image + _CONTROL else _by_patient(found, image + _CONTROL)
            patients = tuple(sorted({*before} & {*after}))
            x, y = _matrix(after, patients), _matrix(before, patients)
            aside = {
                "recall": _mean(found, cell, RECALL, direction="image->expression"),
                "recall chance": _mean(found, cell, RECALL, direction="image->expression", chance=True),
                **{
                    f"{metric}, {when}": _mean(found, name, metric)
                    for metric in (MIXING, BIOLOGY)
                    for when, name in (("unimodal", image), ("aligned", cell))
                },
                "batch chance": _mean(found, cell, MIXING, chance=True),
            }
            of_cohort.append(
                Effect(
                    cohort,
                    cell,
                    image,
                    patients,
                    x.mean(axis=1) - y.mean(axis=1),
                    compare(x, y, names=("aligned", "unimodal")),
                    compare(_matrix(inner, patients), y, names=("adapted", "unimodal")) if inner else None,
                    compare(x, _matrix(drawn, patients), names=("aligned", "untrained head")) if drawn else None,
                    aside,
                )
            )
        tested = corrected([e.paired for e in of_cohort])
        out += [replace(e, paired=p) for e, p in zip(of_cohort, tested, strict=True)]
    return out


def changes(effects: Sequence[Effect]) -> list[tuple[str, str, Paired]]:
    """(group, cell, comparison of the last cohort of a group with its first) where the same patients were tested."""
    out: list[tuple[str, str, Paired]] = []
    for group in dict.fromkeys(e.group for e in effects):
        found: list[tuple[str, str, Paired]] = []
        for cell in dict.fromkeys(e.cell for e in effects):
            line = [e for e in effects if e.group == group and e.cell == cell]
            if len(line) > 1 and len({e.patients for e in line}) == 1:
                names = (line[-1].cohort, line[0].cohort)
                found.append((group, cell, compare(line[-1].differences, line[0].differences, names=names)))
        tested = corrected([p for _, _, p in found])
        out += [(g, c, p) for (g, c, _), p in zip(found, tested, strict=True)]
    return out


# ---- tables


def write_effects(effects: Sequence[Effect], path: Path) -> None:
    """One row a cohort and cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    aside = list(effects[0].aside) if effects else []
    header = ["cohort", "cell", "patients", "unimodal", "aligned", "difference", "low", "high", "wins", "p"]
    extra = [f"{name}_{part}" for name in ("adapted", "less_control") for part in ("difference", "low", "high")]
    writer.writerow([*header, "p_holm", "verdict", *extra, *aside])
    for e in effects:
        p = e.paired
        numbers = [p.n_patients, p.mean_b, p.mean_a, p.difference, *_ends(p), p.wins, p.p_flips, p.p_adjusted]
        more = [x for q in (e.adapted, e.control) for x in (["", "", ""] if q is None else [q.difference, *_ends(q)])]
        writer.writerow([e.cohort, e.cell, *numbers, p.verdict, *more, *(e.aside[k] for k in aside)])
    with atomic_file(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")


def markdown(effects: Sequence[Effect]) -> str:
    """The table for people, one block a cohort, and how effects change within groups of cohorts."""
    lines: list[str] = []
    for cohort in dict.fromkeys(e.cohort for e in effects):
        here = [e for e in effects if e.cohort == cohort]
        chance = here[0].aside
        lines += [
            f"## {cohort}",
            f"Pearson over held-out patients ({here[0].paired.n_patients}), mean of genes; p after Holm's correction "
            f"over {here[0].paired.family}. recall@10 from image to expression, chance {chance['recall chance']:.3f}. "
            f"Batch: how often most neighbours are of the own section, chance {chance['batch chance']:.3f}. Labels: "
            "balanced accuracy of 20 neighbours among other patients. Control: the same head, untrained.",
            "",
            "| cell | unimodal | aligned | difference | better in | p | less control | recall@10 "
            "| batch, before, after | labels, before, after |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for e in here:
            p, a = e.paired, e.aside
            lines.append(
                f"| {e.cell} | {p.mean_b:.3f} | {p.mean_a:.3f} | {_difference(p)} | {p.wins} of {p.n_patients} "
                f"| {p.p_adjusted:.2g} | {_difference(e.control) if e.control else ''} | {_number(a['recall'])} "
                f"| {a[f'{MIXING}, unimodal']:.2f}, {a[f'{MIXING}, aligned']:.2f} "
                f"| {a[f'{BIOLOGY}, unimodal']:.2f}, {a[f'{BIOLOGY}, aligned']:.2f} |"
            )
            if e.adapted is not None:
                q = e.adapted
                lines.append(
                    f"| its encoder, adapted | {q.mean_b:.3f} | {q.mean_a:.3f} | {_difference(q)} "
                    f"| {q.wins} of {q.n_patients} | | | | | |"
                )
        lines.append("")
    if moved := changes(effects):
        lines += [
            "## How the effect changes",
            "",
            "| cohorts | cell | change of the difference | p |",
            "|---|---|---|---|",
        ]
        lines += [f"| {p.b} to {p.a} | {cell} | {_difference(p)} | {p.p_adjusted:.2g} |" for _, cell, p in moved]
        lines.append("")
    return "\n".join(lines)


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"


def _difference(p: Paired) -> str:
    ends = f" [{p.ci.low:+.3f}, {p.ci.high:+.3f}]" if p.ci else ""
    return f"{p.difference:+.3f}{ends}"


def _ends(p: Paired) -> tuple[float, float]:
    return (p.ci.low, p.ci.high) if p.ci else (float("nan"), float("nan"))


# ---- the figure


def figure(effects: Sequence[Effect]) -> bytes:
    """Over cohorts, a column for each image encoder and tuning: how well expression is predicted, the effect patient by
    patient, and how far sections lie apart."""
    panels = list(dict.fromkeys(_panel(e.cell) for e in effects))
    ways = list(dict.fromkeys(_way(e.cell) for e in effects))
    cohorts = list(dict.fromkeys(e.cohort for e in effects))
    groups = {e.cohort: e.group for e in effects}
    # A gap between groups.
    at = {c: i + 0.6 * list(dict.fromkeys(groups.values())).index(groups[c]) for i, c in enumerate(cohorts)}
    # The control last, and grey.
    ways.sort(key=_CONTROL.endswith)
    shade = {way: MUTED if _CONTROL.endswith(way) else PALETTE[i % len(PALETTE)] for i, way in enumerate(ways)}
    with styled():
        drawn = new_figure(max(7.0, 3.1 * len(panels) + 0.8), 7.0)
        grid = drawn.subplots(3, len(panels), sharex=True, sharey="row", squeeze=False, height_ratios=[1.0, 1.7, 1.0])
        for column, panel in enumerate(panels):
            high, top, low = grid[:, column]
            top.axhline(0, color=INK, linewidth=0.8)
            for i, way in enumerate(ways):
                shift = (i - (len(ways) - 1) / 2) * 0.8 / max(len(ways), 2)
                line = [e for e in effects if _panel(e.cell) == panel and _way(e.cell) == way]
                for e in line:
                    x = at[e.cohort] + shift
                    jitter = np.linspace(-0.07, 0.07, len(e.differences)) if len(e.differences) > 1 else np.zeros(1)
                    top.plot(x + jitter, e.differences, ".", color=shade[way], alpha=0.3, markersize=3, zorder=1)
                    if e.paired.ci:
                        top.plot([x, x], e.paired.ci[:2], color=shade[way], linewidth=1.6, zorder=3)
                for group in dict.fromkeys(e.group for e in line):
                    of = [e for e in line if e.group == group]
                    x_of = [at[e.cohort] + shift for e in of]
                    top.plot(x_of, [e.paired.difference for e in of], "o", color=shade[way], markersize=4.5,
                             linewidth=1.0, zorder=4, label=way if group == line[0].group else None)  # fmt: skip
                    for axes, values in (
                        (high, [e.paired.mean_a for e in of]),
                        (low, [e.aside[f"{MIXING}, aligned"] for e in of]),
                    ):
                        axes.plot(
                            [at[e.cohort] for e in of], values, "o-", color=shade[way], markersize=4, linewidth=1.0
                        )
            mine = [e for e in effects if _panel(e.cell) == panel and _way(e.cell) == ways[0]]
            for group in dict.fromkeys(e.group for e in mine):
                of = [e for e in mine if e.group == group]
                for axes, values in (
                    (high, [e.paired.mean_b for e in of]),
                    (low, [e.aside[f"{MIXING}, unimodal"] for e in of]),
                ):
                    axes.plot([at[e.cohort] for e in of], values, "s--", color=INK, markersize=4, linewidth=1.0,
                              label="unimodal" if group == mine[0].group else None)  # fmt: skip
            low.axhline(mine[0].aside["batch chance"], color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
            high.set_title(panel)
            low.set_xticks([at[c] for c in cohorts], cohorts, rotation=35, ha="right")
        grid[0, 0].set_ylabel("Pearson of predicted\nexpression")
        grid[1, 0].set_ylabel("aligned less unimodal,\npatient by patient")
        grid[2, 0].set_ylabel("own section among\nneighbours")
        for row in (0, 2):
            grid[row, 0].set_ylim(bottom=0)
        said = dict(zip(*reversed(grid[0, 0].get_legend_handles_labels()), strict=True))
        said |= dict(zip(*reversed(grid[1, 0].get_legend_handles_labels()), strict=True))
        drawn.legend(said.values(), said.keys(), loc="outside upper center", ncols=3)
        return png(drawn, dpi=150)


def _panel(cell: str) -> str:
    return cell.partition(" + ")[0]


def _way(cell: str) -> str:
    return cell.partition(" + ")[2]


# ---- from rows


def _by_patient(rows: Sequence[Result], model: str) -> dict[str, list[float]]:
    """Patient -> Pearson of each seed; NaN where undefined."""
    out: dict[str, list[float]] = {}
    for r in rows:
        mine = r.task == "expression" and r.metric == METRIC and r.aggregation == "per-patient"
        if mine and r.model == model and r.group != "all" and r.level == "patient":
            out.setdefault(r.group, []).append(float("nan") if r.value is None else r.value)
    return out


def _matrix(values: Mapping[str, Sequence[float]], patients: Sequence[str]) -> Floats:
    """(patients, seeds)"""
    return np.array([values[p] for p in patients], dtype=np.float64).reshape(len(patients), -1)


def _mean(rows: Sequence[Result], model: str, metric: str, *, direction: str = "", chance: bool = False) -> float:
    """Over seeds, of the rows of all patients, or of all sections in one space."""
    found = [
        r.chance if chance else r.value
        for r in rows
        if r.model == model
        and r.metric == metric
        and r.group == "all"
        and r.level == "patient"
        and r.aggregation in ("per-patient", "pooled")
        and direction in ("", r.direction)
    ]
    there = [v for v in found if v is not None]
    return float(np.mean(there)) if there else float("nan")
