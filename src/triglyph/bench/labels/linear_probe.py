"""`linear-probe`: how much of the labels a linear classifier reads off frozen embeddings of unseen sections."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.labels.classes import AUROC_AGGREGATIONS, AUROC_METRIC, Scored, score_rows
from triglyph.bench.labels.labelled import (
    BALANCED_ACCURACY,
    GROUP_AUROC,
    MACRO_F1,
    Groups,
    LabelProtocol,
    Sides,
    check_groups,
    group_rows,
    per_section_rows,
)
from triglyph.bench.labels.probes import FORMS, Probe, Variant, fit_probe
from triglyph.bench.protocol import ProtocolCard
from triglyph.bench.rows import Rows
from triglyph.metrics.result import Result

log = logging.getLogger(__name__)


class ProbeProtocol(LabelProtocol):
    """A protocol that fits linear probes, in one of the field's forms (see `triglyph.bench.labels.probes`)."""

    version: ClassVar[str] = "2"
    """Of 2, ceilings are given their shares in hundredths."""
    variant: Variant = "default"
    c: float | None = Field(default=None, gt=0)
    """Inverse strength of the L2 penalty; None: the variant's own."""
    max_iter: int | None = Field(default=None, gt=0)
    """None: the variant's own."""

    @model_validator(mode="after")
    def _c_is_free(self) -> ProbeProtocol:
        if self.c is not None and FORMS[self.variant].c is None:
            raise ValueError(f"variant {self.variant} sets `c` by itself")
        return self

    def constants(self) -> dict[str, Any]:
        """The fields, `c` and `max_iter` as the variant has them."""
        form = FORMS[self.variant]
        steps = self.max_iter or form.max_iter
        return {**super().constants(), "c": form.c if self.c is None else self.c, "max_iter": steps}

    def fitted(self) -> dict[str, str]:
        """What a probe fits on what, for the card."""
        form = FORMS[self.variant]
        scaled = {"mean and deviation of each feature": "training sections"} if form.standardise else {}
        return {**scaled, f"logistic regression ({form.summary})": form.fitted}

    def probe(self, sides: Sides, y: NDArray[np.str_], kept: NDArray[np.bool_] | None = None) -> Probe:
        """A probe from the training features to labels (n,), fitted on the rows `kept`."""
        rows = np.ones(len(y), dtype=bool) if kept is None else kept
        return fit_probe(
            sides.x[rows],
            y[rows],
            variant=self.variant,
            patients=sides.patients[rows],
            c=self.c,
            max_iter=self.max_iter,
            seed=self.seed,
        )


class LinearProbe(ProbeProtocol):
    """Logistic regression on frozen embeddings."""

    name: ClassVar[str] = "linear-probe"
    task: ClassVar[str] = "linear-probe"

    groups: Groups = Field(default_factory=dict)
    """Super-classes, each scored against the rest by a binary probe of its own."""

    def card(self) -> ProtocolCard:
        grouped = {"a binary probe for each super-class": "training sections"} if self.groups else {}
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary="logistic regression from frozen embeddings to labels",
            fitted={**self.fitted(), **grouped},
            metrics={
                "auroc": f"of the decision function; {AUROC_METRIC}; classes without training locations are left out",
                "auroc@GROUP": GROUP_AUROC,
                "balanced-accuracy": BALANCED_ACCURACY,
                "macro-f1": MACRO_F1,
            },
            aggregations=AUROC_AGGREGATIONS,
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        sides = self.sides(subject, trial)
        check_groups(self.groups, np.unique(np.concatenate([s.labels for s in (*sides.train, *sides.test)])).tolist())
        probe = self.probe(sides, sides.y)
        scored: list[Scored] = []
        measures = []
        for side in sides.test:
            truth = side.labels[:, None] == np.array(probe.classes)[None, :]
            scored.append(Scored(side.section, side.rows, probe.decision(side.features), truth))
            of = self.scores(rows, side, probe.predict(side.features), probe.classes)
            measures += [(side.section.id, metric, measure) for metric, measure in of.items()]
        out = score_rows(rows, scored, classes=probe.classes, direction=self.direction)
        out += per_section_rows(rows, measures, direction=self.direction)
        for name, members in self.groups.items():
            out += self._group(rows, sides, name, members)
        return out

    def _group(self, rows: Rows, sides: Sides, name: str, members: tuple[str, ...]) -> list[Result]:
        inside = np.isin(sides.y, members)
        if inside.all() or not inside.any():
            log.warning("group %r has %s of the training locations: no probe", name, "all" if inside.all() else "none")
            return []
        probe = self.probe(sides, np.where(inside, "inside", "outside"))
        column = probe.classes.index("inside")
        scored = [
            Scored(
                side.section,
                side.rows,
                probe.decision(side.features)[:, [column]],
                np.isin(side.labels, members)[:, None],
            )
            for side in sides.test
        ]
        return group_rows(rows, scored, name=name, direction=self.direction)
