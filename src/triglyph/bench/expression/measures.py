"""How predicted expression is measured: within each section, and over all locations of a patient at once.

Genes that are constant in the truth have no correlation and are left out of every subject's mean alike, and counted. A
gene that only the *prediction* holds constant stays in the mean as 0, which is chance: else a subject would be spared
its hard genes. A subject that predicts nothing but constants has no correlation at all.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.bench.contracts import SectionLike
from triglyph.bench.expression.targets import Targets
from triglyph.bench.rows import Measure, Rows
from triglyph.metrics.bootstrap import Resamples, nan_mean, spatial_blocks
from triglyph.metrics.correlation import mean_defined, pearson, spearman
from triglyph.metrics.counting_noise import log_noise, noise_free_depth_removed, noise_free_pearson, rank_noise
from triglyph.metrics.expression import (
    TARGET,
    depth_removed_spearman,
    fraction_of_ceiling,
    mean_squared_error,
    r_squared,
)
from triglyph.metrics.ranking import average_ranks
from triglyph.metrics.spatial import MoranAgreement, moran_agreement, morans_i, neighbour_graph

Floats = NDArray[np.float64]
Rowset = NDArray[np.intp]

MORAN_NEIGHBOURS = 6

METRICS = {
    "pearson": "per gene over a section's locations; mean over the genes that vary there. A constant prediction is 0, "
    "nothing but constants undefined",
    "spearman": "as pearson, of average ranks; no interval",
    "spearman-depth-removed": "as spearman, of the targets as composition (log1p of counts per 10,000 of all measured "
    "genes) and what is left of the prediction after a line through log depth",
    "mse": "mean over locations and genes",
    "mse-mean-removed": "as mse, after each gene's mean over the patient is taken off both sides",
    "r2": "1 - squared error over the squared deviation from the section's (patient's) own mean, mean over genes",
    "r2-training-mean": "1 - squared error over the squared error of predicting the training mean, mean over genes",
    "moran": f"Pearson over genes between Moran's I of prediction and of truth, {MORAN_NEIGHBOURS} nearest locations",
    "moran-difference": "mean over genes of Moran's I of the prediction less that of the truth; above 0: too smooth",
    "ceiling-fraction": "pearson over the ceiling that the noise of counting sets",
    "genes-undefined": "genes left out of the correlations: constant in the section's truth",
    "genes-constant": "genes that vary and are predicted as a constant",
}
PATIENT_POOLED = "group = a patient: over all their locations at once; group = all: the mean of the patients' values"


@dataclass
class Ceilings:
    """Pearson and Spearman that a noise-free prediction would reach, section by section, each computed once."""

    targets: Targets
    kept: dict[tuple[str, bytes], dict[str, Floats]] = field(default_factory=dict)

    def of(self, section: SectionLike, rows: Rowset) -> dict[str, Floats]:
        """Per gene: `pearson`, `spearman`, `spearman-depth-removed`."""
        key = (section.id, rows.tobytes())  # subjects may have other locations
        if key not in self.kept:
            counts, scale = self.counts(section, rows)
            truth = self.targets[section][0][rows]
            self.kept[key] = {
                "pearson": noise_free_pearson(truth, log_noise(counts, scale=scale)),
                "spearman": noise_free_pearson(average_ranks(truth), rank_noise(counts, scale=scale)),
                "spearman-depth-removed": noise_free_depth_removed(counts, self.targets.totals(section)[rows]),
            }
        return self.kept[key]

    def counts(self, section: SectionLike, rows: Rowset) -> tuple[sp.csr_matrix, Floats]:
        """(k, genes) counts of the targets, and (k,) what they are multiplied by before the log."""
        counts = self.targets.counts(section)[rows]
        if self.targets.scale == "log1p-counts":
            return counts[:, self.targets.columns], np.ones(len(rows))
        depth = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
        return counts[:, self.targets.columns], TARGET / np.maximum(depth, 1.0)


@dataclass(frozen=True)
class Scored:
    """A section's measures, and the correlations of its single genes."""

    measures: dict[str, Measure]
    genes: dict[str, Floats]
    """Metric -> (genes,), NaN where undefined."""


def score_section(
    rows: Rows, section: SectionLike, kept: Rowset, guess: Floats, targets: Targets, ceilings: Ceilings
) -> Scored:
    """All metrics of the predictions (k, genes) at the locations `kept` of a section."""
    truth, composition = targets[section][0][kept], targets.composition(section)[kept]
    drawn = rows.blocks(section, kept)
    n, genes = truth.shape
    varies = np.ptp(truth, axis=0) > 0 if n else np.zeros(genes, dtype=bool)
    r = _scored(pearson(guess, truth), varies)
    draws = drawn.pearson(guess, truth)
    draws[:, varies & (r == 0)] = 0.0  # as the value: a constant prediction counts 0
    ceiling = mean_defined(np.where(varies, ceilings.of(section, kept)["pearson"], np.nan)).value
    smooth = _smoothness(section.centres_um[kept], guess, truth)
    rank = spearman(guess, truth)
    constant = varies & np.isnan(rank)
    rank = _scored(rank, varies)
    removed = depth_removed_spearman(guess, composition, totals=targets.totals(section)[kept])
    removed = _scored(removed, np.ptp(composition, axis=0) > 0 if n else varies)
    pearson_mean = mean_defined(r)
    measures = {
        "pearson": _pearson(r, draws, drawn, n),
        "spearman": _mean(rank, n, chance=0.0),
        "spearman-depth-removed": _mean(removed, n, chance=0.0),
        "mse": _error(guess, truth, drawn),
        "r2": _mean(r_squared(guess, truth), n),
        "r2-training-mean": _mean(r_squared(guess, truth, about=targets.training_mean), n),
        "moran": Measure(value=smooth.pearson, n=n, n_genes=smooth.n_genes, chance=0.0),
        "moran-difference": Measure(value=smooth.mean_difference, n=n, n_genes=smooth.n_genes),
        "ceiling-fraction": Measure(
            value=float(fraction_of_ceiling(pearson_mean.value, ceiling)), n=n, n_genes=pearson_mean.n
        ),
        "genes-undefined": Measure(value=float((~varies).sum()), n=n, n_genes=genes),
        "genes-constant": Measure(value=float(constant.sum()), n=n, n_genes=genes),
    }
    return Scored(measures, {"pearson": r, "spearman": rank, "spearman-depth-removed": removed})


