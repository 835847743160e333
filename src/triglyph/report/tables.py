"""Tables of results for people: one row a model, patients printed where they are few, roles and chance in sight."""

from __future__ import annotations

from collections.abc import Sequence

from triglyph.metrics.result import Result
from triglyph.report.html import Table


def summary(results: Sequence[Result], keys: Sequence[tuple[str, str, str, str]]) -> Table:
    """One line per (task, direction, metric, aggregation) of `keys` and model, over all held-out sections.

    Controls are shown by their summaries alone (mean and 95th percentile), single refits are left out.
    """
    rows: list[list[str]] = []
    emphasis: list[int] = []
    for task, direction, metric, aggregation in keys:
        for r in results:
            if (r.task, r.direction, r.metric, r.aggregation, r.group) != (task, direction, metric, aggregation, "all"):
                continue
            if r.role == "control" and r.seed is not None:
                continue
            if r.role == "method":
                emphasis.append(len(rows))
            rows.append(
                [
                    task,
                    direction.replace("->", " → "),
                    f"{metric}, {aggregation}",
                    r.model,
                    r.role,
                    r.level,
                    _number(r.value),
                    interval(r),
                    _number(r.chance),
                    str(r.n_gallery or ""),
                ]
            )
    header = ["task", "direction", "metric", "model", "role", "level", "value", "95 % interval", "chance", "gallery"]
    return Table(header, rows, emphasis=frozenset(emphasis))


def by_patient(results: Sequence[Result], keys: Sequence[tuple[str, str, str]]) -> Table:
    """Every held-out patient's own value for (task, direction, metric) of `keys`, methods and baselines."""
    found = [
        r
        for r in results
        if r.aggregation == "per-patient" and r.group != "all" and (r.task, r.direction, r.metric) in set(keys)
    ]
    patients = sorted({r.group for r in found})
    lines: dict[tuple[str, str, str, str], dict[str, str]] = {}
    for r in found:
        line = lines.setdefault((r.task, r.direction.replace("->", " → "), r.metric, r.model), {})
        line[r.group] = _number(r.value)
    rows = [[*key, *(line.get(p, "") for p in patients)] for key, line in lines.items()]
    return Table(["task", "direction", "metric", "model", *(f"patient {p}" for p in patients)], rows)


def interval(r: Result) -> str:
    """`0.21 to 0.34 (38 spatial blocks)`, or nothing."""
    if r.ci_low is None or r.ci_high is None:
        return ""
    return f"{r.ci_low:.3f} to {r.ci_high:.3f} ({r.n_units} {r.ci_unit.replace('-', ' ')}s)"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
