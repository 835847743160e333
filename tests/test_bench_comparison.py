"""Models are compared patient by patient across folds, and only where they were judged alike."""

from __future__ import annotations

import numpy as np
import pytest

from triglyph.bench.comparison import Comparison, comparisons
from triglyph.bench.labels.labelled import LabelProtocol
from triglyph.bench.null import NULL
from triglyph.bench.registry import PROTOCOLS, protocol
from triglyph.errors import ContractError
from triglyph.metrics.paired import compare, corrected
from triglyph.metrics.result import Result

STAMP = "linear-probe/1/aaaaaaaa"


def row(model, patient, value, **other):
    """A row of a patient, in the fold of that name's last letter."""
    base = {
        "task": "linear-probe", "protocol": STAMP, "metric": "auroc", "value": value, "model": model, "role": "method",
        "split": "folds", "level": "patient", "direction": "expression->label", "fold": patient[-1], "group": patient,
        "aggregation": "per-patient", "n": 100, "n_gallery": 100,
    }  # fmt: skip
    return Result(**{**base, **other})


def rows(model, values, **other):
    return [row(model, f"P{i}", float(v), **other) for i, v in enumerate(values)]


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    return {name: rng.normal(0.7 + shift, 0.03, 8) for name, shift in (("ours", 0.1), ("theirs", 0.0), ("mean", -0.1))}


@pytest.fixture
def run(values):
    return [r for name, of in values.items() for r in rows(name, of)]


def test_all_pairs_equal_comparisons_of_the_values_with_holm_over_the_three(run, values):
    found = comparisons({"run": run})
    pairs = [("ours", "theirs"), ("ours", "mean"), ("theirs", "mean")]
    assert [c.paired for c in found] == corrected([compare(values[a], values[b], names=(a, b)) for a, b in pairs])
    assert {c.family for c in found} == {"3 tests of auroc, label, patient: all pairs"}
    assert {c.quantity.protocol for c in found} == {STAMP}


def test_with_a_reference_every_other_model_is_compared_with_it_alone(run, values):
    found = comparisons({"run": run}, reference="theirs")
    assert [(c.paired.a, c.paired.b, c.paired.family) for c in found] == [("ours", "theirs", 2), ("mean", "theirs", 2)]
    assert found[0].family.endswith("all against theirs")
    assert found[0].paired.p_adjusted == 2 * compare(values["ours"], values["theirs"]).p_flips
    (one,) = comparisons({"run": run}, reference="theirs", models=["mean"])
    assert (one.paired.a, one.paired.family) == ("mean", 1)


def test_models_of_different_runs_meet_patient_by_patient_whatever_the_order_of_rows(values):
    apart = {"a": rows("ours", values["ours"])[::-1], "b": rows("theirs", values["theirs"])}
    (found,) = comparisons(apart)
    expected = compare(values["ours"], values["theirs"], names=("ours", "theirs"))
    assert found.paired.p_flips == expected.p_flips
    assert found.paired.difference == pytest.approx(expected.difference)


def test_only_patients_that_both_have_are_compared_and_the_others_are_named(values):
    (found,) = comparisons({"a": rows("ours", values["ours"]), "b": rows("theirs", values["theirs"][:6])})
    assert found.paired == compare(values["ours"][:6], values["theirs"][:6], names=("ours", "theirs"))
    assert "only ours has the patients P6, P7" in found.notes


def test_a_patient_tested_in_other_folds_is_not_the_same_test(values):
    moved = [r.model_copy(update={"fold": "x"}) for r in rows("theirs", values["theirs"])]
    (found,) = comparisons({"a": rows("ours", values["ours"]), "b": moved})
    assert found.paired.n_patients == 0
    assert found.paired.verdict == "too few patients for a claim"


