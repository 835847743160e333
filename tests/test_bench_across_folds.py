"""Rows of a whole split: means and spreads of one quantity over its folds, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from triglyph.bench.across_folds import SPREAD, across_folds, over_patients
from triglyph.bench.null import NULL, NULL_HIGH
from triglyph.bench.table import tabulate
from triglyph.metrics.result import Result


def folds_of(*values, **changes):
    row = Result(
        task="expression",
        protocol="hest-benchmark/1/0",
        metric="pearson",
        value=0.0,
        model="fake",
        role="method",
        split="k",
        level="patient",
        ci_low=-1.0,
        ci_high=1.0,
        ci_unit="spatial-block",
        n_units=9,
        chance=0.0,
        n=400,
    ).model_copy(update=changes)
    return [row.model_copy(update={"fold": str(i), "value": v, "n_genes": 30 - i}) for i, v in enumerate(values)]


def test_folds_have_a_mean_and_the_population_deviation():
    mean, spread = across_folds(folds_of(0.1, 0.4, 0.4))
    assert (mean.value, spread.value) == (pytest.approx(0.3), pytest.approx(np.std([0.1, 0.4, 0.4])))
    assert (mean.aggregation, mean.group, mean.fold, mean.n) == ("folds of pooled", "all", "", 3)
    assert (mean.chance, spread.chance, mean.n_genes) == (0.0, None, 28)
    assert (mean.ci_unit, mean.ci_low) == ("", None)
    assert spread.metric == "pearson" + SPREAD
    assert across_folds(folds_of(0.1)) == []
    assert across_folds([mean, spread]) == []


def test_an_undefined_fold_leaves_the_mean_undefined(caplog):
    assert [r.value for r in across_folds(folds_of(0.1, None))] == [None, None]
    assert "undefined in folds 1" in caplog.text
    caplog.clear()
    assert [r.value for r in across_folds(folds_of(None, None))] == [None, None]
    assert not caplog.text  # a constant prediction has no correlation anywhere: nothing was lost


def test_models_levels_and_aggregations_are_never_averaged_with_each_other():
    rows = folds_of(0.1, 0.3)
    for changes in ({"level": "within-patient"}, {"model": "b"}, {"aggregation": "per-section"}, {"metric": "mse"}):
        rows += [r.model_copy(update={**changes, "value": 5.0}) for r in folds_of(0.0, 0.0)]
    assert sorted(r.value for r in across_folds(rows) if SPREAD not in r.metric) == [pytest.approx(0.2), 5, 5, 5, 5]


def test_refits_of_a_null_are_averaged_each_by_itself_and_their_summaries_are_not():
    rows = []
    for seed in (0, 1):
        rows += folds_of(0.1 + seed, 0.3 + seed, model=NULL, role="control", seed=seed)
    rows += folds_of(9.0, 9.0, model=NULL_HIGH, role="control")
    assert [r.value for r in across_folds(rows) if SPREAD not in r.metric] == [pytest.approx(0.2), pytest.approx(1.2)]


def of_patient(fold, patient, value):
    return folds_of(value, aggregation="per-patient", group=patient)[0].model_copy(update={"fold": fold})


def test_patients_of_all_folds_are_averaged_with_an_interval_over_them():
    rows = [of_patient(str(i), f"P{i}", v) for i, v in enumerate((0.1, 0.2, 0.3, 0.4, 0.5, 0.6))]
    found = over_patients(rows)
    assert [(r.aggregation, r.group, r.fold) for r in found] == [("patients of all folds", "all", "")]
    assert found[0].value == pytest.approx(0.35)
    assert (found[0].ci_unit, found[0].n_units) == ("patient", 6)
    # Student's t of six values with this standard error
    reach = 2.5706 * np.std([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], ddof=1) / np.sqrt(6)
    assert found[0].ci_high - 0.35 == pytest.approx(reach, rel=0.1)


def test_a_patient_of_several_folds_counts_once_and_few_patients_have_no_interval():
    rows = [of_patient(f, g, v) for f, g, v in (("0", "A", 0.2), ("1", "A", 0.4), ("1", "B", 0.9))]
    found = over_patients(rows)
    assert found[0].value == pytest.approx((0.3 + 0.9) / 2)
    assert found[0].n_units == 2
    assert found[0].ci_low is None
    assert over_patients([r for r in rows if r.fold == "1"]) == []


def test_a_table_says_how_many_folds_and_patients_its_means_are_over():
    rows = [
        *folds_of(0.1, 0.3, 0.2, aggregation="per-section"),
        *(of_patient(str(i), f"P{i}", 0.2) for i in range(3)),
    ]
    other = [r.model_copy(update={"model": "other"}) for r in rows if r.fold != "2"]
    both = [*rows, *other]
    means = [*across_folds(both), *over_patients(both)]

    def told(shown):
        (table,) = tabulate(shown)
        return {table.cells(line)[2] for line in table.lines}, [n for n in table.notes() if "different" in n]

    said = "means over different {}, not to be held against each other: fake 3, other 2"
    assert told(means) == (
        {"folds of per-section (2 to 3 folds)", "patients of all folds (2 to 3 patients)"},
        [said.format("folds"), said.format("patients")],
    )
    assert told([r for r in means if r.model == "fake"])[1] == []
    assert told(rows[:1])[0] == {"per-section"}
