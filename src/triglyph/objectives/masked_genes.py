"""Naming genes that were hidden: the objectives of Stamp's gene encoder (Han et al., ICLR 2026).

All work on packed rank lists (`triglyph.encoders.packed`): tokens of all locations one after the other, and how many
each location has. *Intrinsic* reconstruction names masked genes from the location itself; *contextual* reconstruction
names genes of a group's centre from what its neighbours hold, in three forms:

| form | what is aggregated | which genes of the centre |
|---|---|---|
| `masked_only` | neighbours' rows at the same rank, as the paper writes | those that were masked |
| `positionwise_full` | the same | all, as the release does |
| `pooled` | neighbours' embeddings: one vector | all; ranks of one location say little of another's |

A slot or a centre that no neighbour reaches has nothing to be predicted from, and is left out.

Genes are chosen among *all* of the vocabulary, by the softmax and as random replacements, whatever the panel of the
section. On one panel, which a corpus of one platform has, nothing else could be. On mixed panels a gene that a section
did not measure is a wrong answer there, so that heads learn panels too; `Baseline` of the section tells them in advance
(an unmeasured gene is as rare in it as `PRIOR_TOKENS` of all sections together make it), and nothing else does.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from triglyph.encoders.packed import positions

Context = Literal["masked_only", "positionwise_full", "pooled"]
KEPT, RANDOM = 0.1, 0.1
"""Of the chosen tokens: shares that stay as they are, and that become another gene; the others become the mask."""
LOGITS = 1 << 25
"""Numbers of a block of logits that are held at once."""


class Masked(NamedTuple):
    """A packed list with some tokens hidden."""

    ids: Tensor
    """(total,) what the encoder reads"""
    chosen: Tensor
    """(total,) bool, tokens that are to be named"""


def mask_tokens(
    ids: Tensor, *, share: float, mask: int, first: int, n_tokens: int, generator: torch.Generator | None = None
) -> Masked:
    """Choose each token with probability `share`; of the chosen 80 % are masked, 10 % replaced, 10 % kept.

    Parameters
    ----------
    ids
        (total,) packed tokens.
    mask
        The token that stands for a hidden one.
    first, n_tokens
        Replacements are drawn from first to n_tokens - 1, which are all genes.
    generator
        None takes torch's random state.
    """
    draw, which = torch.rand(2, len(ids), generator=generator, device=ids.device)
    chosen = draw < share
    other = torch.randint(first, max(n_tokens, first + 1), ids.shape, generator=generator, device=ids.device)
    hidden = torch.where(which < 1 - KEPT - RANDOM, mask, torch.where(which < 1 - KEPT, other, ids))
    return Masked(torch.where(chosen, hidden, ids), chosen)


class Baseline(NamedTuple):
    """How probable genes are before anything is read: logits are told from it, so what it says need not be learnt."""

    logits: Tensor
    """(baselines, tokens)"""
    of: Tensor
    """(k,) which of them goes with each row"""


def name_genes(rows: Tensor, targets: Tensor, head: nn.Linear, *, baseline: Baseline | None = None) -> Tensor:
    """Mean cross-entropy of naming `targets` (k,) from `rows` (k, dim); the logits of all rows are never held at once.

    Raises
    ------
    ValueError
        There is nothing to name: leave the term out.
    """
    if not len(targets):
        raise ValueError("no token is to be named")
    size = max(1, LOGITS // head.out_features)
    of = torch.zeros_like(targets) if baseline is None else baseline.of

    def block(x: Tensor, wanted: Tensor, which: Tensor) -> Tensor:
        logits = head(x) if baseline is None else head(x) + baseline.logits[which]
        return F.cross_entropy(logits, wanted, reduction="sum")

    if len(rows) <= size:
        return block(rows, targets, of) / len(targets)
    blocks = zip(*(torch.split(t, size) for t in (rows, targets, of)), strict=True)
    sums = [checkpoint(block, *parts, use_reentrant=False, preserve_rng_state=False) for parts in blocks]
    return torch.stack(sums).sum() / len(targets)


class Groups(NamedTuple):
    """Which of n locations are whose neighbours."""

    group: Tensor
    """(n,) int64, 0, 1, ... in order; the first of each group is its centre"""
    near: Tensor
    """(n,) bool, members that the centre has for neighbours"""

    @property
    def centres(self) -> Tensor:
        """(groups,) position of each group's centre."""
        first = torch.ones_like(self.near)
        first[1:] = self.group[1:] != self.group[:-1]
        return first.nonzero().squeeze(1)


