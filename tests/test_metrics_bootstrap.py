"""Bootstrap draws are exact for the repeated rows, and intervals say what was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from triglyph.errors import ContractError
from triglyph.metrics.bootstrap import Resamples, interval, nan_mean, spatial_blocks
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


def test_blocks_are_squares_of_tissue_and_hold_every_location_once():
    xy = np.random.default_rng(0).uniform(0, 2000, (500, 2)) + np.array([1e5, -300.0])
    blocks = spatial_blocks(xy, side_um=500)
    assert sorted(set(blocks)) == list(range(16))
    for b in range(16):
        assert np.ptp(xy[blocks == b], axis=0).max() <= 500
    with pytest.raises(ContractError, match="side"):
        spatial_blocks(xy, side_um=0)
    assert len(spatial_blocks(np.zeros((0, 2)), side_um=500)) == 0


def test_correlated_neighbours_widen_the_interval_when_drawn_as_blocks():
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(20) * 100.0, np.arange(20) * 100.0), -1).reshape(-1, 2)
    blocks = spatial_blocks(xy, side_um=500)
    values = rng.normal(size=16)[blocks] + 0.1 * rng.normal(size=400)
    wide = np.ptp(np.quantile(Resamples(blocks).mean(values), [0.025, 0.975]))
    narrow = np.ptp(np.quantile(Resamples(np.arange(400)).mean(values), [0.025, 0.975]))
    assert wide > 3 * narrow


def test_interval_of_many_patients_covers_the_truth_nearly_nominally():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        values = rng.normal(size=20)
        ci = interval(
            Resamples(np.arange(20), n_boot=400, seed=i).mean(values)[:, 0], unit="patient", n_units=20, min_units=6
        )
        hits += ci.low <= 0 <= ci.high
    assert 0.88 <= hits / 300 <= 0.97


def test_too_few_units_or_mostly_undefined_draws_give_no_interval():
    draws = np.linspace(0, 1, 101)
    assert interval(draws, unit="patient", n_units=5, min_units=6) is None
    assert interval(np.where(np.arange(101) % 3 > 0, np.nan, draws), unit="patient", n_units=9, min_units=6) is None
    assert interval(np.zeros(0), unit="patient", n_units=9, min_units=6) is None
    found = interval(draws, unit="spatial-block", n_units=9, min_units=5)
    assert found is not None
    assert (found.unit, found.n_units) == ("spatial-block", 9)
    assert (found.low, found.high) == (pytest.approx(0.025), pytest.approx(0.975))


def test_nan_mean_leaves_out_what_is_undefined_without_a_word():
    x = np.array([[1.0, np.nan], [3.0, np.nan]])
    np.testing.assert_array_equal(nan_mean(x, axis=0), [2.0, np.nan])
