"""The tables of a comparison: what a model reached beside baselines, ceilings, null and chance; tests; stamps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from triglyph.bench.comparison import Comparison, Quantity
from triglyph.metrics.bootstrap import MIN_PATIENTS
from triglyph.metrics.merit import lower_is_better
from triglyph.report.comparison_grids import NONE, Family, Grid, arrowed, number, signed, titles
from triglyph.report.comparison_study import Run, Study
from triglyph.report.html import Table

_WIDTH = 12
OPEN_ROWS = 30
"""Longer tables of tests are folded: the forest plot says the same."""


def values_table(study: Study, grid: Grid, *, folded: bool) -> Table:
    """Models by metrics; then the null of each run, and chance."""
    metrics = grid.metrics
    models = grid.models(study)
    rows = []
    for model in models:
        of = [grid.entries.get((model, metric)) for metric in metrics]
        runs = list({run.name: run for e in of if e for run in e.runs}.values())
        rows.append(
            [
                model,
                "reference" if model == study.reference else study.models[model],
                textwrap.fill(", ".join(str(tries(run)) for run in runs), _WIDTH),
                textwrap.fill(", ".join(minutes(run) for run in runs), _WIDTH),
                *(e.text() if e else NONE for e in of),
            ]
        )
    strong = frozenset(
        (models.index(model), 4 + metrics.index(metric)) for model, metric in grid.best if model in models
    )
    for runs_of_null, cells in _null_rows(grid):
        rows.append([f"null: 95 %, then mean\n{runs_of_null}", "null", "", "", *cells])
    chances = [sorted({e.row.chance for (_, m), e in grid.entries.items() if m == of and e.row.chance is not None})
               for of in metrics]  # fmt: skip
    if any(chances):
        rows.append(["chance", "chance", "", "", *(" to ".join(map(number, _ends(c))) or NONE for c in chances)])
    header = ["model", "role", "tries", "CPU min", *(arrowed(m) for m in metrics)]
    aggregation = grid.aggregation + (f", fold {grid.fold}" if grid.fold else "")
    return Table(
        header,
        rows,
        caption="" if folded else _key(grid, aggregation),
        strong=strong,
        folded=f"The same, {aggregation}" if folded else "",
    )


def _null_rows(grid: Grid) -> list[tuple[str, list[str]]]:
    """Runs and what their null reached, a metric a cell; runs that share a null are one row."""
    found: dict[tuple[str, ...], list[str]] = {}
    for run, by_metric in grid.nulls().items():
        cells = ["\n".join(map(number, by_metric[m][::-1])) if m in by_metric else NONE for m in grid.metrics]
        found.setdefault(tuple(cells), []).append(run)
    return [(", ".join(runs), list(cells)) for cells, runs in found.items()]


def _ends(values: Sequence[float]) -> list[float]:
    return [values[0], values[-1]] if len({number(v) for v in values}) > 1 else list(values[:1])


def _key(grid: Grid, aggregation: str) -> str:
    """What the marks of a table mean."""
    units = sorted({(e.row.ci_unit, e.row.n_units or 0) for e in grid.entries.values() if e.row.ci_unit})
    said = [f"Aggregation: {aggregation}; tries and CPU minutes are of the whole runs, in their order"]
    if units:
        words = ", ".join(f"{n} {unit.replace('-', ' ')}s" for unit, n in units)
        said.append(f"second line: 95 % interval over {words}")
    if any(e.beats_null for e in grid.entries.values()):
        said.append("* better than the null: 95 % of its refits on shuffled pairs")
    if any(e.row.transductive for e in grid.entries.values()):
        said.append("† something saw the test set, see Stamps")
    if any(e.allowed for e in grid.entries.values()):
        said.append("‡ made in spite of a failed audit, see Stamps")
    if any(lower_is_better(m) for m in grid.metrics):
        said.append("↓ lower is better")
    if grid.best:
        said.append("bold: the best, and by the tests better than every other method")
    else:
        said.append("nothing is bold: no method is, by the tests, better than every other")
    return "; ".join(said) + "."


def tests_table(tests: Sequence[Comparison]) -> Table:
    """Each model against the reference; p only where there are patients enough for a claim."""
    header = ["model", "metric", "verdict", "better in", "equal", "mean", "reference", "difference", "95 % interval",
              "p", "p, Holm"]  # fmt: skip
    rows: list[list[str]] = []
    muted = set()
    for c in tests:
        p = c.paired
        if p.verdict not in ("better", "worse"):
            muted.add(len(rows))
        claim = p.n_patients >= MIN_PATIENTS
        rows.append(
            [
                p.a, arrowed(c.quantity.metric), p.verdict, f"{p.wins} of {p.n_patients}", str(p.ties),
                number(p.mean_a), number(p.mean_b), signed(p.difference),
                f"{signed(p.ci.low)} to {signed(p.ci.high)}" if p.ci else NONE,
                p_value(p.p_flips) if claim else NONE, p_value(p.p_adjusted) if claim else NONE,
            ]
        )  # fmt: skip
    sizes = sorted({c.paired.family for c in tests})
    caption = (
        "Patients are the unit. p: sign flips of the paired differences, two-sided; Holm's correction is over the "
        f"models of one metric ({', '.join(map(str, sizes))} tests), not over metrics. Intervals: Student's t over "
        f"patients. Below {MIN_PATIENTS} patients nothing is claimed. Grey rows claim no difference."
    )
    folded = f"The {len(rows)} tests" if len(rows) > OPEN_ROWS else ""
    return Table(header, rows, caption=caption, muted=frozenset(muted), folded=folded)


def verdicts_table(study: Study) -> Table:
    """Quantities by models: the verdict, the difference and the patients in whom a model is better."""
    models = [m for m in study.models if any(c.paired.a == m for c in study.tests)]
    quantities = list(dict.fromkeys(c.quantity for c in study.tests))
    named = titles(Family.of(q) for q in quantities)
    said = {(c.quantity, c.paired.a): c for c in study.tests}
    rows: list[list[str]] = []
    strong = set()
    for quantity in quantities:
        cells: list[str] = []
        for model in models:
            c = said.get((quantity, model))
            if c and c.paired.verdict in ("better", "worse"):
                strong.add((len(rows), 1 + len(cells)))
            cells.append(_said(c) if c else NONE)
        rows.append([f"{arrowed(quantity.metric)}\n{named[Family.of(quantity)]}", *cells])
    return Table(
        ["quantity", *models],
        rows,
        caption=f"Against {study.reference}: verdict, mean difference, patients in whom the model is better. "
        f"{NONE}: nothing to compare.",
        strong=frozenset(strong),
    )


def _said(c: Comparison) -> str:
    words = {"cannot be told apart": "cannot be\ntold apart", "too few patients for a claim": "too few\npatients"}
    p = c.paired
    if not p.n_patients:
        return "undefined"
    return f"{words.get(p.verdict, p.verdict)}\n{signed(p.difference)}, {p.wins}/{p.n_patients}"


def patients_table(study: Study, quantities: Sequence[Quantity], *, folded: bool) -> Table:
    """Every patient's value."""
    by_quantity = {q: study.patients(q) for q in quantities}
    patients = sorted({who for models in by_quantity.values() for of in models.values() for who in of})
    rows = [
        [model, arrowed(q.metric), *(number(of[who]) if who in of else NONE for who in patients)]
        for q, models in by_quantity.items()
        for model, of in models.items()
    ]
    title = f"The values of the {len(patients)} patients"
    caption = "Every patient's value; folds and seeds averaged inside a patient."
    return Table(["model", "metric", *patients], rows, caption=caption, folded=title if folded else "")


