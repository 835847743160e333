"""Plain baselines on real tissue and on simulated tissue, beside each other.

    uv run python benchmarks/simulator/calibration.py COHORT... [--only labels] [--panel GENES.txt] [--out FOLDER]

Three figures, each in its own file, all of plain scikit-learn: tissue classes from expression (`figure_labels`),
expression from the image (`figure_image`), genes from genes (`figure_genes`). The same code reads every cohort; the
column `published` holds what is known of her2st, the real one. From Python the figures take slices made of tables:

    from calibration import Slice, genes, labels, summary
    rows = labels([Slice.of_table(table, id="P01-S1", patient="P01"), ...])
    print(show({"mine": rows}))

Measured on two busy cores: 4 patients, 12 sections of 2,430 genes, features included, take 57 s of CPU; her2st (22
sections, features stored) 54 s.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from figure_genes import HALF, genes
from figure_image import ONE, WITHIN, image
from figure_labels import POOLED, labels
from slices import Slice, of_cohort

from triglyph.metrics.result import Result
from triglyph.storage import write_json

__all__ = ["PUBLISHED", "Slice", "genes", "image", "labels", "of_cohort", "show", "summary"]

FIGURES = ("labels", "image", "genes")
_OUT = "patients left out"
_REMOVED, _CENTRED, _RAW, _MSE = "spearman, depth removed", "mse, mean removed", "spearman, pooled", "mse"
PUBLISHED: dict[tuple[str, str, str, str], float] = {
    ("labels", _OUT, "PCA-50", "cancer AUROC"): 0.831,
    ("labels", _OUT, "PCA-50", "balanced accuracy"): 0.555,
    ("labels", _OUT, "PCA-50", "ARI"): 0.230,
    ("labels", _OUT, "PCA-50 + 9 neighbours", "cancer AUROC"): 0.847,
    ("labels", _OUT, "PCA-50 + 9 neighbours", "balanced accuracy"): 0.593,
    ("labels", _OUT, "PCA-50 + 9 neighbours", "ARI"): 0.260,
    ("labels", _OUT, POOLED, "cancer AUROC"): 0.849,
    ("labels", _OUT, POOLED, "balanced accuracy"): 0.565,
    ("labels", _OUT, POOLED, "ARI"): 0.224,
    ("image", WITHIN, "haematoxylin mean", "pearson"): 0.297,
    ("image", WITHIN, "stain and texture", "pearson"): 0.465,
    ("image", WITHIN, "position", "pearson"): 0.446,
    ("image", ONE, "haematoxylin mean", "pearson"): 0.073,
    ("image", ONE, "stain and texture", "pearson"): 0.143,
    ("genes", _OUT, "Min-MAE", _REMOVED): 0.099,
    ("genes", _OUT, "Min-MAE", _CENTRED): 0.501,
    ("genes", _OUT, "Min-MAE", _RAW): 0.561,
    ("genes", _OUT, "Min-MAE", _MSE): 1.228,
    ("genes", _OUT, "library size (core)", _REMOVED): 0.015,
    ("genes", _OUT, "library size (core)", _CENTRED): 0.366,
    ("genes", _OUT, "library size (core)", _RAW): 0.628,
    ("genes", _OUT, "library size (core)", _MSE): 1.029,
    ("genes", _OUT, "ridge", _REMOVED): 0.171,
    ("genes", _OUT, "ridge", _CENTRED): 0.258,
    ("genes", _OUT, "ridge", _RAW): 0.684,
    ("genes", _OUT, "ridge", _MSE): 0.583,
    ("genes", _OUT, "ridge + neighbours", _REMOVED): 0.178,
    ("genes", _OUT, "ridge + neighbours", _CENTRED): 0.247,
    ("genes", _OUT, "ridge + neighbours", _RAW): 0.697,
    ("genes", _OUT, "ridge + neighbours", _MSE): 0.561,
    ("genes", _OUT, HALF, _REMOVED): 0.63,
}
"""(figure, split, model, metric) -> what is published for her2st (Andersson et al., 2021), means over its patients;
for images C2, C3 -> C4 (same block) and C2, C3 -> B4 (one patient -> another)."""


def summary(rows: Sequence[Result]) -> pd.Series:
    """Mean of every figure: over the rows of each tested patient, then over patients.

    Returns
    -------
    Indexed by figure, split, model and metric, in the order of the rows.
    """
    frame = pd.DataFrame(
        {
            "figure": [r.task for r in rows],
            "split": [r.split for r in rows],
            "model": [r.model for r in rows],
            "metric": [r.metric for r in rows],
            "patient": [r.fold for r in rows],
            "value": [np.nan if r.value is None else r.value for r in rows],
        }
    )
    key = ["figure", "split", "model", "metric"]
    return frame.groupby([*key, "patient"], sort=False)["value"].mean().groupby(key, sort=False).mean()


def show(columns: Mapping[str, Sequence[Result]]) -> str:
    """A table with a line for each figure and a column for each cohort, beside the published ones of her2st."""
    means = {name: summary(rows) for name, rows in columns.items()}
    keys = list(dict.fromkeys(key for of in means.values() for key in of.index))
    names = ["published", *means]
    lines = [("figure", "split", "model", "metric", *names)]
    for key in keys:
        cells = [PUBLISHED.get(key)] + [of.get(key) for of in means.values()]
        lines.append((*key, *("–" if v is None or np.isnan(v) else f"{v:.3f}" for v in cells)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def calibrate(
    slices: Sequence[Slice],
    *,
    only: Sequence[str] = FIGURES,
    panel: Sequence[str] | None = None,
    folds: int = 8,
    turned: bool = True,
    seed: int = 0,
) -> list[Result]:
    """All figures that the slices have everything for.

    Parameters
    ----------
    only
        Of `FIGURES`.
    panel
        Core genes for genes from genes; see `genes`.
    folds
        Leave one patient out up to so many patients; above, groups of patients.
    turned
        Whether sections of a block lie turned against each other; see `image`.
    """
    out: list[Result] = []
    if "labels" in only and any((s.labels != "").any() for s in slices):
        out += labels(slices, folds=folds)
    if "image" in only and any(s.features is not None for s in slices):
        out += image(slices, folds=folds, turned=turned)
    if "genes" in only:
        out += genes(slices, panel=panel, folds=folds, seed=seed)
    return out


def simulated(path: Path) -> bool:
    """Whether the sections of a cohort come from the simulator, and so lie in one frame in each block."""
    from triglyph.tissue.cohort import Cohort

    return all("simulator" in section.info.source for section in Cohort.open(path))


def first_patients(path: Path, patients: int | None) -> list[str] | None:
    """Ids of the sections of the first patients of a cohort."""
    from triglyph.tissue.cohort import Cohort

    if patients is None:
        return None
    cohort = Cohort.open(path)
    chosen = sorted(set(cohort.patients.values()))[:patients]
    return [s for s, patient in cohort.patients.items() if patient in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohorts", nargs="+", type=Path, metavar="COHORT")
    parser.add_argument("--only", action="append", choices=FIGURES, help="may be given several times")
    parser.add_argument("--panel", type=Path, help="core genes, one a line; for every cohort that is not simulated")
    parser.add_argument("--encoder", default="stain-texture-level0", help="or stain-texture, windows of one size in µm")
    parser.add_argument("--patients", type=int, help="the first so many of each cohort")
    parser.add_argument("--folds", type=int, default=8, help="groups of patients where there are more patients")
    parser.add_argument("--array", action="store_true", help="places from barcodes <x>x<y>, as published for her2st")
    parser.add_argument("--seed", type=int, default=0, help="of the core panel drawn, and of thinning")
    parser.add_argument("--each", action="store_true", help="print every row, not only means over patients")
    parser.add_argument("--out", type=Path, help="folder for <cohort>.json")
    given = parser.parse_args()
    only = tuple(given.only or FIGURES)
    columns: dict[str, list[Result]] = {}
    for path in given.cohorts:
        start = time.perf_counter()
        made = simulated(path)
        slices = of_cohort(
            path,
            encoder=given.encoder if "image" in only else None,
            sections=first_patients(path, given.patients),
            array=given.array and not made,
        )
        panel = None if made or given.panel is None else given.panel.read_text(encoding="utf-8").split()
        name = path.resolve().name
        columns[name] = calibrate(slices, only=only, panel=panel, folds=given.folds, turned=not made, seed=given.seed)
        print(f"{name}: {len(slices)} sections, {time.perf_counter() - start:.0f} s")
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            write_json(given.out / f"{name}.json", [r.model_dump(mode="json") for r in columns[name]])
    print(show(columns))
    if given.each:
        for name, rows in columns.items():
            for r in rows:
                value = "–" if r.value is None else f"{r.value:.3f}"
                print(f"{name}  {r.task}  {r.split}  {r.model}  {r.metric}  {r.group}  {value}")


if __name__ == "__main__":
    main()
