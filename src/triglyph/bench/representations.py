"""Representations of expression that are fitted in the trial: principal components, with and without neighbours.

All start from log1p of counts per 10,000 over the genes that every section of the trial measures. Genes (the most
variable) and axes come from the training locations alone. Averages over neighbours read the expression of test
locations as inputs, never their labels. `REPRESENTATIONS` names the three of the published reference figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.bench.contracts import Array, SectionLike, Subject, Trial
from triglyph.bench.features import Features
from triglyph.bench.genes import common_genes
from triglyph.bench.labels.classes import known_labels
from triglyph.bench.parts import Part, whole_of
from triglyph.errors import ContractError
from triglyph.metrics.expression import log1p_cp10k
from triglyph.metrics.result import Role

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Places = Literal["um", "array"]
Locations = Literal["labelled", "all"]

CENTRED = "centred with the mean of each test section"
LABELLED = "neighbours and means are over labelled locations alone"
ACROSS = "neighbours of test locations may lie in the training part, and the other way round"


@dataclass(frozen=True)
class FittedFeatures(Features):
    """Features of the sections of one trial, computed when they were fitted."""

    values: Mapping[str, tuple[Array, Bools]]
    """Section id -> (n, dim) and which of the n locations have them; NaN elsewhere."""
    training_sections: tuple[str, ...]
    modality: str = "expression"

    def features(self, section: Any) -> tuple[Array, Bools]:
        if section.id not in self.values:
            raise ContractError(
                f"section {section.id} is not in the trial that these features were fitted in",
                mend="fit them in a trial that has it",
            )
        return self.values[section.id]


def expression_components(
    trial: Trial,
    *,
    name: str,
    n_components: int,
    n_genes: int = 2000,
    pooled: int = 1,
    centred: bool = False,
    beside: int = 0,
    places: Places = "um",
    locations: Locations = "all",
    role: Role = "baseline",
) -> Subject:
    """Principal components of log expression, genes and axes fitted on the training sections of a trial.

    Parameters
    ----------
    n_components
        At most one less than training locations and genes allow.
    n_genes
        The most variable ones over the training locations.
    pooled
        Counts are first averaged over so many nearest locations, the location itself included; 1: as they are.
    centred
        Take each section's own mean off it, test sections included; declared as transductive.
    beside
        Put beside a location's components their mean over so many nearest locations; 0: none.
    places
        `um`: nearest by physical distance; `array`: by the array's own columns and rows (`array_col`, `array_row`),
        for square lattices, where many distances tie.
    locations
        `all` with counts, or `labelled` ones alone, as in the published figures of her2st: neighbours, means, genes
        and axes then know nothing of the others, and those have no features.
    role
        `baseline`, or `method` where this is what is judged.

    Returns
    -------
    A subject of `expression`.

    Raises
    ------
    GeneError
        The sections have no gene in common.
    ContractError
        Fewer than three training locations, or no array places where they are asked for.
    """
    wholes = {(whole := whole_of(s)).id: whole for s in (*trial.train, *trial.test)}
    genes = common_genes(list(wholes.values()))
    kept: dict[str, NDArray[np.intp]] = {}
    logged: dict[str, sp.csr_matrix] = {}
    near: dict[str, sp.csr_matrix] = {}
    for key, whole in wholes.items():
        counts = _counts(whole, genes)
        there = np.asarray(counts.sum(axis=1)).ravel() > 0
        kept[key] = np.flatnonzero(there & (known_labels(whole) != "") if locations == "labelled" else there)
        counts, xy = counts[kept[key]], _places(whole, places)[kept[key]]
        logged[key] = log1p_cp10k(counts if pooled == 1 else averaging(xy, pooled) @ counts)
        if beside:
            near[key] = averaging(xy, beside)

    offset = {k: _mean(x) if centred else np.zeros(len(genes)) for k, x in logged.items()}
    train = []
    for section in trial.train:
        key = whole_of(section).id
        rows = np.isin(kept[key], section.rows) if isinstance(section, Part) else np.ones(len(kept[key]), dtype=bool)
        train.append((key, logged[key][np.flatnonzero(rows)]))
    if sum(x.shape[0] for _, x in train) < 3:
        raise ContractError(
            "fewer than three training locations have counts" + (" and a label" if locations == "labelled" else ""),
            where=f"{name}, split {trial.split!r}",
            mend="train on more sections" + (", or take `locations='all'`" if locations == "labelled" else ""),
        )
    chosen = np.argsort(-_variance([(x, offset[k]) for k, x in train]), kind="stable")[:n_genes]
    project = _axes(np.concatenate([x[:, chosen].toarray() - offset[k][chosen] for k, x in train]), n_components)

    values = {}
    for key, x in logged.items():
        components = project(x[:, chosen].toarray() - offset[key][chosen])
        if beside:
            components = np.hstack([components, near[key] @ components])
        out = np.full((len(wholes[key].centres_um), components.shape[1]), np.nan)
        out[kept[key]] = components
        present = np.zeros(len(out), dtype=bool)
        present[kept[key]] = True
        values[key] = out, present
    notes = [CENTRED] if centred else []
    if locations == "labelled" and (centred or beside or pooled > 1):
        notes.append(LABELLED)
    if (beside or pooled > 1) and any(isinstance(s, Part) for s in trial.train):
        notes.append(ACROSS)
    source = FittedFeatures(values, training_sections=tuple(s.id for s in trial.train))
    return Subject(name, source, role=role, transductive=tuple(notes))


_fitted = partial(expression_components, locations="labelled")
REPRESENTATIONS: dict[str, Callable[..., Subject]] = {
    "expression-pca-50": partial(_fitted, name="expression-pca-50", n_components=50),
    "expression-pca-50+9-neighbours": partial(
        _fitted, name="expression-pca-50+9-neighbours", n_components=50, beside=9
    ),
    "expression-19-pooled-pca-10": partial(
        _fitted, name="expression-19-pooled-pca-10", n_components=10, pooled=19, centred=True
    ),
}
"""Name -> from a `Trial`, and options of `expression_components`, to a subject fitted in it.

