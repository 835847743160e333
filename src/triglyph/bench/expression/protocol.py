"""`expression` and `genes-from-genes`: how much of a section's expression can be predicted.

`expression` reads it off an embedding (by ridge) or takes what a model predicts. `genes-from-genes` gives a core panel
and asks for other genes. Both choose their genes on training locations, measure within sections and over patients, and
stand beside what costs nothing and beside the ceiling that counting noise sets.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.expression.measures import (
    METRICS,
    PATIENT_POOLED,
    Ceilings,
    patient_measures,
    score_section,
)
from triglyph.bench.expression.predictors import Learner, Predict, Predictor, predict_with
from triglyph.bench.expression.targets import SCALES, Scale, Targets
from triglyph.bench.protocol import PER_SECTION, Protocol, ProtocolCard
from triglyph.bench.ridge import ALPHAS, PER_SECTION_NOTE, Standardise, fit_ridge
from triglyph.bench.rows import Measure, Rows
from triglyph.errors import ContractError, SourceError
from triglyph.metrics.bootstrap import nan_mean
from triglyph.metrics.per_gene import PER_GENE
from triglyph.metrics.result import Level, Result
from triglyph.models.fused import not_of_itself

Floats = NDArray[np.float64]


class Expression(Protocol):
    """Correlations and errors of predicted expression on unseen sections."""

    name: ClassVar[str] = "expression"
    version: ClassVar[str] = "2"
    task: ClassVar[str] = "expression"

    modality: Annotated[Literal["image", "text"], BeforeValidator(not_of_itself)] = "image"
    features: Literal["embedding", "pooled"] = "embedding"
    standardise: Standardise = "training"
    alphas: tuple[float, ...] = ALPHAS
    scale: Scale = "log1p-cp10k"
    n_genes: int = 50
    min_detected: float = 0.1

    def card(self) -> ProtocolCard:
        per_section = self.standardise == "per-section"
        scaled = {
            "training": "training sections",
            "per-section": "each section, test sections too",
            "none": "nowhere: features as they are",
        }[self.standardise]
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary=f"ridge regression from frozen features, or a model's own prediction, of {SCALES[self.scale]}",
            fitted={
                "mean and deviation of each feature": scaled,
                "genes": f"training sections: the {self.n_genes} most variable of those seen in over "
                f"{self.min_detected:.0%} of locations and measured in every section of the trial",
                "ridge": "training sections; one alpha for all genes by generalised leave-one-out over their locations",
            },
            transductive=(PER_SECTION_NOTE,) if per_section else (),
            metrics=METRICS,
            aggregations={
                **PER_SECTION,
                "patient-pooled": PATIENT_POOLED,
                PER_GENE: "group = a gene: the mean over sections of its value",
            },
            constants=self.constants(),
        )

    @property
    def direction(self) -> str:
        """From what to what."""
        return f"{self.modality}->expression"

    def targets(self, trial: Trial) -> Targets:
        """What is predicted on a trial, the same for every subject."""
        key = ("targets", self.n_genes, self.min_detected, self.scale, self.core_panel)
        if key not in trial.memo:
            trial.memo[key] = Targets(
                trial, n_genes=self.n_genes, min_detected=self.min_detected, scale=self.scale, core=self.core_panel
            )
        found: Targets = trial.memo[key]
        return found

    def ceilings(self, targets: Targets) -> Ceilings:
        """What the counts of the test sections allow, each section's computed once."""
        key = ("ceilings", id(targets))
        found: Ceilings = targets.trial.memo.setdefault(key, Ceilings(targets))
        return found

    @property
    def core_panel(self) -> tuple[str, ...]:
        """Symbols that are inputs and never targets."""
        return ()

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        targets = self.targets(trial)
        predict = predict_with(
            subject,
            targets,
            modality=self.modality,
            features=self.features,
            fit=partial(
                fit_ridge,
                standardise=self.standardise,
                alphas=self.alphas,
                where=f"{subject.name}, split {trial.split!r}",
            ),
        )
        return self.judge(rows, predict, targets)

    def judge(self, rows: Rows, predict: Predict, targets: Targets) -> list[Result]:
        """The rows of what is predicted at every test location that has counts."""
        ceilings = self.ceilings(targets)
        by_section: dict[str, dict[str, Measure]] = {}
        by_gene: dict[str, dict[str, Floats]] = {}
        found: dict[str, tuple[NDArray[np.intp], Floats]] = {}
        for section in rows.trial.test:
            values, present = predict(section)
            kept = np.flatnonzero(present & targets[section][1])
            if not len(kept):
                continue
            guess = values[kept]
            if not np.isfinite(guess).all():
                raise ContractError(f"{rows.subject.name} predicts values that are not finite", where=section.id)
            found[section.id] = kept, guess
            scored = score_section(rows, section, kept, guess, targets, ceilings)
            for metric, measure in scored.measures.items():
                by_section.setdefault(metric, {})[section.id] = measure
            for metric, values in scored.genes.items():
                by_gene.setdefault(metric, {})[section.id] = values
        out = [
            row
            for metric, of in by_section.items()
            for row in rows.per_section(of, metric=metric, direction=self.direction)
        ]
        out += [row for metric, of in by_gene.items() for row in self._per_gene(rows, metric, of, targets, by_section)]
        by_patient: dict[str, dict[tuple[Level, str], Measure]] = {}
        for level, patient, sections in rows.by_patient([s for s in rows.trial.test if s.id in found]):
            for metric, measure in patient_measures(rows, sections, found, targets).items():
                by_patient.setdefault(metric, {})[level, patient] = measure
        return out + [
            row
            for metric, pooled in by_patient.items()
            for row in rows.patient_pooled(pooled, metric=metric, direction=self.direction)
        ]

    def _per_gene(
        self,
        rows: Rows,
        metric: str,
        values: dict[str, Floats],
        targets: Targets,
        by_section: dict[str, dict[str, Measure]],
    ) -> list[Result]:
        """Each gene's mean over the sections of a level."""
        return [
            rows.row(
                metric=metric,
                direction=self.direction,
                aggregation=PER_GENE,
                group=gene,
                level=level,
                value=value,
                n=sum(by_section[metric][s].n for s in ids),
                chance=0.0,
            )
            for level, ids in rows.by_level(list(values))
            for gene, value in zip(targets.genes, nan_mean([values[s] for s in ids], axis=0), strict=True)
        ]


