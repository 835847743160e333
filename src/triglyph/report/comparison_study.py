"""What a comparison of bench runs rests on: named rows, means over folds and patients, tests, and what does not meet.

Everything is a `Result` row, those that are made here too: where a split has several folds, the mean over folds with
its spread (`triglyph.bench.across_folds`), and the mean over all patients of all folds, whose interval draws patients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from triglyph.bench.across_folds import across_folds
from triglyph.bench.comparison import Comparison, Quantity, comparisons
from triglyph.bench.null import NULL, NULL_HIGH, NULL_MEAN, key, summaries
from triglyph.bench.rows import PATIENT, mean_or_nan
from triglyph.bench.table import merge
from triglyph.errors import ContractError, RecipeError
from triglyph.metrics.bootstrap import MIN_PATIENTS, Resamples, interval
from triglyph.metrics.merit import bounds_of, is_merit
from triglyph.metrics.paired import corrected
from triglyph.metrics.per_gene import from_results, read_genes
from triglyph.metrics.result import Result, read_results
from triglyph.storage import read_json

ALL_FOLDS = "per-patient, all folds"
"""`aggregation` of the mean over the patients of all folds."""
_ORDER = {"method": 0, "baseline": 1, "control": 2, "ceiling": 3}


@dataclass(frozen=True, eq=False)
class Run:
    """A folder of `triglyph bench run`."""

    name: str
    rows: tuple[Result, ...]
    manifest: Mapping[str, Any]
    genes: pl.DataFrame
    """Of single genes, from `genes.parquet` or from rows; see `triglyph.metrics.per_gene`."""

    @property
    def allowed(self) -> list[str]:
        """Findings of the audit that the run was made in spite of (`bench run --allow NAME`)."""
        return list(self.manifest.get("allowed", []))

    @property
    def protocols(self) -> Mapping[str, Mapping[str, Any]]:
        """Stamp -> card."""
        return dict(self.manifest.get("protocols", {}))

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read a run.

        Raises
        ------
        RecipeError
            The folder is no run of `triglyph bench run`.
        """
        where = folder / "manifest.json"
        mend = "give folders that `triglyph bench run` wrote; without its manifest nobody knows what a run cost"
        if not where.is_file():
            raise RecipeError(f"{folder.resolve().name} has no manifest.json", where=where, mend=mend)
        manifest = read_json(where)
        if not isinstance(manifest, dict) or manifest.get("kind") != "bench":
            raise RecipeError("the manifest is not that of a bench run", where=where, mend=mend)
        rows = tuple(read_results(folder))
        stored = read_genes(folder)
        return cls(folder.resolve().name, rows, manifest, from_results(rows) if stored is None else stored)


class Apart(NamedTuple):
    """Something that cannot be compared."""

    who: str
    what: str
    why: str


@dataclass(frozen=True)
class Study:
    """Runs side by side."""

    runs: tuple[Run, ...]
    """With models that differ between runs named `model @ run`, and with the rows over folds."""
    reference: str
    models: Mapping[str, str]
    """Model -> role: methods (the reference first among them), baselines, controls, ceilings. Nulls are none."""
    quantities: tuple[Quantity, ...]
    """The merits that single patients have values of, in the order of the rows."""
    tests: tuple[Comparison, ...]
    """Every model against the reference."""
    among: tuple[Comparison, ...]
    """All pairs of methods, and of methods with the reference."""
    apart: tuple[Apart, ...]

    @cached_property
    def holders(self) -> dict[Result, list[Run]]:
        """Every row once, and the runs that have it; nulls are left out, they belong to their run."""
        found: dict[Result, list[Run]] = {}
        for run in self.runs:
            for row in dict.fromkeys(run.rows):
                if not is_null(row):
                    found.setdefault(row, []).append(run)
        return found

    def patients(self, quantity: Quantity) -> dict[str, dict[str, float]]:
        """Model -> patient -> value, folds and seeds averaged inside a patient; NaN where one is undefined."""
        found: dict[str, dict[str, dict[str, list[float]]]] = {}
        for row in self.holders:
            if _of_patient(row) and Quantity.of(row) == quantity:
                folds = found.setdefault(row.model, {}).setdefault(row.group, {})
                folds.setdefault(row.fold, []).append(np.nan if row.value is None else row.value)
        return {
            model: {who: _mean_of_means(found[model][who].values()) for who in sorted(found[model])}
            for model in self.models
            if model in found
        }


