"""Linear probes in the forms that the field uses; A, B and C rank encoders differently, so each has its name.

* `default`: multinomial logistic regression (scikit-learn), C = 0.1, classes balanced, features standardised.
* `her2st`: the same without standardising, as in the published figures of her2st.
* `A` (UNI): mean cross-entropy + 0.5 / C x ||W||_F with C = D x K / 100, the norm not squared and the bias free, by
  full-batch L-BFGS. scikit-learn's penalty (sum of cross-entropies, squared norm) is another problem.
* `B` (TITAN): C = 1 / lambda over 45 values of lambda from 1e-5 to 1e6, by log-loss on patients that training sets
  aside; the chosen probe is not fitted again on all.
* `C` (Threads): C = 0.5, classes balanced, at most 10,000 iterations.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from triglyph.bench.protocol import FoldError

Floats = NDArray[np.float64]
Strings = NDArray[np.str_]
log = logging.getLogger(__name__)

Variant = Literal["default", "her2st", "A", "B", "C"]
LAMBDAS = tuple(float(v) for v in np.logspace(-5, 6, 45))
INNER_SHARE = 0.2
"""Share of the training patients that variant B chooses lambda on; one at least."""


@dataclass(frozen=True)
class Form:
    """The constants of a variant, and what it is in words."""

    summary: str
    c: float | None
    """None: derived or chosen."""
    max_iter: int
    balanced: bool = False
    standardise: bool = False
    fitted: str = "training sections"


FORMS: dict[Variant, Form] = {
    "default": Form("standardised features, classes balanced", c=0.1, max_iter=2000, balanced=True, standardise=True),
    "her2st": Form("features as they are, classes balanced", c=0.1, max_iter=2000, balanced=True),
    "A": Form("UNI: mean cross-entropy + 0.5 / C x ||W||_F, C = D x K / 100, bias free", c=None, max_iter=1000),
    "B": Form(
        "TITAN: 45 values of lambda from 1e-5 to 1e6, no refit",
        c=None,
        max_iter=500,
        fitted=f"training sections; lambda by log-loss on {INNER_SHARE:.0%} of the training patients (one at least), "
        "the weights on the others",
    ),
    "C": Form("Threads: features as they are, classes balanced", c=0.5, max_iter=10000, balanced=True),
}


@dataclass(frozen=True)
class Probe:
    """A fitted linear classifier."""

    classes: tuple[str, ...]
    decision: Callable[[Floats], Floats]
    """(k, d) features -> (k, classes) scores."""
    steps: int = 0
    """Iterations of the fit."""

    def predict(self, x: Floats) -> Strings:
        """(k,) the class of the highest score; the first among equals."""
        return np.array(self.classes)[self.decision(x).argmax(axis=1)]


def fit_probe(
    x: Floats,
    y: Strings,
    *,
    variant: Variant,
    patients: Strings,
    c: float | None = None,
    max_iter: int | None = None,
    seed: int = 0,
) -> Probe:
    """Fit a probe.

    Parameters
    ----------
    x, y
        (n, d) features and (n,) labels of two classes or more.
    patients
        (n,) whose they are: variant B sets some aside.
    c, max_iter
        Other constants than the variant's own; `c` only where it has one.
    seed
        Of the patients that variant B sets aside.

    Raises
    ------
    FoldError
        One class only; or variant B with one patient.
    """
    form = FORMS[variant]
    steps = form.max_iter if max_iter is None else max_iter
    if len(np.unique(y)) < 2:
        raise FoldError(
            f"{len(np.unique(y))} class to train on, a probe needs 2", mend="train on sections with more classes"
        )
    if variant == "A":
        probe = fit_frobenius(x, y, max_iter=steps)
    elif variant == "B":
        probe = _fit_chosen(x, y, patients, max_iter=steps, seed=seed)
    else:
        strength = form.c if c is None else c
        probe = _fit_logistic(x, y, c=strength, max_iter=steps, balanced=form.balanced, standardise=form.standardise)
    if probe.steps >= steps:
        log.warning("the probe of variant %s stopped after %d iterations", variant, steps)
    return probe


def _fit_logistic(
    x: Floats, y: Strings, *, c: float | None, max_iter: int, balanced: bool = False, standardise: bool = False
) -> Probe:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x) if standardise else None
    model = LogisticRegression(C=c, class_weight="balanced" if balanced else None, max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said of the probe that is used
        model.fit(x if scaler is None else scaler.transform(x), y)

    def decision(new: Floats) -> Floats:
        scores = np.asarray(model.decision_function(new if scaler is None else scaler.transform(new)))
        return np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores

    return Probe(tuple(str(name) for name in model.classes_), decision, int(model.n_iter_.max()))


# ---- A


def fit_frobenius(x: Floats, y: Strings, *, max_iter: int, penalty: float | None = None) -> Probe:
    """Variant A: the minimum of mean cross-entropy + penalty x ||W||_F over weights W (d, K) and biases.

    The problem is convex, so where the search starts does not matter: at zero weights and the best biases for them.
    There the norm has no gradient; the weights stay zero if the cross-entropy's is no longer than the penalty, and
    else the search leaves along the steepest descent.

    Parameters
    ----------
    penalty
        0.5 / C; left out, C = d x K / 100.
    """
    classes, codes = np.unique(y, return_inverse=True)
    n, d, k = len(x), x.shape[1], len(classes)
    weight = 0.5 / (d * k / 100.0) if penalty is None else penalty
    truth = np.eye(k)[codes]

    def objective(theta: Floats) -> tuple[float, Floats]:
        w, b = theta[: d * k].reshape(d, k), theta[d * k :]
        logits = x @ w + b
        loss = float((logsumexp(logits, axis=1) - logits[np.arange(n), codes]).mean())
        error = (softmax(logits, axis=1) - truth) / n
        slope = x.T @ error
        length = float(np.linalg.norm(w))
        if length > 0:
            slope = slope + weight * w / length
        else:
            steep = float(np.linalg.norm(slope))
            slope = slope * max(0.0, 1.0 - weight / steep) if steep > 0 else slope
        return loss + weight * length, np.concatenate([slope.ravel(), error.sum(axis=0)])

    start = np.concatenate([np.zeros(d * k), np.log(truth.mean(axis=0))])
    if not objective(start)[1][: d * k].any():
        log.warning("variant A: %d features x %d classes are penalised so strongly that all weights are zero", d, k)
        found, steps = start, 0
    else:
        result = minimize(
            objective, start, jac=True, method="L-BFGS-B", options={"maxiter": max_iter, "ftol": 1e-14, "gtol": 1e-8}
        )
        found, steps = result.x, result.nit
    w, b = found[: d * k].reshape(d, k), found[d * k :]
    return Probe(tuple(classes.tolist()), lambda new: np.asarray(new @ w + b), steps)


# ---- B


def _fit_chosen(x: Floats, y: Strings, patients: Strings, *, max_iter: int, seed: int) -> Probe:
    aside = np.isin(patients, set_aside(y, patients, seed=seed))
    best: tuple[float, Any] = (np.inf, None)
    classes = np.unique(y[~aside])
    scored = aside & np.isin(y, classes)
    if lost := sorted(set(y.tolist()) - set(classes.tolist())):
        log.warning("variant B: only patients set aside have %s, so that the probe does not know it", ", ".join(lost))
    if not scored.any() or len(classes) < 2:
        raise FoldError(
            "no patients can be set aside that share classes with two or more classes of the others",
            mend="train on more patients, or take another variant",
        )
    codes = np.searchsorted(classes, y[scored])
    for lam in LAMBDAS:
        probe = _fit_logistic(x[~aside], y[~aside], c=1.0 / lam, max_iter=max_iter)
        scores = probe.decision(x[scored])
        if len(classes) == 2:
            scores = scores / 2.0  # both columns are the one log odds
        loss = float((logsumexp(scores, axis=1) - scores[np.arange(len(codes)), codes]).mean())
        if loss < best[0]:
            best = loss, probe
    chosen: Probe = best[1]
    return chosen


def set_aside(y: Strings, patients: Strings, *, seed: int) -> list[str]:
    """Patients to choose on: of a seeded order's neighbouring groups, the first whose rest keeps the most classes.

    Raises
    ------
    FoldError
        There is one patient.
    """
    people = np.unique(patients)
    if len(people) < 2:
        raise FoldError(
            "variant B chooses lambda on patients set aside, and training has one patient",
            mend="train on two patients or more, or take another variant",
        )
    size = min(max(1, round(INNER_SHARE * len(people))), len(people) - 1)
    order = np.random.default_rng(seed).permutation(people)
    groups = [[str(order[(i + j) % len(order)]) for j in range(size)] for i in range(len(order))]
    return max(groups, key=lambda g: len(np.unique(y[~np.isin(patients, g)])))
