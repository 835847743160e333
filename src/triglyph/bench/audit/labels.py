"""Labels that can be had without biology: from the caption's words, from position, from depth; and missing classes.

Chance is what the same probe reaches after every section's label map was shifted around its bounding box by a random
amount: that keeps the maps as smooth as they are, which shuffling locations would not, and would call any smooth map
predictable.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.bench.audit.case import Case, Sides
from triglyph.bench.audit.findings import Sheet
from triglyph.bench.labels.classes import known_labels
from triglyph.genes.variable import library_size
from triglyph.metrics.ranking import auroc

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

NEIGHBOURS = 25
SHIFTS = 39
"""The value must exceed all of them: p = 1/40, for all folds of a split together."""
LEAST = 0.6
"""AUROC below which a probe is not worth a word, however significant."""
PER_SECTION = 400
"""Labelled locations of a section that the probes use."""
MIN_NAMED, MIN_SHARE = 3, 0.05


# ---- captions and classes


def check_captions(case: Case, sheet: Sheet) -> None:
    """`caption-names-label`: more often the location's own class than other classes."""
    name = "caption-names-label"
    inputs = None if case.subject is None else case.subject.inputs
    if inputs is not None and "text" not in inputs:
        sheet.checked(name)  # captions are not read when it is judged
        return
    own, other, n, example = _named(case)
    if not n:
        sheet.unchecked(name, "no test location has both a label and a caption")
        return
    sheet.checked(name)
    if own >= MIN_NAMED and own / n >= other / n + MIN_SHARE:
        said = "captions are inputs" if inputs is not None else "nobody says whether captions are inputs"
        what = (
            f"{own:,} of {n:,} labelled test captions name their class, {other:,} any given other one; {said} "
            f"(such as {example})"
        )
        sheet.find(name, what, severity="advise" if inputs is None else "fail")


def check_classes(case: Case, sheet: Sheet) -> None:
    """`class-on-one-side`."""
    name = "class-on-one-side"
    labels = _labels(case)
    if not any((of != "").any() for of in labels.values()):
        sheet.unchecked(name, "there are no labels")
        return
    sheet.checked(name)
    lacking: dict[str, list[str]] = {"trained on and not tested": [], "tested and not trained on": []}
    for sides in case.sides:
        seen, test = (
            {str(c) for s in of for c in np.unique(labels[s][case.rows(sides, s, test=side)])} - {""}
            for of, side in ((sides.seen, False), (sides.test, True))
        )
        fold = f"fold {sides.name}: " if sides.name else ""
        if not seen or not test:
            sheet.unchecked(name, f"{fold}no {'test' if seen else 'training'} section has labels")
            continue
        for words, missing in zip(lacking, (seen - test, test - seen), strict=True):
            if missing:
                lacking[words].append(f"{fold}{', '.join(sorted(missing))}")
    for words, parts in lacking.items():
        if parts:
            sheet.find(name, f"classes {words}: {'; '.join(parts)}")


def _named(case: Case) -> tuple[int, int, int, str]:
    """Test captions that name their own class; how many name another one, on average; how many there are; one."""
    own = n = 0
    others = 0.0
    example = ""
    labels = _labels(case)
    classes = sorted({str(c) for of in labels.values() for c in of} - {""})
    words = {c: [_spaced(w) for w in (c, *case.synonyms.get(c, ()))] for c in classes}
    for section, rows in _tested(case).items():
        captions = case.cohort[section].captions
        for i in rows:
            label = str(labels[section][i])
            if not label or not captions[i].strip():
                continue
            n += 1
            text = _spaced(captions[i])
            said = {c for c in classes if any(w in text for w in words[c])}
            if label in said:
                own += 1
                example = example or f"{captions[i]!r} for {label!r}"
            # Against the other classes one by one: a caption that names all of them names none.
            others += len(said - {label}) / max(len(classes) - 1, 1)
    return own, round(others), n, example


def _tested(case: Case) -> dict[str, list[int]]:
    """Section -> its locations that some fold tests, each once."""
    found: dict[str, set[int]] = {}
    for sides in case.sides:
        for section in sides.test:
            found.setdefault(section, set()).update(case.rows(sides, section, test=True).tolist())
    return {section: sorted(rows) for section, rows in found.items()}


