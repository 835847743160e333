"""Errors, R² and depth-removed Spearman against plain formulas and against the reference's own lines."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata
from sklearn.metrics import r2_score

from triglyph.errors import ContractError
from triglyph.metrics.expression import (
    depth_removed_spearman,
    fraction_of_ceiling,
    mean_squared_error,
    patient_centred_error,
    r_squared,
    without_depth,
)

COARSE = st.integers(-4, 4).map(float)


def tissue(seed=0, n=120, genes=8):
    """Counts over twice as many genes, and a prediction of half of them that knows something."""
    rng = np.random.default_rng(seed)
    depth = rng.lognormal(5, 1, n)
    share = rng.dirichlet(np.ones(2 * genes) * 3, n)
    counts = rng.poisson(depth[:, None] * share)
    predicted = np.log1p(counts[:, :genes]) + rng.normal(size=(n, genes))
    return counts, predicted


def reference_depth_removed(predicted, counts, totals):
    """The published formula, line by line, of one section."""
    tot = totals[:, None]
    truth = np.log1p(counts / np.maximum(tot, 1) * 1e4)
    d = np.hstack([np.ones_like(tot), np.log1p(tot)])
    left = predicted - d @ np.linalg.lstsq(d, predicted, rcond=None)[0]
    pairs = zip(left.T, truth.T, strict=True)
    return [np.corrcoef(rankdata(p), rankdata(t))[0, 1] for p, t in pairs]


def test_depth_removed_spearman_equals_the_formula_of_the_reference_per_section():
    counts, predicted = tissue()
    totals = counts.sum(axis=1).astype(float)
    sections = np.repeat(["b", "a", "c"], 40)
    for given_counts in (counts[:, :8], sp.csr_matrix(counts[:, :8])):
        found = depth_removed_spearman(predicted, given_counts, totals=totals, sections=sections)
        assert list(found) == ["a", "b", "c"]
        for name, values in found.items():
            rows = sections == name
            expected = reference_depth_removed(predicted[rows], counts[rows, :8], totals[rows])
            np.testing.assert_allclose(values, expected, atol=1e-10)


def test_what_knows_depth_and_nothing_else_scores_nothing_or_near_nothing():
    counts, _ = tissue(1, n=3000)
    totals = counts.sum(axis=1).astype(float)
    one = np.zeros(len(totals))
    exact = np.repeat(np.log1p(totals)[:, None] * 3 + 2, 8, axis=1)
    found = depth_removed_spearman(exact, counts[:, :8], totals=totals, sections=one)["0.0"]
    assert np.isnan(found).all()
    constant = np.full((3000, 8), 0.1)
    assert np.isnan(depth_removed_spearman(constant, counts[:, :8], totals=totals, sections=one)["0.0"]).all()
    rough = np.log1p(np.random.default_rng(0).binomial(totals.astype(int), 0.3))[:, None] + np.zeros(8)
    found = depth_removed_spearman(rough, counts[:, :8], totals=totals, sections=one)["0.0"]
    assert abs(found.mean()) < 0.05


def test_masked_locations_take_no_part_in_the_removal_of_depth():
    counts, predicted = tissue(2)
    totals = counts.sum(axis=1).astype(float)
    mask = np.random.default_rng(0).random((120, 8)) < 0.7
    hidden = np.where(mask, predicted, np.nan)
    found = depth_removed_spearman(hidden, counts[:, :8], totals=totals, sections=np.zeros(120), mask=mask)["0.0"]
    expected = []
    for g in range(8):
        rows = mask[:, g]
        expected += reference_depth_removed(predicted[rows][:, [g]], counts[rows][:, [g]], totals[rows])
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_sections_of_one_location_and_of_one_depth_are_handled():
    counts, predicted = tissue(3, n=11)
    totals = np.full(11, 500.0)
    sections = np.array(["a"] * 10 + ["b"])
    found = depth_removed_spearman(predicted, counts[:, :8], totals=totals, sections=sections)
    assert np.isnan(found["b"]).all()
    np.testing.assert_allclose(found["a"], reference_depth_removed(predicted[:10], counts[:10, :8], totals[:10]))
    np.testing.assert_allclose(without_depth(predicted, totals), predicted - predicted.mean(axis=0), atol=1e-12)


def test_the_order_of_locations_changes_nothing():
    counts, predicted = tissue(4)
    totals, order = counts.sum(axis=1).astype(float), np.random.default_rng(1).permutation(120)
    groups = np.repeat(["a", "b"], 60)
    truth = np.log1p(counts[:, :8])
    whole = depth_removed_spearman(predicted, counts[:, :8], totals=totals, sections=groups)
    moved = depth_removed_spearman(predicted[order], counts[order, :8], totals=totals[order], sections=groups[order])
    for name, values in whole.items():
        np.testing.assert_allclose(moved[name], values, atol=1e-12)
    np.testing.assert_allclose(
        patient_centred_error(predicted[order], truth[order], patients=groups[order]),
        patient_centred_error(predicted, truth, patients=groups),
    )


@settings(deadline=None)
@given(st.data())
def test_the_error_without_patients_means_equals_a_loop(data):
    shape = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    a, b = (data.draw(arrays(np.float64, shape, elements=COARSE)) for _ in range(2))
    mask = data.draw(arrays(bool, shape))
    patients = np.array(data.draw(st.lists(st.sampled_from("AB"), min_size=shape[0], max_size=shape[0])))
    expected = []
    for g in range(shape[1]):
        parts = [(a - b)[mask[:, g] & (patients == p), g] for p in "AB"]
        squares = np.concatenate([(p - p.mean()) ** 2 if len(p) else p for p in parts])
        expected.append(squares.mean() if len(squares) else np.nan)
    found = patient_centred_error(np.where(mask, a, np.nan), b, patients=patients, mask=mask)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_with_one_patient_it_is_the_centred_error_and_an_offset_of_each_patient_costs_nothing():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(60, 4)), rng.normal(size=(60, 4))
    patients = np.repeat([1, 2, 3], 20)
    np.testing.assert_allclose(
        patient_centred_error(a, b, patients=np.zeros(60)), mean_squared_error(a, b, centred=True)
    )
    offset = rng.normal(size=(3, 4))[patients - 1] * 10
    np.testing.assert_allclose(
        patient_centred_error(a + offset, b, patients=patients), patient_centred_error(a, b, patients=patients)
    )


def test_r_squared_to_the_test_mean_is_scikit_learns_and_to_the_training_mean_its_named_baseline():
    rng = np.random.default_rng(6)
    truth = rng.normal([0.0, 5.0, -2.0], size=(50, 3))
    predicted = truth + rng.normal(size=(50, 3))
    found = r_squared(predicted, truth)
    np.testing.assert_allclose(found, r2_score(truth, predicted, multioutput="raw_values"))
    training = np.array([0.5, 4.0, 0.0])
    against = r_squared(predicted, truth, about=training)
    np.testing.assert_allclose(against, 1 - ((predicted - truth) ** 2).sum(0) / ((truth - training) ** 2).sum(0))
    assert (against > found).all()
    always = np.broadcast_to(training, truth.shape)
    np.testing.assert_allclose(r_squared(always, truth, about=training), 0, atol=1e-12)
    assert (r_squared(always, truth) < 0).all()


def test_r_squared_sees_the_measured_alone_and_is_nan_for_constants():
    rng = np.random.default_rng(7)
    truth, predicted = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    mask = rng.random((40, 3)) < 0.6
    truth[:, 2] = 0.1
    found = r_squared(np.where(mask, predicted, np.nan), np.where(mask, truth, np.nan), mask=mask)
    expected = [r2_score(truth[mask[:, g], g], predicted[mask[:, g], g]) for g in range(2)]
    np.testing.assert_allclose(found[:2], expected)
    assert np.isnan(found[2])
    exact = r_squared(predicted, truth, about=[0.0, 0.0, 0.1])
    np.testing.assert_array_equal(np.isnan(exact), [False, False, True])
    nowhere = r_squared(predicted, truth, mask=[False, True, True])
    np.testing.assert_array_equal(np.isnan(nowhere), [True, False, True])


def test_a_fraction_of_a_ceiling_that_is_nothing_is_not_a_number():
    found = fraction_of_ceiling([0.3, 0.3, np.nan, 0.2], [0.6, 0.01, 0.5, np.nan])
    np.testing.assert_array_equal(found, [0.5, np.nan, np.nan, np.nan])
    assert fraction_of_ceiling(0.2, 0.4) == 0.5


def test_what_does_not_fit_is_refused():
    a = np.zeros((4, 2))
    with pytest.raises(ContractError, match="differ in shape"):
        patient_centred_error(a, a[:3], patients=np.zeros(4))
    with pytest.raises(ContractError, match="names for 4 locations"):
        patient_centred_error(a, a, patients=np.zeros(3))
    with pytest.raises(ContractError, match="means for 2 genes"):
        r_squared(a, a, about=np.zeros(3))
    with pytest.raises(ContractError, match="totals"):
        without_depth(a, [-1.0, 0, 0, 0])
    with pytest.raises(ContractError, match="not finite"):
        r_squared(a * np.nan, a)
