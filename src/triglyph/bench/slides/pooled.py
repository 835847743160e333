"""`slide-classification` over the held-out patients of all folds at once.

Each patient is tested by the fit of their own fold. Fits start from the prevalence of their training side, which is
the lower the more positives are held out: ranked as they are, scores of people about whom nothing is known would lie
below chance. So a score is the log odds less those of the training prevalence; a decision is positive where it is above
0. What else differs between fits is not taken away, and is part of what is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from triglyph.bench.across_folds import OVER_PATIENTS
from triglyph.bench.rows import PATIENT
from triglyph.metrics.bootstrap import MIN_PATIENTS, N_BOOT, Interval, Resamples, interval
from triglyph.metrics.merit import bounds_of
from triglyph.metrics.ranking import auroc
from triglyph.metrics.result import Result

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TASK, BALANCED = "slide-classification", "balanced-accuracy"
_LEAST = 1e-12
"""A probability of 0 has log odds too."""
_DIGITS = 9
"""Of log odds: what differs by less is rounding, and a tie."""


def evidence(probability: Floats, prevalence: Floats) -> Floats:
    """(n,) log odds less those of the training prevalence."""
    odds = [logit(np.clip(of, _LEAST, 1 - _LEAST)) for of in (probability, prevalence)]
    return np.asarray(np.round(odds[0] - odds[1], _DIGITS))


def decided(probability: Floats, prevalence: Floats) -> Bools:
    """(n,) whether a bag is taken for positive: if it is likelier so than in training."""
    return np.asarray(evidence(probability, prevalence) > 0)


def recalls(right: Bools, truth: Bools, patients: NDArray[np.str_], drawn: Resamples) -> tuple[float, Floats, int]:
    """Mean recall of both classes, NaN without one of them; its draws; how many patients the rarer class has."""
    sides = np.stack([~truth, truth], axis=1)
    least = min(len(set(patients[side].tolist())) for side in sides.T)
    hits = np.repeat(right[:, None].astype(np.float64), 2, axis=1)
    draws = drawn.mean(hits, mask=sides).mean(axis=1)
    return (float(np.mean([right[side].mean() for side in sides.T])) if least else float("nan")), draws, least


def pooled_interval(metric: str, value: float, draws: Floats, drawn: Resamples, least: int) -> Interval | None:
    """Of a value over bags, by their patients; the rarer class has `least` of them."""
    return interval(
        draws,
        value=value,
        unit=PATIENT,
        n_units=drawn.n_units,
        n_effective=least,
        min_units=MIN_PATIENTS,
        bounds=bounds_of(metric),
    )


def pooled_over_folds(
    rows: Iterable[Result], patients: Mapping[str, str], *, n_boot: int = N_BOOT, seed: int = 0
) -> list[Result]:
    """AUROC and balanced accuracy over the bags that two folds or more have tested, `aggregation` OVER_PATIENTS.

    Parameters
    ----------
    rows
        Of all folds of one run; those of other tasks are passed over.
    patients
        Section id -> patient id, for bags that are sections.
    """
    found: dict[tuple[object, ...], dict[tuple[str, str], dict[str, Result]]] = {}
    for row in rows:
        if row.task == TASK and row.fold and row.metric in ("probability", "label") and row.group != "all":
            of = (row.protocol, row.direction, row.level, row.split, row.model, row.role, row.source, row.seed)
            found.setdefault((*of, row.compat), {}).setdefault((row.fold, row.group), {})[row.metric] = row
    out = []
    for bags in found.values():
        if len({fold for fold, _ in bags}) < 2:
            continue
        predicted = [of["probability"] for of in bags.values()]
        p, prevalence = (np.array([getattr(row, name) for row in predicted]) for name in ("value", "chance"))
        y = np.array([of["label"].value == 1.0 for of in bags.values()])
        whose = np.array([patients.get(row.group, row.group) for row in predicted])
        drawn = Resamples(whose, n_boot=0 if predicted[0].role == "control" else n_boot, seed=seed)
        score = evidence(p, prevalence)
        accuracy, draws, least = recalls(decided(p, prevalence) == y, y, whose, drawn)
        for metric, value, of_draws in (
            ("auroc", float(auroc(score, y)[0]), drawn.auroc(score, y)[:, 0]),
            (BALANCED, accuracy, draws),
        ):
            ci = pooled_interval(metric, value, of_draws, drawn, least)
            update = {
                "metric": metric,
                "value": None if np.isnan(value) else value,
                "aggregation": OVER_PATIENTS,
                "group": "all",
                "fold": "",
                "n": len(bags),
                "chance": 0.5,
                "ci_low": ci.low if ci else None,
                "ci_high": ci.high if ci else None,
                "ci_unit": ci.unit if ci else "",
                "n_units": ci.n_units if ci else None,
                "transductive": tuple(dict.fromkeys(note for row in predicted for note in row.transductive)),
            }
            out.append(predicted[0].model_copy(update=update))
    return out
