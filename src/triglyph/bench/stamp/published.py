"""Figures that are given of Stamp's evaluations, as rows with `source` "published".

They come from summaries and reviews of the paper (arXiv 2602.13944), whose own tables were not read; the release has no
evaluation code. How spots were split, what the probe's penalty is, which algorithm clustered into how many, over which
genes and on which scale expression was predicted: none of it is known. So the rows claim the level `within-section`,
the least there is, their `aggregation` says only where they are from, and they share no line with what is measured.
"""

from __future__ import annotations

from typing import Literal

from triglyph.metrics.result import Result

CITATION = "Han et al., Fusing Pixels and Genes (Stamp), ICLR 2026, arXiv 2602.13944"
AS_PUBLISHED = "as published"
UNKNOWN = "read in summaries; split, constants and averaging are not known"
SEEN = "reviews say that it was trained on part of the data"

TISSUE: dict[str, tuple[str, tuple[float, float], tuple[float, float]]] = {
    "UNI": ("image", (0.544, 0.144), (0.859, 0.499)),
    "H-optimus-0": ("image", (0.568, 0.147), (0.816, 0.458)),
    "CONCH": ("image", (0.454, 0.124), (0.704, 0.406)),
    "mSTAR": ("image", (0.540, 0.159), (0.869, 0.505)),
    "scGPT-spatial": ("expression", (0.558, 0.215), (0.610, 0.208)),
    "Stamp_G": ("expression", (0.658, 0.369), (0.659, 0.416)),
    "Stamp_V": ("image", (0.624, 0.246), (0.872, 0.526)),
    "Stamp_F": ("fused", (0.721, 0.342), (0.899, 0.590)),
}
"""Model -> what it reads; balanced accuracy and ARI on DLPFC; the same on HBC."""
COLUMNS: dict[str, Literal[1, 2]] = {"stamp-dlpfc": 1, "stamp-hbc": 2}
EXPRESSION: dict[str, tuple[tuple[str, str, float], ...]] = {
    "ST-Net": (("PSC", "mse", 0.330), ("PSC", "pcc-v", 0.110), ("HHK", "mse", 1.357), ("HER2+", "mse", 1.190)),
    "EGN": (("PSC", "mse", 0.345), ("PSC", "pcc-v", 0.094), ("HHK", "mse", 1.321), ("HER2+", "mse", 1.112)),
}
"""Model, fitted on each data set -> data set, metric, value. Those of Stamp itself are called best and not given."""


def tissue_rows(name: str, stamp: str, split: str) -> list[Result]:
    """Of `stamp-dlpfc` or `stamp-hbc`; accuracies stand with probes, agreements with clusters."""
    at = COLUMNS[name]
    asked = (("linear-probe", "balanced-accuracy"), ("clustering", "ari"))
    return [
        _row(task, stamp, split, model, metric, value, f"{of[0]}->label", AS_PUBLISHED)
        for model, of in TISSUE.items()
        for (task, metric), value in zip(asked, of[at], strict=True)
    ]


def expression_rows(task: str, stamp: str, split: str) -> list[Result]:
    """Of `stamp-expression`, the data set in the aggregation."""
    return [
        _row(task, stamp, split, model, metric, value, "image->expression", f"{AS_PUBLISHED}, {data}")
        for model, of in EXPRESSION.items()
        for data, metric, value in of
    ]


def _row(
    task: str, stamp: str, split: str, model: str, metric: str, value: float, direction: str, aggregation: str
) -> Result:
    return Result(
        task=task,
        protocol=stamp,
        metric=metric,
        value=value,
        model=f"{model}, published",
        role="method",
        source="published",
        split=split,
        level="within-section",
        direction=direction,
        transductive=(UNKNOWN, SEEN) if model.startswith("Stamp") else (UNKNOWN,),
        aggregation=aggregation,
    )
