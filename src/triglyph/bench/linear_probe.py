"""`linear-probe`: how much of the labels a linear classifier reads off frozen embeddings of unseen sections."""

from __future__ import annotations

import logging
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.classes import AUROC_AGGREGATIONS, AUROC_METRIC, Scored, known_labels, score_rows
from triglyph.bench.contracts import SectionLike, Subject, Trial
from triglyph.bench.protocol import Protocol, ProtocolCard
from triglyph.bench.rows import Measure, Rows
from triglyph.errors import ContractError
from triglyph.metrics.bootstrap import nan_mean
from triglyph.metrics.result import Result

Floats = NDArray[np.float64]
log = logging.getLogger(__name__)


class LinearProbe(Protocol):
    """Logistic regression on standardised embeddings."""

    name: ClassVar[str] = "linear-probe"
    task: ClassVar[str] = "linear-probe"

    modality: Literal["image", "expression", "text"] = "image"
    features: Literal["embedding", "pooled"] = "embedding"
    """`embedding`: the model's own space; `pooled`: what its frozen encoder gave it."""
    c: float = 0.1
    """Inverse strength of the L2 penalty; fixed, so that nothing chooses it."""
    max_iter: int = 2000

    def card(self) -> ProtocolCard:
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary="multinomial logistic regression from frozen embeddings to labels, classes weighted equally",
            fitted={
                "mean and deviation of each dimension": "training sections",
                "logistic regression": "training sections",
            },
            metrics={
                "auroc": f"of the decision function; {AUROC_METRIC}; classes without training locations are left out",
                "balanced-accuracy": "mean recall over the classes seen in training and present in the section",
            },
            aggregations=AUROC_AGGREGATIONS,
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        rows = Rows.start(self, subject, trial)
        if self.modality not in subject.modalities:
            raise ContractError(f"{subject.name} has no {self.modality}", mend="choose another `modality`")
        x, y = zip(*(self._labelled(subject, s)[1:] for s in trial.train), strict=True)
        train_x, train_y = np.concatenate(x), np.concatenate(y)
        if len(np.unique(train_y)) < 2:
            raise ContractError(
                f"the training sections hold {len(np.unique(train_y))} labelled classes, a probe needs 2",
                where=f"split {trial.split!r}",
                mend="add a column `label` to the tables, or train on more sections",
            )
        probe = make_pipeline(
            StandardScaler(), LogisticRegression(C=self.c, class_weight="balanced", max_iter=self.max_iter)
        ).fit(train_x, train_y)
        learnt = [str(c) for c in probe.classes_]
        scored: list[Scored] = []
        accuracy: dict[str, Measure] = {}
        for section in trial.test:
            known, features, truth = self._labelled(subject, section)
            if not len(known):
                continue
            scores = probe.decision_function(features)
            scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
            scored.append(Scored(section, known, scores, truth[:, None] == np.array(learnt)[None, :]))
            accuracy[section.id] = self._accuracy(rows, section, known, probe.predict(features), truth, learnt)
        if not scored:
            raise ContractError(
                "no test section has labels", where=f"split {trial.split!r}", mend="add a column `label` to the tables"
            )
        unseen = sorted({str(c) for s in trial.test for c in known_labels(s)} - {"", *learnt})
        if unseen:
            log.warning("classes of the test sections that no training section has: %s", ", ".join(unseen))
        direction = f"{self.modality}->label"
        out = score_rows(rows, scored, classes=learnt, direction=direction)
        return out + rows.per_section(accuracy, metric="balanced-accuracy", direction=direction)

    def _labelled(self, subject: Subject, section: SectionLike) -> tuple[NDArray[np.intp], Floats, NDArray[np.str_]]:
        read = subject.embed if self.features == "embedding" else subject.pooled
        values, present = read(section, self.modality)
        labels = known_labels(section)
        known = np.flatnonzero(present & (labels != ""))
        return known, np.asarray(values[known], dtype=np.float64), labels[known]

    @staticmethod
    def _accuracy(
        rows: Rows,
        section: SectionLike,
        known: NDArray[np.intp],
        predicted: NDArray[np.str_],
        truth: NDArray[np.str_],
        learnt: list[str],
    ) -> Measure:
        classes = [c for c in learnt if (truth == c).any()]
        right = np.repeat((predicted == truth)[:, None], len(classes), axis=1).astype(np.float64)
        member = truth[:, None] == np.array(classes, dtype=np.str_)[None, :]
        recall = np.where(member, right, 0.0).sum(axis=0) / member.sum(axis=0)
        drawn = rows.blocks(section, known)
        return Measure(
            value=float(recall.mean()) if classes else float("nan"),
            n=int(member.any(axis=1).sum()),
            draws=nan_mean(drawn.mean(right, mask=member), axis=1) if classes else None,
            n_blocks=drawn.n_units,
            chance=1.0 / len(learnt),
        )
