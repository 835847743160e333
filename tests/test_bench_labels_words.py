"""`zero-shot` beyond ranking: one class for each location, raw and calibrated, and super-classes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from bench_fakes import CLASSES, FakeModel, trial
from triglyph.apply.prompts import Prompts
from triglyph.bench.contracts import Subject
from triglyph.bench.labels.zero_shot import CALIBRATED, ZeroShot
from triglyph.bench.registry import protocol
from triglyph.errors import ContractError, RecipeError
from triglyph.metrics.calibration import fit_calibration
from triglyph.metrics.result import as_frame

SUBJECT = Subject("fake", FakeModel(noise=3.0))
WHOLE = {"aggregation": "per-section", "group": "all", "direction": "text->image"}


def one(rows, **wanted):
    found = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(found) == 1, [(r.metric, r.aggregation, r.group, r.level) for r in found]
    return found[0]


class Biased(FakeModel):
    """The words for one class lie close to all tissue, those for another far from it: a constant coordinate says so."""

    BIAS = np.array([0.8, 0.0, -0.8])

    def embed(self, section, modality):
        values, present = super().embed(section, modality)
        return np.hstack([values, np.ones((len(values), 1))]) / np.sqrt(2), present

    def embed_text(self, texts):
        words = super().embed_text(texts)
        bias = np.array([next((b for c, b in zip(CLASSES, self.BIAS, strict=True) if c in t), 0.0) for t in texts])
        return np.hstack([words * np.sqrt(1 - bias**2)[:, None], bias[:, None]])


def cosines(model, section):
    values, present = model.embed(section, "image")
    return values[present] @ model.embed_text(list(CLASSES)).T, section.labels[present].astype(str)


def test_macro_f1_is_that_of_the_highest_cosine():
    made, model = trial(), FakeModel(noise=3.0, absent=(5, 6))
    rows = ZeroShot().run(Subject("fake", model), made)
    for section in made.test:
        scores, labels = cosines(model, section)
        guess = np.array(CLASSES)[scores.argmax(axis=1)]
        row = one(rows, metric="macro-f1", **{**WHOLE, "group": section.id})
        assert row.value == pytest.approx(f1_score(labels, guess, average="macro"))
        assert row.n == 194
        assert row.ci_low <= row.value <= row.ci_high


def test_calibration_on_training_mends_a_bias_between_classes_that_auroc_never_sees():
    made = trial(train=3)
    for model in (FakeModel(noise=1.0), Biased(noise=1.0)):
        rows = ZeroShot().run(Subject("fake", model), made)
        raw, mended = (one(rows, metric=m, **WHOLE).value for m in ("macro-f1", CALIBRATED))
        assert one(rows, metric="auroc", aggregation="macro", direction="text->image").value > 0.9
        assert mended > 0.75
        assert (raw < 0.4) == isinstance(model, Biased)


def test_labels_of_the_test_sections_do_not_reach_the_calibration():
    made, model = trial(), Biased(noise=1.0)
    protocol = ZeroShot()
    before = protocol.run(Subject("fake", model), made)
    first = made.test[0]
    # Half of one section's labels gone: the other section's values stay as they were.
    first.labels[::2] = ""
    after = protocol.run(Subject("fake", model), made)
    for metric in ("macro-f1", CALIBRATED):
        of = {**WHOLE, "metric": metric}
        assert one(before, **{**of, "group": "test1.0"}) == one(after, **{**of, "group": "test1.0"})
        assert one(after, **{**of, "group": "test0.0"}).n == 98
    # The calibration is of the training labels: turned round, they teach something else.
    for section in made.train:
        section.labels[:] = np.roll(section.labels, 65)
    turned = protocol.run(Subject("fake", model), made)
    assert one(turned, metric="macro-f1", **WHOLE) == one(after, metric="macro-f1", **WHOLE)
    assert one(turned, metric=CALIBRATED, **WHOLE).value != one(after, metric=CALIBRATED, **WHOLE).value


def test_what_is_calibrated_is_declared_and_left_out_without_training_labels_or_when_not_asked_for():
    assert ZeroShot().card().fitted
    assert not ZeroShot(calibrate=False).card().fitted
    made = trial()
    assert not [r for r in ZeroShot(calibrate=False).run(SUBJECT, made) if r.metric == CALIBRATED]
    for section in made.train:
        section.labels[:] = ""
    rows = ZeroShot().run(SUBJECT, made)
    assert not [r for r in rows if r.metric == CALIBRATED]
    assert one(rows, metric="macro-f1", **WHOLE).value is not None


def test_a_class_without_training_locations_is_neither_answered_nor_asked_after_calibration(caplog):
    made = trial()
    for section in made.train:
        section.labels[section.labels == "fat"] = ""
    rows = ZeroShot().run(Subject("fake", FakeModel()), made)
    assert "left out after calibration: fat" in caplog.text
    there = (made.test[0].labels != "fat").sum() + (made.test[1].labels != "fat").sum()
    assert one(rows, metric=CALIBRATED, **WHOLE).n == there
    assert one(rows, metric=CALIBRATED, **WHOLE).value > 0.95


def test_locations_of_classes_that_are_not_asked_for_take_no_part_in_choosing_one():
    made = trial()
    rows = ZeroShot(prompts=Prompts(classes={"fat": (), "gland": ()})).run(Subject("fake", FakeModel()), made)
    row = one(rows, metric="macro-f1", **WHOLE)
    assert row.n == sum(np.isin(s.labels, ["fat", "gland"]).sum() for s in made.test)
    assert row.value > 0.95


def test_classes_with_few_locations_do_not_count():
    made, model = trial(test=1), FakeModel(noise=3.0)
    section = made.test[0]
    section.labels[np.flatnonzero(section.labels == "fat")[9:]] = ""
    scores, labels = cosines(model, section)
    guess = np.array(CLASSES)[scores.argmax(axis=1)]
    known = labels != ""
    row = one(ZeroShot(min_locations=10).run(Subject("fake", model), made), metric="macro-f1", **WHOLE)
    assert row.value == pytest.approx(f1_score(labels[known], guess[known], labels=CLASSES[1:], average="macro"))


@pytest.mark.parametrize("grouping", ["sum", "max"])
def test_a_super_class_has_the_sum_or_the_highest_of_its_scores(grouping):
    made, model = trial(), FakeModel(noise=3.0)
    rows = ZeroShot(groups={"soft": ["fat", "gland"]}, grouping=grouping).run(Subject("fake", model), made)
    values = []
    for section in made.test:
        scores, labels = cosines(model, section)
        merged = getattr(scores[:, :2], grouping)(axis=1)
        values.append(roc_auc_score(np.isin(labels, ["fat", "gland"]), merged))
        row = one(rows, metric="auroc@soft", **{**WHOLE, "group": section.id})
        assert row.value == pytest.approx(values[-1])
    row = one(rows, metric="auroc", aggregation="per-class", group="soft", direction="text->image")
    assert row.value == pytest.approx(np.mean(values))
    assert {r.direction for r in rows if r.metric == "auroc@soft"} == {"text->image", "text->expression"}
    without = ZeroShot(grouping=grouping).run(Subject("fake", model), made)
    assert [r.value for r in rows if r.group != "soft" and "@soft" not in r.metric] == [r.value for r in without]


def test_groups_are_checked_and_those_that_nobody_asks_for_are_named(caplog):
    with pytest.raises(RecipeError, match="merges no label"):
        ZeroShot(groups={"soft": []}).run(SUBJECT, trial())
    with pytest.raises(RecipeError, match="name of a label"):
        ZeroShot(groups={"fat": ["gland"]}).run(SUBJECT, trial())
    prompts = Prompts(classes={"fat": ()})
    rows = ZeroShot(prompts=prompts, groups={"hard": ["stroma"]}).run(SUBJECT, trial())
    assert "'hard': none of its classes is asked for" in caplog.text
    assert not [r for r in rows if "hard" in r.metric]
    assert protocol("zero-shot", {"groups": {"soft": ["fat"]}, "grouping": "max"}).card().constants["grouping"] == "max"


# ---- the calibration itself


def made_scores(n=300, k=3, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, k, n)
    return np.eye(k)[codes] + 0.6 * rng.normal(size=(n, k)), codes


def test_calibrated_scores_do_not_depend_on_the_offset_scale_or_order_they_came_with():
    scores, codes = made_scores()
    plain = fit_calibration(scores, codes)(scores)
    moved = scores * [0.01, 1.0, 50.0] + [3.0, 0.0, -7.0]
    np.testing.assert_allclose(fit_calibration(moved, codes)(moved), plain, atol=1e-4)
    order = np.random.default_rng(1).permutation(len(codes))
    np.testing.assert_allclose(fit_calibration(scores[order], codes[order])(scores), plain, atol=1e-4)


def test_training_may_weigh_what_words_say_but_not_turn_it_round():
    scores, codes = made_scores()
    scores[:, 0] *= -1
    fitted = fit_calibration(scores, codes)
    assert fitted.scale[0] == 0
    assert (fitted.scale[1:] > 0).all()


def test_frequent_classes_are_not_favoured():
    scores, codes = made_scores(2000)
    rng = np.random.default_rng(2)
    kept = (codes != 0) | (rng.random(2000) < 0.05)
    rare, even = fit_calibration(scores[kept], codes[kept]), fit_calibration(scores, codes)
    said = [np.mean(f(scores).argmax(axis=1) == 0) for f in (rare, even)]
    assert said[0] == pytest.approx(said[1], abs=0.08)


def test_scores_that_separate_without_error_or_say_nothing_stay_finite():
    codes = np.arange(30) % 3
    perfect = fit_calibration(np.eye(3)[codes], codes)
    assert np.isfinite(perfect.scale).all()
    assert (perfect(np.eye(3)[codes]).argmax(axis=1) == codes).all()
    nothing = fit_calibration(np.ones((30, 3)), codes)
    np.testing.assert_allclose(np.ptp(nothing(np.ones((1, 3)))), 0.0, atol=1e-6)
    with pytest.raises(ContractError, match="2 of 3 classes"):
        fit_calibration(np.eye(3)[codes % 2], codes % 2)


def test_rows_of_super_classes_and_calibration_write_like_all_others(tmp_path):
    rows = ZeroShot(groups={"soft": ["fat", "gland"]}).run(SUBJECT, trial())
    assert as_frame(rows).height == len(rows)
    keys = [(r.metric, r.direction, r.aggregation, r.group, r.level) for r in rows]
    assert len(set(keys)) == len(keys)
