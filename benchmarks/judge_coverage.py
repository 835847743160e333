"""How often the judge's intervals hold the truth, on simulated tissue and on populations of a known mean.

    uv run python benchmarks/judge_coverage.py --keep FOLDER [--pool 240] [--people 4] [--layouts 70] [--out FILE.json]

*Patients.* A probe and a ridge are fitted once, on other patients. Their metric in every patient of a pool makes a
population; n patients are drawn from it (with replacement), and the interval over them should hold the pool's mean. So
for populations of known mean: normal, skewed (log-normal), heavy tails (Student t, 3 degrees of freedom).

*Blocks of tissue.* The tissue of one person is laid out anew many times, with the same biology and chemistry. The
block interval of each layout should hold the mean of the metric over the other layouts, for several sides of a block;
so for random fields of known length, cut from larger ones.

Percentiles of the same draws stand beside the judge's interval. All is expression alone: nothing is painted. What was
simulated is kept in FOLDER, and a run that is stopped goes on there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from triglyph.metrics.bootstrap import MIN_BLOCKS, Resamples, interval, nan_mean, spatial_blocks, worth_together
from triglyph.metrics.correlation import mean_defined, pearson
from triglyph.metrics.expression import log1p_cp10k, most_variable
from triglyph.metrics.ranking import auroc
from triglyph.storage import atomic_file, write_json
from triglyph.tissue.simulate.anatomy.tissue import Tissue, build_tissue
from triglyph.tissue.simulate.fields import smooth_noise
from triglyph.tissue.simulate.molecules.counts import draw_counts
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.simulate.streams import stream

Floats = NDArray[np.float64]

CANCER = ("invasive cancer", "cancer in situ")
METRICS = ("pearson", "auroc", "balanced-accuracy")
N_GENES = 20
TEACHERS = range(5000, 5012)
"""Patients that the predictors are fitted on; nobody else's."""
SETTINGS = ("molecules.filler_genes=0", "anatomy.grid_um=8")
"""Genes without a name and a fine grid serve pictures; without them a section takes a second."""
SIZES = (4, 6, 12, 20)
SIDES_UM = (500.0, 750.0, 1000.0)
LENGTHS_UM = (140.0, 330.0, 520.0)
"""Of states, of domains in most presets, and of domains in the presets that are as hard as real tissue."""
MIN_LAYOUTS = 20
SEED = 7


@dataclass(frozen=True)
class Layout(Specimen):
    """The tissue of a person and section laid out anew; biology and chemistry stay."""

    redraw: int = 0

    @property
    def keys(self) -> tuple[int, int]:
        """Streams of noise are the layout's own."""
        return self.patient, 1000 + self.redraw

    @cached_property
    def tissue(self) -> Tissue:
        """Maps and cells of another world in which the same person lives."""
        elsewhere = self.config.model_copy(update={"seed": self.config.seed + 1 + self.redraw})
        shares = self.person.shares(self.block)
        return build_tissue(elsewhere, self.patient, self.section, shares, state_shift=self.person.state_shift)


def expression(specimen: Specimen) -> Floats:
    """(n, genes) log1p CP10k of drawn counts."""
    rng = stream(specimen.config.seed, "counts of coverage", *specimen.keys)
    return np.asarray(log1p_cp10k(draw_counts(specimen.config, specimen.expected, rng)).todense())


class Predictors:
    """Fitted once: half of the genes tell the most variable of the other half, and the label."""

    def __init__(self, teachers: list[Specimen]) -> None:
        values = [expression(s) for s in teachers]
        x, labels = np.concatenate(values), np.concatenate([s.labels for s in teachers])
        odd = np.arange(x.shape[1]) % 2 == 1
        self._inputs = np.flatnonzero(odd)
        chosen = most_variable(sp.csr_matrix(x[:, ~odd]), n_genes=N_GENES)
        self._targets = np.flatnonzero(~odd)[chosen]
        self._ridge = make_pipeline(StandardScaler(), Ridge(alpha=300.0))
        self._ridge.fit(x[:, self._inputs], x[:, self._targets])
        known = labels != ""
        self._probe = make_pipeline(StandardScaler(), PCA(20, random_state=0), LogisticRegression(max_iter=500))
        self._probe.fit(x[known][:, self._inputs], labels[known].astype(str))

    def __call__(self, specimen: Specimen) -> Judged:
        x, labels = expression(specimen), specimen.labels.astype(str)
        inputs = x[:, self._inputs]
        chances = self._probe.predict_proba(inputs)
        classes = self._probe.classes_
        return Judged(
            specimen.centres_um,
            self._ridge.predict(inputs),
            x[:, self._targets],
            chances[:, np.isin(classes, CANCER)].sum(axis=1),
            classes[chances.argmax(axis=1)],
            labels,
        )


