"""A transformer over packed sequences: rows of all sequences one after another, and no padding between them.

Token lists differ in length by a factor of ten between locations. Padded to the longest of a batch, most of the work
of linear layers is done on pads, and attention, which goes with the square of the length, wastes more still. Packed,
linear layers and norms run over the rows there are, and attention over one length at a time. Outputs are those of
PyTorch's `nn.TransformerEncoder` (ReLU, no norm at the end), and so are names and shapes of its tensors:
`load_state_dict` takes one from the other.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triglyph.errors import ContractError

HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None
"""Older versions of PyTorch do not have it; attention then goes length by length on CUDA as well."""

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Queries, keys, values, all (..., heads, width of a head), and the dropout of weights -> the values attended to."""


class PackedTransformer(nn.Module):
    """Transformer layers with ReLU, as `nn.TransformerEncoder` has them.

    Weights of linear maps start from Xavier's normal distribution, biases from zero.

    Parameters
    ----------
    dim
        Width of the rows.
    depth, heads, feedforward
        Layers, attention heads of each, and width of their hidden rows.
    dropout
        Of attention weights, hidden units and the two outputs that are added, in training.
    norm_eps
        Of the layer norms; 1e-12 is that of the BERT family, and of Nicheformer and Stamp.
    norm_first
        Norms stand before attention and hidden units, and sums stay as they are; False norms every sum (post-norm).

    Raises
    ------
    ContractError
        `heads` does not divide `dim`, or there is no layer.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.0,
        norm_eps: float = 1e-12,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        if depth < 1 or heads < 1 or dim % heads:
            raise ContractError(
                f"{depth} layers of width {dim} with {heads} attention heads",
                where="PackedTransformer",
                mend="give at least one layer, and a number of heads that divides the width",
            )
        self.dropout = dropout
        self.layers = nn.ModuleList(
            _Layer(dim, heads, feedforward, dropout, norm_eps, norm_first=norm_first) for _ in range(depth)
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Every sequence attends to itself alone.

        Parameters
        ----------
        x
            (total, dim), rows of the first sequence, then of the second, ...
        lengths
            (n,) int64, of the sequences; 0 is allowed.

        Returns
        -------
        Tensor
            (total, dim), in the same order.

        Raises
        ------
        ContractError
            `lengths` do not add up to the rows of `x`.
        """
        sizes: list[int] = lengths.tolist()
        if sum(sizes) != len(x):
            raise ContractError(f"sequences of {sum(sizes)} tokens together, but {len(x)} rows", where="lengths")
        if self._runs_varlen(x):
            return self._layers(x, _varlen(lengths, max(sizes)))
        # Sequences of one length are brought together, so that one call attends within all of them.
        order = torch.argsort(lengths, stable=True)
        sorted_lengths = lengths[order]
        starts = lengths.cumsum(0) - lengths
        rows = positions(sorted_lengths) + torch.repeat_interleave(starts[order], sorted_lengths)
        out = self._layers(x[rows], _by_length(sorted(sizes)))
        return out[torch.argsort(rows)]

    @torch.no_grad()
    def scale_branches(self, factor: float) -> None:
        """Multiply what every layer adds to its input: with a small factor the input is heard through all layers."""
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            layer.self_attn.out_proj.weight.mul_(factor)
            layer.linear2.weight.mul_(factor)

    def padded(self, x: Tensor, mask: Tensor) -> Tensor:
        """The same for padded sequences, and what stands at their pads: pads attend to real rows, and are not seen.

        Only for comparison with models that read their pads; everything else is cheaper packed.

        Parameters
        ----------
        x
            (n, length, dim).
        mask
            (n, length), True where a row is real; at least one of each sequence.
        """
        keys = mask[:, None, None, :]

        def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=keys, dropout_p=dropout).transpose(1, 2)

        return self._layers(x, attend)

    def _layers(self, x: Tensor, attend: Attend) -> Tensor:
        for layer in self.layers:
            x = layer(x, attend)
        return x

    def _runs_varlen(self, x: Tensor) -> bool:
        """Whether one kernel takes all lengths: on CUDA, in half precision, without dropout."""
        if not x.is_cuda or not HAS_VARLEN or not len(x) or (self.training and self.dropout):
            return False
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        return dtype in (torch.float16, torch.bfloat16)


