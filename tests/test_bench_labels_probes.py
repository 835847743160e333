"""Linear probes in the field's forms: each solves its own problem, super-classes have their own probe."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from bench_fakes import CLASSES, FakeModel, FakeSection, trial
from triglyph.bench.contracts import Subject
from triglyph.bench.labels.learning_curve import LearningCurve
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.labels.probes import FORMS, LAMBDAS, fit_frobenius, fit_probe, set_aside
from triglyph.bench.protocol import FoldError
from triglyph.bench.registry import protocol
from triglyph.errors import ContractError, RecipeError

SUBJECT = Subject("fake", FakeModel(noise=3.0))


def one(rows, **wanted):
    found = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(found) == 1, [(r.metric, r.aggregation, r.group, r.level) for r in found]
    return found[0]


@pytest.fixture(scope="module")
def tissue():
    """Features scaled up, so that the weights of variant A are not held at zero."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.array(CLASSES), [120, 60, 30])
    centres = rng.normal(size=(3, 12))
    x = 6.0 * (centres[np.searchsorted(CLASSES, y)] + 1.5 * rng.normal(size=(210, 12)))
    patients = np.array([f"p{i % 5}" for i in range(210)])
    return x, y, patients


def read(made, model, sections):
    x = np.concatenate([model.embed(s, "image")[0] for s in sections])
    return x, np.concatenate([s.labels for s in sections]).astype(str)


@pytest.mark.parametrize(("variant", "c"), [("her2st", 0.1), ("C", 0.5)])
def test_variants_of_scikit_learn_equal_it_and_so_do_their_metrics(variant, c):
    made, model = trial(), FakeModel(noise=3.0)
    model_of = LogisticRegression(C=c, class_weight="balanced", max_iter=10000).fit(*read(made, model, made.train))
    rows = LinearProbe(variant=variant).run(SUBJECT, made)
    for section in made.test:
        x, y = read(made, model, [section])
        guess = model_of.predict(x)
        of = {"aggregation": "per-section", "group": section.id}
        assert one(rows, metric="balanced-accuracy", **of).value == pytest.approx(
            recall_score(y, guess, average="macro")
        )
        assert one(rows, metric="macro-f1", **of).value == pytest.approx(f1_score(y, guess, average="macro"))
        scores = model_of.decision_function(x)
        auroc = np.mean([roc_auc_score(y == c, scores[:, i]) for i, c in enumerate(CLASSES)])
        assert one(rows, metric="auroc", **of).value == pytest.approx(auroc)


def test_variant_a_is_at_the_minimum_of_an_unsquared_norm_which_is_not_that_of_scikit_learn(tissue):
    x, y, _ = tissue
    penalty = 0.5 / (12 * 3 / 100)
    probe = fit_probe(x, y, variant="A", patients=y)
    bias = probe.decision(np.zeros((1, 12)))[0]
    weights = probe.decision(np.eye(12)) - bias
    codes = np.searchsorted(CLASSES, y)

    def objective(w, b):
        return -log_softmax(x @ w + b, axis=1)[np.arange(210), codes].mean() + penalty * np.linalg.norm(w)

    best = objective(weights, bias)
    rng = np.random.default_rng(1)
    for scale in (1e-4, 1e-2):
        for _ in range(20):
            assert objective(weights + scale * rng.normal(size=weights.shape), bias) > best
            assert objective(weights, bias + scale * rng.normal(size=3) * [1, 0, 0]) > best - 1e-12
    # Where the norm is |W|, its slope is that of a squared norm with C = |W| / (n penalty).
    same = LogisticRegression(C=np.linalg.norm(weights) / (210 * penalty), tol=1e-10, max_iter=10000).fit(x, y)
    np.testing.assert_allclose(same.coef_.T, weights, atol=1e-4)
    other = LogisticRegression(C=12 * 3 / 100, tol=1e-10, max_iter=10000).fit(x, y)
    assert np.abs(other.coef_.T - weights).max() > 0.05


def test_variant_a_that_is_penalised_to_nothing_says_so_and_answers_the_commonest_class(tissue, caplog):
    x, y, _ = tissue
    probe = fit_frobenius(x / 1000, y, max_iter=100)
    assert "all weights are zero" in caplog.text
    assert set(probe.predict(x)) == {CLASSES[0]}
    np.testing.assert_allclose(np.exp(probe.decision(x[:1])[0]), [120 / 210, 60 / 210, 30 / 210])


