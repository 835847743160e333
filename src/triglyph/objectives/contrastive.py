"""Symmetric InfoNCE over any pairs of modalities.

For a pair (a, b) take the rows of the batch that have both, `S = scale * Z_a Z_b^T`, and
`L_ab = (CE(S, diagonal) + CE(S^T, diagonal)) / 2`. The loss is the weighted mean over the pairs that the batch holds,
so a pair that is absent changes nothing. Rows that are copies of each other in one modality (the same caption, the
same location drawn twice) are not negatives: their entries off the diagonal are left out of both softmaxes.

With `gather`, rows of all processes are one batch. Each process then computes the whole loss, and the gradient that
flows back through the gather is summed over processes; the averaging of gradients that data-parallel training does
anyway makes it exactly the gradient of one process holding all rows.

InfoNCE: van den Oord et al. 2018 (arXiv 1807.03748); the symmetric form and the learnt temperature: Radford et al. 2021
(CLIP, arXiv 2103.00020); the mean over present pairs: SpatialWhisperer (ICML 2026).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from triglyph.errors import ContractError

Pair = tuple[str, str]

INIT_TEMPERATURE = 0.07


class Temperature(nn.Module):
    """Learnt logit scale `exp(t)`, one for all pairs or one for each.

    Parameters
    ----------
    pairs
        Names of the pairs that get a scale of their own; empty shares one.
    init
        Initial temperature; the scale starts at its inverse.
    max_scale
        The scale is held at or under this; None does not clamp it, as in the release of SpatialWhisperer.
    """

    def __init__(
        self, pairs: Iterable[str] = (), *, init: float = INIT_TEMPERATURE, max_scale: float | None = 100.0
    ) -> None:
        super().__init__()
        self.max_scale = max_scale
        self.names = tuple(pairs)
        self.log_scale = nn.Parameter(torch.full((max(1, len(self.names)),), math.log(1 / init)))

    def forward(self, pair: str) -> Tensor:
        """The scale of a pair, a scalar."""
        if self.max_scale is not None and self.training:
            # Clamping the parameter, not only what is read from it, keeps its gradient alive at the bound.
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(self.max_scale))
        scale = self.log_scale[self.names.index(pair) if self.names else 0].exp()
        return scale if self.max_scale is None else scale.clamp(max=self.max_scale)


def info_nce(a: Tensor, b: Tensor, scale: Tensor | float, *, duplicates: Sequence[Tensor] = ()) -> Tensor:
    """Symmetric InfoNCE of rows that correspond.

    Parameters
    ----------
    a, b
        (n, dim), L2-normalised; row i of `a` belongs to row i of `b`.
    scale
        Multiplies the cosine; the inverse of the temperature.
    duplicates
        Keys (n,) of integers. Two rows with an equal key in any of them are not negatives of each other.

    Returns
    -------
    Scalar, in 32-bit whatever the precision of the inputs.
    """
    if len(a) != len(b):
        raise ContractError(f"{len(a)} rows on one side and {len(b)} on the other", where="info_nce")
    # bf16 has three digits: too few for a softmax over thousands of near neighbours.
    with torch.autocast(a.device.type, enabled=False):
        logits = scale * (a.float() @ b.float().T)
        same = torch.zeros_like(logits, dtype=torch.bool)
        for key in duplicates:
            same |= key[:, None] == key[None, :]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
        target = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def contrastive_loss(
    embeddings: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    *,
    pairs: Mapping[Pair, float],
    temperature: Temperature,
    duplicates: Mapping[str, Tensor] | None = None,
    gather: bool = False,
) -> dict[str, Tensor]:
    """Weighted mean of `info_nce` over the pairs that the batch holds.

    Parameters
    ----------
    embeddings
        modality -> (k, dim), L2-normalised.
    rows
        modality -> (k,) positions in the batch, each at most once.
    pairs
        (a, b) -> weight; pairs of weight 0 are left out.
    temperature
        Keyed by `a-b`.
    duplicates
        modality -> keys (n,) of all rows of the batch: rows with equal keys are not negatives in pairs that hold this
        modality. The key "" applies to all pairs.
    gather
        Take the rows of all processes as one batch. Without a process group it changes nothing.

    Returns
    -------
    `a-b` -> its loss, for each pair with at least two rows, and `total`.

    Raises
    ------
    ContractError
        No pair has two rows.
    """
    gather = gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    terms: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    counts: dict[str, int] = {}
    for (a, b), weight in pairs.items():
        if weight == 0:
            continue
        name = f"{a}-{b}"
        left, right, keys = _rows_with_both(a, b, embeddings, rows, duplicates or {}, gather=gather)
        if gather:
            left, right, *keys = _gather([left, right, *keys])
        counts[name] = len(left)
        if len(left) < 2:
            continue
        terms[name] = info_nce(left, right, temperature(name), duplicates=keys)
        weights[name] = weight
    if not terms:
        found = ", ".join(f"{name}: {n}" for name, n in counts.items())
        raise ContractError(
            "no pair of modalities has two rows in this batch, so there is nothing to learn from",
            where=f"rows with both: {found or 'no pairs asked for'}",
            mend="use a larger batch, or train on sections that have both modalities of a pair",
        )
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum() / sum(weights.values())
    return {**terms, "total": total}


def _rows_with_both(
    a: str,
    b: str,
    embeddings: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    duplicates: Mapping[str, Tensor],
    *,
    gather: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Embeddings of a and b for the rows that have both, in batch order, and their keys."""
    wanted = [key for name, key in duplicates.items() if name in ("", a, b)]
    if a not in rows or b not in rows:
        some = next(iter(embeddings.values())) if embeddings else torch.zeros(0, 0)
        if gather and not embeddings:
            raise ContractError("a process has no rows of any modality", where="gather", mend="use a larger batch")
        empty = some.new_zeros(0, some.shape[-1])
        return empty, empty, [key[:0] for key in wanted]
    n = 1 + int(max(rows[a].max(initial=-1) if False else rows[a].max(), rows[b].max())) if len(rows[a]) and len(rows[b]) else 0
    return embeddings[a], embeddings[b], wanted


def _gather(tensors: list[Tensor]) -> list[Tensor]:
    raise NotImplementedError
