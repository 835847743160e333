"""Calibration of class scores: a scale and an offset for each class, fitted on training locations.

Scores that rank locations well within a class may be of no use across classes: one class's words lie closer to all
tissue than another's. A logistic regression in which class c has the logit `scale_c x score_c + offset_c` (vector
scaling; Guo et al., arXiv 1706.04599) puts them on one footing. Scales are not below zero, so that training may weigh
what the words say, never turn it round; every class weighs alike, whatever its number of locations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from triglyph.errors import ContractError

Floats = NDArray[np.float64]

RIDGE = 1e-3
"""Penalty on squared scales of standardised scores: keeps them finite where classes are told apart without error."""

HALF_WAY = 0.5
"""How much of the training classes' frequency an annotation expects; `benchmarks/annotate_calibration.py`."""


@dataclass(frozen=True)
class Calibration:
    """(classes,) each."""

    scale: Floats
    offset: Floats

    def __call__(self, scores: Floats) -> Floats:
        """(k, classes) scores on one footing."""
        return np.asarray(scores * self.scale + self.offset)

    def expecting(self, share: Floats, *, power: float = HALF_WAY) -> Calibration:
        """For tissue in which classes are as frequent as `share` (classes,) to the power `power`.

        0 expects all alike, which finds the most of rare classes and drowns them in false alarms; 1 expects the shares
        themselves, and rare classes are hardly ever answered. Macro F1 is highest between the two.
        """
        return Calibration(self.scale, self.offset + power * np.log(share))


def fit_calibration(scores: Floats, codes: NDArray[np.intp]) -> Calibration:
    """Fit scales and offsets.

    Parameters
    ----------
    scores
        (n, classes)
    codes
        (n,) true class of each, from 0; every class occurs.

    Raises
    ------
    ContractError
        A class does not occur, or there is only one.
    """
    n, k = scores.shape
    sizes = np.bincount(codes, minlength=k)
    if k < 2 or not sizes.all():
        raise ContractError(
            f"{int((sizes > 0).sum())} of {k} classes have training locations", mend="calibrate two or more that have"
        )
    mean, spread = scores.mean(axis=0), scores.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    z = (scores - mean) / spread
    weight = 1.0 / (k * sizes[codes])
    truth = np.eye(k)[codes]

    def objective(theta: Floats) -> tuple[float, Floats]:
        scale, offset = theta[:k], theta[k:]
        logits = z * scale + offset
        loss = float(weight @ (logsumexp(logits, axis=1) - logits[np.arange(n), codes]))
        error = weight[:, None] * (softmax(logits, axis=1) - truth)
        slope = np.concatenate([(error * z).sum(axis=0) + RIDGE * scale, error.sum(axis=0)])
        return loss + 0.5 * RIDGE * float(scale @ scale), slope

    start = np.concatenate([np.ones(k), np.zeros(k)])
    bounds = [(0.0, None)] * k + [(None, None)] * k
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12}).x
    scale = found[:k] / spread
    return Calibration(scale, found[k:] - scale * mean)