def study(runs: Sequence[Run], *, reference: str | None = None) -> Study:
    """Compare every model of several runs with one of them.

    Parameters
    ----------
    runs
        With names of their own.
    reference
        The model to compare with; the first run's method if left out.

    Raises
    ------
    RecipeError
        There is no such model, or the first run has no method.
    """
    runs = _splits_apart(runs)
    named = [replace(run, rows=(*rows, *_over_folds(rows))) for run, rows in zip(runs, _named(runs), strict=True)]
    roles = {row.model: row.role for run in named for row in run.rows if not is_null(row)}
    if reference is None:
        reference = next((row.model for row in named[0].rows if row.role == "method"), None)
        if reference is None:
            raise RecipeError(
                f"the first run, {named[0].name}, judged no method to compare with",
                where="bench compare",
                mend=f"give --reference; there are {', '.join(roles)}",
            )
    if reference not in roles:
        raise RecipeError(
            f"no model is called {reference!r}", where="--reference", mend=f"there are {', '.join(roles) or 'none'}"
        )
    models = dict(sorted(roles.items(), key=lambda item: (_ORDER[item[1]], item[0] != reference)))

    quantities: dict[Quantity, dict[str, list[Result]]] = {}
    for run in named:
        for row in run.rows:
            if _of_patient(row) and is_merit(row.metric):
                quantities.setdefault(Quantity.of(row), {}).setdefault(run.name, []).append(row)
    tests: list[Comparison] = []
    among: list[Comparison] = []
    apart: list[Apart] = []
    without: dict[Quantity, list[str]] = {}
    for quantity, of in quantities.items():
        there = [m for m in models if any(row.model == m for rows in of.values() for row in rows)]
        if reference in there:
            pairs = [(m, reference) for m in there if m != reference and models[m] in ("method", "baseline")]
            tests += _tests(of, pairs, f"all against {reference}", apart)
        else:
            without[quantity] = there
        methods = sorted((m for m in there if models[m] == "method" or m == reference), key=lambda m: m == reference)
        among += _tests(of, list(combinations(methods, 2)), "all pairs of methods and the reference", apart)
    met = [q for q in quantities if q not in without]
    apart = [*_unmet(without, met, reference), *_side_by_side(met), *dict.fromkeys(apart), *_other_data(named)]
    constants = {stamp: card.get("constants", {}) for run in named for stamp, card in run.protocols.items()}
    explained = tuple(_explained(one, constants) for one in apart)
    return Study(tuple(named), reference, models, tuple(quantities), tuple(tests), tuple(among), explained)


def is_null(row: Result) -> bool:
    """Whether a row is of the refits on shuffled pairs, one of them or their summary."""
    return row.model.split(" @ ", maxsplit=1)[0] in (NULL, NULL_MEAN, NULL_HIGH)


def _of_patient(row: Result) -> bool:
    return row.aggregation == "per-patient" and row.group != "all" and not is_null(row)


def _mean_of_means(folds: Iterable[Sequence[float]]) -> float:
    return float(np.mean([np.mean(seeds) for seeds in folds]))


def _splits_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs whose split has the name of another's and other content get the digest into the name: another split."""
    digests: dict[str, set[str]] = {}
    for run in runs:
        split = run.manifest.get("split", {})
        digests.setdefault(split.get("name", ""), set()).add(split.get("digest", ""))
    out = []
    for run in runs:
        split = run.manifest.get("split", {})
        name, digest = split.get("name", ""), split.get("digest", "")
        if len(digests[name]) < 2:
            out.append(run)
            continue
        renamed = [r.model_copy(update={"split": f"{name} ({digest[:8]})"}) if r.split == name else r for r in run.rows]
        out.append(replace(run, rows=tuple(renamed)))
    return out


