"""People: who is drawn from which population, where they were stained and measured, and what they bring with them.

The hierarchy is site, patient, block, section. Everything a patient has follows from (seed, patient index); sites are
drawn once for all patients. A patient's stain and its chemistry come from sites of their own, so that the colour of a
slide says nothing about its counts, unless `People.confounding` ties both to biology.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from triglyph.tissue.simulate.knobs.names import DOMAINS, SUBTYPES
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.knobs.states import STATES
from triglyph.tissue.simulate.streams import stream

_NEVER_ABSENT = ("invasive cancer", "connective tissue")
_SMALLEST_SHARE = 0.02
# What a subtype moves, in states per unit of `People.subtype`: half of it up in the one, half down in the other.
_SUBTYPE_STATES = {
    "proliferation": (-0.5, 0.5),
    "hypoxia": (-0.3, 0.3),
    "inflammation": (-0.3, 0.3),
    "oestrogen response": (0.5, -0.5),
}


@dataclass(frozen=True)
class Person:
    """A patient before any tissue is made."""

    config: Simulation
    index: int

    @cached_property
    def subtype(self) -> int:
        """Index into `SUBTYPES`."""
        return int(stream(self.config.seed, "subtype", self.index).integers(len(SUBTYPES)))

    @cached_property
    def stain_site(self) -> int:
        """Where the sections were stained and scanned."""
        return self._site("stain site")

    @cached_property
    def chemistry_site(self) -> int:
        """Where molecules were counted."""
        return self._site("chemistry site")

    def _site(self, part: str) -> int:
        people, rng = self.config.people, stream(self.config.seed, part, self.index)
        free, tied = int(rng.integers(people.sites)), self.subtype * people.sites // len(SUBTYPES)
        return tied if rng.random() < people.confounding else free

    @cached_property
    def state_shift(self) -> NDArray[np.float64]:
        """(len(STATES),) what the subtype adds to every state."""
        shift = np.zeros(len(STATES))
        for name, by_subtype in _SUBTYPE_STATES.items():
            shift[STATES.index(name)] = self.config.people.subtype * by_subtype[self.subtype]
        return shift

    def shares(self, block: int = 0) -> NDArray[np.float64]:
        """(len(DOMAINS),) share of the tissue of a block that each domain takes; 0 for one that the patient lacks."""
        anatomy, people, seed = self.config.anatomy, self.config.people, self.config.seed
        mean = np.array([anatomy.fractions[name] for name in DOMAINS])
        mean = mean / mean.sum()
        own = stream(seed, "shares", self.index).dirichlet(anatomy.fraction_concentration * mean)
        if block:
            fresh = stream(seed, "shares", self.index, block).dirichlet(anatomy.fraction_concentration * mean)
            own = (1 - people.block_change) * own + people.block_change * fresh
        lots = stream(seed, "absent", self.index).random(len(DOMAINS))
        lacking = np.array([name not in _NEVER_ABSENT for name in DOMAINS]) & (lots < people.absent)
        # A domain whose mean share is 0 is nowhere in this world.
        lacking |= mean == 0
        shares = np.where(lacking, 0.0, np.maximum(own, _SMALLEST_SHARE))
        return shares / shares.sum()


def person(config: Simulation, patient_index: int) -> Person:
    """The patient of that number, from 0."""
    return Person(config, patient_index)
