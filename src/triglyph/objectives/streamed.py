"""Contrastive losses of a batch without its n x n logits in memory: value and gradient, a few rows at a time.

Both losses are sums over the logits `L = scale * A B^T (+ bias)`, and the gradient of each by an entry depends on that
entry and on sums over its row and column alone. So one pass takes the sums, a second (in backward) takes the entries
again and adds each block's part of the gradient: one more product than the dense form, and the memory of one block
instead of several n x n matrices. The gradient of `scale` falls out of that of `A`, since
`sum_ij G_ij A_i B_j = sum_i A_i (G B)_i`.

Gradients of gradients are not defined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK = 1 << 22
"""Logits that are held at once; 16 MiB of them in 32-bit, which stay in a processor's last cache or near it."""
SAFE = 40.0
"""Up to this bound on the logits, exp(logit - bound) of any is a normal 32-bit number, and one exp serves both sums."""

Context = Any


class Keys:
    """Which entries of the logits are left out: those of two rows that share a key, and those of two blocks.

    Parameters
    ----------
    duplicates
        (n,) integers each; two rows with an equal one are no negatives of each other.
    blocks
        (n,) integers; only rows of one block are negatives of each other. None: all are.
    """

    def __init__(self, duplicates: Sequence[Tensor], blocks: Tensor | None = None) -> None:
        # A key that no two rows share leaves nothing out, and would cost n x n comparisons to find that out.
        self.duplicates = [key for key in duplicates if len(torch.unique(key)) < len(key)]
        self.blocks = blocks if blocks is None or len(torch.unique(blocks)) > 1 else None

    def mask(self, values: Tensor, start: int, fill: float) -> Tensor:
        """Put `fill` where entries are left out of rows `start`, `start + 1`, ... (in place)."""
        rows = slice(start, start + len(values))
        out: Tensor | None = None if self.blocks is None else self.blocks[rows, None] != self.blocks[None, :]
        for key in self.duplicates:
            same = key[rows, None] == key[None, :]
            out = same if out is None else out.logical_or_(same)
        if out is None:
            return values
        out.diagonal(start).fill_(0)
        return values.masked_fill_(out, fill)


class _Blocks:
    """The products of `a` with `b`, some rows of `a` at a time, in one buffer."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b
        self.size = max(1, min(len(a), BLOCK // max(1, len(b))))
        self.buffer = a.new_empty(self.size, len(b))

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(self.a), self.size):
            rows = self.a[start : start + self.size]
            yield start, torch.mm(rows, self.b.T, out=self.buffer[: len(rows)])


class StreamedInfoNce(torch.autograd.Function):
    """Mean over rows of (logsumexp of the row + of the column) / 2 - the logit on the diagonal.

    The diagonal is kept apart from the sums, so that a row without negatives has a loss and a gradient of exactly 0.
    """

    @staticmethod
    def forward(ctx: Context, a: Tensor, b: Tensor, scale: Tensor, keys: Keys) -> Tensor:
        """`a`, `b` (n, dim) and `scale` () of one floating type."""
        n = len(a)
        norms = (torch.linalg.vector_norm(x, dim=1).amax() if n else x.new_zeros(()) for x in (a, b))
        bound = float(scale.abs() * next(norms) * next(norms))
        right, rows = scale * (a * b).sum(dim=1), a.new_empty(n)
        columns = a.new_zeros(n) if bound <= SAFE else a.new_full((n,), -torch.inf)
        for start, logits in _Blocks(a, b):
            keys.mask(logits.mul_(scale), start, -torch.inf).diagonal(start).fill_(-torch.inf)
            here = slice(start, start + len(logits))
            if bound <= SAFE:
                weights = logits.sub_(bound).exp_()
                rows[here] = weights.sum(dim=1)
                columns += weights.sum(dim=0)
            else:
                rows[here] = torch.logsumexp(logits, dim=1)
                columns = torch.logaddexp(columns, torch.logsumexp(logits, dim=0))
        # (2, n): logsumexps of the negatives alone, of rows and of columns.
        wrong = torch.stack([rows, columns])
        if bound <= SAFE:
            wrong.log_().add_(bound)
        ctx.save_for_backward(a, b, scale, right, wrong)
        ctx.keys, ctx.bound = keys, bound
        return F.softplus(wrong - right).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        a, b, scale, right, wrong = ctx.saved_tensors
        n, bound = len(a), ctx.bound
        totals = torch.logaddexp(wrong, right)
        lacking = (wrong - totals).exp_().sum(dim=0)
        by_row, by_column = totals if bound > SAFE else (bound - totals).exp_()
        left, other = torch.empty_like(a), torch.zeros_like(b)
        for start, logits in _Blocks(a, b):
            ctx.keys.mask(logits.mul_(scale), start, -torch.inf)
            here = slice(start, start + len(logits))
            if bound <= SAFE:
                shares = logits.sub_(bound).exp_()
                shares *= by_row[here, None] + by_column[None, :]
            else:
                shares = (logits - by_row[here, None]).exp_() + (logits - by_column[None, :]).exp_()
            # What the right answer lacks to a probability of 1, of its row and of its column.
            shares.diagonal(start).copy_(-lacking[here])
            torch.mm(shares, b, out=left[here])
            other.addmm_(shares.T, a[here])
        # Sums over rows and columns are halved, and the loss is a mean.
        factor = grad / (2 * n)
        by_scale = (left * a).sum() * factor
        return left.mul_(scale * factor), other.mul_(scale * factor), by_scale, None


class StreamedSigmoid(torch.autograd.Function):
    """Minus the sum of log sigmoid(± logit), + on the diagonal, divided by the number of rows."""

    @staticmethod
    def forward(ctx: Context, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, keys: Keys) -> Tensor:
        """`a`, `b` (n, dim), `scale` () and `bias` () of one floating type."""
        total = a.new_zeros(())
        for start, products in _Blocks(a, b):
            terms = F.logsigmoid(_signed(products.mul_(scale).add_(bias), start))
            total -= keys.mask(terms, start, 0.0).sum()
        ctx.save_for_backward(a, b, scale, bias)
        ctx.keys = keys
        return total / max(1, len(a))

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        a, b, scale, bias = ctx.saved_tensors
        left, right, by_bias = torch.empty_like(a), torch.zeros_like(b), torch.zeros_like(bias)
        for start, products in _Blocks(a, b):
            here = slice(start, start + len(products))
            # d(-log sigmoid(y L)) / dL = -y sigmoid(-y L) = sigmoid(L) - [on the diagonal]
            slopes = products.mul_(scale).add_(bias).sigmoid_()
            slopes.diagonal(start).sub_(1)
            ctx.keys.mask(slopes, start, 0.0)
            torch.mm(slopes, b, out=left[here])
            right.addmm_(slopes.T, a[here])
            by_bias += slopes.sum()
        factor = grad / max(1, len(a))
        by_scale = (left * a).sum() * factor
        return left.mul_(scale * factor), right.mul_(scale * factor), by_scale, by_bias * factor, None


def _signed(logits: Tensor, start: int) -> Tensor:
    """Entries off the diagonal with their sign turned (in place)."""
    logits.neg_()
    logits.diagonal(start).neg_()
    return logits
