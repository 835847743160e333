"""Gene sets of a simulated world: the true ones, versions that are partly wrong, and shuffled ones as a control.

A method that is told gene sets should gain from true ones, lose little where some members are wrong or missing and
some sets are about something else, and gain nothing from sets of the same sizes and overlaps over other genes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from triglyph.genes.gmt import GeneSet, write_gmt
from triglyph.storage import atomic_file
from triglyph.tissue.simulate.knobs.names import CELL_TYPES
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.knobs.states import STATES, Dial
from triglyph.tissue.simulate.molecules.expression import build_world
from triglyph.tissue.simulate.molecules.programs import MARKERS, NICHES, PROGRAMMES, gene_symbols
from triglyph.tissue.simulate.streams import stream

VERSIONS = ("true", "corrupted", "shuffled")
DAMAGED = 0.3
"""Share of the true members of a set that are missing or replaced in `corrupted`; half of them each."""
IRRELEVANT = 0.2
"""Share of the sets of `corrupted` that are random genes under a plausible name."""
_LEAST = 0.25
"""A gene is a member if a programme raises it by at least this share of what it does to a named gene."""
_PLAUSIBLE = {
    "PROGRAMME_ANGIOTENSIN_SIGNALLING": "response to angiotensin",
    "PROGRAMME_BILE_ACID_TRANSPORT": "transport of bile acids",
    "PROGRAMME_CILIUM_ASSEMBLY": "assembly of motile cilia",
    "PROGRAMME_OLFACTORY_RECEPTION": "reception of odours",
    "PROGRAMME_NOTOCHORD_DEVELOPMENT": "development of the notochord",
    "PROGRAMME_STEROL_SECRETION": "secretion of sterols",
    "CELLS_KERATINOCYTE": "markers of keratinocytes",
    "CELLS_SCHWANN_CELL": "markers of Schwann cells",
    "CELLS_CHONDROCYTE": "markers of chondrocytes",
    "CELLS_GOBLET_CELL": "markers of goblet cells",
    "NICHE_PERINEURAL_SPREAD": "genes of tumour along nerves",
    "NICHE_HYPOXIC_RIM": "genes of cells at the edge of dying tissue",
}


def gene_sets(config: Simulation) -> dict[str, GeneSet]:
    """The true sets by name: markers of each cell type, members of each programme and of each niche programme.

    Members of programmes include the filler genes that it raises in the common world. Neither the dial nor the
    strength of programmes or niches changes a set: a set may be true and without effect.
    """
    sets = [
        GeneSet(_name("CELLS", kind), f"markers of {kind} cells", tuple(MARKERS[kind].split())) for kind in CELL_TYPES
    ]
    plain = {"dial": Dial(), "molecules": config.molecules.model_copy(update={"state": 1.0})}
    world = build_world(config.model_copy(update=plain))
    filler = np.array([symbol not in set(gene_symbols()) for symbol in world.symbols])
    for state, (types, text) in PROGRAMMES.items():
        raised = (world.loading[:, STATES.index(state)] >= _LEAST).any(0) & filler
        genes = (*text.split(), *np.array(world.symbols)[raised].tolist())
        sets.append(GeneSet(_name("PROGRAMME", state), f"{state} in {', '.join(types)} cells", genes))
    for niche, (receiver, caller, text) in NICHES.items():
        sets.append(GeneSet(_name("NICHE", niche), f"{receiver} cells with {caller} cells around", tuple(text.split())))
    return {found.name: found for found in sets}


def corrupted_gene_sets(config: Simulation) -> dict[str, GeneSet]:
    """The true sets with `DAMAGED` of their members missing or replaced, and `IRRELEVANT` of all sets about nothing."""
    true, symbols = gene_sets(config), np.array(gene_symbols(config.molecules.filler_genes), dtype=object)
    rng = stream(config.seed, "corrupted gene sets")
    sets = []
    for given in true.values():
        damaged = round(DAMAGED * len(given.genes))
        order = rng.permutation(len(given.genes))
        missing, wrong = order[: damaged // 2], order[damaged // 2 : damaged]
        others = symbols[~np.isin(symbols, given.genes)]
        genes = np.array(given.genes, dtype=object)
        genes[wrong] = rng.choice(others, len(wrong), replace=False)
        sets.append(given._replace(genes=tuple(np.delete(genes, missing).tolist())))
    number = round(len(true) * IRRELEVANT / (1 - IRRELEVANT))
    sizes = rng.choice([len(given.genes) for given in true.values()], number)
    for name, size in zip(rng.permutation(sorted(_PLAUSIBLE))[:number].tolist(), sizes.tolist(), strict=True):
        sets.append(GeneSet(name, _PLAUSIBLE[name], tuple(rng.choice(symbols, size, replace=False).tolist())))
    # A reader must not tell the irrelevant ones by their place.
    return {sets[i].name: sets[i] for i in rng.permutation(len(sets))}


def shuffled_gene_sets(config: Simulation) -> dict[str, GeneSet]:
    """The true sets after one permutation of all genes: names, sizes and overlaps stay, members do not."""
    symbols = gene_symbols(config.molecules.filler_genes)
    order: NDArray[np.int64] = stream(config.seed, "shuffled gene sets").permutation(len(symbols))
    other = dict(zip(symbols, (symbols[i] for i in order), strict=True))
    return {
        name: given._replace(genes=tuple(other[gene] for gene in given.genes))
        for name, given in gene_sets(config).items()
    }


def gene_set_truth(config: Simulation) -> pd.DataFrame:
    """What became of every gene of every set.

    Returns
    -------
    DataFrame
        Columns `version` (of `VERSIONS`), `set`, `gene`, `what`: `true`, `missing` (a true member that the version
        lacks), `wrong` (no true member), `irrelevant` (of a set that is about nothing).
    """
    true, rows = gene_sets(config), []
    versions = (true, corrupted_gene_sets(config), shuffled_gene_sets(config))
    for version, sets in zip(VERSIONS, versions, strict=True):
        for name, given in sets.items():
            members = set(true[name].genes) if name in true else None
            for gene in given.genes:
                what = "irrelevant" if members is None else "true" if gene in members else "wrong"
                rows.append((version, name, gene, what))
            for gene in true[name].genes if name in true else ():
                if gene not in given.genes:
                    rows.append((version, name, gene, "missing"))
    return pd.DataFrame(rows, columns=["version", "set", "gene", "what"])


def write_gene_sets(config: Simulation, folder: Path) -> Path:
    """Write `genesets/{true,corrupted,shuffled}.gmt` and `genesets/truth.csv` into `folder`.

    Returns
    -------
    Path
        The folder `genesets`.

    Raises
    ------
    StorageError
        The disk is full or read-only.
    """
    target = Path(folder) / "genesets"
    versions = (gene_sets(config), corrupted_gene_sets(config), shuffled_gene_sets(config))
    for version, sets in zip(VERSIONS, versions, strict=True):
        write_gmt(sets.values(), target / f"{version}.gmt")
    with atomic_file(target / "truth.csv") as partial:
        partial.write_bytes(gene_set_truth(config).to_csv(index=False, lineterminator="\n").encode())
    return target


def _name(kind: str, text: str) -> str:
    return f"{kind}_{text.upper().replace(' ', '_')}"