def test_variant_b_takes_the_lambda_with_the_least_log_loss_on_patients_set_aside_and_fits_no_more(tissue):
    x, y, patients = tissue
    x = x / 6.0
    aside = np.isin(patients, set_aside(y, patients, seed=0))
    assert len(set(patients[aside])) == 1
    losses, models = [], []
    for lam in LAMBDAS:
        model = LogisticRegression(C=1 / lam, max_iter=500).fit(x[~aside], y[~aside])
        codes = np.searchsorted(model.classes_, y[aside])
        losses.append(-model.predict_log_proba(x[aside])[np.arange(aside.sum()), codes].mean())
        models.append(model)
    best = int(np.argmin(losses))
    assert 0 < best < len(LAMBDAS) - 1
    probe = fit_probe(x, y, variant="B", patients=patients)
    np.testing.assert_allclose(probe.decision(x), models[best].decision_function(x), atol=1e-8)


def test_variant_b_weighs_two_classes_by_their_own_log_odds(tissue):
    x, y, patients = tissue
    two = np.where(y == "fat", "fat", "other")
    x = x / 6.0
    aside = np.isin(patients, set_aside(two, patients, seed=0))
    models = [LogisticRegression(C=1 / lam, max_iter=500).fit(x[~aside], two[~aside]) for lam in LAMBDAS]
    truth = (two[aside] == "other").astype(int)
    losses = [-m.predict_log_proba(x[aside])[np.arange(aside.sum()), truth].mean() for m in models]
    probe = fit_probe(x, two, variant="B", patients=patients)
    chosen = models[int(np.argmin(losses))].decision_function(x)
    np.testing.assert_allclose(probe.decision(x)[:, 1], chosen, atol=1e-8)


def test_a_probe_that_did_not_converge_says_so_once(tissue, caplog):
    x, y, patients = tissue
    for variant in FORMS:
        caplog.clear()
        fit_probe(x, y, variant=variant, patients=patients, max_iter=2)
        assert caplog.text.count("stopped after 2 iterations") == 1, variant
    caplog.clear()
    fit_probe(x, y, variant="C", patients=patients)
    assert not caplog.text


def test_patients_set_aside_leave_every_class_to_the_others_where_that_can_be():
    patients = np.array(["a", "a", "b", "b", "c", "c"])
    y = np.array(["fat", "rare", "fat", "gland", "fat", "gland"])
    assert {set_aside(y, patients, seed=s)[0] for s in range(20)} == {"b", "c"}


def test_variant_b_needs_two_patients():
    with pytest.raises(ContractError, match="one patient"):
        LinearProbe(variant="B").run(SUBJECT, trial(train=1))


def test_every_variant_has_a_digest_of_its_own_and_states_its_constants():
    stamps = {LinearProbe(variant=v).stamp for v in FORMS}
    assert len(stamps) == len(FORMS)
    assert LinearProbe().card().constants["c"] == 0.1
    assert LinearProbe(variant="C").card().constants["max_iter"] == 10000
    assert LinearProbe(c=0.1) != LinearProbe()
    assert LinearProbe(c=0.1).stamp == LinearProbe().stamp  # the same constants
    for variant in ("A", "B"):
        with pytest.raises(ValidationError, match="sets `c` by itself"):
            LinearProbe(variant=variant, c=1.0)
        with pytest.raises(RecipeError, match="sets `c` by itself"):
            protocol("linear-probe", {"variant": variant, "c": 1.0})


def test_features_as_they_are_and_standardised_ones_give_different_probes(tissue):
    x, y, patients = tissue
    scaled = x * np.logspace(-3, 0, 12)
    a, b = (fit_probe(scaled, y, variant=v, patients=patients).decision(scaled) for v in ("default", "her2st"))
    assert np.abs(a - b).max() > 0.1
    c = fit_probe(x, y, variant="default", patients=patients).decision(x)
    np.testing.assert_allclose(a, c, atol=1e-6)  # standardised, the scale of a feature does not matter


# ---- super-classes, rare classes, what is absent


def test_a_super_class_has_a_binary_probe_of_its_own():
    made, model = trial(), FakeModel(noise=3.0)
    members = ["fat", "gland"]
    x, y = read(made, model, made.train)
    two = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000).fit(x, np.isin(y, members))
    rows = LinearProbe(variant="her2st", groups={"soft": members}).run(SUBJECT, made)
    values = []
    for section in made.test:
        x, y = read(made, model, [section])
        values.append(roc_auc_score(np.isin(y, members), two.decision_function(x)))
        row = one(rows, metric="auroc@soft", aggregation="per-section", group=section.id)
        assert row.value == pytest.approx(values[-1], abs=1e-4)
        assert row.n == len(y)
    assert one(rows, metric="auroc", aggregation="per-class", group="soft").value == pytest.approx(
        np.mean(values), abs=1e-4
    )
    assert one(rows, metric="auroc", aggregation="pooled", group="soft").value is not None
    assert one(rows, metric="auroc@soft", aggregation="per-patient", group="test-patient0").value is not None
    without = LinearProbe(variant="her2st").run(SUBJECT, made)
    kept = [r for r in rows if r.group != "soft" and "@" not in r.metric]
    assert [r.value for r in kept] == [r.value for r in without]


