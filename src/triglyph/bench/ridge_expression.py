"""`ridge-expression`: how much expression a ridge regression reads off image features of unseen sections.

Genes are the most variable, on the training sections, of those measured everywhere and seen often enough in training.
With `standardise="per-section"` features are z-scored within each section, test sections included: that removes stain
and scanner offsets, sees the test section's mean, and is declared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.contracts import SectionLike, Subject, Trial
from triglyph.bench.genes import TrialExpression
from triglyph.bench.protocol import PER_SECTION, Protocol, ProtocolCard
from triglyph.bench.rows import Measure, Rows
from triglyph.errors import ContractError
from triglyph.metrics.bootstrap import nan_mean
from triglyph.metrics.correlation import mean_defined, pearson, spearman
from triglyph.metrics.expression import mean_squared_error
from triglyph.metrics.result import Result

Floats = NDArray[np.float64]
ALPHAS = tuple(float(a) for a in np.logspace(0, 4, 9))
Standardise = Literal["training", "per-section"]
PER_SECTION_NOTE = "features z-scored within each test section"


class RidgeExpression(Protocol):
    """Pearson, Spearman and squared error of ridge-predicted log1p CP10k."""

    name: ClassVar[str] = "ridge-expression"
    task: ClassVar[str] = "expression"

    modality: Literal["image", "text"] = "image"
    features: Literal["embedding", "pooled"] = "embedding"
    standardise: Standardise = "training"
    alphas: tuple[float, ...] = ALPHAS
    n_genes: int = 50
    min_detected: float = 0.1

    def card(self) -> ProtocolCard:
        per_section = self.standardise == "per-section"
        scaled = "each section, test sections too" if per_section else "training sections"
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary="ridge regression from frozen features to log1p of counts per 10,000 of the common genes",
            fitted={
                "mean and deviation of each feature": scaled,
                "genes": f"training sections: the {self.n_genes} most variable of those seen in over "
                f"{self.min_detected:.0%} of locations and measured in every section of the trial",
                "ridge": "training sections; one alpha for all genes by generalised leave-one-out over their locations",
            },
            transductive=(PER_SECTION_NOTE,) if per_section else (),
            metrics={
                "pearson": "per gene over a section's locations, then the mean over genes where it is defined",
                "spearman": "as pearson, of average ranks; no interval",
                "mse": "mean over locations and genes, log1p CP10k",
                "genes-undefined": "genes left out of pearson: constant in the section, or predicted as a constant",
            },
            aggregations=PER_SECTION,
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        if self.modality not in subject.modalities:
            raise ContractError(f"{subject.name} has no {self.modality}", mend="choose another `modality`")
        expression = TrialExpression(trial, n_genes=self.n_genes, min_detected=self.min_detected)
        read = subject.embed if self.features == "embedding" else subject.pooled
        sides: dict[str, tuple[NDArray[np.intp], Floats, Floats]] = {}
        for section in (*trial.train, *trial.test):
            values, present = read(section, self.modality)
            target, counted = expression[section]
            kept = np.flatnonzero(present & counted)
            sides[section.id] = kept, np.asarray(values[kept], dtype=np.float64), target[kept]
        ridge = fit_ridge(
            [sides[s.id][1:] for s in trial.train],
            standardise=self.standardise,
            alphas=self.alphas,
            where=f"{subject.name}, split {trial.split!r}",
        )
        found: dict[str, dict[str, Measure]] = {}
        for section in trial.test:
            kept, features, truth = sides[section.id]
            if len(kept):
                for metric, measure in self.section_measures(rows, section, kept, ridge(features), truth).items():
                    found.setdefault(metric, {})[section.id] = measure
        direction = f"{self.modality}->expression"
        return [row for metric, of in found.items() for row in rows.per_section(of, metric=metric, direction=direction)]

    @staticmethod
    def section_measures(
        rows: Rows, section: SectionLike, kept: NDArray[np.intp], guess: Floats, truth: Floats
    ) -> dict[str, Measure]:
        """All metrics of predicted against measured log1p CP10k, (k, genes), of the locations `kept` of a section."""
        drawn = rows.blocks(section, kept)
        n, genes = truth.shape
        r, rho = mean_defined(pearson(guess, truth)), mean_defined(spearman(guess, truth))
        error = mean_squared_error(guess, truth)
        return {
            "pearson": Measure(
                value=r.value,
                n=n,
                n_genes=r.n,
                chance=0.0,
                draws=nan_mean(drawn.pearson(guess, truth), axis=1),
                n_blocks=drawn.n_units,
            ),
            "spearman": Measure(value=rho.value, n=n, n_genes=rho.n, chance=0.0),
            "mse": Measure(
                value=float(error.mean()),
                n=n,
                n_genes=genes,
                draws=drawn.mean(((guess - truth) ** 2).mean(axis=1))[:, 0],
                n_blocks=drawn.n_units,
            ),
            "genes-undefined": Measure(value=float(r.n_undefined), n=n, n_genes=genes),
        }


def fit_ridge(
    train: Sequence[tuple[Floats, Floats]],
    *,
    standardise: Standardise = "training",
    alphas: tuple[float, ...] = ALPHAS,
    where: str = "",
) -> Callable[[Floats], Floats]:
    """Ridge from features to targets, alpha chosen by generalised leave-one-out on the training rows.

    Parameters
    ----------
    train
        (features (n, d), targets (n, k)) of each training section.
    standardise
        Where mean and deviation of the features come from.

    Returns
    -------
    From the features (n, d) of one section to its predicted targets (n, k).

    Raises
    ------
    ContractError
        There is nothing to train on, or a feature is not finite.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    pieces = [(_finite(x, where), y) for x, y in train if len(x)]
    if sum(len(x) for x, _ in pieces) < 2:
        raise ContractError("fewer than two training locations have features and counts", where=where)
    targets = np.concatenate([y for _, y in pieces])
    scaler = StandardScaler().fit(np.concatenate([x for x, _ in pieces]))

    def scaled(x: Floats) -> Floats:
        own = StandardScaler().fit(x) if standardise == "per-section" else scaler
        return np.asarray(own.transform(x))

    ridge = RidgeCV(alphas=np.asarray(alphas)).fit(np.concatenate([scaled(x) for x, _ in pieces]), targets)

    def predict(x: Floats) -> Floats:
        if not len(x):
            return np.zeros((0, targets.shape[1]))
        return np.asarray(ridge.predict(scaled(_finite(x, where)))).reshape(len(x), targets.shape[1])

    return predict


def _finite(x: Floats, where: str) -> Floats:
    if not np.isfinite(x).all():
        raise ContractError("a feature is not finite", where=where, mend="embed the sections again")
    return x
