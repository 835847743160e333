"""How far the ceiling of counting noise lies from what knowing the rates gives, on simulated sections of other depth.

    uv run python benchmarks/judge_ceiling.py [--preset visium] [--depth 1 --depth 0.1] [--dispersion 0] [--sections 4]
    uv run python benchmarks/judge_ceiling.py --pooled 20x10 --pooled 6x300

A section's expected counts are taken as they are simulated, times `--depth`; counts are drawn around them, as Poisson
or with the dispersion given. What is known comes from many more draws of the same rates, normalised by the location's
own total: each target's (or rank's) mean over them. Genes are chosen on a draw of their own. Nothing is painted.

`--pooled` is of log1p of raw counts over many small sections at once, as `hest-benchmark` pools them: rates are
log-normal about `RATE`, and noise is estimated of all locations together, and, to compare, section by section.
"""

from __future__ import annotations

import argparse

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.bench.ceilings.laws import expected_log1p_counts
from triglyph.metrics.correlation import mean_defined, pearson
from triglyph.metrics.counting_noise import log_noise, noise_free_depth_removed, noise_free_pearson, rank_noise
from triglyph.metrics.expression import TARGET, log1p_cp10k, most_variable, without_depth
from triglyph.metrics.ranking import average_ranks
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen

Floats = NDArray[np.float64]
RATE, SPREAD = 0.3, 0.7
"""Mean rate and deviation of its log, of `--pooled`."""
NAMES = ("Pearson", "ranks", "ranks, depth removed")


def drawn(rate: Floats, dispersion: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Counts around rates."""
    return rng.poisson(rate * rng.gamma(1 / dispersion, dispersion, rate.shape) if dispersion else rate)


def known(
    rate: Floats, counts: Floats, columns: NDArray[np.intp], *, dispersion: float, draws: int, rng: np.random.Generator
) -> list[float]:
    """What the means over draws of the rates reach on the counts, of targets and of their ranks."""
    totals = counts.sum(axis=1)
    scale = (TARGET / totals)[:, None]
    truth = np.log1p(scale * counts[:, columns])
    ordered, mean, middle = np.sort(truth, axis=0), np.zeros(truth.shape), np.zeros(truth.shape)
    for _ in range(draws):
        other = np.log1p(scale * drawn(rate[:, columns], dispersion, rng))
        mean += other / draws
        for g in range(len(columns)):
            below = ordered[:, g].searchsorted(other[:, g] - 1e-9)
            middle[:, g] += (below + ordered[:, g].searchsorted(other[:, g] + 1e-9, side="right")) / draws
    ranks = average_ranks(truth)
    left = without_depth(middle, totals)
    return [mean_defined(pearson(a, b)).value for a, b in ((mean, truth), (middle, ranks), (left, ranks))]


def estimated(counts: Floats, columns: NDArray[np.intp]) -> list[float]:
    """The same from the counts alone."""
    totals, chosen = counts.sum(axis=1), counts[:, columns]
    scale = TARGET / totals
    truth = np.log1p(scale[:, None] * chosen)
    found = (
        noise_free_pearson(truth, log_noise(chosen, scale=scale)),
        noise_free_pearson(average_ranks(truth), rank_noise(chosen, scale=scale)),
        noise_free_depth_removed(chosen, totals),
    )
    return [mean_defined(v).value for v in found]


def pooled(sections: int, locations: int, *, genes: int, rng: np.random.Generator) -> list[float]:
    """Pearson over all locations: known, estimated of all at once, and estimated section by section."""
    rate = RATE * np.exp(SPREAD * rng.normal(size=(sections * locations, genes)) - SPREAD**2 / 2)
    counts = rng.poisson(rate)
    truth, mean = np.log1p(counts), expected_log1p_counts(rate)
    apart = np.concatenate([log_noise(part) for part in np.split(counts, sections)])
    found = (pearson(mean, truth), noise_free_pearson(truth, log_noise(counts)), noise_free_pearson(truth, apart))
    return [mean_defined(v).value for v in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="visium")
    parser.add_argument("--depth", type=float, action="append", help="times the preset's; several times")
    parser.add_argument("--dispersion", type=float, default=0.0, help="of counts around the rates; 0: Poisson")
    parser.add_argument("--sections", type=int, default=4, help="counts drawn anew")
    parser.add_argument(
        "--draws", type=int, default=200, help="of the same rates, for what is known; not of `--pooled`"
    )
    parser.add_argument("--genes", type=int, default=50)
    parser.add_argument("--pooled", action="append", help="SECTIONSxLOCATIONS of each; several times, nothing else")
    given = parser.parse_args()
    for shape in given.pooled or ():
        sections, locations = map(int, shape.split("x"))
        rng = np.random.default_rng(0)
        values = [pooled(sections, locations, genes=given.genes, rng=rng) for _ in range(given.sections)]
        truth, stacked, apart = np.mean(values, axis=0)
        said = f"known {truth:.3f}, of all at once {stacked - truth:+.3f}, section by section {apart - truth:+.3f}"
        print(f"pooled, {sections} sections of {locations}: {said}", flush=True)
    if given.pooled:
        return
    expected = np.asarray(Specimen(preset(given.preset), 3, 0).table.layers["truth_expected"], dtype=np.float64)
    for depth in given.depth or (1.0,):
        rng, rows, middle = np.random.default_rng(0), [], []
        for _ in range(given.sections):
            first = sp.csr_matrix(drawn(expected * depth, given.dispersion, rng))
            seen = np.asarray(first.sum(axis=1)).ravel() > 0
            columns = most_variable(log1p_cp10k(first)[seen], n_genes=given.genes)
            counts = drawn(expected * depth, given.dispersion, rng).astype(np.float64)
            seen = counts.sum(axis=1) > 0
            counts, rate = counts[seen], expected[seen] * depth
            truth = known(rate, counts, columns, dispersion=given.dispersion, draws=given.draws, rng=rng)
            rows.append((truth, estimated(counts, columns)))
            middle.append(float(np.median(counts.sum(axis=1))))
        truth, found = np.mean(rows, axis=0)
        said = "; ".join(f"{n} {t:.3f}, {f - t:+.3f}" for n, t, f in zip(NAMES, truth, found, strict=True))
        print(f"{given.preset}, {len(counts)} locations, {np.mean(middle):.0f} counts: {said}", flush=True)


if __name__ == "__main__":
    main()
