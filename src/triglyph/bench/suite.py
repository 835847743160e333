"""A model, its baselines, its ceilings and its null under the protocols that apply to it: the table of one fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from triglyph.bench.baselines import Position, expression_baselines, retrieval_baselines
from triglyph.bench.ceiling import ceiling_rows
from triglyph.bench.classes import known_labels
from triglyph.bench.contracts import Embedder, Subject, Trial
from triglyph.bench.linear_probe import LinearProbe
from triglyph.bench.null import MIN_REFITS, null_rows
from triglyph.bench.protocol import Protocol
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.ridge_expression import RidgeExpression
from triglyph.bench.zero_shot import ZeroShot
from triglyph.metrics.result import Result

Report = Callable[[str], None]


def applicable(source: Embedder, trial: Trial) -> list[Protocol]:
    """The protocols that a source and a trial have everything for, with default constants."""
    has = set(source.modalities)
    labelled = any((known_labels(s) != "").any() for s in trial.test)
    taught = any((known_labels(s) != "").any() for s in trial.train)
    out: list[Protocol] = []
    if len(has) > 1:
        out.append(Retrieval())
    if labelled and "text" in has and len(has) > 1:
        out.append(ZeroShot())
    if labelled and taught and has & {"image", "expression"}:
        out.append(LinearProbe(modality="image" if "image" in has else "expression"))
    if "image" in has:
        out.append(RidgeExpression())
    return out


def baselines(
    protocol: Protocol, trial: Trial, *, modalities: Sequence[str], stain_texture: Embedder | None
) -> list[Subject]:
    """The baselines that a protocol's table has.

    Parameters
    ----------
    modalities
        Of the subject: `retrieval` has baselines only between image and expression.
    stain_texture
        Features of that encoder, or None where the sections have no image.
    """
    if isinstance(protocol, Retrieval):
        return retrieval_baselines(trial, stain_texture) if {"image", "expression"} <= set(modalities) else []
    if isinstance(protocol, RidgeExpression) and protocol.modality == "image":
        return expression_baselines(stain_texture)
    if isinstance(protocol, LinearProbe) and protocol.modality == "image":
        seen = ("positions z-scored within each test section",)
        found = [Subject("position", Position(), role="baseline", transductive=seen)]
        return [*found, Subject("stain-texture", stain_texture, role="baseline")] if stain_texture else found
    return []


def evaluate(
    subject: Subject,
    trial: Trial,
    protocols: Sequence[Protocol],
    *,
    stain_texture: Embedder | None = None,
    with_baselines: bool = True,
    refit: Callable[[int], Embedder] | None = None,
    n_refits: int = MIN_REFITS,
    seed: int = 0,
    report: Report | None = None,
) -> list[Result]:
    """All rows of one fold: the subject's, its baselines' and ceilings', its null's.

    Parameters
    ----------
    subject
        What is judged.
    protocols
        By what; see `applicable`.
    with_baselines
        Judge the baselines too, and give the ceilings.
    refit
        Refits on shuffled pairs by seed, for protocols that have a null; None leaves the null out.
    report
        Called with one line before each part.
    """
    say = report or (lambda _: None)
    out: list[Result] = []
    for protocol in protocols:
        say(f"{protocol.name}: {subject.name}")
        out += protocol.run(subject, trial)
        others = (
            baselines(protocol, trial, modalities=subject.source.modalities, stain_texture=stain_texture)
            if with_baselines
            else []
        )
        for other in others:
            if other.name == subject.name:
                continue  # the subject is itself the baseline
            say(f"{protocol.name}: {other.name}")
            out += protocol.run(other, trial)
        if with_baselines:
            say(f"{protocol.name}: ceilings")
            out += ceiling_rows(protocol, trial, subject.source)
    judged = [p for p in protocols if p.has_null]
    if refit is not None and judged:
        say(f"null: refit 1 of {n_refits}")
        out += null_rows(
            refit,
            trial,
            judged,
            n_refits=n_refits,
            seed=seed,
            on_refit=lambda i: say(f"null: refit {min(i + 2, n_refits)} of {n_refits}"),
        )
    return out
