"""More ways to divide a cohort: balanced folds, folds within folds, and divisions of locations within sections.

Divisions within sections are there to show what they are worth. Neighbouring locations are near copies of each other,
so held-out ones drawn at random are all but seen in training, and what a model scores on them says nothing of the next
patient; blocks of tissue with a buffer around them leak less. Either way the level is `within-section`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import SplitError
from triglyph.tissue.split import Fold, Split, folds_of, patient_folds

WIDEST_WINDOW_UM = 224.0
"""Side of the widest window that an image encoder of ours reads."""
BUFFER_UM = 320.0
"""Beyond the diagonal of that window: two windows whose centres are further apart share no pixel, however they lie."""


def stratified_folds(
    patients: Mapping[str, str],
    profiles: Mapping[str, Mapping[str, float]],
    *,
    name: str,
    folds: int,
    val_patients: int = 0,
    seed: int = 0,
) -> Split:
    """Patient-level folds of like composition, each patient tested once.

    Folds differ by at most one patient. Patients with much of what is rare are placed first, each where least of what
    they have already is. Where every patient has one value with the weight 1, folds differ by at most one patient of
    every value, too.

    Parameters
    ----------
    patients
        Section id -> patient id.
    profiles
        Section id -> value -> weight, added up over a patient's sections: numbers of locations of each label, or 1 for
        the site of a patient's only section.
    val_patients
        Patients of the training side of each fold set aside for validation.

    Raises
    ------
    SplitError
        A patient has no profile, or there are more folds than patients.
    """
    people = sorted(set(patients.values()))
    if not 2 <= folds <= len(people):
        raise SplitError(
            f"{folds} folds of {len(people)} patients",
            where=f"split {name!r}",
            mend="use 2 or more, at most one a patient",
        )
    values = sorted({value for profile in profiles.values() for value in profile})
    weight = np.zeros((len(people), len(values)))
    for section, patient in patients.items():
        for value, of in profiles.get(section, {}).items():
            weight[people.index(patient), values.index(value)] += of
    if unknown := [p for p, of in zip(people, weight, strict=True) if not of.any()]:
        raise SplitError(
            f"nothing to balance is known of patients {', '.join(unknown)}",
            where=f"split {name!r}",
            mend="fill it in for a section of each, or balance by something else",
        )
    total = weight.sum(axis=0)
    share = (weight / np.where(total > 0, total, 1.0)).round(12)
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(people))]
    groups: list[list[str]] = [[] for _ in range(folds)]
    held = np.zeros((folds, len(values)))
    small, larger = divmod(len(people), folds)
    # Rare values first, then one value after the other: the sort is stable, so the draw decides among equals.
    main = share.argmax(axis=1)
    for i in sorted(order, key=lambda i: (-share[i].max(), main[i])):
        most = small + (sum(len(g) > small for g in groups) < larger)
        open_ = [f for f in range(folds) if len(groups[f]) < most]
        best = min(open_, key=lambda f: (round(float(held[f] @ share[i]), 12), len(groups[f]), f))
        groups[best].append(people[i])
        held[best] += share[i]
    made = folds_of(patients, groups, order=[people[i] for i in order], name=name, val_patients=val_patients)
    return Split(name=name, level="patient", folds=made, seed=seed, made_by="stratified_folds")


def nested_folds(outer: Split, patients: Mapping[str, str], *, folds: int | None = None, seed: int = 0) -> list[Split]:
    """For each fold of a patient-level split, folds of its training side, to choose things on: `<name>/<fold>`.

    Nobody whom the outer fold tests is in any of them. Validation patients of the outer fold take part.

    Parameters
    ----------
    patients
        Section id -> patient id.
    folds
        Inner folds; None leaves one patient out.

    Raises
    ------
    SplitError
        The outer split is not patient-level, or a training side has fewer patients than folds.
    """
    if outer.level != "patient":
        raise SplitError(
            f"folds within a {outer.level} split would not be apart by patients", where=f"split {outer.name!r}"
        )
    out = []
    for fold in outer.folds:
        training = {s: patients[s] for s in (*fold.train, *fold.val)}
        inner = patient_folds(training, name=f"{outer.name}/{fold.name}", folds=folds, seed=seed)
        out.append(inner.model_copy(update={"made_by": f"nested_folds in {outer.name} {outer.digest()}"}))
    return out


def random_within(locations: Mapping[str, Sequence[str]], *, name: str, share: float = 0.05, seed: int = 0) -> Split:
    """Locations drawn at random within every section are tested, the rest is trained on: the leak that the field uses.

    Parameters
    ----------
    locations
        Section id -> barcodes.
    share
        Of each section's locations, held out; at least one.

    Raises
    ------
    SplitError
        `share` is not between 0 and 1, or a section has fewer than two locations.
    """
    if not 0 < share < 1:
        raise SplitError(f"a share of {share} held out", where=f"split {name!r}", mend="give one between 0 and 1")
    held: dict[str, tuple[str, ...]] = {}
    for section, barcodes in sorted(locations.items()):
        n = len(barcodes)
        if n < 2:
            raise SplitError(f"section {section} has {n} locations", where=f"split {name!r}", mend="leave it out")
        drawn = _rng(seed, section).permutation(n)[: min(n - 1, max(1, round(share * n)))]
        held[section] = tuple(str(barcodes[i]) for i in np.sort(drawn))
    fold = Fold(train=tuple(held), test=tuple(held), test_locations=held)
    return Split(name=name, level="within-section", folds=(fold,), seed=seed, made_by=f"random_within, {share:g}")


def blocked_within(
    locations: Mapping[str, tuple[Sequence[str], ArrayLike]],
    *,
    name: str,
    folds: int = 5,
    block_um: float = 1000.0,
    buffer_um: float = BUFFER_UM,
    seed: int = 0,
) -> Split:
    """Folds of square blocks of tissue within every section, each location tested once.

    Locations no further than `buffer_um` from a tested one of their section are on neither side.

    Parameters
    ----------
    locations
        Section id -> barcodes, and centres (n, 2) in µm.
    block_um
        Side of a block; the lattice starts at the smallest x and y.
    buffer_um
        0 for none. Windows are squares: for a model that sees `w` µm, √2 `w` keeps any two apart.

    Raises
    ------
    SplitError
        A section is one block, says nothing of where its locations are, or its buffers leave nothing to train on.
    """
    if folds < 2 or block_um <= 0 or buffer_um < 0:
        raise SplitError(
            f"{folds} folds of blocks of {block_um} µm with a buffer of {buffer_um} µm",
            where=f"split {name!r}",
            mend="use two folds or more, a positive side, and a buffer of 0 or more",
        )
    tested: list[dict[str, tuple[str, ...]]] = [{} for _ in range(folds)]
    buffer: list[dict[str, tuple[str, ...]]] = [{} for _ in range(folds)]
    for section, (barcodes, centres_um) in sorted(locations.items()):
        xy = np.asarray(centres_um, dtype=np.float64)
        if not np.isfinite(xy).all():
            raise SplitError(
                f"section {section} does not say where its locations are",
                where=f"split {name!r}",
                mend="leave it out, or split by patients",
            )
        fold_of = _dealt(_blocks(xy, block_um), folds, _rng(seed, section))
        if fold_of.max(initial=0) == 0:
            raise SplitError(
                f"section {section} is one block of {block_um:g} µm", where=f"split {name!r}", mend="use smaller ones"
            )
        for f in range(folds):
            here = fold_of == f
            if not here.any():
                continue
            near = _near(xy, here, buffer_um)
            if (here | near).all():
                raise SplitError(
                    f"nothing of section {section} is further than {buffer_um:g} µm from what fold {f} tests",
                    where=f"split {name!r}",
                    mend="use a smaller buffer, or larger blocks",
                )
            tested[f][section] = tuple(str(barcodes[i]) for i in np.flatnonzero(here).tolist())
            if near.any():
                buffer[f][section] = tuple(str(barcodes[i]) for i in np.flatnonzero(near).tolist())
    if empty := [str(f) for f in range(folds) if not tested[f]]:
        raise SplitError(
            f"too few blocks of {block_um:g} µm for {folds} folds: nothing to test in {', '.join(empty)}",
            where=f"split {name!r}",
            mend="use fewer folds, or smaller blocks",
        )
    made = tuple(
        Fold(
            name=str(f),
            train=tuple(sorted(locations)),
            test=tuple(tested[f]),
            test_locations=tested[f],
            buffer_locations=buffer[f] or None,
        )
        for f in range(folds)
    )
    how = f"blocked_within, {block_um:g} µm, buffer {buffer_um:g} µm"
    return Split(name=name, level="within-section", folds=made, seed=seed, made_by=how)


def _rng(seed: int, section: str) -> np.random.Generator:
    """Each section draws for itself: adding one changes no other."""
    return np.random.default_rng([seed, zlib.crc32(section.encode())])


def _blocks(xy: NDArray[np.float64], side_um: float) -> NDArray[np.intp]:
    cell = np.floor((xy - xy.min(axis=0)) / side_um).astype(np.int64)
    return np.unique(cell, axis=0, return_inverse=True)[1].ravel().astype(np.intp)


def _dealt(blocks: NDArray[np.intp], folds: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """(n,) fold of each location: blocks in random order, largest first, each to the fold with the fewest locations."""
    sizes = np.bincount(blocks)
    order = rng.permutation(len(sizes))
    fold_of, held = np.zeros(len(sizes), dtype=np.intp), np.zeros(folds)
    for block in order[np.argsort(-sizes[order], kind="stable")]:
        fold_of[block] = held.argmin()
        held[fold_of[block]] += sizes[block]
    return fold_of[blocks]


def _near(xy: NDArray[np.float64], here: NDArray[np.bool_], buffer_um: float) -> NDArray[np.bool_]:
    """Which locations outside `here` are no further than the buffer from one inside."""
    near = np.zeros(len(xy), dtype=bool)
    if buffer_um > 0:
        from scipy.spatial import cKDTree

        distance, _ = cKDTree(xy[here]).query(xy[~here])
        near[~here] = distance <= buffer_um
    return near
