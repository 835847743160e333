"""Retrieval of labels against brute force, and what must not change it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score

from triglyph.errors import ContractError
from triglyph.metrics.neighbours_retrieval import label_retrieval
from triglyph.metrics.retrieval import unit_rows


def brute(scores, label, offered, allowed, ks):
    """One query: candidates sorted by score, wrong before right in a tie, other labels by name."""
    candidates = [i for i in range(len(offered)) if allowed[i]]
    candidates.sort(key=lambda i: (-round(scores[i], 9), offered[i] == label, offered[i]))
    found = [offered[i] for i in candidates]
    m = sum(f == label for f in found)
    if not m:
        return [np.nan] * len(ks), [np.nan] * len(ks), np.nan
    accuracy, majority = [], []
    for k in ks:
        votes = Counter(found[:k])
        winners = [f for f, v in votes.items() if v == max(votes.values())]
        accuracy.append(float(label in found[:k]))
        majority.append(1 / len(winners) if label in winners else 0.0)
    ranks = [i + 1 for i, f in enumerate(found) if f == label]
    return accuracy, majority, np.mean([(j + 1) / r for j, r in enumerate(ranks)])


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_every_form_equals_brute_force_with_ties_and_patients_left_out(data):
    q, g = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    coarse = st.integers(-1, 1).map(float)
    a, b = (data.draw(arrays(np.float64, (n, 2), elements=coarse)) for n in (q, g))
    (la, pa), (lb, pb) = (
        [np.array(data.draw(st.lists(st.sampled_from(names), min_size=n, max_size=n))) for names in ("abc", "PQR")]
        for n in (q, g)
    )
    ks = (1, 3, 5)
    found = label_retrieval(a, la, pa, gallery=b, gallery_labels=lb, gallery_patients=pb, ks=ks)
    scores = unit_rows(a) @ unit_rows(b).T
    for i in range(q):
        allowed = pb != pa[i]
        accuracy, majority, precision = brute(scores[i], la[i], lb, allowed, ks)
        np.testing.assert_allclose(found.accuracy[i], accuracy)
        np.testing.assert_allclose(found.majority[i], majority)
        np.testing.assert_allclose(found.average_precision[i], precision)
        assert found.n_candidates[i] == allowed.sum()
        assert found.n_right[i] == (allowed & (lb == la[i])).sum()
    assert found.n_undefined == np.isnan(found.average_precision).sum()


def cohort(seed=0, n=60):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)), rng.integers(0, 4, n), rng.integers(0, 5, n)


def test_average_precision_is_scikit_learns_without_ties():
    x, labels, patients = cohort()
    found = label_retrieval(x, labels, patients)
    scores = unit_rows(x) @ unit_rows(x).T
    for i in range(60):
        other = patients != patients[i]
        expected = average_precision_score(labels[other] == labels[i], scores[i, other])
        assert found.average_precision[i] == pytest.approx(expected)


def test_a_copy_of_the_query_from_its_own_patient_is_never_found():
    x, labels, patients = cohort(1)
    doubled = label_retrieval(
        x,
        labels,
        patients,
        gallery=np.vstack([x, x]),
        gallery_labels=np.tile(labels, 2),
        gallery_patients=np.concatenate([patients, patients]),
    )
    plain = label_retrieval(x, labels, patients)
    np.testing.assert_array_equal(doubled.accuracy[:, 0], plain.accuracy[:, 0])
    same = label_retrieval(x, labels, np.zeros(60))
    assert same.n_undefined == 60
    assert (same.n_candidates == 0).all()
    assert np.isnan(same.accuracy).all()


def test_order_of_the_gallery_names_memory_and_threads_change_nothing(monkeypatch):
    x, labels, patients = cohort(2)
    x[7] = x[8] = x[9]  # exact ties
    order = np.random.default_rng(0).permutation(60)
    whole = label_retrieval(x, labels, patients)
    moved = label_retrieval(
        x, labels, patients, gallery=x[order], gallery_labels=labels[order], gallery_patients=patients[order]
    )
    named = label_retrieval(x, np.array(["s", "b", "z", "a"])[labels], patients)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    blocked = label_retrieval(x, labels, patients, block_bytes=1)
    for other in (moved, blocked, named):
        for one, two in zip(whole[1:], other[1:], strict=True):
            np.testing.assert_allclose(two, one, atol=1e-12)


def test_an_encoder_that_says_the_same_of_everything_never_looks_good_and_one_that_knows_the_label_is_perfect():
    _, labels, patients = cohort(3)
    dull = label_retrieval(np.ones((60, 3)), labels, patients)
    assert (dull.accuracy == 0).all()
    knowing = label_retrieval(np.eye(4)[labels], labels, patients)
    np.testing.assert_allclose(knowing.accuracy, 1)
    np.testing.assert_allclose(knowing.majority, 1)
    np.testing.assert_allclose(knowing.average_precision, 1)


def test_chance_is_what_random_embeddings_reach():
    rng = np.random.default_rng(4)
    _, labels, patients = cohort(4, n=40)
    runs = [label_retrieval(rng.normal(size=(40, 8)), labels, patients) for _ in range(150)]
    reached = np.mean([r.accuracy.mean(axis=0) for r in runs], axis=0)
    np.testing.assert_allclose(reached, runs[0].chance_accuracy.mean(axis=0), atol=0.02)


def test_what_does_not_fit_is_refused_and_no_queries_is_no_error():
    x, labels, patients = cohort(5)
    with pytest.raises(ContractError, match="all three"):
        label_retrieval(x, labels, patients, gallery=x)
    with pytest.raises(ContractError, match="labels of shapes"):
        label_retrieval(x, labels[:5], patients)
    with pytest.raises(ContractError, match="dimensions"):
        label_retrieval(x, labels, patients, gallery=x[:, :2], gallery_labels=labels, gallery_patients=patients)
    with pytest.raises(ContractError, match="at least 1"):
        label_retrieval(x, labels, patients, ks=(0,))
    with pytest.raises(ContractError, match="not finite"):
        label_retrieval(x * np.nan, labels, patients)
    assert label_retrieval(x[:0], labels[:0], patients[:0]).accuracy.shape == (0, 3)
