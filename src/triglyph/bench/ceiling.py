"""Ceilings: how well one could do, under stated assumptions, as rows of role `ceiling` beside the baselines.

`ceiling: count thinning` needs nothing but counts and stands in every table of predicted expression. Each count is
split in two at random; the halves of a Poisson count are independent given its rate, so the correlation r of a gene
between them is its reliability at half the depth. At full depth that is 2r / (1 + r) (Spearman, Br J Psychol 3:271,
1910; Brown, ibid. 3:296), and whoever knew the rate without noise would correlate with the counts by its square root.

Where a section carries the truth of a simulation (`layers["truth_expected"]`, `obsm["truth_domains"]`):

* `ceiling: true expression`, predicted expression: the expected value of log1p CP10k given the expected counts;
* `ceiling: true expression`, retrieval: counts are matched to the expected counts of every location of the section by
  their likelihood;
* `ceiling: true domains`: labels read off the true shares of domains in and around a location.

The first two assume that counts are negative binomial around the expected ones, independently, with the one dispersion
that the section states. Of simulated round spots this is the law itself. In bins of single molecules noise is per cell,
so that dispersion differs between bins and genes and neighbouring bins share it: there the rows are close to a ceiling
and no bound. Labels are read off the shares by a fitted model, which a better one could beat.

Each row says in `transductive` what it knows. A section without truth simply has no such row.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, logsumexp

from triglyph.bench.baselines import Features
from triglyph.bench.classes import Scored, known_labels, score_rows
from triglyph.bench.contracts import Array, Embedder, SectionLike, Subject, Trial
from triglyph.bench.genes import TrialExpression
from triglyph.bench.linear_probe import LinearProbe
from triglyph.bench.protocol import Protocol
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.ridge_expression import RidgeExpression
from triglyph.bench.rows import Measure, Rows
from triglyph.bench.truth import TrueDomains, Truths
from triglyph.bench.zero_shot import ZeroShot
from triglyph.errors import ContractError
from triglyph.metrics.bootstrap import nan_mean
from triglyph.metrics.correlation import mean_defined, pearson, spearman
from triglyph.metrics.expression import TARGET, log1p_cp10k
from triglyph.metrics.result import Result
from triglyph.metrics.retrieval import TOLERANCE, Ties

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

THINNING = "ceiling: count thinning"
EXPRESSION = "ceiling: true expression"
DOMAINS = "ceiling: true domains"
NOTES = {
    THINNING: "halves of the test counts predict each other; corrected to full depth",
    EXPRESSION: "knows the noise-free expected counts of the test locations, their depth included",
    DOMAINS: "knows the true shares of domains of the test locations and around them",
}
"""What each knows of the test set; stamped on its rows."""
SPLITS = 8
"""Random halvings whose correlations are averaged."""
_SUMMED = 40.0
"""Up to this expected count a distribution is summed term by term; above, its curvature is enough."""


# ---- the rows


def ceiling_rows(protocol: Protocol, trial: Trial, source: Embedder) -> list[Result]:
    """Rows of the ceilings that a protocol has on a trial; sections without truth have only those that need none.

    Parameters
    ----------
    source
        What is judged: ceilings are taken in its directions, over the locations that it has.
    """
    truths = Truths()
    if isinstance(protocol, RidgeExpression):
        return _expression(protocol, trial, truths, source)
    if isinstance(protocol, Retrieval) and {"image", "expression"} <= set(source.modalities):
        return _retrieval(protocol, trial, truths, source)
    if isinstance(protocol, LinearProbe) and truths.all_domains((*trial.train, *trial.test)):
        domains = TrueDomains(truths, source, modality=protocol.modality)
        return protocol.run(_subject(DOMAINS, domains), trial)
    if isinstance(protocol, ZeroShot) and truths.all_domains((*trial.train, *trial.test)):
        return _zero_shot(protocol, trial, truths, source)
    return []


@dataclass(frozen=True)
class _Nothing(Features):
    """A source that only says what it is of: its rows are computed here, not by a protocol."""

    modality: str = "image"

    def features(self, section: Any) -> tuple[Array, Bools]:
        raise ContractError("a ceiling has no features", where=section.id)


def _subject(name: str, source: Features | None = None) -> Subject:
    return Subject(name, source or _Nothing(), role="ceiling", transductive=(NOTES[name],))


def _expression(protocol: RidgeExpression, trial: Trial, truths: Truths, source: Embedder) -> list[Result]:
    expression = TrialExpression(trial, n_genes=protocol.n_genes, min_detected=protocol.min_detected)
    direction = f"{protocol.modality}->expression"
    present = {s.id: np.asarray(source.pooled(s, protocol.modality)[1]) for s in trial.test}
    tested = [s for s in trial.test if (present[s.id] & expression[s][1]).any()]

    def rows_of(
        name: str, measure: Callable[[Rows, SectionLike, NDArray[np.intp]], dict[str, Measure]]
    ) -> list[Result]:
        rows = Rows.start(protocol, _subject(name), trial)
        found: dict[str, dict[str, Measure]] = {}
        for section in tested:
            kept = np.flatnonzero(present[section.id] & expression[section][1])
            for metric, of in measure(rows, section, kept).items():
                found.setdefault(metric, {})[section.id] = of
        return [row for metric, of in found.items() for row in rows.per_section(of, metric=metric, direction=direction)]

    def thinned(rows: Rows, section: SectionLike, kept: NDArray[np.intp]) -> dict[str, Measure]:
        return thinned_measures(rows, section, kept, expression, seed=protocol.seed)

    def known(rows: Rows, section: SectionLike, kept: NDArray[np.intp]) -> dict[str, Measure]:
        mean, dispersion = truths.expected(section, kept, _columns(section, expression.common))
        at = {g: i for i, g in enumerate(expression.common)}
        chosen = [at[g] for g in expression.genes]
        guess = expected_log1p_cp10k(mean[:, chosen], mean.sum(axis=1), dispersion=dispersion)
        return protocol.section_measures(rows, section, kept, guess, expression[section][0][kept])

    out = rows_of(THINNING, thinned)
    return out + rows_of(EXPRESSION, known) if truths.all_expected(tested) else out


def _retrieval(protocol: Retrieval, trial: Trial, truths: Truths, source: Embedder) -> list[Result]:
    there = {s.id: source.pooled(s, "image")[1] & source.pooled(s, "expression")[1] for s in trial.test}
    tested = [s for s in trial.test if there[s.id].any()]
    if not truths.all_expected(tested):
        return []
    rows = Rows.start(protocol, _subject(EXPRESSION), trial)
    found: dict[tuple[str, str], dict[str, Measure]] = {}
    for section in tested:
        counts, _, _, measured = section.expression()
        genes = np.flatnonzero(measured)
        counts = sp.csr_matrix(sp.csc_matrix(counts)[:, genes])
        kept = np.flatnonzero(there[section.id])
        expected, dispersion = truths.expected(section, kept, genes)
        posterior = match_log_posterior(counts[kept], expected, dispersion=dispersion)
        # A row asks, for the counts of one location, which location they are of: from expression to image.
        for direction, scores in (("image->expression", posterior.T), ("expression->image", posterior)):
            ranks = diagonal_ranks(scores, ties=protocol.ties)
            for metric, measure in protocol.rank_measures(rows, section, ranks, kept).items():
                found.setdefault((direction, metric), {})[section.id] = measure
    return [
        row
        for (direction, metric), measures in found.items()
        for row in rows.per_section(measures, metric=metric, direction=direction)
    ]


def _zero_shot(protocol: ZeroShot, trial: Trial, truths: Truths, source: Embedder) -> list[Result]:
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
    rows = Rows.start(protocol, _subject(DOMAINS, domains), trial)
    out: list[Result] = []
    for target in (m for m in ("image", "expression") if m in source.modalities):
        scored = []
        for section in trial.test:
            known = np.flatnonzero(source.pooled(section, target)[1] & (labels[section.id] != ""))
            if not len(known):
                continue
            features, shares = domains.features(section)[0][known], truths.domains(section)[0][known]
            score = [posterior[c](features) if c in posterior else shares[:, names.index(c)] for c in classes]
            truth = labels[section.id][known][:, None] == np.array(classes)[None, :]
            scored.append(Scored(section, known, np.stack(score, axis=1), truth))
        if scored:
            out += score_rows(rows, scored, classes=classes, direction=f"text->{target}")
    return out


# ---- expression


def thinned_measures(
    rows: Rows, section: SectionLike, kept: NDArray[np.intp], expression: TrialExpression, *, seed: int
) -> dict[str, Measure]:
    """Pearson and Spearman that a noise-free prediction of log1p CP10k would reach, from halved counts.

    A gene whose halves do not correlate counts as 0. The square root lifts the mean of correlations that are noise
    about 0, so that on few locations of rare genes this lies above what can be reached.
    """
    counts = section.expression()[0]
    counts = sp.csr_matrix(sp.csc_matrix(counts)[:, _columns(section, expression.common)])[kept]
    at = {g: i for i, g in enumerate(expression.common)}
    chosen = [at[g] for g in expression.genes]
    drawn = rows.blocks(section, kept)
    rng = np.random.default_rng([seed, zlib.crc32(section.id.encode())])
    halves = [split_counts(counts, rng) for _ in range(SPLITS)]
    sides = [[log1p_cp10k(part)[:, chosen].toarray() for part in pair] for pair in halves]
    r = nan_mean([pearson(a, b) for a, b in sides], axis=0)
    rho = nan_mean([spearman(a, b) for a, b in sides], axis=0)
    draws = nan_mean([drawn.pearson(a, b) for a, b in sides], axis=0)
    n = len(kept)
    value, rank = mean_defined(noise_free_correlation(r)), mean_defined(noise_free_correlation(rho))
    return {
        "pearson": Measure(
            value=value.value,
            n=n,
            n_genes=value.n,
            chance=0.0,
            draws=nan_mean(noise_free_correlation(draws), axis=1),
            n_blocks=drawn.n_units,
        ),
        "spearman": Measure(value=rank.value, n=n, n_genes=rank.n, chance=0.0),
    }


def split_counts(counts: sp.csr_matrix, rng: np.random.Generator) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Two matrices of counts that add up to `counts`; every single count goes to either with equal chance."""
    half = sp.csr_matrix(counts, dtype=np.int64, copy=True)
    whole = half.data.copy()
    half.data = rng.binomial(whole, 0.5)
    other = half.copy()
    other.data = whole - half.data
    return half, other


