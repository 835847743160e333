"""Ceilings of labels: read off the true shares of domains in and around a location, by a fitted model.

A protocol's own probe reads them, with one thing taken off: what it penalises. A penalty is on weights, so it is the
stronger the fewer and the smaller the features are. Variant A's leaves no weight at all to some twenty shares between
0 and 1, and a ceiling at chance would bound nothing. So probes get the shares in units of a hundredth, in which weights
are a hundred times smaller: close to no penalty. Nothing else that reads labels here depends on the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from triglyph.bench.ceilings.subjects import DOMAINS, ceiling_subject
from triglyph.bench.contracts import Array, Embedder, SectionLike, Trial
from triglyph.bench.features import Features
from triglyph.bench.labels.classes import known_labels
from triglyph.bench.labels.labelled import Labelled
from triglyph.bench.labels.linear_probe import ProbeProtocol
from triglyph.bench.labels.zero_shot import ZeroShot
from triglyph.bench.parts import pooled
from triglyph.bench.protocol import Protocol
from triglyph.bench.rows import Rows
from triglyph.bench.truth import TrueDomains, Truths
from triglyph.metrics.result import Result

Floats = NDArray[np.float64]
_LEAST = 1e-9
"""A share of 0 has log odds too."""
UNPENALISED = "its probe is given them in units of a hundredth, in which penalties hardly bind"


@dataclass(frozen=True)
class _Hundredths(Features):
    """True shares of domains, a hundred times as large."""

    domains: TrueDomains
    modality: str

    def features(self, section: SectionLike) -> tuple[Array, NDArray[np.bool_]]:
        values, present = self.domains.features(section)
        return 100.0 * values, present


def label_ceiling(
    protocol: Protocol, trial: Trial, truths: Truths, source: Embedder | None, *, modality: str
) -> list[Result]:
    """A protocol that reads labels off an embedding, over the true shares of domains.

    Parameters
    ----------
    source
        What is judged: locations that it has not are left out; None leaves out none.
    """
    domains = TrueDomains(truths, source, modality=modality)
    if not isinstance(protocol, ProbeProtocol):
        return protocol.run(ceiling_subject(DOMAINS, domains), trial)
    subject = ceiling_subject(DOMAINS, _Hundredths(domains, modality))
    return protocol.run(replace(subject, transductive=(*subject.transductive, UNPENALISED)), trial)


def zero_shot_ceiling(protocol: ZeroShot, trial: Trial, truths: Truths, source: Embedder) -> list[Result]:
    """Posterior of each class given the true shares, fitted on training labels; the share itself where none are.

    Scores are probabilities, so that those of classes add up to that of a super-class. Macro F1 counts every class
    alike, so a location is of the class whose odds exceed those among the training locations the most.
    """
    labels = {s.id: known_labels(s) for s in (*trial.train, *trial.test)}
    there = sorted({str(label) for s in trial.test for label in labels[s.id]} - {""})
    asked = there if protocol.prompts is None else sorted(protocol.prompts.classes)
    domains = TrueDomains(truths)
    posterior = _posterior(domains, trial.train, labels)
    names = truths.domains(trial.test[0])[1]
    classes = [c for c in asked if c in posterior or c in names]
    if not set(classes) & set(there):
        return []
    rows = Rows.start(protocol, ceiling_subject(DOMAINS, domains), trial)
    shown = [posterior.get(c) for c in classes]
    taught = np.concatenate([labels[s.id][labels[s.id] != ""] for s in trial.train]) if trial.train else np.zeros(0)
    prior = np.array([logit((taught == c).mean()) if c in posterior else 0.0 for c in classes])

    def log_odds(sections: Sequence[SectionLike], target: str) -> list[Labelled]:
        """The labelled locations that what is judged has, with the log odds (k, classes) as features."""
        out = []
        for section in sections:
            known = np.flatnonzero(pooled(source, section, target)[1] & (labels[section.id] != ""))
            if not len(known):
                continue
            features, shares = pooled(domains, section, domains.modality)[0][known], truths.domains(section)[0][known]
            score = [
                logit(np.clip(shares[:, names.index(c)], _LEAST, 1 - _LEAST)) if of is None else of(features)
                for c, of in zip(classes, shown, strict=True)
            ]
            out.append(Labelled(section, known, np.stack(score, axis=1), labels[section.id][known]))
        return out

    out: list[Result] = []
    for target in (m for m in ("image", "expression") if m in source.modalities):
        asked_odds = log_odds(trial.test, target)
        if not asked_odds:
            continue
        chances = [replace(side, features=expit(side.features)) for side in asked_odds]
        answers = [replace(side, features=side.features - prior) for side in asked_odds]
        out += protocol.raw(rows, chances, classes, f"text->{target}", answers=answers)
        if protocol.calibrate:
            out += protocol.calibrated(rows, log_odds(trial.train, target), asked_odds, classes, f"text->{target}")
    return out


def _posterior(
    source: TrueDomains, train: Sequence[SectionLike], labels: Mapping[str, NDArray[np.str_]]
) -> dict[str, Callable[[Floats], Floats]]:
    """Class -> from features (k, d) to its log odds (k,), fitted on the labelled locations of the training sections."""
    from sklearn.linear_model import LogisticRegression

    known = {s.id: np.flatnonzero(labels[s.id] != "") for s in train}
    x = [pooled(source, s, source.modality)[0][known[s.id]] for s in train if len(known[s.id])]
    y = [labels[s.id][known[s.id]] for s in train if len(known[s.id])]
    if not x or len(np.unique(np.concatenate(y))) < 2:
        return {}
    features, classes = np.concatenate(x), np.concatenate(y)
    out: dict[str, Callable[[Floats], Floats]] = {}
    for name in np.unique(classes).tolist():
        fitted = LogisticRegression(C=100.0, max_iter=2000).fit(features, classes == name)
        out[name] = fitted.decision_function
    return out
