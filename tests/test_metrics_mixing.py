"""Mixing of batches and separation of biology against plain definitions and extreme embeddings."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import silhouette_samples

from triglyph.errors import ContractError
from triglyph.metrics.mixing import (
    Neighbours,
    graph_connectivity,
    lisi,
    mixing,
    neighbour_weights,
    neighbours,
    scaled_lisi,
    section_predictability,
    silhouettes,
)


def cohort(seed=0, n=150, batch_effect=1.0, classes=3, batches=3):
    rng = np.random.default_rng(seed)
    batch, biology = rng.integers(0, batches, n), rng.integers(0, classes, n)
    x = rng.normal(size=(n, 6))
    x[:, 0] += 4.0 * biology
    x[:, 1] += batch_effect * batch
    return x, batch, biology


def brute_silhouettes(x, batch, biology):
    per_class = []
    for c in np.unique(biology):
        rows = biology == c
        if 1 < len(np.unique(batch[rows])) < rows.sum():
            per_class.append((1 - np.abs(silhouette_samples(x[rows], batch[rows]))).mean())
    return np.mean(per_class), (silhouette_samples(x, biology).mean() + 1) / 2


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_silhouettes_equal_scikit_learns_of_each_class_and_of_all(offset, monkeypatch):
    x, batch, biology = cohort()
    biology[:1] = 7  # a class of one location
    biology[1:4], batch[1:4] = 8, 1  # a class of one batch
    biology[4:7], batch[4:7] = 9, [0, 1, 2]  # a class of as many batches as locations
    expected = brute_silhouettes(x, batch, biology)
    np.testing.assert_allclose(silhouettes(x + offset, batches=batch, biology=biology), expected, atol=1e-8)
    monkeypatch.setattr("triglyph.metrics.mixing._BLOCK_BYTES", 1)
    names = np.array(["s", "a", "q"])[batch]
    np.testing.assert_allclose(silhouettes(x, batches=names, biology=biology), expected, atol=1e-9)


def test_neighbours_are_the_nearest_others_also_among_duplicates():
    x, *_ = cohort(1, n=40)
    x[3] = x[9] = x[20]
    found = neighbours(x, k=5)
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_allclose(found.distance, np.sort(distance, axis=1)[:, :5], atol=1e-6)
    assert not (found.others == np.arange(40)[:, None]).any()
    with pytest.raises(ContractError, match="no 40 neighbours"):
        neighbours(x, k=40)


def test_lisi_equals_solving_the_entropy_of_each_location_alone():
    x, batch, _ = cohort(2)
    near = neighbours(x, k=30)
    weights = neighbour_weights(near, perplexity=10)
    found = lisi(near, weights, np.array(["b", "c", "a"])[batch])
    for i in range(0, 150, 7):
        d = near.distance[i]

        def gap(beta, d=d):
            p = np.exp(-beta * (d - d[0]))
            p /= p.sum()
            return -(p * np.log(np.maximum(p, 1e-300))).sum() - np.log(10)

        p = np.exp(-brentq(gap, 1e-9, 1e3) * (d - d[0]))
        p /= p.sum()
        share = [p[batch[near.others[i]] == b].sum() for b in range(3)]
        np.testing.assert_allclose(weights[i], p, atol=1e-6)
        assert found[i] == pytest.approx(1 / np.square(share).sum(), abs=1e-6)


def test_weights_do_not_depend_on_the_unit_and_equal_distances_weigh_the_same():
    x, *_ = cohort(3)
    near = neighbours(x, k=30)
    weights = neighbour_weights(near, perplexity=10)
    scaled = neighbour_weights(Neighbours(near.others, near.distance * 1e6), perplexity=10)
    np.testing.assert_allclose(scaled, weights, atol=1e-7)
    flat = Neighbours(near.others, np.ones_like(near.distance))
    np.testing.assert_allclose(neighbour_weights(flat, perplexity=10), 1 / 30)
    step = Neighbours(near.others, np.where(np.arange(30) < 20, 0.0, 1.0)[None].repeat(150, axis=0))
    np.testing.assert_allclose(neighbour_weights(step, perplexity=10)[:, :20], 1 / 20)
    with pytest.raises(ContractError, match="perplexity"):
        neighbour_weights(near, perplexity=31)


def test_connectivity_counts_the_largest_component_of_each_class():
    # 0-1-2 hang together by one-sided edges, 3-4 and 5 do not; class b is whole.
    near = Neighbours(np.array([[1], [6], [1], [4], [3], [7], [7], [6]]), np.ones((8, 1)))
    groups = list("aaaaaabb")
    assert graph_connectivity(near, groups) == pytest.approx((3 / 6 + 1) / 2)


def test_predictability_is_the_vote_of_the_neighbours_with_draws_shared():
    near = Neighbours(np.array([[1, 2], [0, 3], [3, 0], [2, 1]]), np.ones((4, 2)))
    # Every location has one neighbour of each section: draws.
    assert section_predictability(near, list("aabb")) == pytest.approx(0.5)
    # The a's: both votes right, and twice one of two. The b: both wrong. Mean over sections, not over locations.
    assert section_predictability(near, list("aaab")) == pytest.approx((2 / 3 + 0) / 2)
    assert section_predictability(near, list("abba")) == 0.0
    assert np.isnan(section_predictability(near, list("aaaa")))


def test_scaled_lisi_runs_from_zero_to_one():
    assert scaled_lisi(np.ones(5), np.ones(5), 3, 4) == (0.0, 1.0)
    assert scaled_lisi(np.full(5, 3.0), np.full(5, 4.0), 3, 4) == (1.0, 0.0)
    assert np.isnan(scaled_lisi(np.ones(5), np.ones(5), 1, 1)).all()


def test_islands_and_a_perfect_mixture_are_told_apart_by_every_measure_of_batch():
    apart, mixed = (
        mixing(x, batches=batch, biology=biology)
        for x, batch, biology in (cohort(4, n=400, batch_effect=effect) for effect in (100.0, 0.0))
    )
    assert apart.ilisi == pytest.approx(0.0, abs=1e-9)
    assert mixed.ilisi > 0.8
    assert apart.section_predictability == 1.0
    assert mixed.section_predictability == pytest.approx(mixed.chance_predictability, abs=0.08)
    assert apart.silhouette_batch < 0.1 < 0.9 < mixed.silhouette_batch
    assert apart.graph_connectivity < 0.5 < 0.9 < mixed.graph_connectivity


def test_an_embedding_that_knows_nothing_mixes_well_and_keeps_no_biology():
    x, batch, biology = cohort(5, n=400, batch_effect=0.0)
    blind = mixing(np.random.default_rng(0).normal(size=x.shape), batches=batch, biology=biology)
    seeing = mixing(x, batches=batch, biology=biology)
    assert blind.ilisi > 0.8
    assert blind.silhouette_biology == pytest.approx(0.5, abs=0.03)
    assert blind.clisi < 0.3 < 0.9 < seeing.clisi
    assert seeing.silhouette_biology > 0.6


def test_neither_order_nor_names_nor_threads_change_anything(monkeypatch):
    x, batch, biology = cohort(6)
    whole = mixing(x, batches=batch, biology=biology, perplexity=20)
    order = np.random.default_rng(0).permutation(150)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr("triglyph.metrics.mixing._BLOCK_BYTES", 1 << 12)
    moved = mixing(x[order], batches=np.array(["z", "a", "k"])[batch][order], biology=biology[order], perplexity=20)
    np.testing.assert_allclose(moved, whole, atol=1e-9)


def test_locations_without_a_class_are_not_seen():
    x, batch, biology = cohort(7)
    known = np.random.default_rng(0).random(150) < 0.7
    hidden = np.where(known[:, None], x, np.nan)
    expected = mixing(x[known], batches=batch[known], biology=biology[known])
    np.testing.assert_array_equal(mixing(hidden, batches=batch, biology=biology, mask=known), expected)
    with pytest.raises(ContractError, match="not finite"):
        mixing(hidden, batches=batch, biology=biology)
    with pytest.raises(ContractError, match="mask of shape"):
        mixing(x, batches=batch, biology=biology, mask=known[:4])
    with pytest.raises(ContractError, match="batches of shape"):
        mixing(x, batches=batch[:4], biology=biology)


def test_one_batch_one_class_and_few_locations_are_nan_where_undefined_and_nowhere_else():
    x, batch, biology = cohort(8, n=40)
    one_batch = mixing(x, batches=np.zeros(40), biology=biology)
    assert np.isnan([one_batch.ilisi, one_batch.silhouette_batch, one_batch.section_predictability]).all()
    assert np.isfinite([one_batch.clisi, one_batch.silhouette_biology, one_batch.graph_connectivity]).all()
    assert one_batch.perplexity == 13
    one_class = mixing(x, batches=batch, biology=np.zeros(40))
    assert np.isnan([one_class.clisi, one_class.silhouette_biology]).all()
    assert np.isfinite([one_class.ilisi, one_class.silhouette_batch]).all()
    for n in (0, 1, 2, 3):
        few = mixing(x[:n], batches=batch[:n], biology=biology[:n])
        assert (few.n, few.perplexity) == (n, 0)
        assert np.isnan(few.ilisi)
    same = mixing(np.ones((40, 2)), batches=batch, biology=biology)
    assert same.silhouette_batch == 1.0
    assert same.silhouette_biology == 0.5


@pytest.mark.skipif(importlib.util.find_spec("scib_metrics") is None, reason="scib-metrics is not installed")
def test_every_measure_agrees_with_scib_metrics():
    import scib_metrics
    from scib_metrics.nearest_neighbors import NeighborsResults

    x, batch, biology = cohort(9, n=300)
    near = neighbours(x, k=90)
    theirs = NeighborsResults(indices=near.others, distances=near.distance)
    found = mixing(x, batches=batch, biology=biology)
    assert found.silhouette_biology == pytest.approx(scib_metrics.silhouette_label(x, biology), abs=1e-4)
    assert found.silhouette_batch == pytest.approx(scib_metrics.silhouette_batch(x, biology, batch), abs=1e-4)
    assert found.ilisi == pytest.approx(scib_metrics.ilisi_knn(theirs, batch, perplexity=30), abs=1e-3)
    assert found.clisi == pytest.approx(scib_metrics.clisi_knn(theirs, biology, perplexity=30), abs=1e-3)
    # They join neighbours that are so both ways, scIB's own graph and ours either way: one thing among islands of four.
    islands = np.repeat(1e3 * np.arange(30), 4)[:, None] + np.random.default_rng(0).normal(size=(120, 2))
    near, classes = neighbours(islands, k=3), np.repeat([0, 1, 2], [40, 60, 20])
    theirs = NeighborsResults(indices=near.others, distances=near.distance)
    assert graph_connectivity(near, classes) == pytest.approx((4 / 40 + 4 / 60 + 4 / 20) / 3)
    assert graph_connectivity(near, classes) == pytest.approx(scib_metrics.graph_connectivity(theirs, classes))