class Slots(NamedTuple):
    """Ranks of centres, and what their neighbours have there."""

    rows: Tensor
    """(k, dim)"""
    targets: Tensor
    """(k,) tokens of the centres"""
    owner: Tensor
    """(k,) location that each is of"""


def by_slot(rows: Tensor, ids: Tensor, chosen: Tensor, lengths: Tensor, groups: Groups, *, context: Context) -> Slots:
    """Neighbours' rows at each rank of their centre, averaged, and the centre's gene of that rank.

    Parameters
    ----------
    rows
        (total, dim) packed output of the encoder.
    ids
        (total,) the true tokens.
    chosen
        (total,) those that were masked.
    lengths
        (n,) int64.

    Returns
    -------
    Slots
        Those of centres that are wanted and that a neighbour reaches.
    """
    slot = positions(lengths)
    group = torch.repeat_interleave(groups.group, lengths)
    longest = int(lengths.max()) if len(lengths) else 0
    key = group * longest + slot
    neighbour = torch.repeat_interleave(groups.near, lengths)
    centre = torch.zeros_like(groups.near)
    centre[groups.centres] = True
    wanted = torch.repeat_interleave(centre, lengths)
    if context == "masked_only":
        wanted = wanted & chosen
    # Slots that are wanted are numbered; neighbours' rows at others are not looked at.
    target_key = key[wanted]
    number = torch.full((longest * (int(groups.group.max()) + 1 if len(groups.group) else 0),), -1, device=rows.device)
    number[target_key] = torch.arange(len(target_key), device=rows.device)
    at = number[key]
    used = neighbour & (at >= 0)
    total = rows.new_zeros(len(target_key), rows.shape[1]).index_add(0, at[used], rows[used])
    count = rows.new_zeros(len(target_key)).index_add(0, at[used], torch.ones_like(at[used], dtype=rows.dtype))
    reached = count > 0
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=rows.device), lengths)
    return Slots(total[reached] / count[reached, None], ids[wanted][reached], owner[wanted][reached])


def reached(lengths: Tensor, groups: Groups) -> Tensor:
    """(groups,) whether a centre has genes, and a neighbour that has any: there is something to name, and to name it
    from."""
    near = torch.zeros(len(groups.centres), dtype=torch.bool, device=lengths.device)
    near[groups.group[groups.near & (lengths > 0)]] = True
    return near & (lengths[groups.centres] > 0)


def pooled_context(
    pooled: Tensor, ids: Tensor, lengths: Tensor, groups: Groups, head: nn.Linear, *, baseline: Baseline | None = None
) -> Tensor | None:
    """Mean cross-entropy of the genes of each centre from the mean embedding of its neighbours; None without any.

    Every centre that is `reached` counts once, however many genes it has: its target is even over its tokens.

    Parameters
    ----------
    pooled
        (n, dim) embeddings of the locations.
    ids, lengths
        (total,) their true tokens, and (n,) how many each has.
    baseline
        Its `of` (n,) is of locations.
    """
    usable = reached(lengths, groups)
    if not usable.any():
        return None
    n_groups = len(groups.centres)
    used = groups.near & (lengths > 0)
    member = F.one_hot(groups.group[used], n_groups).to(pooled.dtype)
    count = member.sum(dim=0)
    context = (member.T @ pooled[used])[usable] / count[usable, None]
    logits = head(context)
    if baseline is not None:
        logits = logits + baseline.logits[baseline.of[groups.centres[usable]]]
    logp = F.log_softmax(logits, dim=-1)
    of_usable = torch.zeros(len(lengths), dtype=torch.bool, device=lengths.device)
    of_usable[groups.centres[usable]] = True
    wanted = torch.repeat_interleave(of_usable, lengths)
    sizes = lengths[groups.centres[usable]]
    which = torch.repeat_interleave(torch.arange(len(sizes), device=pooled.device), sizes)
    return -(logp[which, ids[wanted]] / sizes[which]).sum() / len(sizes)