class GenesFromGenes(Expression):
    """Other genes from a core panel, in patients that nothing was fitted on."""

    name: ClassVar[str] = "genes-from-genes"
    task: ClassVar[str] = "expression"

    core: tuple[str, ...] = ()
    """Symbols of the core panel; those that every section measures are inputs, and never targets."""
    scale: Scale = "log1p-counts"
    n_genes: int = 100
    min_detected: float = 0.2

    def card(self) -> ProtocolCard:
        card = super().card()
        fitted: dict[str, Any] = {k: v for k, v in card.fitted.items() if k == "genes"}
        return card.model_copy(
            update={
                "summary": f"genes of no core panel from those of one: {SCALES[self.scale]}",
                "fitted": {**fitted, "the predictor": "training sections"},
            }
        )

    @property
    def direction(self) -> str:
        return "core->expression"

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        if not isinstance(subject.source, Learner | Predictor):
            raise ContractError(
                f"{subject.name} is an embedding, which may have seen the genes that are asked for",
                where=self.name,
                mend="judge what predicts genes from the core panel alone",
            )
        return super().run(subject, trial)

    @property
    def core_panel(self) -> tuple[str, ...]:
        if not self.core:
            raise ContractError("there is no core panel", where=self.name, mend="give --panel FILE, or set `core`")
        return self.core


def read_panel(path: Path) -> tuple[str, ...]:
    """Symbols of a panel file: one or more a line, `#` begins a comment; order kept, each once.

    Raises
    ------
    SourceError
        There is no such file, or no symbol in it.
    """
    if not path.is_file():
        raise SourceError("there is no such panel", where=path, mend="check the path")
    lines = path.read_text(encoding="utf-8").splitlines()
    symbols = tuple(dict.fromkeys(word for line in lines for word in line.split("#")[0].split()))
    if not symbols:
        raise SourceError("the panel holds no gene", where=path, mend="write one symbol a line")
    return symbols