def test_seeds_and_repeated_folds_are_averaged_inside_a_patient(values):
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.01, (8, 4))
    ours = [
        row("ours", f"P{i}", values["ours"][i] + noise[i, 2 * s + f], seed=s, fold=f"{f}")
        for i in range(8) for s in range(2) for f in range(2)
    ]  # fmt: skip
    theirs = [row("theirs", f"P{i}", values["theirs"][i], fold=f"{f}") for i in range(8) for f in range(2)]
    (found,) = comparisons({"a": ours, "b": theirs})
    assert found.paired.n_patients == 8
    assert found.paired.mean_a == pytest.approx((values["ours"] + noise.mean(axis=1)).mean())
    # A fold that only one of them has is left out.
    (shorter,) = comparisons({"a": ours, "b": [r for r in theirs if r.fold == "0"]})
    assert shorter.paired.mean_a == pytest.approx((values["ours"] + noise[:, [0, 2]].mean(axis=1)).mean())


def test_a_patient_in_whom_a_metric_is_undefined_is_left_out_and_counted(run, values):
    holes = [r.model_copy(update={"value": None}) if (r.model, r.group) == ("mean", "P3") else r for r in run]
    found = comparisons({"run": holes}, reference="ours")
    assert [(c.paired.a, c.paired.n_patients, c.paired.n_left_out) for c in found] == [("theirs", 8, 0), ("mean", 7, 1)]


def test_only_rows_of_single_patients_count_and_nulls_and_ceilings_are_no_models_unless_named(run, values):
    others = [
        *rows(NULL, values["mean"], role="control"),
        *rows("ceiling", values["ours"] + 0.1, role="ceiling"),
        row("only a mean", "P0", 0.9, group="all"),
        row("only sections", "P0", 0.9, aggregation="per-section"),
    ]
    assert comparisons({"run": [*run, *others]}) == comparisons({"run": run})
    (named,) = comparisons({"run": [*run, *others]}, reference="ceiling", models=["ours"])
    assert named.paired.verdict == "worse"
    assert comparisons({"run": others}) == []


def test_a_lower_error_wins(values):
    error = rows("ours", values["theirs"], metric="mse") + rows("theirs", values["ours"], metric="mse")
    (found,) = comparisons({"run": error})
    assert found.paired.wins == (values["theirs"] < values["ours"]).sum()
    assert found.paired.verdict == "better"


def test_each_quantity_is_a_family_of_its_own_and_metrics_can_be_chosen(run, values):
    both = [*run, *(r for name, of in values.items() for r in rows(name, of**2, metric="balanced-accuracy"))]
    found = comparisons({"run": both})
    assert [c.quantity.metric for c in found] == ["auroc"] * 3 + ["balanced-accuracy"] * 3
    assert {c.paired.family for c in found} == {3}
    assert comparisons({"run": both}, metrics=["auroc"]) == comparisons({"run": run})


def test_levels_are_never_mixed_and_within_patients_nothing_is_claimed_of_others(values):
    inside = rows("ours", values["ours"], level="within-patient") + rows(
        "theirs", values["theirs"], level="within-patient"
    )
    (found,) = comparisons({"run": inside})
    assert "level within-patient: no claim about unseen patients" in found.notes
    assert comparisons({"run": rows("ours", values["ours"]) + inside[8:]}) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": "linear-probe/1/bbbbbbbb"}, "protocol linear-probe/1/aaaaaaaa against linear-probe/1/bbbbbbbb"),
        ({"split": "other"}, "split folds against other"),
        ({"n_gallery": 64}, "galleries of different size: 100 against 64"),
    ],
    ids=["digest", "split", "gallery"],
)
def test_models_that_were_not_judged_alike_are_refused_by_name_of_what_differs(values, change, words):
    with pytest.raises(ContractError, match=words):
        comparisons({"a": rows("ours", values["ours"]), "b": rows("theirs", values["theirs"], **change)})


def test_labels_read_off_an_image_and_off_expression_are_one_question_and_each_says_what_it_read(values):
    image = rows("theirs", values["theirs"], direction="image->label")
    (found,) = comparisons({"a": rows("ours", values["ours"]), "b": image})
    assert found.paired == compare(values["ours"], values["theirs"], names=("ours", "theirs"))
    assert found.notes == ("ours reads expression and theirs reads image",)
    # One model asked twice is two, as one that differs between runs is.
    (twice,) = comparisons({"a": rows("m", values["ours"]), "b": rows("m", values["theirs"], direction="image->label")})
    assert (twice.paired.a, twice.paired.b) == ("m @ a", "m @ b")
    # Mixing stands beside biology, so what tells batches is no other question either.
    mixed = [
        rows(m, values[m], task="batch-effect", metric="ilisi", direction=f"{d}->section")
        for m, d in (("ours", "expression"), ("theirs", "image"))
    ]
    assert [c.quantity.direction for c in comparisons({"a": mixed[0], "b": mixed[1]})] == ["section"]
    words = [
        rows(m, values[m], task="zero-shot", direction=f"text->{d}")
        for m, d in (("ours", "image"), ("theirs", "expression"))
    ]
    assert comparisons({"a": words[0], "b": words[1]}) == []


