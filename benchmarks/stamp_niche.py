"""What contextual training adds to Stamp's gene encoder where surroundings decide, and where they decide nothing.

    uv run python benchmarks/stamp_niche.py --out FOLDER [--training 12] [--held-out 20] [--seeds 2] [--set key=value]

Two simulated worlds: the preset `niche`, in which cells change with the types of the cells around them, and its control
`molecules.niche=0`. Seed and all else are the same, so tissue, cells, places and depth are the same, and every target
below is the same number at the same location: only what is expressed differs. In each world `stamp-genes` is trained
on the training patients with intrinsic reconstruction alone and with contextual reconstruction; both start from the
axes of a location's own variation, and in both later genes weigh less.

*What is asked.* Neighbouring locations share their domain in both worlds, so labels, or composition itself, do not tell
the worlds apart. What a niche adds is that a location's own RNA says what lies beyond it: a fibroblast at the tumour
differs from one far from it. So the question is how well the embedding of a location tells the types of cells between
its border and 90 um *beyond what its own content tells*. Own content is the truth itself: RNA by cell type that reaches
the location (of cells across the border that bleed into it, too), states and domains, with squares and cubes. In every
section, a regression on it is taken off the target and off the embedding (a partial correlation); a ridge from what is
left of the embedding is fitted on the training patients, and its Pearson correlation within each held-out patient is
the score. The regression is within sections, since what own content does to an embedding differs between patients: one
that was fitted on other patients left the control's principal components a correlation of 0.18.

*Why the control should show nothing.* There a location's RNA is drawn from its own content and from noise, and given
its content it is independent of what lies around: no encoder can say more, however it was trained. What little the
control shows is what the regression leaves. Where the niche is on, contextual reconstruction has to name a centre's
genes from its neighbours' embeddings, and is paid for keeping what a location says of its surroundings.

The primary figure is `SURROUNDINGS`, read from the location's own embedding: contextual less intrinsic in either
world, and the difference of these differences, over held-out patients with seeds averaged inside. Beside it:

* `NICHES`: what calls a niche up in the location's own cells of that kind, beyond own content; mean over five niches;
* `PLAIN`: the surroundings with nothing taken off. It holds what neighbours have in common in any tissue, so contextual
  training may help here in both worlds, and this is why it is not what is asked;
* the embedding with the mean over its surroundings beside it (*plain pooling* for the encoder without context), which
  reads the neighbours' own RNA, and principal components of log expression, read out in both ways.

Nothing is painted. Sections, runs and scores lie in FOLDER, and a run that is stopped goes on there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from triglyph.apply.trained import TrainedModel
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.representations import expression_components
from triglyph.bench.ridge import fit_ridge
from triglyph.errors import ContractError
from triglyph.metrics.correlation import mean_defined, pearson
from triglyph.metrics.paired import Paired, compare
from triglyph.storage import write_json
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.section import Section
from triglyph.tissue.simulate.cohort import draft_of, section_id
from triglyph.tissue.simulate.knobs.names import CELL_TYPES
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.locations import membership
from triglyph.tissue.simulate.molecules.programs import NICHES as PROGRAMMES
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.split import Fold, Split
from triglyph.training.loop import fit
from triglyph.training.recipe import load_recipe

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SETTINGS = ("sections_per_patient=[1]", "molecules.filler_genes=200", "anatomy.grid_um=8")
"""Unnamed genes are few and the grid is coarse, as nothing is painted: a section takes a second."""
WORLDS: dict[str, tuple[str, ...]] = {"niche": (), "control": ("molecules.niche=0",)}
BOTH = ("model.towers.expression.options.rank_decay=30", "model.start=spectral", "training.lr=1e-2")
"""Later genes weigh less: embeddings of this kind tell neighbours' genes best here (`stamp_ranks.py`). Both arms start
from the axes of a location's own variation, so that the loss alone differs, and go away from them at a higher rate."""
ARMS: dict[str, list[str]] = {"intrinsic": ["model.context=null"], "contextual": []}
READOUTS = ("own", "own+around")
COMPONENTS, AROUND = 32, 7
"""Principal components beside the encoders: as many as the tiny recipe's embedding has, averaged over a location and
its six neighbours."""
SURROUNDINGS, NICHES, PLAIN = "surroundings beyond own", "niches beyond own", "surroundings"
QUANTITIES = (SURROUNDINGS, NICHES, PLAIN)
CALLERS = tuple(t for t in CELL_TYPES if t in {caller for _, caller, _ in PROGRAMMES.values()})
"""Types that call a niche up: tumour, fibroblast, T cell."""
CAUGHT = "truth_caught"
OWN_PENALTY = 1.0
"""Of the regression on own content, whose features have variance 1: next to nothing beside hundreds of locations."""
MIN_LOCATIONS = 150
"""A section with fewer locations that have a target, twice the features of own content, is left out of that target."""
Scores = dict[str, dict[str, list[list[float]]]]
"""Name of what is read -> quantity -> (seeds, held-out patients) Pearson."""


# ---- the two worlds


