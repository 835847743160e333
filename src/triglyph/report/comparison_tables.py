"""The tables of a comparison: what a model reached beside baselines, ceilings, null and chance; tests; stamps; CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

import polars as pl

from triglyph.bench.comparison import Comparison, Quantity
from triglyph.bench.null import LOWER_IS_BETTER
from triglyph.metrics.bootstrap import MIN_PATIENTS
from triglyph.report.comparison_grids import NONE, Family, Grid, arrowed, number, signed
from triglyph.report.comparison_study import Run, Study
from triglyph.report.html import Table


def values_table(study: Study, grid: Grid, *, folded: bool) -> Table:
    """Models by metrics; then the null of each run, and chance."""
    metrics = grid.metrics
    models = grid.models(study)
    rows, emphasis = [], set()
    for model in models:
        of = [grid.entries.get((model, metric)) for metric in metrics]
        runs = list({run.name: run for e in of if e for run in e.runs}.values())
        if study.models[model] == "method":
            emphasis.add(len(rows))
        rows.append(
            [
                model,
                "reference" if model == study.reference else study.models[model],
                ", ".join(str(tries(run)) for run in runs),
                ", ".join(minutes(run) for run in runs),
                *(e.text() if e else NONE for e in of),
            ]
        )
    strong = frozenset(
        (models.index(model), 4 + metrics.index(metric)) for model, metric in grid.best if model in models
    )
    for run, by_metric in grid.nulls().items():
        for i, name in enumerate(("mean of the null", "95th percentile of the null")):
            cells = [number(by_metric[m][i]) if m in by_metric else NONE for m in metrics]
            rows.append([f"{name}, {run}", "null", "", "", *cells])
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


def _ends(values: Sequence[float]) -> list[float]:
    return [values[0], values[-1]] if len({number(v) for v in values}) > 1 else list(values[:1])


def _key(grid: Grid, aggregation: str) -> str:
    """What the marks of a table mean."""
    units = sorted({(e.row.ci_unit, e.row.n_units or 0) for e in grid.entries.values() if e.row.ci_unit})
    said = [f"Aggregation: {aggregation}; tries and CPU minutes are of the whole run"]
    if units:
        words = ", ".join(f"{n} {unit.replace('-', ' ')}s" for unit, n in units)
        said.append(f"second line: 95 % interval over {words}")
    if any(e.beats_null for e in grid.entries.values()):
        said.append("* better than the 95th percentile of its run's null")
    if any(e.row.transductive for e in grid.entries.values()):
        said.append("† something saw the test set, see Stamps")
    if any(m in LOWER_IS_BETTER for m in grid.metrics):
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
    rows, muted = [], set()
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
    return Table(header, rows, caption=caption, muted=frozenset(muted))


def verdicts_table(study: Study) -> Table:
    """Quantities by models: the verdict, the difference and the patients in whom a model is better."""
    models = [m for m in study.models if any(c.paired.a == m for c in study.tests)]
    quantities = list(dict.fromkeys(c.quantity for c in study.tests))
    said = {(c.quantity, c.paired.a): c for c in study.tests}
    rows, strong = [], set()
    for quantity in quantities:
        cells = []
        for model in models:
            c = said.get((quantity, model))
            if c and c.paired.verdict in ("better", "worse"):
                strong.add((len(rows), 2 + len(cells)))
            cells.append(
                f"{c.paired.verdict}\n{signed(c.paired.difference)}, {c.paired.wins} of {c.paired.n_patients}"
                if c
                else NONE
            )
        rows.append([f"{arrowed(quantity.metric)}\n{Family.of(quantity).words()}", quantity.level, *cells])
    return Table(
        ["quantity", "level", *models],
        rows,
        caption=f"Against {study.reference}: verdict, mean difference, patients in whom the model is better.",
        strong=frozenset(strong),
    )


def _said(c: Comparison) -> str:
    return f"{c.paired.verdict}\n{signed(c.paired.difference)}, {c.paired.wins} of {c.paired.n_patients}"


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
                number(m.get("minutes")), ", ".join(m.get("allowed", [])) or "none", str(m.get("triglyph", NONE)),
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
        allowed = dict.fromkeys(name for run in runs for name in run.manifest.get("allowed", []))
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


# ---- CSV


def values_frame(study: Study, of: Sequence[Grid]) -> pl.DataFrame:
    """One row per quantity and model, every aggregation and fold."""
    records = []
    for grid in of:
        for (model, metric), e in grid.entries.items():
            r = e.row
            records.append(
                {
                    "task": r.task, "protocol": r.protocol, "direction": r.direction, "metric": metric,
                    "lower_is_better": metric in LOWER_IS_BETTER, "aggregation": r.aggregation, "level": r.level,
                    "split": r.split, "fold": r.fold, "model": model, "role": r.role,
                    "reference": model == study.reference, "value": r.value, "ci_low": r.ci_low, "ci_high": r.ci_high,
                    "ci_unit": r.ci_unit, "n_units": r.n_units, "std_of_folds": e.spread, "chance": r.chance,
                    "null_mean": e.null_mean, "null_95": e.null_high, "beats_null": e.beats_null,
                    "best": (model, metric) in grid.best, "n": r.n, "n_genes": r.n_genes, "n_gallery": r.n_gallery,
                    "transductive": "; ".join(r.transductive), "compat": r.compat,
                    "runs": "; ".join(run.name for run in e.runs),
                    "tries": "; ".join(str(tries(run)) for run in e.runs),
                    "cpu_minutes": "; ".join(minutes(run) for run in e.runs),
                    "allowed": "; ".join(dict.fromkeys(a for run in e.runs for a in run.manifest.get("allowed", []))),
                }
            )  # fmt: skip
    floats = ("value", "ci_low", "ci_high", "std_of_folds", "chance", "null_mean", "null_95")
    ints = ("n_units", "n", "n_genes", "n_gallery")
    kinds = {**dict.fromkeys(floats, pl.Float64), **dict.fromkeys(ints, pl.Int64)}
    return pl.DataFrame(records, schema_overrides=kinds, infer_schema_length=None)


def tests_frame(study: Study) -> pl.DataFrame:
    """Every test: all models against the reference, then all pairs of methods; p only with patients enough."""
    records = []
    for c in (*study.tests, *study.among):
        p, q = c.paired, c.quantity
        claim = p.n_patients >= MIN_PATIENTS
        records.append(
            {
                "family": c.family, "task": q.task, "protocol": q.protocol, "direction": q.direction,
                "metric": q.metric, "level": q.level, "split": q.split, "a": p.a, "b": p.b, "patients": p.n_patients,
                "left_out": p.n_left_out, "wins": p.wins, "ties": p.ties, "losses": p.losses,
                "mean_a": _some(p.mean_a), "mean_b": _some(p.mean_b), "difference": _some(p.difference),
                "ci_low": p.ci.low if p.ci else None, "ci_high": p.ci.high if p.ci else None,
                "p_sign_flips": _some(p.p_flips) if claim else None, "p_exact": p.exact,
                "p_wilcoxon": _some(p.p_wilcoxon) if claim else None, "p_holm": _some(p.p_adjusted) if claim else None,
                "tests_in_family": p.family, "least_p": p.least_p, "verdict": p.verdict, "sentence": p.sentence(),
                "notes": "; ".join(c.notes),
            }
        )  # fmt: skip
    floats = ("mean_a", "mean_b", "difference", "ci_low", "ci_high", "p_sign_flips", "p_wilcoxon", "p_holm", "least_p")
    return pl.DataFrame(records, schema_overrides=dict.fromkeys(floats, pl.Float64), infer_schema_length=None)


def patients_frame(study: Study, quantities: Sequence[Quantity]) -> pl.DataFrame:
    """Every patient's value of every quantity and model."""
    records = [
        {**q._asdict(), "model": model, "role": study.models[model], "patient": who, "value": _some(value)}
        for q in quantities
        for model, of in study.patients(q).items()
        for who, value in of.items()
    ]
    return pl.DataFrame(records, schema_overrides={"value": pl.Float64}, infer_schema_length=None)


# ---- words


def tries(run: Run) -> int | str:
    """How often its maker tried, as the run says."""
    found = run.manifest.get("tries")
    return NONE if found is None else int(found)


def minutes(run: Run) -> str:
    """CPU minutes of a run."""
    return number(run.manifest.get("cpu_minutes"))


def _stamped(of: Mapping[str, Any]) -> str:
    return f"{of.get('name', NONE)} ({str(of.get('digest', NONE))[:8]})"


def p_value(p: float) -> str:
    """Two digits that mean something."""
    return NONE if isnan(p) else f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"


def _some(value: float) -> float | None:
    return None if isnan(value) else value
