"""Donors: people of whom expression and text are known and no image, measured on another platform than the patients.

A donor has tissue of their own, from which round pseudo-spots are taken at random; nothing is painted. Their platform
sees every gene, shifts each by a factor of its own, the same for all donors, and counts to another depth; sites of the
cohort have no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from triglyph.errors import ContractError
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.simulate.cohort import draft_of
from triglyph.tissue.simulate.knobs.molecules import Spots
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.molecules.counts import Chemistry, section_chemistry
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.simulate.streams import stream

PLATFORM = "rna-only"
FIRST = 10_000
"""Donors are people from this index on, so that no stream of theirs is a patient's."""
_TRIES = 200


def donor_id(donor_index: int) -> str:
    """`D01` for the first."""
    return f"D{donor_index + 1:02d}"


def platform_gap(config: Simulation, n_genes: int) -> NDArray[np.float64]:
    """(genes,) log factor between the donors' platform and the patients', common to all donors."""
    return config.donors.gap * stream(config.seed, "donor platform").standard_normal(n_genes)


@dataclass(frozen=True)
class DonorSpecimen(Specimen):
    """Tissue of a donor, counted by the donors' platform at pseudo-spots."""

    @cached_property
    def chemistry(self) -> Chemistry:
        """The donor's own offsets and depth, and the platform's."""
        molecules = self.config.molecules.model_copy(update={"site_gene": 0.0})
        config, n_genes = self.config.model_copy(update={"molecules": molecules}), len(self.world.symbols)
        own = section_chemistry(config, self.patient, self.section, n_genes)
        return Chemistry(own.depth * config.donors.depth, own.gene_offset + platform_gap(config, n_genes))

    @cached_property
    def places(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """As many centres under tissue as the knob says, anywhere: pseudo-spots may overlap."""
        spots, wanted = self.config.spots, self.config.donors.locations
        rng = stream(self.config.seed, "donor places", *self.keys)
        low = spots.margin_um + spots.diameter_um / 2
        kept = np.empty((0, 2))
        for _ in range(_TRIES):
            tried = rng.uniform(low, self.config.anatomy.side_um - low, (wanted, 2))
            kept = np.concatenate([kept, tried[self.footprint.mean(self.tissue.cover, tried) >= spots.min_tissue]])
            if len(kept) >= wanted:
                break
        else:
            raise ContractError(
                f"{len(kept)} of {wanted} profiles found a place under tissue",
                where=donor_id(self.patient - FIRST),
                mend="lower donors.locations or spots.min_tissue",
            )
        number = np.arange(wanted)
        return kept[:wanted], number, np.zeros_like(number)


def simulate_donor(config: Simulation, donor_index: int) -> SectionDraft:
    """The one section `D01-S1` of a donor: counts, captions, labels and truth, and no image.

    Parameters
    ----------
    config
        The simulated world.
    donor_index
        From 0. The same two arguments give the same table, in any order and any process.

    Returns
    -------
    SectionDraft
        Of platform `rna-only`; centres are true ones, in µm of the donor's own tissue.

    Raises
    ------
    ContractError
        The tissue has no place for so many profiles.
    """
    specimen = DonorSpecimen(_seen_in_spots(config), FIRST + donor_index, 0)
    draft, name = draft_of(specimen, []), donor_id(donor_index)
    table = draft.table
    table.obs_names = [f"{name}-{number:05d}" for number in range(table.n_obs)]
    table.obs = table.obs.drop(columns=["array_row", "array_col"]).assign(batch=PLATFORM)
    table.obsm["spatial"] = table.obsm["truth_spatial"].copy()
    draft.section_id, draft.patient, draft.block = f"{name}-S1", name, f"{name}-B1"
    draft.platform, draft.pitch_um = PLATFORM, None
    draft.source = {key: value for key, value in draft.source.items() if not key.endswith("_site")}
    draft.source |= {"donor": True, "config": config.digest()}
    return draft


def _seen_in_spots(config: Simulation) -> Simulation:
    """The world with round spots: where patients are seen in bins of single molecules, donors are not."""
    if not config.spots.is_square:
        return config
    return config.model_copy(update={"spots": Spots(min_tissue=config.spots.min_tissue)})
