"""What a scale error costs: every slide read at its own scale, and every slide read as if it were 0.5 µm/px.

    uv run python benchmarks/simulator/scale_error.py COHORT [--patients 24] [--folds 5] [--out FILE.json]

Probes are trained on some patients and tested on others. As if at 0.5 means what a pipeline does that trusts a
constant: it cuts a window of so many pixels and calls it so many µm. The control is a cohort whose patients all have
one scale (`--set stain.mpp=[0.5,0.5]`), on which both readings are the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from figure_labels import CANCER
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import roc_auc_score

from triglyph.encoders.stain_texture import window_features
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
Floats = NDArray[np.float64]


def features(section: Section, *, careless: bool) -> Floats:
    """(n, 52) of windows of `WINDOW_UM` around each location, or of what passes for that at 0.5 µm/px."""
    reader = section.image()
    size_um = WINDOW_UM * (reader.mpp / CLAIMED if careless else 1.0)
    rows = np.empty((section.n_locations, 52))
    for i, window in reader.read_many(section.centres_um, size_um, OUT_PX):
        rows[i] = window_features(window)
    reader.close()
    return rows


def main() -> None:
    """Read, probe, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--sections-per-patient", type=int, default=1)
    parser.add_argument("--patients", type=int, help="the first so many; all unless given")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cohort = Cohort.open(given.cohort)
    sections = [
        s for p in sorted(set(cohort.patients.values()))[: given.patients]
        for s in [x for x in cohort if x.patient == p and x.has_image()][: given.sections_per_patient]
    ]  # fmt: skip
    people = np.array([s.patient for s in sections])
    fold_of = {p: i % given.folds for i, p in enumerate(sorted(set(people)))}
    table: dict[str, dict[str, list[float]]] = {}
    for careless in (False, True):
        seen = [features(s, careless=careless) for s in sections]
        name = f"every slide as if at {CLAIMED} µm/px" if careless else "every slide at its own scale"
        table[name] = _probe(sections, seen, np.array([fold_of[p] for p in people]), given.folds)
    own, wrong = table.values()
    print(f"{len(sections)} sections of {len(set(people))} patients, scales", _scales(sections))
    for metric in own:
        a, b = np.array(own[metric]), np.array(wrong[metric])
        low, high = _interval(a - b)
        print(
            f"{metric:28s} own scale {np.nanmean(a):.3f}   as if at {CLAIMED}: {np.nanmean(b):.3f}   "
            f"difference {np.nanmean(a - b):+.3f} [{low:+.3f}, {high:+.3f}]   better in {int((a > b).sum())}/{len(a)}"
        )
    if given.out:
        write_json(given.out, {"scales": [float(s.image_info().mpp) for s in sections], "scores": table})


def _probe(sections: list[Section], seen: list[Floats], folds: NDArray[np.int64], n: int) -> dict[str, list[float]]:
    """Scores of every section by probes of other patients."""
    scores: dict[str, list[float]] = {"cancer AUROC": [], "expression, Pearson": []}
    counts = [s.expression()[0] for s in sections]
    logs = [log1p_cp10k(c) for c in counts]
    for fold in range(n):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        x = np.concatenate([seen[i] for i in train])
        mean, spread = x.mean(0), x.std(0) + 1e-9
        labels = np.concatenate([sections[i].labels for i in train])
        given = labels != ""
        probe = LogisticRegression(max_iter=2000, class_weight="balanced", C=0.1)
        probe.fit(((x - mean) / spread)[given], np.isin(labels, CANCER)[given])
        y = sp.vstack([logs[i] for i in train]).tocsr()
        genes = most_variable(y, n_genes=N_GENES)
        ridge = RidgeCV(np.logspace(0, 4, 9)).fit((x - mean) / spread, y[:, genes].toarray())
        for i in test:
            z, truth = (seen[i] - mean) / spread, sections[i].labels
            known = truth != ""
            cancer = np.isin(truth, CANCER)[known]
            both = 0 < cancer.sum() < len(cancer)
            score = probe.decision_function(z)[known]
            scores["cancer AUROC"].append(float(roc_auc_score(cancer, score)) if both else float("nan"))
            r = pearson(ridge.predict(z), logs[i][:, genes].toarray())
            scores["expression, Pearson"].append(mean_defined(r).value)
    return scores


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
