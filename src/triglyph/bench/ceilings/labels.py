"""Ceilings of labels: read off the true shares of domains in and around a location, by a fitted model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.ceilings.subjects import DOMAINS, ceiling_subject
from triglyph.bench.contracts import Embedder, SectionLike, Trial
from triglyph.bench.labels.classes import Scored, known_labels, score_rows
from triglyph.bench.labels.zero_shot import ZeroShot
from triglyph.bench.parts import pooled
from triglyph.bench.rows import Rows
from triglyph.bench.truth import TrueDomains, Truths
from triglyph.metrics.result import Result

Floats = NDArray[np.float64]


def zero_shot_ceiling(protocol: ZeroShot, trial: Trial, truths: Truths, source: Embedder) -> list[Result]:
    """Posterior of each class given the true shares, fitted on training labels; the share itself where none are."""
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
    out: list[Result] = []
    for target in (m for m in ("image", "expression") if m in source.modalities):
        scored = []
        for section in trial.test:
            known = np.flatnonzero(pooled(source, section, target)[1] & (labels[section.id] != ""))
            if not len(known):
                continue
            features, shares = pooled(domains, section, domains.modality)[0][known], truths.domains(section)[0][known]
            score = [posterior[c](features) if c in posterior else shares[:, names.index(c)] for c in classes]
            truth = labels[section.id][known][:, None] == np.array(classes)[None, :]
            scored.append(Scored(section, known, np.stack(score, axis=1), truth))
        if scored:
            out += score_rows(rows, scored, classes=classes, direction=f"text->{target}")
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
