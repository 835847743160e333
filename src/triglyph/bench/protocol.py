"""A protocol: an object whose fields are its constants, with a card that freezes them and a `run` that gives rows.

The card's digest is part of every row (`name/version/digest`), so numbers made with different constants are never
read as one.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from triglyph.bench.contracts import Subject, Trial
from triglyph.cards import Card, Frozen
from triglyph.errors import ContractError, RecipeError
from triglyph.metrics.bootstrap import N_BOOT
from triglyph.metrics.result import Result


class ProtocolCard(Card):
    """Everything that decides a protocol's numbers."""

    version: str
    task: str
    fitted: dict[str, str]
    """What is fitted -> on what."""
    transductive: tuple[str, ...] = ()
    """What sees the test set, in words; stamped on every row."""
    metrics: dict[str, str]
    """Metric -> what it is, ties and all."""
    aggregations: dict[str, str]
    """`aggregation` of a row -> how it comes together."""
    constants: dict[str, Any]


PER_SECTION = {
    "per-section": "group = a section: its value; group = all: the mean of the sections' values",
    "per-patient": "group = a patient: the mean of their sections; group = all: the mean of the patients' values",
}
"""Aggregations that every protocol has. Sections of different `level` are never averaged: each level has its rows."""


LABEL_TASKS = {"linear-probe", "knn", "few-shot", "learning-curve", "clustering", "label-retrieval", "batch-effect"}
"""Tasks that read labels off an embedding."""


class FoldError(ContractError):
    """A fold lacks what a protocol needs, such as a second section: it is left out in words, others are judged."""


class Protocol(Frozen, abc.ABC):
    """Base of all protocols."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    task: ClassVar[str]

    has_null: ClassVar[bool] = False
    """Whether refits on shuffled pairs mean something to it."""
    needs_split: ClassVar[bool] = True
    """False: nothing is fitted, and every section of a cohort is tested."""

    block_um: float = 1000.0
    """Side of the blocks of tissue drawn for intervals where there are fewer than 6 patients, µm.

    Intervals cover what they say where it is three times the length over which tissue stays alike; see
    `triglyph.metrics.bootstrap`.
    """
    n_boot: int = N_BOOT
    seed: int = 0

    @abc.abstractmethod
    def card(self) -> ProtocolCard:
        """What is fitted where, what is transductive, every constant."""

    @abc.abstractmethod
    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        """Judge one subject on one fold.

        Raises
        ------
        SplitError
            A test section was trained on.
        FoldError
            The sections of this fold lack what the protocol needs.
        ContractError
            The subject lacks it.
        """

    def published(self, split: str) -> list[Result]:
        """Figures of others under this very protocol, to stand beside what is measured on `split`."""
        return []

    @property
    def stamp(self) -> str:
        """`protocol` of its rows."""
        return f"{self.name}/{self.version}/{self.card().digest()[:8]}"

    def constants(self) -> dict[str, Any]:
        """The fields, as plain data."""
        return self.model_dump(mode="json")

    @classmethod
    def configured(cls, options: dict[str, Any]) -> Protocol:
        """The protocol with some constants set.

        Raises
        ------
        RecipeError
            A constant is unknown or not of its type.
        """
        from pydantic import ValidationError

        try:
            return cls.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            said = first["msg"].removeprefix("Value error, ")
            raise RecipeError(
                ": ".join(part for part in (".".join(map(str, first["loc"])), said[:1].lower() + said[1:]) if part),
                where=f"protocol {cls.name}",
                mend=f"its constants are {', '.join(cls.model_fields)}",
            ) from None