def patient_measures(
    rows: Rows, sections: Sequence[SectionLike], found: Mapping[str, tuple[Rowset, Floats]], targets: Targets
) -> dict[str, Measure]:
    """Metrics over all locations of one patient at once.

    Parameters
    ----------
    found
        Section id -> (locations, predictions) of the patient's sections.
    """
    guess = np.concatenate([found[s.id][1] for s in sections])
    truth = np.concatenate([targets[s][0][found[s.id][0]] for s in sections])
    n, genes = truth.shape
    varies = np.ptp(truth, axis=0) > 0 if n else np.zeros(genes, dtype=bool)
    side = rows.protocol.block_um
    drawn = Resamples(
        np.concatenate([spatial_blocks(s.centres_um, side_um=side)[found[s.id][0]] for s in sections]),
        strata=np.concatenate([np.full(len(found[s.id][0]), i) for i, s in enumerate(sections)]),
        n_boot=rows.n_boot,
        seed=[rows.protocol.seed, zlib.crc32(sections[0].patient.encode())],
    )
    scored = _scored(pearson(guess, truth), varies)
    draws = drawn.pearson(guess, truth)
    draws[:, varies & (scored == 0)] = 0.0
    return {
        "pearson": _pearson(scored, draws, drawn, n),
        "spearman": _mean(_scored(spearman(guess, truth), varies), n, chance=0.0),
        "mse": _error(guess, truth, drawn),
        "mse-mean-removed": _mean(mean_squared_error(guess, truth, centred=True), n),
        "r2": _mean(r_squared(guess, truth), n),
        "r2-training-mean": _mean(r_squared(guess, truth, about=targets.training_mean), n),
    }


def ceiling_measures(rows: Rows, section: SectionLike, kept: Rowset, ceilings: Ceilings) -> dict[str, Measure]:
    """What a noise-free prediction would reach on a section, given the noise of its counts."""
    drawn = rows.blocks(section, kept)
    counts, scale = ceilings.counts(section, kept)
    truth = ceilings.targets[section][0][kept]
    draws = noise_free_draws(drawn, truth, log_noise(counts, scale=scale))
    out = {}
    for name, values in ceilings.of(section, kept).items():
        mean = mean_defined(values)
        out[name] = Measure(
            value=mean.value,
            n=len(kept),
            n_genes=mean.n,
            chance=0.0,
            draws=nan_mean(draws, axis=1) if name == "pearson" else None,
            n_blocks=drawn.n_units if name == "pearson" else 0,
        )
    return out


def noise_free_draws(drawn: Resamples, values: Floats, noise: Floats) -> Floats:
    """(n_boot, genes) `noise_free_pearson` of values and their noise (n, genes) in each draw; NaN where constant."""
    about = values - values.mean(axis=0)
    variance = drawn.mean(about**2) - drawn.mean(about) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        share = 1.0 - drawn.mean(noise) * (len(values) - 1) / len(values) / variance
    return np.where(variance > 1e-9 * (about**2).mean(axis=0), np.sqrt(np.clip(share, 0.0, 1.0)), np.nan)


def _smoothness(centres_um: Floats, guess: Floats, truth: Floats) -> MoranAgreement:
    """Moran's I of both sides; undefined without places, or with too few locations to have neighbours."""
    if len(centres_um) < 2 or not np.isfinite(centres_um).all():
        nowhere = np.full(truth.shape[1], np.nan)
        return moran_agreement(nowhere, nowhere)
    graph = neighbour_graph(centres_um, k=MORAN_NEIGHBOURS)
    return moran_agreement(morans_i(guess, graph), morans_i(truth, graph))


def _scored(r: Floats, varies: NDArray[np.bool_]) -> Floats:
    """Constant predictions of varying genes as 0, unless there is nothing else."""
    if np.isnan(r).all():
        return r
    return np.where(varies, np.nan_to_num(r, nan=0.0), np.nan)


def _pearson(r: Floats, draws: Floats, drawn: Resamples, n: int) -> Measure:
    mean = mean_defined(r)
    return Measure(
        value=mean.value,
        n=n,
        n_genes=mean.n,
        chance=0.0,
        draws=nan_mean(draws, axis=1),
        n_blocks=drawn.n_units,
    )


def _error(guess: Floats, truth: Floats, drawn: Resamples) -> Measure:
    n, genes = truth.shape
    return Measure(
        value=float(mean_squared_error(guess, truth).mean()) if n else float("nan"),
        n=n,
        n_genes=genes,
        draws=drawn.mean(((guess - truth) ** 2).mean(axis=1))[:, 0],
        n_blocks=drawn.n_units,
    )


def _mean(values: Floats, n: int, *, chance: float | None = None) -> Measure:
    mean = mean_defined(values)
    return Measure(value=mean.value, n=n, n_genes=mean.n, chance=chance)
