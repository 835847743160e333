"""A bridge between two modalities that are never seen together, by a third that each of them is seen with.

Rows A of a batch have image and expression, rows B text and expression; no row has image and text. What expression says
of them is a soft answer to which of B's texts is like which of A's images. With scale s, image, text and expression
embeddings I, T, E and rows normalised to distributions by softmax,

    L_bridge = (CE(softmax(s E_A T_B^T), softmax(s I_A T_B^T)) + CE(softmax(s T_B E_A^T), softmax(s T_B I_A^T))) / 2

The targets are constants: images and texts move towards what expression says, and expression learns from its own pairs
alone. InfoNCE of the two pairs only asks that the right answer comes first in each; what is left of image and text
besides, and where each modality lies in the space as a whole, it leaves free, and both go into the cosine of an image
with a text. The bridge trains that very cosine.

Soft targets from similarities: Hinton et al. 2015 (arXiv 1503.02531), between embeddings Park et al. 2019 (relational
distillation, arXiv 1904.05068). Pairs of modalities connected through a third after training: Wang et al. 2023 (C-MCR,
arXiv 2305.14381).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from triglyph.objectives.contrastive import Pair, Temperature, held_by_both


def bridge_name(pair: Pair, through: str) -> str:
    """`image-expression-text`: the name of a bridge's loss, its pivot in the middle."""
    return f"{pair[0]}-{through}-{pair[1]}"


def soft_bridge(a: Tensor, b: Tensor, told: Tensor, scale: Tensor | float) -> Tensor:
    """Cross-entropy of the similarities of `a` and `b` with those of `told` and `b`, by rows and by columns.

    Parameters
    ----------
    a, b
        (n, dim) and (m, dim), L2-normalised.
    told
        (n, dim) what the pivot says of the rows of `a`, L2-normalised.
    scale
        Multiplies every cosine; the inverse of the temperature.

    Returns
    -------
    Scalar, in 32-bit whatever the precision of the inputs (64-bit where they are). The targets are constants: no
    gradient comes from them. All n x m similarities are held at once.
    """
    with torch.autocast(a.device.type, enabled=False):
        dtype = torch.float64 if a.dtype == b.dtype == torch.float64 else torch.float32
        factor = torch.as_tensor(scale, dtype=dtype, device=a.device)
        logits = factor * a.to(dtype) @ b.to(dtype).T
        wanted = (factor * told.to(dtype) @ b.to(dtype).T).detach()
        rows = F.cross_entropy(logits, wanted.softmax(dim=1))
        columns = F.cross_entropy(logits.T, wanted.T.softmax(dim=1))
    return (rows + columns) / 2


def bridge_losses(
    embeddings: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    *,
    bridges: Mapping[Pair, str],
    temperature: Temperature,
) -> dict[str, Tensor]:
    """The loss of every bridge that the batch holds.

    Parameters
    ----------
    embeddings
        modality -> (k, dim), L2-normalised.
    rows
        modality -> (k,) positions in the batch, each at most once, in any order.
    bridges
        (a, b) -> the modality between them.
    temperature
        Scale of `a-b`.

    Returns
    -------
    `a-pivot-b` -> its loss, for each bridge with at least two rows on both sides.
    """
    found: dict[str, Tensor] = {}
    for (a, b), through in bridges.items():
        at_a, pivot, _ = held_by_both(rows.get(a), rows.get(through))
        at_b, _, _ = held_by_both(rows.get(b), rows.get(through))
        if min(len(at_a), len(at_b)) < 2:
            continue
        left, right = embeddings[a].index_select(0, at_a), embeddings[b].index_select(0, at_b)
        told = embeddings[through].index_select(0, pivot)
        found[bridge_name((a, b), through)] = soft_bridge(left, right, told, temperature(f"{a}-{b}"))
    return found
