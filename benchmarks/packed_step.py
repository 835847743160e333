"""A training step over packed sequences beside one over padded sequences, on real tissue, in one run.

    triglyph read DATA/her2st --platform st --out COHORT
    OMP_NUM_THREADS=1 uv run --no-sync python benchmarks/packed_step.py COHORT [--sections B1 ... B6] [--depth 12]

Locations are those of patient B of her2st; their genes are ranked as `stamp-genes` does it, up to 1,500 a location. A
step is a forward and a backward pass over 72 locations of all sections: embeddings, transformer, mean over real
tokens, and the mean square of its distance from fixed random targets. `padded` is PyTorch's `nn.TransformerEncoder`
with the same weights and a key padding mask, over lists padded to the longest of the batch. `filled` is the packed code
itself where every list is as long as the longest, pads taken for genes: what it gains over that, it gains from pads
alone, and the rest from attention without a mask over heads that lie together. Floor: 1.5 times padded on this patient,
and 0.8 of what padding allows.

What padding allows is arithmetic. A layer of width d and hidden width f multiplies 4 d² + 2 d f pairs of numbers for
every token (maps of attention, and the two of the hidden layer) and 2 d L² for a list of L (scores, and their use); the
backward pass is twice the forward one for both. So the work of n lists padded to M is n M (4 d² + 2 d f) + 2 d n M²,
packed it is the sum over lists of L (4 d² + 2 d f) + 2 d L², and their quotient is what leaving pads out can gain where
a multiplication costs the same everywhere. Norms, activations and additions go with tokens, and are not counted.

Seconds are CPU seconds of this process on one thread, the least of the rounds, which alternate: other work on the
machine stretches the clock on the wall. Widths are Stamp's; depth multiplies both sides, so few layers show the ratio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from triglyph.encoders.base import Expression
from triglyph.encoders.bert import masked_mean
from triglyph.encoders.packed import pack, segment_mean
from triglyph.encoders.stamp import StampGenes
from triglyph.tissue.cohort import Cohort

SECTIONS = ("B1", "B2", "B3", "B4", "B5", "B6")
BATCH, FLOOR, OF_ALLOWED = 72, 1.5, 0.8


def expressions(cohort: Path, sections: list[str]) -> list[Expression]:
    """Raw counts of every section."""
    opened = Cohort.open(cohort)
    return [Expression(*opened[name].expression()) for name in sections]


def batches(encoder: StampGenes, given: list[Expression], count: int) -> list[dict[str, Tensor]]:
    """Inputs of `count` batches of locations, drawn over all sections, cut to the longest of each."""
    prepared = [encoder.prepare(e) for e in given]
    limit = max(p["ids"].shape[1] for p in prepared)
    ids, mask = (
        torch.cat([nn.functional.pad(p[key], (0, limit - p[key].shape[1])) for p in prepared])
        for key in ("ids", "mask")
    )
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    found = []
    for rows in order.split(BATCH)[:count]:
        longest = int(mask[rows].sum(dim=1).max())
        found.append({"ids": ids[rows, :longest], "mask": mask[rows, :longest]})
    return found


def peer_of(encoder: StampGenes) -> nn.TransformerEncoder:
    """PyTorch's encoder with the weights of ours, in training mode."""
    o = encoder.options()
    layer = nn.TransformerEncoderLayer(
        o["dim"], o["heads"], o["feedforward"], dropout=0.0, batch_first=True, layer_norm_eps=1e-12
    )
    peer = nn.TransformerEncoder(layer, o["depth"], enable_nested_tensor=False)
    peer.load_state_dict(encoder.transformer.state_dict(), strict=True)
    return peer.train()


