"""`hescape-retrieval`: image and expression find each other, in full galleries and as HESCAPE counts it.

HESCAPE (Gindra et al., ICCV workshops 2025) takes recall among the 64 rows of a test batch. Test rows are not shuffled,
so a batch is neighbouring locations of one section in the order of its table: the number hangs on the size of the
batch and on that order, and chance for recall@5 is 5/64. It is here under a name of its own, beside what a reader
takes it for: the rank among all locations of the section, and among all of the patient's.

Embeddings are compared by cosine. The release compares them by their dot product, lengths and all
(`compat="release"`); of a subject whose embeddings have unit length the two are one.
"""

from __future__ import annotations

import logging
import typing
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from triglyph.bench.contracts import SectionLike, Subject, Trial
from triglyph.bench.protocol import PER_SECTION, Protocol, ProtocolCard
from triglyph.bench.rows import Measure, Rows
from triglyph.errors import ContractError
from triglyph.metrics.bootstrap import Resamples, spatial_blocks
from triglyph.metrics.result import Level, Result
from triglyph.metrics.retrieval import (
    Ties,
    chance_rank,
    chance_recall,
    diagonal_ranks,
    match_ranks,
    recall_at,
    unit_rows,
)

Floats = NDArray[np.float64]
DIRECTIONS = (("image", "expression"), ("expression", "image"))

log = logging.getLogger(__name__)


class HescapeRetrieval(Protocol):
    """Recall@k over the gallery of a section, of a patient, and of a batch of neighbouring rows."""

    name: ClassVar[str] = "hescape-retrieval"
    task: ClassVar[str] = "retrieval"
    has_null: ClassVar[bool] = True

    ks: tuple[int, ...] = (1, 5, 10)
    ties: Ties = "mean"
    batch_size: int = Field(default=64, ge=2)
    compat: Literal["", "release"] = ""
    """`release`: batches compare dot products of embeddings as they are, and the last, short one counts like any."""

    def card(self) -> ProtocolCard:
        rest = (
            "a last, shorter batch counts as much as any other"
            if self.compat
            else "the rows left over at the end of a section are left out, a section of fewer rows is one batch"
        )
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary="image <-> expression: rank of the true match in the full galleries of a section and of a patient, "
            f"and in batches of {self.batch_size} neighbouring rows",
            citation="Gindra et al., HESCAPE, ICCV workshops 2025",
            homepage="https://github.com/peng-lab/hescape",
            fitted={},
            metrics={
                "recall@k": "share of queries whose own location ranks at k or better in a full gallery, by cosine",
                "median-rank": "median over queries of that rank, from 1; lower is better",
                self.in_batch("recall@k"): f"recall@k among {self.batch_size} rows next to each other in the table of "
                f"a section, by {'dot product' if self.compat else 'cosine'}; mean over batches; {rest}; chance is "
                f"that of the batches as they are, k/{self.batch_size} of full ones",
                "ties": f"{self.ties} rank, among scores within 1e-6 of the largest",
            },
            aggregations={
                **PER_SECTION,
                "patient-pooled": "the gallery is all locations of all tested sections of a patient (HESCAPE's donor); "
                "group = a patient: its value; group = all: the mean of the patients' values",
            },
            constants=self.constants(),
        )

    def in_batch(self, metric: str) -> str:
        """Name of a metric that is taken within batches."""
        return f"{metric}:batches-of-{self.batch_size}"

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        if lacking := [m for m in DIRECTIONS[0] if m not in subject.modalities]:
            raise ContractError(
                f"{subject.name} has no {' and no '.join(lacking)}",
                where=self.name,
                mend="judge a model of image and expression, or a baseline that maps one to the other",
            )
        pairs = {s.id: found for s in trial.test if (found := _pairs(subject, s)) is not None}
        return self.judge(rows, list(pairs.values()), _Cosines(self, pairs))

    def judge(self, rows: Rows, tested: Sequence[Place], ranks: Ranks) -> list[Result]:
        """The rows of whoever ranks the locations of the tested sections."""
        out: list[Result] = []
        for source, target in DIRECTIONS:
            direction = f"{source}->{target}"
            by_section: dict[str, dict[str, Measure]] = {}
            for place in tested:
                measured = {
                    **self._full(rows, [place], ranks.gallery([place], direction)),
                    **self._batched(rows, place, ranks.batches(place, self._batches(place.n), direction)),
                }
                for metric, measure in measured.items():
                    by_section.setdefault(metric, {})[place.section.id] = measure
            for metric, measures in by_section.items():
                out += rows.per_section(measures, metric=metric, direction=direction)
            by_patient: dict[str, dict[tuple[Level, str], Measure]] = {}
            places = {place.section.id: place for place in tested}
            for level, patient, sections in rows.by_patient([place.section for place in tested]):
                together = [places[s.id] for s in sections]
                for metric, measure in self._full(rows, together, ranks.gallery(together, direction)).items():
                    by_patient.setdefault(metric, {})[level, patient] = measure
            for metric, pooled in by_patient.items():
                out += rows.patient_pooled(pooled, metric=metric, direction=direction)
        return [row.model_copy(update={"compat": self.compat}) for row in out] if self.compat else out

    def _full(self, rows: Rows, places: Sequence[Place], ranks: Floats) -> dict[str, Measure]:
        """All metrics in one gallery of all locations of these sections."""
        n = len(ranks)
        drawn = rows.blocks(places[0].section, places[0].rows) if len(places) == 1 else self._strata(rows, places)
        out = {
            f"recall@{k}": Measure(
                value=recall_at(ranks, k),
                n=n,
                draws=drawn.mean(ranks <= k)[:, 0],
                n_blocks=drawn.n_units,
                chance=chance_recall(n, k),
                n_gallery=n,
            )
            for k in self.ks
        }
        out["median-rank"] = Measure(
            value=float(np.median(ranks)),
            n=n,
            draws=drawn.median(ranks),
            n_blocks=drawn.n_units,
            chance=chance_rank(n),
            n_gallery=n,
        )
        return out

    def _strata(self, rows: Rows, places: Sequence[Place]) -> Resamples:
        """The block bootstrap of several sections, each drawn by its own blocks."""
        return Resamples(
            np.concatenate([spatial_blocks(p.section.centres_um, side_um=self.block_um)[p.rows] for p in places]),
            strata=np.concatenate([np.full(p.n, i) for i, p in enumerate(places)]),
            n_boot=rows.n_boot,
            seed=[self.seed, zlib.crc32(places[0].section.patient.encode())],  # patients are drawn independently
        )

    def _batched(self, rows: Rows, place: Place, batches: Sequence[Floats]) -> dict[str, Measure]:
        """Recall within batches of neighbouring rows, mean over batches, of the ranks in each."""
        sizes = [len(ranks) for ranks in batches]
        rank, weight = np.concatenate(batches), np.concatenate([np.full(size, 1.0 / size) for size in sizes])
        drawn = rows.blocks(place.section, place.rows[: len(rank)])
        share = drawn.mean(weight)[:, 0]
        return {
            self.in_batch(f"recall@{k}"): Measure(
                value=float((weight * (rank <= k)).sum() / len(batches)),
                n=len(rank),
                draws=drawn.mean(weight * (rank <= k))[:, 0] / share,
                n_blocks=drawn.n_units,
                chance=float(np.mean([chance_recall(size, k) for size in sizes])),
                n_gallery=round(float(np.mean(sizes))),
            )
            for k in self.ks
        }

    def _batches(self, n: int) -> list[slice]:
        """Batches of rows next to each other; of fewer rows than one batch, all."""
        whole = n if self.compat or n < self.batch_size else n - n % self.batch_size
        return [slice(start, min(start + self.batch_size, whole)) for start in range(0, whole, self.batch_size)]


