"""States of tissue, which are programmes of its cells, and the dial that says how much each kind of them moves."""

from __future__ import annotations

from pydantic import Field

from triglyph.tissue.simulate.knobs.bounds import Bounded

SHARED_STATES = ("proliferation", "fibrosis", "hypoxia", "inflammation")
"""Seen in morphology and in expression alike."""
MORPHOLOGY_STATES = ("pleomorphism", "oedema")
"""Seen in morphology alone."""
EXPRESSION_STATES = ("oestrogen response", "lipid metabolism", "stress response")
"""Seen in expression alone."""
STATES = (*SHARED_STATES, *MORPHOLOGY_STATES, *EXPRESSION_STATES)
"""Smooth fields over the tissue, each about N(0, 1); every one is a programme of the cells it acts on."""


class Dial(Bounded):
    """How much each kind of programme moves what it acts on: 0 not at all, 1 as `Molecules.state`, `Stain.state`."""

    shared: float = Field(default=1.0, ge=0)
    morphology_only: float = Field(default=1.0, ge=0)
    expression_only: float = Field(default=1.0, ge=0)

    def strength(self, state: str) -> tuple[float, float]:
        """Strength of a state in (morphology, expression)."""
        if state in SHARED_STATES:
            return self.shared, self.shared
        if state in MORPHOLOGY_STATES:
            return self.morphology_only, 0.0
        return 0.0, self.expression_only
