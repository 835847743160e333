"""What stands beside a subject by default, by name.

It is no part of a protocol's card: it decides none of its numbers. `baselines` and `ceilings` say when each is there.
"""

from __future__ import annotations

from triglyph.bench.ceilings.subjects import CONTENT, COUNTING, DOMAINS, EXPRESSION, HALF
from triglyph.bench.expression.protocol import Expression, GenesFromGenes
from triglyph.bench.hescape.retrieval import HescapeRetrieval
from triglyph.bench.hest.protocol import HestBenchmark
from triglyph.bench.labels.zero_shot import ZeroShot
from triglyph.bench.protocol import LABEL_TASKS, Protocol
from triglyph.bench.representations import REPRESENTATIONS
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.retrieval_across import RetrievalAcross
from triglyph.bench.slides.bags import BagProtocol
from triglyph.models.fused import reads

Names = tuple[str, ...]


def standing(protocol: Protocol) -> dict[str, Names]:
    """`baselines and controls`, and `ceilings`: all that a cohort which allows each of them is given."""
    baselines, ceilings = _standing(protocol)
    return {"baselines and controls": baselines, "ceilings": ceilings}


def _standing(protocol: Protocol) -> tuple[Names, Names]:
    if isinstance(protocol, GenesFromGenes):
        return ("mean", "Min-MAE", "library size (core)", "ridge", "ridge + neighbours", HALF), (COUNTING, EXPRESSION)
    if isinstance(protocol, Expression | HestBenchmark):
        image = ("haematoxylin mean", "stain-texture") if protocol.modality == "image" else ()
        others = ("mean", "library size", "position", *image, "position, aligned", "shuffled pairs")
        return others, (COUNTING, EXPRESSION)
    if isinstance(protocol, Retrieval | HescapeRetrieval):
        ridges = ("position + ridge", "stain-texture + ridge")
        if isinstance(protocol, RetrievalAcross):
            return ridges, ()
        return ridges, (EXPRESSION, CONTENT) if isinstance(protocol, Retrieval) else (EXPRESSION,)
    if isinstance(protocol, BagProtocol):
        return ("majority", "stain-texture") if protocol.modality == "image" else ("majority",), ()
    if protocol.task in LABEL_TASKS:
        parts = reads(getattr(protocol, "modality", "image"))
        shown = ("stain-texture",) if "image" in parts else ()
        counted = ("library size", *REPRESENTATIONS) if "expression" in parts else ()
        return ("position", *shown, *counted), (DOMAINS,)
    return (), (DOMAINS,) if isinstance(protocol, ZeroShot) else ()
