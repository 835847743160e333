"""Stamp's gene encoder on real tissue, patients held out: intrinsic and contextual reconstruction, and plain pooling.

    uv run python benchmarks/stamp_her2st.py COHORT --out FOLDER [--recipe NAME] [--seeds 3]
        [--arms contextual] [--patients B C] [--set key=value]

COHORT is her2st as `triglyph read` makes it (22 sections of patients A to D, A1, B1, C1 and D1 with labels). For each
patient an encoder is trained on all sections of the others, without a label; probes are fitted on the labelled
sections of the others. Three arms are trained: with contextual reconstruction as the recipe has it, and with intrinsic
alone, from the axes of a location's own variation and from the recipe's. Two are not: both *starts*, which training has
to be better than to be worth its cost. Each is read out as the location's own embedding, and with the means over its
surroundings beside it, which for encoders without context is *plain pooling of neighbours*.

A penalty is stronger where features vary less: those of the reference rows have a variance of 9 to 25 a dimension,
embeddings of 1. So probes of all rows are fitted at the published C of 0.1 and at 1, as strong for embeddings as 0.1 is
for the reference rows.

The judge's own protocols score them: cancer against the rest, classes (`linear-probe`) and clusters (`clustering`).
Runs and rows lie in FOLDER, and a run that is stopped goes on there. `tries` of the recipe says how many configurations
were tried before.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triglyph.apply.trained import TrainedModel
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.labels.clustering import Clustering
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.protocol import Protocol
from triglyph.bench.representations import REPRESENTATIONS
from triglyph.storage import write_json
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.split import Fold, Split, patient_folds
from triglyph.training.loop import fit
from triglyph.training.recipe import load_recipe
from triglyph.workflows.experiment import judged

LABELLED = ("A1", "B1", "C1", "D1")
UNTRAINED = ["model.context=null", "training.epochs=1", "training.lr=1e-9"]
"""One epoch at a rate that moves nothing."""
ARMS = {
    "own axes": [*UNTRAINED, "model.start=spectral"],
    "contextual axes": [*UNTRAINED, "model.start=contextual"],
    "intrinsic": ["model.context=null", "model.start=spectral"],
    "intrinsic from contextual axes": ["model.context=null"],
    "contextual": [],
}
READOUTS = ("own", "around", "own+around")
METRICS = ("auroc@cancer", "balanced-accuracy", "ari")
PENALTIES = (0.1, 1.0)
CANCER = {"cancer": ("invasive cancer", "cancer in situ")}


def protocols() -> dict[str, Protocol]:
    """What scores an embedding, by what is written behind its metrics."""
    probes: dict[str, Protocol] = {
        f", C = {c:g}": LinearProbe(
            variant="her2st", c=c, modality="expression", min_locations=10, groups=CANCER, n_boot=0
        )
        for c in PENALTIES
    }
    return {**probes, "": Clustering(modality="expression", min_locations=10, resolutions=(), n_boot=0)}


def splits(cohort: Cohort) -> tuple[Split, Split]:
    """Everything of the other patients to train on; their labelled sections for the probes."""
    everything = patient_folds(cohort.patients, name="stamp-all")
    labelled = Split(
        name="stamp-labelled",
        level="patient",
        folds=tuple(
            Fold(
                name=fold.name,
                train=tuple(s for s in fold.train if s in LABELLED),
                test=tuple(s for s in fold.test if s in LABELLED),
            )
            for fold in everything.folds
        ),
    )
    return everything, labelled


def subject(run: Path, readout: str, *, name: str, seed: int) -> Subject:
    """A trained encoder, read out in one way."""
    trained = TrainedModel.open(run)
    trained.model.config = trained.model.config.model_copy(update={"readout": readout})
    people = tuple(trained.manifest["training_patients"])
    return Subject(name, trained, seed=seed, training_patients=people)


def main() -> None:
    """Train what is not trained, judge what is not judged, print every patient."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="stamp-genes-tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--patients", nargs="+", help="those to hold out, one after another; all, if left out")
    parser.add_argument("--set", action="append", default=[])
    asked = parser.parse_args()
    cohort = Cohort.open(asked.cohort)
    everything, labelled = splits(cohort)
    people = sorted({cohort.patients[s] for s in LABELLED})
    if unknown := set(asked.patients or ()) - set(people):
        parser.error(f"--patients {' '.join(sorted(unknown))}: there are {' '.join(people)}")
    chosen = [s for s in LABELLED if cohort.patients[s] in (asked.patients or people)]
    if everything.name not in cohort.splits:
        cohort.save_split(everything)
    trials = {
        fold.name: Trial.of(cohort, labelled, fold=fold.name) for fold in labelled.folds if set(fold.test) & set(chosen)
    }
    scores: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    minutes: dict[str, list[float]] = {}
    for seed in range(asked.seeds):
        for arm in asked.arms:
            for fold, trial in trials.items():
                run = asked.out / arm / f"seed-{seed}" / f"fold-{fold}"
                where = [f"data.split={everything.name}", f'data.fold="{fold}"', f"seed={seed}"]
                recipe = load_recipe(asked.recipe, overrides=[*asked.set, *ARMS[arm], *where])
                fit(recipe, cohort=cohort, out=run / "run")
                minutes.setdefault(arm, []).append(TrainedModel.open(run / "run").manifest["cpu_minutes"])
                for readout in READOUTS:
                    name = f"{arm}, {readout}"
                    for behind, protocol in protocols().items():
                        rows = judged(
                            run / f"{readout}{behind}",
                            trial,
                            {name: [protocol]},
                            lambda name=name, run=run, readout=readout, seed=seed: {
                                name: subject(run / "run", readout, name=name, seed=seed)
                            },
                            seed=seed,
                        )
                        _add(scores, name, seed, rows, behind)
    for name, make in REPRESENTATIONS.items():
        for trial in trials.values():
            features = make(trial, places="array")
            for behind, protocol in protocols().items():
                _add(scores, name, 0, protocol.run(features, trial), behind)
    write_json(asked.out / "scores.json", {"scores": scores, "cpu_minutes": minutes})
    _show(scores, chosen)
    for arm, of in minutes.items():
        print(f"{arm}: {np.mean(of):.1f} CPU minutes a fit, longest {max(of):.1f}")


def _add(
    scores: dict[str, dict[int, dict[str, dict[str, float]]]], name: str, seed: int, rows: Sequence, behind: str
) -> None:
    for row in rows:
        if row.metric in METRICS and row.aggregation == "per-section" and row.group in LABELLED:
            of = scores.setdefault(name, {}).setdefault(seed, {}).setdefault(f"{row.metric}{behind}", {})
            of[row.group] = row.value


def _show(scores: dict[str, dict[int, dict[str, dict[str, float]]]], sections: Sequence[str]) -> None:
    for metric in next(iter(next(iter(scores.values())).values())):
        print(f"\n{metric:32s} {'mean':>6} {'sd of seeds':>12}   " + "  ".join(f"{s:>5}" for s in sections))
        for name, seeds in scores.items():
            values = np.array([[of[metric][s] for s in sections] for of in seeds.values()])
            each = "  ".join(f"{v:5.3f}" for v in values.mean(axis=0))
            spread = f"{values.mean(axis=1).std(ddof=1):.3f}" if len(values) > 1 else "-"
            print(f"{name:32s} {values.mean():6.3f} {spread:>12}   {each}")


if __name__ == "__main__":
    main()
