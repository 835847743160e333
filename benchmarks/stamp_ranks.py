"""How much later genes of a list should weigh, chosen on training patients without a label.

    uv run python benchmarks/stamp_ranks.py COHORT --split NAME [--decays 10 30 100 none] [--genes 500] [--dim 32]

`rank_decay` of the encoder `stamp-genes` says how fast the weight of a gene falls with its rank. Where counts are few,
which genes were found at all says most; where they are many, which of them lead does. What is best for a cohort can be
seen on its training patients: the embedding of a location should tell what its *neighbours* express.

For every fold of the split, the training patients are divided into groups of whole patients (four, or one each). Genes,
means and the contextual axes (`objectives/spectral.py`) are learnt on the others, a ridge is fitted from a location's
place on the axes to its neighbours' mean log expression, and the Pearson correlation within the sections of the group
left out is averaged over genes, sections and groups. No label and no test patient is seen. Sections without places tell
nothing and are left out; splits within sections are refused. The target is the same for
all decays: the 300 commonest genes that all sections measure, log1p of counts per 10,000.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from triglyph.bench.genes import common_genes
from triglyph.bench.ridge import fit_ridge
from triglyph.encoders.base import Expression
from triglyph.encoders.packed import pack
from triglyph.encoders.stamp import StampGenes
from triglyph.errors import ContractError
from triglyph.metrics.correlation import mean_defined, pearson
from triglyph.metrics.expression import log1p_cp10k
from triglyph.objectives.spectral import ADJACENT, Sampled, contextual_axes, gene_shares
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.section import Section
from triglyph.tissue.surroundings import surroundings

Floats = NDArray[np.float64]
GROUPS, TARGETS = 4, 300


def neighbours_expression(sections: Sequence[Section]) -> dict[str, Floats]:
    """Section id -> (n, `TARGETS`) what the neighbours of each location express on the mean; NaN where it has none."""
    common = common_genes(sections)
    counts = {}
    for section in sections:
        matrix, symbols, _, _ = section.expression()
        column = {symbol: k for k, symbol in enumerate(symbols)}
        counts[section.id] = matrix[:, [column[symbol] for symbol in common]]
    found_at = sum(np.asarray((matrix > 0).sum(axis=0)).ravel() for matrix in counts.values())
    chosen = np.argsort(-found_at, kind="stable")[:TARGETS]
    out = {}
    for section in sections:
        depth = np.asarray(counts[section.id].sum(axis=1)).ravel()
        logs = log1p_cp10k(counts[section.id][:, chosen], totals=depth).toarray()
        around = surroundings(section.centres_um, pitches=ADJACENT, itself=False)
        alone = np.diff(around.indptr) == 0
        out[section.id] = np.where(alone[:, None], np.nan, around @ logs)
    return out


def told(
    train: Sequence[Section],
    test: Sequence[Section],
    targets: dict[str, Floats],
    *,
    decay: float | None,
    genes: int,
    dim: int,
) -> float:
    """How well the axes of training sections tell the neighbours' expression in others."""
    encoder = StampGenes(dim=dim, heads=1, depth=1, genes=genes, max_tokens=genes, rank_decay=decay)
    encoder.fit([Expression(*section.expression()) for section in train])

    def sampled(number: int, section: Section) -> Sampled:
        inputs = encoder.prepare(Expression(*section.expression()))
        ids, lengths = pack(inputs["ids"], inputs["mask"])
        shares = gene_shares(ids, lengths, encoder.n_tokens, weights=encoder.rank_weights(lengths))
        return Sampled(shares, np.full(section.n_locations, number), section.centres_um)

    pieces = [sampled(number, section) for number, section in enumerate((*train, *test))]
    axes = contextual_axes(pieces[: len(train)], dim=dim).astype(np.float64)

    def asked(piece: Sampled, section: Section) -> tuple[Floats, Floats]:
        placed = np.asarray(piece.shares @ axes, dtype=np.float64)
        known = np.isfinite(targets[section.id]).all(axis=1)
        x, y = placed[known], targets[section.id][known]
        return x - x.mean(axis=0), y - y.mean(axis=0)

    pairs = [asked(piece, section) for piece, section in zip(pieces, (*train, *test), strict=True)]
    predict = fit_ridge(pairs[: len(train)])
    return float(np.mean([mean_defined(pearson(predict(x), y)).value for x, y in pairs[len(train) :]]))


def chosen_decay(sections: Sequence[Section], *, decays: Sequence[float | None], genes: int, dim: int) -> Floats:
    """(decays,) correlation with what neighbours express, mean over groups of patients that are left out in turn."""
    placed = [section for section in sections if np.isfinite(section.centres_um).any()]
    people = sorted({section.patient for section in placed})
    if len(people) < 2:
        raise ContractError(
            f"{len(people)} training patients have sections with places", mend="choose on two patients or more"
        )
    parts = [people[k::GROUPS] for k in range(min(GROUPS, len(people)))]
    targets = neighbours_expression(placed)
    scores = np.empty((len(parts), len(decays)))
    for row, aside in enumerate(parts):
        train = [section for section in placed if section.patient not in aside]
        test = [section for section in placed if section.patient in aside]
        for column, decay in enumerate(decays):
            scores[row, column] = told(train, test, targets, decay=decay, genes=genes, dim=dim)
    return np.asarray(scores.mean(axis=0))


def main() -> None:
    """Print each fold's correlations, and the decay that is best there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--split", required=True)
    parser.add_argument("--decays", nargs="+", default=["10", "30", "100", "none"])
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--dim", type=int, default=32)
    asked = parser.parse_args()
    torch.set_grad_enabled(False)
    cohort = Cohort.open(asked.cohort)
    decays = [None if text == "none" else float(text) for text in asked.decays]
    split = cohort.split(asked.split)
    if split.level != "patient":
        parser.error(f"--split {asked.split} is of the level {split.level}; choose on training patients")
    print(f"{'fold':12s}" + "".join(f"{text:>9}" for text in asked.decays) + "   best")
    for fold in split.folds:
        sections = [cohort[name] for name in fold.train]
        scores = chosen_decay(sections, decays=decays, genes=asked.genes, dim=asked.dim)
        best = asked.decays[int(scores.argmax())]
        print(f"{fold.name or '-':12s}" + "".join(f"{score:9.4f}" for score in scores) + f"   {best}", flush=True)


if __name__ == "__main__":
    main()
