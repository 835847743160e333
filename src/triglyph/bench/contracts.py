"""What the judge asks of what it judges: a subject (a model, a baseline, a null) and a trial (a split of a cohort).

Sections and models are named by what is used of them, so that protocols run on anything of that shape and need no
torch. Every row's `level` is derived from who was seen, never taken on trust: see `Trial.level`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.bench import parts
from triglyph.bench.parts import Part, divided, whole_of
from triglyph.errors import ContractError, SplitError
from triglyph.metrics.result import Level, Role, Source

Array = NDArray[Any]
MODALITIES = ("image", "expression", "text")

log = logging.getLogger(__name__)


class SectionLike(Protocol):
    """What protocols use of a `tissue.Section`."""

    @property
    def id(self) -> str:
        """Unique in the cohort."""

    @property
    def patient(self) -> str:
        """The unit of every claim."""

    @property
    def centres_um(self) -> NDArray[np.float64]:
        """(n, 2)"""

    @property
    def captions(self) -> list[str]:
        """One per location, "" where missing."""

    @property
    def labels(self) -> Array:
        """One class per location, "" where unknown."""

    def expression(self) -> tuple[sp.csr_matrix, tuple[str, ...], tuple[str, ...], NDArray[np.bool_]]:
        """Raw counts (n, genes), symbols, Ensembl ids, mask of measured genes."""


class Embedder(Protocol):
    """What protocols use of a model. Rows that are not present hold nothing and are never looked at."""

    @property
    def modalities(self) -> Sequence[str]:
        """Of `image`, `expression`, `text`."""

    @property
    def training_sections(self) -> Sequence[str]:
        """Ids of the sections that anything in it was fitted on."""

    def embed(self, section: Any, modality: Any) -> tuple[Array, NDArray[np.bool_]]:
        """(n, dim) in the model's own space, and which of the n locations have this modality."""

    def pooled(self, section: Any, modality: Any) -> tuple[Array, NDArray[np.bool_]]:
        """(n, dim) of the encoder, before anything was aligned."""

    def embed_text(self, texts: list[str]) -> Array:
        """(k, dim) of any sentences, in the space of `embed`."""


@dataclass(frozen=True)
class Subject:
    """What is judged, and how its rows are stamped."""

    name: str
    source: Embedder
    role: Role = "method"
    seed: int | None = None
    transductive: tuple[str, ...] = ()
    """What of it saw the test set, in words."""
    training_patients: tuple[str, ...] = ()
    """People it was fitted on who may not be in the cohort that it is judged on."""
    compat: str = ""
    evidence: Source = "measured"
    """`architecture-only`: a tower has random weights, and its numbers say nothing of the method."""
    trained_on: str = ""
    """`Trial.identity` of the fold that it was trained on; "" where it was trained on none, or nobody knows."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Of the source."""
        return tuple(self.source.modalities)

    @property
    def fusions(self) -> tuple[str, ...]:
        """Names under which the source embeds image and expression together (`fused`, `fused-sum`, ...); often none."""
        return tuple(getattr(self.source, "fusions", ()))

    def require(self, modality: str) -> None:
        """Refuse what it cannot be asked for.

        Raises
        ------
        ContractError
            It neither has the modality nor makes this fusion.
        """
        offered = (*self.modalities, *self.fusions)
        if modality not in offered:
            raise ContractError(
                f"{self.name} has no {modality}",
                where="the protocol's `modality`",
                mend=f"choose another: it has {', '.join(offered) or 'none'}",
            )

    def embed(self, section: Any, modality: Any) -> tuple[Array, NDArray[np.bool_]]:
        """(n, dim) in its own space and which of the n locations have this modality, of a section or a part.

        `modality` is one of `modalities` or of `fusions`.
        """
        return parts.embedded(self.source, section, modality)

    def pooled(self, section: Any, modality: Any) -> tuple[Array, NDArray[np.bool_]]:
        """(n, dim) of the encoder, before anything was aligned, of a section or a part."""
        return parts.pooled(self.source, section, modality)


