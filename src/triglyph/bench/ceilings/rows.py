"""Which ceilings a protocol has on a trial."""

from __future__ import annotations

from triglyph.bench.ceilings.expression import expression_ceilings
from triglyph.bench.ceilings.hest import hest_ceilings
from triglyph.bench.ceilings.labels import label_ceiling, zero_shot_ceiling
from triglyph.bench.ceilings.retrieval import retrieval_ceiling
from triglyph.bench.ceilings.subjects import CONTENT, ceiling_subject
from triglyph.bench.ceilings.text import text_retrieval
from triglyph.bench.contracts import Embedder, Trial
from triglyph.bench.expression.protocol import Expression
from triglyph.bench.hescape.retrieval import HescapeRetrieval
from triglyph.bench.hest.protocol import HestBenchmark
from triglyph.bench.labels.zero_shot import ZeroShot
from triglyph.bench.protocol import LABEL_TASKS, Protocol
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.retrieval_across import RetrievalAcross
from triglyph.bench.stamp.expression import StampExpression
from triglyph.bench.truth import Truths
from triglyph.metrics.result import Result


def ceiling_rows(protocol: Protocol, trial: Trial, source: Embedder | None) -> list[Result]:
    """Rows of the ceilings that a protocol has on a trial; sections without truth have only those that need none.

    Parameters
    ----------
    source
        What is judged: ceilings are taken in its directions, over the locations that it has. None: where nothing is
        judged, over all locations.
    """
    truths = Truths()
    if isinstance(protocol, RetrievalAcross):
        return []  # likelihoods of counts are compared among the locations of one section
    if isinstance(protocol, Expression):
        found = expression_ceilings(protocol, trial, truths, source)
        return protocol.named(found) if isinstance(protocol, StampExpression) else found
    if isinstance(protocol, HestBenchmark):
        return hest_ceilings(protocol, trial, truths, source)
    knows_domains = truths.all_domains((*trial.train, *trial.test))
    if protocol.task in LABEL_TASKS and knows_domains:
        return label_ceiling(protocol, trial, truths, source, modality=getattr(protocol, "modality", "image"))
    if source is None:
        return []
    has, out = set(source.modalities), []
    if isinstance(protocol, Retrieval | HescapeRetrieval) and {"image", "expression"} <= has:
        out += retrieval_ceiling(protocol, trial, truths, source)
    if isinstance(protocol, Retrieval) and "text" in has:
        out += text_retrieval(protocol, trial, source, ceiling_subject(CONTENT))
    if isinstance(protocol, ZeroShot) and knows_domains:
        out += zero_shot_ceiling(protocol, trial, truths, source)
    return out
