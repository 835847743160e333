"""Agreement of clusterings against counting pairs and entropies; k-means over its starts; Leiden where igraph is."""

from __future__ import annotations

import importlib.util
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from triglyph.errors import ContractError
from triglyph.metrics import clusters
from triglyph.metrics.clusters import MissingPackageError, agreement, k_means_agreement, large_classes, leiden

PARTITION = arrays(np.int64, 12, elements=st.integers(0, 3))


def brute_ari(a, b):
    """By the table of all pairs: together in both, in one, in none (Hubert & Arabie, eq. 5)."""
    pairs = list(combinations(range(len(a)), 2))
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    one, two = (sum(v[i] == v[j] for i, j in pairs) for v in (a, b))
    expected = one * two / len(pairs)
    best = (one + two) / 2
    return 1.0 if best == expected else (both - expected) / (best - expected)


def entropy(p):
    p = p[p > 0]
    return -(p * np.log(p)).sum()


def brute_nmi(a, b):
    joint = np.array([[((a == i) & (b == j)).mean() for j in np.unique(b)] for i in np.unique(a)])
    h_a, h_b = entropy(joint.sum(1)), entropy(joint.sum(0))
    return (h_a + h_b - entropy(joint.ravel())) / ((h_a + h_b) / 2)


@settings(deadline=None)
@given(PARTITION, PARTITION)
def test_ari_and_nmi_equal_counting_pairs_and_entropies(a, b):
    found = agreement(a, b)
    if len(np.unique(b)) < 2:
        assert np.isnan(found.ari)
        assert np.isnan(found.nmi)
    else:
        assert found.ari == pytest.approx(brute_ari(a, b))
        assert found.nmi == pytest.approx(brute_nmi(a, b), abs=1e-9)
    assert (found.n, found.n_clusters, found.n_classes) == (12, len(np.unique(a)), len(np.unique(b)))


@settings(deadline=None)
@given(PARTITION, PARTITION, st.permutations(range(12)))
def test_names_of_clusters_and_the_order_of_locations_change_nothing(a, b, order):
    names = np.array(["x", "a", "m", "c"])
    np.testing.assert_allclose(agreement(names[a][order], b[order])[:2], agreement(a, b)[:2], atol=1e-12)


def test_locations_without_a_class_take_no_part():
    a, b = np.array([0, 0, 1, 1, 2]), np.array(["t", "t", "s", "s", "undetermined"])
    assert agreement(a, b, mask=b != "undetermined")[:3] == (1.0, 1.0, 4)
    assert np.isnan(agreement(a, b, mask=np.zeros(5, bool)).ari)
    with pytest.raises(ContractError, match="mask"):
        agreement(a, b, mask=[True])
    with pytest.raises(ContractError, match="same length"):
        agreement(a, b[:3])


def test_k_means_is_the_mean_of_twenty_single_starts_as_in_the_reference():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 4)), rng.integers(0, 3, 90)
    x[:, 0] += y
    expected = [adjusted_rand_score(y, KMeans(3, n_init=1, random_state=i).fit_predict(x)) for i in range(20)]
    found = k_means_agreement(x, y)
    np.testing.assert_allclose(found.ari, expected, atol=1e-12)
    assert found.mean_ari == pytest.approx(np.mean(expected))
    assert (found.k, found.n) == (3, 90)
    assert k_means_agreement(x, y, k=5, n_starts=2).k == 5
    assert len(k_means_agreement(x, y, k=5, n_starts=2).nmi) == 2


def test_clusters_that_are_apart_are_found_by_name_of_class_whatever_they_are_called():
    rng = np.random.default_rng(1)
    y = np.repeat(["b", "a"], 30)
    x = rng.normal(size=(60, 2)) + np.where(y == "a", 50.0, 0.0)[:, None]
    assert k_means_agreement(x, y).mean_ari == 1.0
    assert k_means_agreement(x, y).mean_nmi == pytest.approx(1.0)


def test_one_class_one_location_and_too_few_locations_have_no_agreement():
    x = np.random.default_rng(2).normal(size=(4, 2))
    assert np.isnan(k_means_agreement(x, ["a"] * 4).mean_ari)
    assert np.isnan(k_means_agreement(x[:1], ["a"]).mean_nmi)
    assert np.isnan(k_means_agreement(x[:0], []).mean_ari)
    assert np.isnan(k_means_agreement(x, list("aabb"), k=5).mean_ari)
    with pytest.raises(ContractError, match="finite"):
        k_means_agreement(x * np.nan, list("aabb"))
    with pytest.raises(ContractError, match="at least 1"):
        k_means_agreement(x, list("aabb"), k=0)
    with pytest.raises(ContractError, match="classes for 4"):
        k_means_agreement(x, list("aab"))


def test_classes_of_few_locations_are_named():
    np.testing.assert_array_equal(
        large_classes(list("abbcccab"), at_least=3), [False, True, True, True, True, True, False, True]
    )


def test_without_igraph_leiden_refuses_and_says_what_to_install(monkeypatch):
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="triglyph\\[leiden\\]"):
        leiden(np.zeros((30, 2)))


@pytest.mark.skipif(importlib.util.find_spec("igraph") is None, reason="igraph (the extra `leiden`) is not installed")
def test_leiden_finds_what_is_apart_and_more_of_it_at_a_higher_resolution():
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1, 2], 60)
    x = rng.normal(size=(180, 5)) + 40.0 * np.eye(5)[y]
    found = leiden(x, resolutions=(0.1, 3.0))
    assert agreement(found[0.1], y).ari == 1.0
    assert len(np.unique(found[3.0])) > 3
    again = leiden(x, resolutions=(0.1, 3.0))
    np.testing.assert_array_equal(found[3.0], again[3.0])
    with pytest.raises(ContractError, match="neighbours each"):
        leiden(x[:10])
