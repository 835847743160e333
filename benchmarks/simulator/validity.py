"""Do plain methods rank alike on simulated and on real tissue?

    uv run python benchmarks/simulator/validity.py REAL_COHORT SIMULATED_COHORT [--panel GENES.txt] [--out FOLDER]

Three tasks, the same code and metric on both cohorts: expression from the image (in the same block, and from one
patient to another), genes from genes, cancer from expression. Each task's methods are ranked by their mean over
patients on either cohort; the rank correlations are printed with the number of methods, whatever they are. Methods are
few and so are patients of the real cohort: no significance is claimed. Nothing in the simulation was chosen by these
numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from calibration import first_patients, of_cohort, simulated, summary
from figure_genes import genes
from figure_image import image
from scipy.stats import kendalltau, spearmanr
from slices import Slice
from validity_methods import GENES, IMAGE, cancer

from triglyph.metrics.result import Result
from triglyph.storage import write_json

TASKS = ("image", "genes", "labels")
LOWER_IS_BETTER = ("mse, mean removed",)
JUDGED = {
    "image": ("pearson",),
    "genes": ("spearman, depth removed", "mse, mean removed"),
    "labels": ("cancer AUROC",),
}
"""Task -> the metrics that methods are ranked by."""


def scores(
    slices: Sequence[Slice],
    *,
    only: Sequence[str] = TASKS,
    panel: Sequence[str] | None = None,
    turned: bool = True,
    folds: int = 8,
) -> list[Result]:
    """Rows of every method on every task that the slices have everything for."""
    out: list[Result] = []
    if "image" in only and any(s.features is not None for s in slices):
        out += image(slices, baselines=IMAGE, turned=turned, folds=folds)
    if "genes" in only:
        out += genes(slices, panel=panel, baselines=GENES, folds=folds)
    if "labels" in only and any((s.labels != "").any() for s in slices):
        out += cancer(slices, folds=folds)
    return [r for r in out if r.role == "baseline" and r.metric in JUDGED[r.task]]


def agreement(real: Sequence[Result], made: Sequence[Result]) -> pd.DataFrame:
    """Both means of every method that both cohorts have, a row each, worst first within its task."""
    both = pd.DataFrame({"real": summary(real), "simulated": summary(made)}).dropna()
    sign = np.where(both.index.get_level_values("metric").isin(LOWER_IS_BETTER), -1.0, 1.0)
    return (
        both.assign(better=both["real"] * sign)
        .sort_values(["figure", "split", "metric", "better"])
        .drop(columns="better")
    )


def correlations(both: pd.DataFrame) -> pd.DataFrame:
    """Spearman and Kendall rank correlation of the methods, task by task, and how many methods there are."""
    lines = {}
    for key, of in both.groupby(["figure", "split", "metric"], sort=False):
        enough = len(of) > 2
        lines[key] = {
            "methods": len(of),
            "spearman": spearmanr(of["real"], of["simulated"]).statistic if enough else np.nan,
            "kendall": kendalltau(of["real"], of["simulated"]).statistic if enough else np.nan,
        }
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["figure", "split", "metric"])
    return frame


def markdown(both: pd.DataFrame, ranks: pd.DataFrame) -> str:
    """Two tables: rank correlations, then the means behind them."""
    lines = ["| task | where | metric | methods | Spearman | Kendall |", "| --- | --- | --- | --- | --- | --- |"]
    for (figure, split, metric), row in ranks.iterrows():
        lines.append(
            f"| {figure} | {split} | {metric} | {row['methods']:.0f} | {row['spearman']:.2f} | {row['kendall']:.2f} |"
        )
    lines += ["", "| task | where | metric | method | real | simulated |", "| --- | --- | --- | --- | --- | --- |"]
    for (figure, split, model, metric), row in both.iterrows():
        lines.append(f"| {figure} | {split} | {metric} | {model} | {row['real']:.3f} | {row['simulated']:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("simulated", type=Path)
    parser.add_argument("--only", action="append", choices=TASKS, help="may be given several times")
    parser.add_argument("--panel", type=Path, help="core genes of the real cohort, one a line")
    parser.add_argument("--encoder", default="stain-texture-level0")
    parser.add_argument("--patients", type=int, help="the first so many of each cohort")
    parser.add_argument("--folds", type=int, default=8, help="groups of patients where there are more patients")
    parser.add_argument("--out", type=Path, help="folder for validity.json and validity.md")
    given = parser.parse_args()
    only = tuple(given.only or TASKS)
    found = []
    for path in (given.real, given.simulated):
        made = simulated(path)
        slices = of_cohort(
            path,
            encoder=given.encoder if "image" in only else None,
            sections=first_patients(path, given.patients),
        )
        panel = None if made or given.panel is None else given.panel.read_text(encoding="utf-8").split()
        found.append(scores(slices, only=only, panel=panel, turned=not made, folds=given.folds))
    both = agreement(*found)
    ranks = correlations(both)
    text = markdown(both, ranks)
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "validity.md").write_text(text, encoding="utf-8")
        write_json(
            given.out / "validity.json",
            {
                "correlations": _records(ranks),
                "means": _records(both),
                "real": [r.model_dump(mode="json") for r in found[0]],
                "simulated": [r.model_dump(mode="json") for r in found[1]],
            },
        )


def _records(frame: pd.DataFrame) -> list[dict[str, object]]:
    plain = frame.reset_index()
    return [
        {str(k): (None if isinstance(v, float) and np.isnan(v) else v) for k, v in row.items()}
        for row in plain.to_dict("records")
    ]


if __name__ == "__main__":
    main()
