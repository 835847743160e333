"""The ceiling of retrieval with captions: a judge who knows what each location shows, but not the words chosen for it.

A simulated caption is content (domains, cellularity, cells that stand out) in words drawn at random. Tissue decides the
content alone, so nothing that reads tissue and words tells captions of one content apart, and no ranking is better than
that by the chance that a location carries a caption, given its true content: its own content in any of the wordings
offered; where captions go wrong, those of other domains; where they are the section's, that one. In expectation over
the draw of words this is an upper bound. On n queries a method may lie above it by luck, by about sqrt(p(1 - p) / n) of
a recall p.

Ties count as broken at random: recalls are expected ones, the median rank is averaged over `ORDERS` orders. The mean
rank of the tied, which protocols give to equal scores, would turn one chance in three of recall@1 into none, and a
method could rightly lie above it.

What a location should say is read off `obs["caption_held_out"]`, which says it in other words and is never missing;
the shares of wrong and section-level captions off `obs["truth_caption"]`.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from triglyph.bench.contracts import Embedder, SectionLike, Subject, Trial
from triglyph.bench.parts import pooled, whole_of
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.rows import Measure, Rows
from triglyph.metrics.bootstrap import nan_mean
from triglyph.metrics.result import Result
from triglyph.metrics.retrieval import TOLERANCE, right_answers
from triglyph.tissue.simulate.language import HELD_OUT, SEEN, Vocabulary

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Content = tuple[str, ...]
"""Domains from the largest, cellularity, amounts and groups of cells in their order."""

ORDERS = 16
"""Random orders of tied answers that the median rank is averaged over."""


def text_retrieval(protocol: Retrieval, trial: Trial, source: Embedder, subject: Subject) -> list[Result]:
    """Rows between text and every other modality of `source`; none where a test section does not know the truth.

    Parameters
    ----------
    source
        What is judged: its modalities, over the locations that it has.
    subject
        How the rows are stamped.
    """
    rows = Rows.start(protocol, subject, trial)
    found: dict[tuple[str, str], dict[str, Measure]] = {}
    for section in trial.test:
        worded = pooled(source, section, "text")[1]
        truth = None
        for other in (m for m in ("image", "expression") if m in source.modalities):
            both = np.flatnonzero(worded & pooled(source, section, other)[1])
            if not len(both):
                continue
            truth = truth or caption_truth(section)
            if truth is None:
                return []
            captions, said = np.unique([section.captions[i].strip() for i in both], return_inverse=True)
            chance = truth.chance(captions.tolist(), both)
            texts, said = np.arange(len(captions)), said.ravel()
            # A caption is asked once, wherever it lies; only queries that are locations have a place.
            for direction, scores, asked, offered, placed in (
                (f"{other}->text", chance.T, said, texts, both),
                (f"text->{other}", chance, texts, said, None),
            ):
                measured = _measures(protocol, rows, section, scores, asked, offered, placed, direction)
                for metric, measure in measured.items():
                    found.setdefault((direction, metric), {})[section.id] = measure
    return [
        row
        for (direction, metric), measures in found.items()
        for row in rows.per_section(measures, metric=metric, direction=direction)
    ]


def _measures(
    protocol: Retrieval,
    rows: Rows,
    section: SectionLike,
    scores: Floats,
    asked: Ints,
    offered: Ints,
    placed: NDArray[np.intp] | None,
    direction: str,
) -> dict[str, Measure]:
    """All metrics of a section in one direction: those that the protocol takes of ranks, in expectation over ties.

    Parameters
    ----------
    scores
        (queries, gallery)
    asked, offered
        Item ids of the queries and of the gallery.
    """
    ties = tied_ranks(scores, asked[:, None] == offered[None, :])
    rng = np.random.default_rng([protocol.seed, zlib.crc32(f"{section.id} {direction}".encode())])
    right, n = right_answers(asked, offered), len(offered)
    orders = [protocol.rank_measures(rows, section, r, placed, n_gallery=n, n_right=right) for r in ties.orders(rng)]
    out = {}
    for metric, one in orders[0].items():
        draws = [d for of in orders if (d := of[metric].draws) is not None]
        value = float(np.mean([of[metric].value for of in orders]))
        out[metric] = replace(one, value=value, draws=nan_mean(draws, axis=0) if draws else None)
    drawn = None if placed is None else rows.blocks(section, placed)
    for k in protocol.ks:
        hit = ties.within(k)
        out[f"recall@{k}"] = replace(
            out[f"recall@{k}"], value=float(hit.mean()), draws=drawn.mean(hit)[:, 0] if drawn else None
        )
    return out


# ---- what captions say


def reader(words: Vocabulary) -> Callable[[str], Content]:
    """From a caption of a location to its content, whatever words it says it in; () where it has none of them."""
    kinds = (words.domains, words.densities, words.amounts, words.groups)
    ideas = {phrase: (kind, idea) for kind, of in enumerate(kinds) for idea in of for phrase in of[idea]}
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, ideas))})(?!\w)")

    def content(text: str) -> Content:
        said = [ideas[phrase] for phrase in pattern.findall(text)]
        # Some templates begin with the cellularity: order matters within one kind of idea alone.
        return tuple(idea for _, idea in sorted(said, key=lambda of: of[0]))

    return content


@dataclass(frozen=True)
class CaptionTruth:
    """What every location of a section should say, and what was done to its caption."""

    own: tuple[Content, ...]
    kinds: NDArray[np.str_]
    """`own`, `wrong`, `section` or `missing`."""
    section_texts: frozenset[str]
    """What locations carry in place of their own caption."""

    def chance(self, captions: Sequence[str], rows: NDArray[np.intp]) -> Floats:
        """(captions, rows) chance that a location carries a caption, those being what its section's captions are.

        Parameters
        ----------
        captions
            Distinct ones, of the locations `rows`.
        """
        share = {kind: float((self.kinds[rows] == kind).mean()) for kind in ("own", "wrong", "section")}
        read = reader(SEEN)
        said = [(text,) if text in self.section_texts else read(text) for text in captions]
        wordings, of_all = Counter(said), Counter(self.own)
        domains = np.array([content[0] for content in self.own])
        mine = [self.own[i] for i in rows]
        # A wrong caption is that of a location of another domain, or of any other one where there is but one domain.
        several = len(set(domains.tolist())) > 1
        pool = np.array(
            [(domains != d).sum() if several else len(domains) - 1 for d in domains[rows]], dtype=np.float64
        )
        chances: dict[Content, Floats] = {}
        for content in wordings:
            same = np.array([content == own for own in mine], dtype=np.float64)
            if several:
                wrong = of_all[content] * (domains[rows] != content[0]) / pool
            else:
                wrong = (of_all[content] - same) / np.maximum(pool, 1.0)
            chances[content] = (share["own"] * same + share["wrong"] * wrong) / wordings[content]
        anywhere = np.full(len(rows), share["section"])
        return np.stack([
            anywhere if text in self.section_texts else chances[content]
            for text, content in zip(captions, said, strict=True)
        ])  # fmt: skip


def caption_truth(section: SectionLike) -> CaptionTruth | None:
    """The truth about a section's captions; None where it states none, or its captions are in words of another's.

    A part of a section knows its whole section: wrong captions may come from anywhere in it.
    """
    whole = whole_of(section)
    table = getattr(whole, "table", None)
    if table is None or not {"caption_held_out", "truth_caption"} <= set(table.obs):
        return None
    carried = [text.strip() for text in whole.captions]
    kinds = np.array(table.obs["truth_caption"].astype(str).tolist())
    read = reader(HELD_OUT)
    own = tuple(read(text) for text in table.obs["caption_held_out"].astype(str).tolist())
    say = reader(SEEN)
    known = set(own)
    fits = {
        "own": lambda i: bool(own[i]) and say(carried[i]) == own[i],
        "wrong": lambda i: say(carried[i]) in known,
        "section": lambda i: bool(carried[i]),
        "missing": lambda i: not carried[i],
    }
    foreign = [i for i, kind in enumerate(kinds.tolist()) if not fits[kind](i)]
    if foreign:
        log.warning(
            "no ceiling of retrieval with text: %d captions of section %s, such as %r, are not as it was simulated",
            len(foreign),
            whole.id,
            carried[foreign[0]],
        )
        return None
    return CaptionTruth(
        own, kinds, frozenset(text for text, kind in zip(carried, kinds, strict=True) if kind == "section")
    )


# ---- ranks


class TiedRanks(NamedTuple):
    """Where the best right answer to each query lies, (queries,) each."""

    ahead: Ints
    """Wrong answers before it."""
    wrong: Ints
    """Wrong answers tied with it."""
    right: Ints
    """Right answers at its score, itself among them."""

    def within(self, k: int) -> Floats:
        """(queries,) chance that its rank is `k` or better, all orders of the tied being as likely."""
        left, tied = np.maximum(k - self.ahead, 0), self.wrong + self.right
        taken = np.minimum(left, self.wrong)
        # All of the first `left` of the tied are wrong in C(wrong, left) of C(tied, left) ways.
        none = np.exp(
            gammaln(self.wrong + 1) - gammaln(self.wrong - taken + 1) + gammaln(tied - taken + 1) - gammaln(tied + 1)
        )
        return np.asarray(np.where(left > self.wrong, 1.0, 1.0 - none))

    def orders(self, rng: np.random.Generator, *, n: int = ORDERS) -> Floats:
        """(n, queries) its rank, from 1, in random orders of the tied."""
        # Of uniform places the first of m right ones is Beta(1, m), and each wrong one lies before it with that chance.
        first = rng.beta(1.0, self.right, size=(n, len(self.right)))
        return np.asarray(1.0 + self.ahead + rng.binomial(self.wrong, first), dtype=np.float64)


def tied_ranks(scores: Floats, right: Bools) -> TiedRanks:
    """Of (queries, gallery) scores, not negative, and of which entries are right; every query has a right one."""
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    tied = np.abs(scores - best) <= TOLERANCE * best
    ahead = (scores > best * (1 + TOLERANCE)).sum(axis=1)
    return TiedRanks(ahead, (tied & ~right).sum(axis=1), (tied & right).sum(axis=1))