def noise_free_correlation(r_between_halves: ArrayLike) -> Floats:
    """sqrt(2r / (1 + r)): a noise-free prediction's correlation with counts whose halves correlate by r; r < 0 is 0."""
    r = np.asarray(r_between_halves, dtype=np.float64)
    kept = np.where(np.isnan(r), np.nan, np.clip(r, 0.0, 1.0))
    return np.asarray(np.sqrt(2 * kept / (1 + kept)))


def expected_log1p_cp10k(mean: Floats, totals: Floats, *, dispersion: float = 0.0) -> Floats:
    """Expected log1p of counts per 10,000, given expected counts: the prediction with the least squared error.

    Parameters
    ----------
    mean
        (n, genes) expected counts.
    totals
        (n,) expected counts over all genes that the scale is taken over; the realised total is taken to be this.
    dispersion
        Variance of a count is mean + dispersion x mean².

    Returns
    -------
    (n, genes). Small expected counts are summed over the distribution, large ones expanded to second order.
    """
    scale = (TARGET / np.maximum(totals, 1.0))[:, None] * np.ones_like(mean)
    variance = mean + dispersion * mean**2
    out = np.log1p(scale * mean) - 0.5 * variance * (scale / (1 + scale * mean)) ** 2
    small = mean <= _SUMMED
    m, s = mean[small], scale[small]
    top = int(np.ceil(_SUMMED + 12 * np.sqrt(_SUMMED + dispersion * _SUMMED**2)))
    total = np.zeros(len(m))
    for k in range(1, top + 1):
        total += np.exp(_log_probability(k, m, dispersion)) * np.log1p(s * k)
    out[small] = total
    return np.asarray(out)