def test_a_group_must_merge_labels_under_a_name_of_its_own(caplog):
    with pytest.raises(RecipeError, match="merges no label"):
        LinearProbe(groups={"soft": []}).run(SUBJECT, trial())
    with pytest.raises(RecipeError, match="name of a label"):
        LinearProbe(groups={"fat": ["fat", "gland"]}).run(SUBJECT, trial())
    rows = LinearProbe(groups={"all": list(CLASSES), "soft": ["fat", "nowhere"]}).run(SUBJECT, trial())
    assert "no section has the labels nowhere" in caplog.text
    assert "'all' has all of the training locations" in caplog.text
    assert not [r for r in rows if r.metric == "auroc@all"]
    assert [r for r in rows if r.metric == "auroc@soft"]


def test_classes_with_few_locations_do_not_count_in_balanced_accuracy():
    made, model = trial(test=1), FakeModel(noise=3.0)
    section = made.test[0]
    fat = np.flatnonzero(section.labels == "fat")
    section.labels[fat[9:]] = "gland"
    x, y = read(made, model, made.train)
    guess = (
        LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
        .fit(x, y)
        .predict(read(made, model, [section])[0])
    )
    of = {"metric": "balanced-accuracy", "aggregation": "per-section", "group": section.id}
    for least, judged in ((9, CLASSES), (10, CLASSES[1:])):
        row = one(LinearProbe(variant="her2st", min_locations=least).run(SUBJECT, made), **of)
        labels = section.labels.astype(str)
        assert row.value == pytest.approx(recall_score(labels, guess, labels=judged, average="macro"))
        assert row.n == np.isin(labels, judged).sum()
    row = one(LinearProbe(variant="her2st", min_locations=200).run(SUBJECT, made), **of)
    assert (row.value, row.n) == (None, 0)


def test_a_test_section_of_unknown_classes_alone_is_undefined_not_zero():
    made = trial(test=2)
    made.test[0].labels[:] = "bone"
    rows = LinearProbe().run(SUBJECT, made)
    of = {"metric": "balanced-accuracy", "aggregation": "per-section"}
    assert one(rows, group="test0.0", **of).value is None
    assert one(rows, group="all", **of).value == one(rows, group="test1.0", **of).value


@pytest.mark.parametrize(
    "name", ["linear-probe", "knn-20", "simpleshot", "learning-curve", "clustering", "label-retrieval"]
)
def test_features_that_are_not_finite_are_refused_with_their_place(name):
    class Broken(FakeModel):
        def embed(self, section, modality):
            values, present = super().embed(section, modality)
            values[17] = np.nan
            return values, present

    with pytest.raises(ContractError, match="not finite") as error:
        protocol(name).run(Subject("broken", Broken()), trial())
    assert "location 17" in str(error.value)


@pytest.mark.parametrize("name", ["linear-probe", "knn-20", "simpleshot", "learning-curve", "label-retrieval"])
def test_one_class_to_train_on_is_refused(name):
    made = trial()
    for section in made.train:
        section.labels[:] = "fat"
    with pytest.raises(ContractError, match="hold 1 labelled classes"):
        protocol(name).run(SUBJECT, made)


@pytest.mark.parametrize(
    "name", ["linear-probe", "knn-20", "simpleshot", "learning-curve", "clustering", "label-retrieval"]
)
def test_a_modality_that_the_subject_lacks_and_tests_without_labels_are_refused(name):
    with pytest.raises(ContractError, match="has no image"):
        protocol(name).run(Subject("fake", FakeModel(modalities=("expression",))), trial())
    made = trial()
    for section in made.test:
        section.labels[:] = ""
    with pytest.raises(ContractError, match="no test section has labels"):
        protocol(name).run(SUBJECT, made)


@pytest.mark.parametrize("side", ["train", "test"])
def test_features_that_are_missing_where_labels_are_is_said_of_the_subject_and_not_of_the_fold(side):
    class Partial(FakeModel):
        def embed(self, section, modality):
            values, present = super().embed(section, modality)
            return values, present & (not section.id.startswith(side))

    with pytest.raises(ContractError, match="partial has no features at labelled locations") as error:
        protocol("knn-20").run(Subject("partial", Partial()), trial())
    assert not isinstance(error.value, FoldError)


