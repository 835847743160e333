"""Whether a patch is found among the nine cells of its region on patients held out, and not in the release's layout.

    uv run python benchmarks/stamp_localisation.py --out FOLDER [--training 12] [--held-out 20] [--seeds 2]

Simulated tissue with its pictures, one section a patient. Two arms of the image side of `stamp-align-tiny` (no tower of
expression: patch and region find each other, and the patch finds its cell), alike but for one word: cells pooled from
the region's tokens, and cells laid out as Stamp's release does (`compat: release`), each a ninth of the channels of all
nine. Both once with a transformer that learns from random numbers, and once on a locked one, which learnt that patch
and region find each other and has seen cells in neither layout; there the patch's token and the projections alone
learn.

On the held-out patients regions are drawn anew, and the score of a patient is the share of locations whose patch is
nearest to its own cell. Regions are drawn evenly among the places that fit into the image, and a location near an edge
has fewer than nine; beside chance, 1/9, stands what always naming the held-out patients' commonest cell reaches.

A transformer that learns may gather what lies at place k in the k-th ninth of its channels, and so learn its way round
the release's layout; one that is locked has no such way. Whether anything is read off the cells at all is told by
asking each model with the cells of *another* location's region in place of its own: a patch might also be placed by its
token alone, which goes through the transformer together with the region.

Runs, regions and scores lie in FOLDER, and an experiment that is stopped goes on there. With the FOLDER of
`stamp_fusion` its sections serve here too.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stamp_fusion import DIALS, SETTINGS, held_out_split, painted
from triglyph.errors import ContractError
from triglyph.metrics.paired import compare
from triglyph.models.stamp_align import StampAlign
from triglyph.objectives.localisation import cell_cosines, pool_cells
from triglyph.storage import write_json
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.regions import NOWHERE, SIDE
from triglyph.tissue.section import Section
from triglyph.tissue.split import Split
from triglyph.training.dataset import Locations, Visit, training_rows
from triglyph.training.loop import fit
from triglyph.training.recipe import load_recipe
from triglyph.training.release import load_model
from triglyph.training.run import Run

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CHANCE = 1 / SIDE**2
WORLD = "shared"
"""Of `stamp_fusion`: programmes that the picture shows."""
IMAGES = (
    "model.towers.expression=null",
    "model.weights.patch_spot=0",
    "model.weights.region_spot=0",
    "model.towers.image.options.patch_px=8",
)
POOLED, RELEASE = "pooled cells", "the release's layout"
LAYOUTS: dict[str, tuple[str, ...]] = {POOLED: (), RELEASE: ("model.compat=release",)}
TOWER = ("model.weights.localisation=0",)
"""The run whose transformer is locked: patch and region find each other, and no cell is asked for."""
LOCKED = "locked"
ARMS = tuple(f"{layout}{tower}" for tower in ("", f", {LOCKED}") for layout in LAYOUTS)
"""As they are printed."""
DRAWS = (4, 5)
"""Of the regions that are judged: training goes through draws 0 to 3 (`regions.draws`) of its own patients."""
BATCH = 256


class Answers(NamedTuple):
    """The locations of one patient whose region fits into the image, of all draws."""

    said: Integers
    """(n,) the nearest cell, 0 to 8, row by row."""
    strange: Integers
    """(n,) the nearest of the cells of another location's region."""
    true: Integers
    """(n,) where the patch lies."""


def share_right(said: Integers, true: Integers) -> float:
    """Share of patches whose nearest cell is their own; NaN for none."""
    return float((said == true).mean()) if len(true) else float("nan")


def commonest(answers: list[Answers]) -> float:
    """Share of right answers, mean over patients, of who always names the cell that is commonest over all of them."""
    cells = np.concatenate([a.true for a in answers])
    name = int(np.bincount(cells, minlength=SIDE**2).argmax())
    return float(np.mean([(a.true == name).mean() for a in answers if len(a.true)]))


def asked_of(model: StampAlign, section: Section) -> Answers:
    """What the model says of a section's locations, a region of each draw for each."""
    rows = training_rows([section], ("image",), (("image",),))
    data = Locations(
        rows,
        {"image": model.encoder("image")},
        cached={},
        wider=model.config.regions.model_copy(update={"draws": None}),
    )
    found: list[Answers] = []
    for draw in DRAWS:
        for start in range(0, len(rows), BATCH):
            image = data[Visit(draw, np.arange(start, min(start + BATCH, len(rows))))]["image"]
            fits = image["cell"] != NOWHERE
            with torch.no_grad():
                region = model.region(image)
                cells = model.heads["position"](pool_cells(region.grid[fits], compat=model.config.compat))
                patch = model.heads["position"](region.pretext[fits])
                said, strange = (cell_cosines(patch, of).argmax(dim=1).numpy() for of in (cells, cells.roll(1, dims=0)))
            found.append(Answers(said, strange, image["cell"][fits].numpy()))
    return Answers(*(np.concatenate(of) for of in zip(*found, strict=True)))


