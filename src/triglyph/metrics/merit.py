"""What is known of a metric by its name: which way is better, and which values it can take."""

from __future__ import annotations

import math

_LOWER = frozenset({"median-rank", "mse", "mse-mean-removed", "batch-predictability", "brier"})
_NEITHER = frozenset(
    {
        "distance",
        "genes-constant",
        "genes-undefined",
        "label",
        "moran-difference",
        "probability",
        "queries-without-answer",
        "ties",
        "undefined",
        "undefined draws",
    }
)
_BOUNDS = {
    "acc": (0.0, 1.0),
    "ari": (-0.5, 1.0),
    "auroc": (0.0, 1.0),
    "brier": (0.0, 1.0),
    "balanced-accuracy": (0.0, 1.0),
    "macro-f1": (0.0, 1.0),
    "map": (0.0, 1.0),
    "median-rank": (1.0, math.inf),
    "mse": (0.0, math.inf),
    "mse-mean-removed": (0.0, math.inf),
    "mvacc": (0.0, 1.0),
    "nmi": (0.0, 1.0),
    "pcc-v": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    "r2": (-math.inf, 1.0),
    "r2-test-mean": (-math.inf, 1.0),
    "r2-training-mean": (-math.inf, 1.0),
    "recall": (0.0, 1.0),
    "spearman": (-1.0, 1.0),
    "spearman-depth-removed": (-1.0, 1.0),
    "weighted-f1": (0.0, 1.0),
}


def _base(metric: str) -> str:
    """`recall` of `recall@10`."""
    return metric.split("@", maxsplit=1)[0]


def lower_is_better(metric: str) -> bool:
    """Whether less of it is better, as of an error or a rank."""
    return _base(metric) in _LOWER


def is_merit(metric: str) -> bool:
    """Whether more of it, or less, is better: counts of what was left out, deviations and spreads are no merits."""
    return _base(metric) not in _NEITHER and not metric.endswith((" (std of folds)", ":sd"))


def bounds_of(metric: str) -> tuple[float, float]:
    """The values that a metric can take, where they are limited."""
    return _BOUNDS.get(_base(metric), (-math.inf, math.inf))
