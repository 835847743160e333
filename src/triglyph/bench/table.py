"""Rows of many runs as one table: a line per quantity, a column per model, in Markdown or for the screen.

Only values of one quantity stand in one line: the same task, protocol (with its digest), direction, metric,
aggregation, group, level, split and fold. Refits of a null are shown by their two summaries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from triglyph.bench.null import LOWER_IS_BETTER, NULL, Key, key
from triglyph.metrics.result import Result

_ORDER = {"method": 0, "baseline": 1, "control": 2, "ceiling": 3}


@dataclass
class Line:
    """One quantity and its value for each model."""

    row: Result
    """Any row of it, for what they share."""
    values: dict[str, Result] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Lines, and the models in the order of their columns."""

    models: tuple[str, ...]
    lines: tuple[Line, ...]

    def header(self) -> list[str]:
        """Names of the columns."""
        return ["task", "direction", "metric", "aggregation", "group", "level", "chance", *self.models]

    def cells(self, line: Line) -> list[str]:
        """One line as text."""
        r = line.row
        better = "↓" if r.metric in LOWER_IS_BETTER else ""
        chance = "–" if r.chance is None else f"{r.chance:.3f}"
        fixed = [r.task, r.direction, f"{r.metric}{better}", r.aggregation, r.group, r.level, chance]
        return [*fixed, *(show(line.values.get(model)) for model in self.models)]

    def markdown(self) -> str:
        """The table in Markdown, with a note for each kind of interval and of what saw the test set."""
        rows = [self.header(), *(self.cells(line) for line in self.lines)]
        text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        text.insert(1, "|" + " --- |" * len(rows[0]))
        return "\n".join([*text, "", *self.notes()]) + "\n"

    def notes(self) -> list[str]:
        """What a reader must know of the numbers."""
        shown = [r for line in self.lines for r in line.values.values()]
        notes = [f"- protocol {stamp}" for stamp in sorted({r.protocol for r in shown})]
        notes += [f"- brackets: 95 % bootstrap over {u}s" for u in sorted({r.ci_unit for r in shown} - {""})]
        marked = sorted({(r.model, note) for r in shown for note in r.transductive})
        notes += [f"- † {model}: {note}" for model, note in marked]
        levels = {r.level for r in shown}
        if levels - {"patient"}:
            notes.append("- only level `patient` supports a claim about unseen patients")
        return notes


def show(row: Result | None) -> str:
    """A value with its interval: `0.43 [0.38, 0.47]`; `undefined` where it is, `–` where nothing was measured."""
    if row is None:
        return "–"
    if row.value is None:
        return "undefined"
    mark = "†" if row.transductive else ""
    if row.ci_low is None or row.ci_high is None:
        return f"{row.value:.3f}{mark}"
    return f"{row.value:.3f}{mark} [{row.ci_low:.3f}, {row.ci_high:.3f}]"


def tabulate(results: Iterable[Result], *, aggregations: Sequence[str] | None = None) -> Table:
    """Rows over everything (`group="all"`) and of every patient, side by side.

    Parameters
    ----------
    aggregations
        Those to show; None shows all.
    """
    lines: dict[Key, Line] = {}
    models: dict[str, int] = {}
    for row in results:
        whole = row.group == "all" or row.aggregation == "per-patient"
        if row.model == NULL or not whole or (aggregations is not None and row.aggregation not in aggregations):
            continue
        lines.setdefault(key(row), Line(row)).values[row.model] = row
        models.setdefault(row.model, _ORDER[row.role])
    return Table(tuple(sorted(models, key=lambda m: models[m])), tuple(lines.values()))


def merge(runs: Mapping[str, Sequence[Result]]) -> list[Result]:
    """Rows of several runs; a model whose value differs between runs is told apart as `model @ run`.

    Parameters
    ----------
    runs
        Name of a run -> its rows.
    """
    values: dict[tuple[str, Key], set[float | None]] = {}
    for rows in runs.values():
        for row in rows:
            if row.model != NULL:
                values.setdefault((row.model, key(row)), set()).add(row.value)
    several = {model for (model, _), found in values.items() if len(found) > 1}
    return [
        row.model_copy(update={"model": f"{row.model} @ {run}"}) if row.model in several else row
        for run, rows in runs.items()
        for row in rows
    ]
