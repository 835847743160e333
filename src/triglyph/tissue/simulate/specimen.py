"""A specimen: one simulated section in memory, before anything is drawn or written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import anndata as ad
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

from triglyph.tissue.simulate.anatomy.tissue import Tissue, build_tissue
from triglyph.tissue.simulate.fields import sample, smooth_noise
from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS, SUBTYPES
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.knobs.states import EXPRESSION_STATES, MORPHOLOGY_STATES, SHARED_STATES, STATES
from triglyph.tissue.simulate.locations import Footprint, lattice, membership
from triglyph.tissue.simulate.molecules.bins import expected_bins
from triglyph.tissue.simulate.molecules.counts import DEBRIS_RNA, Chemistry, expected_counts, section_chemistry
from triglyph.tissue.simulate.molecules.expression import World, build_world, expected_of_cells, rna_content
from triglyph.tissue.simulate.molecules.programs import NICHES
from triglyph.tissue.simulate.molecules.surroundings import neighbour_shares
from triglyph.tissue.simulate.people import Person, person
from triglyph.tissue.simulate.picture.artefacts import artefact_maps
from triglyph.tissue.simulate.streams import stream
from triglyph.tissue.simulate.table import TRUTH_COLUMNS, build_table

_CELLS_AT_ONCE = 1024
_COARSE = 4
"""Regions are blurred on every fourth point of the grid."""
_NOTICED = 0.01
"""Share of a location below which an annotator does not notice a domain."""


@dataclass(frozen=True)
class Specimen:
    """One section of one patient; parts are made when they are first asked for."""

    config: Simulation
    patient: int
    section: int

    @property
    def keys(self) -> tuple[int, int]:
        """Keys of random streams that are the section's own."""
        return self.patient, self.section

    @property
    def block(self) -> int:
        """Number of the block it is cut from."""
        return self.config.block_of(self.patient, self.section)

    @cached_property
    def person(self) -> Person:
        """Who it is cut from."""
        return person(self.config, self.patient)

    @cached_property
    def tissue(self) -> Tissue:
        """Maps and cells."""
        shares = self.person.shares(self.block)
        return build_tissue(self.config, self.patient, self.section, shares, state_shift=self.person.state_shift)

    @cached_property
    def artefacts(self) -> dict[str, NDArray[np.float32]]:
        """Maps of what went wrong on the slide, by name; empty where nothing did."""
        return artefact_maps(self.config, *self.keys, self.tissue)

    @cached_property
    def world(self) -> World:
        """What this patient's cells express."""
        return build_world(self.config, self.patient)

    @cached_property
    def chemistry(self) -> Chemistry:
        """What was done to its counts."""
        return section_chemistry(self.config, self.patient, self.section, len(self.world.symbols))

    @cached_property
    def rna(self) -> NDArray[np.float64]:
        """(cells,) relative RNA content."""
        tissue = self.tissue
        patches = sample(tissue.patch, tissue.cells.xy_um, tissue.step_um)
        return rna_content(self.config, tissue.cells, patches, stream(self.config.seed, "rna", *self.keys))

    def expected_of_cells(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, genes) relative RNA of the cells `chosen`."""
        near = neighbour_shares(self.tissue.cells, self.config.molecules.niche_um, chosen)
        return expected_of_cells(self.config, self.world, self.tissue.cells, self.rna, near, chosen)

    # ---- locations

    @cached_property
    def footprint(self) -> Footprint:
        """Means of maps over locations."""
        return Footprint(self.config.spots, self.tissue.step_um)

    @cached_property
    def places(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """True centres (n, 2) in µm, rows and columns of the locations under tissue."""
        centres, rows, columns = lattice(self.config.spots, self.config.anatomy.side_um)
        keep = self.footprint.mean(self.tissue.cover, centres) >= self.config.spots.min_tissue
        return centres[keep], rows[keep], columns[keep]

    @property
    def centres_um(self) -> NDArray[np.float64]:
        """(n, 2) true centres of the locations under tissue."""
        return self.places[0]

    def over_locations(self, fields: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n, k) means of k maps over each location."""
        return np.stack([self.footprint.mean(field, self.centres_um) for field in fields], 1)

    @cached_property
    def domain_shares(self) -> NDArray[np.float64]:
        """(n, len(DOMAINS))"""
        shares = self.over_locations(self.tissue.domains)
        return np.asarray(shares / shares.sum(1, keepdims=True))

    @cached_property
    def states(self) -> NDArray[np.float64]:
        """(n, len(STATES))"""
        return self.over_locations(self.tissue.states)

    @cached_property
    def cells_by_type(self) -> NDArray[np.float64]:
        """(n, types) number of cells in each location."""
        kinds = sp.csr_matrix(np.eye(len(CELL_TYPES))[self.tissue.cells.kind])
        return np.asarray((membership(self.tissue.cells, self.centres_um, self.config.spots, 0.0) @ kinds).toarray())

    @cached_property
    def expected(self) -> NDArray[np.float64]:
        """(n, genes) expected counts, before the noise of counting."""
        if self.config.spots.is_square:
            return expected_bins(self).astype(np.float64)
        knobs = self.config.molecules
        reach = membership(self.tissue.cells, self.centres_um, self.config.spots, knobs.bleed_um)
        caught = np.unique(reach.indices).astype(np.int64)
        debris = self.footprint.mean(self.tissue.compartments.debris, self.centres_um)
        content = DEBRIS_RNA * np.outer(debris, self.world.debris)
        near = neighbour_shares(self.tissue.cells, self.config.molecules.niche_um, caught)
        by_cell = reach.tocsc()
        for start in range(0, len(caught), _CELLS_AT_ONCE):
            part = caught[start : start + _CELLS_AT_ONCE]
            content += by_cell[:, part] @ expected_of_cells(
                self.config, self.world, self.tissue.cells, self.rna, near, part
            )
        return expected_counts(
            self.config, self.world, self.chemistry, content, stream(self.config.seed, "depth", *self.keys)
        )

    # ---- labels and niches

    @cached_property
    def labels(self) -> NDArray[np.object_]:
        """(n,) the domain that an annotator gives each location, "" where none was given."""
        knobs, score = self.config.labels, self.domain_shares
        if knobs.region_um:
            step_um = self.tissue.step_um * _COARSE
            # A coarse cell's mean: the filter of an even size reaches half of it back.
            coarse = [
                uniform_filter(d, _COARSE)[_COARSE // 2 :: _COARSE, _COARSE // 2 :: _COARSE]
                for d in self.tissue.domains
            ]
            blurred = [gaussian_filter(domain, knobs.region_um / step_um) for domain in coarse]
            score = np.stack([sample(domain, self.centres_um, step_um) for domain in blurred], 1).astype(np.float64)
        if knobs.annotator:
            rng, step_um = stream(self.config.seed, "annotator", *self.keys), self.tissue.step_um
            side = len(self.tissue.cover)
            bias = [
                sample(smooth_noise(rng, side, step_um, knobs.annotator_um), self.centres_um, step_um) for _ in DOMAINS
            ]
            noticed = score >= _NOTICED
            score = np.where(
                noticed, np.log(np.maximum(score, _NOTICED)) + knobs.annotator * np.stack(bias, 1), -np.inf
            )
        names = np.array(DOMAINS, dtype=object)[score.argmax(1)]
        left_out = stream(self.config.seed, "unlabelled", *self.keys).random(len(names)) < knobs.unlabelled
        return np.where(left_out, "", names)

    @cached_property
    def phenotype(self) -> NDArray[np.float64]:
        """(n,) a weighted sum of the three kinds of states; the weights are `Labels.phenotype`."""
        weights, total = self.config.labels.phenotype, np.zeros(len(self.centres_um))
        for names, weight in (
            (SHARED_STATES, weights.shared),
            (MORPHOLOGY_STATES, weights.morphology_only),
            (EXPRESSION_STATES, weights.expression_only),
        ):
            columns = [STATES.index(name) for name in names]
            total += weight * self.states[:, columns].sum(1) / np.sqrt(len(columns))
        return total

    @cached_property
    def niches(self) -> NDArray[np.float64]:
        """(n, niches) what calls each niche up: mean over the location's cells that answer; 0 where there is none."""
        knobs, cells = self.config.molecules, self.tissue.cells
        inside = membership(cells, self.centres_um, self.config.spots, 0.0)
        chosen = np.unique(inside.indices).astype(np.int64)
        near = neighbour_shares(cells, knobs.niche_um, chosen)
        values = np.zeros((len(self.centres_um), len(NICHES)))
        for column, (receiver, caller, _) in enumerate(NICHES.values()):
            answers = (cells.kind == CELL_TYPES.index(receiver)).astype(np.float64)
            total = inside @ (answers * near[:, CELL_TYPES.index(caller)])
            values[:, column] = total / np.maximum(inside @ answers, 1)
        return values

    @cached_property
    def table(self) -> ad.AnnData:
        """Counts, words and truth, as `SectionDraft` asks for."""
        return build_table(self)

    @property
    def truth_columns(self) -> dict[str, list[str]]:
        """Names of the columns of the table's `truth_` arrays."""
        return {key: list(names) for key, names in TRUTH_COLUMNS.items()}

    @property
    def subtype(self) -> str:
        """Name of the patient's subtype."""
        return SUBTYPES[self.person.subtype]
