"""A subject, its baselines, its ceilings and its null under the protocols that apply to it: the table of one fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from triglyph.bench.baselines import beside
from triglyph.bench.ceilings.rows import ceiling_rows
from triglyph.bench.contracts import Embedder, Subject, Trial
from triglyph.bench.expression.protocol import Expression
from triglyph.bench.labels.classes import known_labels
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.labels.zero_shot import ZeroShot
from triglyph.bench.null import MIN_REFITS, null_rows
from triglyph.bench.protocol import Protocol
from triglyph.bench.representations import Places
from triglyph.bench.retrieval import Retrieval
from triglyph.metrics.result import Result

Report = Callable[[str], None]


def applicable(source: Embedder | None, trial: Trial) -> list[Protocol]:
    """The protocols that a source and a trial have everything for, with default constants; none without a source."""
    has = set() if source is None else set(source.modalities)
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
        out.append(Expression())
    return out


def evaluate(
    subject: Subject | None,
    trial: Trial,
    protocols: Sequence[Protocol],
    *,
    stain_texture: Embedder | None = None,
    with_baselines: bool = True,
    refit: Callable[[int], Embedder] | None = None,
    n_refits: int = MIN_REFITS,
    seed: int = 0,
    places: Places = "um",
    report: Report | None = None,
) -> list[Result]:
    """All rows of one fold: the subject's, its baselines' and ceilings', its null's.

    Parameters
    ----------
    subject
        What is judged; None: only what stands beside it.
    protocols
        By what; see `applicable`.
    stain_texture
        Features of that encoder, or None where the sections have no image.
    with_baselines
        Judge the baselines too, and give the ceilings.
    refit
        Refits on shuffled pairs by seed, for protocols that have a null; None leaves the null out.
    places
        What representations of expression call near.
    report
        Called with one line before each part.
    """
    say = report or (lambda _: None)
    out: list[Result] = []
    for protocol in protocols:
        subjects = [] if subject is None else [subject]
        if with_baselines:
            known = {s.name for s in subjects}  # the subject may itself be a baseline
            subjects += [
                s for s in beside(protocol, trial, subject, stain_texture, places=places) if s.name not in known
            ]
        for one in subjects:
            say(f"{protocol.name}: {one.name}")
            out += protocol.run(one, trial)
        if with_baselines:
            say(f"{protocol.name}: ceilings")
            out += ceiling_rows(protocol, trial, None if subject is None else subject.source)
    judged = [p for p in protocols if p.has_null]
    if refit is not None and judged:
        say(f"null: refit 1 of {n_refits}")
        out += null_rows(
            refit,
            trial,
            judged,
            n_refits=n_refits,
            seed=seed,
            judged=subject,
            on_refit=lambda i: say(f"null: refit {min(i + 2, n_refits)} of {n_refits}"),
        )
    return out
