"""Per-gene Pearson and Spearman of many genes beside a scipy loop and beside what they cannot beat, in one run.

    uv run python benchmarks/judge_metrics.py [--locations 100000] [--genes 1000] [--rounds 5]

Ours is timed on all genes, with as many threads as `OMP_NUM_THREADS` or the machine says. The peers run on some genes
and are scaled to all of them, which is fair to a loop: each gene costs it the same.

- `scipy loop`: `scipy.stats.pearsonr(x[:, g], y[:, g])`, as it is written everywhere, on one core.
- `scipy, contiguous`: the same on columns that were made contiguous beforehand, not timed: scipy at its best.
- floor of Pearson: reading both arrays once, with our threads.
- floor of Spearman: `numpy.sort` of every column of both, contiguous beforehand, with our threads. Ours may come out
  faster than this: it sorts digits, not values.

`by ours` is the median over rounds, which alternate all of them, of a time divided by ours: above 1 ours is faster.
Wall clock counts our threads as a gain; processor time does not, and says what is left on a machine with other work.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
from scipy import stats

from triglyph.metrics.correlation import pearson, spearman
from triglyph.metrics.parallel import each, n_threads, spans

METRICS = {"Pearson": (pearson, stats.pearsonr), "Spearman": (spearman, stats.spearmanr)}
Pairs = list[tuple[np.ndarray, np.ndarray]]


def made_cases(n: int, genes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predictions of any value beside two truths: of any value, and log-normalised counts of which most are 0."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(n, genes))
    guess = truth + rng.normal(size=(n, genes))
    depth = rng.lognormal(0, 0.5, size=(n, 1))
    rate = 0.02 + rng.gamma(0.3, 1.0, size=genes)
    counts = np.empty((n, genes))
    for rows in spans(n, 10_000):
        counts[rows] = np.log1p(rng.poisson(rate * depth[rows]) / depth[rows])
    print(f"counts: {100 * (counts == 0).mean():.0f} % zeros")
    return {"continuous": (guess, truth), "counts": (guess, counts)}


def seconds(function: Callable[[], object], *, times: float = 1.0) -> np.ndarray:
    """Wall clock and processor time of all threads, scaled."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return np.array([time.perf_counter() - wall, time.process_time() - cpu]) * times


def one_round(name: str, x: np.ndarray, y: np.ndarray, chosen: np.ndarray, columns: Pairs) -> np.ndarray:
    """(4, 2) for all genes: ours, the scipy loop, the same on contiguous columns, the floor."""
    ours, theirs = METRICS[name]
    share = x.shape[1] / len(chosen)
    if name == "Pearson":
        floor = seconds(lambda: each(lambda rows: x[rows].sum() + y[rows].sum(), spans(len(x), 1000)))
    else:
        floor = seconds(lambda: each(np.sort, [v for pair in columns for v in pair]), times=share)
    return np.stack(
        [
            seconds(lambda: ours(x, y)),
            seconds(lambda: [theirs(x[:, g], y[:, g]) for g in chosen], times=share),
            seconds(lambda: [theirs(a, b) for a, b in columns], times=share),
            floor,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--locations", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-genes", type=int, default=20)
    given = parser.parse_args()
    chosen = np.linspace(0, given.genes - 1, min(given.peer_genes, given.genes)).astype(int)
    print(
        f"{given.locations} locations x {given.genes} genes, float64, {n_threads()} threads, median of {given.rounds} "
        f"rounds; peers and the sort floor on {len(chosen)} genes, scaled; load {os.getloadavg()[0]:.1f}"
    )
    for case, (x, y) in made_cases(given.locations, given.genes).items():
        columns = [(np.ascontiguousarray(x[:, g]), np.ascontiguousarray(y[:, g])) for g in chosen]
        for name, (ours, theirs) in METRICS.items():
            expected = np.array([theirs(a, b)[0] for a, b in columns])
            difference = np.abs(ours(x, y)[chosen] - expected).max()  # and the first call warms up
            rounds = np.stack([one_round(name, x, y, chosen, columns) for _ in range(given.rounds)])
            ratios = np.median(rounds / rounds[:, :1], axis=0)
            print(
                f"\n{name}, truth {case}; largest difference from scipy {difference:.1e}; load {os.getloadavg()[0]:.1f}"
            )
            print(f"{'':>18} {'wall s':>8} {'by ours':>8} {'cpu s':>8} {'by ours':>8}")
            for i, who in enumerate(("ours", "scipy loop", "scipy, contiguous", "floor")):
                wall, cpu = np.median(rounds[:, i], axis=0)
                print(f"{who:>18} {wall:8.2f} {ratios[i, 0]:8.2f} {cpu:8.2f} {ratios[i, 1]:8.2f}", flush=True)


if __name__ == "__main__":
    main()