@dataclass(frozen=True)
class Judged:
    """Predictions and truth of one section's locations."""

    centres_um: Floats
    guess: Floats
    truth: Floats
    cancer: Floats
    predicted: NDArray[np.str_]
    labels: NDArray[np.str_]

    def measures(self, blocks: NDArray[np.intp], *, n_boot: int, seed: int) -> dict[str, Measured]:
        """Every metric and its draws of blocks, as the protocols draw them."""
        keep = self.labels != ""
        drawn, known = Resamples(blocks, n_boot=n_boot, seed=seed), Resamples(blocks[keep], n_boot=n_boot, seed=seed)
        there, cancer = np.unique(self.labels[keep]), np.isin(self.labels[keep], CANCER)
        member = self.labels[keep][:, None] == there[None, :]
        right = np.repeat((self.predicted == self.labels)[keep][:, None], len(there), axis=1).astype(np.float64)
        recall = np.where(member, right, 0.0).sum(axis=0) / member.sum(axis=0)
        both = np.stack([cancer, ~cancer], axis=1)
        return {
            "pearson": Measured(
                mean_defined(pearson(self.guess, self.truth)).value,
                nan_mean(drawn.pearson(self.guess, self.truth), axis=1),
                drawn.n_units,
            ),
            "auroc": Measured(
                float(auroc(self.cancer[keep], cancer)[0]),
                known.auroc(self.cancer[keep], cancer)[:, 0],
                known.n_units,
                float(known.n_effective(both).min()),
            ),
            "balanced-accuracy": Measured(
                float(recall.mean()),
                nan_mean(known.mean(right, mask=member), axis=1),
                known.n_units,
                worth_together(known.n_effective(member)),
            ),
        }


class Measured(NamedTuple):
    """A metric, its draws, the number of units drawn, and what they are worth."""

    value: float
    draws: Floats
    n_units: int
    n_effective: float | None = None


@dataclass
class Tally:
    """How often the truth lay in the judge's interval, and in percentiles of the same draws."""

    tried: int = 0
    held: int = 0
    by_percentiles: int = 0

    def add(self, measured: Measured, truth: float) -> None:
        """One interval; one that is not given is not counted."""
        value, draws, n_units, worth = measured
        found = interval(draws, value=value, unit="", n_units=n_units, n_effective=worth, min_units=MIN_BLOCKS)
        if found is not None:
            low, high = np.nanquantile(draws, [0.025, 0.975])
            self.tried += 1
            self.held += found.low <= truth <= found.high
            self.by_percentiles += bool(low <= truth <= high)

    def row(self, name: str) -> dict[str, Any]:
        """Coverage in per cent."""
        shares = {"judge": self.held, "percentiles": self.by_percentiles}
        return {"name": name, "n": self.tried, **{k: 100 * v / max(self.tried, 1) for k, v in shares.items()}}


# ---- patients


def populations(pool: dict[str, Floats]) -> dict[str, tuple[float, Callable[[np.random.Generator, int], Floats]]]:
    """Name -> mean, and how n patients are drawn."""
    out: dict[str, tuple[float, Callable[[np.random.Generator, int], Floats]]] = {
        "normal": (0.0, lambda rng, n: rng.standard_normal(n)),
        "log-normal, sigma 0.5": (float(np.exp(0.125)), lambda rng, n: rng.lognormal(0.0, 0.5, n)),
        "t, 3 degrees of freedom": (0.0, lambda rng, n: rng.standard_t(3, n)),
    }
    for metric, values in pool.items():
        of = values[~np.isnan(values)]
        out[f"simulated patients, {metric}"] = (float(of.mean()), lambda rng, n, of=of: rng.choice(of, n))
    return out


def patients(pool: dict[str, Floats], *, replicates: int, n_boot: int) -> list[dict[str, Any]]:
    """Coverage over patients, for every population and number of patients."""
    rows = []
    for name, (truth, draw) in populations(pool).items():
        for n in SIZES:
            rng, tally = np.random.default_rng([n, len(name)]), Tally()
            for i in range(replicates):
                values = draw(rng, n)
                draws = Resamples(np.arange(n), n_boot=n_boot, seed=i).mean(values)[:, 0]
                tally.add(Measured(float(values.mean()), draws, n), truth)
            rows.append({"patients": n, **tally.row(name)})
            _show(rows[-1], f"{n} patients")
    return rows


# ---- blocks


