"""Errors, R² and depth-removed Spearman against plain formulas and against the reference's own lines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata
from sklearn.metrics import r2_score

from triglyph.errors import ContractError
from triglyph.metrics.expression import (
    depth_removed_spearman,
    fraction_of_ceiling,
    log1p_cp10k,
    mean_squared_error,
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


def removed(predicted, counts, totals, mask=None):
    return depth_removed_spearman(predicted, log1p_cp10k(counts, totals=totals).toarray(), totals=totals, mask=mask)


def test_depth_removed_spearman_equals_the_formula_of_the_reference():
    counts, predicted = tissue()
    totals = counts.sum(axis=1).astype(float)
    expected = reference_depth_removed(predicted, counts[:, :8], totals)
    np.testing.assert_allclose(removed(predicted, counts[:, :8], totals), expected, atol=1e-10)
    order = np.random.default_rng(1).permutation(120)
    moved = removed(predicted[order], counts[order, :8], totals[order])
    np.testing.assert_allclose(moved, expected, atol=1e-10)


def test_what_knows_depth_and_nothing_else_scores_nothing_or_near_nothing():
    counts, _ = tissue(1, n=3000)
    totals = counts.sum(axis=1).astype(float)
    exact = np.repeat(np.log1p(totals)[:, None] * 3 + 2, 8, axis=1)
    assert np.isnan(removed(exact, counts[:, :8], totals)).all()
    assert np.isnan(removed(np.full((3000, 8), 0.1), counts[:, :8], totals)).all()
    rough = np.log1p(np.random.default_rng(0).binomial(totals.astype(int), 0.3))[:, None] + np.zeros(8)
    assert abs(removed(rough, counts[:, :8], totals).mean()) < 0.05


def test_masked_locations_take_no_part_in_the_removal_of_depth():
    counts, predicted = tissue(2)
    totals = counts.sum(axis=1).astype(float)
    mask = np.random.default_rng(0).random((120, 8)) < 0.7
    found = removed(np.where(mask, predicted, np.nan), counts[:, :8], totals, mask)
    expected = []
    for g in range(8):
        rows = mask[:, g]
        expected += reference_depth_removed(predicted[rows][:, [g]], counts[rows][:, [g]], totals[rows])
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_sections_of_one_location_and_of_one_depth_are_handled():
    counts, predicted = tissue(3, n=11)
    totals = np.full(11, 500.0)
    assert np.isnan(removed(predicted[10:], counts[10:, :8], totals[10:])).all()
    expected = reference_depth_removed(predicted[:10], counts[:10, :8], totals[:10])
    np.testing.assert_allclose(removed(predicted[:10], counts[:10, :8], totals[:10]), expected)
    np.testing.assert_allclose(without_depth(predicted, totals), predicted - predicted.mean(axis=0), atol=1e-12)


@settings(deadline=None)
@given(st.data())
def test_the_centred_error_equals_a_loop(data):
    shape = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    a, b = (data.draw(arrays(np.float64, shape, elements=COARSE)) for _ in range(2))
    mask = data.draw(arrays(bool, shape))
    expected = []
    for g in range(shape[1]):
        errors = (a - b)[mask[:, g], g]
        expected.append(errors.var() if len(errors) else np.nan)
    found = mean_squared_error(np.where(mask, a, np.nan), b, mask=mask, centred=True)
    np.testing.assert_allclose(found, expected, atol=1e-12)


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
        mean_squared_error(a, a[:3])
    with pytest.raises(ContractError, match="means for 2 genes"):
        r_squared(a, a, about=np.zeros(3))
    with pytest.raises(ContractError, match="totals"):
        without_depth(a, [-1.0, 0, 0, 0])
    with pytest.raises(ContractError, match="not finite"):
        r_squared(a * np.nan, a)
