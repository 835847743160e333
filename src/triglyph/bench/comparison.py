"""Paired comparisons of the models of several runs, quantity by quantity, from the rows of single patients.

A patient's row of one model is matched with the same patient's row of the other in the same fold; seeds, and folds
that test a patient again, are averaged inside the patient. Only patients that both models have are compared. Two
models are compared only where the protocol (with its digest), the split and every gallery are the same: where they
could have met but differ in one of these, that is an error that says in which.

Holm's correction is over one family, the pairs of models of one quantity (a task, protocol, direction, metric, level
and split). Whoever looks at many quantities and reports the best should correct over those too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from triglyph.bench.null import Key
from triglyph.bench.null import key as row_key
from triglyph.bench.protocol import LABEL_TASKS
from triglyph.errors import ContractError
from triglyph.metrics.merit import is_merit, lower_is_better
from triglyph.metrics.paired import Paired, compare, corrected
from triglyph.metrics.result import Level, Result


def asked(task: str, direction: str) -> str:
    """What is asked, whatever it is read off: an image and expression that tell labels or batches answer one question.

    Mixing and biology of `batch-effect` stand beside each other in every comparison, so its batches count too.
    """
    return direction.rsplit("->", maxsplit=1)[-1] if task in LABEL_TASKS else direction


class Quantity(NamedTuple):
    """What two models must share to be compared."""

    task: str
    direction: str
    """As `asked`."""
    metric: str
    level: Level
    protocol: str
    """name/version/digest"""
    split: str

    @classmethod
    def of(cls, row: Result) -> Quantity:
        """The quantity of a row."""
        return cls(row.task, asked(row.task, row.direction), row.metric, row.level, row.protocol, row.split)

    @property
    def topic(self) -> tuple[str, ...]:
        """The quantity whatever its constants and split: the two could have met here."""
        return (*self[:4], self.protocol.split("/", maxsplit=1)[0])

    def words(self) -> str:
        """`auroc, label, patient`"""
        return ", ".join(part for part in (self.metric, self.direction, self.level) if part)


@dataclass(frozen=True)
class Comparison:
    """One pair of models on one quantity."""

    quantity: Quantity
    paired: Paired
    family: str
    """What Holm's correction is over, in words."""
    notes: tuple[str, ...] = ()
    """What a reader must know of it."""

    @staticmethod
    def header() -> list[str]:
        """Names of the columns."""
        return [
            "direction", "metric", "level", "A", "B", "patients", "A better", "equal", "mean A", "mean B",
            "A - B", "95 % interval", "p, sign flips", "p, Wilcoxon", "p, Holm", "verdict on A",
        ]  # fmt: skip

    def cells(self) -> list[str]:
        """The comparison as text."""
        c, q = self.paired, self.quantity
        metric = f"{q.metric} ↓" if c.lower_is_better else q.metric
        interval = f"[{c.ci.low:+.3f}, {c.ci.high:+.3f}]" if c.ci else "–"
        means = [_number(c.mean_a), _number(c.mean_b), _number(c.difference, "+.3f")]
        tests = [_number(p, ".2g") for p in (c.p_flips, c.p_wilcoxon, c.p_adjusted)]
        counts = [str(c.n_patients), f"{c.wins}/{c.n_patients}", str(c.ties)]
        return [q.direction, metric, q.level, c.a, c.b, *counts, *means, interval, *tests, c.verdict]


def comparisons(
    runs: Mapping[str, Sequence[Result]],
    *,
    reference: str | None = None,
    models: Iterable[str] | None = None,
    metrics: Iterable[str] | None = None,
    seed: int = 0,
) -> list[Comparison]:
    """Compare models over patients on every quantity that two of them have.

    Parameters
    ----------
    runs
        Name of a run -> its rows. A model whose value differs between runs, for one patient, fold and seed, is told
        apart as `model @ run`. Nulls are no models.
    reference
        Compare every other model with this one (as B); None compares all pairs.
    models
        Only these; all but ceilings by default. The first of a pair is A.
    metrics
        Only these; all of which more or less is better by default.
    seed
        Of sampled sign flips.

    Raises
    ------
    ContractError
        A model is not there; two models have a metric under different protocols, splits or galleries.
    """
    values = _values(runs, None if metrics is None else set(metrics))
    found = list(dict.fromkeys(model for model, _ in values))
    ceilings = {model for (model, _), places in values.items() if _any_row(places).role == "ceiling"}
    chosen = [m for m in found if m not in ceilings] if models is None else list(dict.fromkeys(models))
    if reference is not None and reference not in chosen:
        chosen = [*chosen, reference]
    for model in chosen:
        if model not in found:
            raise ContractError(
                f"no rows of single patients for the model {model!r}", mend=f"there are {', '.join(found) or 'none'}"
            )
    if reference is None:
        pairs, against = list(combinations(chosen, 2)), "all pairs"
    else:
        pairs, against = [(m, reference) for m in chosen if m != reference], f"all against {reference}"

    families: dict[Quantity, list[tuple[Paired, tuple[str, ...]]]] = {}
    for a, b in pairs:
        for quantity in _shared(values, a, b):
            one, other = values[a, quantity], values[b, quantity]
            families.setdefault(quantity, []).append(_pair(quantity, (a, b), one, other, seed=seed))
    out = []
    for quantity, members in families.items():
        for paired, (_, notes) in zip(corrected([p for p, _ in members]), members, strict=True):
            family = f"{paired.family} tests of {quantity.words()}: {against}"
            out.append(Comparison(quantity, paired, family, notes))
    return out


