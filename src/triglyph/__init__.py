"""Triglyph: morphology, molecules and language of tissue under one contract.

`import triglyph as tg` costs no torch and no spatialdata: names are looked up on first use.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any

__version__ = version("triglyph")

_PUBLIC = {
    "Cohort": "triglyph.tissue.cohort",
    "Section": "triglyph.tissue.section",
    "Split": "triglyph.tissue.split",
    "Affine": "triglyph.tissue.frames",
    "TriglyphError": "triglyph.errors",
    "Result": "triglyph.metrics.result",
    "settings": "triglyph.settings",
    "read": "triglyph.workflows.read",
    "simulate": "triglyph.workflows.simulate",
    "audit": "triglyph.workflows.audit",
    "embed": "triglyph.workflows.embed",
    "train": "triglyph.workflows.train",
    "bench": "triglyph.workflows.bench",
    "demo": "triglyph.workflows.demo",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'triglyph' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
