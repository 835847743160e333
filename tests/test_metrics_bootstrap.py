"""Bootstrap draws are exact for the repeated rows, and intervals say what was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from triglyph.errors import ContractError
from triglyph.metrics.bootstrap import Resamples, interval, nan_mean, spatial_blocks, worth_together
from triglyph.metrics.ranking import auroc


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    units = rng.integers(0, 9, 60)
    return Resamples(units, strata=np.arange(60) // 30, n_boot=25, seed=3), rng


def repeated(resamples, i):
    """Row numbers of draw i, each as often as its unit came up."""
    return np.repeat(np.arange(len(resamples.rows)), resamples.counts[i, resamples.rows].astype(int))


def test_every_draw_keeps_the_number_of_units_of_each_section():
    strata = np.array(["a"] * 30 + ["b"] * 10)
    units = np.r_[np.arange(30) // 3, np.arange(10) // 5]
    resamples = Resamples(units, strata=strata, n_boot=50)
    assert resamples.n_units == 12
    of_a = np.unique(resamples.rows[:30])
    assert (resamples.counts[:, of_a].sum(1) == 10).all()
    assert (resamples.counts.sum(1) == 12).all()


def test_mean_median_auroc_and_pearson_of_draws_equal_those_of_the_repeated_rows(drawn):
    resamples, rng = drawn
    x, y = rng.normal(size=(60, 3)) + 50, rng.normal(size=(60, 3))
    y[:, 0] += x[:, 0]
    mask = rng.random((60, 3)) < 0.8
    scores, truth = rng.integers(0, 5, (60, 2)).astype(float), rng.random((60, 2)) < 0.4
    mean, median = resamples.mean(x, mask=mask), resamples.median(x[:, 0])
    curve, r = resamples.auroc(scores, truth), resamples.pearson(x, y, mask=mask)
    for i in range(25):
        rows = repeated(resamples, i)
        assert median[i] == pytest.approx(np.median(x[rows, 0]))
        np.testing.assert_allclose(curve[i], auroc(scores[rows], truth[rows]))
        for g in range(3):
            kept = rows[mask[rows, g]]
            assert mean[i, g] == pytest.approx(x[kept, g].mean())
            assert r[i, g] == pytest.approx(stats.pearsonr(x[kept, g], y[kept, g])[0])


def test_masked_auroc_draws_leave_out_what_is_unknown(drawn):
    resamples, rng = drawn
    scores, truth, known = rng.normal(size=60), rng.random(60) < 0.5, rng.random(60) < 0.6
    curve = resamples.auroc(scores, truth, mask=known[:, None])
    for i in range(25):
        rows = repeated(resamples, i)
        rows = rows[known[rows]]
        assert curve[i, 0] == pytest.approx(auroc(scores[rows], truth[rows])[0])


def test_draws_do_not_depend_on_the_memory_given(drawn, monkeypatch):
    resamples, rng = drawn
    x = rng.normal(size=60)
    whole = resamples.median(x)
    monkeypatch.setattr("triglyph.metrics.bootstrap._BLOCK_BYTES", 8 * 60 * 4)
    np.testing.assert_array_equal(resamples.median(x), whole)


def test_a_constant_gene_has_no_correlation_in_any_draw():
    resamples = Resamples(np.arange(20), n_boot=10)
    assert np.isnan(resamples.pearson(np.full((20, 1), 0.1), np.arange(20.0))).all()


def test_the_same_seed_gives_the_same_draws_and_another_gives_others():
    a, b, c = (Resamples(np.arange(30), n_boot=5, seed=s).counts for s in (1, 1, [1, 2]))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_blocks_are_equal_parts_of_the_piece_and_hold_every_location_once():
    xy = np.random.default_rng(0).uniform(0, 2000, (500, 2)) + np.array([1e5, -300.0])
    blocks = spatial_blocks(xy, side_um=500)
    assert sorted(set(blocks)) == list(range(16))
    for b in range(16):
        assert np.ptp(xy[blocks == b], axis=0).max() <= 500
    with pytest.raises(ContractError, match="side"):
        spatial_blocks(xy, side_um=0)
    assert len(spatial_blocks(np.zeros((0, 2)), side_um=500)) == 0


@pytest.mark.parametrize(("extent_um", "number"), [(400, 1), (1400, 1), (1600, 2), (3150, 3), (6500, 6)])
def test_no_block_is_a_sliver_at_the_edge(extent_um, number):
    x = np.linspace(0, extent_um, 40)
    blocks = spatial_blocks(np.stack([x, np.full(40, 7.0)], axis=1), side_um=1000)
    sizes = np.bincount(blocks)
    assert len(sizes) == number
    assert sizes.min() > sizes.max() / 2


def test_a_class_that_lies_in_few_blocks_is_worth_few_units():
    units = np.repeat(np.arange(10), 20)
    drawn = Resamples(units, n_boot=2)
    even, alone, mostly = np.ones(200), units == 3, np.where(units == 3, 10.0, np.where(units == 4, 5.0, 0.0))
    found = drawn.n_effective(np.stack([even, alone, mostly, np.zeros(200)], axis=1))
    np.testing.assert_allclose(found, [10, 1, 15**2 / 125, 0])
    assert worth_together([10, 2, 0]) == pytest.approx(2 / (1 / 10 + 1 / 2))
    assert worth_together([0.0]) == 0


def test_an_interval_that_hangs_on_few_units_is_wider_and_on_one_there_is_none():
    draws = np.random.default_rng(0).normal(0.5, 0.1, 500)
    enough = {"value": 0.5, "unit": "spatial-block", "n_units": 20, "min_units": 4}
    whole, few = interval(draws, **enough), interval(draws, n_effective=4.0, **enough)
    ratio = np.sqrt(4 / 3) * stats.t.ppf(0.975, 3) / (np.sqrt(20 / 19) * stats.t.ppf(0.975, 19))
    assert (few.high - 0.5) / (whole.high - 0.5) == pytest.approx(ratio)
    assert few.n_units == 20
    assert interval(draws, n_effective=1.5, **enough) is None


def test_correlated_neighbours_widen_the_interval_when_drawn_as_blocks():
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(20) * 100.0, np.arange(20) * 100.0), -1).reshape(-1, 2)
    blocks = spatial_blocks(xy, side_um=500)
    values = rng.normal(size=16)[blocks] + 0.1 * rng.normal(size=400)
    wide = np.ptp(np.quantile(Resamples(blocks).mean(values), [0.025, 0.975]))
    narrow = np.ptp(np.quantile(Resamples(np.arange(400)).mean(values), [0.025, 0.975]))
    assert wide > 3 * narrow


def patients(values, *, n_boot=400, seed=0, min_units=2):
    drawn = Resamples(np.arange(len(values)), n_boot=n_boot, seed=seed).mean(values)[:, 0]
    return interval(drawn, value=values.mean(), unit="patient", n_units=len(values), min_units=min_units)


def test_the_interval_of_a_mean_of_patients_is_students_in_the_limit_of_many_draws():
    values = np.random.default_rng(0).gamma(2, size=7)
    found = patients(values, n_boot=200_000)
    assert found[:2] == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95)), rel=0.02)


@pytest.mark.parametrize("n", [4, 6, 12])
def test_the_interval_of_few_patients_covers_the_truth_nominally(n):
    rng, hits = np.random.default_rng(n), 0
    for i in range(400):
        found = patients(rng.normal(size=n), seed=i, n_boot=200)
        hits += found.low <= 0 <= found.high
    # 380 are expected, and 18 are four standard errors; percentiles of the same draws cover 320, 342 and 364.
    assert 362 <= hits <= 396


def test_sections_drawn_each_on_its_own_cost_a_degree_of_freedom_each():
    rng = np.random.default_rng(1)
    values, strata = rng.normal(size=20), np.repeat([0, 1], 10)
    drawn = Resamples(np.arange(20), strata=strata, n_boot=100_000).mean(values)[:, 0]
    found = interval(drawn, value=values.mean(), unit="spatial-block", n_units=20, n_strata=2, min_units=5)
    pooled = np.sqrt((values[:10].var(ddof=1) + values[10:].var(ddof=1)) / 2 / 20)
    assert found.high - values.mean() == pytest.approx(stats.t.ppf(0.975, 18) * pooled, rel=0.02)


def test_an_interval_is_cut_where_the_statistic_ends():
    draws = np.random.default_rng(0).normal(0.97, 0.03, 500)
    free = interval(draws, value=0.97, unit="patient", n_units=9, min_units=6)
    cut = interval(draws, value=0.97, unit="patient", n_units=9, min_units=6, bounds=(0.0, 1.0))
    assert free.high > 1.0
    assert (cut.low, cut.high) == (free.low, 1.0)


def test_too_few_units_mostly_undefined_draws_or_an_undefined_value_give_no_interval():
    draws = np.linspace(0, 1, 101)
    enough = {"value": 0.5, "unit": "patient", "n_units": 9, "min_units": 6}
    assert interval(draws, **{**enough, "n_units": 5}) is None
    assert interval(draws, **{**enough, "n_strata": 9}) is None
    assert interval(draws, **{**enough, "value": np.nan}) is None
    assert interval(np.where(np.arange(101) % 3 > 0, np.nan, draws), **enough) is None
    assert interval(np.zeros(0), **enough) is None
    found = interval(np.where(np.arange(101) % 3 > 1, np.nan, draws), **{**enough, "unit": "spatial-block"})
    assert found is not None
    assert (found.unit, found.n_units) == ("spatial-block", 9)
    assert found.low < 0.5 < found.high


def test_nan_mean_leaves_out_what_is_undefined_without_a_word():
    x = np.array([[1.0, np.nan], [3.0, np.nan]])
    np.testing.assert_array_equal(nan_mean(x, axis=0), [2.0, np.nan])
