"""Every knob of the simulator, in µm where it is a length.

A `Simulation` fixes the world (anatomy, molecules, people, stain, platform, language) and its seed. The number of
patients is not part of it, so that a cohort can grow: patient 7 is the same in a cohort of 7 and of 60.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from triglyph.tissue.simulate.knobs.anatomy import Anatomy
from triglyph.tissue.simulate.knobs.bounds import Bounded
from triglyph.tissue.simulate.knobs.molecules import Molecules, Spots, Transcripts
from triglyph.tissue.simulate.knobs.people import Donors, Labels, Language, People
from triglyph.tissue.simulate.knobs.picture import Artefacts, Protein, Stain
from triglyph.tissue.simulate.knobs.states import Dial


class Simulation(Bounded):
    """One simulated world; every patient and section in it follows from this record alone."""

    name: str
    seed: int = Field(default=0, ge=0)
    sections_per_patient: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(2, 1, 1), min_length=1)
    """Patients take these in turn."""
    organ: str = "breast"
    anatomy: Anatomy
    dial: Dial = Dial()
    molecules: Molecules = Molecules()
    people: People = People()
    labels: Labels = Labels()
    stain: Stain = Stain()
    artefacts: Artefacts = Artefacts()
    spots: Spots = Spots()
    transcripts: Transcripts = Transcripts()
    language: Language = Language()
    donors: Donors = Donors()
    protein: Protein = Protein()

    @model_validator(mode="after")
    def _blocks_fit(self) -> Simulation:
        radius, near = self.spots.diameter_um / 2, self.molecules.niche_um
        if near <= radius:
            raise ValueError(
                f"molecules.niche_um {near:g} does not reach out of a location of spots.diameter_um "
                f"{self.spots.diameter_um:g}: nothing lies around it"
            )
        room, least = self.anatomy.side_um, 2 * self.spots.margin_um + self.spots.diameter_um
        if room < least:
            raise ValueError(
                f"anatomy.side_um {room:g} has no room for one location of spots.diameter_um "
                f"{self.spots.diameter_um:g} between two spots.margin_um"
            )
        return self

    def sections_of(self, patient_index: int) -> int:
        """Number of sections of a patient."""
        return self.sections_per_patient[patient_index % len(self.sections_per_patient)]

    def block_of(self, patient_index: int, section_index: int) -> int:
        """The block that a section is cut from; a block's sections are adjacent."""
        per_block = -(-self.sections_of(patient_index) // self.people.blocks)
        return section_index // per_block
