"""Figures that the authors of SpatialWhisperer give for these benchmarks, as rows with `source` "published".

They are out of the reports in the authors' repository, not measured here. Their seeds 0, 1 and 2 were trained alike;
the released model is seed 0. Whose tissue the models were trained on was not compared with the people tested, so the
rows claim the level `within-patient`, as a model does here whose training is not known.
"""

from __future__ import annotations

from triglyph.metrics.result import Result

CITATION = "Schaefer et al., SpatialWhisperer, ICML 2026; github.com/zinagoodlab/spatialwhisperer, analysis/experiments"

MACRO: dict[str, tuple[float, float, float]] = {
    "SpatialWhisperer, seed 0 (released)": (0.630, 0.764, 0.689),
    "SpatialWhisperer, mean of 3 seeds": (0.621, 0.749, 0.687),
    "CONCH": (0.546, 0.615, 0.604),
    "CONCH, 'A sample of X cells'": (0.507, 0.581, 0.624),
    "PLIP": (0.488, 0.528, 0.584),
    "PLIP, 'A sample of X cells'": (0.468, 0.528, 0.588),
    "MUSK": (0.563, 0.556, 0.512),
    "MUSK, 'A sample of X cells'": (0.581, 0.563, 0.530),
    "image-text alone (Quilt-1M)": (0.566, 0.642, 0.713),
    "image to genes to classifier (two-stage)": (0.550, 0.662, 0.599),
    "OmiCLIP, short marker lists": (0.491, 0.611, 0.520),
    "OmiCLIP, long marker lists": (0.478, 0.646, 0.525),
}
"""Model -> CRC, Lizard, PanNuke: within images, over images, over classes. Sd over seeds: 0.008, 0.016, 0.001."""
COLUMNS = ("spatialwhisperer-crc", "spatialwhisperer-lizard", "spatialwhisperer-pannuke")
SEED_0 = "SpatialWhisperer, seed 0 (released)"
POOLED = {"spatialwhisperer-lizard": 0.828, "spatialwhisperer-pannuke": 0.748, "spatialwhisperer-skin": 0.698}
"""Of seed 0, over all patches at once."""
PER_CLASS = {
    "Smooth muscle": 0.734,
    "T cells": 0.734,
    "B cells": 0.726,
    "Vasculature/Lymphatics": 0.720,
    "Macrophages/Monocytes": 0.712,
    "Plasma cells": 0.639,
    "Granulocytes": 0.636,
    "Stroma": 0.633,
    "Dendritic cells": 0.611,
    "Tumor cells": 0.575,
    "Nerves": 0.541,
    "Adipocytes": 0.473,
    "NK cells": 0.457,
}
"""Of seed 0 on CRC."""


def published_rows(name: str, task: str, stamp: str, split: str, transductive: tuple[str, ...]) -> list[Result]:
    """What is published under a protocol.

    Parameters
    ----------
    name, task, stamp, transductive
        Of the protocol.
    split
        That of the measured rows, beside which these stand.
    """
    found: list[tuple[str, str, str, float]] = []
    if name in COLUMNS:
        found += [(model, "macro", "all", of[COLUMNS.index(name)]) for model, of in MACRO.items()]
    if name in POOLED:
        found.append((SEED_0, "pooled", "all", POOLED[name]))
    if name == COLUMNS[0]:
        found += [(SEED_0, "per-class", group, value) for group, value in PER_CLASS.items()]
    return [
        Result(
            task=task,
            protocol=stamp,
            metric="auroc",
            value=value,
            model=f"{model}, published",
            role="method",
            source="published",
            split=split,
            level="within-patient",
            direction="text->image",
            transductive=transductive,
            group=group,
            aggregation=aggregation,
            chance=0.5,
            compat="release",
        )
        for model, aggregation, group, value in found
    ]
