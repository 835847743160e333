"""`stamp-expression`: expression of unseen patients by a linear probe on frozen image features, MSE and "PCC-V".

The paper reports three data sets. HER2+ is her2st (Andersson et al. 2021), read with `--platform st`. What PSC and HHK
abbreviate, and where they come from, is said nowhere in what we have read of the paper; any cohort can be judged.

Nobody has published what "PCC-V" is, over how many genes, or on which scale. As it is defined here: the mean over genes
of the Pearson correlation within a section, over the `n_genes` genes whose variance in training is the highest. The MSE
is over the same genes. All of it is `expression` at its defaults, by two metrics.
"""

from __future__ import annotations

from typing import ClassVar

from triglyph.bench.expression.measures import METRICS
from triglyph.bench.expression.predictors import Predict
from triglyph.bench.expression.protocol import Expression
from triglyph.bench.expression.targets import Targets
from triglyph.bench.protocol import ProtocolCard
from triglyph.bench.rows import Rows
from triglyph.bench.stamp.published import CITATION, expression_rows
from triglyph.metrics.per_gene import PER_GENE
from triglyph.metrics.result import Result

PCC_V = "pcc-v"
KEPT = ("mse", "genes-undefined", "genes-constant")


class StampExpression(Expression):
    """MSE and correlation over the most variable genes."""

    name: ClassVar[str] = "stamp-expression"
    version: ClassVar[str] = "1"

    def card(self) -> ProtocolCard:
        metrics = {name: METRICS[name] for name in KEPT}
        defined = (
            f"our definition, theirs is not published: `pearson` over the {self.n_genes} genes whose variance in "
            f"training is the highest, of those seen in over {self.min_detected:.0%} of its locations"
        )
        citation = f"{CITATION}; split, genes, scale and PCC-V are not published, and are chosen here"
        return super().card().model_copy(update={"citation": citation, "metrics": {PCC_V: defined, **metrics}})

    def named(self, rows: list[Result]) -> list[Result]:
        """The mean correlation is called `pcc-v`; that of a single gene stays `pearson`; others fall away."""
        renamed = [
            row.model_copy(update={"metric": PCC_V}) if row.metric == "pearson" and row.aggregation != PER_GENE else row
            for row in rows
        ]
        return [row for row in renamed if row.metric in (PCC_V, *KEPT) or _of_gene(row)]

    def judge(self, rows: Rows, predict: Predict, targets: Targets) -> list[Result]:
        return self.named(super().judge(rows, predict, targets))

    def published(self, split: str) -> list[Result]:
        """Only where the constants are the declared ones."""
        return expression_rows(self.task, self.stamp, split) if self.stamp == type(self)().stamp else []


def _of_gene(row: Result) -> bool:
    return row.metric == "pearson" and row.aggregation == PER_GENE
