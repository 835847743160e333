"""What `triglyph annotate --calibration` is worth, on simulated tissue: macro F1 of the label, raw and calibrated.

    python benchmarks/annotate_calibration.py [--train 12] [--test 24] [--seeds 3]

Scores have the faults that zero-shot scores are known for: they rank locations within a class and compare classes
badly. The score of a class is its true share of the location, moved by noise of the location, by an offset of class and
patient, and by an offset of the class alone, the same everywhere, which makes some classes take all. The calibration is
fitted on labelled locations of the training patients, and applied to patients held out, twice: on all their locations,
and on a draw of them in which the frequent classes of training are the rare ones (a location is drawn with a weight of
one over the squared share of its class in training).

Target: under that shift at least 1.5 times the raw macro F1 of biased classes, and no loss over 0.01 without it, biased
or not. `all alike` is the calibration that expects every class as often as any other. Values are means over patients,
seeds of noise and offsets averaged inside; intervals are of the difference from raw, over patients.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import f1_score

from triglyph.metrics.bootstrap import Resamples
from triglyph.metrics.calibration import HALF_WAY, fit_calibration
from triglyph.tissue.simulate.knobs.names import DOMAINS
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen

NOISE, OF_PATIENT = 0.25, 0.08
"""Standard deviations of what is added to true shares; they are between 0 and 1."""
DRAWN = 400
"""Locations of a patient under the shift."""
RAW, HALF, ALIKE = "raw", "calibrated", "all alike"

Floats = NDArray[np.float64]
Patient = tuple[Floats, NDArray[np.intp]]


def patients(name: str, n: int) -> list[Patient]:
    """True shares (locations, classes) and labels of each patient's labelled locations."""
    world, out = preset(name), []
    for p in range(n):
        specimen = Specimen(world, p, 0)
        known = np.flatnonzero(specimen.labels != "")
        codes = [DOMAINS.index(label) for label in specimen.labels[known]]
        out.append((specimen.domain_shares[known], np.array(codes, dtype=np.intp)))
    return out


def scored(made: list[Patient], *, bias: float, rng: np.random.Generator) -> list[Patient]:
    """Shares turned into scores such as a model gives."""
    k = len(DOMAINS)
    offsets = bias * rng.normal(size=k)
    return [
        (0.1 * (shares + NOISE * rng.normal(size=shares.shape) + OF_PATIENT * rng.normal(size=k) + offsets), codes)
        for shares, codes in made
    ]


def macro_f1(scores: Floats, codes: NDArray[np.intp]) -> float:
    """Mean F1 of the classes that the patient has."""
    return float(f1_score(codes, scores.argmax(axis=1), labels=np.unique(codes), average="macro"))


def measure(taught: list[Patient], asked: list[Patient], rng: np.random.Generator) -> dict[tuple[str, str], Floats]:
    """(shift, answer) -> (patients,) macro F1; the probability that is told; the share that is right."""
    scores, codes = (np.concatenate(part) for part in zip(*taught, strict=True))
    there, codes = np.unique(codes, return_inverse=True)
    share = np.bincount(codes) / len(codes)
    alike = fit_calibration(scores[:, there], codes)
    answers = {RAW: lambda s: s, HALF: alike.expecting(share, power=HALF_WAY), ALIKE: alike}
    # Classes that training lacks are asked of nobody.
    kept = [(s[np.isin(c, there)][:, there], np.searchsorted(there, c[np.isin(c, there)])) for s, c in asked]
    weights = [(w := 1.0 / np.maximum(share[c], 0.01) ** 2) / w.sum() for _, c in kept]
    rows = [rng.choice(len(w), DRAWN, p=w) for w in weights]
    sides = {"no shift": kept, "shifted": [(s[r], c[r]) for (s, c), r in zip(kept, rows, strict=True)]}
    out = {
        (shift, answer): np.array([macro_f1(f(s), c) for s, c in side])
        for shift, side in sides.items()
        for answer, f in answers.items()
    }
    half = answers[HALF]
    for shift, side in sides.items():
        out[shift, "told"] = np.array([softmax(half(s), axis=1).max(axis=1).mean() for s, _ in side])
        out[shift, "right"] = np.array([(half(s).argmax(axis=1) == c).mean() for s, c in side])
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", type=int, default=12)
    parser.add_argument("--test", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--preset", default="her2st-like")
    given = parser.parse_args()
    made = patients(given.preset, given.train + given.test)
    print(f"{given.preset}: {given.train} training and {given.test} held-out patients, {given.seeds} seeds")
    for bias in (0.0, 0.5, 1.0, 2.0):
        found: dict[tuple[str, str], list[Floats]] = {}
        for seed in range(given.seeds):
            rng = np.random.default_rng(seed)
            some = scored(made, bias=bias, rng=rng)
            for key, values in measure(some[: given.train], some[given.train :], rng).items():
                found.setdefault(key, []).append(values)
        mean = {key: np.mean(values, axis=0) for key, values in found.items()}
        print(f"offsets of classes, {bias:g} standard deviations of a share")
        for shift in ("no shift", "shifted"):
            raw, half, alike = (mean[shift, answer] for answer in (RAW, HALF, ALIKE))
            draws = Resamples(np.arange(len(raw))).mean((half - raw)[:, None])[:, 0]
            low, high = np.percentile(draws, [2.5, 97.5])
            print(
                f"  {shift:<9} raw {raw.mean():.3f}  calibrated {half.mean():.3f} (x {half.mean() / raw.mean():.2f}, "
                f"{(half - raw).mean():+.3f} [{low:+.3f}, {high:+.3f}], {(half > raw).sum()}/{len(raw)} patients)  "
                f"all alike {alike.mean():.3f}  probability {mean[shift, 'told'].mean():.3f}, "
                f"right {mean[shift, 'right'].mean():.3f}"
            )


if __name__ == "__main__":
    main()
