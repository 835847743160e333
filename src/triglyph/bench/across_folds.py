"""Mean and spread over the folds of a split: rows of the whole split, beside those of each fold.

For any protocol. Folds share most of their training data and are no replicates: the spread is the population standard
deviation that the field prints, and no interval is made of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from triglyph.bench.null import NULL_HIGH, NULL_MEAN
from triglyph.metrics.bootstrap import MIN_PATIENTS, N_BOOT, Resamples, interval
from triglyph.metrics.merit import bounds_of
from triglyph.metrics.result import Result

FOLDS = "folds"
SPREAD = " (std of folds)"
OVER_PATIENTS = "patients of all folds"

log = logging.getLogger(__name__)


def across_folds(rows: Iterable[Result]) -> list[Result]:
    """Two more rows for every quantity over everything (`group="all"`) that has a value in two folds or more.

    Rows are of one quantity where they agree in everything but fold, value and sizes: each aggregation, level and
    subject has its own. The new rows have `aggregation` "folds of <theirs>", no fold, `group` "all", and `n` the number
    of folds; the second one's metric ends in " (std of folds)". Where a fold's value is undefined or absent both are
    None, since means over different folds are not one quantity; a fold of which its protocol has no row at all was left
    out of it (`triglyph.bench.suite.LeftOut`) and counts for nobody. `null` rows are taken refit by refit; what sums
    refits up within a fold is left out, so call `triglyph.bench.null.summaries` on the result for the null of the
    means.

    Parameters
    ----------
    rows
        Of all folds of one run.

    Returns
    -------
    The new rows alone.
    """
    groups: dict[tuple[object, ...], list[Result]] = {}
    rows = list(rows)
    judged: dict[str, set[str]] = {}
    for row in rows:
        if row.fold:
            judged.setdefault(row.protocol, set()).add(row.fold)
        summary = row.model in (NULL_MEAN, NULL_HIGH)
        if row.fold and row.group == "all" and not summary and not row.aggregation.startswith(FOLDS):
            groups.setdefault(_quantity(row), []).append(row)
    out: list[Result] = []
    for of in groups.values():
        if len(of) < 2:
            continue
        values = [row.value for row in of if row.value is not None]
        folds = judged[of[0].protocol]
        if whole := len(values) == len(folds):
            mean, spread = float(np.mean(values)), float(np.std(values))
        elif values:
            undefined = ", ".join(sorted(folds - {row.fold for row in of if row.value is not None}))
            log.warning("%s, %s of %s: undefined in folds %s", of[0].protocol, of[0].metric, of[0].model, undefined)
        chance = [row.chance for row in of if row.chance is not None]
        genes = [row.n_genes for row in of if row.n_genes is not None]
        gallery = [row.n_gallery for row in of if row.n_gallery is not None]
        shared = {
            "fold": "",
            "aggregation": f"{FOLDS} of {of[0].aggregation}",
            "transductive": tuple(dict.fromkeys(note for row in of for note in row.transductive)),
            "ci_low": None,
            "ci_high": None,
            "ci_unit": "",
            "n_units": None,
            "n": len(of),
            "n_genes": min(genes) if genes else None,
            "n_gallery": round(sum(gallery) / len(gallery)) if gallery else None,
        }
        out.append(
            of[0].model_copy(
                update={
                    **shared,
                    "value": mean if whole else None,
                    "chance": float(np.mean(chance)) if len(chance) == len(of) else None,
                }
            )
        )
        metric = of[0].metric + SPREAD
        out.append(
            of[0].model_copy(update={**shared, "metric": metric, "value": spread if whole else None, "chance": None})
        )
    return out


def over_patients(rows: Iterable[Result], *, n_boot: int = N_BOOT, seed: int = 0) -> list[Result]:
    """The mean over the patients of all folds, with an interval over patients where there are enough of them.

    Patients are the unit, and leaving one out tests each of them once: their values, unlike folds, are replicates. One
    row for every quantity that patients of two folds or more have, `aggregation` "patients of all folds"; a patient
    whom several folds test has the mean of these.

    Parameters
    ----------
    rows
        Of all folds of one run.
    """
    groups: dict[tuple[object, ...], list[Result]] = {}
    for row in rows:
        if row.fold and row.aggregation == "per-patient" and row.group != "all" and row.value is not None:
            groups.setdefault(_quantity(row), []).append(row)
    out = []
    for of in groups.values():
        if len({row.fold for row in of}) < 2:
            continue
        values: dict[str, list[float]] = {}
        for row in of:
            values.setdefault(row.group, []).append(float(row.value or 0.0))
        x = np.array([np.mean(v) for v in values.values()])
        value = float(x.mean())
        ci = None
        if len(x) >= MIN_PATIENTS and of[0].role != "control":
            draws = Resamples(np.array(list(values)), n_boot=n_boot, seed=seed).mean(x)[:, 0]
            ci = interval(
                draws,
                value=value,
                unit="patient",
                n_units=len(x),
                min_units=MIN_PATIENTS,
                bounds=bounds_of(of[0].metric),
            )
        chance = [row.chance for row in of if row.chance is not None]
        out.append(
            of[0].model_copy(
                update={
                    "fold": "",
                    "group": "all",
                    "aggregation": OVER_PATIENTS,
                    "value": value,
                    "transductive": tuple(dict.fromkeys(note for row in of for note in row.transductive)),
                    "ci_low": ci.low if ci else None,
                    "ci_high": ci.high if ci else None,
                    "ci_unit": ci.unit if ci else "",
                    "n_units": len(x),
                    "n": sum(row.n or 0 for row in of),
                    "chance": float(np.mean(chance)) if chance else None,
                }
            )
        )
    return out


def _quantity(row: Result) -> tuple[object, ...]:
    return (
        row.task,
        row.protocol,
        row.direction,
        row.metric,
        row.aggregation,
        row.level,
        row.split,
        row.model,
        row.role,
        row.source,
        row.seed,
        row.compat,
    )