@pytest.mark.parametrize("name", ["linear-probe", "knn-20", "simpleshot", "learning-curve", "label-retrieval"])
def test_the_order_of_training_sections_does_not_matter(name):
    made = trial(train=3)
    options = {"episodes": 20} if name == "simpleshot" else {}
    one_way = protocol(name, options).run(SUBJECT, made)
    other = protocol(name, options).run(SUBJECT, replace(made, train=made.train[::-1]))
    assert one_way == other


# ---- learning curve


def test_the_learning_curve_ends_at_the_probe_on_all_patients_and_rises():
    made = trial(train=4, test=2)
    subject = Subject("fake", FakeModel(noise=6.0))
    rows = LearningCurve().run(subject, made)
    points = ["1", "2", "4"]
    assert [m for m in dict.fromkeys(r.metric for r in rows) if m.startswith("balanced")] == [
        f"balanced-accuracy@{n}-patients" for n in points
    ]
    whole = LinearProbe().run(subject, made)
    of = {"aggregation": "per-section", "group": "all"}
    values = [one(rows, metric=f"balanced-accuracy@{n}-patients", **of) for n in points]
    last = one(whole, metric="balanced-accuracy", **of)
    assert (values[-1].value, values[-1].ci_low) == (pytest.approx(last.value), pytest.approx(last.ci_low))
    assert values[0].value < values[1].value < values[2].value
    assert [v.chance for v in values] == pytest.approx([1 / 3] * 3)


def test_points_of_the_curve_are_the_mean_over_sets_of_patients():
    made, model = trial(train=3, test=1), FakeModel(noise=3.0)
    rows = LearningCurve(variant="her2st").run(SUBJECT, made)
    x, y = read(made, model, made.test)
    values = []
    for pair in itertools.combinations(made.train, 2):
        fitted = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000).fit(*read(made, model, pair))
        values.append(recall_score(y, fitted.predict(x), average="macro"))
    row = one(rows, metric="balanced-accuracy@2-patients", aggregation="per-section", group="all")
    assert row.value == pytest.approx(np.mean(values))


def test_draws_of_patients_are_different_sets_seeded_and_all_of_them_where_few():
    people = [f"p{i}" for i in range(12)]
    curve = LearningCurve(draws=7)
    assert curve.subsets(people, 4) == curve.subsets(people[::-1], 4)
    assert len(set(curve.subsets(people, 4))) == 7
    assert curve.subsets(people, 4) != LearningCurve(draws=7, seed=1).subsets(people, 4)
    assert curve.subsets(people[:3], 2) == [("p0", "p1"), ("p0", "p2"), ("p1", "p2")]
    assert curve.sizes(12) == [1, 2, 4, 8, 12]
    assert curve.sizes(8) == [1, 2, 4, 8]
    assert curve.sizes(1) == [1]
    assert LearningCurve(variant="B").sizes(4) == [2, 4]


def test_a_class_that_a_draw_lacks_counts_as_missed_and_one_class_draws_are_left_out(caplog):
    made = trial(train=3, test=1)
    for section, gone in zip(made.train, (["fat"], ["fat", "gland"], []), strict=True):
        section.labels[np.isin(section.labels, gone)] = ""
    rows = LearningCurve().run(Subject("fake", FakeModel()), made)
    assert "1 of 3 draws of 1 patients have one class only" in caplog.text
    row = one(rows, metric="balanced-accuracy@1-patients", aggregation="per-section", group="all")
    assert row.value == pytest.approx((2 / 3 + 1) / 2, abs=0.02)


def test_a_curve_of_one_patient_has_one_point_and_says_where_it_has_none():
    made = trial(train=1)
    rows = LearningCurve().run(SUBJECT, made)
    assert {r.metric for r in rows} == {"balanced-accuracy@1-patients", "macro-f1@1-patients"}
    with pytest.raises(ContractError, match="no set of training patients"):
        LearningCurve(variant="B").run(SUBJECT, made)


def test_a_patient_is_drawn_with_all_their_sections():
    made = trial(train=2, test=1)
    again = FakeSection("train0.again", made.train[0].patient)
    made = replace(made, train=(*made.train, again), patients={**made.patients, again.id: again.patient})
    sides = LearningCurve().sides(SUBJECT, made)
    assert sorted(zip(*np.unique(sides.patients, return_counts=True), strict=True)) == [
        ("train-patient0", 2 * 196),
        ("train-patient1", 196),
    ]
