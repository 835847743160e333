"""Square bins: what a lattice of squares counts of single molecules, and what it is expected to count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import ndtr

from triglyph.errors import ContractError
from triglyph.tissue.simulate.locations import lattice
from triglyph.tissue.simulate.molecules.transcripts import (
    DEBRIS_PER_UM2,
    GENE,
    Molecules,
    ambient_rates,
    around_nuclei,
    check_platform,
    draw_transcripts,
    efficiency,
    measured_genes,
    rates_of_cells,
)

if TYPE_CHECKING:
    from triglyph.tissue.simulate.specimen import Specimen

# Nodes that integrate over a molecule's place: directions around the nucleus, two of Gauss and Legendre over the body,
# three of Gauss and Hermite for the scatter. Diffusion is integrated exactly.
_DIRECTIONS = 12
_OUT = (0.2113248654, 0.7886751346)
_SCATTER = (-np.sqrt(3.0), 0.0, np.sqrt(3.0))
_SCATTER_WEIGHT = (1 / 6, 2 / 3, 1 / 6)
_BINS_AT_ONCE = 4096


def binned(
    molecules: Molecules, centres_um: NDArray[np.float64], side_um: float, *, pitch_um: float | None = None
) -> sp.csr_matrix:
    """Counts of molecules in square bins on a lattice; each molecule falls in one bin at most.

    A bin holds its left and upper border. Over bins that cover everything the counts add up to the number of
    molecules, and bins whose sides are multiples of each other nest exactly.

    Parameters
    ----------
    molecules
        Genes alone, such as `molecules.take(molecules.seen)`.
    centres_um
        (bins, 2) centres, on a square lattice; some of its places may be missing.
    side_um
        Side of a bin.
    pitch_um
        Distance of neighbouring centres; the side by default.

    Returns
    -------
    csr_matrix
        (bins, genes) int32.

    Raises
    ------
    ContractError
        The bins overlap or lie on no such lattice, or there are molecules that are no genes.
    """
    pitch = side_um if pitch_um is None else pitch_um
    where, shape = "the bins of single molecules", (len(centres_um), len(molecules.symbols))
    if (molecules.kind != GENE).any():
        raise ContractError("control features have no column", where=where, mend="take molecules.seen first")
    if pitch < side_um:
        raise ContractError(f"bins of {side_um} µm overlap at a pitch of {pitch} µm", where=where, mend="part them")
    if not len(centres_um):
        return sp.csr_matrix(shape, dtype=np.int32)
    first = centres_um.min(0)
    place = np.round((centres_um - first) / pitch).astype(np.int64)
    if np.abs(first + place * pitch - centres_um).max() > 1e-3 * pitch:
        raise ContractError(f"centres lie on no lattice of {pitch} µm", where=where, mend="give the true centres")
    bin_at = _lookup(place, *(place.max(0) + 1))
    steps = (molecules.xy_um - (first - side_um / 2)) / pitch
    index = np.floor(steps).astype(np.int64)
    inside = ((index >= 0) & (index < bin_at.shape[::-1])).all(1)
    if pitch > side_um:
        inside &= ((steps - index) * pitch < side_um).all(1)
    rows = bin_at[index[inside, 1], index[inside, 0]]
    columns = molecules.gene[inside][rows >= 0]
    rows = rows[rows >= 0]
    counts = sp.coo_matrix((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=shape).tocsr()
    counts.sort_indices()
    return counts


def bin_table(specimen: Specimen, molecules: Molecules | None = None) -> tuple[sp.csr_matrix, NDArray[np.bool_]]:
    """What the specimen's square locations count.

    Parameters
    ----------
    molecules
        As `draw_transcripts` gives them; drawn if not given.

    Returns
    -------
    tuple
        (locations, genes) int32 counts; (genes,) whether the platform looks for the gene.

    Raises
    ------
    RecipeError
        The platform sees no single molecules.
    """
    spots = specimen.config.spots
    molecules = draw_transcripts(specimen) if molecules is None else molecules
    seen = molecules.take(molecules.seen)
    counts = binned(seen, specimen.centres_um, spots.diameter_um, pitch_um=spots.pitch_um)
    return counts, measured_genes(specimen.config, specimen.patient)


def expected_bins(specimen: Specimen) -> NDArray[np.float32]:
    """(locations, genes) expected counts of the specimen's square locations, before any molecule is drawn.

    Genes off the panel have what they would have if they were on it.

    Raises
    ------
    RecipeError
        The platform sees no single molecules.
    """
    config, spots, tissue = specimen.config, specimen.config.spots, specimen.tissue
    check_platform(config)
    reach, total = _Reach(specimen), np.zeros(len(specimen.world.symbols))
    expected = np.zeros((len(specimen.centres_um), len(total)))
    for chosen, rates in rates_of_cells(specimen):
        for start in range(0, len(chosen), reach.cells_at_once):
            part = slice(start, start + reach.cells_at_once)
            caught = reach.shares(chosen[part])
            touched = np.flatnonzero(np.diff(caught.indptr))
            expected[touched] += caught[touched] @ rates[part]
        total += rates.sum(0)
    area = spots.diameter_um**2
    cover = specimen.footprint.mean(tissue.cover, specimen.centres_um)
    debris = specimen.footprint.mean(tissue.compartments.debris, specimen.centres_um)
    ambient = ambient_rates(config, total) / (float(tissue.cover.sum(dtype=np.float64)) * tissue.step_um**2)
    expected += area * np.outer(cover, ambient)
    expected += area * DEBRIS_PER_UM2 * np.outer(debris, specimen.world.debris * efficiency(specimen))
    if spots.platform == "xenium":
        expected *= 1 - config.transcripts.low_quality
    return expected.astype(np.float32)


class _Reach:
    """Which share of a cell's molecules is expected to land in each location."""

    def __init__(self, specimen: Specimen) -> None:
        self._config, self._cells = specimen.config, specimen.tissue.cells
        spots, centres = specimen.config.spots, specimen.centres_um
        everywhere, rows, columns = lattice(spots, specimen.config.anatomy.side_um)
        self._origin = everywhere.min(0) - spots.diameter_um / 2
        place = np.round((centres - everywhere.min(0)) / spots.pitch_um).astype(np.int64)
        self._at = _lookup(place, columns.max() + 1, rows.max() + 1)
        self._number = len(centres)
        self._far = 4 * max(specimen.config.transcripts.bleed_um, 1e-6) / spots.pitch_um
        self._steps = np.arange(int(np.ceil(2 * self._far)) + 1)
        # Small bins are many within reach: fewer cells then, for the same memory.
        self.cells_at_once = max(1, _BINS_AT_ONCE // len(self._steps) ** 2)

    def shares(self, chosen: NDArray[np.int64]) -> sp.csr_matrix:
        """(locations, chosen cells)"""
        spots, spread = self._config.spots, max(self._config.transcripts.bleed_um, 1e-6)
        points, weight = self._nodes(chosen)
        first = np.floor((points - self._origin) / spots.pitch_um - self._far).astype(np.int64)
        # (points, axis, steps): the bins that a point can reach along each axis, and its share in them.
        index = first[:, :, None] + self._steps
        left = index * spots.pitch_um + self._origin[:, None] - points[:, :, None]
        share = ndtr((left + spots.diameter_um) / spread) - ndtr(left / spread)
        both = weight[:, None, None] * share[:, 1, :, None] * share[:, 0, None, :]
        height, width = self._at.shape
        row, column = index[:, 1, :, None], index[:, 0, None, :]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        at = np.where(inside, self._at[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)], -1)
        point, *_ = keep = np.nonzero((at >= 0) & (both > 1e-9))
        owner = point // (len(points) // len(chosen))
        return sp.coo_matrix((both[keep], (at[keep], owner)), shape=(self._number, len(chosen))).tocsr()

    def _nodes(self, chosen: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Places around each cell, cell by cell, and their weights, which add up to 1 for each cell."""
        turns = (np.arange(_DIRECTIONS) + 0.5) * 2 * np.pi / _DIRECTIONS
        turn, out, scatter = (axis.ravel() for axis in np.meshgrid(turns, _OUT, _SCATTER, indexing="ij"))
        weight = np.tile(_SCATTER_WEIGHT, _DIRECTIONS * len(_OUT)) / (_DIRECTIONS * len(_OUT))
        number = len(chosen)
        around = (np.tile(axis, number) for axis in (turn, out, scatter))
        points = around_nuclei(self._config, self._cells, np.repeat(chosen, len(turn)), *around)
        return points, np.tile(weight, number)


def _lookup(place: NDArray[np.int64], width: int, height: int) -> NDArray[np.int64]:
    """(height, width) number of the location at each place (column, row) of the lattice, -1 for none."""
    at = np.full((height, width), -1)
    at[place[:, 1], place[:, 0]] = np.arange(len(place))
    return at


def effective_dispersion(specimen: Specimen) -> float:
    """Overdispersion of a location's counts around the expected ones: variance = mean + this x mean².

    A round spot's is `Molecules.dispersion` itself. In square bins that is the dispersion of a cell's counts. A bin
    that catches expected counts m_c of cell c, and m in all with ambient RNA and debris, which are Poisson, has
    dispersion x sum of m_c² / m²: less, the more cells share it. This is the median over the section's bins, for a gene
    that all cells express alike; one that few of a bin's cells express has more.
    """
    config, spots, tissue = specimen.config, specimen.config.spots, specimen.tissue
    dispersion = config.molecules.dispersion
    if not spots.is_square or not dispersion:
        return dispersion
    reach, rna = _Reach(specimen), specimen.rna
    amount, squares = np.zeros((2, len(specimen.centres_um)))
    for start in range(0, len(rna), reach.cells_at_once):
        chosen = np.arange(start, min(start + reach.cells_at_once, len(rna)))
        caught = reach.shares(chosen)
        amount += caught @ rna[chosen]
        squares += caught.power(2) @ rna[chosen] ** 2
    tissue_um2 = float(tissue.cover.sum(dtype=np.float64)) * tissue.step_um**2
    ambient = float(ambient_rates(config, rna.sum(keepdims=True))[0]) / tissue_um2
    cover = specimen.footprint.mean(tissue.cover, specimen.centres_um)
    debris = specimen.footprint.mean(tissue.compartments.debris, specimen.centres_um)
    amount += spots.diameter_um**2 * (ambient * cover + DEBRIS_PER_UM2 * debris)
    return float(dispersion * np.median(squares / np.maximum(amount, 1e-12) ** 2))
