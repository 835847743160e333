"""Whether Stamp_F tells more than Stamp_V and Stamp_G where programmes are split between picture and counts.

    uv run python benchmarks/stamp_fusion.py --out FOLDER [--training 12] [--held-out 20] [--seeds 2] [--set key=value]

Simulated tissue with its pictures, one section a patient, in three worlds of one seed (the same tissue, other
programmes), by the simulator's dial:

* `split`: two programmes are seen in the picture alone, three in the counts alone, and none in both;
* `counts`: the three of the counts alone are all there is, so that the picture has nothing to add;
* `shared`: the four that picture and counts both show, and no others.

In each world both of Stamp's stages are trained on the training patients: `stamp-genes`, then `stamp-align` on its
locked tower, standardised, with the gated fusion, whose gate changes no other output: so one run gives every fusion
(`fused-concat`, `fused-sum`, `fused-gated`).

*What is asked.* A ridge, fitted on the training patients, reads the states of the world's programmes off an embedding;
the score of a held-out patient is the Pearson correlation within the section, mean over the programmes. All embeddings
are read at the same locations, those that have both modalities.

*What should be seen.* In `split` no part can tell all programmes, and fusion is better than each. In `counts` fusion
equals Stamp_G within ±0.01. In `shared` each part may tell what the other tells, but their noise differs, so that
fusion may be better than either: that it is no worse is the point there.

The primary fusion is the recipe's, `concat`; fusion is compared with each part over held-out patients, seeds averaged
inside. Runs and scores lie in FOLDER, and an experiment that is stopped goes on there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triglyph.apply.trained import TrainedModel
from triglyph.bench.ridge import fit_ridge
from triglyph.errors import ContractError
from triglyph.metrics.correlation import pearson
from triglyph.metrics.paired import compare, equivalence
from triglyph.storage import write_json
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.simulate.cohort import section_id
from triglyph.tissue.simulate.knobs.states import EXPRESSION_STATES, MORPHOLOGY_STATES, SHARED_STATES, STATES
from triglyph.tissue.split import Fold, Split
from triglyph.training.loop import fit
from triglyph.training.recipe import load_recipe
from triglyph.workflows.simulate import simulate

Floats = NDArray[np.float64]

PRESET = "visium"
SETTINGS = (
    "sections_per_patient=[1]",
    "anatomy.side_um=1500",
    "molecules.filler_genes=200",
    "stain.mpp=[0.6, 0.8]",
)
"""About 210 locations a section, painted at a coarse scale: a section takes seconds."""
DIALS: dict[str, tuple[str, ...]] = {
    "split": ("dial.shared=0", "dial.morphology_only=1", "dial.expression_only=1"),
    "counts": ("dial.shared=0", "dial.morphology_only=0", "dial.expression_only=1"),
    "shared": ("dial.shared=1", "dial.morphology_only=0", "dial.expression_only=0"),
}
PROGRAMMES: dict[str, tuple[str, ...]] = {
    "split": (*MORPHOLOGY_STATES, *EXPRESSION_STATES),
    "counts": EXPRESSION_STATES,
    "shared": SHARED_STATES,
}
"""What the dial leaves of the nine programmes in each world."""
EQUAL = ("counts", "shared")
"""Worlds in which fusion should equal the better part."""
ENCODER = tuple(
    f"model.towers.expression.options.{key}={value}"
    for key, value in {
        "dim": 32,
        "depth": 1,
        "heads": 4,
        "feedforward": 64,
        "max_tokens": 128,
        "genes": 500,
        "norm_first": "false",
    }.items()
)
"""Of both stages: post-norm, the leading 128 genes of a location, of the 500 commonest."""
GENES = (*ENCODER, "model.start=spectral", "training.epochs=4")
ALIGN = (
    *ENCODER,
    "model.fusion=gated",
    "model.towers.image.options.patch_px=8",
    "model.towers.expression.mode=locked",
    "model.towers.expression.standardise=true",
)
PARTS = {"image": "Stamp_V", "expression": "Stamp_G"}
FUSIONS = ("fused-concat", "fused-sum", "fused-gated")
PRIMARY, MARGIN = "fused-concat", 0.01
Scores = dict[str, list[list[list[float]]]]
"""Name of an embedding -> (seeds, held-out patients, programmes) Pearson."""


def painted(path: Path, settings: Sequence[str], *, patients: int, seed: int) -> Cohort:
    """The cohort of a world with its pictures; what is not there yet is made."""
    simulate(PRESET, patients=patients, set=list(settings), out=path, seed=seed, workers=1)
    return Cohort.open(path)


def held_out_split(cohort: Cohort, *, training: int, held_out: int) -> Split:
    """The first patients train, the others are held out; saved in the cohort."""
    ids = [section_id(p, 0) for p in range(training + held_out)]
    fold = Fold(train=tuple(ids[:training]), test=tuple(ids[training:]))
    split = Split(name=f"{training}-and-{held_out}", level="patient", folds=(fold,))
    cohort.save_split(split)
    return split


def told(train: Sequence[tuple[Floats, Floats]], test: Sequence[tuple[Floats, Floats]]) -> list[list[float]]:
    """How well a ridge that is fitted on the training sections tells the states of others.

    Parameters
    ----------
    train, test
        (embedding (n, dim), states (n, programmes)) of each section.

    Returns
    -------
    Pearson correlation within each test section, one a programme; NaN where a state does not vary.
    """
    predict = fit_ridge(train)
    return [pearson(predict(x), y).tolist() for x, y in test]


class World:
    """One world: its cohort, and what was read from it so far."""

    def __init__(self, name: str, asked: argparse.Namespace) -> None:
        self.name, self.asked = name, asked
        total = asked.training + asked.held_out
        settings = (*SETTINGS, *DIALS[name])
        self.cohort = painted(asked.out / "cohorts" / name, settings, patients=total, seed=asked.seed)
        self.split = held_out_split(self.cohort, training=asked.training, held_out=asked.held_out)
        self.columns = [STATES.index(state) for state in PROGRAMMES[name]]
        self.scores: Scores = {}
        self.minutes: list[float] = []

    def train(self, seed: int) -> None:
        """Train both stages, where they are not trained, and score all embeddings."""
        runs = self.asked.out / "runs" / self.name / self.split.name
        where = [f"data.split={self.split.name}", f"seed={seed}"]
        genes, align = runs / "genes" / f"seed-{seed}", runs / "align" / f"seed-{seed}"
        fit(load_recipe("stamp-genes-tiny", overrides=[*GENES, *where]), cohort=self.cohort, out=genes, show=False)
        weights = f"model.towers.expression.weights={genes}"
        recipe = load_recipe("stamp-align-tiny", overrides=[*ALIGN, weights, *self.asked.set, *where])
        fit(recipe, cohort=self.cohort, out=align, show=False)
        trained = [TrainedModel.open(run) for run in (genes, align)]
        self.minutes.append(sum(of.manifest["cpu_minutes"] for of in trained))
        for name, values in self.read(trained[1]).items():
            self.scores.setdefault(name, []).append(values)
        print(f"{self.name}, seed {seed}: {self.minutes[-1]:.2f} CPU minutes", flush=True)

    def read(self, model: TrainedModel) -> dict[str, list[list[float]]]:
        """Name of an embedding -> (held-out patients, programmes) Pearson."""
        fold = self.split.fold()
        found: dict[str, list[tuple[Floats, Floats]]] = {name: [] for name in (*PARTS, *FUSIONS)}
        for key in (*fold.train, *fold.test):
            section = self.cohort[key]
            states = np.asarray(section.table.obsm["truth_states"], dtype=np.float64)[:, self.columns]
            both = model.embed(section, PRIMARY)[1]
            for name, pieces in found.items():
                pieces.append((model.embed(section, name)[0][both].astype(np.float64), states[both]))
            model.forget()
        n = len(fold.train)
        return {name: told(pieces[:n], pieces[n:]) for name, pieces in found.items()}


def means(scores: Scores, name: str) -> Floats:
    """(patients, seeds) mean over programmes, of those that vary in a patient's section."""
    return np.asarray(np.nanmean(np.array(scores[name], dtype=np.float64), axis=2).T)


