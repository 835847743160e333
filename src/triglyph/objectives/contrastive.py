"""Contrastive losses over any pairs of modalities: symmetric InfoNCE (CLIP), or pairwise sigmoids (SigLIP).

For a pair (a, b) take the rows of the batch that have both and `S = scale * Z_a Z_b^T`.

- InfoNCE: `L_ab = (CE(S, diagonal) + CE(S^T, diagonal)) / 2`.
- Sigmoid: `L_ab = -(1 / n) sum_ij log sigmoid(y_ij (S_ij + bias))`, y 1 on the diagonal and -1 off it: each pair is a
  question of its own, and none competes with another.

The loss is the weighted mean over the pairs that the batch holds, so a pair that is absent changes nothing. Rows that
are copies of each other in one modality (the same caption, the same location drawn twice) are not negatives: their
entries off the diagonal are left out of both softmaxes, and of the sum. With `blocks` the same holds of rows of two
blocks: where those are sections, what sets sections apart cannot be what tells a pair from its negatives.

InfoNCE: van den Oord et al. 2018 (arXiv 1807.03748); the symmetric form and the learnt temperature: Radford et al. 2021
(CLIP, arXiv 2103.00020); the sigmoid and its learnt bias: Zhai et al. 2023 (SigLIP, arXiv 2303.15343); the mean over
present pairs: SpatialWhisperer (ICML 2026).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from triglyph.errors import ContractError
from triglyph.objectives.streamed import Keys, StreamedInfoNce, StreamedSigmoid

Pair = tuple[str, str]

INIT_TEMPERATURE = 0.07
INIT_BIAS = -10.0
"""Of SigLIP: nearly all pairs are negatives, and the loss starts near 0 instead of at log 2 for each of them."""


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
    bias
        Initial bias of SigLIP, learnt beside each scale; None has none, and is InfoNCE's.
    """

    def __init__(
        self,
        pairs: Iterable[str] = (),
        *,
        init: float = INIT_TEMPERATURE,
        max_scale: float | None = 100.0,
        bias: float | None = None,
    ) -> None:
        super().__init__()
        self.max_scale = max_scale
        self.names = tuple(pairs)
        self.log_scale = nn.Parameter(torch.full((max(1, len(self.names)),), math.log(1 / init)))
        self.bias = None if bias is None else nn.Parameter(torch.full_like(self.log_scale, bias))

    def forward(self, pair: str) -> Tensor:
        """The scale of a pair, a scalar."""
        if self.max_scale is not None and self.training:
            # Clamping the parameter, not only what is read from it, keeps its gradient alive at the bound.
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(self.max_scale))
        scale = self.log_scale[self._number(pair)].exp()
        return scale if self.max_scale is None or self.training else scale.clamp(max=self.max_scale)

    def bias_of(self, pair: str) -> Tensor | None:
        """The bias of a pair, a scalar; None where there is none."""
        return None if self.bias is None else self.bias[self._number(pair)]

    def _number(self, pair: str) -> int:
        return self.names.index(pair) if self.names else 0


def info_nce(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    *,
    duplicates: Sequence[Tensor] = (),
    blocks: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE of rows that correspond; never holds all n x n logits (`triglyph.objectives.streamed`).

    Parameters
    ----------
    a, b
        (n, dim), L2-normalised; row i of `a` belongs to row i of `b`.
    scale
        Multiplies the cosine; the inverse of the temperature.
    duplicates
        Keys (n,) of integers. Two rows with an equal key in any of them are not negatives of each other.
    blocks
        (n,) integers: only rows of one block (of one section, say) are negatives of each other. None: all are.

    Returns
    -------
    Scalar, in 32-bit whatever the precision of the inputs (64-bit where they are).
    """
    # bf16 has three digits: too few for a softmax over thousands of near neighbours.
    with torch.autocast(a.device.type, enabled=False):
        left, right, factor = _exact(a, b, scale, where="info_nce")
        return _streamed(StreamedInfoNce, left, right, factor, Keys(duplicates, blocks))


def pairwise_sigmoid(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    duplicates: Sequence[Tensor] = (),
    blocks: Tensor | None = None,
) -> Tensor:
    """SigLIP's loss of rows that correspond: a sum over all pairs, divided by the number of rows.

    Parameters
    ----------
    a, b, scale, duplicates, blocks
        As of `info_nce`.
    bias
        Added to every logit.

    Returns
    -------
    Scalar, as of `info_nce`.
    """
    with torch.autocast(a.device.type, enabled=False):
        left, right, factor = _exact(a, b, scale, where="pairwise_sigmoid")
        offset = torch.as_tensor(bias, dtype=left.dtype, device=left.device)
        return _streamed(StreamedSigmoid, left, right, factor, offset, Keys(duplicates, blocks))


def _exact(a: Tensor, b: Tensor, scale: Tensor | float, *, where: str) -> tuple[Tensor, Tensor, Tensor]:
    if len(a) != len(b):
        raise ContractError(f"{len(a)} rows on one side and {len(b)} on the other", where=where)
    dtype = torch.float64 if a.dtype == b.dtype == torch.float64 else torch.float32
    return a.to(dtype), b.to(dtype), torch.as_tensor(scale, dtype=dtype, device=a.device)


def _streamed(function: type[torch.autograd.Function], *arguments: object) -> Tensor:
    found: Tensor = function.apply(*arguments)
    return found


def contrastive_loss(
    embeddings: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    *,
    pairs: Mapping[Pair, float],
    temperature: Temperature,
    duplicates: Mapping[str, Tensor] | None = None,
    blocks: Tensor | None = None,
) -> dict[str, Tensor]:
    """Weighted mean over the pairs that the batch holds: of `pairwise_sigmoid` with a bias, of `info_nce` without.

    Parameters
    ----------
    embeddings
        modality -> (k, dim), L2-normalised.
    rows
        modality -> (k,) positions in the batch, each at most once, in any order.
    pairs
        (a, b) -> weight, not negative; pairs of weight 0 are left out.
    temperature
        Scale, and bias if it has one, of `a-b`.
    duplicates
        modality -> integer keys (n,) of all rows of the batch: rows with equal keys are not negatives of each other in
        pairs that hold this modality. The key "" stands for all pairs.
    blocks
        Integer keys (n,) of all rows of the batch: only rows of one block are negatives of each other.

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
        at_a, at_b, positions = held_by_both(rows.get(a), rows.get(b))
        found.append(f"{a}-{b}: {len(positions)}")
        if len(positions) < 2:
            continue
        keys = [key[positions] for name, key in (duplicates or {}).items() if name in ("", a, b)]
        among = None if blocks is None else blocks[positions]
        name = f"{a}-{b}"
        # index_select: the gradient of plain indexing is summed in no fixed order by several threads.
        left, right = embeddings[a].index_select(0, at_a), embeddings[b].index_select(0, at_b)
        scale, bias = temperature(name), temperature.bias_of(name)
        terms[name] = (
            info_nce(left, right, scale, duplicates=keys, blocks=among)
            if bias is None
            else pairwise_sigmoid(left, right, scale, bias, duplicates=keys, blocks=among)
        )
        weights.append(weight)
    if not terms:
        raise ContractError(
            "no pair of modalities has two rows in this batch, so there is nothing to learn from",
            where=f"rows that have both of {', '.join(found) or 'no pair: every weight is 0'}",
            mend="use a larger batch, or train on sections that have both modalities of a pair",
        )
    total = torch.stack([w * term for w, term in zip(weights, terms.values(), strict=True)]).sum() / sum(weights)
    return {**terms, "total": total}


def held_by_both(a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
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
