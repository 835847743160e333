"""What became of the sections a verb went through; light, since the command line reads these types."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triglyph.tissue.annotations import Annotation


@dataclass
class EmbedReport:
    """What `embed` did with each section."""

    fingerprint: str
    embedded: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    """Were there before."""
    absent: list[str] = field(default_factory=list)
    """Have no location with this modality: no image, or no caption. Nothing is written for them."""
    failed: dict[str, str] = field(default_factory=dict)
    """Section id -> what was wrong."""

    @property
    def exit_code(self) -> int:
        """1 if any section failed."""
        return int(bool(self.failed))


@dataclass
class AnnotateReport:
    """What `annotate` did with each section."""

    name: str
    annotated: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    """The same was asked of them before."""
    absent: list[str] = field(default_factory=list)
    """Have no location with the modality that is annotated."""
    failed: dict[str, str] = field(default_factory=dict)
    """Section id -> what was wrong."""
    notes: dict[str, str] = field(default_factory=dict)
    """Section id -> what could not be drawn or written of it, and why."""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Section id -> locations of each class, `unsure`, and `strange`, which are of a class or unsure as well."""
    calibration: Path | None = None
    """The file of the calibration that was used."""

    @property
    def exit_code(self) -> int:
        """1 if any section failed."""
        return int(bool(self.failed))

    def count(self, section: str, annotation: Annotation) -> None:
        """Add a section's numbers."""
        self.counts[section] = {**annotation.counts(), "strange": int(annotation.strange.sum())}