def comparisons(scores: Scores, *, margin: float | None) -> dict[str, str]:
    """Each fusion against each part, in words.

    Parameters
    ----------
    margin
        Also whether a fusion equals the better part (of the higher mean over the held-out patients); None leaves it
        out.
    """
    found = {}
    better = max(PARTS, key=lambda part: float(np.nanmean(means(scores, part))))
    for fusion in FUSIONS:
        for part, called in PARTS.items():
            names = (fusion, called)
            a, b = means(scores, fusion), means(scores, part)
            found[f"{fusion} and {part}"] = compare(a, b, names=names).sentence()
            if margin is not None and part == better:
                found[f"{fusion} equals {part}"] = equivalence(a, b, margin=margin, names=names).sentence()
    return found


def report(worlds: Sequence[World], path: Path) -> None:
    """Print every mean and every comparison, and keep them with the score of every patient."""
    said: dict[str, Mapping[str, str]] = {}
    for world in worlds:
        print(f"\n{world.name}: " + ", ".join(PROGRAMMES[world.name]))
        for name, values in world.scores.items():
            each = np.nanmean(np.array(values, dtype=np.float64), axis=(0, 1))
            seeds = ", ".join(f"{np.nanmean(means(world.scores, name)[:, s]):.3f}" for s in range(len(values)))
            print(
                f"  {name:14s}{np.nanmean(means(world.scores, name)):7.3f}  seeds {seeds}  programmes "
                + ", ".join(f"{v:.3f}" for v in each)
            )
        said[world.name] = comparisons(world.scores, margin=MARGIN if world.name in EQUAL else None)
        for sentence in said[world.name].values():
            print(f"  {sentence}")
    minutes = [m for world in worlds for m in world.minutes]
    print(f"\n{np.mean(minutes):.2f} CPU minutes a fit of both stages, longest {max(minutes):.2f}", flush=True)
    kept = {
        "patients": list(worlds[0].split.fold().test),
        "programmes": {world.name: PROGRAMMES[world.name] for world in worlds},
        "scores": {world.name: world.scores for world in worlds},
        "cpu_minutes": {world.name: world.minutes for world in worlds},
        "sentences": said,
    }
    write_json(path, kept)


def main() -> None:
    """Simulate and train what is not there, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--training", type=int, default=12, help="patients trained on")
    parser.add_argument("--held-out", type=int, default=20, help="patients scored")
    parser.add_argument("--seeds", type=int, default=2, help="of training")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated worlds")
    parser.add_argument("--worlds", nargs="+", choices=list(DIALS), default=list(DIALS))
    parser.add_argument("--set", action="append", default=[], help="key=value of stamp-align-tiny")
    asked = parser.parse_args()
    if min(asked.training, asked.held_out, asked.seeds) < 1:
        raise ContractError("nobody to train on or to score", where="stamp_fusion", mend="give at least one of each")
    worlds = [World(name, asked) for name in asked.worlds]
    for seed in range(asked.seeds):
        for world in worlds:
            world.train(seed)
        # After every seed, so that a long run shows early what it comes to.
        report(worlds, asked.out / f"fusion-{worlds[0].split.name}.json")


if __name__ == "__main__":
    main()
