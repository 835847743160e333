"""Single molecules: where each transcript lies, which gene it is and how well it was decoded.

A cell of relative RNA 1 gives `Transcripts.per_cell` molecules over all genes, times the patient's depth relative to
the world's median and times the section's gene offsets; counts are negative binomial. Molecules fill nucleus and
cytoplasm evenly, scatter and diffuse. Beside the cells' there are molecules of necrotic debris
and, by `Molecules.ambient`, ones of the section's mean profile anywhere on tissue.

`xenium` sees the genes of a panel, decodes them with a quality value and calls control features; `visium-hd` sees the
whole transcriptome.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triglyph.errors import RecipeError
from triglyph.tissue.simulate.anatomy.outlines import assign, body_radius
from triglyph.tissue.simulate.anatomy.tissue import Cells
from triglyph.tissue.simulate.fields import Field
from triglyph.tissue.simulate.knobs.names import CELL_TYPES
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.molecules.counts import DEBRIS_RNA
from triglyph.tissue.simulate.molecules.programs import (
    HOUSEKEEPING,
    MARKERS,
    NECROSIS,
    NICHES,
    PROGRAMMES,
    gene_symbols,
)
from triglyph.tissue.simulate.streams import stream

if TYPE_CHECKING:
    from triglyph.tissue.simulate.specimen import Specimen

KINDS = ("gene", "control probe", "control codeword", "blank")
GENE, PROBE, CODEWORD, BLANK = range(len(KINDS))
CONTROLS: dict[int, tuple[str, ...]] = {
    PROBE: tuple(f"NegControlProbe_{i + 1:05d}" for i in range(20)),
    CODEWORD: tuple(f"NegControlCodeword_{i + 500:04d}" for i in range(40)),
    BLANK: tuple(f"UnassignedCodeword_{i + 1:04d}" for i in range(60)),
}
"""Names of the features that stand for no gene."""
QUALITY = 20.0
"""Molecules decoded at least this well are counted."""
DEBRIS_PER_UM2 = DEBRIS_RNA / (np.pi * 27.5**2)
"""Relative RNA of debris per µm²; `DEBRIS_RNA` is that of a spot of 55 µm."""
_BEST_QUALITY = 40.0
_BEST_SHARE = 0.6
_CONTROL_SHARES = (0.7, 0.15, 0.15)
_CONTROL_LOW_QUALITY = 0.6
"""Controls are mostly badly decoded."""
_CELLS_AT_ONCE = 1024


@dataclass(frozen=True)
class Molecules:
    """Molecules of one section; every array has one row per molecule."""

    symbols: tuple[str, ...]
    """Genes of the world."""
    xy_um: NDArray[np.float64]
    """(n, 2) true places in the tissue's frame."""
    gene: NDArray[np.int32]
    """(n,) index into `symbols`, or into `CONTROLS[kind]` where `kind` is not `GENE`."""
    kind: NDArray[np.int8]
    """(n,) index into `KINDS`."""
    source: NDArray[np.int32]
    """(n,) the cell that made it; -1 for debris, ambient RNA and controls."""
    qv: NDArray[np.float32]
    """(n,) quality of decoding, 0 to 40; NaN on `visium-hd`, which decodes nothing."""
    cell: NDArray[np.int32]
    """(n,) the cell it falls in, as `outlines.assign` has it; -1 for none, and always on `visium-hd`."""
    nucleus_um: NDArray[np.float32]
    """(n,) distance from the nearest nucleus, 0 inside; NaN on `visium-hd`."""

    def __len__(self) -> int:
        return len(self.gene)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """(n,) genes that are decoded well enough to be counted."""
        return (self.kind == GENE) & ~(self.qv < QUALITY)

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Molecules:
        """Some of the molecules."""
        return Molecules(self.symbols, *(getattr(self, f.name)[chosen] for f in fields(self)[1:]))


