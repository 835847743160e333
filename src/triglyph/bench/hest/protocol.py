"""`hest-benchmark`: the protocol of HEST-Benchmark (Jaume et al., NeurIPS 2024), and what the field argues about in it.

log1p of raw counts, without normalisation by depth; 50 genes; standardised features, 256 principal components as
scikit-learn gives them (an approximation from about 1,000 features on), ridge with alpha = 100 / (components x genes)
and no intercept; Pearson per gene over the test locations of a fold at once, mean over genes, then over folds
(`triglyph.bench.across_folds`).

Each variant changes one thing, under a name of its own: `hest-benchmark-alpha-cv`, `-intercept`, `-no-pca`,
`-exact-pca`, `-training-genes`. `with_variants` gives the protocol with all of them. Pearson within sections instead of
over all locations is in the rows of each, as `per-section` and `per-patient`.

The reference reports R² of a prediction without an intercept, which is off by the mean of every gene. Here the mean of
the training targets is added before any error is taken: it is what the intercept would be, since features are centred,
and it leaves Pearson as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, field_validator, model_validator

from triglyph.bench.contracts import SectionLike, Subject, Trial
from triglyph.bench.expression.predictors import Predict, learned
from triglyph.bench.genes import common_genes
from triglyph.bench.hest.exact_pca import fit_pca_ridge
from triglyph.bench.hest.genes import read_genes, variable_genes
from triglyph.bench.hest.rows import AGGREGATIONS, METRICS, RELEASE, Measured, Scored, expression_rows, measures
from triglyph.bench.hest.targets import HestTargets
from triglyph.bench.parts import whole_of
from triglyph.bench.protocol import PER_SECTION, Protocol, ProtocolCard
from triglyph.bench.rows import Rows, mean_or_nan
from triglyph.errors import ContractError
from triglyph.metrics.correlation import pearson
from triglyph.metrics.result import Result
from triglyph.models.fused import not_of_itself

Floats = NDArray[np.float64]
Read = Callable[[Floats], Floats]
"""From features (n, d) to predictions (n, genes)."""
Pca = Literal["scikit-learn", "exact", "none"]

TRANSDUCTIVE_GENES = "genes chosen on all sections of the trial, test included"
CHOSEN_ON = {
    "all": "all sections of the trial, test included",
    "training": "training locations",
    "elsewhere": "given, and chosen on other data",
}
ALPHAS = tuple(float(a) for a in np.logspace(-2, 7, 19))
INNER_FOLDS = 5

log = logging.getLogger(__name__)


class OnePatient(ContractError):
    """What must be chosen between training patients has only one of them."""


class HestBenchmark(Protocol):
    """Pearson of ridge-predicted log1p counts, as HEST-Benchmark takes it."""

    name: ClassVar[str] = "hest-benchmark"
    version: ClassVar[str] = "2"
    """1: `r2-training-mean` was about the mean of the training locations that a subject has; now of all."""
    task: ClassVar[str] = "expression"
    differs: ClassVar[str] = ""
    """What a variant changes, in words."""

    modality: Annotated[Literal["image", "text"], BeforeValidator(not_of_itself)] = "image"
    features: Literal["embedding", "pooled"] = "embedding"
    genes: tuple[str, ...] = ()
    """Symbols, or the path of a JSON file `{"genes": [...]}`; none lets the protocol choose."""
    genes_chosen_on: Literal["all", "training", "elsewhere"] = "all"
    """Where the protocol chooses; of given `genes`, where they *were* chosen: the published lists on all samples."""
    n_genes: int = 50
    min_detected: float = 0.1
    pca: Pca = "scikit-learn"
    n_components: int = 256
    pca_seed: int = 1
    alpha: Literal["hest", "inner-cv"] | float = "hest"
    alphas: tuple[float, ...] = ALPHAS
    """What `inner-cv` chooses from."""
    fit_intercept: bool = False
    max_iter: int = 1000
    tol: float = 1e-4
    compat: Literal["", "release"] = ""
    """`release`: one constant gene leaves the mean Pearson undefined, as in the reference."""

    @field_validator("genes", mode="before")
    @classmethod
    def _from_file(cls, genes: Any) -> Any:
        # Names, not a path, are what the card freezes.
        return read_genes(Path(genes)) if isinstance(genes, str | Path) else genes

    @model_validator(mode="after")
    def _fits_together(self) -> HestBenchmark:
        if self.genes_chosen_on == "elsewhere" and not self.genes:
            raise ValueError("genes that were chosen elsewhere must be given as `genes`")
        if len(set(self.genes)) < len(self.genes):
            raise ValueError("a gene is given twice")
        if min((*self.alphas, self.alpha if isinstance(self.alpha, float) else 1.0), default=0.0) <= 0:
            raise ValueError("a ridge needs an alpha above 0")
        return self

    def card(self) -> ProtocolCard:
        given = f"{len(self.genes)} given; " if self.genes else f"{self.n_genes} most variable of log1p counts, "
        alpha = {
            "hest": "alpha = 100 / (components x genes)",
            "inner-cv": f"alpha of `alphas` with the best mean Pearson over up to {INNER_FOLDS} folds of training "
            "patients, standardisation and exact PCA fitted anew in each",
        }.get(str(self.alpha), f"alpha = {self.alpha}")
        solved = "solved exactly" if self.pca == "exact" else "by lsqr"
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary="HEST-Benchmark: ridge regression from frozen features to log1p of raw counts, no depth removed"
            + (f"; {self.differs}" if self.differs else ""),
            citation="Jaume et al., HEST-1k, NeurIPS 2024",
            homepage="https://github.com/mahmoodlab/HEST",
            fitted={
                "genes": f"{given}chosen on {CHOSEN_ON[self.genes_chosen_on]}"
                + ("" if self.genes else f"; seen in {self.min_detected:.0%} of the locations of each of them"),
                "mean and deviation of each feature": "training locations",
                "principal components": "none" if self.pca == "none" else f"training locations, {self.pca}",
                "ridge": f"training locations, {solved}; {alpha}",
                "intercept": "training locations" + ("" if self.fit_intercept else ", added for errors and R² only"),
            },
            transductive=(TRANSDUCTIVE_GENES,) if self.genes_chosen_on == "all" else (),
            metrics={**METRICS, **(RELEASE if self.compat else {})},
            aggregations={**AGGREGATIONS, **PER_SECTION},
            constants=self.constants(),
        )

    @property
    def direction(self) -> str:
        """From what to what."""
        return f"{self.modality}->expression"

    def targets(self, trial: Trial) -> HestTargets:
        """What is predicted on a trial, the same for every subject."""
        genes = self.chosen_genes(trial)
        key = ("hest targets", genes)
        if key not in trial.memo:
            trial.memo[key] = HestTargets(trial, genes)
        found: HestTargets = trial.memo[key]
        return found

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows, targets = Rows.start(self, subject, trial), self.targets(trial)
        people = [s.patient for s in trial.train]

        def fit(train: Sequence[tuple[Floats, Floats]]) -> Read:
            sizes = [len(x) for x, _ in train]
            if sum(sizes) < 2:
                raise ContractError(
                    "fewer than two training locations have features", where=f"{subject.name}, split {trial.split!r}"
                )
            x, y = (np.concatenate(side) for side in zip(*train, strict=True))
            return self._fit(x, y, np.repeat(people, sizes))

        try:
            predict = learned(subject, targets, modality=self.modality, features=self.features, fit=fit)
        except OnePatient as only:
            log.warning("%s, fold %s: %s; nothing is judged", self.name, trial.fold or "0", only)
            return self._stamped(self._undefined(rows))
        return self.judge(rows, predict, targets)

    def judge(self, rows: Rows, predict: Predict, targets: HestTargets) -> list[Result]:
        """The rows of what is predicted at the test locations."""
        scored = []
        for section in rows.trial.test:
            guess, present = predict(section)
            kept = np.flatnonzero(present)
            if not np.isfinite(guess[kept]).all():
                raise ContractError(f"{rows.subject.name} predicts values that are not finite", where=section.id)
            if len(kept):
                scored.append(Scored(section, kept, guess[kept], targets[section][0][kept]))
        measured = partial(measures, training_mean=targets.training_mean, release=self.compat == "release")
        return self.rows_of(rows, scored, targets.genes, measured)

    def rows_of(self, rows: Rows, scored: Sequence[Scored], genes: Sequence[str], measured: Measured) -> list[Result]:
        """All rows of one subject or ceiling."""
        return self._stamped(expression_rows(rows, scored, genes=genes, measured=measured, direction=self.direction))

    def _stamped(self, rows: list[Result]) -> list[Result]:
        return [row.model_copy(update={"compat": self.compat}) for row in rows] if self.compat else rows

    def chosen_genes(self, trial: Trial) -> tuple[str, ...]:
        """Names of the genes that are predicted.

        Raises
        ------
        GeneError
            None is measured everywhere and seen often enough.
        """
        if self.genes:
            return self.genes
        key = ("hest genes", self.n_genes, self.min_detected, self.genes_chosen_on)
        if key not in trial.memo:
            wholes = list({(w := whole_of(s)).id: w for s in (*trial.train, *trial.test)}.values())
            sections: Sequence[SectionLike] = wholes if self.genes_chosen_on == "all" else trial.train
            trial.memo[key] = variable_genes(
                sections, n_genes=self.n_genes, min_detected=self.min_detected, among=common_genes(wholes)
            )
        found: tuple[str, ...] = trial.memo[key]
        return found

    def _fit(self, x: Floats, y: Floats, people: NDArray[np.str_]) -> Read:
        """From features to predictions with an intercept."""
        if self.alpha == "inner-cv":
            alpha = self.alpha_by_patients(x, y, people)
        elif self.alpha == "hest":
            components = x.shape[1] if self.pca == "none" else min(self.n_components, *x.shape)
            alpha = 100.0 / (components * y.shape[1])
        else:
            alpha = float(self.alpha)
        if self.pca == "exact":
            fitted = fit_pca_ridge(x, y, n_components=self.n_components)
            return lambda new: fitted.predict(new, alpha=alpha)
        return self._scikit_learn(x, y, alpha)

    def _scikit_learn(self, x: Floats, y: Floats, alpha: float) -> Read:
        from sklearn.decomposition import PCA
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import StandardScaler

        steps: list[tuple[str, Any]] = [("scale", StandardScaler())]
        if self.pca == "scikit-learn":
            steps.append(("pca", PCA(min(self.n_components, *x.shape), random_state=self.pca_seed)))
        prepare = Pipeline(steps)
        # Features that do not vary at all have components of no length: 0 / 0 in a share that nobody reads.
        with np.errstate(invalid="ignore"):
            scores = prepare.fit_transform(x)
        ridge = Ridge(
            alpha=alpha, solver="lsqr", fit_intercept=self.fit_intercept, max_iter=self.max_iter, tol=self.tol
        )
        # Hundreds of steps over all features of all locations take minutes for each of 50 genes.
        few = self.pca == "none" and not self.fit_intercept and len(scores) > 2 * (scores.shape[1] + y.shape[1])
        ridge.fit(*(_fewer_rows(scores, y) if few else (scores, y)))
        offset = 0.0 if self.fit_intercept else y.mean(axis=0)
        return lambda new: np.asarray(ridge.predict(prepare.transform(new))).reshape(len(new), -1) + offset

    def alpha_by_patients(self, x: Floats, y: Floats, people: NDArray[np.str_]) -> float:
        """The alpha of `alphas` with the best mean Pearson on held-out training patients.

        Folds take patients in the order of their names, in turn. Of equal alphas the largest.

        Raises
        ------
        OnePatient
            There is no patient to hold out.
        """
        names = np.unique(people)
        k = min(INNER_FOLDS, len(names))
        if k < 2:
            raise OnePatient(f"one training patient, {names[0]}, so that alpha cannot be chosen patient-wise")
        scores = np.zeros(len(self.alphas))
        components = None if self.pca == "none" else self.n_components
        for i in range(k):
            out = np.isin(people, names[i::k])
            if (~out).sum() < 2:
                raise ContractError(
                    "fewer than two locations to choose alpha on", where=f"without {', '.join(names[i::k])}"
                )
            fitted = fit_pca_ridge(x[~out], y[~out], n_components=components)
            held_out = fitted.scores(x[out])
            for j, alpha in enumerate(self.alphas):
                value = mean_or_nan(pearson(held_out @ fitted.coefficients(alpha), y[out]))
                scores[j] += 0.0 if np.isnan(value) else value
        return max(zip(scores.round(12), self.alphas, strict=True))[1]

    def _undefined(self, rows: Rows) -> list[Result]:
        return [
            rows.row(
                metric="pearson",
                direction=self.direction,
                aggregation="pooled",
                group="all",
                level=level,
                value=float("nan"),
                n=0,
                chance=0.0,
            )
            for level, _ in rows.by_level([s.id for s in rows.trial.test])
        ]


def _fewer_rows(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """d + 1 rows on which lsqr takes the same steps as on the n rows of `x` (n, d) and `y`, column by column.

    A rotation of the rows changes no step; one turns all rows but d of `x` into 0, and leaves of each target its part
    in the space of `x` and the length of the rest.
    """
    from scipy.linalg import qr

    d = x.shape[1]
    (r,) = qr(np.hstack([x, y]), mode="r", overwrite_a=True, check_finite=False)
    rest = np.linalg.norm(r[d : d + y.shape[1], d:], axis=0)
    return np.vstack([r[:d, :d], np.zeros(d)]), np.vstack([r[:d, d:], rest])


class HestAlphaCv(HestBenchmark):
    """Alpha chosen on training patients instead of a constant of nearly none."""

    name: ClassVar[str] = "hest-benchmark-alpha-cv"
    differs: ClassVar[str] = "alpha by inner patient-wise cross-validation"
    alpha: Literal["hest", "inner-cv"] | float = "inner-cv"


class HestIntercept(HestBenchmark):
    """With an intercept in the fit."""

    name: ClassVar[str] = "hest-benchmark-intercept"
    differs: ClassVar[str] = "with an intercept"
    fit_intercept: bool = True


class HestNoPca(HestBenchmark):
    """On all standardised features, the protocol of the paper's table A13."""

    name: ClassVar[str] = "hest-benchmark-no-pca"
    differs: ClassVar[str] = "without PCA"
    pca: Pca = "none"


