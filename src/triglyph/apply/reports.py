"""What became of the sections a verb went through; light, since the command line reads these types."""

from __future__ import annotations

from dataclasses import dataclass, field


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
