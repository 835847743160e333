"""`learning-curve`: what a linear probe reads off frozen embeddings, by the number of patients it was trained on.

The classes are those of all training patients, whichever were drawn: a class that a draw lacks counts as missed, so
that points of the curve are of one task.
"""

from __future__ import annotations

import itertools
import logging
from math import comb
from typing import ClassVar

import numpy as np
from pydantic import Field

from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.labels.labelled import BALANCED_ACCURACY, MACRO_F1, Sides, per_section_rows
from triglyph.bench.labels.linear_probe import ProbeProtocol
from triglyph.bench.labels.probes import Probe
from triglyph.bench.protocol import PER_SECTION, FoldError, ProtocolCard
from triglyph.bench.rows import Measure, Rows, mean_or_nan
from triglyph.metrics.bootstrap import nan_mean
from triglyph.metrics.result import Result

log = logging.getLogger(__name__)


class LearningCurve(ProbeProtocol):
    """Linear probes on 1, 2, 4, … and all training patients."""

    name: ClassVar[str] = "learning-curve"
    task: ClassVar[str] = "learning-curve"

    draws: int = Field(default=10, ge=1)
    """Sets of patients of each size; all of them where there are no more."""

    def card(self) -> ProtocolCard:
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary="linear probe on frozen embeddings, trained on 1, 2, 4, … and all training patients",
            fitted={
                what: f"sections of the training patients drawn; {on}" if what.startswith("logistic") else on
                for what, on in self.fitted().items()
            },
            metrics={
                "balanced-accuracy@N-patients": f"mean over draws of N training patients of the {BALANCED_ACCURACY}; "
                "all training patients say which classes there are",
                "macro-f1@N-patients": f"the same of the {MACRO_F1}",
                "undefined draws": "draws whose patients have labels of one class only are left out, and logged",
            },
            aggregations=PER_SECTION,
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        sides = self.sides(subject, trial)
        blocks = {side.section.id: rows.blocks(side.section, side.rows) for side in sides.test}
        measures = []
        for n in self.sizes(len(np.unique(sides.patients))):
            probes = self._probes(sides, n)
            for side in sides.test:
                drawn = blocks[side.section.id]
                of = [self.scores(rows, side, p.predict(side.features), sides.classes, drawn=drawn) for p in probes]
                for metric in ("balanced-accuracy", "macro-f1"):
                    mean = _mean([one[metric] for one in of])
                    measures.append((side.section.id, f"{metric}@{n}-patients", mean))
        if not measures:
            raise FoldError(
                f"no set of training patients can train variant {self.variant}",
                where=f"split {trial.split!r}, fold {trial.fold or '0'}",
                mend="train on more patients",
            )
        return per_section_rows(rows, measures, direction=self.direction)

    def sizes(self, n_patients: int) -> list[int]:
        """Powers of two below the number of training patients, and that number; from two for variant B."""
        powers = [2**i for i in range(n_patients.bit_length()) if 2**i < n_patients]
        return [n for n in (*powers, n_patients) if n > 1 or self.variant != "B"]

    def subsets(self, patients: list[str], n: int) -> list[tuple[str, ...]]:
        """Sets of `n` patients: all of them, or `draws` different ones, seeded."""
        people = sorted(patients)
        if comb(len(people), n) <= self.draws:
            return list(itertools.combinations(people, n))
        rng = np.random.default_rng([self.seed, n])
        found: dict[tuple[str, ...], None] = {}
        while len(found) < self.draws:
            found[tuple(sorted(str(p) for p in rng.choice(people, size=n, replace=False)))] = None
        return list(found)

    def _probes(self, sides: Sides, n: int) -> list[Probe]:
        out = []
        subsets = self.subsets(np.unique(sides.patients).tolist(), n)
        for chosen in subsets:
            kept = np.isin(sides.patients, chosen)
            if len(np.unique(sides.y[kept])) > 1:
                out.append(self.probe(sides, sides.y, kept))
        if len(out) < len(subsets):
            log.warning("%d of %d draws of %d patients have one class only", len(subsets) - len(out), len(subsets), n)
        return out


def _mean(of: list[Measure]) -> Measure:
    """The mean over draws of one section's measures; undefined where no draw could be trained."""
    if not of:
        return Measure(value=float("nan"), n=0)
    draws = [m.draws for m in of if m.draws is not None]
    return Measure(
        value=mean_or_nan([m.value for m in of]),
        n=of[0].n,
        draws=nan_mean(np.stack(draws), axis=0) if draws else None,
        n_blocks=of[0].n_blocks,
        n_effective=of[0].n_effective,
        chance=of[0].chance,
    )