def changes_of(arm: str, tower: Path) -> tuple[str, ...]:
    """Overrides of an arm's recipe.

    Parameters
    ----------
    tower
        The run whose transformer a locked arm takes.
    """
    layout, _, locked = arm.partition(", ")
    lock = ("model.towers.image.mode=locked", f"model.towers.image.weights={tower}") if locked else ()
    return (*LAYOUTS[layout], *lock)


class Training(NamedTuple):
    """Where and on what is trained."""

    cohort: Cohort
    split: Split
    runs: Path
    changes: tuple[str, ...]
    """Of the recipe, of all arms."""

    def run(self, name: str, seed: int, changes: tuple[str, ...]) -> Path:
        """The folder of a run, which is trained where it is not there yet."""
        out = self.runs / re.sub("[^a-z]+", "-", name) / f"seed-{seed}"
        overrides = [*IMAGES, *changes, *self.changes, f"data.split={self.split.name}", f"seed={seed}"]
        fit(load_recipe("stamp-align-tiny", overrides=overrides), cohort=self.cohort, out=out, show=False)
        return out


def opened(run: Path) -> tuple[StampAlign, float]:
    """The model of a run, and the CPU minutes of its training."""
    found = Run(run)
    model = load_model(found.model_path)
    if not isinstance(model, StampAlign):
        raise ContractError("not a run of stamp-align", where=run, mend="give another --out")
    return model, float(found.manifest()["cpu_minutes"])


def main() -> None:
    """Simulate and train what is not there, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--training", type=int, default=12, help="patients trained on")
    parser.add_argument("--held-out", type=int, default=20, help="patients scored")
    parser.add_argument("--seeds", type=int, default=2, help="of training")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated world")
    parser.add_argument("--set", action="append", default=[], help="key=value of stamp-align-tiny")
    asked = parser.parse_args()
    if min(asked.training, asked.held_out, asked.seeds) < 1:
        raise ContractError("nobody to train on or to score", where="stamp_localisation", mend="give at least one each")
    total = asked.training + asked.held_out
    settings = (*SETTINGS, *DIALS[WORLD])
    cohort = painted(asked.out / "cohorts" / WORLD, settings, patients=total, seed=asked.seed)
    split = held_out_split(cohort, training=asked.training, held_out=asked.held_out)
    training = Training(cohort, split, asked.out / "runs" / split.name, tuple(asked.set))
    patients = split.fold().test
    right: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    strange: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    minutes: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(asked.seeds):
        tower = training.run("tower", seed, TOWER)
        for arm, of in right.items():
            model, took = opened(training.run(arm, seed, changes_of(arm, tower)))
            answers = [asked_of(model, cohort[key]) for key in patients]
            of.append([share_right(a.said, a.true) for a in answers])
            strange[arm].append([share_right(a.strange, a.true) for a in answers])
            minutes[arm].append(took)
            print(f"{arm}, seed {seed}: {np.nanmean(of[-1]):.3f}; {took:.2f} CPU minutes", flush=True)
        always = commonest(answers)
        report(right, strange, minutes, always, patients, asked.out / f"localisation-{split.name}.json")


def report(
    right: dict[str, list[list[float]]],
    strange: dict[str, list[list[float]]],
    minutes: dict[str, list[float]],
    always: float,
    patients: tuple[str, ...],
    path: Path,
) -> None:
    """Print shares and comparisons, and keep them with the score of every patient."""
    values = {arm: np.array(of, dtype=np.float64).T for arm, of in right.items()}
    said = {}
    for arm, of in values.items():
        nothing = np.full(len(of), CHANCE)
        said[f"{arm} and chance"] = compare(of, nothing, names=(arm, "a guess")).sentence()
        other = np.array(strange[arm], dtype=np.float64).T
        said[f"{arm}, strange cells"] = compare(of, other, names=(arm, f"{arm}, another region's")).sentence()
    for first, second in zip(ARMS[::2], ARMS[1::2], strict=True):
        said[f"{first} and {second}"] = compare(values[first], values[second], names=(first, second)).sentence()
    print(f"\nchance {CHANCE:.3f}, the commonest cell {always:.3f}")
    for arm, of in values.items():
        each, other = of.mean(axis=1), np.nanmean(strange[arm])
        print(f"  {arm}: {np.nanmean(of):.3f}, patients {np.nanmin(each):.3f} to {np.nanmax(each):.3f}")
        print(f"  {arm}, with the cells of another region: {other:.3f}")
    for sentence in said.values():
        print(f"  {sentence}", flush=True)
    shares = {"right": right, "strange": strange, "commonest": always}
    write_json(path, {"patients": list(patients), **shares, "cpu_minutes": minutes, "sentences": said})


if __name__ == "__main__":
    main()
