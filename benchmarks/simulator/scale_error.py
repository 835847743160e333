"""What a scale error costs: every slide read at its own scale, and every slide read as if it were 0.5 µm/px.

    uv run python benchmarks/simulator/scale_error.py COHORT [--patients 24] [--every 4] [--out FILE.json]

Two kinds of features of the same windows: stain and texture, which are mostly colour; and nuclear morphology in pixels,
the section's stain taken out, which sees scale as a network does that was trained at one. Probes are trained on some
patients and tested on others. As if at 0.5 means what a pipeline does that trusts a constant: it cuts a window of so
many pixels and calls it so many µm. The control is a cohort whose patients all have one scale
(`--set stain.mpp=[0.5,0.5]`), on which both readings are the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from figure_labels import CANCER
from nuclear import DIM as NUCLEAR_DIM
from nuclear import Stain, nuclear_features
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import roc_auc_score

from triglyph.encoders.stain_texture import DIM, window_features
from triglyph.metrics.correlation import mean_defined, pearson
from triglyph.metrics.expression import log1p_cp10k, most_variable
from triglyph.storage import write_json
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.section import Section

CLAIMED = 0.5
"""µm per pixel that the careless reading takes every slide to have."""
OUT_PX = 160
WINDOW_UM = 112.0
N_GENES = 50
STAINED = 48
"""Windows that a section's haematoxylin is put into units by."""
CANCER_METRIC, EXPRESSION_METRIC = "cancer AUROC", "expression, Pearson"
Floats = NDArray[np.float64]
Windows = NDArray[np.uint8]


def stain_texture(windows: Windows) -> Floats:
    """(n, 52), mostly colour."""
    return np.stack([window_features(window) for window in windows]) if len(windows) else np.empty((0, DIM))


def nuclear_morphology(windows: Windows) -> Floats:
    """(n, dim) of nuclei and of the energy at each scale, in pixels, once the section's stain is taken out."""
    if not len(windows):
        return np.empty((0, NUCLEAR_DIM))
    some = np.unique(np.linspace(0, len(windows) - 1, STAINED).astype(int))
    stain = Stain.of([windows[i] for i in some])
    return np.stack([nuclear_features(window, stain) for window in windows])


FEATURES: dict[str, Callable[[Windows], Floats]] = {
    "stain and texture": stain_texture,
    "nuclear morphology": nuclear_morphology,
}


def read(section: Section, *, careless: bool, every: int = 1) -> Windows:
    """(n, px, px, 3) windows of `WINDOW_UM` around each location, or of what passes for that at 0.5 µm/px."""
    reader = section.image()
    size_um = WINDOW_UM * (reader.mpp / CLAIMED if careless else 1.0)
    centres = section.centres_um[::every]
    windows = np.empty((len(centres), OUT_PX, OUT_PX, 3), dtype=np.uint8)
    for i, window in reader.read_many(centres, size_um, OUT_PX):
        windows[i] = window
    reader.close()
    return windows


def main() -> None:
    """Read, probe, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--sections-per-patient", type=int, default=1)
    parser.add_argument("--patients", type=int, help="the first so many; all unless given")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th location")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cohort = Cohort.open(given.cohort)
    sections = [
        s for p in sorted(set(cohort.patients.values()))[: given.patients]
        for s in [x for x in cohort if x.patient == p and x.has_image()][: given.sections_per_patient]
    ]  # fmt: skip
    seen: dict[tuple[str, bool], list[Floats]] = {(name, c): [] for name in FEATURES for c in (False, True)}
    for section in sections:
        for careless in (False, True):
            windows = read(section, careless=careless, every=given.every)
            for name, of in FEATURES.items():
                seen[name, careless].append(of(windows))
    scores = {
        f"{name}, {'as if at ' + str(CLAIMED) if careless else 'own scale'}": probe(
            sections, found, every=given.every, folds=given.folds
        )
        for (name, careless), found in seen.items()
    }
    people = [s.patient for s in sections]
    print(f"{len(sections)} sections of {len(set(people))} patients, scales", _scales(sections))
    for name in FEATURES:
        own, wrong = scores[f"{name}, own scale"], scores[f"{name}, as if at {CLAIMED}"]
        for metric in own:
            print(f"{name:20s} {metric:20s}", difference(own[metric], wrong[metric], people))
    if given.out:
        write_json(given.out, {"scales": [float(s.image_info().mpp) for s in sections], "scores": scores})


def probe(sections: list[Section], seen: list[Floats], *, every: int = 1, folds: int = 5) -> dict[str, list[float]]:
    """Scores of every section by probes of other patients; `seen` are its features at every so many-th location."""
    scores = {metric: [float("nan")] * len(sections) for metric in (CANCER_METRIC, EXPRESSION_METRIC)}
    people = sorted({s.patient for s in sections})
    fold_of = np.array([people.index(s.patient) % folds for s in sections])
    labels = [s.labels[::every] for s in sections]
    logs = [log1p_cp10k(s.expression()[0][::every]) for s in sections]
    for fold in range(folds):
        train, test = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        x = np.concatenate([seen[i] for i in train])
        mean, spread = x.mean(0), x.std(0) + 1e-9
        of_all = np.concatenate([labels[i] for i in train])
        given = of_all != ""
        classifier = LogisticRegression(max_iter=2000, class_weight="balanced", C=0.1)
        classifier.fit(((x - mean) / spread)[given], np.isin(of_all, CANCER)[given])
        y = sp.vstack([logs[i] for i in train]).tocsr()
        genes = most_variable(y, n_genes=N_GENES)
        ridge = RidgeCV(np.logspace(0, 4, 9)).fit((x - mean) / spread, y[:, genes].toarray())
        for i in test:
            z, known = (seen[i] - mean) / spread, labels[i] != ""
            cancer = np.isin(labels[i], CANCER)[known]
            if 0 < cancer.sum() < len(cancer):
                scores[CANCER_METRIC][i] = float(roc_auc_score(cancer, classifier.decision_function(z)[known]))
            r = pearson(ridge.predict(z), logs[i][:, genes].toarray())
            scores[EXPRESSION_METRIC][i] = mean_defined(r).value
    return scores


def difference(own: list[float], wrong: list[float], people: list[str]) -> str:
    """Both means over patients, and their difference with its interval."""
    order = sorted(set(people))
    a, b = (
        np.array([np.nanmean([v for v, q in zip(of, people, strict=True) if q == p]) for p in order])
        for of in (own, wrong)
    )
    low, high = _interval(a - b)
    return (
        f"own scale {np.nanmean(a):.3f}   as if at {CLAIMED}: {np.nanmean(b):.3f}   "
        f"difference {np.nanmean(a - b):+.3f} [{low:+.3f}, {high:+.3f}]   "
        f"better in {int((a > b).sum())}/{int(np.isfinite(a - b).sum())}"
    )


def _interval(differences: Floats) -> tuple[float, float]:
    """95 % percentile bootstrap over patients of the mean difference."""
    values = differences[np.isfinite(differences)]
    drawn = np.random.default_rng(0).choice(values, (4000, len(values))).mean(1)
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def _scales(sections: list[Section]) -> str:
    mpp = [s.image_info().mpp for s in sections]
    return f"{min(mpp):.2f} to {max(mpp):.2f} µm/px"


if __name__ == "__main__":
    main()