def blocks(layouts: dict[str, list[Judged]], *, n_boot: int) -> list[dict[str, Any]]:
    """Coverage over blocks of every side, where `layouts` are the redrawn sections of each person or field."""
    rows = []
    for side_um in SIDES_UM:
        tallies: dict[str, Tally] = {}
        spreads: dict[str, list[float]] = {}
        for of in layouts.values():
            found = [
                j.measures(spatial_blocks(j.centres_um, side_um=side_um), n_boot=n_boot, seed=i)
                for i, j in enumerate(of)
            ]
            for metric in METRICS:
                measured = [m for m in (f[metric] for f in found) if not np.isnan(m.value)]
                values = np.array([m.value for m in measured])
                if len(values) < MIN_LAYOUTS:
                    continue
                for i, m in enumerate(measured):
                    tallies.setdefault(metric, Tally()).add(m, float(np.delete(values, i).mean()))
                errors = [np.nanvar(m.draws) * m.n_units / max(m.n_units - 1, 1) for m in measured]
                spreads.setdefault(metric, []).append(float(np.sqrt(np.mean(errors)) / values.std(ddof=1)))
        for metric, tally in tallies.items():
            spread = float(np.mean(spreads[metric]))
            rows.append({"side_um": side_um, "error / spread": spread, **tally.row(metric)})
            _show(rows[-1], f"{side_um:.0f} µm, standard error / true spread {spread:.2f}")
    return rows


def fields(length_um: float, n: int) -> list[Judged]:
    """Sections of two scores that share a random field of that length: a guess and a truth, and two classes."""
    step_um, side_um, out = 50.0, 3200.0, []
    side = round(side_um / step_um)
    for i in range(n):
        rng = np.random.default_rng([i, int(length_um)])
        # Cut from a larger one: a field is scaled to mean 0 and standard deviation 1 as a whole.
        common, one, other = (smooth_noise(rng, 2 * side, step_um, length_um)[:side:2, :side:2] for _ in range(3))
        y, x = np.mgrid[0 : side_um : 2 * step_um, 0 : side_um : 2 * step_um]
        noise = 0.5 * rng.standard_normal((2, *common.shape))
        guess, truth = (
            (common + 0.7 * own + e).ravel().astype(np.float64) for own, e in zip((one, other), noise, strict=True)
        )
        kinds = np.array([CANCER[0], "connective tissue"])
        out.append(
            Judged(
                np.stack([x.ravel(), y.ravel()], axis=1),
                guess[:, None],
                truth[:, None],
                guess,
                kinds[np.where(guess > 0.5, 0, 1)],
                kinds[np.where(truth > 0.5, 0, 1)],
            )
        )
    return out


# ---- what is kept


def kept(path: Path, make: Callable[[], Judged]) -> Judged:
    """A judged section from its file; made and written where there is none."""
    if not path.exists():
        judged = make()
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.savez(file, **vars(judged))
    with np.load(path) as of:
        return Judged(**{name: of[name] for name in of.files})


def _show(row: dict[str, Any], where: str) -> None:
    print(
        f"{row['name']:38s} {where:52s} judge {row['judge']:5.1f} %   percentiles {row['percentiles']:5.1f} %"
        f"   ({row['n']} intervals)",
        flush=True,
    )


def main() -> None:
    """Simulate what is not kept, then count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--pool", type=int, default=240)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--layouts", type=int, default=70)
    parser.add_argument("--fields", type=int, default=200, help="sections of each length")
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--n-boot", type=int, default=400)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.keep.mkdir(parents=True, exist_ok=True)
    tissue = preset("visium", seed=SEED, overrides=SETTINGS)
    small = preset("visium", seed=SEED, overrides=(*SETTINGS, "anatomy.side_um=2000"))
    predictors = cache(lambda: Predictors([Specimen(tissue, p, 0) for p in TEACHERS]))

    pool = [
        kept(given.keep / f"patient-{p}.npz", lambda p=p: predictors()(Specimen(small, p, 0)))
        for p in range(given.pool)
    ]
    whole = [j.measures(np.zeros(len(j.labels), dtype=np.intp), n_boot=1, seed=0) for j in pool]
    values = {metric: np.array([m[metric].value for m in whole]) for metric in METRICS}
    report = {"patients": patients(values, replicates=given.replicates, n_boot=given.n_boot)}
    people = {
        f"person {p}": [
            kept(given.keep / f"layout-{p}-{r}.npz", lambda p=p, r=r: predictors()(Layout(tissue, p, 0, redraw=r)))
            for r in range(given.layouts)
        ]
        for p in range(given.people)
    }
    print(f"blocks of the sections of {given.people} people")
    report["blocks"] = blocks(people, n_boot=given.n_boot)
    for length_um in LENGTHS_UM:
        print(f"blocks of fields of {length_um:.0f} µm")
        report[f"fields of {length_um:.0f} um"] = blocks({"": fields(length_um, given.fields)}, n_boot=given.n_boot)
    if given.out:
        write_json(given.out, report)


if __name__ == "__main__":
    main()
