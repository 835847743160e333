"""Projection heads: from an encoder's pooled output to the shared space.

`spatialwhisperer` is the head of SpatialWhisperer (ICML 2026; the MILinearBlock of CLIP-Lite):
`h(x) = LN(W2 ReLU(BN(W1 x)) + b2 + Ws x + bs)`, its skip path starting as a noisy copy of the input. `mlp` and
`linear` are plain. No head normalises its output; `Alignment` does, by name.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from triglyph.cards import Frozen

HeadKind = Literal["spatialwhisperer", "mlp", "linear"]


class HeadConfig(Frozen):
    """Which head, for every modality."""

    kind: HeadKind = "mlp"
    hidden: int | None = None
    """Width inside `mlp`; None takes that of the shared space."""
    dropout: float = 0.0
    """Inside `mlp`."""


def build_head(config: HeadConfig, *, dim_in: int, dim: int) -> nn.Module:
    """A head from `dim_in` to `dim`, freshly initialised from torch's random state."""
    if config.kind == "spatialwhisperer":
        return SpatialWhispererHead(dim_in, dim)
    if config.kind == "linear":
        return nn.Linear(dim_in, dim)
    hidden = config.hidden or dim
    return nn.Sequential(
        nn.LayerNorm(dim_in),
        nn.Linear(dim_in, hidden),
        nn.GELU(),
        nn.Dropout(config.dropout),
        nn.Linear(hidden, dim),
    )


class Standardise(nn.Module):
    """z-scores by statistics taken once over training rows; a feature that is constant there becomes 0."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit(self, values: NDArray[np.float32]) -> None:
        """Take the statistics of (n, dim) training rows."""
        mean, deviation = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
        constant = deviation <= 1e-6 * np.maximum(1.0, np.abs(mean))
        self.mean.copy_(torch.from_numpy(mean))
        self.scale.copy_(torch.from_numpy(np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.scale


class PresentBatchNorm(nn.BatchNorm1d):
    """BatchNorm of the rows given, however few.

    It is given only rows that have the modality, so nothing missing enters its statistics. One row has no variance:
    it is normalised by the running statistics, and does not change them.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 1:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class SpatialWhispererHead(nn.Module):
    """(n, dim_in) -> (n, dim); 12 tensors: 9 parameters and 3 statistics of the BatchNorm.

    Parameters for dim 2048: 6.30 M from 512, 7.35 M from 768, 10.50 M from 1536.
    """

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim_in, dim, bias=False)
        self.batch_norm = PresentBatchNorm(dim)
        self.outer = nn.Linear(dim, dim)
        self.skip = nn.Linear(dim_in, dim)
        self.norm = nn.LayerNorm(dim)
        with torch.no_grad():
            self.skip.weight.uniform_(-0.01, 0.01)
            self.skip.weight.fill_diagonal_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.outer(F.relu(self.batch_norm(self.inner(x)))) + self.skip(x))