class _Layer(nn.Module):
    def __init__(
        self, dim: int, heads: int, feedforward: int, dropout: float, norm_eps: float, *, norm_first: bool
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.self_attn = _SelfAttention(dim, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(dim, feedforward), nn.Linear(feedforward, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=norm_eps), nn.LayerNorm(dim, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.self_attn(self.norm1(x), attend))
            return x + self.dropout(self._hidden(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.self_attn(x, attend)))
        return self.norm2(x + self.dropout(self._hidden(x)))

    def _hidden(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class _SelfAttention(nn.Module):
    """Maps of attention under the names of `nn.MultiheadAttention`; who attends to whom is said by `attend`."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_normal_(self.in_proj_weight)
        nn.init.xavier_normal_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(*x.shape[:-1], 3, self.heads, x.shape[-1] // self.heads).unbind(-3)
        return self.out_proj(attend(q, k, v, self.dropout if self.training else 0.0).flatten(-2))


def _by_length(sizes: list[int]) -> Attend:
    """Attention within sequences of ascending `sizes`, one call a length."""
    runs = [(length, len(list(same))) for length, same in groupby(size for size in sizes if size)]
    rows = [length * count for length, count in runs]

    def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        if not runs:
            return v
        # Splitting, unlike slicing, has a gradient that costs no more than the rows there are.
        parts = zip(runs, *(torch.split(t, rows) for t in (q, k, v)), strict=True)
        return torch.cat([one(length, count, qkv, dropout) for (length, count), *qkv in parts])

    def one(length: int, count: int, qkv: list[Tensor], dropout: float) -> Tensor:
        # Rows of a head lie together: on a CPU, a copy is cheaper than what attention loses to strides.
        a, b, c = (t.view(count, length, *t.shape[1:]).transpose(1, 2).contiguous() for t in qkv)
        return F.scaled_dot_product_attention(a, b, c, dropout_p=dropout).transpose(1, 2).flatten(0, 1)

    return attend


def _varlen(lengths: Tensor, longest: int) -> Attend:
    """Attention within sequences of any lengths, one call for all."""
    from torch.nn.attention.varlen import varlen_attn

    bounds = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)

    def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        return cast(Tensor, varlen_attn(q, k, v, bounds, bounds, longest, longest))

    return attend


def pack(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The real tokens of padded sequences, and how many each has.

    Parameters
    ----------
    ids
        (n, length) or (n, length, dim).
    mask
        (n, length), True where a token is real.

    Returns
    -------
    packed
        (total,) or (total, dim).
    lengths
        (n,) int64.
    """
    return ids[mask], mask.sum(dim=1)


def unpack(x: Tensor, mask: Tensor) -> Tensor:
    """The inverse of `pack`: (total, dim) to (n, length, dim), 0 at pads."""
    out = x.new_zeros(*mask.shape, x.shape[-1])
    out[mask] = x
    return out


def positions(lengths: Tensor) -> Tensor:
    """(total,) int64: the place of each packed token in its own sequence, from 0."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum()), device=lengths.device) - torch.repeat_interleave(starts, lengths)


def segment_mean(x: Tensor, lengths: Tensor) -> Tensor:
    """Mean of each packed sequence, (total, dim) to (n, dim); 0 for an empty one.

    Rows are added in their order, in single precision at least, so that a sequence has the same mean to the bit
    wherever it stands in a batch.

    Raises
    ------
    ContractError
        `lengths` do not add up to the rows of `x`.
    """
    if (total := int(lengths.sum())) != len(x):
        raise ContractError(f"sequences of {total} tokens together, but {len(x)} rows", where="lengths")
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return torch.segment_reduce(x, "mean", lengths=lengths, initial=0.0, unsafe=True)
