"""Two subjects compared patient by patient: tests, interval, wins, and a verdict in words.

Patients are the replicates. Seeds (and whatever else was repeated within a patient) are averaged first, so a patient
counts once. What is tested is the paired difference:

* *sign flips*: under the null each patient's difference is as likely with the other sign; the statistic is the mean
  difference, and every one of the 2^n assignments is looked at, up to `EXACT_FLIPS` of them, else a seeded sample with
  the observed one counted in (Phipson & Smyth 2010), so that p is never 0. Patients whose difference is 0 stay in: they
  change no assignment's sum.
* *Wilcoxon's signed ranks*: differences of 0 are left out, ties share their mean rank, and the distribution is exact at
  any n, ties and all (Wilcoxon 1945).
* *the interval* of the mean difference is the judge's own (`triglyph.metrics.bootstrap`); of a plain mean of patients,
  infinitely many draws give Student's t, which is taken at once.

With n patients no two-sided p is below 2 / 2^n: with four 0.125. Below `MIN_PATIENTS` there is no claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from scipy.stats import t as student_t

from triglyph.errors import ContractError
from triglyph.metrics.bootstrap import COVERAGE, MIN_PATIENTS, Interval

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "cannot be told apart", "too few patients for a claim"]

ALPHA = 0.05
EXACT_FLIPS = 1 << 16
N_FLIPS = 99_999
"""Sampled assignments where there are more than `EXACT_FLIPS`: p is right to about 0.0014 at 0.05."""

_BLOCK_BYTES = 64 << 20
_PATIENT = "patient"


@dataclass(frozen=True)
class Paired:
    """Subject `a` against subject `b` over the patients that both have; differences are `a` minus `b`."""

    a: str
    b: str
    n_patients: int
    n_left_out: int
    """Patients for whom either is undefined."""
    mean_a: float
    """Over the compared patients; NaN without any, as all that follows."""
    mean_b: float
    difference: float
    ci: Interval | None
    """Of the mean difference; None below `MIN_PATIENTS`."""
    wins: int
    """Patients in whom `a` is better."""
    losses: int
    p_flips: float
    exact: bool
    """Whether every assignment of signs was looked at."""
    p_wilcoxon: float
    p_adjusted: float
    """`p_flips` after Holm's correction over its family; `p_flips` itself in a family of one."""
    family: int = 1
    """Number of tests corrected for together."""
    lower_is_better: bool = False
    alpha: float = ALPHA

    @property
    def ties(self) -> int:
        """Patients in whom both are equal."""
        return self.n_patients - self.wins - self.losses

    @property
    def least_p(self) -> float:
        """The smallest p that so many patients allow, before any correction."""
        return least_p(self.n_patients)

    @property
    def verdict(self) -> Verdict:
        """What may be said of `a`."""
        if self.n_patients < MIN_PATIENTS:
            return "too few patients for a claim"
        if not self.p_adjusted <= self.alpha or self.difference == 0:
            return "cannot be told apart"
        return "better" if (self.difference < 0) == self.lower_is_better else "worse"

    def sentence(self) -> str:
        """The verdict with its numbers."""
        if not self.n_patients:
            return f"{self.a} and {self.b}: too few patients for a claim (none in whom both are defined)"
        facts = f"difference {self.difference:+.3f}"
        if self.ci:
            facts += f" [{self.ci.low:+.3f}, {self.ci.high:+.3f}]"
        equal = f", {self.ties} equal" if self.ties else ""
        facts += f" over {_patients(self.n_patients)}, {self.a} better in {self.wins}{equal}"
        if self.verdict == "too few patients for a claim":
            lowest = f"no p below {self.least_p:.3g} is possible"
            return f"{self.a} and {self.b}: too few patients for a claim ({facts}; {lowest})"
        facts += f"; p = {_p(self.p_adjusted)}"
        if self.family > 1:
            facts += f" after Holm's correction over {self.family} tests, {_p(self.p_flips)} before"
        if self.verdict == "cannot be told apart":
            if self.family * self.least_p > self.alpha:
                facts += f"; {_patients(self.n_patients)} and {self.family} tests may not reach {self.alpha:g} at all"
            return f"{self.a} and {self.b} cannot be told apart ({facts})"
        first, second = (self.a, self.b) if self.verdict == "better" else (self.b, self.a)
        return f"{first} is better than {second} ({facts})"


