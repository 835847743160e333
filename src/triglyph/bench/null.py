"""The null: the same heads refitted on shuffled pairs, judged by the same protocols, in the same table.

A number above chance shows little by itself: projections of frozen features agree a little for any heads, and classes
differ in depth and stain. So the heads are refitted `n_refits` times over the cached pooled features, each time with
the modalities of the training locations paired at random, and every refit is judged on the same held-out sections.

Rows have role `control`. One row per refit, model `null (shuffled pairs)`, with its `seed`; then, without a seed, two
that sum them up: model `null (shuffled pairs): mean` and `null (shuffled pairs): 95th percentile`, the latter counted
towards better (the 5th percentile of a rank or an error). Only rows over everything (`group="all"`) are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from triglyph.bench.contracts import Embedder, Subject, Trial
from triglyph.bench.protocol import Protocol
from triglyph.errors import ContractError, RecipeError
from triglyph.metrics.merit import lower_is_better
from triglyph.metrics.result import Result

NULL = "null (shuffled pairs)"
NULL_MEAN = f"{NULL}: mean"
NULL_HIGH = f"{NULL}: 95th percentile"
MIN_REFITS = 20
"""With fewer, the 95th percentile is the best refit or an extrapolation."""

Key = tuple[Any, ...]


def null_rows(
    refit: Callable[[int], Embedder],
    trial: Trial,
    protocols: Sequence[Protocol],
    *,
    n_refits: int = MIN_REFITS,
    seed: int = 0,
    judged: Subject | None = None,
    on_refit: Callable[[int], None] | None = None,
) -> list[Result]:
    """Judge refits, and sum them up.

    Parameters
    ----------
    refit
        From a seed to a subject refitted on shuffled pairs; see `triglyph.bench.refits.ShuffledRefits`.
    n_refits
        At least 20. Refit i has seed `seed + i`.
    judged
        The model whose null this is: a refit has seen whom it has seen.
    on_refit
        Called with i after each refit is judged.

    Raises
    ------
    RecipeError
        Fewer than 20 refits.
    """
    if n_refits < MIN_REFITS:
        raise RecipeError(f"a null of {n_refits} refits has no 95th percentile", mend=f"take {MIN_REFITS} or more")
    out: list[Result] = []
    for i in range(n_refits):
        subject = Subject(
            NULL,
            refit(seed + i),
            role="control",
            seed=seed + i,
            training_patients=() if judged is None else judged.training_patients,
            trained_on="" if judged is None else judged.trained_on,
        )
        for protocol in protocols:
            out += [row for row in protocol.run(subject, trial) if row.group == "all"]
        if on_refit is not None:
            on_refit(i)
    return out + summaries(out)


def summaries(refits: Iterable[Result]) -> list[Result]:
    """The mean and the 95th percentile of the refits' rows, one pair for each metric.

    Refits in which a metric is undefined are left out of both; without any defined one, both are None.
    """
    groups: dict[Key, list[Result]] = {}
    for row in refits:
        if row.role == "control" and row.model == NULL:
            groups.setdefault(key(row), []).append(row)
    out = []
    for rows in groups.values():
        values = np.array([row.value for row in rows if row.value is not None])
        tail = 5.0 if lower_is_better(rows[0].metric) else 95.0
        mean = float(values.mean()) if len(values) else None
        high = float(np.percentile(values, tail)) if len(values) else None
        for model, value in ((NULL_MEAN, mean), (NULL_HIGH, high)):
            out.append(rows[0].model_copy(update={"model": model, "value": value, "seed": None}))
    return out


def key(row: Result) -> Key:
    """What two rows share when they are values of one quantity for two subjects."""
    return (
        row.task,
        row.protocol,
        row.direction,
        row.metric,
        row.aggregation,
        row.group,
        row.level,
        row.split,
        row.fold,
    )


class Verdict(NamedTuple):
    """A method's value beside its null."""

    row: Result
    null_mean: float | None
    null_high: float | None
    exceeds: bool | None
    """Better than the null's 95th percentile; None where either is undefined."""


def verdict(row: Result, results: Iterable[Result]) -> Verdict:
    """Whether a row exceeds the 95th percentile of the null among `results`.

    Raises
    ------
    ContractError
        There is no null for this quantity.
    """
    found = {r.model: r.value for r in results if r.role == "control" and key(r) == key(row)}
    if NULL_HIGH not in found:
        raise ContractError(
            f"no null for {row.task}, {row.direction}, {row.metric}, {row.aggregation}, {row.group}",
            mend="run the protocol with its null",
        )
    high = found[NULL_HIGH]
    exceeds = None
    if high is not None and row.value is not None:
        exceeds = row.value < high if lower_is_better(row.metric) else row.value > high
    return Verdict(row, found.get(NULL_MEAN), high, exceeds)


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """One for every row of a method that has a null."""
    with_null = {key(r) for r in results if r.model == NULL_HIGH}
    return [verdict(r, results) for r in results if r.role == "method" and key(r) in with_null]