Place = tuple[str, str]
"""Patient and fold."""
Seeds = dict[int | None, Result]
Values = dict[tuple[str, Quantity], dict[Place, Seeds]]


def _values(runs: Mapping[str, Sequence[Result]], metrics: set[str] | None) -> Values:
    """(model, quantity) -> (patient, fold) -> seed -> row; models that differ between runs are named apart."""
    rows = [
        (run, row)
        for run, of in runs.items()
        for row in of
        if row.aggregation == "per-patient"
        and row.group != "all"
        and row.role != "control"
        and (is_merit(row.metric) if metrics is None else row.metric in metrics)
    ]
    seen: dict[tuple[object, ...], set[float | None]] = {}
    for _, row in rows:
        seen.setdefault((row.model, row.seed, question(row)), set()).add(row.value)
    several = {str(identity[0]) for identity, of in seen.items() if len(of) > 1}
    out: Values = {}
    for run, row in rows:
        model = f"{row.model} @ {run}" if row.model in several else row.model
        seeds = out.setdefault((model, Quantity.of(row)), {}).setdefault((row.group, row.fold), {})
        before = seeds.setdefault(row.seed, row)
        if before.value != row.value:
            raise ContractError(
                f"run {run} has two values for one patient and seed",
                where=f"{row.model}, {row.metric}, patient {row.group}, fold {row.fold or '0'}",
                mend="give every run rows of its own",
            )
    return out


def question(row: Result) -> Key:
    """As `triglyph.bench.null.key`, whatever labels are read off."""
    return row_key(row.model_copy(update={"direction": asked(row.task, row.direction)}))


def _shared(values: Values, a: str, b: str) -> list[Quantity]:
    """Quantities that both have; where only their constants or splits keep them apart, an error."""
    of_a, of_b = ([q for model, q in values if model == name] for name in (a, b))
    shared = [q for q in of_a if q in of_b]
    met = {q.topic for q in shared}
    for one in of_a:
        others = [q for q in of_b if q.topic == one.topic]
        if others and one.topic not in met:
            other = others[0]
            differ = [
                f"{what} {mine} against {theirs}"
                for what, mine, theirs in (
                    ("protocol", one.protocol, other.protocol),
                    ("split", one.split, other.split),
                )
                if mine != theirs
            ]
            raise ContractError(
                f"{a} and {b} were not judged alike: {'; '.join(differ)}",
                where=one.words(),
                mend="judge both by one protocol, with the same constants, on one split",
            )
    return shared


def _pair(
    quantity: Quantity,
    names: tuple[str, str],
    one: dict[Place, Seeds],
    other: dict[Place, Seeds],
    *,
    seed: int,
) -> tuple[Paired, tuple[str, ...]]:
    places = [place for place in one if place in other]
    for place in places:
        galleries = [{row.n_gallery for row in side[place].values()} for side in (one, other)]
        if len(set.union(*galleries)) > 1:
            mine, theirs = (sorted(str(n) for n in of) for of in galleries)
            raise ContractError(
                f"{names[0]} and {names[1]} chose from galleries of different size: "
                f"{', '.join(mine)} against {', '.join(theirs)}",
                where=f"{quantity.words()}, patient {place[0]}, fold {place[1] or '0'}",
                mend="judge both on the same locations",
            )
    patients = sorted({patient for patient, _ in places})
    a, b = ([_patient_value(side, [p for p in places if p[0] == who]) for who in patients] for side in (one, other))
    paired = compare(a, b, names=names, lower_is_better=lower_is_better(quantity.metric), seed=seed)
    return paired, tuple(_notes(quantity, names, one, other, places))


def _patient_value(side: dict[Place, Seeds], places: Sequence[Place]) -> float:
    """Mean over folds of the mean over seeds; NaN where any is undefined, so that both models average the same."""
    means = [np.mean([np.nan if r.value is None else r.value for r in side[place].values()]) for place in places]
    return float(np.mean(means))


def _notes(
    quantity: Quantity, names: tuple[str, str], one: dict[Place, Seeds], other: dict[Place, Seeds], places: list[Place]
) -> Iterable[str]:
    if quantity.level != "patient":
        yield f"level {quantity.level}: no claim about unseen patients"
    read = [sorted({r.direction.split("->")[0] for s in side.values() for r in s.values()}) for side in (one, other)]
    if read[0] != read[1]:
        yield " and ".join(f"{name} reads {', '.join(of)}" for name, of in zip(names, read, strict=True))
    compared = {patient for patient, _ in places}
    for name, side in zip(names, (one, other), strict=True):
        alone = sorted({patient for patient, _ in side} - compared)
        if alone:
            yield f"only {name} has the patients {', '.join(alone)}"
        marks = sorted({mark for place in places for row in side[place].values() for mark in row.transductive})
        if marks:
            yield f"{name}: {'; '.join(marks)}"
    for column, noun in (("n", "observations"), ("n_genes", "genes")):
        differ = [p for p in places if len({getattr(r, column) for s in (one, other) for r in s[p].values()}) > 1]
        if differ:
            yield f"{noun} differ in number for {len({patient for patient, _ in differ})} of {len(compared)} patients"


def _any_row(places: dict[Place, Seeds]) -> Result:
    return next(iter(next(iter(places.values())).values()))


def _number(value: float, form: str = ".3f") -> str:
    return "–" if np.isnan(value) else format(value, form)