def _named(runs: Sequence[Run]) -> list[tuple[Result, ...]]:
    """The rows of each run, models told apart where runs differ in them."""
    merged = iter(merge({run.name: run.rows for run in runs}))
    return [tuple(next(merged) for _ in run.rows) for run in runs]


def _over_folds(rows: Sequence[Result]) -> list[Result]:
    """What a split of several folds needs besides: means over folds, over all patients, and their nulls."""
    there = {(key(row), row.model, row.seed) for row in rows}
    new = [*across_folds(rows), *_over_patients(rows)]
    new += summaries(new)
    return [row for row in new if (key(row), row.model, row.seed) not in there]


def _over_patients(rows: Sequence[Result]) -> list[Result]:
    """The mean over the patients of all folds, seeds and repeated folds averaged inside a patient.

    A null has no rows of patients: its fold means are weighted by the patients of the fold.
    """
    people: dict[tuple[str, Quantity], dict[str, dict[str, list[Result]]]] = {}
    nulls: dict[tuple[int | None, Quantity], list[Result]] = {}
    for row in rows:
        if _of_patient(row):
            of = people.setdefault((row.model, Quantity.of(row)), {}).setdefault(row.group, {})
            of.setdefault(row.fold, []).append(row)
        elif row.model == NULL and row.aggregation == "per-patient":
            nulls.setdefault((row.seed, Quantity.of(row)), []).append(row)
    out = []
    tested: dict[Quantity, dict[str, int]] = {}
    for (_, quantity), patients in people.items():
        per_fold: dict[str, int] = {}
        for folds in patients.values():
            for fold in folds:
                per_fold[fold] = per_fold.get(fold, 0) + 1
        tested.setdefault(quantity, per_fold)
        if len(per_fold) < 2:
            continue
        values = np.array(
            [_mean_of_means([[np.nan if r.value is None else r.value for r in s] for s in f.values()])
             for f in patients.values()]
        )  # fmt: skip
        flat = [r for folds in patients.values() for seeds in folds.values() for r in seeds]
        names = np.array(list(patients))[~np.isnan(values)]
        drawn = Resamples(names)
        ci = None
        if len(names) >= MIN_PATIENTS:
            ci = interval(
                drawn.mean(values[~np.isnan(values)])[:, 0],
                value=mean_or_nan(values),
                unit=PATIENT,
                n_units=len(names),
                min_units=MIN_PATIENTS,
                bounds=bounds_of(flat[0].metric),
            )
        chance = [r.chance for r in flat if r.chance is not None]
        out.append(
            flat[0].model_copy(
                update={
                    **_WHOLE,
                    "value": _or_none(mean_or_nan(values)),
                    "ci_low": ci.low if ci else None,
                    "ci_high": ci.high if ci else None,
                    "ci_unit": PATIENT if ci else "",
                    "n_units": len(names) if ci else None,
                    "chance": float(np.mean(chance)) if chance else None,
                    "transductive": tuple(dict.fromkeys(note for r in flat for note in r.transductive)),
                    "n": sum(r.n for r in flat),
                    "seed": None,
                }
            )
        )
    for (_, quantity), of_folds in nulls.items():
        weights = [tested.get(quantity, {}).get(row.fold, 0) for row in of_folds]
        if len(of_folds) < 2 or not all(weights):
            continue
        whole = [np.nan if row.value is None else row.value for row in of_folds]
        mean = float(np.average(whole, weights=weights))
        out.append(of_folds[0].model_copy(update={**_WHOLE, "value": _or_none(mean)}))
    return out


