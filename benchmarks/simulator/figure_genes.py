"""Figure 3, genes from genes: a core panel predicts 100 others in a patient that nothing was fitted on.

Targets are chosen on the training patients of each fold. First comes the Spearman correlation with depth removed
(targets as composition, log depth regressed out of the prediction, section by section); then the squared error after
the patient's mean is taken off both sides. Pooled Spearman and squared error on log1p of raw counts mostly measure
depth and the patient's offset; `offset share`, 1 - (error, mean removed) / error, says how much of the error that is.
The ceiling of the first comes from the noise of counting: see `ceiling`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import Ridge, RidgeCV
from slices import Floats, Slice, common_genes, neighbour_mean, people_folds, row

from triglyph.errors import GeneError
from triglyph.metrics.correlation import mean_defined, spearman
from triglyph.metrics.counting_noise import noise_free_depth_removed
from triglyph.metrics.expression import depth_removed_spearman
from triglyph.metrics.result import Result
from triglyph.metrics.thinning import split_counts

FILLER = re.compile(r"SIM\d+")
"""Simulated genes without a name in biology."""
PANEL_SIZE = 263
"""The core panel of her2st."""
N_TARGETS = 100
CEILING = "ceiling: counting noise"
HALF = "half of the counts against all"
SPLIT = "patients left out"


@dataclass
class Fold:
    """Log counts of core genes and targets of every section of a fold."""

    train: list[Slice]
    test: list[Slice]
    core: list[str]
    targets: list[str]

    def __post_init__(self) -> None:
        every = (*self.train, *self.test)
        raw = {s.id: s.of(self.core).toarray() for s in every}
        self.x = {k: np.log1p(v) for k, v in raw.items()}
        self.depth = {k: np.log1p(v.sum(axis=1, keepdims=True)) for k, v in raw.items()}
        self.counts = {s.id: s.of(self.targets).toarray() for s in every}
        self.y = {k: np.log1p(v) for k, v in self.counts.items()}

    def stacked(self, of: dict[str, Floats], slices: Sequence[Slice]) -> Floats:
        """Rows of some sections, one after the other."""
        return np.concatenate([of[s.id] for s in slices])

    def fitted(self, features: dict[str, Floats], model: object) -> dict[str, Floats]:
        """Test section -> prediction of a regression on the training sections."""
        model.fit(self.stacked(features, self.train), self.stacked(self.y, self.train))  # type: ignore[attr-defined]
        return {s.id: np.asarray(model.predict(features[s.id])) for s in self.test}  # type: ignore[attr-defined]


Predict = Callable[[Fold], dict[str, Floats]]


def training_mean(fold: Fold) -> dict[str, Floats]:
    """Every target's mean over the training locations."""
    mean = fold.stacked(fold.y, fold.train).mean(axis=0)
    return {s.id: np.tile(mean, (s.n, 1)) for s in fold.test}


def min_mae(fold: Fold) -> dict[str, Floats]:
    """For every target the core gene with the smallest absolute difference on the training locations."""
    x, y = fold.stacked(fold.x, fold.train), fold.stacked(fold.y, fold.train)
    nearest = np.array([np.abs(x - y[:, [j]]).mean(axis=0).argmin() for j in range(y.shape[1])])
    return {s.id: fold.x[s.id][:, nearest] for s in fold.test}


def library_size(fold: Fold) -> dict[str, Floats]:
    """Ridge from the log count of the core."""
    return fold.fitted(fold.depth, Ridge())


def ridge(fold: Fold) -> dict[str, Floats]:
    """Ridge from the core."""
    return fold.fitted(fold.x, RidgeCV(np.logspace(0, 5, 11)))


def ridge_neighbours(fold: Fold) -> dict[str, Floats]:
    """Ridge from the core, its mean over 7 locations and its log count, which is scaled up so as to cost little."""
    return fold.fitted(with_neighbours(fold), RidgeCV(np.logspace(0, 6, 13)))


def with_neighbours(fold: Fold) -> dict[str, Floats]:
    """Section -> (n, 2 core + 1): core genes, their mean over the 7 nearest, three times the log count."""
    return {
        s.id: np.hstack([fold.x[s.id], neighbour_mean(fold.x[s.id], s.xy_um, 7), 3 * fold.depth[s.id]])
        for s in (*fold.train, *fold.test)
    }


BASELINES: dict[str, Predict] = {
    "training mean": training_mean,
    "Min-MAE": min_mae,
    "library size (core)": library_size,
    "ridge": ridge,
    "ridge + neighbours": ridge_neighbours,
}