def work(lengths: Tensor, dim: int, feedforward: int) -> tuple[float, float]:
    """Multiplications of a layer for lists of these lengths: what goes with tokens, and what with their squares."""
    n = lengths.double()
    return float(n.sum()) * (4 * dim**2 + 2 * dim * feedforward), float((n**2).sum()) * 2 * dim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS))
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.manual_seed(0)
    encoder = StampGenes(depth=given.depth)
    tissue = expressions(given.cohort, given.sections)
    encoder.fit(tissue)
    encoder.train()
    peer = peer_of(encoder)
    targets = torch.randn(BATCH, encoder.card.dim)

    def packed(batch: dict[str, Tensor]) -> Tensor:
        ids, lengths = pack(batch["ids"], batch["mask"])
        return segment_mean(encoder.hidden(ids, lengths), lengths)

    def filled(batch: dict[str, Tensor]) -> Tensor:
        return packed({"ids": batch["ids"], "mask": torch.ones_like(batch["mask"])})

    def padded(batch: dict[str, Tensor]) -> Tensor:
        ids, mask = batch["ids"], batch["mask"]
        x = encoder.gene_embedding(ids) + encoder.rank_embedding(torch.arange(ids.shape[1]))
        return masked_mean(peer(x, src_key_padding_mask=~mask), mask)

    def step(form: Callable[[dict[str, Tensor]], Tensor], batch: dict[str, Tensor]) -> tuple[float, float]:
        """CPU seconds, and the loss."""
        encoder.zero_grad(set_to_none=True)
        peer.zero_grad(set_to_none=True)
        start = time.process_time()
        pooled = form(batch)
        loss = (pooled - targets[: len(pooled)]).square().mean()
        loss.backward()
        return time.process_time() - start, float(loss.detach())

    forms = {"packed": packed, "padded": padded, "filled": filled}
    drawn = batches(encoder, tissue, given.batches)
    o = encoder.options()
    n_tokens = np.array([int(b["mask"].sum()) for b in drawn])
    sizes = np.array([b["mask"].numel() for b in drawn])
    totals = np.zeros((2, 2))  # packed and padded × tokens and squares
    for b in drawn:
        lengths = b["mask"].sum(dim=1)
        totals[0] += work(lengths, o["dim"], o["feedforward"])
        totals[1] += work(torch.full_like(lengths, b["mask"].shape[1]), o["dim"], o["feedforward"])
    by_tokens, by_squares = totals[1] / totals[0]
    allowed = totals[1].sum() / totals[0].sum()
    print(
        f"{len(drawn)} batches of {BATCH} locations, lists of {', '.join(map(_range, drawn))} genes; depth {o['depth']}"
    )
    print(f"pads: {1 - n_tokens.sum() / sizes.sum():.1%} of the padded tokens")
    print(
        f"padding allows {allowed:.2f}: {by_tokens:.2f} for what goes with tokens "
        f"({totals[0, 0] / totals[0].sum():.0%} of packed multiplications), {by_squares:.2f} for their squares"
    )
    best = {name: np.full(len(drawn), np.inf) for name in forms}
    losses: dict[str, list[float]] = {name: [0.0] * len(drawn) for name in forms}
    for _ in range(given.rounds):
        for i, batch in enumerate(drawn):
            for name, form in forms.items():
                seconds, losses[name][i] = step(form, batch)
                best[name][i] = min(best[name][i], seconds)
    for name in forms:
        loss = ", ".join(f"{value:.6f}" for value in losses[name])
        print(f"{name:>7}: {best[name].sum() / len(drawn):8.2f} CPU s a step, loss {loss}")
    np.testing.assert_allclose(losses["packed"], losses["padded"], rtol=1e-5)
    reached, by_pads = (best[name].sum() / best["packed"].sum() for name in ("padded", "filled"))
    print(f"packed is {reached:.2f} times as fast as padded (floor {FLOOR}), {by_pads:.2f} times as filled")
    print(
        f"of what padding allows: {reached / allowed:.2f} (floor {OF_ALLOWED}), {by_pads / allowed:.2f} from pads alone"
    )


def _range(batch: dict[str, Tensor]) -> str:
    lengths = batch["mask"].sum(dim=1)
    return f"{int(lengths.min())} to {int(lengths.max())} (median {int(lengths.median())})"


if __name__ == "__main__":
    main()
