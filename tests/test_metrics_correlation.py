"""Per-gene correlations and errors against scipy and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from triglyph.errors import ContractError, GeneError
from triglyph.metrics.correlation import mean_defined, pearson, spearman
from triglyph.metrics.expression import log1p_cp10k, mean_squared_error, most_variable

COARSE = st.integers(-4, 4).map(float)


def one_by_one(function, x, y, mask):
    out = []
    for g in range(x.shape[1]):
        a, b = x[mask[:, g], g], y[mask[:, g], g]
        out.append(function(a, b)[0] if len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan)
    return np.array(out)


@pytest.mark.parametrize(("ours", "theirs"), [(pearson, stats.pearsonr), (spearman, stats.spearmanr)])
@settings(deadline=None)
@given(data=st.data())
def test_masked_correlations_equal_scipy_gene_by_gene(ours, theirs, data):
    shape = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    x, y = (data.draw(arrays(np.float64, shape, elements=COARSE)) for _ in range(2))
    mask = data.draw(arrays(bool, shape))
    expected = one_by_one(theirs, x, y, mask)
    hidden = ours(np.where(mask, x, np.nan), np.where(mask, y, np.nan), mask=mask)
    np.testing.assert_allclose(hidden, expected, atol=1e-12)


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_correlations_do_not_depend_on_the_order_of_rows_on_scale_or_on_blocks(correlation, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 20)), rng.normal(size=(60, 20))
    whole = correlation(x, y)
    order = rng.permutation(60)
    np.testing.assert_allclose(correlation(x[order] * 3 + 1e3, y[order] * 1e-9), whole, atol=1e-9)
    monkeypatch.setattr("triglyph.metrics.ranking._BLOCK_BYTES", 8 * 60 * 3)
    monkeypatch.setattr("triglyph.metrics.correlation._CHUNK_BYTES", 1)
    np.testing.assert_allclose(correlation(x, y), whole, atol=1e-14)


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_correlations_do_not_depend_on_the_number_of_threads_by_one_bit(correlation, monkeypatch):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(700, 5)), rng.normal(size=(700, 5))
    mask = rng.random((700, 5)) < 0.8
    monkeypatch.setattr("triglyph.metrics.ranking._BLOCK_BYTES", 1)
    monkeypatch.setattr("triglyph.metrics.correlation._CHUNK_BYTES", 1)
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append([correlation(x, y), correlation(x, y, mask=mask)])
    np.testing.assert_array_equal(*found)


def test_the_order_of_locations_changes_no_bit_of_spearman():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(999, 3)), rng.poisson(0.3, (999, 3)).astype(float)
    order = rng.permutation(999)
    np.testing.assert_array_equal(spearman(x[order], y[order]), spearman(x, y))


@pytest.mark.parametrize(("ours", "theirs"), [(pearson, stats.pearsonr), (spearman, stats.spearmanr)])
def test_correlations_of_many_chunks_equal_scipy_to_1e_10_whatever_the_scale_and_the_width_of_floats(ours, theirs):
    rng = np.random.default_rng(5)
    scale = np.array([1.0, 1e-6, 1e6, 1.0, 1e-150, 1e150])
    offset = np.array([0.0, 1.0, 1e9, 0.0, 0.0, 0.0])
    x = (rng.normal(size=(30_000, 6)) * scale + offset).astype(np.float64)
    y = np.log1p(rng.poisson(0.4, (30_000, 6)) * rng.uniform(1, 5, (30_000, 1))) + 0.1 * (x - offset) / scale
    x[:, 3] = rng.poisson(0.05, 30_000)
    expected = [theirs(x[:, g] / scale[g], y[:, g])[0] for g in range(6)]
    np.testing.assert_allclose(ours(x, y), expected, atol=1e-10, rtol=0)
    mask = np.ones((1, 6), bool)
    np.testing.assert_allclose(ours(x, y, mask=mask), expected, atol=1e-10, rtol=0)
    narrow = x[:, :4].astype(np.float32), y[:, :4].astype(np.float32)
    wide = [theirs(narrow[0][:, g].astype(float), narrow[1][:, g].astype(float))[0] for g in range(4)]
    np.testing.assert_allclose(ours(*narrow), wide, atol=1e-10, rtol=0)


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_a_gene_that_is_nowhere_measured_has_no_correlation_and_leaves_the_others_alone(correlation):
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    whole = correlation(x, y)
    x[:, 1] = np.nan
    mask = np.array([True, False, True])
    found = correlation(x, y, mask=mask)
    np.testing.assert_allclose(found[mask], whole[mask], atol=1e-14)
    assert np.isnan(found[1])
    assert correlation(np.zeros((5, 0)), np.zeros((5, 0))).shape == (0,)
    with pytest.raises(ContractError, match="row 0, column 1"):
        correlation(x, y)
    with pytest.raises(ContractError, match="differ in shape"):
        correlation(x, y[:, :2])


def test_a_mask_of_genes_alone_is_a_mask_of_columns():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 3))
    measured = np.array([True, False, True])
    r = pearson(x, y, mask=measured)
    assert np.isnan(r[1])
    np.testing.assert_allclose(r[[0, 2]], pearson(x, y)[[0, 2]])


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_constant_genes_have_no_correlation_and_are_counted(correlation):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(40, 4)), rng.normal(size=(40, 4))
    x[:, 0], y[:, 2] = 0.1, 1 / 3  # constants whose computed variance need not be exactly 0
    r = correlation(x, y)
    assert np.isnan(r[[0, 2]]).all()
    mean = mean_defined(r)
    assert (mean.n, mean.n_undefined) == (2, 2)
    assert mean.value == pytest.approx(r[[1, 3]].mean())
    assert np.isnan(mean_defined(r[[0, 2]]).value)


def test_one_location_has_no_correlation():
    assert np.isnan(pearson(np.ones((1, 3)), np.ones((1, 3)))).all()


@pytest.mark.parametrize("scale", [1e-200, 1e-161, 1e160, 1e300])
def test_variances_too_tiny_or_too_large_for_their_squares_are_not_lost(scale):
    x, y = np.array([-1.7, 0.3, 1.1, 0.2]), np.array([0.0, 1.0, 5.0, 3.0])
    np.testing.assert_allclose(pearson(x * scale, y), pearson(x, y), atol=1e-12)
    np.testing.assert_allclose(pearson(x * scale, x * scale), 1.0)


def test_values_that_are_not_finite_are_refused_where_measured():
    x = np.array([[0.0], [np.nan], [1.0]])
    with pytest.raises(ContractError, match="not finite"):
        pearson(x, np.arange(3.0))


def test_log1p_cp10k_equals_its_formula_and_keeps_empty_locations_empty():
    counts = np.random.default_rng(0).poisson(0.7, (20, 6))
    counts[3] = 0
    total = np.maximum(counts.sum(1, keepdims=True), 1)
    expected = np.log1p(counts / total * 1e4)
    np.testing.assert_allclose(log1p_cp10k(counts).toarray(), expected)
    sparse = sp.csr_matrix(counts)
    before = sparse.copy()
    np.testing.assert_allclose(log1p_cp10k(sparse).toarray(), expected)
    assert (sparse != before).nnz == 0
    np.testing.assert_allclose(log1p_cp10k(counts, totals=np.full(20, 50)).toarray(), np.log1p(counts / 50 * 1e4))


def test_counts_given_twice_for_one_entry_are_added_before_the_log():
    twice = sp.csr_matrix((np.array([1.0, 2.0, 3.0]), np.array([0, 0, 1]), np.array([0, 3])), shape=(1, 2))
    np.testing.assert_allclose(log1p_cp10k(twice).toarray(), np.log1p([[5e3, 5e3]]))


def test_the_most_variable_genes_are_those_of_the_dense_formula():
    values = log1p_cp10k(np.random.default_rng(3).poisson(np.geomspace(0.02, 5, 30), (80, 30)))
    dense = values.toarray()
    kept = np.flatnonzero((dense > 0).mean(0) > 0.1)
    expected = kept[np.argsort(-dense[:, kept].var(0), kind="stable")][:7]
    np.testing.assert_array_equal(most_variable(values, n_genes=7, min_detected=0.1), expected)
    with pytest.raises(GeneError, match="no gene is seen"):
        most_variable(values, n_genes=7, min_detected=1.0)


@settings(deadline=None)
@given(st.data())
def test_masked_squared_error_equals_a_loop(data):
    shape = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 3))
    a, b = (data.draw(arrays(np.float64, shape, elements=COARSE)) for _ in range(2))
    mask = data.draw(arrays(bool, shape))
    plain, centred = [], []
    for g in range(shape[1]):
        e = (a - b)[mask[:, g], g]
        plain.append((e**2).mean() if len(e) else np.nan)
        centred.append(((e - e.mean()) ** 2).mean() if len(e) else np.nan)
    np.testing.assert_allclose(mean_squared_error(a, b, mask=mask), plain, atol=1e-12)
    np.testing.assert_allclose(mean_squared_error(a, b, mask=mask, centred=True), centred, atol=1e-12)
