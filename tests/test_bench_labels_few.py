"""`knn-20` and `simpleshot` against brute force, and their ties, episodes and absent classes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import recall_score
from sklearn.neighbors import KNeighborsClassifier

from bench_fakes import CLASSES, FakeModel, RandomModel, trial
from triglyph.bench.contracts import Subject
from triglyph.bench.labels.knn import NearestNeighbours, vote
from triglyph.bench.labels.simpleshot import SimpleShot, distances, support
from triglyph.bench.registry import protocol
from triglyph.errors import RecipeError

MODEL = FakeModel(noise=4.0, absent=(3, 90))
SUBJECT = Subject("fake", MODEL)
WHOLE = {"aggregation": "per-section", "group": "all"}


def one(rows, **wanted):
    found = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(found) == 1, [(r.metric, r.aggregation, r.group, r.level) for r in found]
    return found[0]


def read(sections, model=MODEL):
    x, y = [], []
    for s in sections:
        values, present = model.embed(s, "image")
        x.append(values[present])
        y.append(s.labels[present].astype(str))
    return np.concatenate(x), np.concatenate(y)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# ---- nearest neighbours


def test_knn_equals_the_plain_vote_of_the_nearest_with_ties_to_the_nearest():
    made = trial()
    x, y = read(made.train)
    rows = NearestNeighbours().run(SUBJECT, made)
    for section in made.test:
        asked, truth = read([section])
        distance = np.linalg.norm(unit(asked - x.mean(0))[:, None] - unit(x - x.mean(0))[None], axis=2)
        near = np.argsort(distance, axis=1)
        for k in (1, 20):
            guess = []
            for order in near:
                votes = Counter(y[order[:k]])
                most = max(votes.values())
                guess.append(next(c for c in y[order[:k]] if votes[c] == most))  # the nearest of the tied
            row = one(rows, metric=f"balanced-accuracy@{k}", aggregation="per-section", group=section.id)
            assert row.value == pytest.approx(recall_score(truth, guess, average="macro"))
            assert row.n == 194
            assert row.ci_low <= row.value <= row.ci_high


def test_one_neighbour_equals_scikit_learn_and_the_rest_where_no_votes_tie():
    x, y = read(trial().train)
    asked, _ = read(trial().test)
    codes = np.searchsorted(CLASSES, y)
    mean = x.mean(0)
    found = vote(unit(x - mean), codes, unit(asked - mean), ks=(1, 20))
    for k in (1, 20):
        plain = KNeighborsClassifier(k).fit(unit(x - mean), codes)
        share = np.sort(plain.predict_proba(unit(asked - mean)), axis=1)
        clear = share[:, -1] > share[:, -2]
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(found[k][clear], plain.predict(unit(asked - mean))[clear])


def test_equal_votes_go_to_the_nearest_and_equal_distances_all_vote():
    train = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    codes = np.array([0, 1, 2, 2])
    query = unit(np.array([[1.0, 0.9]]))
    # Of two neighbours one is of class 0; two more lie as far away as the second, one of 1 and one of 2.
    assert vote(train, codes, query, ks=(2,))[2] == 0
    assert vote(train, codes, unit(np.array([[0.9, 1.0]])), ks=(1,))[1] == 1  # 1 and 2 in one place: the first
    assert vote(train, codes, query, ks=(99,))[99] == 2  # all vote
    shuffled = [3, 2, 1, 0]
    for k in (1, 2, 3):
        a, b = vote(train, codes, query, ks=(k,)), vote(train[shuffled], codes[shuffled], query, ks=(k,))
        assert a[k] == b[k]


def test_features_that_say_nothing_get_the_commonest_class_whatever_the_order():
    class Constant(FakeModel):
        def embed(self, section, modality):
            return np.ones((196, 3)), np.ones(196, bool)

    made = trial()
    for section in made.train:
        section.labels[:] = np.where(section.labels == "fat", "gland", section.labels)
    rows = NearestNeighbours().run(Subject("nothing", Constant()), made)
    row = one(rows, metric="balanced-accuracy@20", **WHOLE)
    assert row.value == pytest.approx(row.chance) == pytest.approx(0.5)


def test_blocks_of_queries_change_nothing(monkeypatch):
    made = trial(test=1)
    whole = NearestNeighbours().run(SUBJECT, made)
    monkeypatch.setattr("triglyph.bench.labels.knn._BLOCK_BYTES", 8 * 400 * 7)
    assert NearestNeighbours().run(SUBJECT, made) == whole


# ---- prototypes


def predicted(x, y, asked):
    """SimpleShot in plain words."""
    mean = x.mean(0)
    centres = np.stack([unit(x - mean)[y == c].mean(0) for c in np.unique(y)])
    distance = np.linalg.norm(unit(asked - mean)[:, None] - centres[None], axis=2)
    return np.unique(y)[distance.argmin(1)]


def test_full_support_equals_nearest_prototypes_in_plain_words():
    made = trial()
    rows = SimpleShot(shots=()).run(SUBJECT, made)
    x, y = read(made.train)
    for section in made.test:
        asked, truth = read([section])
        row = one(rows, metric="balanced-accuracy", aggregation="per-section", group=section.id)
        assert row.value == pytest.approx(recall_score(truth, predicted(x, y, asked), average="macro"))
    assert one(rows, metric="auroc", aggregation="macro").value > 0.6


def test_distances_are_those_of_each_support_also_far_from_the_origin():
    rng = np.random.default_rng(0)
    x, codes, asked = rng.normal(size=(30, 5)), np.arange(30) % 3, rng.normal(size=(7, 5))
    supports = [support(x[i:], codes[i:], 3) for i in (0, 10)]
    found = distances(asked, supports)
    for s, (mean, centres) in enumerate(supports):
        expected = np.linalg.norm(unit(asked - mean)[:, None] - centres[None], axis=2) ** 2
        np.testing.assert_allclose(found[:, s], expected, atol=1e-12)

    class Far(FakeModel):
        def embed(self, section, modality):
            values, present = super().embed(section, modality)
            return values * 1e-3 + 1000.0, present

    class Near(FakeModel):
        def embed(self, section, modality):
            values, present = super().embed(section, modality)
            return values * 1e-3, present

    far, near = (SimpleShot(episodes=5).run(Subject("m", m(noise=4)), trial(test=1)) for m in (Far, Near))
    assert [r.value for r in far] == pytest.approx([r.value for r in near], abs=1e-6)


def test_a_location_at_the_mean_is_as_far_from_a_prototype_as_the_origin():
    mean, centres = np.zeros(2), np.array([[0.5, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(distances(np.zeros((1, 2)), [(mean, centres)])[0, 0], [0.25, 1.0])


def test_episodes_draw_shots_of_each_class_from_training_and_report_median_and_quartiles():
    made = trial(test=1)
    protocol = SimpleShot(shots=(2,), episodes=60)
    x, y = read(sorted(made.train, key=lambda s: s.id))
    asked, truth = read(made.test)
    rng = np.random.default_rng([0, 2])
    values = []
    for _ in range(60):
        chosen = np.concatenate([(m := np.flatnonzero(y == c))[rng.choice(len(m), 2, replace=False)] for c in CLASSES])
        values.append(recall_score(truth, predicted(x[chosen], y[chosen], asked), average="macro"))
    rows = protocol.run(SUBJECT, made)
    for name, share in ((":lower-quartile", 25), ("", 50), (":upper-quartile", 75)):
        row = one(rows, metric=f"balanced-accuracy@2-shot{name}", **WHOLE)
        assert row.value == pytest.approx(np.percentile(values, share))
    assert len(set(values)) > 10


def test_more_shots_are_better_and_nothing_is_at_chance():
    made = trial()
    rows = SimpleShot(episodes=100).run(SUBJECT, made)
    curve = [one(rows, metric=f"balanced-accuracy@{k}-shot", **WHOLE).value for k in (1, 2, 4, 8, 16)]
    assert curve == sorted(curve)
    assert curve[-1] < one(rows, metric="balanced-accuracy", **WHOLE).value + 0.05
    nothing = SimpleShot(episodes=100).run(Subject("random", RandomModel(0)), made)
    row = one(nothing, metric="balanced-accuracy@4-shot", **WHOLE)
    assert row.value == pytest.approx(row.chance, abs=0.03)


def test_a_class_with_fewer_locations_than_shots_gives_all_and_is_named(caplog):
    made = trial()
    for section in made.train:
        fat = np.flatnonzero(section.labels == "fat")
        section.labels[fat[1:]] = ""
    rows = SimpleShot(shots=(1, 8), episodes=10).run(SUBJECT, made)
    assert "fat (2)" in caplog.text
    assert "gland" not in caplog.text
    assert one(rows, metric="balanced-accuracy@8-shot", **WHOLE).chance == pytest.approx(1 / 3)


def test_classes_that_training_lacks_are_left_out_of_episodes_and_named(caplog):
    made = trial()
    for section in made.train:
        section.labels[section.labels == "fat"] = ""
    for name in ("knn-20", "simpleshot"):
        rows = protocol(name, {"episodes": 10} if name == "simpleshot" else {}).run(Subject("f", FakeModel()), made)
        assert all(
            r.value > 0.95 for r in rows if r.metric.startswith("balanced") and r.metric.endswith(("@20", "acy"))
        )
    assert caplog.text.count("no training section has: fat") == 2


def test_a_protocol_without_neighbours_or_episodes_is_refused():
    for name, options in (
        ("knn-20", {"ks": []}),
        ("simpleshot", {"episodes": 0}),
        ("clustering", {"min_locations": 0}),
    ):
        with pytest.raises(RecipeError):
            protocol(name, options)
