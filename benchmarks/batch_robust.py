"""What batch-robust alignment is worth on held-out patients, and what it costs, on cohorts of the same world.

    uv run triglyph simulate confounded --patients 40 --out crossed --set people.confounding=0
    uv run triglyph simulate confounded --patients 40 --out confounded
    uv run python benchmarks/batch_robust.py crossed confounded --split SPLIT --out runs/robust [--seeds 3]

One recipe (`batch-robust`), its three parts added one after another: batches of handfuls of sections, negatives of the
own section, embeddings centred in each section. Judged by `retrieval-across` (one gallery over all held-out sections),
`retrieval` (a gallery each section) and `batch-effect` of the image embedding. Over patients, seeds averaged within
each; the batch metric and the labels beside it are of all test sections in one space, with each seed's value.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triglyph.apply.trained import TrainedModel
from triglyph.bench.batch_effect import BatchEffect
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.retrieval_across import RetrievalAcross
from triglyph.metrics.paired import compare, corrected
from triglyph.metrics.result import Result
from triglyph.tissue.cohort import Cohort
from triglyph.training.loop import fit
from triglyph.workflows.experiment import judged

OFF = ["training.sections_per_batch=null", "model.negatives=all", "model.centre=[]"]
ARMS = {
    "plain": OFF,
    "+ handfuls": OFF[1:],
    "+ own section's negatives": OFF[2:],
    "+ centred": [],
    "centred alone": OFF[:2],
    "negatives, expression centred": ["model.centre=[expression]"],
    "negatives, image centred": ["model.centre=[image]"],
}
OVER_PATIENTS = [
    ("retrieval across, recall@50", "retrieval-across", "recall@50"),
    ("retrieval in a section, recall@10", "retrieval", "recall@10"),
]
ASIDE = ("batch-predictability", "silhouette-batch", "ilisi", "silhouette-biology", "clisi", "label-knn@20")


def rows_of(cohort: Cohort, trial: Trial, arm: str, seed: int, out: Path, more: Sequence[str]) -> list[Result]:
    """Train and judge one arm, unless it is done."""
    split = [f"data.split={trial.split}", f"seed={seed}", *ARMS[arm], *more]
    folder = out / cohort.path.name / arm.replace(" ", "-").replace("'", "") / f"seed-{seed}"
    run = fit("batch-robust", overrides=split, cohort=cohort, out=folder / "run", show=False)

    def opened() -> dict[str, Subject]:
        trained = TrainedModel.open(run)
        return {arm: Subject(arm, trained, seed=seed, transductive=trained.transductive)}

    asked = {arm: [RetrievalAcross(), Retrieval(), BatchEffect(n_boot=0)]}
    return judged(folder / "judged", trial, asked, opened, seed=seed)


def by_patient(rows: Sequence[Result], arm: str, name: str, metric: str) -> dict[str, list[float]]:
    """Patient -> a value for each seed, both directions averaged."""
    found: dict[tuple[str, int | None], list[float]] = {}
    for r in rows:
        mine = r.model == arm and r.protocol.split("/")[0] == name and r.metric == metric
        if mine and r.aggregation == "per-patient" and r.group != "all" and r.value is not None:
            found.setdefault((r.group, r.seed), []).append(r.value)
    out: dict[str, list[float]] = {}
    for (patient, _), values in sorted(found.items(), key=str):
        out.setdefault(patient, []).append(float(np.mean(values)))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohorts", type=Path, nargs="+")
    parser.add_argument("--split", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    for path in given.cohorts:
        cohort = Cohort.open(path)
        trial = Trial.of(cohort, cohort.split(given.split))
        rows = [
            row
            for seed in range(given.seeds)
            for arm in ARMS
            for row in rows_of(cohort, trial, arm, seed, given.out, given.set)
        ]
        print(f"\n{path.name}: {len(trial.train)} training and {len(trial.test)} test sections, {given.seeds} seeds")
        for title, name, metric in OVER_PATIENTS:
            tables = {arm: by_patient(rows, arm, name, metric) for arm in ARMS}
            patients = sorted(set.intersection(*(set(t) for t in tables.values())))
            values = {arm: np.array([t[p] for p in patients]) for arm, t in tables.items()}
            tested = corrected([compare(values[arm], values["plain"], names=(arm, "plain")) for arm in list(ARMS)[1:]])
            print(f"  {title}: plain {values['plain'].mean():.3f}")
            for p in tested:
                ends = f" [{p.ci.low:+.3f}, {p.ci.high:+.3f}]" if p.ci else ""
                better = f"better in {p.wins} of {p.n_patients}, p {p.p_adjusted:.2g}"
                print(f"    {p.a:>26} {p.mean_a:.3f}  {p.difference:+.3f}{ends}, {better}")
        print("  image embedding, all test sections in one space (each seed):")
        for metric in ASIDE:
            line = []
            for arm in ARMS:
                mine = [r for r in rows if r.model == arm and r.metric == metric and r.value is not None]
                line.append(
                    f"{arm} {np.mean([r.value for r in mine]):.3f} ({', '.join(f'{r.value:.3f}' for r in mine)})"
                )
            chance = next((r.chance for r in rows if r.metric == metric and r.chance is not None), None)
            print(f"    {metric}{'' if chance is None else f', chance {chance:.3f}'}: " + "; ".join(line))


if __name__ == "__main__":
    main()
