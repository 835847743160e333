"""Which classes of which data set are asked for, and with which words."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from triglyph.bench.contracts import SectionLike
from triglyph.bench.labels.classes import known_labels
from triglyph.bench.spatialwhisperer.protocol import SpatialWhispererBenchmark

TUNED = "the authors compared twelve wordings on five test images"
CRC = (
    "B cells",
    "Macrophages/Monocytes",
    "Adipocytes",
    "Dendritic cells",
    "T cells",
    "Granulocytes",
    "NK cells",
    "Nerves",
    "Plasma cells",
    "Smooth muscle",
    "Stroma",
    "Tumor cells",
    "Vasculature/Lymphatics",
)
SKIN = (
    "Chondral tissue",
    "Dermis",
    "Elastosis",
    "Epidermis",
    "Hair follicle",
    "Skeletal muscle",
    "Necrosis",
    "Nerves",
    "Sebaceous glands",
    "Subcutis",
    "Eccrine glands",
    "Vessels",
    "Basal cell carcinoma",
    "Squamous cell carcinoma",
    "Melanoma",
    "Naevi",
)


class SpatialWhispererCrc(SpatialWhispererBenchmark):
    """13 classes of PathoCell; background and "other cells" are not asked for."""

    name: ClassVar[str] = "spatialwhisperer-crc"
    about: ClassVar[str] = "109 cores of colorectal cancer, 13 classes (PathoCell)"
    queries: dict[str, str] = Field(default={c: c for c in CRC})
    judged: dict[str, tuple[str, ...]] = Field(default={c: (c,) for c in CRC})


class SpatialWhispererLizard(SpatialWhispererBenchmark):
    """Six classes are asked for, three judged."""

    name: ClassVar[str] = "spatialwhisperer-lizard"
    about: ClassVar[str] = "70 test images of colon, 3 of 6 classes (Lizard)"
    transductive: ClassVar[tuple[str, ...]] = (TUNED,)
    queries: dict[str, str] = Field(
        default={
            "Neutrophil": "neutrophil",
            "Epithelial": "epithelial",
            "Lymphocyte": "lymphocyte",
            "Plasma": "plasma",
            "Eosinophil": "eosinophil",
            "Connective tissue": "fibroblast",
        }
    )
    judged: dict[str, tuple[str, ...]] = Field(
        default={
            "Epithelial": ("Epithelial",),
            "Leukocyte": ("Neutrophil", "Lymphocyte", "Eosinophil"),
            "Fibroblast": ("Connective tissue",),
        }
    )
    dropped: tuple[str, ...] = ("Plasma",)


class SpatialWhispererPanNuke(SpatialWhispererBenchmark):
    """Five classes are asked for, four judged."""

    name: ClassVar[str] = "spatialwhisperer-pannuke"
    about: ClassVar[str] = "fold 2 in montages of 50 samples, 4 of 5 classes (PanNuke)"
    transductive: ClassVar[tuple[str, ...]] = (TUNED,)
    queries: dict[str, str] = Field(
        default={
            "Epithelial": "epithelial",
            "Dead Cells": "dead cells",
            "Connective/Soft tissue cells": "fibroblasts",
            "Inflammatory": "leukocytes",
            "Neoplastic cells": "cancer cells",
        }
    )
    judged: dict[str, tuple[str, ...]] = Field(
        default={c: (c,) for c in ("Epithelial", "Connective/Soft tissue cells", "Inflammatory", "Neoplastic cells")}
    )
    dropped: tuple[str, ...] = ("Dead Cells",)


class SpatialWhispererSkin(SpatialWhispererBenchmark):
    """16 classes of one label a tile, over all tiles at once."""

    name: ClassVar[str] = "spatialwhisperer-skin"
    about: ClassVar[str] = "test tiles of skin, 16 classes over all tiles at once (Kriegsmann et al. 2022)"
    aggregations: ClassVar[tuple[str, ...]] = ("pooled",)
    queries: dict[str, str] = Field(default={c: c for c in SKIN})
    judged: dict[str, tuple[str, ...]] = Field(default={c: (c,) for c in SKIN})

    def counts(self, section: SectionLike) -> tuple[NDArray[Any], tuple[str, ...]]:
        return (known_labels(section)[:, None] == np.array(SKIN)).astype(np.int32), SKIN


SETS: tuple[type[SpatialWhispererBenchmark], ...] = (
    SpatialWhispererCrc,
    SpatialWhispererLizard,
    SpatialWhispererPanNuke,
    SpatialWhispererSkin,
)
