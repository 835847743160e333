"""Words rank the patches of images in which cells of every class are counted: SpatialWhisperer's evaluation.

A patch is positive for a class if it holds one cell of it, so it may be so for several. The score is the cosine with
the bare words for the class: no template, no ensemble, no softmax; that of a group of classes is the sum of theirs.
AUROC is taken within each image, averaged over the images where it is defined, then over classes. The published code
multiplies by the temperature, which changes no rank.

Nothing is fitted, so there is no split: every section is tested, less the rows of other sets where the data say them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.contracts import SectionLike, Subject, Trial
from triglyph.bench.labels.classes import AUROC_AGGREGATIONS, AUROC_METRIC, Scored, score_rows
from triglyph.bench.protocol import FoldError, Protocol, ProtocolCard
from triglyph.bench.rows import Rows
from triglyph.bench.spatialwhisperer.published import CITATION, published_rows
from triglyph.errors import ContractError
from triglyph.metrics.result import Result
from triglyph.metrics.retrieval import unit_rows
from triglyph.tissue.cells import labelled_cells

UNKNOWN = "whose tissue it was trained on is not known"
DIRECTION = "text->image"


class SpatialWhispererBenchmark(Protocol):
    """What the benchmarks share; `sets` says what each asks."""

    task: ClassVar[str] = "patch-words"
    needs_split: ClassVar[bool] = False
    about: ClassVar[str]
    """The data set, in words."""
    transductive: ClassVar[tuple[str, ...]] = ()
    aggregations: ClassVar[tuple[str, ...]] = tuple(AUROC_AGGREGATIONS)
    """Those that it has rows of."""

    queries: dict[str, str]
    """Class of the data -> the words it is asked with."""
    judged: dict[str, tuple[str, ...]]
    """Class or group that is judged -> its classes of the data."""
    dropped: tuple[str, ...] = ()
    """Patches whose commonest class is one of these are left out."""
    subset: str = "test"
    """Rows of other sets are left out, where the data say which set a row is of."""

    def card(self) -> ProtocolCard:
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary=f"{self.about}: patches ranked by their cosine with bare words",
            citation=CITATION,
            fitted={},
            transductive=self.transductive,
            metrics={"auroc": f"{AUROC_METRIC}; a patch is positive that holds one cell of the class"},
            aggregations={name: AUROC_AGGREGATIONS[name] for name in self.aggregations},
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        if not {"image", "text"} <= set(subject.modalities):
            raise ContractError(
                f"{self.name} needs an image and text, {subject.name} has {', '.join(subject.modalities) or 'none'}",
                mend="judge a model with both towers",
            )
        if subject.evidence == "architecture-only":
            raise ContractError(
                f"{subject.name} has a tower with random weights: what it scores is no result",
                where=self.name,
                mend="train the tower, or give it weights",
            )
        rows = _starting(self, subject, trial)
        words = unit_rows(subject.source.embed_text(list(self.queries.values())), what="words")
        scored = [s for section in trial.test if (s := self._scored(subject, section, words)) is not None]
        if not scored:
            raise FoldError(
                f"no section holds a patch to judge, of the set {self.subset!r}", mend="read the data set's test images"
            )
        found = score_rows(rows, scored, classes=tuple(self.judged), direction=DIRECTION)
        return [row for row in found if row.aggregation in self.aggregations]

    def published(self, split: str) -> list[Result]:
        """Only where the constants are those they were measured with."""
        if self != self.configured({}):
            return []
        return published_rows(self.name, self.task, self.stamp, split, self.transductive)

    def counts(self, section: SectionLike) -> tuple[NDArray[Any], tuple[str, ...]]:
        """Cells (n, classes) of a section, without the background, and the names of the classes."""
        counts, names = labelled_cells(section)
        return counts[:, 1:], names[1:]

    def _scored(self, subject: Subject, section: Any, words: NDArray[Any]) -> Scored | None:
        counts, names = self.counts(section)
        if lacking := sorted(set(self.queries) - set(names)):
            raise ContractError(
                f"{self.name} asks for {lacking[0]!r}, and the cells are {', '.join(names)}",
                where=f"section {section.id}",
                mend="read the data set that the protocol is for",
            )
        values, present = subject.embed(section, "image")
        kept = np.asarray(present) & ~np.isin(np.array(names)[counts.argmax(axis=1)], self.dropped)
        obs = section.table.obs
        if "set" in obs:
            of = obs["set"].astype(str).str.lower().to_numpy()
            kept &= (of == self.subset) | (of == "")
        rows = np.flatnonzero(kept)
        if not len(rows):
            return None
        cosines = dict(zip(self.queries, (unit_rows(values[rows]) @ words.T).T, strict=True))
        return Scored(
            section,
            rows,
            np.stack([sum(cosines[c] for c in of) for of in self.judged.values()], axis=1),
            np.stack([counts[rows][:, _at(names, of)].any(axis=1) for of in self.judged.values()], axis=1),
        )


def _at(names: Sequence[str], of: Sequence[str]) -> list[int]:
    return [names.index(c) for c in of]


def _starting(protocol: SpatialWhispererBenchmark, subject: Subject, trial: Trial) -> Rows:
    """`Rows.start`; without knowing whose tissue a model has seen, nobody can say that these people are new to it.

    Names of people in another cohort say nothing: only training patients whom this cohort knows can be told apart.
    """
    how = {_compat(section) for section in trial.test}
    if len(how) > 1:
        raise ContractError(
            "some sections were read with --compat release and some without",
            where=protocol.name,
            mend="read all of them alike, into one cohort each",
        )
    subject = replace(subject, compat=how.pop() if how else "")
    rows = Rows.start(protocol, subject, trial)
    seen = set(subject.source.training_sections)
    people = set(subject.training_patients)
    here = people <= set(trial.patients.values()) and seen <= set(trial.patients)
    if here and (people or seen):
        return rows
    subject = replace(subject, transductive=(*subject.transductive, UNKNOWN))
    return replace(rows, subject=subject, levels=dict.fromkeys(rows.levels, "within-patient"))


def _compat(section: Any) -> str:
    """How a section was read; pictures without a scale are resized as published code does."""
    info = section.info
    unscaled = info.pictures is not None and info.pictures.mpp is None
    return "release" if unscaled else str(info.source.get("compat", ""))
