"""Sections of two patients that are as alike as sections of one piece of tissue: near copies that no id gives away.

Expression is averaged over neighbourhoods, since single spots are mostly noise; embeddings are taken as they are, since
a window is a neighbourhood already. A pair of sections is scored by how well locations of one find a match in the
other: the 90th percentile of their best cosine, both ways, after standardising over the sections of one platform.

What counts as near is calibrated twice. Against other pairs of patients in the audited split: a pair must close more
than 60 % of the distance from their median to a perfect match. And against the two sections themselves: locations of
one find matches in their own section, among those that share no tissue with them, and the pair must match almost as
well. A site's stain or chemistry moves all of its patients alike, so that they close the distance to a perfect match,
too; but it moves a section and itself no less, and what is private to a patient still stands between them. Measured
scores are in docs/audit.md.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.bench.audit.case import Case
from triglyph.bench.audit.findings import Sheet, listed
from triglyph.metrics.expression import log1p_cp10k

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Profile(NamedTuple):
    """Some locations of one section."""

    values: Floats
    """(k, d)"""
    beside: Mask
    """(k, k), whether two of them may share tissue; each does with itself."""


class Likeness(NamedTuple):
    """How alike two sections are."""

    between: float
    """Best cosine across them."""
    within: float
    """Best cosine within each, of what shares no tissue: the mean of both; -1 where all of a section does."""


Profiles = dict[str, Profile]

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
"""(1 - between) / (1 - median of different patients) below which a pair is near duplicates, or suspected."""
OWN, OWN_EMBEDDED = 4.0, 1.0
"""(1 - between) / (1 - within) above which a pair is two patients, however alike their site makes them: of expression,
where every section has some batch effect of its own, and of embeddings."""
_MATCHES = {"near-duplicates": "as those of one do", "people-alike": "better than those of others"}
MATCHED = 0.9
"""Quantile of the best cosines of a section's locations that is its score."""


def check_lookalikes(case: Case, sheet: Sheet) -> None:
    """`near-duplicates` and `people-alike`, from expression and, where there are any, stored embeddings."""
    genes = case.genes
    if len(genes) < MIN_GENES:
        few = f"the sections have {len(genes)} measured genes in common, {MIN_GENES} are needed"
        sheet.unchecked("near-duplicates", f"expression: {case.uncounted or few}")
    elif lost := [s for s in case.counted if not case.placed(s)]:
        why = f"expression: nothing says where locations of {listed(lost)} are, so neighbourhoods cannot be averaged"
        sheet.unchecked("near-duplicates", why)
    else:
        if bare := sorted(set(case.sections) - set(case.counted)):
            sheet.unchecked("near-duplicates", f"expression: no genes in {listed(bare)}")
        _compare(case, sheet, _expression(case, genes), "expression profiles", OWN)
    if case.embedding is None:
        sheet.unchecked("near-duplicates", "embeddings: none was named")
    else:
        _compare(case, sheet, _embeddings(case, sheet, case.embedding), f"embeddings {case.embedding}", OWN_EMBEDDED)


def _compare(case: Case, sheet: Sheet, profiles: Profiles, what: str, own: float) -> None:
    """Score all pairs of one platform, and judge those across sides."""
    across = {pair for sides in case.sides for pair in sides.pairs()}
    across = {(a, b) for a, b in across if case.patients[a] != case.patients[b]}
    groups: dict[str, list[str]] = {}
    for section in profiles:
        groups.setdefault(str(getattr(case.info(section), "platform", "")), []).append(section)
    suspects: dict[tuple[str, str], tuple[Likeness, float]] = {}
    for platform, members in groups.items():
        if not any(a in members and b in members for a, b in across):
            continue
        scores = pair_scores({s: profiles[s] for s in members}, case.patients)
        people = {s: case.patients[s] for s in members}
        if len({frozenset((people[a], people[b])) for a, b in scores}) <= MIN_REFERENCES:
            why = f"{what}: too few patients{f' on {platform}' if platform else ''} to know how alike two patients are"
            sheet.unchecked("near-duplicates", why)
            continue
        if np.median([score.between for score in scores.values()]) > ALL_ALIKE:
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
            far = 1 - score.between
            near = far < NEAR * (1 - usual) and far <= own * (1 - score.within)
            name = "near-duplicates" if near else "people-alike"
            alone = f", each alone with {score.within:.2f}" if score.within > -1 else ""
            said = (
                f"{what} of {b} (patient {case.patients[b]}, tested) and {a} (patient {case.patients[a]}, trained on) "
                f"match with cosine {score.between:.2f}{alone}; two patients do with {usual:.2f}"
            )
            message = f"{what} of sections of two patients match {_MATCHES[name]}"
            sheet.find(name, said, message=message, sections=(b, a), fold=sides.name)
            case.copies.add((a, b))


