"""Protocols by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from triglyph.bench.batch_effect import BatchEffect
from triglyph.bench.expression.protocol import Expression, GenesFromGenes
from triglyph.bench.hescape.expression import HescapeExpression
from triglyph.bench.hescape.mutation import HescapeMutation
from triglyph.bench.hescape.retrieval import HescapeRetrieval
from triglyph.bench.hest.protocol import VARIANTS, HestBenchmark
from triglyph.bench.labels.clustering import Clustering
from triglyph.bench.labels.knn import NearestNeighbours
from triglyph.bench.labels.label_retrieval import LabelSearch
from triglyph.bench.labels.learning_curve import LearningCurve
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.labels.simpleshot import SimpleShot
from triglyph.bench.labels.zero_shot import ZeroShot
from triglyph.bench.protocol import Protocol
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.retrieval_across import RetrievalAcross
from triglyph.bench.slides.classification import SlideClassification
from triglyph.bench.spatialwhisperer.sets import SETS
from triglyph.bench.stamp.expression import StampExpression
from triglyph.bench.stamp.tissue import StampDlpfc, StampHbc
from triglyph.configs import deep_merge, parse_override
from triglyph.errors import RecipeError

_ALL: tuple[type[Protocol], ...] = (
    Retrieval,
    RetrievalAcross,
    ZeroShot,
    LinearProbe,
    NearestNeighbours,
    SimpleShot,
    LearningCurve,
    Clustering,
    LabelSearch,
    Expression,
    GenesFromGenes,
    HestBenchmark,
    HescapeRetrieval,
    HescapeExpression,
    HescapeMutation,
    BatchEffect,
    *VARIANTS,
    *SETS,
    StampDlpfc,
    StampHbc,
    StampExpression,
    SlideClassification,
)
PROTOCOLS: dict[str, type[Protocol]] = {p.name: p for p in _ALL}


def names() -> list[str]:
    """Names of all protocols."""
    return list(PROTOCOLS)


def protocol(name: str, options: dict[str, Any] | None = None) -> Protocol:
    """A protocol, with some of its constants set.

    Raises
    ------
    RecipeError
        No such protocol, or no such constant, or a value that does not fit.
    """
    if name not in PROTOCOLS:
        close = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else "see `triglyph bench list`"
        raise RecipeError(f"no protocol is called {name!r}", mend=f"{hint} There are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name].configured(options or {})


def parse_options(settings: Iterable[str]) -> dict[str, Any]:
    """`key=value` strings, values in YAML, as a dict; `a.b=c` sets a key inside another.

    Raises
    ------
    RecipeError
        A string is not of that form.
    """
    options: dict[str, Any] = {}
    for text in settings:
        options = deep_merge(options, parse_override(text))
    return options