def test_what_labels_are_read_off_is_in_the_rows_and_not_in_the_digest():
    readers = [name for name, of in PROTOCOLS.items() if issubclass(of, LabelProtocol)]
    assert {"linear-probe", "knn-20", "clustering", "batch-effect"} < set(readers)
    for name in readers:
        image, expression = (protocol(name, {"modality": m}) for m in ("image", "expression"))
        assert image.stamp == expression.stamp
        assert image.direction != expression.direction
    assert protocol("linear-probe", {"variant": "A"}).stamp != protocol("linear-probe").stamp


def test_a_model_judged_by_two_variants_is_compared_on_the_one_that_both_have(values):
    variant = rows("ours", values["ours"] - 0.2, protocol="linear-probe/1/bbbbbbbb")
    (found,) = comparisons({"a": rows("ours", values["ours"]) + variant, "b": rows("theirs", values["theirs"])})
    assert found.quantity.protocol == STAMP
    assert found.paired.mean_a == pytest.approx(values["ours"].mean())


def test_other_tasks_of_one_model_alone_are_no_difference(values):
    retrieval = rows("ours", values["ours"], task="retrieval", metric="recall@5", protocol="retrieval/1/cccccccc")
    (found,) = comparisons({"a": rows("ours", values["ours"]) + retrieval, "b": rows("theirs", values["theirs"])})
    assert found.quantity.metric == "auroc"


def test_a_model_with_other_values_in_another_run_is_told_apart_by_the_run(values):
    runs = {"first": rows("ours", values["ours"]), "second": rows("ours", values["ours"] + 0.01)}
    (found,) = comparisons(runs)
    assert (found.paired.a, found.paired.b) == ("ours @ first", "ours @ second")
    assert comparisons({"first": runs["first"], "again": runs["first"]}) == []
    seeds = {"first": rows("ours", values["ours"], seed=0), "second": rows("ours", values["ours"] + 0.01, seed=1)}
    (one,) = comparisons({**seeds, "third": rows("theirs", values["theirs"])})
    assert (one.paired.a, one.paired.mean_a) == ("ours", pytest.approx(values["ours"].mean() + 0.005))


def test_a_run_with_two_values_for_one_patient_is_refused(values):
    with pytest.raises(ContractError, match="two values for one patient"):
        comparisons({"run": rows("ours", values["ours"]) + rows("ours", values["ours"] + 1)})


def test_a_model_that_is_not_there_is_refused_with_those_that_are(run):
    with pytest.raises(ContractError, match="there are ours, theirs, mean"):
        comparisons({"run": run}, reference="nobody")


def test_what_is_transductive_and_what_differs_in_number_is_noted(values):
    marked = rows("theirs", values["theirs"], transductive=("k was chosen on the test set",), n=90, n_genes=40)
    (found,) = comparisons({"run": rows("ours", values["ours"], n_genes=50) + marked})
    assert found.notes == (
        "theirs: k was chosen on the test set",
        "observations differ in number for 8 of 8 patients",
        "genes differ in number for 8 of 8 patients",
    )


def test_a_comparison_is_a_line_of_a_table(run):
    found = comparisons({"run": run}, reference="theirs", models=["ours"])[0]
    cells = dict(zip(Comparison.header(), found.cells(), strict=True))
    assert (cells["A"], cells["B"], cells["patients"], cells["A better"]) == ("ours", "theirs", "8", "8/8")
    assert (cells["p, Holm"], cells["verdict on A"]) == ("0.0078", "better")
    few = comparisons({"run": [r for r in run if r.group in ("P0", "P1")]}, reference="theirs", models=["ours"])[0]
    assert dict(zip(Comparison.header(), few.cells(), strict=True))["95 % interval"] == "–"
