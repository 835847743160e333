"""A picture of what Stamp's gene encoder says of patients that it has not seen: labels, predicted classes, clusters.

    uv run python benchmarks/stamp_picture.py COHORT --runs FOLDER --out stamp_her2st.jpg [--arm contextual] [--seed 0]

COHORT and FOLDER are those of `stamp_her2st`. For each patient the encoder and the probe (C = 1) have seen the other
three alone; clusters are k-means at the true number of classes, from one start, coloured like the label that they share
most with. Locations without a label are grey in the first column.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import roc_auc_score

from stamp_her2st import CANCER, LABELLED, splits, subject
from triglyph.bench.labels.classes import known_labels
from triglyph.bench.labels.probes import fit_probe
from triglyph.tissue.cohort import Cohort

COLOURS = {
    "invasive cancer": "#b2182b",
    "cancer in situ": "#f4a582",
    "connective tissue": "#4393c3",
    "adipose tissue": "#f7d65b",
    "immune infiltrate": "#1b7837",
    "breast glands": "#762a83",
}
NOTHING = "#dddddd"
PENALTY = 1.0
COLUMNS = ("pathologist", "predicted class", "rank of cancer score", "clusters")
HALF_MM = 2.35
"""Half of the side of what is shown of each section, for one scale."""


def coloured(labels: NDArray[np.str_], clusters: NDArray[np.intp]) -> NDArray[np.str_]:
    """The label of each cluster where every cluster has a label of its own and most locations agree."""
    names = np.array(sorted(set(labels.tolist()) - {""}))
    share = np.array([[-((clusters == k) & (labels == name)).sum() for name in names] for k in np.unique(clusters)])
    rows, columns = linear_sum_assignment(share)
    return names[columns[np.argsort(rows)]][clusters]


def main() -> None:
    """Draw one row a patient."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arm", default="contextual")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    cohort = Cohort.open(asked.cohort)
    _, labelled = splits(cohort)
    figure, axes = plt.subplots(len(LABELLED), len(COLUMNS), figsize=(11, 12), squeeze=False)
    for row, section_id in enumerate(LABELLED):
        fold = next(f for f in labelled.folds if section_id in f.test)
        run = asked.runs / asked.arm / f"seed-{asked.seed}" / f"fold-{fold.name}" / "run"
        encoder = subject(run, "own+around", name=asked.arm, seed=asked.seed)
        train = [(encoder.embed(cohort[s], "expression"), known_labels(cohort[s])) for s in fold.train]
        kept = [present & (labels != "") for (_, present), labels in train]
        x = np.concatenate([values[k] for ((values, _), _), k in zip(train, kept, strict=True)]).astype(np.float64)
        y = np.concatenate([labels[k] for (_, labels), k in zip(train, kept, strict=True)])
        people = np.concatenate([np.full(k.sum(), s) for s, k in zip(fold.train, kept, strict=True)])
        section = cohort[section_id]
        values, present = encoder.embed(section, "expression")
        values, labels = values[present].astype(np.float64), known_labels(section)[present]
        places = section.centres_um[present] / 1000.0
        places = places - (places.min(axis=0) + places.max(axis=0)) / 2.0
        classes = fit_probe(x, y, variant="her2st", c=PENALTY, patients=people).predict(values)
        inside = np.isin(y, CANCER["cancer"])
        binary = fit_probe(x, np.where(inside, "cancer", "other"), variant="her2st", c=PENALTY, patients=people)
        score = binary.decision(values)[:, binary.classes.index("cancer")]
        known = labels != ""
        k = len(np.unique(labels[known]))
        clusters = KMeans(k, n_init=1, random_state=0).fit(values[known]).predict(values)
        auroc = roc_auc_score(np.isin(labels[known], CANCER["cancer"]), score[known])
        shown = (labels, classes, score, coloured(labels, clusters))
        for column, what in enumerate(shown):
            axis = axes[row, column]
            if what is score:
                ranked = score.argsort().argsort() / len(score)
                axis.scatter(*places.T, c=ranked, cmap="magma", s=24, marker="s", linewidths=0)
                axis.set_title(f"{COLUMNS[column]}, AUROC {auroc:.2f}", fontsize=10)
            else:
                axis.scatter(*places.T, c=[COLOURS.get(str(c), NOTHING) for c in what], s=24, marker="s", linewidths=0)
                axis.set_title(COLUMNS[column], fontsize=10)
            axis.set(aspect="equal", xlim=(-HALF_MM, HALF_MM), ylim=(HALF_MM, -HALF_MM))
            axis.set_xticks([])
            axis.set_yticks([])
            for side in axis.spines.values():
                side.set_visible(False)
        axes[row, 0].set_ylabel(f"patient {section.patient}", fontsize=11)
    low, left = axes[-1, 0], -HALF_MM + 0.1
    low.plot([left, left + 1.0], [HALF_MM, HALF_MM], color="black", linewidth=2, clip_on=False)
    low.annotate("1 mm", (left + 0.5, HALF_MM), xytext=(0, -12), textcoords="offset points", ha="center", fontsize=9)
    handles = [plt.Line2D([], [], marker="s", linestyle="", color=c, label=name) for name, c in COLOURS.items()]
    figure.legend(handles=handles, loc="lower center", ncol=6, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.035, 1, 1))
    figure.savefig(asked.out, dpi=95, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    main()
