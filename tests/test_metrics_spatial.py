"""Moran's I against double sums, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from triglyph.errors import ContractError
from triglyph.metrics.spatial import moran_agreement, morans_i, neighbour_graph

COARSE = st.integers(-3, 3).map(float)


def lattice(side, pitch_um=100.0):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) * pitch_um


def brute_moran(x, near, keep):
    """Double sum over the measured locations; `near[i]` lists the neighbours of i."""
    kept = np.flatnonzero(keep)
    if not len(kept) or np.ptp(x[kept]) == 0:
        return np.nan
    z = x - x[kept].mean()
    top, s = 0.0, 0
    for i in kept:
        others = [j for j in near[i] if keep[j]]
        s += bool(others)
        top += sum(z[i] * z[j] / len(others) for j in others)
    return len(kept) / s * top / sum(z[i] ** 2 for i in kept) if s else np.nan


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_morans_i_equals_its_double_sum_with_masks_and_lonely_locations(data):
    n, genes = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 3))
    near = data.draw(arrays(bool, (n, n))) & ~np.eye(n, dtype=bool)
    x = data.draw(arrays(np.float64, (n, genes), elements=COARSE))
    mask = data.draw(arrays(bool, (n, genes)))
    expected = [brute_moran(x[:, g], [np.flatnonzero(r) for r in near], mask[:, g]) for g in range(genes)]
    found = morans_i(np.where(mask, x, np.nan), sp.csr_matrix(near), mask=mask)
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_known_values_a_chessboard_is_minus_one_and_two_halves_are_nearly_one():
    xy = lattice(20)
    chess = (xy.sum(axis=1) / 100) % 2
    halves = (xy[:, 0] >= 1000).astype(float)
    edges = neighbour_graph(xy, radius_um=100)
    found = morans_i(np.stack([chess, halves], axis=1), edges)
    assert found[0] == pytest.approx(-1.0)
    # 40 of 400 locations see one neighbour of the other half, three (edge) or four in all.
    crossing = (36 * 2 / 4 + 4 * 2 / 3) / 400
    assert found[1] == pytest.approx(1 - crossing)


def test_without_spatial_order_the_mean_is_minus_one_over_n_minus_one():
    xy = lattice(6)
    x = np.random.default_rng(0).permuted(np.tile(np.arange(36.0)[:, None], (1, 20_000)), axis=0)
    assert morans_i(x, neighbour_graph(xy, k=4)).mean() == pytest.approx(-1 / 35, abs=0.003)


@pytest.mark.parametrize("graph", [{"k": 6}, {"radius_um": 150.0}])
def test_the_order_of_locations_changes_nothing_even_on_a_lattice_full_of_ties(graph):
    rng = np.random.default_rng(1)
    xy = lattice(9) * 0.1 + 1e5  # coordinates that are not exact
    x, mask = rng.normal(size=(81, 5)), rng.random((81, 5)) < 0.8
    order = rng.permutation(81)
    whole = morans_i(x, neighbour_graph(xy, **{n: v if n == "k" else v / 10 for n, v in graph.items()}), mask=mask)
    moved = neighbour_graph(xy[order], **{n: v if n == "k" else v / 10 for n, v in graph.items()})
    np.testing.assert_allclose(morans_i(x[order], moved, mask=mask[order]), whole, atol=1e-12)


def test_scale_and_offset_blocks_and_threads_change_nothing(monkeypatch):
    rng = np.random.default_rng(2)
    xy, x = rng.uniform(0, 1000, (70, 2)), rng.normal(size=(70, 7))
    graph = neighbour_graph(xy, k=6)
    whole = morans_i(x, graph)
    np.testing.assert_allclose(morans_i(x * -3e-200, graph), whole, atol=1e-12)
    np.testing.assert_allclose(morans_i(x * 2 + 1e3, graph), whole, atol=1e-9)
    np.testing.assert_allclose(morans_i(x, graph * 5), whole, atol=1e-12)
    monkeypatch.setattr("triglyph.metrics.spatial._BLOCK_BYTES", 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    np.testing.assert_allclose(morans_i(x, graph), whole, atol=1e-14)


def test_neighbours_equal_brute_force_and_ties_at_the_last_are_all_in():
    rng = np.random.default_rng(3)
    xy = np.vstack([lattice(5), rng.uniform(0, 400, (20, 2))])
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    for k in (1, 4, 6, 200):
        last = np.sort(distance, axis=1)[:, min(k, 44) - 1 : min(k, 44)]
        expected = distance <= last * (1 + 1e-9)
        np.testing.assert_array_equal(neighbour_graph(xy, k=k).toarray() > 0, expected & np.isfinite(distance))
    np.testing.assert_array_equal(neighbour_graph(xy, radius_um=100.0).toarray() > 0, distance <= 100.0 * (1 + 1e-9))


def test_constants_one_location_and_genes_that_are_nowhere_measured_are_nan():
    xy = lattice(4)
    x = np.stack([np.full(16, 0.1), np.arange(16.0), np.full(16, np.nan)], axis=1)
    found = morans_i(x, neighbour_graph(xy, k=4), mask=[True, True, False])
    np.testing.assert_array_equal(np.isnan(found), [True, False, True])
    alone = neighbour_graph(xy[:1], k=6)
    assert alone.shape == (1, 1)
    assert np.isnan(morans_i(np.ones((1, 2)), alone)).all()
    assert np.isnan(morans_i(np.zeros((0, 2)), neighbour_graph(xy[:0], k=6))).all()
    assert np.isnan(morans_i(np.arange(16.0), neighbour_graph(xy, radius_um=1.0))).all()
    everywhere_at_once = np.zeros((5, 2))
    assert morans_i(np.arange(5.0), neighbour_graph(everywhere_at_once, k=1))[0] == pytest.approx(-1 / 4)


def test_agreement_is_over_the_genes_that_both_have():
    rng = np.random.default_rng(4)
    a, b = rng.random(30), rng.random(30)
    a[3], b[5] = np.nan, np.nan
    both = ~np.isnan(a) & ~np.isnan(b)
    found = moran_agreement(a, b)
    assert found.pearson == pytest.approx(stats.pearsonr(a[both], b[both])[0])
    assert found.spearman == pytest.approx(stats.spearmanr(a[both], b[both])[0])
    assert found.mean_absolute_difference == pytest.approx(np.abs(a - b)[both].mean())
    assert found.mean_difference == pytest.approx((a - b)[both].mean())
    assert (found.n_genes, found.n_undefined) == (28, 2)
    nothing = moran_agreement([np.nan, 1.0], [1.0, np.nan])
    assert np.isnan(nothing[:4]).all()
    assert (nothing.n_genes, nothing.n_undefined) == (0, 2)


def test_smoothing_raises_morans_i_and_the_agreement_says_so():
    rng = np.random.default_rng(5)
    xy = lattice(15)
    graph = neighbour_graph(xy, k=4)
    x = rng.normal(size=(225, 10))
    smooth = graph @ x + x
    assert moran_agreement(morans_i(smooth, graph), morans_i(x, graph)).mean_difference > 0.3


def test_graphs_that_do_not_fit_and_values_that_are_not_finite_are_refused():
    xy = lattice(3)
    with pytest.raises(ContractError, match="either k or radius_um"):
        neighbour_graph(xy)
    with pytest.raises(ContractError, match="either k or radius_um"):
        neighbour_graph(xy, k=3, radius_um=5.0)
    with pytest.raises(ContractError, match="positive"):
        neighbour_graph(xy, radius_um=0.0)
    with pytest.raises(ContractError, match="finite"):
        neighbour_graph(xy * np.nan, k=2)
    with pytest.raises(ContractError, match="for 8 locations"):
        morans_i(np.zeros(8), neighbour_graph(xy, k=2))
    with pytest.raises(ContractError, match="not finite"):
        morans_i(np.full(9, np.inf), neighbour_graph(xy, k=2))