@dataclass(frozen=True)
class Place:
    """The locations of a section that have an image and expression, in the order of its table."""

    section: SectionLike
    rows: NDArray[np.intp]
    """(n,)"""

    @property
    def n(self) -> int:
        """Of locations."""
        return len(self.rows)


class Ranks(typing.Protocol):
    """Who ranks: for every location, from 1, where the answer to it lies among the gallery."""

    def gallery(self, places: Sequence[Place], direction: str) -> Floats:
        """(n,) among all locations of these sections, one section after the other."""

    def batches(self, place: Place, batches: Sequence[slice], direction: str) -> list[Floats]:
        """(k,) among the locations of each of some batches of a section's."""


@dataclass(frozen=True)
class _Pairs(Place):
    """With their embeddings."""

    image: Floats
    """(n, dim)"""
    expression: Floats
    """(n, dim)"""

    def sides(self, direction: str) -> tuple[Floats, Floats]:
        """Queries and gallery."""
        return (self.image, self.expression) if direction.startswith("image") else (self.expression, self.image)


@dataclass(frozen=True)
class _Cosines:
    """A subject's embeddings rank."""

    protocol: HescapeRetrieval
    pairs: Mapping[str, _Pairs]
    """Section id -> its pairs."""

    def gallery(self, places: Sequence[Place], direction: str) -> Floats:
        sides = (self.pairs[p.section.id].sides(direction) for p in places)
        queries, gallery = (np.concatenate(side) for side in zip(*sides, strict=True))
        return match_ranks(queries, gallery, ties=self.protocol.ties)

    def batches(self, place: Place, batches: Sequence[slice], direction: str) -> list[Floats]:
        queries, gallery = self.pairs[place.section.id].sides(direction)
        if not self.protocol.compat:
            queries, gallery = unit_rows(queries, what="queries"), unit_rows(gallery, what="gallery")
        out = []
        for of in batches:
            scores = queries[of] @ gallery[of].T
            # Lengths are anybody's choice without normalising: ties are told by the largest score.
            out.append(diagonal_ranks(scores / max(float(np.abs(scores).max()), 1e-300), ties=self.protocol.ties))
        return out


def _pairs(subject: Subject, section: SectionLike) -> _Pairs | None:
    (image, seen), (expression, counted) = (subject.embed(section, m) for m in DIRECTIONS[0])
    rows = np.flatnonzero(seen & counted)
    if not len(rows):
        log.info("section %s has no location with both image and expression", section.id)
        return None
    both = [np.asarray(values[rows], dtype=np.float64) for values in (image, expression)]
    for values, what in zip(both, DIRECTIONS[0], strict=True):
        if not np.isfinite(values).all():
            raise ContractError(
                f"{what} embeddings of {subject.name} are not finite and not marked as absent",
                where=f"section {section.id}",
                mend="mark the locations as not present, or embed the section again",
            )
    return _Pairs(section, rows, both[0], both[1])
