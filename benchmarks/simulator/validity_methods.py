"""Plain methods for the check of validity: ten that read an image, ten that read genes, nine that find cancer.

They differ in what they look at (one number, colours, texture, everything; a line, neighbours, trees), so that their
order says something about the tissue; none was tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import figure_genes
import figure_image
import numpy as np
from figure_genes import Fold, with_neighbours
from figure_image import scaled
from figure_labels import CANCER, POOLED, components, labelled
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from slices import Floats, Slice, neighbour_mean, people_folds, row

from triglyph.metrics.result import Result

# Columns of stain-texture: 26 of the inner half of the window, then 26 of all of it.
_STAIN = [0, 1, 2, 3, 4, 5, 12, 13, 14, 15]
_RGB = [6, 7, 8]
_PATTERNS = list(range(16, 26))


def _both(columns: Sequence[int]) -> list[int]:
    return [*columns, *(c + 26 for c in columns)]


# ---- expression from the image


def _image(
    model: Callable[[], Any], columns: Sequence[int] | None = None, *, near: bool = False
) -> figure_image.Predict:
    """A regression from some columns of the features, their means over 7 neighbours beside them if `near`."""

    def read(s: Slice) -> Floats:
        x = scaled(s) if columns is None else scaled(s)[:, list(columns)]
        return np.hstack([x, neighbour_mean(x, s.xy_um, 7)]) if near else x

    def predict(train: Sequence[Slice], targets: Sequence[Floats], test: Slice) -> Floats:
        fitted = model().fit(np.concatenate([read(s) for s in train]), np.concatenate(targets))
        return np.asarray(fitted.predict(read(test)))

    return predict


def _position(train: Sequence[Slice], targets: Sequence[Floats], test: Slice) -> Floats:
    """Ridge from polynomials of places, z-scored within each section and not turned onto each other."""

    def powers(s: Slice) -> Floats:
        x, y = StandardScaler().fit_transform(s.xy_um).T
        return np.stack([x**i * y**j for i in range(5) for j in range(5 - i) if i + j], axis=1)

    fitted = _ridge().fit(np.concatenate([powers(s) for s in train]), np.concatenate(targets))
    return np.asarray(fitted.predict(powers(test)))


def _ridge() -> Any:
    return RidgeCV(np.logspace(0, 4, 9))


def _forest() -> Any:
    return RandomForestRegressor(50, max_depth=8, min_samples_leaf=5, max_features=0.5, random_state=0)


IMAGE: dict[str, figure_image.Predict] = {
    "haematoxylin mean": _image(_ridge, [0]),
    "mean RGB": _image(_ridge, _RGB),
    "stain": _image(_ridge, _both(_STAIN)),
    "texture": _image(_ridge, _both(_PATTERNS)),
    "stain and texture": _image(_ridge),
    "stain and texture + neighbours": _image(_ridge, near=True),
    "kNN": _image(lambda: KNeighborsRegressor(15)),
    "PLS": _image(lambda: PLSRegression(5)),
    "random forest on PCA": _image(lambda: make_pipeline(PCA(10, random_state=0), _forest())),
    "position in the section": _position,
}


# ---- genes from genes


def _genes(model: Callable[[], Any], *, near: bool = False) -> figure_genes.Predict:
    return lambda fold: fold.fitted(with_neighbours(fold) if near else fold.x, model())


def _on_components(model: Any, n: int = 20) -> Any:
    return make_pipeline(PCA(n, random_state=0), model)


def _best_gene(fold: Fold) -> dict[str, Floats]:
    """For every target a line through the core gene that correlates with it best on the training locations."""
    x, y = fold.stacked(fold.x, fold.train), fold.stacked(fold.y, fold.train)
    a, b = StandardScaler().fit(x), StandardScaler().fit(y)
    r = a.transform(x).T @ b.transform(y) / len(x)
    best = np.abs(r).argmax(axis=0)
    slope = r[best, np.arange(y.shape[1])] * b.scale_
    return {s.id: a.transform(fold.x[s.id])[:, best] * slope + b.mean_ for s in fold.test}


GENES: dict[str, figure_genes.Predict] = {
    "training mean": figure_genes.training_mean,
    "Min-MAE": figure_genes.min_mae,
    "best gene": _best_gene,
    "library size (core)": figure_genes.library_size,
    "ridge": figure_genes.ridge,
    "ridge + neighbours": figure_genes.ridge_neighbours,
    "ridge on PCA": _genes(lambda: _on_components(_ridge())),
    "kNN on PCA": _genes(lambda: _on_components(KNeighborsRegressor(25))),
    "PLS": _genes(lambda: PLSRegression(10)),
    "random forest on PCA": _genes(lambda: _on_components(_forest())),
}


# ---- cancer from expression


def _logistic() -> Any:
    return LogisticRegression(max_iter=2000, class_weight="balanced", C=0.1)


def _forest_of_classes() -> Any:
    return RandomForestClassifier(200, max_depth=8, min_samples_leaf=5, class_weight="balanced", random_state=0)


CANCER_METHODS: dict[str, tuple[str, Callable[[], Any], int | None]] = {
    "PCA-50": ("PCA-50", _logistic, None),
    "PCA-10": ("PCA-50", _logistic, 10),
    "PCA-50 + 9 neighbours": ("PCA-50 + 9 neighbours", _logistic, None),
    "19 spots pooled": (POOLED, _logistic, None),
    "kNN": ("PCA-50", lambda: KNeighborsClassifier(25), 20),
    "kNN of 19 spots pooled": (POOLED, lambda: KNeighborsClassifier(25), None),
    "nearest centroid": ("PCA-50", NearestCentroid, 20),
    "naive Bayes": ("PCA-50", GaussianNB, 20),
    "random forest": ("PCA-50", _forest_of_classes, 20),
    "library size": ("depth", _logistic, None),
}
"""Method -> (components it reads, classifier, how many of them)."""


def cancer(slices: Sequence[Slice], *, folds: int = 8) -> list[Result]:
    """AUROC of cancer against the rest in every test section, method by method."""
    out = []
    for train, test in people_folds(labelled(slices, per_patient=1), folds=folds):
        features = components(train, test)
        features["depth"] = {s.id: np.log1p(s.totals)[:, None] for s in (*train, *test)}
        y = np.concatenate([np.isin(s.labels, CANCER) for s in train])
        for name, (which, model, n) in CANCER_METHODS.items():
            x = {k: v[:, :n] for k, v in features[which].items()}
            fitted = model().fit(np.concatenate([x[s.id] for s in train]), y)
            for s in test:
                truth = np.isin(s.labels, CANCER)
                one_sided = truth.all() or not truth.any()
                value = float("nan") if one_sided else roc_auc_score(truth, _certainty(fitted, x[s.id]))
                out.append(
                    row(
                        "labels",
                        name,
                        "cancer AUROC",
                        value,
                        group=s.id,
                        patient=s.patient,
                        split="patients left out",
                        n=s.n,
                    )
                )
    return out


def _certainty(fitted: Any, x: Floats) -> Floats:
    """(n,) higher for more likely cancer."""
    if isinstance(fitted, NearestCentroid):
        rest, tumour = (np.linalg.norm(x - c, axis=1) for c in fitted.centroids_)
        return np.asarray(rest - tumour)
    return np.asarray(fitted.predict_proba(x)[:, 1])
