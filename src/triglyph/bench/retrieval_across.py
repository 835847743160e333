"""`retrieval-across`: does a location find itself across modalities, among all locations of all held-out sections?

As `retrieval`, with one gallery for all test sections. Whatever sets sections apart in one modality and not, or
otherwise, in the other (stain, chemistry) now stands between a query and its answer, so this is where batch effects
show, and what aligning them away is worth.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.contracts import SectionLike, Subject, Trial
from triglyph.bench.protocol import PER_SECTION, ProtocolCard
from triglyph.bench.retrieval import Retrieval, same_captions, shared_space
from triglyph.bench.rows import Measure, Rows
from triglyph.metrics.result import Result
from triglyph.metrics.retrieval import match_ranks, right_answers


class RetrievalAcross(Retrieval):
    """Recall@k and median rank in one gallery over all test sections."""

    name: ClassVar[str] = "retrieval-across"
    has_null: ClassVar[bool] = False

    ks: tuple[int, ...] = (10, 50, 100)

    def card(self) -> ProtocolCard:
        card = super().card()
        return card.model_copy(
            update={
                "summary": "rank of the true match among all locations of all held-out sections, by cosine similarity",
                "aggregations": {
                    **PER_SECTION,
                    "gallery": "of a query: every location of every test section that has both modalities",
                },
            }
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        has = shared_space(subject)
        embedded = {s.id: {m: subject.embed(s, m) for m in has} for s in trial.test}
        out: list[Result] = []
        for a, b in combinations(has, 2):
            kept = {s.id: np.flatnonzero(embedded[s.id][a][1] & embedded[s.id][b][1]) for s in trial.test}
            tested = [s for s in trial.test if len(kept[s.id])]
            if not tested:
                continue
            for source, target in ((a, b), (b, a)):
                out += self._directed(rows, tested, embedded, kept, source, target)
        return out

    def _directed(
        self,
        rows: Rows,
        tested: list[SectionLike],
        embedded: dict[str, Any],
        kept: dict[str, NDArray[np.intp]],
        source: str,
        target: str,
    ) -> list[Result]:
        # Equal captions are one item, wherever they stand.
        sizes = [len(kept[s.id]) for s in tested]
        items = np.arange(sum(sizes))
        if "text" in (source, target):
            said = ((s.captions, kept[s.id]) for s in tested)
            items = same_captions([captions[i] for captions, mine in said for i in mine])
        offered = np.unique(items, return_index=True)[1] if target == "text" else np.arange(len(items))
        gallery = np.concatenate([embedded[s.id][target][0][kept[s.id]] for s in tested])[offered]
        found: dict[str, dict[str, Measure]] = {}
        for section, start in zip(tested, np.cumsum([0, *sizes]), strict=False):
            mine = kept[section.id]
            own = items[start : start + len(mine)]
            asked = np.unique(own, return_index=True)[1] if source == "text" else np.arange(len(mine))
            ranks = match_ranks(
                embedded[section.id][source][0][mine[asked]],
                gallery,
                query_items=own[asked],
                gallery_items=items[offered],
                ties=self.ties,
            )
            right = right_answers(own[asked], items[offered])
            placed = mine[asked] if len(asked) == len(mine) else None
            measured = self.rank_measures(rows, section, ranks, placed, n_gallery=len(offered), n_right=right)
            for metric, measure in measured.items():
                found.setdefault(metric, {})[section.id] = measure
        return [
            row
            for metric, measures in found.items()
            for row in rows.per_section(measures, metric=metric, direction=f"{source}->{target}")
        ]
