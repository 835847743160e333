"""`label-retrieval`: do the training locations most like a held-out one have its label?

Each labelled location of a test section searches the labelled training locations of *other* patients, by cosine of
features centred with their mean. Queries whose class no candidate has are left out, and counted.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.labels.labelled import Labelled, LabelProtocol, per_section_rows
from triglyph.bench.protocol import PER_SECTION, FoldError, ProtocolCard
from triglyph.bench.rows import Measure, Rows, mean_or_nan
from triglyph.metrics.neighbours_retrieval import KS, LabelRetrieval, label_retrieval
from triglyph.metrics.result import Result


class LabelSearch(LabelProtocol):
    """Acc@k, MVAcc@k and mAP among the training locations of other patients."""

    name: ClassVar[str] = "label-retrieval"
    task: ClassVar[str] = "label-retrieval"

    ks: tuple[int, ...] = Field(default=KS, min_length=1)
    centre: bool = True
    """Take the mean of the gallery off all features first."""

    def card(self) -> ProtocolCard:
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary="labelled training locations of other patients, searched by their likeness to held-out ones",
            fitted={
                "gallery": "labelled training locations, those of the query's own patient left out",
                **({"mean of each feature": "training sections"} if self.centre else {}),
            },
            metrics={
                "acc@k": "share of queries of which any of the first k candidates has the label",
                "mvacc@k": "share of queries of which most of the first k candidates have the label; equal votes by "
                "the expectation of a fair draw",
                "map": "mean over queries of the average precision over all candidates",
                "queries-without-answer": "queries whose label no candidate has; left out of the others",
                "ties": "equal cosines are taken at their worst",
            },
            aggregations=PER_SECTION,
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        sides = self.sides(subject, trial)
        mean = sides.x.mean(axis=0) if self.centre else np.zeros(sides.x.shape[1])
        measures = []
        for side in sides.test:
            found = label_retrieval(
                side.features - mean,
                side.labels,
                np.full(len(side.rows), side.section.patient),
                gallery=sides.x - mean,
                gallery_labels=sides.y,
                gallery_patients=sides.patients,
                ks=self.ks,
            )
            measures += [(side.section.id, metric, m) for metric, m in self._measures(rows, side, found).items()]
        if not any(m.n for _, metric, m in measures if metric == "map"):
            raise FoldError(
                "no test location has its label among training locations of another patient",
                where=f"split {trial.split!r}, fold {trial.fold or '0'}",
                mend="train on sections of other patients that share labels with the test sections",
            )
        return per_section_rows(rows, measures, direction=self.direction)

    def _measures(self, rows: Rows, side: Labelled, found: LabelRetrieval) -> dict[str, Measure]:
        asked = found.n_right > 0
        drawn = rows.blocks(side.section, side.rows[asked])
        gallery = round(float(found.n_candidates.mean()))

        def measure(values: NDArray[np.float64], chance: NDArray[np.float64] | None = None) -> Measure:
            return Measure(
                value=mean_or_nan(values[asked]),
                n=int(asked.sum()),
                draws=drawn.mean(values[asked])[:, 0],
                n_blocks=drawn.n_units,
                chance=None if chance is None else mean_or_nan(chance[asked]),
                n_gallery=gallery,
            )

        out = {}
        for j, k in enumerate(found.ks):
            out[f"acc@{k}"] = measure(found.accuracy[:, j], found.chance_accuracy[:, j])
            out[f"mvacc@{k}"] = measure(found.majority[:, j])
        out["map"] = measure(found.average_precision)
        out["queries-without-answer"] = Measure(value=float(found.n_undefined), n=len(asked), n_gallery=gallery)
        return out
