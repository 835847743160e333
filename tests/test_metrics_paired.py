"""Paired comparisons are exact, symmetric, blind to the order of patients, and say in words what may be said."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from triglyph.errors import ContractError
from triglyph.metrics import paired
from triglyph.metrics.bootstrap import Resamples, interval
from triglyph.metrics.paired import compare, corrected, equivalence, holm, least_p, sign_flip_p, wilcoxon_p


def flipped(differences, statistic):
    """Two-sided p over all flips of signs, one at a time."""
    d = np.asarray(differences, dtype=float)
    seen = abs(statistic(d))
    flips = [abs(statistic(d * signs)) >= seen - 1e-12 for signs in product((-1, 1), repeat=len(d))]
    return sum(flips) / len(flips)


def signed_ranks(d):
    """Sum of signed ranks, zeros left out."""
    return (np.sign(d) * stats.rankdata(np.where(d == 0, np.inf, np.abs(d)))).sum()


CASES = [
    np.random.default_rng(0).normal(0.4, 1, 9),
    np.array([0.1, 0.1, -0.1, 0.3, 0.3, 0.2, 0.2]),
    np.array([0.0, 0.5, 0.0, -0.2, 0.7, 0.7, 1.1, 0.3]),
    np.array([1.0, 1.0]),
    np.array([-3.0]),
]


@pytest.mark.parametrize("d", CASES, ids=["continuous", "ties", "zeros", "two", "one"])
def test_p_values_equal_brute_force_over_all_flips_of_signs(d):
    p, exact = sign_flip_p(d)
    assert exact
    assert p == pytest.approx(flipped(d, np.sum))
    assert wilcoxon_p(d) == pytest.approx(flipped(d[d != 0], signed_ranks))


def test_wilcoxon_equals_scipy_where_scipy_is_exact():
    for n in (5, 12, 30):
        d = np.random.default_rng(n).normal(0.3, 1, n)
        assert wilcoxon_p(d) == pytest.approx(stats.wilcoxon(d, method="exact").pvalue)


def test_sampled_flips_agree_with_all_of_them_and_never_give_0(monkeypatch):
    d = np.random.default_rng(1).normal(0.35, 1, 14)
    whole = sign_flip_p(d)[0]
    monkeypatch.setattr(paired, "EXACT_FLIPS", 4)
    sampled, exact = sign_flip_p(d)
    assert not exact
    assert sampled == pytest.approx(whole, abs=5 * np.sqrt(whole / paired.N_FLIPS))
    assert sign_flip_p(d) == (sampled, False)
    assert sign_flip_p(d[::-1])[0] == sampled
    assert sign_flip_p(-d)[0] == sampled
    monkeypatch.setattr(paired, "_BLOCK_BYTES", 8 * 14 * 1000)
    assert sign_flip_p(d)[0] == sampled
    assert sign_flip_p(np.full(60, 1.0))[0] == 1 / (1 + paired.N_FLIPS)


def test_sixteen_patients_are_exact_and_seventeen_are_sampled_unless_one_is_equal():
    d = np.random.default_rng(2).normal(size=17)
    assert sign_flip_p(d[:16])[1]
    assert not sign_flip_p(d)[1]
    assert sign_flip_p(np.where(np.arange(17) == 3, 0.0, d))[1]


def test_under_the_null_p_is_below_alpha_no_more_often_than_alpha():
    rng = np.random.default_rng(0)
    p = np.array([[sign_flip_p(d)[0], wilcoxon_p(d)] for d in rng.standard_t(3, (600, 8))])
    assert ((p <= 0.05).mean(axis=0) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)).all()


def test_holm_equals_the_example_worked_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 gives 0.02, 0.03, 0.06, 0.04, and 0.04 is raised to 0.06.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, np.nan, 0.6]), [0.02, np.nan, 0.6])
    np.testing.assert_allclose(holm([0.7, 0.6]), [1.0, 1.0])
    assert holm([]).shape == (0,)


def test_correction_over_a_family_of_one_changes_nothing_and_undefined_tests_are_no_members():
    a, b = np.random.default_rng(0).normal(size=(2, 8))
    one = compare(a, b)
    assert corrected([one]) == [one]
    nothing = compare(np.full(8, np.nan), b)
    first, second, undefined = corrected([one, compare(a + 3, b), nothing])
    assert first.family == second.family == 2
    assert (first.p_adjusted, second.p_adjusted) == tuple(holm([first.p_flips, second.p_flips]))
    assert np.isnan(undefined.p_adjusted)
    assert corrected([]) == []


def test_a_against_b_is_b_against_a_turned_round():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 11))
    a[2] = b[2]
    forth, back = compare(a, b), compare(b, a)
    assert forth.difference == pytest.approx(-back.difference)
    assert (forth.ci.low, forth.ci.high) == pytest.approx((-back.ci.high, -back.ci.low))
    assert (forth.wins, forth.losses, forth.ties) == (back.losses, back.wins, back.ties)
    assert forth.ties == 1
    assert (forth.p_flips, forth.p_wilcoxon) == (back.p_flips, back.p_wilcoxon)
    assert (forth.mean_a, forth.mean_b) == (back.mean_b, back.mean_a)


def test_the_order_of_patients_and_of_seeds_changes_nothing():
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.2, 1, (18, 3)), rng.normal(size=(18, 2))
    order = rng.permutation(18)
    one, other = compare(a, b), compare(a[order][:, ::-1], b[order])
    assert one.p_flips == other.p_flips
    assert one.p_wilcoxon == other.p_wilcoxon
    assert (one.difference, *one.ci[:2]) == pytest.approx((other.difference, *other.ci[:2]))


def test_seeds_are_averaged_inside_a_patient_and_are_no_replicates():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(7, 4)), rng.normal(size=(7, 2))
    assert compare(a, b) == compare(a.mean(axis=1), b.mean(axis=1))
    assert compare(a, b).n_patients == 7


def test_patients_without_a_value_of_both_are_left_out_and_counted():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(2, 9))
    with_holes = a.copy()
    with_holes[[1, 4]] = np.nan
    kept = np.delete(np.arange(9), [1, 4])
    found, expected = compare(with_holes, b), compare(a[kept], b[kept])
    assert (found.n_patients, found.n_left_out) == (7, 2)
    assert (found.p_flips, found.ci, found.mean_b) == (expected.p_flips, expected.ci, expected.mean_b)
    nobody = compare([np.nan, 1.0], [1.0, np.nan])
    assert nobody.n_patients == 0
    assert np.isnan([nobody.difference, nobody.p_flips, nobody.p_wilcoxon]).all()
    assert nobody.verdict == "too few patients for a claim"
    assert "none in whom both are defined" in nobody.sentence()
    assert compare([], []).n_patients == 0


def test_one_patient_gives_the_difference_and_no_claim():
    one = compare([0.9], [0.1], names=("ours", "theirs"))
    assert (one.difference, one.wins, one.ci, one.p_flips, one.least_p) == (pytest.approx(0.8), 1, None, 1.0, 1.0)
    assert one.sentence() == (
        "ours and theirs: too few patients for a claim "
        "(difference +0.800 over 1 patient, ours better in 1; no p below 1 is possible)"
    )


def test_no_p_is_below_what_so_many_patients_allow():
    assert [least_p(n) for n in (0, 1, 4, 6)] == [1.0, 1.0, 0.125, 0.03125]
    for n in (1, 4, 6, 9):
        d = np.random.default_rng(n).uniform(1, 2, n)
        assert sign_flip_p(d)[0] == wilcoxon_p(d) == least_p(n)


def test_the_interval_is_the_limit_of_the_draws_of_the_judge():
    rng = np.random.default_rng(7)
    a, b = rng.normal(0.3, 1, (2, 12))
    draws = Resamples(np.arange(12), n_boot=40_000).mean(a - b)[:, 0]
    drawn = interval(draws, value=(a - b).mean(), unit="patient", n_units=12, min_units=6)
    found = compare(a, b).ci
    assert found[:2] == pytest.approx(drawn[:2], abs=0.02)
    assert found[2:] == drawn[2:]
    assert found[:2] == pytest.approx(tuple(stats.ttest_rel(a, b).confidence_interval(0.95)))


def test_verdicts_are_words_with_the_numbers_in_them():
    d = np.array([0.2, 0.1, 0.3, 0.2, 0.1, 0.2, 0.3])
    better = compare(d + 0.5, np.full(7, 0.5), names=("ours", "theirs"))
    assert better.verdict == "better"
    assert better.sentence() == (
        "ours is better than theirs (difference +0.200 [+0.124, +0.276] over 7 patients, ours better in 7; p = 0.016)"
    )
    worse = compare(np.full(7, 0.5), d + 0.5, names=("ours", "theirs"))
    assert worse.verdict == "worse"
    assert worse.sentence().startswith("theirs is better than ours (difference -0.200")
    same = compare(d - d.mean(), np.zeros(7))
    assert same.verdict == "cannot be told apart"
    assert "A and B cannot be told apart (" in same.sentence()
    few = compare(d[:5], np.zeros(5))
    assert few.verdict == "too few patients for a claim"
    assert few.ci is None
    assert "A better in 5; no p below 0.0625 is possible" in few.sentence()


def test_a_lower_error_wins():
    d = np.array([0.2, 0.1, 0.3, 0.2, 0.1, 0.2])
    error = compare(d, np.zeros(6), lower_is_better=True)
    assert (error.wins, error.losses, error.verdict) == (0, 6, "worse")
    assert compare(np.zeros(6), d, lower_is_better=True).verdict == "better"


def test_a_correction_that_no_result_could_survive_is_said():
    d = np.random.default_rng(8).uniform(1, 2, 6)
    family = corrected([compare(d + i, np.zeros(6)) for i in range(3)])
    assert {c.verdict for c in family} == {"cannot be told apart"}
    assert "p = 0.094 after Holm's correction over 3 tests, 0.031 before" in family[0].sentence()
    assert "6 patients and 3 tests may not reach 0.05 at all" in family[0].sentence()


def test_equal_subjects_are_not_told_apart_and_are_equivalent():
    a = np.random.default_rng(9).normal(size=8)
    equal = compare(a, a)
    assert (equal.difference, equal.ties, equal.p_flips, equal.p_wilcoxon) == (0.0, 8, 1.0, 1.0)
    assert equal.verdict == "cannot be told apart"
    same = equivalence(a, a, margin=0.01)
    assert (same.p, same.equivalent, same.low, same.high) == (0.0, True, 0.0, 0.0)
    assert equivalence(a + 0.02, a, margin=0.01).equivalent is False


def test_equivalence_equals_two_one_sided_t_tests_and_the_90_percent_interval_inside_the_margin():
    rng = np.random.default_rng(10)
    for shift in (0.0, 0.3, 0.6, -0.6, 1.2):
        a, b = rng.normal(0, 0.5, (2, 9))
        found = equivalence(a + shift, b, margin=0.7)
        d = a + shift - b
        above = stats.ttest_1samp(d, -0.7, alternative="greater").pvalue
        below = stats.ttest_1samp(d, 0.7, alternative="less").pvalue
        assert found.p == pytest.approx(max(above, below))
        assert found.equivalent == (found.low > -0.7 and found.high < 0.7)
        assert (found.low, found.high) == pytest.approx(tuple(stats.ttest_1samp(d, 0).confidence_interval(0.9)))
    assert "not shown to be equivalent within the margin (90% interval" in found.sentence()


def test_equivalence_makes_no_claim_of_few_patients():
    few = equivalence([0.1, 0.2], [0.1, 0.2], margin=1.0)
    assert few.equivalent is None
    assert "too few patients for a claim of equivalence" in few.sentence()
    assert np.isnan(equivalence([0.1], [0.2], margin=1.0).p)
    with pytest.raises(ContractError, match="margin"):
        equivalence([0.1], [0.2], margin=0.0)


def test_patients_that_do_not_correspond_and_infinite_values_are_refused():
    with pytest.raises(ContractError, match="same patients"):
        compare(np.zeros(3), np.zeros(4))
    with pytest.raises(ContractError, match="same patients"):
        compare(np.zeros((3, 0)), np.zeros(3))
    with pytest.raises(ContractError, match="infinite"):
        compare([np.inf, 1.0], [0.0, 1.0])
