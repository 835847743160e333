"""The tables of a comparison for machines: every value, every test, every patient, and what was stamped on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

import polars as pl

from triglyph.bench.comparison import Quantity
from triglyph.metrics.bootstrap import MIN_PATIENTS
from triglyph.metrics.merit import lower_is_better
from triglyph.report.comparison_grids import Grid
from triglyph.report.comparison_study import Study

_VALUES = pl.Schema(
    {
        **dict.fromkeys(("task", "protocol", "direction", "metric"), pl.String),
        "lower_is_better": pl.Boolean,
        **dict.fromkeys(("aggregation", "level", "split", "fold", "model", "role"), pl.String),
        "reference": pl.Boolean,
        **dict.fromkeys(("value", "ci_low", "ci_high"), pl.Float64),
        "ci_unit": pl.String,
        "n_units": pl.Int64,
        **dict.fromkeys(("std_of_folds", "chance", "null_mean", "null_95"), pl.Float64),
        **dict.fromkeys(("beats_null", "best"), pl.Boolean),
        **dict.fromkeys(("n", "n_genes", "n_gallery"), pl.Int64),
        **dict.fromkeys(("transductive", "compat", "runs", "tries", "cpu_minutes", "allowed"), pl.String),
    }
)
_TESTS = pl.Schema(
    {
        **dict.fromkeys(("family", "task", "protocol", "direction", "metric", "level", "split", "a", "b"), pl.String),
        **dict.fromkeys(("patients", "left_out", "wins", "ties", "losses"), pl.Int64),
        **dict.fromkeys(("mean_a", "mean_b", "difference", "ci_low", "ci_high", "p_sign_flips"), pl.Float64),
        "p_exact": pl.Boolean,
        **dict.fromkeys(("p_wilcoxon", "p_holm"), pl.Float64),
        "tests_in_family": pl.Int64,
        "least_p": pl.Float64,
        **dict.fromkeys(("verdict", "sentence", "notes"), pl.String),
    }
)
_PATIENTS = pl.Schema(
    {**dict.fromkeys((*Quantity._fields, "model", "role", "patient"), pl.String), "value": pl.Float64}
)


def values_frame(study: Study, grids: Sequence[Grid]) -> pl.DataFrame:
    """One row per quantity and model, every aggregation and fold; several runs of a row are joined by `;`."""
    records: list[Mapping[str, Any]] = []
    for grid in grids:
        for (model, metric), e in grid.entries.items():
            r, manifests = e.row, [run.manifest for run in e.runs]
            records.append(
                {
                    **{name: getattr(r, name) for name in _VALUES if name in type(r).model_fields},
                    "lower_is_better": lower_is_better(metric),
                    "reference": model == study.reference,
                    "std_of_folds": e.spread,
                    "null_mean": e.null_mean,
                    "null_95": e.null_high,
                    "beats_null": e.beats_null,
                    "best": (model, metric) in grid.best,
                    "transductive": "; ".join(r.transductive),
                    "runs": "; ".join(run.name for run in e.runs),
                    "tries": "; ".join(str(m.get("tries", "")) for m in manifests),
                    "cpu_minutes": "; ".join(str(m.get("cpu_minutes", "")) for m in manifests),
                    "allowed": "; ".join(dict.fromkeys(name for run in e.runs for name in run.allowed)),
                }
            )
    return pl.DataFrame(records, schema=_VALUES)


def tests_frame(study: Study) -> pl.DataFrame:
    """Every test: all models against the reference, then all pairs of methods; p only with patients enough."""
    records: list[Mapping[str, Any]] = []
    for c in (*study.tests, *study.among):
        p, claim = c.paired, c.paired.n_patients >= MIN_PATIENTS
        records.append(
            {
                "family": c.family,
                **c.quantity._asdict(),
                **{name: getattr(p, name) for name in ("a", "b", "wins", "ties", "losses", "least_p", "verdict")},
                "patients": p.n_patients,
                "left_out": p.n_left_out,
                **{name: _some(getattr(p, name)) for name in ("mean_a", "mean_b", "difference")},
                "ci_low": p.ci.low if p.ci else None,
                "ci_high": p.ci.high if p.ci else None,
                "p_sign_flips": _some(p.p_flips) if claim else None,
                "p_exact": p.exact,
                "p_wilcoxon": _some(p.p_wilcoxon) if claim else None,
                "p_holm": _some(p.p_adjusted) if claim else None,
                "tests_in_family": p.family,
                "sentence": p.sentence(),
                "notes": "; ".join(c.notes),
            }
        )
    return pl.DataFrame(records, schema=_TESTS)


def patients_frame(study: Study) -> pl.DataFrame:
    """Every patient's value of every quantity and model."""
    records: list[Mapping[str, Any]] = [
        {**q._asdict(), "model": model, "role": study.models[model], "patient": who, "value": _some(value)}
        for q in study.quantities
        for model, of in study.patients(q).items()
        for who, value in of.items()
    ]
    return pl.DataFrame(records, schema=_PATIENTS)


def _some(value: float) -> float | None:
    return None if isnan(value) else value
