"""The contract of every method: an `nn.Module` from a batch to an `Output`, knowing nothing of the trainer.

A batch is a dict: `n` (rows of the batch), `index` (n,) dataset row, `section` (n,) section number, and one entry per
modality present, itself a dict with `rows` (k,) the positions of the batch that have this modality, plus either
`features` (k, dim), cached pooled output of a locked encoder, or whatever `Encoder.prepare` gave for those k rows.
Only rows that have a modality are ever in its entry: nothing is zero-filled, so nothing missing can be encoded.

Batches of neighbourhoods also have `group` (n,), 0, 1, ... in order, where the first row of each is its centre, and
`near` (n,), which rows are neighbours of the centre of their group; and `centres_um` (n, 2), NaN without a place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Batch = dict[str, Any]


@dataclass
class Output:
    """What a model makes of a batch."""

    embeddings: dict[str, Tensor] = field(default_factory=dict)
    """modality -> (k, dim), L2-normalised, in the shared space"""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """modality -> (k,) positions in the batch"""
    predictions: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    """named terms; the trainer minimises `losses["total"]` and logs them all"""
