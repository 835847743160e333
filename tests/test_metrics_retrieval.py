"""Retrieval ranks, recall and chance against brute force and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from triglyph.errors import ContractError
from triglyph.metrics.retrieval import (
    chance_rank,
    chance_recall,
    match_ranks,
    recall_at,
    right_answers,
    unit_rows,
)


def brute_rank(scores, right, ties):
    best = scores[right].max()
    wrong = scores[~right]
    before = (wrong > best + 1e-6).sum()
    tied_wrong = (np.abs(wrong - best) <= 1e-6).sum()
    tied_right = (np.abs(scores[right] - best) <= 1e-6).sum()
    return 1 + before + (tied_wrong if ties == "pessimistic" else tied_wrong / (tied_right + 1))


@pytest.mark.parametrize("ties", ["mean", "pessimistic"])
@given(data=st.data())
def test_ranks_equal_brute_force_with_ties_and_repeated_items(ties, data):
    q, g = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 10))
    coarse = st.integers(-1, 1).map(float)
    queries = data.draw(arrays(np.float64, (q, 2), elements=coarse))
    gallery = data.draw(arrays(np.float64, (g, 2), elements=coarse))
    gallery_items = np.array(data.draw(st.lists(st.integers(0, 3), min_size=g, max_size=g)))
    query_items = np.array(data.draw(st.lists(st.sampled_from(gallery_items.tolist()), min_size=q, max_size=q)))
    found = match_ranks(queries, gallery, query_items=query_items, gallery_items=gallery_items, ties=ties)
    scores = unit_rows(queries) @ unit_rows(gallery).T
    expected = [brute_rank(s, gallery_items == i, ties) for s, i in zip(scores, query_items, strict=True)]
    np.testing.assert_allclose(found, expected)


def test_ranks_do_not_depend_on_the_memory_given_or_on_the_order_of_the_gallery():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(70, 5)), rng.normal(size=(70, 5))
    whole = match_ranks(a, b)
    np.testing.assert_array_equal(match_ranks(a, b, block_bytes=1), whole)
    order = rng.permutation(70)
    shuffled = match_ranks(a, b[order], query_items=np.arange(70), gallery_items=order)
    np.testing.assert_array_equal(shuffled, whole)


def test_a_model_that_says_the_same_of_everything_never_looks_good():
    same = np.ones((40, 3))
    ranks = match_ranks(same, same)
    assert (ranks == 20.5).all()
    assert recall_at(ranks, 10) == 0
    assert (match_ranks(same, same, ties="pessimistic") == 40).all()


def test_a_model_that_knows_everything_has_recall_one():
    vectors = np.random.default_rng(0).normal(size=(30, 8))
    assert recall_at(match_ranks(vectors, vectors), 1) == 1


def test_mean_rank_is_the_expected_rank_of_the_first_right_answer_in_a_random_order():
    rng = np.random.default_rng(0)
    items = np.array([0, 0, 1, 1, 1, 1, 1])
    first = [1 + np.flatnonzero(rng.permutation(items) == 0)[0] for _ in range(20_000)]
    same = np.ones((1, 2))
    rank = match_ranks(same, np.ones((7, 2)), query_items=[0], gallery_items=items)
    # Expected position among all, where only wrong answers stand before the first right one.
    assert rank[0] == pytest.approx(np.mean(first), abs=0.03)


@pytest.mark.parametrize(("n", "m", "k"), [(10, 1, 3), (10, 4, 3), (10, 4, 8), (5, 5, 1), (3, 1, 10)])
def test_chance_is_what_random_orders_give(n, m, k):
    rng = np.random.default_rng(0)
    right = np.arange(n) < m
    firsts = np.array([np.flatnonzero(rng.permutation(right))[0] + 1 for _ in range(20_000)])
    assert chance_recall(n, k, n_right=m) == pytest.approx((firsts <= k).mean(), abs=0.012)
    assert chance_rank(n, n_right=m) == pytest.approx(firsts.mean(), abs=0.06)


def test_chance_of_one_right_answer_is_k_over_n():
    assert chance_recall(400, 10) == 10 / 400
    assert chance_recall(4, 10) == 1
    assert np.isnan(chance_recall(0, 1))


def test_random_embeddings_reach_chance_and_no_more():
    rng = np.random.default_rng(0)
    found = [recall_at(match_ranks(rng.normal(size=(200, 16)), rng.normal(size=(200, 16))), 10) for _ in range(50)]
    assert np.mean(found) == pytest.approx(0.05, abs=0.008)


def test_right_answers_are_counted_in_the_gallery():
    np.testing.assert_array_equal(right_answers([0, 1, 7], [1, 1, 0, 2]), [1, 2, 0])


def test_queries_without_an_answer_other_dimensions_and_nan_are_refused():
    a = np.ones((2, 3))
    with pytest.raises(ContractError, match="no right answer"):
        match_ranks(a, a, query_items=[0, 5], gallery_items=[0, 1])
    with pytest.raises(ContractError, match="dimensions"):
        match_ranks(a, np.ones((2, 4)))
    with pytest.raises(ContractError, match="not finite"):
        match_ranks(a * np.nan, a)