def world(name: str, *, seed: int) -> Simulation:
    """The record of a world."""
    return preset("niche", seed=seed, overrides=(*SETTINGS, *WORLDS[name]))


def simulated(path: Path, config: Simulation, *, patients: int) -> Cohort:
    """The cohort of a world, one section a patient; what is not there yet is made.

    Raises
    ------
    ContractError
        The folder holds sections of another world.
    """
    cohort = Cohort.create(path)
    for section in cohort:
        if section.info.source.get("config") != config.digest():
            raise ContractError(
                f"section {section.id} is of another world", where=path, mend="give another --out, or the same options"
            )
    for patient in range(patients):
        if section_id(patient, 0) not in cohort:
            specimen = Specimen(config, patient, 0)
            draft = draft_of(specimen, [])
            draft.table.obsm[CAUGHT] = caught(specimen)
            draft.source[CAUGHT] = list(CELL_TYPES)
            cohort.add(draft)
    return cohort


def caught(specimen: Specimen) -> Floats:
    """(locations, types) relative RNA that reaches each location, bleeding included: what its counts are made of."""
    tissue, config = specimen.tissue, specimen.config
    reach = membership(tissue.cells, specimen.centres_um, config.spots, config.molecules.bleed_um)
    return np.asarray(reach @ (np.eye(len(CELL_TYPES))[tissue.cells.kind] * specimen.rna[:, None]))


def held_out_split(*, training: int, held_out: int) -> Split:
    """The first patients train, the others are held out."""
    ids = [section_id(p, 0) for p in range(training + held_out)]
    fold = Fold(train=tuple(ids[:training]), test=tuple(ids[training:]))
    return Split(name=f"{training}-and-{held_out}", level="patient", folds=(fold,))


# ---- what an embedding tells


class Asked(NamedTuple):
    """One section's locations that have a target."""

    embedding: Floats
    """(n, dim)"""
    target: Floats
    """(n, k)"""
    own: Floats | None
    """(n, d) own content that is taken off both; None takes off nothing but the mean"""


def told(train: Sequence[Asked], test: Sequence[Asked]) -> list[float]:
    """How well the embedding tells the target beyond own content, by a ridge that is fitted on training sections.

    Returns
    -------
    Mean Pearson correlation over the targets, one a test section; NaN below `MIN_LOCATIONS` locations, and where none
    of the targets varies.
    """
    predict = fit_ridge([_left(a) for a in train if len(a.target) >= MIN_LOCATIONS])
    scores = []
    for asked in test:
        if len(asked.target) < MIN_LOCATIONS:
            scores.append(float("nan"))
            continue
        embedding, target = _left(asked)
        scores.append(mean_defined(pearson(predict(embedding), target)).value)
    return scores


def _left(asked: Asked) -> tuple[Floats, Floats]:
    """Embedding and target less their means, and less what own content tells of them in this very section."""
    values = np.hstack([asked.embedding, asked.target])
    values = values - values.mean(axis=0)
    if asked.own is not None:
        own = asked.own - asked.own.mean(axis=0)
        values = values - Ridge(OWN_PENALTY, fit_intercept=False, solver="cholesky").fit(own, values).predict(own)
    dim = asked.embedding.shape[1]
    return values[:, :dim], values[:, dim:]