def _log_probability(k: int, mean: Floats, dispersion: float) -> Floats:
    """log P(count = k) of a Poisson or negative binomial with these means; -inf where the mean is 0."""
    with np.errstate(divide="ignore"):
        if dispersion <= 0:
            return np.asarray(k * np.log(mean) - mean - gammaln(k + 1))
        size = 1.0 / dispersion
        choose = gammaln(k + size) - gammaln(size) - gammaln(k + 1)
        return np.asarray(choose + k * np.log(mean / (mean + size)) - size * np.log1p(mean / size))


# ---- retrieval


def match_log_posterior(counts: Any, expected: Floats, *, dispersion: float = 0.0) -> Floats:
    """log of the probability that counts `i` were drawn at location `j`, all locations being as likely beforehand.

    Parameters
    ----------
    counts
        (n, genes) observed, sparse or dense.
    expected
        (m, genes) expected counts of each location.

    Returns
    -------
    (n, m), each row a distribution over locations, in logs.
    """
    mean = np.maximum(expected, np.finfo(np.float64).tiny)
    if dispersion > 0:
        size = 1.0 / dispersion
        slope, level = np.log(mean / (mean + size)), -size * np.log1p(mean / size).sum(axis=1)
    else:
        slope, level = np.log(mean), -mean.sum(axis=1)
    likelihood = np.asarray(sp.csr_matrix(counts, dtype=np.float64) @ slope.T) + level[None, :]
    return np.asarray(likelihood - logsumexp(likelihood, axis=1, keepdims=True))


