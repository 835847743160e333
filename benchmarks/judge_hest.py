"""`hest-benchmark` with exact PCA beside the scikit-learn pipeline of the reference, in one run.

    uv run python benchmarks/judge_hest.py [--locations 20000] [--features 1536] [--runs 3] [--no-full]

Features have a decaying spectrum, as those of encoders have; genes follow some of their directions. Timed are fit and
prediction: StandardScaler, PCA(256) and Ridge(lsqr), with the solver that scikit-learn chooses (randomised at this
size) and with `full` (once: it takes minutes), against one eigendecomposition. Rounds alternate, the median counts. CPU
seconds stand beside those of the clock, since they do not depend on who else is computing: with OMP_NUM_THREADS=1 they
are the fairer ones. The floor is the product of the features with themselves, which every exact way needs, measured and
as arithmetic.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from triglyph.bench.hest.exact_pca import fit_pca_ridge
from triglyph.metrics.correlation import pearson

Floats = NDArray[np.float64]
COMPONENTS, GENES = 256, 50
FLOOR, EXACT, FULL = "product alone (floor)", "exact", "scikit-learn, full"
ALPHA = 100 / (COMPONENTS * GENES)


def tissue(n: int, d: int, seed: int = 0) -> tuple[Floats, Floats]:
    """(n, d) features of a power-law spectrum, and (n, genes) targets that follow some of their directions."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -0.7
    mixing = np.linalg.qr(rng.normal(size=(d, d)))[0]
    genes = state[:, :100] @ (rng.normal(size=(100, GENES)) / np.arange(1, 101)[:, None] ** 0.3)
    x = state @ mixing * rng.uniform(0.5, 2.0, d) + rng.normal(size=d)
    return x, genes + rng.normal(size=(n, GENES)) * genes.std(axis=0) + 1.0


def scikit_learn(x: Floats, y: Floats, new: Floats, *, solver: str) -> Floats:
    prepare = make_pipeline(StandardScaler(), PCA(COMPONENTS, svd_solver=solver, random_state=1))
    ridge = Ridge(solver="lsqr", alpha=ALPHA, fit_intercept=False, max_iter=1000).fit(prepare.fit_transform(x), y)
    return np.asarray(ridge.predict(prepare.transform(new)))


def exact(x: Floats, y: Floats, new: Floats) -> Floats:
    return fit_pca_ridge(x, y, n_components=COMPONENTS).predict(new, alpha=ALPHA)


def timed(work: Callable[[], Floats]) -> tuple[Floats, Floats]:
    """Seconds of the clock and of the CPU, and what came out."""
    before = np.array([time.perf_counter(), time.process_time()])
    out = work()
    return np.array([time.perf_counter(), time.process_time()]) - before, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--locations", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=1536)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-full", action="store_true", help="leave the full SVD out")
    asked = parser.parse_args()
    n, d = asked.locations, asked.features
    x, y = tissue(n + 2000, d)
    x, y, new, truth = x[:n], y[:n], x[n:], y[n:]
    work: dict[str, Callable[[], Floats]] = {
        FLOOR: lambda: x.T @ x,
        EXACT: lambda: exact(x, y, new),
        "scikit-learn, its own solver": lambda: scikit_learn(x, y, new, solver="auto"),
        FULL: lambda: scikit_learn(x, y, new, solver="full"),
    }
    if asked.no_full:
        del work[FULL]
    seconds: dict[str, list[Floats]] = {name: [] for name in work}
    found: dict[str, Floats] = {}
    for i in range(asked.runs):
        for name, run in work.items():
            if i == 0 or name != FULL:
                took, found[name] = timed(run)
                seconds[name].append(took)
                print(f"round {i + 1}: {name}, {took[0]:.2f} s, {took[1]:.2f} s of CPU", flush=True)
    median = {name: np.median(of, axis=0) for name, of in seconds.items()}
    print(f"{n} x {d} features, {COMPONENTS} components, {GENES} genes; median of {asked.runs} alternating rounds")
    print(f"floor: {n * d * d / 1e9:.0f} billion multiply-adds of a symmetric product")
    print(f"{'':>30} {'clock, CPU s':>14} {'x exact':>14} {'x floor':>14} {'Pearson':>9} {'largest difference':>19}")
    reference = pearson(found[EXACT], truth)
    for name, run in found.items():
        times = "".join(
            f" {a:8.2f}{b:6.2f}" for a, b in (median[name], median[name] / median[EXACT], median[name] / median[FLOOR])
        )
        r = pearson(run, truth) if name != FLOOR else np.full(GENES, np.nan)
        print(f"{name:>30}{times} {r.mean():9.5f} {np.abs(r - reference).max():19.1e}")


if __name__ == "__main__":
    main()
