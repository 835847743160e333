"""Ranks and AUROC against brute force over pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata

from triglyph.errors import ContractError
from triglyph.metrics.ranking import auroc, average_ranks, sorting_order, weighted_auroc

COARSE = st.integers(-3, 3).map(float)


def brute_auroc(scores, positives):
    """Share of (positive, negative) pairs in the right order, a tie counting one half."""
    above, below = scores[positives], scores[~positives]
    if not len(above) or not len(below):
        return np.nan
    difference = above[:, None] - below[None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean()


@settings(deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=COARSE))
def test_ranks_equal_scipys_average_ranks(values):
    np.testing.assert_array_equal(average_ranks(values), rankdata(values, axis=0))


@settings(deadline=None)
@given(st.data())
def test_masked_ranks_are_the_ranks_of_the_measured_alone(data):
    n, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 3))
    values = data.draw(arrays(np.float64, (n, width), elements=COARSE))
    mask = data.draw(arrays(bool, (n, width)))
    ranks = average_ranks(np.where(mask, values, np.nan), mask=mask)
    for c in range(width):
        np.testing.assert_array_equal(ranks[mask[:, c], c], rankdata(values[mask[:, c], c]))
        assert np.isnan(ranks[~mask[:, c], c]).all()


def test_ranks_do_not_depend_on_how_columns_are_blocked(monkeypatch):
    values = np.random.default_rng(0).integers(0, 5, (50, 30)).astype(float)
    whole = average_ranks(values)
    monkeypatch.setattr("triglyph.metrics.ranking._BLOCK_BYTES", 48 * 50 * 7)
    np.testing.assert_array_equal(average_ranks(values), whole)


@settings(deadline=None)
@given(st.data())
def test_auroc_equals_counting_all_pairs(data):
    n, width = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 4))
    scores = data.draw(arrays(np.float64, (n, width), elements=COARSE))
    truth = data.draw(arrays(bool, (n, width)))
    mask = data.draw(arrays(bool, (n, width)))
    expected = [brute_auroc(scores[mask[:, c], c], truth[mask[:, c], c]) for c in range(width)]
    np.testing.assert_allclose(auroc(np.where(mask, scores, np.nan), truth, mask=mask), expected, atol=1e-12)


@settings(deadline=None)
@given(arrays(np.float64, 20, elements=COARSE), arrays(bool, 20), st.permutations(range(20)))
def test_auroc_is_blind_to_order_and_to_monotone_transforms_and_flips_with_the_sign(scores, truth, order):
    value = auroc(scores, truth)
    np.testing.assert_allclose(auroc(scores[order], truth[order]), value)
    np.testing.assert_allclose(auroc(np.exp(scores) * 7 - 1, truth), value)
    np.testing.assert_allclose(auroc(-scores, truth), 1 - value)


def test_a_class_of_one_kind_only_has_no_auroc():
    scores = np.arange(4.0)
    assert np.isnan(auroc(scores, np.ones(4, bool))).all()
    assert np.isnan(auroc(scores, np.zeros(4, bool))).all()
    assert np.isnan(auroc(scores, [True, False, False, False], mask=[[True], [False], [False], [False]])).all()


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, 9, elements=COARSE), arrays(bool, 9), arrays(np.int64, (3, 9), elements=st.integers(0, 3)))
def test_weighted_auroc_equals_auroc_of_repeated_rows(scores, truth, weights):
    expected = [auroc(np.repeat(scores, w), np.repeat(truth, w))[0] if w.sum() else np.nan for w in weights]
    np.testing.assert_allclose(weighted_auroc(scores, truth, weights=weights), expected, atol=1e-12)


def test_scores_that_are_not_finite_are_refused_where_measured_and_ignored_where_not():
    scores = np.array([0.0, np.nan, 2.0, 1.0])
    truth = np.array([False, True, True, False])
    with pytest.raises(ContractError, match="not finite"):
        auroc(scores, truth)
    assert auroc(scores, truth, mask=~np.isnan(scores)[:, None]) == 1.0


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(ContractError, match="does not fit"):
        average_ranks(np.zeros((4, 2)), mask=np.ones(4, bool))


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=64)


@settings(deadline=None)
@given(arrays(np.float64, st.integers(0, 40), elements=st.one_of(FINITE, COARSE, st.sampled_from([0.0, -0.0, 5e-324]))))
def test_any_finite_column_is_sorted_as_numpys_stable_sort_does(column):
    order, ordered = sorting_order(column)
    np.testing.assert_array_equal(order, np.argsort(column, kind="stable"))
    np.testing.assert_array_equal(ordered, column[order])


def test_values_that_differ_in_their_last_bits_alone_are_ranked_right():
    rng = np.random.default_rng(0)
    values = 1.0 + rng.integers(0, 50, (300, 2)) * np.finfo(float).eps
    np.testing.assert_array_equal(average_ranks(values), rankdata(values, axis=0))
    np.testing.assert_array_equal(average_ranks(-values), rankdata(-values, axis=0))


def test_columns_of_which_a_few_or_most_values_are_alike_in_their_upper_bits_are_sorted():
    rng = np.random.default_rng(1)
    few = rng.normal(size=20_000)
    few[:500] = 1.0 + rng.integers(0, 9, 500) * 1e-12
    for column in (few, few[:900], 1e9 + rng.normal(size=20_000), -few):
        order, ordered = sorting_order(column)
        np.testing.assert_array_equal(order, np.argsort(column, kind="stable"))
        np.testing.assert_array_equal(ordered, column[order])


@settings(deadline=None)
@given(arrays(np.float64, 30, elements=st.sampled_from([0.0, 0.0, 0.0, -0.0, -2.0, 1.0, 3.0])))
def test_columns_of_mostly_zeros_are_ranked_as_any_other(values):
    np.testing.assert_array_equal(average_ranks(values)[:, 0], rankdata(values))
