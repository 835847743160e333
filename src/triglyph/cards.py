"""Cards: what a thing is, where it comes from, and under which licence it may be used."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A typed record: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)

    def digest(self) -> str:
        """Sixteen hex digits that change when any field changes."""
        return digest(self.model_dump(mode="json"))


class Card(Frozen):
    """Provenance and licence, the part common to encoders, datasets and protocols."""

    name: str
    summary: str = ""
    licence: str = ""
    commercial_use: bool | None = None
    citation: str = ""
    homepage: str = ""


def digest(value: Any) -> str:
    """Sixteen hex digits of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