def _spaced(text: str) -> str:
    """Words in lower case, without plural s, between single spaces."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return f" {' '.join(w[:-1] if len(w) > 3 and w.endswith('s') and not w.endswith('ss') else w for w in words)} "


def _labels(case: Case) -> dict[str, NDArray[np.str_]]:
    return {s: known_labels(case.cohort[s]) for s in case.sections}


# ---- probes


@dataclass(frozen=True)
class _Map:
    """Labelled locations of one section."""

    position: Floats
    """(n, 2), z-scored within the section"""
    depth: Floats
    """(n, 1), log1p of the total count, z-scored within the section"""
    codes: Codes
    """(1 + SHIFTS, n) classes as they are, and after each shift"""


def check_probes(case: Case, sheet: Sheet) -> None:
    """`position-tells-label`, `depth-tells-label`."""
    names = ("position-tells-label", "depth-tells-label")
    if case.split.level == "within-section":
        for name in names:
            sheet.unchecked(name, "sections are on both sides; position tells labels by design")
        return
    labels = _labels(case)
    classes = sorted({str(c) for of in labels.values() for c in of} - {""})
    if len(classes) < 2:
        for name in names:
            sheet.unchecked(name, f"there are {len(classes)} classes of labels, 2 are needed")
        return
    maps = {s: _map(case, s, labels[s], classes) for s in case.sections}
    for name, what in zip(names, ("position", "depth"), strict=True):
        if not all(case.placed(s) for s in case.sections):
            sheet.unchecked(name, "some sections do not say where their locations are")
            continue
        if what == "depth" and case.uncounted:
            sheet.unchecked(name, case.uncounted)
            continue
        values = [v for sides in case.sides if (v := _probe(sides, maps, what, len(classes))) is not None]
        if not values:
            sheet.unchecked(name, "no fold has labels on both sides")
            continue
        sheet.checked(name)
        # All folds at once, so that many folds are not many tries.
        mean = np.nanmean(np.stack(values), axis=0)
        value, null = float(mean[0]), mean[1:]
        if value >= LEAST and value > null.max():
            people = len({case.patients[s] for sides in case.sides for s in sides.test})
            said = (
                f"{'section-normalised position' if what == 'position' else 'library size'} alone tells labels of "
                f"{people} test patients with AUROC {value:.2f}; shifted label maps give {null.mean():.2f}, at most "
                f"{null.max():.2f} of {len(null)}"
            )
            sheet.find(name, said)


def _map(case: Case, name: str, labels: NDArray[np.str_], classes: Sequence[str]) -> _Map:
    section = case.cohort[name]
    rng = np.random.default_rng([case.seed, zlib.crc32(name.encode())])
    rows = np.flatnonzero(labels != "")
    rows = np.sort(rng.permutation(rows)[:PER_SECTION])
    centres = np.asarray(section.centres_um, dtype=np.float64)
    depth = np.full((len(centres), 1), np.nan)
    if not case.uncounted:
        counts, _, _, measured = section.expression()
        depth = np.log1p(library_size(counts, measured))[:, None]
    codes = np.searchsorted(np.asarray(classes), labels[rows]).astype(np.intp)
    drawn = [codes]
    if len(rows) and np.isfinite(centres).all():
        at = centres[rows] - centres[rows].min(axis=0)
        box = np.where(at.max(axis=0) > 0, at.max(axis=0), 1.0)
        tree = cKDTree(at)
        drawn += [codes[tree.query((at + rng.random(2) * box) % box)[1]] for _ in range(SHIFTS)]
    else:
        drawn *= 1 + SHIFTS
    return _Map(_standard(centres)[rows], _standard(depth)[rows], np.stack(drawn))


def _probe(sides: Sides, maps: dict[str, _Map], what: str, n_classes: int) -> Floats | None:
    """(1 + SHIFTS,) macro AUROC of nearest neighbours, of the labels as they are and after each shift."""
    seen, test = ([maps[s] for s in of if maps[s].codes.shape[1]] for of in (sides.seen, sides.test))
    if not seen or not test:
        return None
    train_x, test_x = (np.concatenate([getattr(m, what) for m in of]) for of in (seen, test))
    train_y, test_y = (np.concatenate([m.codes for m in of], axis=1) for of in (seen, test))
    k = np.arange(1, min(NEIGHBOURS, len(train_x)) + 1)
    # Neighbours do not hang on labels: they are found once for all shifts.
    near = cKDTree(train_x).query(test_x, k=k)[1]
    out = np.full(len(train_y), np.nan)
    for i, (train, truth) in enumerate(zip(train_y, test_y, strict=True)):
        scores = np.eye(n_classes)[train][near].mean(axis=1)
        of_class = auroc(scores, np.eye(n_classes)[truth])
        learnt = np.isin(np.arange(n_classes), train) & ~np.isnan(of_class)
        out[i] = of_class[learnt].mean() if learnt.any() else np.nan
    return None if np.isnan(out[0]) else out


def _standard(x: Floats) -> Floats:
    spread = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
