"""Values of a comparison as grids: models by metrics, for each family, aggregation and fold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import NamedTuple

from triglyph.bench.across_folds import FOLDS, SPREAD
from triglyph.bench.comparison import Quantity, asked
from triglyph.bench.null import NULL_HIGH, NULL_MEAN, Key, key
from triglyph.metrics.merit import is_merit, lower_is_better
from triglyph.metrics.result import Level, Result
from triglyph.report.comparison_study import ALL_FOLDS, Run, Study

NONE = "–"


class Family(NamedTuple):
    """What the columns of one table share."""

    task: str
    protocol: str
    direction: str
    split: str
    level: Level

    @classmethod
    def of(cls, row: Result | Quantity) -> Family:
        """The family of a row or of a quantity."""
        return cls(row.task, row.protocol, asked(row.task, row.direction), row.split, row.level)

    def words(self) -> str:
        """`expression, image → expression`"""
        return ", ".join(part for part in (self.task, self.direction.replace("->", " → ")) if part)


def titles(families: Iterable[Family]) -> dict[Family, str]:
    """Their words; what sets families of one task apart is in brackets."""
    known = list(dict.fromkeys(families))
    out = {}
    for family in known:
        alike = [f for f in known if f.words() == family.words()]
        parts = [(getattr(family, name), {getattr(f, name) for f in alike}) for name in ("protocol", "split", "level")]
        apart = ", ".join(mine for mine, all_of_them in parts if len(all_of_them) > 1)
        out[family] = family.words() + (f" ({apart})" if apart else "")
    return out


@dataclass(frozen=True)
class Entry:
    """One value of one model."""

    row: Result
    runs: tuple[Run, ...]
    spread: float | None = None
    """Standard deviation of folds."""
    null_mean: float | None = None
    null_high: float | None = None

    @property
    def beats_null(self) -> bool:
        """Whether a method's value is better than the 95th percentile of its own run's null."""
        value, high = self.row.value, self.null_high
        if self.row.role != "method" or value is None or high is None or not is_merit(self.row.metric):
            return False
        return value < high if lower_is_better(self.row.metric) else value > high

    @property
    def allowed(self) -> bool:
        """Whether no run has it whose split passed its audit."""
        return all(run.allowed for run in self.runs)

    def text(self) -> str:
        """`0.430*†‡`, then the interval or the spread on a line of its own."""
        r = self.row
        if r.value is None:
            return "undefined"
        marks = (("*", self.beats_null), ("†", r.transductive), ("‡", self.allowed))
        shown = number(r.value) + "".join(mark for mark, there in marks if there)
        if r.ci_low is not None and r.ci_high is not None:
            return f"{shown}\n{number(r.ci_low)} to {number(r.ci_high)}"
        return shown if self.spread is None else f"{shown}\n± {number(self.spread)}"


@dataclass
class Grid:
    """Models by metrics, of one family, aggregation and fold."""

    family: Family
    aggregation: str
    fold: str
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    """(model, metric) -> value"""
    best: frozenset[tuple[str, str]] = frozenset()
    """Values that are better than those of every other method, in the words of the tests."""

    @property
    def metrics(self) -> list[str]:
        """Merits first, in the order of the rows."""
        names = dict.fromkeys(metric for _, metric in self.entries)
        return sorted(names, key=lambda name: not is_merit(name))

    def models(self, study: Study) -> list[str]:
        """Those that have a value, in the order of the study."""
        there = {model for model, _ in self.entries}
        return [model for model in study.models if model in there]

    def nulls(self) -> dict[str, dict[str, tuple[float | None, float | None]]]:
        """Run -> metric -> mean and 95th percentile of its null."""
        out: dict[str, dict[str, tuple[float | None, float | None]]] = {}
        for (_, metric), e in self.entries.items():
            if e.null_high is not None:
                out.setdefault(e.runs[0].name, {})[metric] = e.null_mean, e.null_high
        return out


def grids(study: Study) -> list[Grid]:
    """All values over everything (`group="all"`); seeds of one model are averaged and then have no interval."""
    nulls: dict[tuple[str, Key], dict[str, float | None]] = {}
    for run in study.runs:
        for row in run.rows:
            name = row.model.split(" @ ", maxsplit=1)[0]
            if name in (NULL_MEAN, NULL_HIGH):
                nulls.setdefault((run.name, key(row)), {})[name] = row.value
    found: dict[tuple[Family, str, str], dict[tuple[str, str], dict[int | None, tuple[Result, list[Run]]]]] = {}
    for row, runs in study.holders.items():
        if row.group == "all":
            place = found.setdefault((Family.of(row), row.aggregation, row.fold), {})
            seeds = place.setdefault((row.model, row.metric), {})
            _, holders = seeds.setdefault(row.seed, (row, []))
            holders += [run for run in runs if run not in holders]
    out = []
    for (family, aggregation, fold), values in found.items():
        grid = Grid(family, aggregation, fold)
        for (model, metric), seeds in values.items():
            if metric.endswith(SPREAD):
                continue
            row, holders = _over_seeds(seeds)
            spread = values.get((model, metric + SPREAD))
            mine = next((nulls[r.name, key(row)] for r in holders if (r.name, key(row)) in nulls), {})
            grid.entries[model, metric] = Entry(
                row,
                tuple(holders),
                _over_seeds(spread)[0].value if spread else None,
                mine.get(NULL_MEAN) if row.role == "method" else None,
                mine.get(NULL_HIGH) if row.role == "method" else None,
            )
        out.append(grid)
    for family in dict.fromkeys(g.family for g in out):
        head = headline([g for g in out if g.family == family])
        if head.aggregation in (ALL_FOLDS, "per-patient"):
            head.best = frozenset(_best(study, head))
    return out


def _over_seeds(seeds: Mapping[int | None, tuple[Result, list[Run]]]) -> tuple[Result, list[Run]]:
    rows = [row for row, _ in seeds.values()]
    runs = list({run.name: run for _, of in seeds.values() for run in of}.values())
    if len(rows) == 1:
        return rows[0], runs
    values = [row.value for row in rows if row.value is not None]
    mean = sum(values) / len(values) if len(values) == len(rows) else None
    alone = {"seed": None, "value": mean, "ci_low": None, "ci_high": None, "ci_unit": "", "n_units": None}
    return rows[0].model_copy(update=alone), runs


def headline(of: Sequence[Grid]) -> Grid:
    """The grid of a family whose unit is the patient, else its first."""
    wanted = (ALL_FOLDS, "per-patient", f"{FOLDS} of pooled", f"{FOLDS} of macro", "pooled", "macro")
    return min(of, key=lambda g: wanted.index(g.aggregation) if g.aggregation in wanted else len(wanted))


def _best(study: Study, grid: Grid) -> Iterable[tuple[str, str]]:
    """The best value of each merit, where it is a method's and every other method is said to be worse."""
    for metric in filter(is_merit, grid.metrics):
        rivals = {
            model: e.row.value
            for (model, of), e in grid.entries.items()
            if of == metric and e.row.role in ("method", "baseline") and e.row.value is not None
        }
        sign = -1.0 if lower_is_better(metric) else 1.0
        winner = max(rivals, key=lambda m: sign * rivals[m], default=None)
        said = {
            (c.paired.b if c.paired.a == winner else c.paired.a): c.paired.verdict
            == ("better" if c.paired.a == winner else "worse")
            for c in study.among
            if Family.of(c.quantity) == grid.family
            and c.quantity.metric == metric
            and winner in (c.paired.a, c.paired.b)
        }
        others = {m for m in rivals if m != winner and (study.models[m] == "method" or m == study.reference)}
        if winner is not None and others and all(said.get(m, False) for m in others):
            yield winner, metric


def arrowed(metric: str) -> str:
    """The metric, with an arrow down where lower is better."""
    return f"{metric} ↓" if lower_is_better(metric) else metric


def number(value: float | None) -> str:
    """Three decimals, one from 100 on."""
    if value is None or isnan(value):
        return NONE
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def signed(value: float) -> str:
    """As `number`, with its sign."""
    return NONE if isnan(value) else f"{value:+.3f}" if abs(value) < 100 else f"{value:+.1f}"