Over labelled locations, as published; the published figures of her2st also take `places="array"`.
"""
NEIGHBOURLY = {"expression-pca-50+9-neighbours", "expression-19-pooled-pca-10"}
"""Those that need places."""


def averaging(xy: Floats, k: int) -> sp.csr_matrix:
    """(n, n) sparse matrix that averages over the `k` nearest of n places (n, 2), the place itself included."""
    from sklearn.neighbors import NearestNeighbors

    n = len(xy)
    k = min(k, n)
    if not n:
        return sp.csr_matrix((0, 0))
    near = NearestNeighbors(n_neighbors=k).fit(xy).kneighbors(xy, return_distance=False)
    weights = np.full(near.size, 1.0 / k)
    return sp.csr_matrix((weights, near.ravel(), np.arange(0, near.size + 1, k)), shape=(n, n))


def _counts(section: SectionLike, genes: tuple[str, ...]) -> sp.csr_matrix:
    counts, symbols, _, _ = section.expression()
    at = {symbol: i for i, symbol in enumerate(symbols)}
    return sp.csr_matrix(sp.csc_matrix(counts)[:, [at[g] for g in genes]], dtype=np.float64)


def _places(section: Any, places: Places) -> Floats:
    if places == "um":
        return np.asarray(section.centres_um, dtype=np.float64)
    obs = section.table.obs
    if "array_col" not in obs or "array_row" not in obs:
        raise ContractError(
            "the table says no place on the array (columns array_col, array_row)",
            where=f"section {section.id}",
            mend="take `places='um'`",
        )
    return obs[["array_col", "array_row"]].to_numpy(dtype=np.float64)


def _mean(x: sp.csr_matrix) -> Floats:
    return np.asarray(x.mean(axis=0)).ravel() if x.shape[0] else np.zeros(x.shape[1])


def _variance(pieces: list[tuple[sp.csr_matrix, Floats]]) -> Floats:
    """(genes,) variance over the rows of all pieces, each less its own offset (genes,), without making them dense."""
    n = sum(x.shape[0] for x, _ in pieces)
    first, second = 0.0, 0.0
    for x, offset in pieces:
        total, square = np.asarray(x.sum(axis=0)).ravel(), np.asarray(x.multiply(x).sum(axis=0)).ravel()
        first = first + total - x.shape[0] * offset
        second = second + square - 2 * offset * total + x.shape[0] * offset**2
    return np.asarray(second / n - (first / n) ** 2)


def _axes(x: Floats, n_components: int) -> Callable[[Floats], Floats]:
    """From (k, genes) to (k, components): principal components of the rows of `x`, about their mean."""
    from sklearn.decomposition import PCA

    n = min(n_components, min(x.shape) - 1)
    fitted = PCA(n, svd_solver="arpack", random_state=0).fit(x)
    return lambda new: np.asarray(fitted.transform(new)) if len(new) else np.zeros((0, n))