class Truth:
    """What is known of the sections of a trial."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.own = {s.id: own_content(s) for s in (*trial.train, *trial.test)}

    def scores(self, subject: Subject) -> dict[str, list[float]]:
        """Quantity -> one score a test section."""
        embedded = {s.id: subject.embed(s, "expression") for s in (*self.trial.train, *self.trial.test)}

        def asked(section: Section, target: Floats, rows: Bools, *, beyond: bool) -> Asked:
            values, present = embedded[section.id]
            keep = rows & present
            own = self.own[section.id][keep] if beyond else None
            return Asked(np.asarray(values, dtype=np.float64)[keep], target[keep], own)

        def around(section: Section, *, beyond: bool) -> Asked:
            shares = section.table.obsm["truth_surroundings"]
            columns = [CELL_TYPES.index(t) for t in CALLERS]
            return asked(section, shares[:, columns], shares.any(axis=1), beyond=beyond)

        def called(section: Section, niche: int) -> Asked:
            receiver, *_ = list(PROGRAMMES.values())[niche]
            answers = section.table.obsm["truth_composition"][:, CELL_TYPES.index(receiver)] > 0
            return asked(section, section.table.obsm["truth_niches"][:, [niche]], answers, beyond=True)

        sides = self.trial.train, self.trial.test
        niches = [told(*([called(s, k) for s in side] for side in sides)) for k in range(len(PROGRAMMES))]
        return {
            SURROUNDINGS: told(*([around(s, beyond=True) for s in side] for side in sides)),
            NICHES: [mean_defined(of).value for of in zip(*niches, strict=True)],
            PLAIN: told(*([around(s, beyond=False) for s in side] for side in sides)),
        }


def own_content(section: Section) -> Floats:
    """(n, 75) RNA by type, its amount, states and domains of each location: standardised, their squares and cubes."""
    truth = section.table.obsm
    amount = truth[CAUGHT].sum(axis=1, keepdims=True)
    shares = truth[CAUGHT] / np.maximum(amount, 1e-12)
    content = np.hstack([shares, np.log1p(amount), truth["truth_states"], truth["truth_domains"]])
    standard = StandardScaler().fit_transform(content)
    return np.asarray(StandardScaler().fit_transform(np.hstack([standard, standard**2, standard**3])))


# ---- the experiment


class World:
    """One world: its cohort, what is known of it, and the scores of what was read from it so far."""

    def __init__(self, name: str, asked: argparse.Namespace) -> None:
        self.name, self.asked = name, asked
        total = asked.training + asked.held_out
        self.cohort = simulated(asked.out / "cohorts" / name, world(name, seed=asked.seed), patients=total)
        self.split = held_out_split(training=asked.training, held_out=asked.held_out)
        self.cohort.save_split(self.split)
        trial = Trial.of(self.cohort, self.split)
        self.truth, self.scores, self.minutes = Truth(trial), Scores(), dict[str, list[float]]()
        for readout, beside in zip(READOUTS, (0, AROUND), strict=True):
            components = expression_components(trial, name="components", n_components=COMPONENTS, beside=beside)
            self._add(f"components, {readout}", components)

    def train(self, seed: int) -> None:
        """Train both arms, where they are not trained, and score them."""
        for arm, change in ARMS.items():
            run = self.asked.out / "runs" / self.name / self.split.name / arm / f"seed-{seed}"
            where = [f"data.split={self.split.name}", f"seed={seed}"]
            recipe = load_recipe(self.asked.recipe, overrides=[*BOTH, *self.asked.set, *change, *where])
            fit(recipe, cohort=self.cohort, out=run, show=False)
            trained = TrainedModel.open(run)
            self.minutes.setdefault(arm, []).append(trained.manifest["cpu_minutes"])
            config = trained.model.config
            for readout in READOUTS:
                trained.model.config = config.model_copy(update={"readout": readout})
                self._add(f"{arm}, {readout}", Subject(arm, trained, seed=seed))
            print(f"{self.name}, {arm}, seed {seed}: {self.minutes[arm][-1]:.2f} CPU minutes", flush=True)

    def _add(self, name: str, subject: Subject) -> None:
        for quantity, values in self.truth.scores(subject).items():
            self.scores.setdefault(name, {}).setdefault(quantity, []).append(values)


def differences(worlds: dict[str, Scores], quantity: str, readout: str) -> dict[str, Paired]:
    """Contextual against intrinsic in each world, and the first world's difference against the second's."""
    out, apart = {}, []
    for name, scores in worlds.items():
        a, b = (np.array(scores[f"{arm}, {readout}"][quantity]).T for arm in ("contextual", "intrinsic"))
        out[name] = compare(a, b, names=("contextual", "intrinsic"))
        apart.append(a.mean(axis=1) - b.mean(axis=1))
    first, second = worlds
    out[f"{first} less {second}"] = compare(*apart, names=(f"difference in {first}", f"difference in {second}"))
    return out


def main() -> None:
    """Simulate and train what is not there, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--training", type=int, default=12, help="patients trained on")
    parser.add_argument("--held-out", type=int, default=20, help="patients scored")
    parser.add_argument("--seeds", type=int, default=2, help="of training")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated worlds")
    parser.add_argument("--recipe", default="stamp-genes-tiny")
    parser.add_argument("--set", action="append", default=[], help="key=value of the recipe")
    asked = parser.parse_args()
    worlds = [World(name, asked) for name in WORLDS]
    for seed in range(asked.seeds):
        for one in worlds:
            one.train(seed)
        # After every seed, so that a long run shows early what it comes to.
        report(worlds, asked.out / f"scores-{worlds[0].split.name}.json")


def report(worlds: Sequence[World], path: Path) -> None:
    """Print every mean and every paired comparison, and keep them with the score of every patient."""
    scores = {one.name: one.scores for one in worlds}
    compared = {(q, r): differences(scores, q, r) for q in QUANTITIES for r in READOUTS}
    for quantity in QUANTITIES:
        print(f"\n{quantity:32s}" + "".join(f"{name:>10}" for name in scores))
        for name in worlds[0].scores:
            means = [np.nanmean(np.array(of[name][quantity])) for of in scores.values()]
            print(f"  {name:30s}" + "".join(f"{mean:10.3f}" for mean in means))
        for readout in READOUTS:
            for where, paired in compared[quantity, readout].items():
                print(f"  {readout}; {where}: {paired.sentence()}")
    for arm in ARMS:
        each = [m for one in worlds for m in one.minutes[arm]]
        print(f"{arm}: {np.mean(each):.2f} CPU minutes a fit, longest {max(each):.2f}", flush=True)
    kept = {
        "patients": list(worlds[0].split.fold().test),
        "scores": scores,
        "cpu_minutes": {one.name: one.minutes for one in worlds},
        "sentences": {f"{q}, {r}": {k: p.sentence() for k, p in of.items()} for (q, r), of in compared.items()},
    }
    write_json(path, kept)


if __name__ == "__main__":
    main()