def genes(
    slices: Sequence[Slice],
    *,
    panel: Sequence[str] | None = None,
    baselines: dict[str, Predict] | None = None,
    folds: int = 8,
    n_targets: int = N_TARGETS,
    seed: int = 0,
) -> list[Result]:
    """The rows of every test patient.

    Parameters
    ----------
    panel
        Core genes; those that all sections have are used. None: the sections' own core panel, or a random half of the
        named genes.
    """
    core = core_panel(slices, panel=panel, seed=seed)
    out: list[Result] = []
    for train, test in people_folds(slices, folds=folds):
        targets = choose_targets(train, common_genes(slices), core, n_targets)
        fold = Fold(train, test, core, targets)
        for name, predict in (BASELINES if baselines is None else baselines).items():
            out += judge(fold, name, predict(fold))
        for patient in sorted({s.patient for s in test}):
            own = [s for s in test if s.patient == patient]
            found = [ceiling(s, targets, seed=seed) for s in own]
            out += [
                row(
                    "genes",
                    name,
                    "spearman, depth removed",
                    float(np.mean([f[name] for f in found])),
                    group=patient,
                    patient=patient,
                    split=SPLIT,
                    role="ceiling" if name == CEILING else "control",
                    n_genes=len(targets),
                    n=sum(s.n for s in own),
                )
                for name in (CEILING, HALF)
            ]
    return out


def core_panel(slices: Sequence[Slice], *, panel: Sequence[str] | None, seed: int = 0) -> list[str]:
    """The core genes that all sections measured."""
    common = common_genes(slices)
    if panel is None and all(s.core for s in slices):
        panel = sorted(set.intersection(*(set(s.core or ()) for s in slices)))
    if panel is not None:
        chosen = [g for g in dict.fromkeys(panel) if g in set(common)]
    else:
        named = [g for g in common if not FILLER.fullmatch(g)]
        size = min(PANEL_SIZE, len(named) // 2)
        chosen = sorted(np.random.default_rng(seed).permutation(named)[:size].tolist())
    if len(chosen) < 2:
        raise GeneError(f"{len(chosen)} core genes are in all sections", mend="give another panel")
    return chosen


def choose_targets(train: Sequence[Slice], common: Sequence[str], core: Sequence[str], n: int) -> list[str]:
    """The most variable, in log1p of raw counts, of the other genes seen in over a fifth of training locations."""
    inside = set(core)
    other = [g for g in common if g not in inside]
    size, seen = 0, np.zeros(len(other))
    total, square = np.zeros(len(other)), np.zeros(len(other))
    for s in train:
        logged = s.of(other)
        logged.eliminate_zeros()
        seen += logged.getnnz(axis=0)
        logged.data = np.log1p(logged.data)
        total += np.asarray(logged.sum(axis=0)).ravel()
        square += np.asarray(logged.multiply(logged).sum(axis=0)).ravel()
        size += s.n
    variance = square / size - (total / size) ** 2
    kept = np.flatnonzero(seen / size > 0.2)
    if not len(kept):
        raise GeneError("no gene beside the core is seen in a fifth of the locations", mend="use a smaller panel")
    return [other[i] for i in kept[np.argsort(-variance[kept], kind="stable")][:n]]


def judge(fold: Fold, name: str, predicted: dict[str, Floats]) -> list[Result]:
    """Five figures of every test patient."""
    out = []
    for patient in sorted({s.patient for s in fold.test}):
        own = [s for s in fold.test if s.patient == patient]
        removed = [
            mean_defined(
                depth_removed_spearman(predicted[s.id], composition(fold.counts[s.id], s.totals), totals=s.totals)
            )
            for s in own
        ]
        p, y = fold.stacked(predicted, own), fold.stacked(fold.y, own)
        error = p - y
        plain, centred = float((error**2).mean()), float(((error - error.mean(axis=0)) ** 2).mean())
        values = {
            "spearman, depth removed": float(np.mean([r.value for r in removed])),
            "mse, mean removed": centred,
            "spearman, pooled": mean_defined(spearman(p, y)).value,
            "mse": plain,
            "offset share": 1 - centred / plain if plain else float("nan"),
        }
        out += [
            row(
                "genes",
                name,
                metric,
                value,
                group=patient,
                patient=patient,
                split=SPLIT,
                n=len(y),
                n_genes=len(fold.targets),
            )
            for metric, value in values.items()
        ]
    return out


def composition(counts: Floats, totals: Floats) -> Floats:
    """log1p of counts per 10,000 of all counts of the location."""
    return np.log1p(counts / np.maximum(totals, 1.0)[:, None] * 1e4)


def ceiling(s: Slice, targets: Sequence[str], *, seed: int = 0, draws: int = 4) -> dict[str, float]:
    """Two readings of how well the counts of a section know themselves.

    `CEILING`: what a predictor that knew the noise-free composition could reach, by `metrics.counting_noise`.

    `HALF`: a random half of the counts as the prediction of all of them. Prediction and target share their noise, so it
    bounds nothing; it is here because a published figure of her2st appears to be this one.
    """
    rng = np.random.default_rng(seed)
    at = {symbol: i for i, symbol in enumerate(s.symbols)}
    columns = [at[g] for g in targets]
    whole = composition(s.counts[:, columns].toarray(), s.totals)
    half = []
    for _ in range(draws):
        a, _ = _halved(split_counts(s.counts, rng)[0], columns)
        half.append(mean_defined(depth_removed_spearman(a, whole, totals=s.totals)).value)
    bound = noise_free_depth_removed(s.counts[:, columns], s.totals)
    return {CEILING: mean_defined(bound).value, HALF: float(np.mean(half))}


def _halved(counts: sp.csr_matrix, columns: Sequence[int]) -> tuple[Floats, Floats]:
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    return composition(counts[:, columns].toarray(), total), total
