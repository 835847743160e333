"""`hescape-mutation`: a label of the patient, such as a mutation, from the tiles of all their sections.

Gated attention over bags of tiles, as `triglyph.bench.slides.bags` describes it. Patients without a label or a tile are
left out and named.
"""

from __future__ import annotations

from typing import ClassVar

from triglyph.bench.slides.bags import BagProtocol


class HescapeMutation(BagProtocol):
    """AUROC and Brier score of a binary label over held-out patients."""

    name: ClassVar[str] = "hescape-mutation"
    task: ClassVar[str] = "patient-label"
    citation: ClassVar[str] = f"{BagProtocol.citation}; Gindra et al., HESCAPE, ICCV workshops 2025"

    label_column: str = "mutation"
    """Of `clinical.csv`; patients without a value are left out."""
