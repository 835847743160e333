"""What `triglyph annotate --calibration` is worth, on simulated tissue: macro F1 of the label, raw and calibrated.

    python benchmarks/annotate_calibration.py [--train 16] [--test 24] [--preset her2st-like]

Scores have the faults that zero-shot scores are known for (they rank locations within a class and compare classes
badly): the score of a class is its true share of the location, moved by noise of the location, by an offset of class
and patient, and by an offset of the class alone, the same everywhere, which makes some classes take all. The
calibration is fitted on labelled locations of the training patients, and applied to patients held out, twice: on all
their locations, and on a draw of them in which the frequent classes of training are the rare ones (weights of classes
are one over their squared share in training).

Target: under that shift at least 1.5 times the raw macro F1, and no loss over 0.01 without it, biased or not. Intervals
are of the difference, over patients.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import f1_score

from triglyph.metrics.bootstrap import Resamples
from triglyph.metrics.calibration import fit_calibration
from triglyph.tissue.simulate.knobs.names import DOMAINS
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen

NOISE, OF_PATIENT, BIAS = 0.25, 0.08, 0.6
"""Standard deviations of what is added to true shares; they are between 0 and 1."""
DRAWN = 400
"""Locations of a patient under the shift."""

Patient = tuple[NDArray[np.float64], NDArray[np.intp]]


def patients(name: str, n: int, *, bias: float, seed: int) -> list[Patient]:
    """Scores (locations, classes) and true classes of each patient's labelled locations."""
    world, rng = preset(name, seed=seed), np.random.default_rng(seed)
    offsets = bias * rng.normal(size=len(DOMAINS))
    out = []
    for p in range(n):
        specimen = Specimen(world, p, 0)
        known = np.flatnonzero(specimen.labels != "")
        shares = specimen.domain_shares[known]
        moved = shares + NOISE * rng.normal(size=shares.shape) + OF_PATIENT * rng.normal(size=len(DOMAINS))
        codes = np.array([DOMAINS.index(label) for label in specimen.labels[known]], dtype=np.intp)
        out.append((0.1 * (moved + offsets), codes))
    return out


def shifted(patient: Patient, prevalence: NDArray[np.float64], rng: np.random.Generator) -> Patient:
    """Locations drawn with replacement, so that what was frequent in training is rare."""
    scores, codes = patient
    weight = 1.0 / prevalence[codes] ** 2
    rows = rng.choice(len(codes), DRAWN, p=weight / weight.sum())
    return scores[rows], codes[rows]


def macro_f1(scores: NDArray[np.float64], codes: NDArray[np.intp]) -> float:
    """Mean F1 of the classes that the patient has."""
    return float(f1_score(codes, scores.argmax(axis=1), labels=np.unique(codes), average="macro"))


def measure(taught: list[Patient], asked: list[Patient]) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Without and with the shift: (patients,) macro F1, raw and calibrated."""
    scores, codes = (np.concatenate(part) for part in zip(*taught, strict=True))
    there = np.unique(codes)
    fitted = fit_calibration(scores[:, there], np.searchsorted(there, codes))
    prevalence = np.maximum(np.bincount(codes, minlength=len(DOMAINS)) / len(codes), 0.01)
    rng = np.random.default_rng(0)
    # Classes that training lacks are asked of neither.
    kept = [(s, c, np.isin(c, there)) for s, c in asked]
    some = [(s[k][:, there], np.searchsorted(there, c[k])) for s, c, k in kept if k.any()]
    drawn = [shifted(p, prevalence[there], rng) for p in some]
    told = np.concatenate([softmax(fitted(s), axis=1).max(1) for s, _ in some]).mean()
    right = np.concatenate([fitted(s).argmax(1) == c for s, c in some]).mean()
    print(f"  mean probability of the label {told:.3f}, share that is right {right:.3f} (no shift)")
    return {
        name: (np.array([macro_f1(s, c) for s, c in side]), np.array([macro_f1(fitted(s), c) for s, c in side]))
        for name, side in (("no shift", some), ("prevalence shifted", drawn))
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", type=int, default=16)
    parser.add_argument("--test", type=int, default=24)
    parser.add_argument("--preset", default="her2st-like")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{given.preset}, {given.train} training and {given.test} held-out patients, seed {given.seed}")
    for title, bias in (("classes biased", BIAS), ("classes not biased", 0.0)):
        made = patients(given.preset, given.train + given.test, bias=bias, seed=given.seed)
        print(title)
        for name, (raw, calibrated) in measure(made[: given.train], made[given.train :]).items():
            drawn = Resamples(np.arange(len(raw))).mean((calibrated - raw)[:, None])[:, 0]
            low, high = np.percentile(drawn, [2.5, 97.5])
            print(
                f"  {name:<19} raw {raw.mean():.3f}  calibrated {calibrated.mean():.3f}  "
                f"ratio {calibrated.mean() / raw.mean():.2f}  difference {calibrated.mean() - raw.mean():+.3f} "
                f"[{low:+.3f}, {high:+.3f}]  better in {(calibrated > raw).sum()}/{len(raw)} patients"
            )


if __name__ == "__main__":
    main()