@dataclass(frozen=True)
class Trial:
    """One fold of a split over a cohort's sections."""

    train: tuple[SectionLike, ...]
    test: tuple[SectionLike, ...]
    patients: Mapping[str, str]
    """Section id -> patient id, of the whole cohort."""
    split: str
    fold: str = ""
    val: tuple[str, ...] = ()
    """Ids of sections that chose something: what they saw is no longer unseen."""
    identity: str = ""
    """Digest of the split, and the fold."""
    memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What is the same for every subject, computed once: targets, ceilings. A trial made by `replace` starts anew."""

    @classmethod
    def of(cls, cohort: Any, split: Any, *, fold: str | None = None) -> Trial:
        """A fold of a `tissue.Split` over a `tissue.Cohort`; `fold` None takes the only one.

        Sections some of whose locations are tested (`Fold.test_locations`) come as two parts.

        Raises
        ------
        SplitError
            The split has several folds and none was named; or it tests sections that it also trains on, without
            saying which of their locations; or names locations that a section has not.
        """
        if fold is None and len(split.folds) > 1:
            raise SplitError(
                f"split {split.name!r} has {len(split.folds)} folds",
                mend=f"name one of {', '.join(f.name for f in split.folds)}",
            )
        chosen = split.folds[0] if fold is None else split.fold(fold)
        where = f"split {split.name!r}, fold {chosen.name!r}"
        held_out, buffer = chosen.test_locations or {}, chosen.buffer_locations or {}
        unclear = sorted(set(chosen.train) & set(chosen.test) - set(held_out))
        if unclear:
            raise SplitError(
                f"sections are trained on and tested without a word which locations: {', '.join(unclear)}",
                where=where,
                mend="name them in `test_locations`",
            )
        pieces = {s: divided(cohort[s], held_out[s], where=where, buffer=buffer.get(s, ())) for s in sorted(held_out)}
        return cls(
            train=tuple(pieces[s][0] if s in pieces else cohort[s] for s in chosen.train),
            test=tuple(pieces[s][1] if s in pieces else cohort[s] for s in chosen.test),
            patients=dict(cohort.patients),
            split=split.name,
            fold=chosen.name if len(split.folds) > 1 else "",
            val=tuple(chosen.val),
            identity=f"{split.digest()}/{chosen.name}",
        )

    def level(self, section: SectionLike, subject: Subject) -> Level:
        """What a result on `section` shows about `subject`, derived from everything either was fitted on.

        Raises
        ------
        SplitError
            The section itself, or the tested part of it, was trained on or chose something.
        """
        own = {s.id for s in self.train if isinstance(s, Part)}
        seen = {*subject.source.training_sections, *(s.id for s in self.train), *self.val} - own
        is_part = isinstance(section, Part)
        # Trained on this very fold, a model has seen the other part of the section only.
        held_out = is_part and section.id not in self.val and subject.trained_on == self.identity != ""
        if section.id in seen and not held_out:
            what = "locations of section" if is_part else "section"
            raise SplitError(
                f"{what} {section.id} is tested, but {subject.name} was trained or chosen on it",
                where=f"split {self.split!r}, fold {self.fold or '0'}",
                mend="test on what was held out, or train on this split",
            )
        wholes = {whole_of(s).id for s in self.train}
        if is_part and section.id in seen | wholes:
            return "within-section"
        people = {self.patients[s] for s in seen | wholes if s in self.patients} | set(subject.training_patients)
        return "within-patient" if section.patient in people else "patient"

    def levels(self, subject: Subject) -> dict[str, Level]:
        """Section id -> level, for every test section; also the check that a protocol runs before anything else.

        Raises
        ------
        SplitError
            Nothing is tested, or something tested was trained on.
        """
        if not self.test:
            raise SplitError("no section to test on", where=f"split {self.split!r}")
        parts = {s.id for s in self.train if isinstance(s, Part)}
        foreign = sorted(set(subject.source.training_sections) - set(self.patients) - parts)
        if foreign and not subject.training_patients:
            log.warning(
                "%s was trained on sections that this cohort has not (%s); their patients are not known",
                subject.name,
                ", ".join(foreign[:8]),
            )
        return {s.id: self.level(s, subject) for s in self.test}
