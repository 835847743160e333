"""Sections of two patients that are as alike as sections of one piece of tissue: near copies that no id gives away.

Expression is averaged over neighbourhoods, since single spots are mostly noise; embeddings are taken as they are, since
a window is a neighbourhood already. A pair of sections is scored by how well locations of one find a match in the
other: the 90th percentile of their best cosine, both ways, after standardising over the sections of one platform. What
counts as near is calibrated on the other pairs of patients in the audited split: a pair must close more than 60 % of
the distance from their median to a perfect match. Measured scores are in docs/audit.md.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.bench.audit.case import Case
from triglyph.bench.audit.findings import Sheet, listed
from triglyph.metrics.expression import log1p_cp10k

Floats = NDArray[np.float64]
Profiles = dict[str, Floats]

NEIGHBOURHOOD = 19
"""Locations averaged: two rings of a hexagonal lattice."""
PER_SECTION = 300
"""Neighbourhoods of a section that are compared, so that a pair costs the same however large its sections are."""
MAX_GENES = 500
MIN_GENES, MIN_REFERENCES = 8, 3
SIMILAR = 0.7
"""No pair below this score is suspected, whatever the others show."""
ALL_ALIKE = 0.95
"""Where two patients score this usually, the features cannot tell anybody apart."""
NEAR, LIKE = 0.4, 0.5
"""(1 - score) / (1 - median score of different patients) below which a pair is near duplicates, or suspected."""


def check_lookalikes(case: Case, sheet: Sheet) -> None:
    """`near-duplicates` and `people-alike`, from expression and, where there are any, stored embeddings."""
    genes = case.genes
    if len(genes) < MIN_GENES:
        few = f"the sections have {len(genes)} measured genes in common, {MIN_GENES} are needed"
        sheet.unchecked("near-duplicates", f"expression: {case.uncounted or few}")
    elif lost := [s for s in case.sections if not case.placed(s)]:
        why = f"expression: nothing says where locations of {listed(lost)} are, so neighbourhoods cannot be averaged"
        sheet.unchecked("near-duplicates", why)
    else:
        _compare(case, sheet, _expression(case, genes), "expression profiles")
    if case.embedding is None:
        sheet.unchecked("near-duplicates", "embeddings: none was named")
    else:
        _compare(case, sheet, _embeddings(case, sheet, case.embedding), f"embeddings {case.embedding}")


def _compare(case: Case, sheet: Sheet, profiles: Profiles, what: str) -> None:
    """Score all pairs of one platform, and judge those across sides."""
    across = {pair for sides in case.sides for pair in sides.pairs()}
    across = {(a, b) for a, b in across if case.patients[a] != case.patients[b]}
    groups: dict[str, list[str]] = {}
    for section in profiles:
        groups.setdefault(str(getattr(case.info(section), "platform", "")), []).append(section)
    suspects: dict[tuple[str, str], tuple[float, float]] = {}
    for platform, members in groups.items():
        if not any(a in members and b in members for a, b in across):
            continue
        scores = pair_scores({s: profiles[s] for s in members}, case.patients)
        people = {s: case.patients[s] for s in members}
        if len({frozenset((people[a], people[b])) for a, b in scores}) <= MIN_REFERENCES:
            why = f"{what}: too few patients{f' on {platform}' if platform else ''} to know how alike two patients are"
            sheet.unchecked("near-duplicates", why)
            continue
        if np.median(list(scores.values())) > ALL_ALIKE:
            sheet.unchecked("near-duplicates", f"{what}: all patients look alike in them")
            continue
        sheet.checked("near-duplicates", "people-alike")
        suspects |= _suspects(scores, people)
    for sides in case.sides:
        for a, b in sides.pairs():
            found = suspects.get((a, b)) or suspects.get((b, a))
            if found is None:
                continue
            score, usual = found
            near = 1 - score < NEAR * (1 - usual)
            said = (
                f"{what} of {b} (patient {case.patients[b]}, tested) and {a} (patient {case.patients[a]}, trained on) "
                f"match with cosine {score:.2f}; two patients do with {usual:.2f}"
            )
            sheet.find("near-duplicates" if near else "people-alike", said, fold=sides.name)
            case.copies.add((a, b))


def _suspects(
    scores: Mapping[tuple[str, str], float], people: Mapping[str, str]
) -> dict[tuple[str, str], tuple[float, float]]:
    """Pairs that are too alike -> score, and what other pairs of patients score."""
    out = {}
    for (a, b), score in scores.items():
        if score < SIMILAR:
            continue
        mine = {people[a], people[b]}
        usual = float(np.median([v for (c, d), v in scores.items() if {people[c], people[d]} != mine]))
        if 1 - score < LIKE * (1 - usual):
            out[a, b] = score, usual
    return out


def pair_scores(profiles: Profiles, patients: Mapping[str, str]) -> dict[tuple[str, str], float]:
    """Score of every pair of sections of different patients.

    Parameters
    ----------
    profiles
        (k, d) of each section; at most `PER_SECTION` rows, so a pair's block is bounded.
    """
    rows = np.concatenate(list(profiles.values()))
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-12)
    units = {s: _unit((values - mean) * scale) for s, values in profiles.items()}
    out = {}
    names = list(profiles)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if patients[a] != patients[b]:
                cosine = units[a] @ units[b].T
                best = cosine.max(axis=1), cosine.max(axis=0)
                out[a, b] = float(np.mean([np.quantile(m, 0.9) for m in best]))
    return out


def _expression(case: Case, genes: Sequence[str]) -> Profiles:
    """log1p CP10k of neighbourhoods, of the genes that vary most between them."""
    n, sums = 0, np.zeros((2, len(genes)))
    for _, values in _logged(case, genes):
        n += len(values)
        sums += values.sum(axis=0), (values**2).sum(axis=0)
    variance = sums[1] / max(n, 1) - (sums[0] / max(n, 1)) ** 2
    columns = np.sort(np.argsort(-variance, kind="stable")[:MAX_GENES])
    # Made twice, so that at no time there is more than one section of all its genes.
    return {name: values[:, columns].copy() for name, values in _logged(case, genes)}


def _logged(case: Case, genes: Sequence[str]) -> Iterator[tuple[str, Floats]]:
    for name in case.sections:
        counts, symbols, _, _ = case.cohort[name].expression()
        at = {symbol: i for i, symbol in enumerate(symbols)}
        chosen = sp.csr_matrix(counts)[:, [at[g] for g in genes]].astype(np.float64)
        yield name, log1p_cp10k(_neighbourhoods(case, name) @ chosen).toarray()


def _embeddings(case: Case, sheet: Sheet, name: str) -> Profiles:
    """Stored embeddings as they are: a window is a neighbourhood already."""
    out: Profiles = {}
    without = []
    for section in case.sections:
        found = _stored(case.cohort[section], name)
        if found is None:
            without.append(section)
            continue
        values, present = found
        rows = _drawn(case, section, np.flatnonzero(present))
        if len(rows):
            out[section] = np.asarray(values[rows], dtype=np.float64)
    if without:
        sheet.unchecked("near-duplicates", f"embeddings: {listed(without)} have none of {name}")
    return out


def _stored(section: Any, name: str) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
    """Features by fingerprint, or by `obsm` key of a plain table; and which rows have them."""
    store = getattr(section, "embeddings", None)
    if store is not None:
        if not store.has(name):
            return None
        stored = store.read(name)
        return stored.values, stored.present
    obsm = getattr(getattr(section, "table", None), "obsm", {})
    if name not in obsm:
        return None
    values = np.asarray(obsm[name], dtype=np.float64)
    return values, np.asarray(np.isfinite(values).all(axis=1))


def _neighbourhoods(case: Case, name: str) -> sp.csr_matrix:
    """(k, n), 1 where a location belongs to the neighbourhood of one of k locations drawn."""
    centres = np.asarray(case.cohort[name].centres_um, dtype=np.float64)
    n = len(centres)
    rows = _drawn(case, name, np.arange(n))
    nearest = cKDTree(centres).query(centres[rows], k=np.arange(1, min(NEIGHBOURHOOD, n) + 1))[1]
    at = np.repeat(np.arange(len(rows)), nearest.shape[1])
    return sp.csr_matrix((np.ones(nearest.size), (at, nearest.ravel())), shape=(len(rows), n))


def _drawn(case: Case, name: str, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """At most `PER_SECTION` of `rows`, drawn by the section's name."""
    rng = np.random.default_rng([case.seed, zlib.crc32(name.encode())])
    return np.sort(rng.permutation(rows)[:PER_SECTION])


def _unit(x: Floats) -> Floats:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)
