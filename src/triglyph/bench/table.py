"""Rows of many runs as tables: one for each task, a line per quantity, a column per model.

Only values of one quantity stand in one line: the same task, protocol (with its digest), direction, metric,
aggregation, group, level, split and fold. Refits of a null are shown by their two summaries, and a method's value is
starred where it is better than the 95th percentile of its null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from triglyph.bench.across_folds import FOLDS, OVER_PATIENTS
from triglyph.bench.comparison import question
from triglyph.bench.null import NULL, NULL_HIGH, Key, key
from triglyph.metrics.bootstrap import MIN_BLOCKS, MIN_PATIENTS
from triglyph.metrics.merit import lower_is_better
from triglyph.metrics.result import Result

BY_PATIENT = {"per-patient", "patient-pooled"}
"""Aggregations whose groups are patients."""
_ORDER = {"method": 0, "baseline": 1, "control": 2, "ceiling": 3}


@dataclass
class Line:
    """One quantity and its value for each model."""

    row: Result
    """Any row of it, for what they share."""
    values: dict[str, Result] = field(default_factory=dict)

    @property
    def noun(self) -> str:
        """What a mean of the whole split is over."""
        return "patients" if self.row.aggregation == OVER_PATIENTS else "folds"

    def numbers(self) -> dict[str, int]:
        """Model -> number of folds or patients that its mean is over; {} for what is of one fold."""
        folds = self.row.aggregation.startswith(FOLDS)
        if not folds and self.row.aggregation != OVER_PATIENTS:
            return {}
        found = {model: r.n if folds else r.n_units for model, r in self.values.items()}
        return {model: n for model, n in found.items() if n is not None}

    def units(self) -> str:
        """` (4 folds)`, ` (3 to 4 patients)`; "" for what is of one fold."""
        if not (numbers := sorted({*self.numbers().values()})):
            return ""
        return f" ({' to '.join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1])))} {self.noun})"

    def starred(self, model: str) -> bool:
        """Whether a method's value is better than the 95th percentile of its null."""
        row = self.values.get(model)
        nulls = [r.value for name, r in self.values.items() if name.split(" @ ")[0] == NULL_HIGH]
        if row is None or row.role != "method" or row.value is None or not nulls:
            return False
        lower = lower_is_better(row.metric)
        return all(n is not None and (row.value < n if lower else row.value > n) for n in nulls)


@dataclass(frozen=True)
class Table:
    """The lines of one task, and the models in the order of their columns."""

    task: str
    models: tuple[str, ...]
    lines: tuple[Line, ...]

    def header(self) -> list[str]:
        """Names of the columns."""
        return ["direction", "metric", "over", "level", "chance", *self.models]

    def cells(self, line: Line) -> list[str]:
        """One line as text."""
        r = line.row
        metric = f"{r.metric} ↓" if lower_is_better(r.metric) else r.metric
        pooled = ", pooled" if r.aggregation == "patient-pooled" else ""
        over = (r.aggregation if r.group == "all" else f"patient {r.group}{pooled}") + line.units()
        where = f"{r.level}, fold {r.fold}" if r.fold else r.level
        chance = "–" if r.chance is None else f"{r.chance:.3f}"
        values = [show(line.values.get(m)) + ("*" if line.starred(m) else "") for m in self.models]
        return [r.direction, metric, over, where, chance, *values]

    def notes(self) -> list[str]:
        """What a reader must know of the numbers."""
        shown = [r for line in self.lines for r in line.values.values()]
        notes = [f"protocol {stamp}, split {split}" for stamp, split in sorted({(r.protocol, r.split) for r in shown})]
        notes += [
            f"brackets: 95 %, Student's t, standard error by bootstrap over {_PLURAL[u]}"
            for u in sorted({r.ci_unit for r in shown} & {*_PLURAL})
        ]
        if shown and all(r.ci_low is None for r in shown):
            notes.append(
                f"no intervals: they need {MIN_PATIENTS} test patients, or {MIN_BLOCKS} blocks of tissue of 1 mm"
            )
        if any(line.starred(m) for line in self.lines for m in self.models):
            notes.append("* better than the 95th percentile of its null")
        notes += sorted(
            {
                f"means over different {line.noun}, not to be held against each other: "
                + ", ".join(f"{model} {n}" for model, n in line.numbers().items())
                for line in self.lines
                if len({*line.numbers().values()}) > 1
            }
        )
        marked: dict[str, set[str]] = {}
        for line in self.lines:
            for model, r in line.values.items():
                for note in r.transductive:
                    marked.setdefault(note, set()).add(model)
        notes += sorted(f"† {'; '.join(sorted(of))}: {note}" for note, of in marked.items())
        if any(r.source == "published" for r in shown):
            notes.append("published: as the authors give it, not measured here")
        notes += [
            f"{model}: random weights, the architecture alone; not a result of the method"
            for model in sorted({r.model for r in shown if r.source == "architecture-only"})
        ]
        if {r.level for r in shown} - {"patient"}:
            notes.append("only level `patient` supports a claim about unseen patients")
        return notes


_PLURAL = {"patient": "patients", "spatial-block": "spatial blocks"}


def show(row: Result | None) -> str:
    """A value with its interval: `0.430 [0.380, 0.470]`; `undefined` where it is, `–` where nothing was measured."""
    if row is None:
        return "–"
    if row.value is None:
        return "undefined"
    mark = "†" if row.transductive else ""
    if row.ci_low is None or row.ci_high is None:
        return f"{row.value:.3f}{mark}"
    return f"{row.value:.3f}{mark} [{row.ci_low:.3f}, {row.ci_high:.3f}]"


def tabulate(results: Iterable[Result]) -> list[Table]:
    """Rows over everything (`group="all"`) and of every patient, side by side, one table for each task."""
    tasks: dict[str, tuple[dict[Key, Line], dict[str, int]]] = {}
    for row in results:
        if row.model == NULL or not (row.group == "all" or row.aggregation in BY_PATIENT):
            continue
        lines, models = tasks.setdefault(row.task, ({}, {}))
        lines.setdefault(key(row), Line(row)).values[row.model] = row
        models.setdefault(row.model, _ORDER[row.role])
    return [
        Table(task, tuple(sorted(models, key=lambda m: models[m])), tuple(lines.values()))
        for task, (lines, models) in tasks.items()
    ]


def markdown(tables: Sequence[Table]) -> str:
    """All tables with their notes, in Markdown."""
    parts = []
    for table in tables:
        lines: dict[str, list[Line]] = {}
        for line in table.lines:
            lines.setdefault(line.row.protocol, []).append(line)
        told = [f"## {table.task}", ""]
        for protocol, of in lines.items():
            rows = [table.header(), *(table.cells(line) for line in of)]
            text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
            text.insert(1, "|" + " --- |" * len(rows[0]))
            # Lines of two protocols may say the same of direction, metric and level.
            told += [*([f"### {protocol}", ""] if len(lines) > 1 else []), *text, ""]
        parts.append("\n".join([*told, *(f"- {note}" for note in table.notes())]))
    return "\n\n".join(parts) + "\n"


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
                values.setdefault((row.model, question(row)), set()).add(row.value)
    several = {model for (model, _), found in values.items() if len(found) > 1}
    return [
        row.model_copy(update={"model": f"{row.model} @ {run}"}) if row.model in several else row
        for run, rows in runs.items()
        for row in rows
    ]
