"""Triglyph: morphology, molecules and language of tissue under one contract.

`import triglyph as tg` costs no torch and no spatialdata: names are looked up on first use.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any

__version__ = version("triglyph")

_PUBLIC = {
    "Affine": "triglyph.tissue.frames:Affine",
    "Cohort": "triglyph.tissue.cohort:Cohort",
    "Result": "triglyph.metrics.result:Result",
    "Section": "triglyph.tissue.section:Section",
    "Split": "triglyph.tissue.split:Split",
    "TrainedModel": "triglyph.apply.trained:TrainedModel",
    "TriglyphError": "triglyph.errors:TriglyphError",
    "annotate": "triglyph.workflows.annotate:annotate",
    "demo": "triglyph.workflows.demo:demo",
    "embed": "triglyph.workflows.embed:embed",
    "get_image_features": "triglyph.apply.spatialwhisperer:get_image_features",
    "get_text_features": "triglyph.apply.spatialwhisperer:get_text_features",
    "get_transcriptome_features": "triglyph.apply.spatialwhisperer:get_transcriptome_features",
    "judge": "triglyph.workflows.bench_run:bench_run",
    "load_spatialwhisperer_model": "triglyph.apply.spatialwhisperer:load_spatialwhisperer_model",
    "read": "triglyph.workflows.read:read",
    "settings": "triglyph.settings:settings",
    "simulate": "triglyph.workflows.simulate:simulate",
    "split": "triglyph.workflows.split:split",
    "train": "triglyph.workflows.train:train",
}
"""Public name -> where it lives. `judge` is `triglyph bench run`: `bench` is a subpackage."""

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'triglyph' has no attribute {name!r}")
    module, attribute = _PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