def runs_table(study: Study) -> Table:
    """What each run was, and what it cost."""
    header = ["run", "judged", "cohort", "split", "level", "folds", "tries", "CPU min", "wall min", "allowed findings",
              "triglyph"]  # fmt: skip
    rows = []
    for run in study.runs:
        m = run.manifest
        subject, cohort, split = m.get("subject", {}), m.get("cohort", {}), m.get("split", {})
        judged = next((str(subject[k]) for k in ("model", "embedding", "representation") if k in subject), "baselines")
        rows.append(
            [
                run.name, judged, _stamped(cohort), _stamped(split), str(split.get("level", NONE)),
                ", ".join(f or "the only one" for f in split.get("folds", [])), str(tries(run)), minutes(run),
                _minutes(m.get("minutes")), ", ".join(run.allowed) or "none", str(m.get("triglyph", NONE)),
            ]
        )  # fmt: skip
    return Table(header, rows, caption="CPU minutes are of the whole run, its baselines and null included.", wrap=True)


def protocols_table(study: Study) -> Table:
    """Cards of the protocols: digest, what is fitted, what sees the test set."""
    cards: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for run in study.runs:
        given = run.manifest.get("protocols", {})
        for stamp in dict.fromkeys(row.protocol for row in run.rows):
            cards.setdefault(stamp, (given.get(stamp, {}), []))[1].append(run.name)
    rows = [
        [
            stamp,
            ", ".join(runs),
            str(card.get("summary", NONE)),
            "; ".join(f"{what}: {where}" for what, where in card.get("fitted", {}).items()) or NONE,
            "; ".join(card.get("transductive", ())) or "nothing",
        ]
        for stamp, (card, runs) in cards.items()
    ]
    header = ["protocol / version / digest", "runs", "what it is", "what is fitted on what", "what sees the test set"]
    return Table(header, rows, wrap=True)


def stamps_table(study: Study) -> Table:
    """Model by model: what saw the test set, and the levels it was judged at."""
    rows = []
    for model, role in study.models.items():
        of = [row for row in study.holders if row.model == model]
        notes = dict.fromkeys(note for row in of for note in row.transductive)
        levels = dict.fromkeys(row.level for row in of)
        runs = list({run.name: run for row in of for run in study.holders[row]}.values())
        allowed = dict.fromkeys(name for run in runs for name in run.allowed)
        compat = dict.fromkeys(row.compat for row in of if row.compat)
        rows.append(
            [
                model, role, ", ".join(levels), "; ".join(notes) or "nothing", ", ".join(allowed) or "none",
                ", ".join(compat) or NONE, ", ".join(run.name for run in runs),
            ]
        )  # fmt: skip
    header = ["model", "role", "levels", "what saw the test set", "allowed findings", "compat", "runs"]
    caption = "Only level `patient` supports a claim about unseen patients."
    return Table(header, rows, caption=caption, wrap=True)


def apart_table(study: Study) -> Table:
    """What is not compared, and why."""
    return Table(["who", "what", "why"], [list(a) for a in study.apart], wrap=True)


# ---- words


def tries(run: Run) -> int | str:
    """How often its maker tried, as the run says."""
    found = run.manifest.get("tries")
    return NONE if found is None else int(found)


def minutes(run: Run) -> str:
    """CPU minutes of a run."""
    return _minutes(run.manifest.get("cpu_minutes"))


def _minutes(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _stamped(of: Mapping[str, Any]) -> str:
    return f"{of.get('name', NONE)} ({str(of.get('digest', NONE))[:8]})"


def p_value(p: float) -> str:
    """Two digits that mean something."""
    return NONE if isnan(p) else f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"