def diagonal_ranks(scores: Floats, *, ties: Ties = "mean") -> Floats:
    """(n,) rank from 1 of entry i among row i of (n, n) scores; ties as in `match_ranks`."""
    right = np.diagonal(scores)[:, None]
    before = (scores > right + TOLERANCE).sum(axis=1)
    tied = (np.abs(scores - right) <= TOLERANCE).sum(axis=1) - 1
    return np.asarray(1.0 + before + (tied if ties == "pessimistic" else tied / 2.0), dtype=np.float64)


# ---- labels


def _posterior(
    source: TrueDomains, train: Sequence[SectionLike], labels: Mapping[str, NDArray[np.str_]]
) -> dict[str, Callable[[Floats], Floats]]:
    """Class -> from features (k, d) to its log odds (k,), fitted on the labelled locations of the training sections."""
    from sklearn.linear_model import LogisticRegression

    known = {s.id: np.flatnonzero(labels[s.id] != "") for s in train}
    x = [source.features(s)[0][known[s.id]] for s in train if len(known[s.id])]
    y = [labels[s.id][known[s.id]] for s in train if len(known[s.id])]
    if not x or len(np.unique(np.concatenate(y))) < 2:
        return {}
    features, classes = np.concatenate(x), np.concatenate(y)
    out: dict[str, Callable[[Floats], Floats]] = {}
    for name in np.unique(classes).tolist():
        fitted = LogisticRegression(C=100.0, max_iter=2000).fit(features, classes == name)
        out[name] = fitted.decision_function
    return out


def _columns(section: SectionLike, genes: Sequence[str]) -> NDArray[np.intp]:
    at = {symbol: i for i, symbol in enumerate(section.expression()[1])}
    return np.array([at[g] for g in genes], dtype=np.intp)