@dataclass(frozen=True)
class Equivalence:
    """Whether two subjects differ by less than a margin, whichever way: two one-sided t tests (Schuirmann 1987)."""

    a: str
    b: str
    margin: float
    n_patients: int
    p: float
    """The larger of the two one-sided p; NaN with fewer than two patients."""
    low: float
    """Interval of coverage 1 - 2 alpha; it lies inside the margin exactly where p < alpha."""
    high: float
    alpha: float = ALPHA

    @property
    def equivalent(self) -> bool | None:
        """None with too few patients for a claim. False is no proof of a difference."""
        return None if self.n_patients < MIN_PATIENTS else bool(self.p < self.alpha)

    def sentence(self) -> str:
        """The verdict with its numbers."""
        inside = f"{1 - 2 * self.alpha:.0%} interval of the difference [{self.low:+.3f}, {self.high:+.3f}]"
        facts = f"{inside}, margin {self.margin:g}, {_patients(self.n_patients)}, p = {_p(self.p)}"
        if self.equivalent is None:
            return f"{self.a} and {self.b}: too few patients for a claim of equivalence ({facts})"
        said = "equivalent" if self.equivalent else "not shown to be equivalent"
        return f"{self.a} and {self.b} are {said} within the margin ({facts})"


def compare(
    a: ArrayLike,
    b: ArrayLike,
    *,
    names: tuple[str, str] = ("A", "B"),
    lower_is_better: bool = False,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Paired:
    """Compare two subjects over patients.

    Parameters
    ----------
    a, b
        (patients,) or (patients, seeds) values, row i of both the same patient; NaN where undefined. Seeds are
        averaged, the two need not have equally many; a patient without a value in any of them is left out.
    lower_is_better
        For an error or a rank.
    seed
        Of the sampled signs, where there are too many patients for all of them.

    Raises
    ------
    ContractError
        The patients do not correspond, or a value is infinite.
    """
    x, y = _per_patient(a, b)
    both = ~np.isnan(x) & ~np.isnan(y)
    x, y = x[both], y[both]
    d = x - y
    p, exact = sign_flip_p(d, seed=seed)
    better, n = (d < 0 if lower_is_better else d > 0), len(d)
    low, high = _student(d, COVERAGE)
    return Paired(
        a=names[0],
        b=names[1],
        n_patients=n,
        n_left_out=int((~both).sum()),
        mean_a=_mean(x),
        mean_b=_mean(y),
        difference=_mean(d),
        ci=Interval(low, high, _PATIENT, n) if n >= MIN_PATIENTS else None,
        wins=int(better.sum()),
        losses=int((~better & (d != 0)).sum()),
        p_flips=p,
        exact=exact,
        p_wilcoxon=wilcoxon_p(d),
        p_adjusted=p,
        lower_is_better=lower_is_better,
        alpha=alpha,
    )


def equivalence(
    a: ArrayLike, b: ArrayLike, *, margin: float, names: tuple[str, str] = ("A", "B"), alpha: float = ALPHA
) -> Equivalence:
    """Whether two subjects' mean difference over patients lies within ± `margin`; arguments as of `compare`.

    Raises
    ------
    ContractError
        The margin is not positive, the patients do not correspond, or a value is infinite.
    """
    if not margin > 0:
        raise ContractError(f"a margin of {margin}", mend="give the largest difference that does not matter")
    x, y = _per_patient(a, b)
    d = (x - y)[~np.isnan(x) & ~np.isnan(y)]
    low, high = _student(d, 1 - 2 * alpha)
    p = float("nan")
    if len(d) > 1:
        room, error = margin - abs(_mean(d)), float(d.std(ddof=1)) / np.sqrt(len(d))
        p = float(student_t.sf(room / error, len(d) - 1)) if error else float(room <= 0)
    return Equivalence(names[0], names[1], margin, len(d), p, low, high, alpha)


def sign_flip_p(differences: ArrayLike, *, seed: int = 0) -> tuple[float, bool]:
    """Two-sided p of the mean of (n,) paired differences under flips of their signs, and whether it is exact.

    NaN without any difference. Neither the order of patients nor the sign of all differences moves it.
    """
    d = np.asarray(differences, dtype=np.float64)
    if not len(d):
        return float("nan"), True
    # A difference of 0 changes no sum; sorted, the same patients meet the same signs in any order.
    sizes = np.sort(np.abs(d[d != 0]))[::-1]
    # Sums that are equal on paper may differ in their last digits.
    reached = abs(float(d.sum())) - 1e-10 * float(sizes.sum())
    if 1 << len(sizes) <= EXACT_FLIPS:
        sums = np.zeros(1)
        for size in sizes:
            sums = np.concatenate([sums - size, sums + size])
        return float((np.abs(sums) >= reached).mean()), True
    rng, hits = np.random.default_rng(seed), 0
    step = max(1, _BLOCK_BYTES // (8 * len(sizes)))
    for start in range(0, N_FLIPS, step):
        signs = 2.0 * rng.integers(0, 2, (min(step, N_FLIPS - start), len(sizes))) - 1.0
        hits += int((np.abs(signs @ sizes) >= reached).sum())
    return (1 + hits) / (1 + N_FLIPS), False


def wilcoxon_p(differences: ArrayLike) -> float:
    """Exact two-sided p of Wilcoxon's signed-rank test of (n,) differences; 1 where all are 0, NaN without any."""
    d = np.asarray(differences, dtype=np.float64)
    if not len(d):
        return float("nan")
    d = d[d != 0]
    # Doubled, shared ranks are whole numbers, and the distribution of their sum is a short convolution.
    ranks = np.rint(2 * rankdata(np.abs(d))).astype(np.int64)
    share = np.ones(1)
    for rank in ranks:
        share = (np.pad(share, (0, rank)) + np.pad(share, (rank, 0))) / 2
    positive = int(ranks[d > 0].sum())
    least = min(positive, int(ranks.sum()) - positive)
    return min(1.0, 2 * float(share[: least + 1].sum()))


def least_p(n_patients: int) -> float:
    """The smallest two-sided p of a sign-flip test of so many patients; 1 without any."""
    return min(1.0, 2.0 ** (1 - n_patients))


def holm(p: ArrayLike) -> Floats:
    """(tests,) p values adjusted by Holm's step-down method (1979); NaN stays NaN and is no member of the family."""
    x = np.asarray(p, dtype=np.float64)
    out, there = np.full(x.shape, np.nan), np.flatnonzero(~np.isnan(x))
    order = there[np.argsort(x[there], kind="stable")]
    stepped = np.maximum.accumulate(x[order] * np.arange(len(order), 0, -1))
    out[order] = np.minimum(stepped, 1.0)
    return out


def corrected(family: Sequence[Paired]) -> list[Paired]:
    """The comparisons of one family with Holm's correction over all that have a p."""
    p = np.array([c.p_flips for c in family])
    size = int((~np.isnan(p)).sum())
    return [replace(c, p_adjusted=float(q), family=max(size, 1)) for c, q in zip(family, holm(p), strict=True)]


def _per_patient(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    """(patients,) of both, seeds averaged."""
    x, y = (np.asarray(v, dtype=np.float64) for v in (a, b))
    if not all(v.ndim == 1 or (v.ndim == 2 and v.shape[1]) for v in (x, y)) or len(x) != len(y):
        raise ContractError(
            "values must be (patients,) or (patients, seeds), with the same patients for both",
            where=f"shapes {x.shape} and {y.shape}",
        )
    if np.isinf(x).any() or np.isinf(y).any():
        raise ContractError("a value is infinite", mend="give NaN where a metric is undefined")
    one, other = (v if v.ndim == 1 else np.asarray(v.mean(axis=1)) for v in (x, y))
    return one, other


def _mean(x: Floats) -> float:
    return float(x.mean()) if len(x) else float("nan")


def _student(x: Floats, coverage: float) -> tuple[float, float]:
    """Interval of the mean of (n,) values; NaN below two."""
    if len(x) < 2:
        return float("nan"), float("nan")
    reach = float(student_t.ppf((1 + coverage) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return float(x.mean()) - reach, float(x.mean()) + reach


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 or np.isnan(p) else f"{p:.0e}"


def _patients(n: int) -> str:
    return f"{n} patient" if n == 1 else f"{n} patients"
