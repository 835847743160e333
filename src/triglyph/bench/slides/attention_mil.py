"""Gated attention over the tiles of a patient (Ilse, Tomczak & Welling, ICML 2018), for protocols of slide labels.

    a_k = softmax over tiles of  w . (tanh(V h_k) * sigmoid(U h_k));     log odds = c . sum_k a_k h_k + b

There are few patients, so everything that could be chosen is a constant: frozen standardised features without a
further layer, full-batch AdamW for a fixed number of steps. A bag's draws of tiles have a stream of their own, named by
the patient, so that the order of patients changes nothing.

The only module of the judge that needs torch; import it where it is used.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from triglyph.errors import ContractError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MilConfig:
    """What decides a fit, but for its seed."""

    attention_dim: int = 64
    dropout: float = 0.25
    """Of the features of a tile, in training."""
    steps: int = 100
    lr: float = 5e-3
    weight_decay: float = 1e-2
    max_tiles: int = 256
    """Tiles of a patient in one training step, drawn anew for each; all of them are read when it is judged."""


class GatedAttention(nn.Module):
    """Bags of tiles to a log odds each, and the attention of every tile."""

    def __init__(self, dim: int, *, attention_dim: int, dropout: float, log_odds: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.value = nn.Linear(dim, attention_dim)
        self.gate = nn.Linear(dim, attention_dim)
        self.attention = nn.Linear(attention_dim, 1, bias=False)
        self.classifier = nn.Linear(dim, 1)
        # From the prevalence on: features that say nothing leave it where it is.
        nn.init.zeros_(self.classifier.weight)
        nn.init.constant_(self.classifier.bias, log_odds)

    def forward(self, tiles: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Log odds (b,) and attention (b, n), which sums to 1 over the tiles of a bag.

        Parameters
        ----------
        tiles
            (b, n, dim); what stands in padded places is never looked at.
        mask
            (b, n) True where there is a tile; every bag has one.
        """
        h = self.dropout(tiles.masked_fill(~mask[..., None], 0.0))
        score = self.attention(torch.tanh(self.value(h)) * torch.sigmoid(self.gate(h)))[..., 0]
        weight = score.masked_fill(~mask, -torch.inf).softmax(dim=1)
        return self.classifier((weight[..., None] * h).sum(dim=1))[..., 0], weight


def padded(bags: Sequence[Floats]) -> tuple[Tensor, Tensor]:
    """Bags of (n_i, dim) as (b, n, dim) float32 and their mask (b, n).

    Raises
    ------
    ContractError
        A bag is empty.
    """
    if empty := [i for i, bag in enumerate(bags) if not len(bag)]:
        raise ContractError("a bag has no tile", where=f"bag {empty[0]}", mend="leave it out")
    longest = max(len(bag) for bag in bags)
    tiles = torch.zeros(len(bags), longest, bags[0].shape[1])
    mask = torch.zeros(len(bags), longest, dtype=torch.bool)
    for i, bag in enumerate(bags):
        tiles[i, : len(bag)] = torch.from_numpy(np.asarray(bag, dtype=np.float32))
        mask[i, : len(bag)] = True
    return tiles, mask


def fit(bags: Mapping[str, Floats], labels: Mapping[str, bool], *, how: MilConfig, seed: int) -> GatedAttention:
    """Train on patients of both classes; the generator of torch is left as it was.

    Parameters
    ----------
    bags
        Patient -> (n, dim) standardised features of their tiles.
    labels
        Patient -> whether positive.

    Raises
    ------
    ContractError
        One class only, or an empty bag.
    """
    people = sorted(bags)
    positive = sum(labels[p] for p in people)
    if not 0 < positive < len(people):
        raise ContractError(
            f"{positive} of {len(people)} training patients are positive; both classes are needed",
            mend="train on more patients",
        )
    truth = torch.tensor([float(labels[p]) for p in people])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GatedAttention(
            bags[people[0]].shape[1],
            attention_dim=how.attention_dim,
            dropout=how.dropout,
            log_odds=math.log(positive / (len(people) - positive)),
        )
        optimiser = torch.optim.AdamW(model.parameters(), lr=how.lr, weight_decay=how.weight_decay)
        streams = {p: np.random.default_rng([seed, zlib.crc32(p.encode())]) for p in people}
        model.train()
        for _ in range(how.steps):
            logits, _ = model(*padded([_drawn(bags[p], streams[p], how.max_tiles) for p in people]))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, truth)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
    return model.eval()


def _drawn(bag: Floats, rng: np.random.Generator, at_most: int) -> Floats:
    return bag if len(bag) <= at_most else bag[np.sort(rng.choice(len(bag), at_most, replace=False))]


@torch.no_grad()
def log_odds(model: GatedAttention, bags: Mapping[str, Floats]) -> dict[str, float]:
    """Patient -> log odds over all of their tiles."""
    return {p: float(model(*padded([bag]))[0][0]) for p, bag in bags.items()}


@torch.no_grad()
def attention(model: GatedAttention, bag: Floats) -> Floats:
    """(n,) attention of each tile of a bag (n, dim), which sums to 1."""
    return model(*padded([bag]))[1][0].double().numpy()
