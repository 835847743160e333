"""A subject, its baselines, its ceilings and its null under the protocols that apply to it: the table of one fold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from triglyph.bench.baselines import beside
from triglyph.bench.batch_effect import BatchEffect
from triglyph.bench.ceilings.rows import ceiling_rows
from triglyph.bench.contracts import Embedder, Subject, Trial
from triglyph.bench.expression.protocol import Expression
from triglyph.bench.hest.protocol import HestBenchmark
from triglyph.bench.labels.classes import known_labels
from triglyph.bench.labels.clustering import Clustering
from triglyph.bench.labels.knn import NearestNeighbours
from triglyph.bench.labels.label_retrieval import LabelSearch
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.labels.simpleshot import SimpleShot
from triglyph.bench.labels.zero_shot import ZeroShot
from triglyph.bench.null import MIN_REFITS, null_rows
from triglyph.bench.protocol import FoldError, Protocol
from triglyph.bench.representations import Places
from triglyph.bench.retrieval import Retrieval
from triglyph.errors import ContractError, GeneError, TriglyphError
from triglyph.metrics.result import Result

Report = Callable[[str], None]
log = logging.getLogger(__name__)

BY_NAME = {
    "learning-curve": "slow: ten probes for each number of training patients",
    "genes-from-genes": "needs a core panel (--panel)",
    "retrieval-across": "`retrieval` in one gallery over all test sections",
    "hescape-retrieval": "`retrieval` in the galleries of HESCAPE",
    "hescape-expression": "`hest-benchmark` before and after alignment",
    "hescape-mutation": "needs a mutation in a clinical table",
    "spatialwhisperer-*": "needs the cohort of its data set",
    "slide-classification": "needs a label of sections or patients (--set label_column=NAME)",
    "stamp-dlpfc": "needs the cohort of its data set",
    "stamp-hbc": "needs the cohort of its data set",
    "stamp-expression": "`expression` by two of its metrics",
    "hest-benchmark-*": "five times the same; named, hest-benchmark brings its variants",
}
"""Protocols that are judged only when named -> why."""


@dataclass(frozen=True)
class LeftOut:
    """What was not judged on a fold."""

    protocol: str
    why: str
    fold: str = ""
    model: str = ""
    """"" for all."""
    error: TriglyphError | None = None
    """What was wrong with the fold; None where the protocol was not offered."""


@dataclass(frozen=True)
class Offer:
    """What `all` judges, and what it does not."""

    protocols: tuple[Protocol, ...]
    left_out: dict[str, str]
    """Protocol -> why."""


def applicable(source: Embedder | None, trial: Trial) -> Offer:
    """The protocols that a source and a trial have everything for, with default constants; none without a source.

    Those in `BY_NAME` are slow or of a special kind and never among them. Labels are read off the image, where there
    is one, else off expression.
    """
    has = set() if source is None else set(source.modalities)
    reads = "image" if "image" in has else "expression"
    labelled = "" if any((known_labels(s) != "").any() for s in trial.test) else "no test location has a label"
    taught = "" if any((known_labels(s) != "").any() for s in trial.train) else "no training location has a label"
    several = "" if len(has) > 1 else "needs two modalities"
    image = "" if "image" in has else "needs an image"
    counts = image or _uncounted(trial)
    either = "" if has & {"image", "expression"} else "needs an image or expression"
    worded = "" if "text" in has and not several else "needs text and one more modality"
    core: tuple[tuple[Protocol, str], ...] = (
        (Retrieval(), several),
        (ZeroShot(), worded or labelled),
        *(
            (of.configured({"modality": reads}), either or labelled or taught)
            for of in (LinearProbe, NearestNeighbours, SimpleShot)
        ),
        (Clustering.configured({"modality": reads}), either or labelled),
        (LabelSearch.configured({"modality": reads}), either or labelled or taught),
        (Expression(), counts),
        (HestBenchmark(), counts),
        (BatchEffect.configured({"modality": reads}), either or labelled),
    )
    return Offer(
        tuple(protocol for protocol, why in core if not why),
        {**{protocol.name: why for protocol, why in core if why}, **BY_NAME},
    )


def _uncounted(trial: Trial) -> str:
    """Why counts cannot be looked at, "" where they can: a plain table may hold none."""
    try:
        for section in (*trial.train, *trial.test):
            section.expression()
    except (ContractError, GeneError) as error:
        return error.what
    return ""


def left_out_notes(found: Iterable[LeftOut], *, n_folds: int) -> list[str]:
    """One line for each protocol and reason: `batch-effect, fold P1 (toy, position): only one section, S1`.

    Parameters
    ----------
    n_folds
        What holds for all of them names none.
    """
    folds: dict[tuple[str, str], dict[str, None]] = {}
    models: dict[tuple[str, str], dict[str, None]] = {}
    for of in found:
        folds.setdefault((of.protocol, of.why), {})[of.fold] = None
        models.setdefault((of.protocol, of.why), {})[of.model] = None
    lines = []
    for (protocol, why), where in folds.items():
        fold = "" if len(where) == n_folds else f", fold{'s' * (len(where) > 1)} {', '.join(where)}"
        who = ", ".join(filter(None, models[protocol, why]))
        lines.append(f"{protocol}{fold}{f' ({who})' if who else ''}: {why}")
    return lines


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
    left_out: Callable[[LeftOut], None] | None = None,
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
    left_out
        Called with what the fold lacks something for, such as a second section or a common gene; the rest is judged.

    Raises
    ------
    FoldError, GeneError
        The fold lacks something, and there is no `left_out`.
    """
    say = report or (lambda _: None)
    out: list[Result] = []
    missing: set[str] = set()

    def attempt(protocol: Protocol, name: str, judge: Callable[[], list[Result]]) -> list[Result]:
        say(f"{protocol.name}: {name}")
        try:
            return judge()
        except (FoldError, GeneError) as error:
            if left_out is None:
                raise
            log.warning("%s, fold %s, %s is left out: %s", protocol.name, trial.fold or "0", name, error.what)
            left_out(LeftOut(protocol.name, error.what, trial.fold, name, error))
            if subject is not None and name == subject.name:
                missing.add(protocol.name)
            return []

    for protocol in protocols:
        subjects = [] if subject is None else [subject]
        if with_baselines:
            known = {s.name for s in subjects}  # the subject may itself be a baseline
            subjects += [
                s for s in beside(protocol, trial, subject, stain_texture, places=places) if s.name not in known
            ]
        for one in subjects:
            out += attempt(protocol, one.name, partial(protocol.run, one, trial))
        if with_baselines:
            source = None if subject is None else subject.source
            out += attempt(protocol, "ceilings", partial(ceiling_rows, protocol, trial, source))
    judged = [p for p in protocols if p.has_null and p.name not in missing]
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
