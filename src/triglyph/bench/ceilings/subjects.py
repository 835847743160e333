"""How rows of a ceiling are stamped: under which name, and with what it knows of the test set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.contracts import Array, Subject
from triglyph.bench.features import Features
from triglyph.errors import ContractError
from triglyph.metrics.result import Role

COUNTING = "ceiling: counting noise"
EXPRESSION = "ceiling: true expression"
HALF = "half of the counts"
CONTENT = "ceiling: true content"
DOMAINS = "ceiling: true domains"
NOTES = {
    COUNTING: "knows the rate that each test count was drawn from, as Poisson",
    HALF: "half of the test counts, their noise included, as the prediction of all of them: bounds nothing",
    EXPRESSION: "knows the noise-free expected counts of the test locations, their depth included",
    CONTENT: "knows what captions of the test locations should say, and how many of them are missing or wrong",
    DOMAINS: "knows the true shares of domains of the test locations and around them",
}
"""What each knows of the test set; stamped on its rows."""


@dataclass(frozen=True)
class _Nothing(Features):
    """A source that only says what it is of: its rows are computed by the ceiling, not by a protocol."""

    modality: str = "image"

    def features(self, section: Any) -> tuple[Array, NDArray[np.bool_]]:
        raise ContractError("a ceiling has no features", where=section.id)


def ceiling_subject(name: str, source: Features | None = None) -> Subject:
    """The subject of a ceiling's rows."""
    role: Role = "control" if name == HALF else "ceiling"
    return Subject(name, source or _Nothing(), role=role, transductive=(NOTES[name],))