def _suspects(
    scores: Mapping[tuple[str, str], Likeness], people: Mapping[str, str]
) -> dict[tuple[str, str], tuple[Likeness, float]]:
    """Pairs that are too alike -> how much, and what other pairs of patients score."""
    out = {}
    for (a, b), score in scores.items():
        if score.between < SIMILAR:
            continue
        mine = {people[a], people[b]}
        usual = float(np.median([v.between for (c, d), v in scores.items() if {people[c], people[d]} != mine]))
        if 1 - score.between < LIKE * (1 - usual):
            out[a, b] = score, usual
    return out


def pair_scores(profiles: Profiles, patients: Mapping[str, str]) -> dict[tuple[str, str], Likeness]:
    """Likeness of every pair of sections of different patients.

    Parameters
    ----------
    profiles
        Of each section; at most `PER_SECTION` locations, so a pair's block is bounded.
    """
    rows = np.concatenate([p.values for p in profiles.values()])
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-12)
    units = {s: _unit((p.values - mean) * scale) for s, p in profiles.items()}
    within = {s: _matched(np.where(p.beside, -1.0, units[s] @ units[s].T)) for s, p in profiles.items()}
    out = {}
    names = list(profiles)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if patients[a] != patients[b]:
                cosine = units[a] @ units[b].T
                between = (_matched(cosine) + _matched(cosine.T)) / 2
                out[a, b] = Likeness(between, -1.0 if min(within[a], within[b]) <= -1 else (within[a] + within[b]) / 2)
    return out


def _matched(cosine: Floats) -> float:
    """How well locations (rows) find a match; -1 where none has one."""
    best = cosine.max(axis=1)
    return float(np.quantile(best[best > -1], MATCHED)) if (best > -1).any() else -1.0


def _expression(case: Case, genes: Sequence[str]) -> Profiles:
    """log1p CP10k of neighbourhoods, of the genes that vary most between them."""
    n, sums = 0, np.zeros((2, len(genes)))
    for _, _, values in _logged(case, genes):
        n += len(values)
        sums += values.sum(axis=0), (values**2).sum(axis=0)
    variance = sums[1] / max(n, 1) - (sums[0] / max(n, 1)) ** 2
    columns = np.sort(np.argsort(-variance, kind="stable")[:MAX_GENES])
    # Made twice, so that at no time there is more than one section of all its genes.
    made = _logged(case, genes)
    return {name: Profile(values[:, columns].copy(), _beside(case, name, rows)) for name, rows, values in made}


def _logged(case: Case, genes: Sequence[str]) -> Iterator[tuple[str, NDArray[np.intp], Floats]]:
    """Section, the locations drawn of it, and (k, genes) of their neighbourhoods."""
    for name in case.counted:
        rows = _drawn(case, name, np.arange(len(case.cohort[name].centres_um)))
        counts, symbols, _, _ = case.cohort[name].expression()
        at = {symbol: i for i, symbol in enumerate(symbols)}
        chosen = sp.csr_matrix(counts)[:, [at[g] for g in genes]].astype(np.float64)
        yield name, rows, log1p_cp10k(_neighbourhoods(case, name, rows) @ chosen).toarray()


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
            out[section] = Profile(np.asarray(values[rows], dtype=np.float64), _beside(case, section, rows))
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


def _beside(case: Case, name: str, rows: NDArray[np.intp]) -> Mask:
    """Whether neighbourhoods overlap; where nothing says where locations are, only each with itself."""
    if not case.placed(name):
        return np.eye(len(rows), dtype=bool)
    around = _neighbourhoods(case, name, rows)
    return np.asarray((around @ around.T).toarray() > 0)


def _neighbourhoods(case: Case, name: str, rows: NDArray[np.intp]) -> sp.csr_matrix:
    """(k, n), 1 where a location belongs to the neighbourhood of one of the k `rows`."""
    centres = np.asarray(case.cohort[name].centres_um, dtype=np.float64)
    n = len(centres)
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