_WHOLE = {"fold": "", "group": "all", "aggregation": ALL_FOLDS}


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def _tests(
    of: Mapping[str, Sequence[Result]], pairs: Sequence[tuple[str, str]], against: str, apart: list[Apart]
) -> list[Comparison]:
    """The comparisons of one quantity, Holm's correction over all; pairs that must not be compared go to `apart`."""
    found: list[Comparison] = []
    for a, b in pairs:
        try:
            found += comparisons(of, reference=b, models=[a])
        except ContractError as error:
            apart.append(Apart(f"{a} and {b}", error.where, error.what))
    return [
        replace(c, paired=paired, family=f"{paired.family} tests of {c.quantity.words()}: {against}")
        for c, paired in zip(found, corrected([c.paired for c in found]), strict=True)
    ]


def _unmet(without: Mapping[Quantity, Sequence[str]], met: Sequence[Quantity], reference: str) -> list[Apart]:
    """Quantities that the reference has no value of, and what sets them apart from its own."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for quantity, models in without.items():
        near = [q for q in met if _question(q) == _question(quantity)]
        why = f"{reference} has no rows of single patients for it"
        if near:
            why = (
                "; ".join(
                    f"{what} {mine} here, {' and '.join(theirs)} for {reference}"
                    for what, mine, theirs in (
                        (name, getattr(quantity, name), list(dict.fromkeys(getattr(q, name) for q in near)))
                        for name in ("protocol", "split", "level")
                    )
                    if mine not in theirs
                )
                or f"{reference} was judged on other combinations of protocol, split and level"
            )
        grouped.setdefault((", ".join(models), _where(quantity), why), []).append(quantity.metric)
    return [Apart(who, f"{where}: {', '.join(metrics)}", why) for (who, where, why), metrics in grouped.items()]


def _side_by_side(met: Sequence[Quantity]) -> list[Apart]:
    """Questions that were asked with several constants or splits: each has its tables, and they never meet."""
    asked: dict[tuple[str, str, str, str], list[Quantity]] = {}
    for quantity in met:
        asked.setdefault(_question(quantity), []).append(quantity)
    grouped: dict[tuple[str, str], list[str]] = {}
    for of in asked.values():
        ways = list(dict.fromkeys(f"{q.protocol} on split {q.split}" for q in of))
        if len(ways) > 1:
            grouped.setdefault((_where(of[0]), " and ".join(ways)), []).append(of[0].metric)
    return [
        Apart("all models", f"{where}: {', '.join(metrics)}", f"{ways}: each is compared in a part of its own")
        for (where, ways), metrics in grouped.items()
    ]


def _explained(apart: Apart, constants: Mapping[str, Mapping[str, Any]]) -> Apart:
    """With the constants in which the protocols that it names differ, where their cards are known."""
    named = [of for stamp, of in constants.items() if stamp in apart.why]
    differ = []
    for name in dict.fromkeys(name for of in named for name in of):
        values = dict.fromkeys(shorten(str(of.get(name, "none")), 60) for of in named)
        if len(values) > 1:
            differ.append(f"{name} is {' or '.join(values)}")
    return apart._replace(why=f"{apart.why} ({'; '.join(differ)})") if differ else apart


def _where(quantity: Quantity) -> str:
    return ", ".join(part for part in (quantity.task, quantity.direction.replace("->", " → ")) if part)


def _question(quantity: Quantity) -> tuple[str, str, str, str]:
    """What is asked, whatever the constants, the split and the level."""
    return quantity.task, quantity.direction, quantity.metric, quantity.protocol.split("/", maxsplit=1)[0]


def _other_data(runs: Sequence[Run]) -> list[Apart]:
    """Runs on one split whose cohorts hold different data: compared all the same, and said."""
    states: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        split, cohort = run.manifest.get("split", {}).get("digest", ""), run.manifest.get("cohort", {})
        states.setdefault(split, {}).setdefault(cohort.get("digest", ""), []).append(run.name)
    return [
        Apart(
            "; ".join(f"{', '.join(names)}: cohort {digest or 'unknown'}" for digest, names in of.items()),
            "data",
            "one split, but the cohort's counts, labels, images or patients differ: compared below all the same, "
            "a difference may be that of the data",
        )
        for of in states.values()
        if len(of) > 1
    ]
