"""Figure 1, tissue classes from expression: a linear reading of three kinds of components, one patient left out.

Cancer against the rest (AUROC) comes first; then the recall over classes that were seen in training and have at least
ten test locations, and the adjusted Rand index of k-means over classes with at least ten.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, recall_score, roc_auc_score
from slices import Floats, Slice, common_genes, neighbour_mean, people_folds, row

from triglyph.errors import ContractError
from triglyph.metrics.expression import log1p_cp10k
from triglyph.metrics.result import Result

CANCER = ("invasive cancer", "cancer in situ")
FEW = 10
"""Classes with fewer locations in a section are not judged there."""
POOLED = "19 spots pooled, centred, PCA-10"


def labels(
    slices: Sequence[Slice], *, per_patient: int = 1, folds: int = 8, clusterings: int = 20, n_genes: int = 2000
) -> list[Result]:
    """AUROC of cancer, balanced accuracy and ARI of every test section.

    Parameters
    ----------
    per_patient
        Labelled sections a patient, the first ones; her2st has one.
    folds
        Leave one patient out up to so many patients; above, groups of patients.
    clusterings
        Starts of k-means whose ARI is averaged.
    """
    used = labelled(slices, per_patient=per_patient)
    out: list[Result] = []
    for train, test in people_folds(used, folds=folds):
        y = np.concatenate([s.labels for s in train])
        for name, features in components(train, test, n_genes=n_genes).items():
            x = np.concatenate([features[s.id] for s in train])
            every, two = _classifier().fit(x, y), _classifier().fit(x, np.isin(y, CANCER))
            for s in test:
                f = features[s.id]
                values = {
                    "cancer AUROC": _auroc(np.isin(s.labels, CANCER), two.decision_function(f)),
                    "balanced accuracy": _balanced(s.labels, every.predict(f), set(y)),
                    "ARI": _ari(s.labels, f, clusterings),
                }
                note = ("centred with the test section's own mean",) if name == POOLED else ()
                out += [
                    row(
                        "labels",
                        name,
                        metric,
                        value,
                        group=s.id,
                        patient=s.patient,
                        split="patients left out",
                        transductive=note,
                        n=s.n,
                    )
                    for metric, value in values.items()
                ]
    return out


def labelled(slices: Sequence[Slice], *, per_patient: int) -> list[Slice]:
    """The labelled locations of the first `per_patient` labelled sections of each patient."""
    found: dict[str, list[Slice]] = {}
    for s in slices:
        if (s.labels != "").any():
            found.setdefault(s.patient, []).append(s)
    if len(found) < 2:
        raise ContractError(f"{len(found)} patients have labels, two are needed", mend="read their labels too")
    return [s.rows(np.flatnonzero(s.labels != "")) for of in found.values() for s in of[:per_patient]]


def components(train: Sequence[Slice], test: Sequence[Slice], *, n_genes: int = 2000) -> dict[str, dict[str, Floats]]:
    """Name -> section -> (n, d) components; genes and axes come from the training sections."""
    genes = common_genes([*train, *test])
    plain = {s.id: s.logged(genes) for s in (*train, *test)}
    # Pooled counts are many genes times many spots: only those genes are made dense that are kept.
    pooled = {s.id: log1p_cp10k(neighbour_counts(s.of(genes), s.xy_um, 19)) for s in (*train, *test)}
    base = _pca(plain, train, 50, n_genes, centred=False)
    near = {s.id: np.hstack([base[s.id], neighbour_mean(base[s.id], s.xy_um, 9)]) for s in (*train, *test)}
    return {"PCA-50": base, "PCA-50 + 9 neighbours": near, POOLED: _pca(pooled, train, 10, n_genes, centred=True)}


def neighbour_counts(counts: sp.csr_matrix, xy_um: Floats, k: int) -> sp.csr_matrix:
    """Counts averaged over the `k` nearest locations."""
    return sp.csr_matrix(neighbour_mean(counts, xy_um, k))


def _pca(
    values: dict[str, sp.csr_matrix], train: Sequence[Slice], n: int, n_genes: int, *, centred: bool
) -> dict[str, Floats]:
    """Components of the most variable genes; `centred` removes each section's mean from it first."""
    means = {k: np.asarray(v.mean(axis=0)).ravel() for k, v in values.items()}
    stacked = sp.vstack([values[s.id] for s in train]).tocsr()
    if centred:
        # The variance about the sections' own means: that of all locations less that between sections.
        sizes = np.array([values[s.id].shape[0] for s in train], dtype=np.float64)
        square = np.asarray(stacked.multiply(stacked).mean(axis=0)).ravel()
        between = (sizes / sizes.sum()) @ np.stack([means[s.id] ** 2 for s in train])
        variance = square - between
    else:
        variance = _variance(stacked)
    kept = np.argsort(-variance, kind="stable")[:n_genes]
    dense = {k: v[:, kept].toarray() - (means[k][kept] if centred else 0.0) for k, v in values.items()}
    n = min(n, len(kept) - 1, stacked.shape[0] - 1)
    fitted = PCA(n, svd_solver="arpack", random_state=0).fit(np.concatenate([dense[s.id] for s in train]))
    return {k: fitted.transform(v) for k, v in dense.items()}


def _variance(values: sp.csr_matrix) -> Floats:
    mean = np.asarray(values.mean(axis=0)).ravel()
    return np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2


def _classifier() -> LogisticRegression:
    return LogisticRegression(max_iter=2000, class_weight="balanced", C=0.1)


def _auroc(truth: NDArray[np.bool_], scores: Floats) -> float:
    return float(roc_auc_score(truth, scores)) if 0 < truth.sum() < len(truth) else float("nan")


def _balanced(truth: NDArray[np.str_], guess: NDArray[np.str_], seen: set[str]) -> float:
    names, numbers = np.unique(truth, return_counts=True)
    judged = [c for c, n in zip(names, numbers, strict=True) if n >= FEW and c in seen]
    return float(recall_score(truth, guess, labels=judged, average="macro")) if judged else float("nan")


def _ari(truth: NDArray[np.str_], features: Floats, clusterings: int) -> float:
    names, numbers = np.unique(truth, return_counts=True)
    big = np.isin(truth, names[numbers >= FEW])
    k = int((numbers >= FEW).sum())
    if k < 2:
        return float("nan")
    found = [KMeans(k, n_init=1, random_state=i).fit_predict(features[big]) for i in range(clusterings)]
    return float(np.mean([adjusted_rand_score(truth[big], of) for of in found]))