class HestExactPca(HestBenchmark):
    """Exact components and the ridge's own minimum instead of scikit-learn's approximations."""

    name: ClassVar[str] = "hest-benchmark-exact-pca"
    differs: ClassVar[str] = "exact PCA, ridge solved exactly"
    pca: Pca = "exact"


class HestTrainingGenes(HestBenchmark):
    """Genes chosen without looking at the test sections."""

    name: ClassVar[str] = "hest-benchmark-training-genes"
    differs: ClassVar[str] = "genes chosen on training locations alone"
    genes_chosen_on: Literal["all", "training", "elsewhere"] = "training"


VARIANTS: tuple[type[HestBenchmark], ...] = (HestAlphaCv, HestIntercept, HestNoPca, HestExactPca, HestTrainingGenes)


def with_variants(protocol: Protocol) -> list[Protocol]:
    """`hest-benchmark` and its variants with the same constants, but for what each is about; another protocol alone."""
    if type(protocol) is not HestBenchmark:
        return [protocol]
    chosen = {name: getattr(protocol, name) for name in protocol.model_fields_set}
    out: list[Protocol] = [protocol]
    for variant in VARIANTS:
        own = set(variant.__annotations__)
        if variant is HestTrainingGenes:
            own |= {"genes"}
        out.append(variant(**{name: value for name, value in chosen.items() if name not in own}))
    return out
