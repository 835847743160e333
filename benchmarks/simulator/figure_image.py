"""Figure 2, expression from the image: ridge from stain and texture, in the same block and in other people.

Features are z-scored within each section (which sees the test section, and is said); genes are the fifty most variable
of those detected in over a tenth of the training locations; Pearson per gene over one section, then the mean.
`position` knows where a location lies after sections are laid onto each other by the outline of the tissue and its
stain, and reads the mean expression there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import KNeighborsRegressor
from slices import Floats, Slice, common_genes, people_folds, row

from triglyph.bench.expression.placing import place
from triglyph.metrics.correlation import mean_defined, pearson
from triglyph.metrics.expression import most_variable
from triglyph.metrics.result import Result

N_GENES = 50
SEEN = ("features z-scored within each test section",)
WITHIN, ONE, MANY = "same block", "one patient -> another", "patients left out"
Predict = Callable[[Sequence[Slice], Sequence[Floats], Slice], Floats]
"""Training slices, their targets, a test slice -> (n, genes) predicted."""


def scaled(s: Slice) -> Floats:
    """(n, d) features of a section about its own mean, in its own deviations."""
    assert s.features is not None
    spread = s.features.std(axis=0)
    return (s.features - s.features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def haematoxylin(train: Sequence[Slice], targets: Sequence[Floats], test: Slice) -> Floats:
    """Ridge from the mean of haematoxylin."""
    return _ridge([scaled(s)[:, :1] for s in train], targets, scaled(test)[:, :1])


def stain_texture(train: Sequence[Slice], targets: Sequence[Floats], test: Slice) -> Floats:
    """Ridge from all features."""
    return _ridge([scaled(s) for s in train], targets, scaled(test))


def position(train: Sequence[Slice], targets: Sequence[Floats], test: Slice, *, k: int = 8) -> Floats:
    """Mean expression of the `k` nearest training locations, sections laid onto the test section."""
    placed = np.concatenate([aligned(s, test) for s in train])
    near = KNeighborsRegressor(k, weights="distance").fit(placed, np.concatenate(targets))
    return np.asarray(near.predict(test.xy_um))


def aligned(moving: Slice, fixed: Slice) -> Floats:
    """(n, 2) centres of `moving` in the frame of `fixed`, laid onto it by their stain."""
    stain = [scaled(s)[:, [0, 1, 6]] for s in (moving, fixed)]
    return place(moving.xy_um, stain[0], onto_um=fixed.xy_um, onto_stain=stain[1])


BASELINES: dict[str, Predict] = {"haematoxylin mean": haematoxylin, "stain and texture": stain_texture}


def image(
    slices: Sequence[Slice],
    *,
    baselines: dict[str, Predict] | None = None,
    n_genes: int = N_GENES,
    train_sections: int = 2,
    max_pairs: int = 60,
    folds: int = 8,
    turned: bool = True,
) -> list[Result]:
    """Pearson of every test section in the same block, from one other patient, and from all others.

    Parameters
    ----------
    train_sections
        Sections a training block or patient gives at most, the first ones.
    max_pairs
        Pairs of a training and a test patient that are tried, evenly spread over all.
    turned
        Whether sections of a block may be turned and shifted against each other; simulated ones are not.
    """
    used = [_seen(s) for s in slices if s.features is not None]
    kinds = BASELINES if baselines is None else baselines
    blocks: dict[tuple[str, str], list[Slice]] = {}
    people: dict[str, list[Slice]] = {}
    for s in used:
        blocks.setdefault((s.patient, s.block), []).append(s)
        people.setdefault(s.patient, []).append(s)
    genes = common_genes(used)
    logged = {s.id: s.logged(genes) for s in used}
    out: list[Result] = []
    for of in blocks.values():
        for test in of if len(of) > 1 else []:
            train = [s for s in of if s is not test][:train_sections]
            where = position if turned else in_place
            out += _judge(train, test, {**kinds, "position": where}, logged, n_genes, WITHIN)
    pairs = list(itertools.permutations(people, 2))
    pairs = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, min(max_pairs, len(pairs))).astype(int))]
    for a, b in pairs:
        for test in people[b]:
            out += _judge(people[a][:train_sections], test, kinds, logged, n_genes, ONE)
    if len(people) > 2:
        for train, tests in people_folds(used, folds=folds):
            for test in tests:
                out += _judge(train, test, kinds, logged, n_genes, MANY)
    return out


def in_place(train: Sequence[Slice], targets: Sequence[Floats], test: Slice, *, k: int = 8) -> Floats:
    """As `position`, of sections that lie in one frame already."""
    near = KNeighborsRegressor(k, weights="distance").fit(
        np.concatenate([s.xy_um for s in train]), np.concatenate(targets)
    )
    return np.asarray(near.predict(test.xy_um))


def _judge(
    train: Sequence[Slice],
    test: Slice,
    kinds: dict[str, Predict],
    logged: dict[str, sp.csr_matrix],
    n_genes: int,
    split: str,
) -> list[Result]:
    columns = most_variable(sp.vstack([logged[s.id] for s in train]).tocsr(), n_genes=n_genes)
    targets = [logged[s.id][:, columns].toarray() for s in train]
    truth = logged[test.id][:, columns].toarray()
    out = []
    for name, predict in kinds.items():
        r = mean_defined(pearson(predict(train, targets, test), truth))
        out.append(
            row(
                "image",
                name,
                "pearson",
                r.value,
                group=f"{'+'.join(s.id for s in train[:3])} -> {test.id}",
                patient=test.patient,
                split=split,
                level="within-patient" if split == WITHIN else "patient",
                transductive=SEEN,
                n=test.n,
                n_genes=r.n,
            )
        )
    return out


def _ridge(train: Sequence[Floats], targets: Sequence[Floats], test: Floats) -> Floats:
    fitted = RidgeCV(np.logspace(0, 4, 9)).fit(np.concatenate(train), np.concatenate(targets))
    return np.asarray(fitted.predict(test))


def _seen(s: Slice) -> Slice:
    """The locations with pixels and counts."""
    assert s.features is not None
    return s.rows(np.flatnonzero(np.isfinite(s.features).all(axis=1) & (s.totals > 0)))