def panel(config: Simulation, patient: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The genes that `xenium` looks for in a patient.

    Returns
    -------
    tuple
        (genes,) the core panel, the same for everybody: markers of all cell types in turn, then programmes, niches and
        the rest; (genes,) the add-on panel, empty for patients that do not have it.
    """
    knobs, symbols = config.transcripts, gene_symbols(config.molecules.filler_genes)
    position = {symbol: i for i, symbol in enumerate(symbols)}
    order = np.array([position[symbol] for symbol in _panel_order(symbols)])
    core, addon = np.zeros((2, len(symbols)), dtype=bool)
    core[order[: knobs.core_panel]] = True
    if stream(config.seed, "panel", patient).random() < knobs.addon_share:
        addon[order[knobs.core_panel : knobs.core_panel + knobs.addon_panel]] = True
    return core, addon


def measured_genes(config: Simulation, patient: int) -> NDArray[np.bool_]:
    """(genes,) whether the platform looks for the gene in that patient."""
    return np.logical_or.reduce(list(_parts(config, patient).values()))


def draw_transcripts(specimen: Specimen) -> Molecules:
    """All molecules of a section that its platform sees.

    Those of the core panel are the same whether or not the patient has the add-on panel.

    Raises
    ------
    RecipeError
        The platform sees no single molecules.
    """
    config, seed = specimen.config, specimen.config.seed
    check_platform(config)
    parts = {
        name: _Part(np.flatnonzero(mask), stream(seed, f"transcripts {name}", *specimen.keys))
        for name, mask in _parts(config, specimen.patient).items()
    }
    for chosen, rates in rates_of_cells(specimen):
        for part in parts.values():
            part.add(_of_cells(specimen, chosen, rates[:, part.genes], part), config)
            part.total += rates[:, part.genes].sum(0)
    for part in parts.values():
        part.add(_of_no_cell(specimen, part), config)
    batches = [batch for part in parts.values() for batch in part.batches]
    if config.spots.platform == "xenium":
        batches.append(_controls(specimen, sum(len(batch.gene) for batch in batches)))
    xy_um, gene, kind, source, qv = (np.concatenate(column) for column in zip(*batches, strict=True))
    if config.spots.platform == "xenium":
        cell, nucleus_um = assign(specimen.tissue.cells, xy_um)
    else:
        qv = np.full(len(gene), np.nan, dtype=np.float32)
        cell, nucleus_um = np.full(len(gene), -1, dtype=np.int32), np.full(len(gene), np.nan, dtype=np.float32)
    drawn = Molecules(specimen.world.symbols, xy_um, gene, kind, source, qv, cell, nucleus_um)
    # What diffuses out of the frame was never imaged.
    inside = (xy_um >= 0) & (xy_um < config.anatomy.side_um)
    return drawn.take(inside[:, 0] & inside[:, 1])


# ---- what is expected


def check_platform(config: Simulation) -> None:
    """Refuse platforms that sum molecules over round spots.

    Raises
    ------
    RecipeError
        It is one of them.
    """
    if not config.spots.is_square:
        raise RecipeError(
            f"{config.spots.platform} sees no single molecules",
            where=f"simulation {config.name!r}, spots.platform",
            mend="choose visium-hd or xenium",
        )


def efficiency(specimen: Specimen) -> NDArray[np.float64]:
    """(genes,) molecules seen per unit of relative RNA: depth of the patient, and the section's gene offsets."""
    config, chemistry = specimen.config, specimen.chemistry
    offset, profile = np.exp(chemistry.gene_offset), specimen.world.profile.mean(0)
    depth = chemistry.depth / config.molecules.median_depth
    # Offsets change genes against each other and leave the depth as it is.
    return np.asarray(config.transcripts.per_cell * depth * offset / (profile * offset).sum())


def rates_of_cells(specimen: Specimen) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Cells, some at a time, and their expected molecules (cells, genes)."""
    seen = efficiency(specimen)
    for start in range(0, len(specimen.tissue.cells), _CELLS_AT_ONCE):
        chosen = np.arange(start, min(start + _CELLS_AT_ONCE, len(specimen.tissue.cells)))
        yield chosen, specimen.expected_of_cells(chosen) * seen


def ambient_rates(config: Simulation, total: NDArray[np.float64]) -> NDArray[np.float64]:
    """(genes,) expected molecules of the section's mean profile, given all that cells are expected to give."""
    share = config.molecules.ambient
    return share / (1 - share) * total


def around_nuclei(
    config: Simulation,
    cells: Cells,
    chosen: NDArray[np.int64],
    turn: NDArray[np.float64],
    out: NDArray[np.float64],
    scatter: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Places of molecules before they diffuse.

    Parameters
    ----------
    chosen
        (n,) the cell of each molecule.
    turn, out, scatter
        (n,) direction in radians; share of the cell's body that lies further in, 0 to 1; standard normal departure.

    Returns
    -------
    NDArray
        (n, 2)
    """
    cytoplasm = np.array([config.anatomy.nuclei[name].cytoplasm_um for name in CELL_TYPES])[cells.kind[chosen]]
    # Half the rim: neighbours in epithelium are packed so that their rims overlap by as much.
    body = body_radius(cells, chosen, turn) + cytoplasm / 2
    radius = body * np.sqrt(out) + config.transcripts.spread_um * scatter
    return cells.xy_um[chosen] + np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)


# ---- draws


class _Batch(NamedTuple):
    """Molecules drawn at once."""

    xy_um: NDArray[np.float64]
    gene: NDArray[np.int32]
    kind: NDArray[np.int8]
    source: NDArray[np.int32]
    qv: NDArray[np.float32]


class _Part:
    """Genes whose molecules are drawn together, from a stream of their own."""

    def __init__(self, genes: NDArray[np.int64], rng: np.random.Generator) -> None:
        self.genes, self.rng = genes, rng
        self.total = np.zeros(len(genes))
        self.batches: list[_Batch] = []

    def add(self, found: tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]], config: Simulation) -> None:
        """Give quality values to molecules (place, position in `genes`, source) and keep them."""
        xy_um, gene, source = found
        qv = _quality(len(gene), config.transcripts.low_quality, self.rng)
        kind = np.full(len(gene), GENE, dtype=np.int8)
        self.batches.append(_Batch(xy_um, self.genes[gene].astype(np.int32), kind, source.astype(np.int32), qv))


def _of_cells(
    specimen: Specimen, chosen: NDArray[np.int64], rates: NDArray[np.float64], part: _Part
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Molecules of the cells `chosen`."""
    config, rng, dispersion = specimen.config, part.rng, specimen.config.molecules.dispersion
    number = rng.poisson(rng.gamma(1 / dispersion, dispersion * rates) if dispersion else rates)
    row, gene = np.nonzero(number)
    row, gene = (np.repeat(index, number[number > 0]) for index in (row, gene))
    turn, out = rng.uniform(0, 2 * np.pi, len(row)), rng.random(len(row))
    xy_um = around_nuclei(config, specimen.tissue.cells, chosen[row], turn, out, rng.standard_normal(len(row)))
    return xy_um + config.transcripts.bleed_um * rng.standard_normal(xy_um.shape), gene, chosen[row]


def _of_no_cell(specimen: Specimen, part: _Part) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Ambient molecules anywhere on tissue, and those of debris where it lies."""
    tissue, rng = specimen.tissue, part.rng
    lost = rng.poisson(ambient_rates(specimen.config, part.total))
    debris = tissue.compartments.debris
    amount = DEBRIS_PER_UM2 * float(debris.sum(dtype=np.float64)) * tissue.step_um**2
    dead = rng.poisson(amount * (specimen.world.debris * efficiency(specimen))[part.genes])
    gene = np.concatenate([np.repeat(np.arange(len(part.genes)), number) for number in (lost, dead)])
    places = [
        _scattered(field, int(number.sum()), tissue.step_um, rng)
        for field, number in ((tissue.cover, lost), (debris, dead))
    ]
    return np.concatenate(places), gene, np.full(len(gene), -1)


def _controls(specimen: Specimen, molecules: int) -> _Batch:
    """Calls of features that stand for no gene, anywhere on tissue."""
    config = specimen.config
    rng, share = stream(config.seed, "transcripts controls", *specimen.keys), config.transcripts.control
    number = int(rng.poisson(share / (1 - share) * molecules))
    kind = rng.choice(list(CONTROLS), number, p=_CONTROL_SHARES).astype(np.int8)
    features = np.array([len(CONTROLS.get(k, ())) for k in range(len(KINDS))])
    gene = np.floor(rng.random(number) * features[kind]).astype(np.int32)
    xy_um = _scattered(specimen.tissue.cover, number, specimen.tissue.step_um, rng)
    nobody = np.full(number, -1, dtype=np.int32)
    return _Batch(xy_um, gene, kind, nobody, _quality(number, _CONTROL_LOW_QUALITY, rng))


def _quality(number: int, low: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Quality values, of which the share `low` lies below `QUALITY`; most of the others are the best there is."""
    lot, value = rng.random((2, number))
    good = np.where(lot < low + (1 - low) * _BEST_SHARE, _BEST_QUALITY, QUALITY + (_BEST_QUALITY - QUALITY) * value)
    # Below the threshold by more than rounding to 32 bits could make up for.
    return np.where(lot < low, (QUALITY - 1e-3) * value, good).astype(np.float32)


def _scattered(weight: Field, number: int, step_um: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """(number, 2) places drawn in proportion to a map."""
    edge = np.cumsum(weight.ravel(), dtype=np.float64)
    index = np.searchsorted(edge, rng.random(number) * edge[-1], side="right")
    index = np.minimum(index, weight.size - 1)
    rows, columns = np.divmod(index, weight.shape[1])
    return (np.stack([columns, rows], 1) + rng.random((number, 2))) * step_um


def _parts(config: Simulation, patient: int) -> dict[str, NDArray[np.bool_]]:
    """Genes by the stream that draws them."""
    if config.spots.platform != "xenium":
        return {"all": np.ones(len(gene_symbols(config.molecules.filler_genes)), dtype=bool)}
    core, addon = panel(config, patient)
    return {"core": core, "add-on": addon}


def _panel_order(symbols: tuple[str, ...]) -> list[str]:
    """Genes in the order in which a panel takes them up."""
    groups = [
        [text.split() for text in MARKERS.values()],
        [text.split() for _, text in PROGRAMMES.values()],
        [text.split() for *_, text in NICHES.values()],
        [NECROSIS.split()],
        [HOUSEKEEPING.split()],
        [list(symbols)],
    ]
    order: dict[str, None] = {}
    for lists in groups:
        # The first of every list, then the second: no cell type is left to the end.
        for place in range(max(map(len, lists))):
            order.update((genes[place], None) for genes in lists if place < len(genes))
    return list(order)
