"""Symmetric InfoNCE over any pairs of modalities.

For a pair (a, b) take the rows of the batch that have both, `S = scale * Z_a Z_b^T`, and
`L_ab = (CE(S, diagonal) + CE(S^T, diagonal)) / 2`. The loss is the weighted mean over the pairs that the batch holds,
so a pair that is absent changes nothing. Rows that are copies of each other in one modality (the same caption, the
same location drawn twice) are not negatives: their entries off the diagonal are left out of both softmaxes.

InfoNCE: van den Oord et al. 2018 (arXiv 1807.03748); the symmetric form and the learnt temperature: Radford et al. 2021
(CLIP, arXiv 2103.00020); the mean over present pairs: SpatialWhisperer (ICML 2026).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
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
        return scale if self.max_scale is None or self.training else scale.clamp(max=self.max_scale)


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
        same.fill_diagonal_(0)
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
) -> dict[str, Tensor]:
    """Weighted mean of `info_nce` over the pairs that the batch holds.

    Parameters
    ----------
    embeddings
        modality -> (k, dim), L2-normalised.
    rows
        modality -> (k,) positions in the batch, each at most once, in any order.
    pairs
        (a, b) -> weight, not negative; pairs of weight 0 are left out.
    temperature
        Called with `a-b`.
    duplicates
        modality -> integer keys (n,) of all rows of the batch: rows with equal keys are not negatives of each other in
        pairs that hold this modality. The key "" stands for all pairs.

    Returns
    -------
    `a-b` -> its loss, for each pair with at least two rows, and `total`.

    Raises
    ------
    ContractError
        No pair has two rows.
    """
    terms: dict[str, Tensor] = {}
    weights: list[float] = []
    found: list[str] = []
    for (a, b), weight in pairs.items():
        if weight == 0:
            continue
        at_a, at_b, positions = _both(rows.get(a), rows.get(b))
        found.append(f"{a}-{b}: {len(positions)}")
        if len(positions) < 2:
            continue
        keys = [key[positions] for name, key in (duplicates or {}).items() if name in ("", a, b)]
        name = f"{a}-{b}"
        # index_select: the gradient of plain indexing is summed in no fixed order by several threads.
        left, right = embeddings[a].index_select(0, at_a), embeddings[b].index_select(0, at_b)
        terms[name] = info_nce(left, right, temperature(name), duplicates=keys)
        weights.append(weight)
    if not terms:
        raise ContractError(
            "no pair of modalities has two rows in this batch, so there is nothing to learn from",
            where=f"rows that have both of {', '.join(found) or 'no pair: every weight is 0'}",
            mend="use a larger batch, or train on sections that have both modalities of a pair",
        )
    total = torch.stack([w * term for w, term in zip(weights, terms.values(), strict=True)]).sum() / sum(weights)
    return {**terms, "total": total}


def _both(a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Where the positions held by both lie in `a` and in `b`, and the positions, ascending."""
    if a is None or b is None:
        nothing = torch.zeros(0, dtype=torch.long)
        return nothing, nothing, nothing
    values, counts = torch.unique(torch.cat([a, b]), return_counts=True)
    positions = values[counts == 2]
    (sorted_a, order_a), (sorted_b, order_b) = a.sort(), b.sort()
    return (
        order_a[torch.searchsorted(sorted_a, positions)],
        order_b[torch.searchsorted(sorted_b, positions)],
        positions,
    )
