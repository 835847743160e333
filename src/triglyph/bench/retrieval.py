"""`retrieval`: does a location find itself across modalities, among all locations of its held-out section?

Every pair of modalities that the subject has, both directions. The gallery is the whole section. Identical captions
are one item: a text gallery holds each caption once, a text query is asked once, and any location with that caption
is a right answer; chance takes this into account.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from triglyph.bench.contracts import MODALITIES, SectionLike, Subject, Trial
from triglyph.bench.protocol import PER_SECTION, Protocol, ProtocolCard
from triglyph.bench.rows import Measure, Rows
from triglyph.errors import ContractError
from triglyph.metrics.result import Result
from triglyph.metrics.retrieval import Ties, chance_rank, chance_recall, match_ranks, recall_at, right_answers

log = logging.getLogger(__name__)

Embedded = tuple[NDArray[Any], NDArray[np.bool_]]


def shared_space(subject: Subject) -> list[str]:
    """The modalities of a subject, in the fixed order.

    Raises
    ------
    ContractError
        It has fewer than two.
    """
    has = [m for m in MODALITIES if m in subject.modalities]
    if len(has) < 2:
        raise ContractError(
            f"retrieval needs two modalities in one space, {subject.name} has {', '.join(has) or 'none'}",
            mend="judge a trained model, or a baseline that maps one modality to another",
        )
    return has


class Retrieval(Protocol):
    """Recall@k and median rank over full galleries."""

    name: ClassVar[str] = "retrieval"
    task: ClassVar[str] = "retrieval"
    has_null: ClassVar[bool] = True

    ks: tuple[int, ...] = (1, 5, 10)
    ties: Ties = "mean"

    def card(self) -> ProtocolCard:
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary="rank of the true match among all locations of a held-out section, by cosine similarity",
            fitted={},
            metrics={
                "recall@k": "share of queries whose right answer ranks at k or better",
                "median-rank": "median over queries of the rank of the best right answer, from 1; lower is better",
                "ties": f"{self.ties} rank, among cosines within 1e-6",
            },
            aggregations=PER_SECTION,
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        has = shared_space(subject)
        found: dict[tuple[str, str], dict[str, Measure]] = {}
        for section in trial.test:
            embedded = {m: subject.embed(section, m) for m in has}
            for a, b in combinations(has, 2):
                both = np.flatnonzero(embedded[a][1] & embedded[b][1])
                if not len(both):
                    log.info("section %s has no location with both %s and %s", section.id, a, b)
                    continue
                for source, target in ((a, b), (b, a)):
                    measured = self._section(rows, section, embedded, both, source, target)
                    for metric, measure in measured.items():
                        found.setdefault((f"{source}->{target}", metric), {})[section.id] = measure
        return [
            row
            for (direction, metric), measures in found.items()
            for row in rows.per_section(measures, metric=metric, direction=direction)
        ]

    def _section(
        self,
        rows: Rows,
        section: SectionLike,
        embedded: dict[str, Embedded],
        both: NDArray[np.intp],
        source: str,
        target: str,
    ) -> dict[str, Measure]:
        items = np.arange(len(both))
        first = items
        if "text" in (source, target):
            said = section.captions
            items = same_captions([said[i] for i in both])
            first = np.unique(items, return_index=True)[1]
        asked = first if source == "text" else np.arange(len(both))
        offered = first if target == "text" else np.arange(len(both))
        ranks = match_ranks(
            embedded[source][0][both[asked]],
            embedded[target][0][both[offered]],
            query_items=items[asked],
            gallery_items=items[offered],
            ties=self.ties,
        )
        right = right_answers(items[asked], items[offered])
        # A caption that several locations share lies in several blocks: such queries have no block to be drawn with.
        placed = both[asked] if len(asked) == len(both) else None
        return self.rank_measures(rows, section, ranks, placed, n_gallery=len(offered), n_right=right)

    def rank_measures(
        self,
        rows: Rows,
        section: SectionLike,
        ranks: NDArray[np.float64],
        placed: NDArray[np.intp] | None,
        *,
        n_gallery: int | None = None,
        n_right: ArrayLike = 1,
    ) -> dict[str, Measure]:
        """All metrics of the ranks of a section's queries.

        Parameters
        ----------
        ranks
            (q,) rank of the best right answer to each query.
        placed
            (q,) location of each query, for intervals; None where queries have no place.
        n_gallery, n_right
            Size of the gallery (as many as queries, if left out), and of right answers in it.
        """
        n_gallery = len(ranks) if n_gallery is None else n_gallery
        drawn = None if placed is None else rows.blocks(section, placed)
        n_blocks = drawn.n_units if drawn else 0
        out = {
            f"recall@{k}": Measure(
                value=recall_at(ranks, k),
                n=len(ranks),
                draws=drawn.mean(ranks <= k)[:, 0] if drawn else None,
                n_blocks=n_blocks,
                chance=chance_recall(n_gallery, k, n_right=n_right),
                n_gallery=n_gallery,
            )
            for k in self.ks
        }
        out["median-rank"] = Measure(
            value=float(np.median(ranks)),
            n=len(ranks),
            draws=drawn.median(ranks) if drawn else None,
            n_blocks=n_blocks,
            chance=chance_rank(n_gallery, n_right=n_right),
            n_gallery=n_gallery,
        )
        return out


def same_captions(captions: Sequence[str]) -> NDArray[np.intp]:
    """(n,) equal for captions that are equal but for space around them; numbered in alphabetical order.

    Strings stay objects: an array as wide as the longest caption is gigabytes where one of many is long.
    """
    stripped = np.array([caption.strip() for caption in captions], dtype=object)
    return pd.factorize(stripped, sort=True)[0]
