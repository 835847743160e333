"""Where in its region a patch lies, and which region of the batch it is of.

Both are the image-only losses of Stamp (ICLR 2026). A region is 3 x 3 patches wide. Its tokens are pooled to nine
cells, and the patch's place among them is told by cosines (cross-scale patch localisation, L_CSP):

    L_CSP = CE over n of  scale * cos(W ref, W cell_n)

with `ref` the pretext token that carried the patch through the transformer together with the region. Rows without an
answer (no region fits into the image) are left out; the release hands their -1 to the cross-entropy.

The release pools well and lays the result out wrongly: (n, dim, 3, 3) is *viewed* as (n, 9, dim), so that "cell 1"
holds the second ninth of the channels at all nine places, and a cosine with it compares the patch with all places
alike. `compat="release"` does the same, to be compared with. A transformer that learns can put places into channels: on
simulated tissue (`benchmarks/stamp_localisation.py`) one from scratch finds the cell of 0.335 of patches, where cells
laid out rightly have 0.643 and a guess 0.111; a locked one does little better than a guess, 0.158 against 0.533.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from triglyph.errors import ContractError
from triglyph.objectives.streamed import Keys
from triglyph.tissue.regions import NOWHERE, SIDE


def cell_window(tokens: int) -> tuple[int, int]:
    """Kernel and stride, in tokens, of the tightest three equal windows that cover an axis of a grid.

    They are a third of the axis apart, rounded down, and overlap by the remainder: 6 and 4 of 14 tokens, as in Stamp; 4
    and 2 of 8; 3 and 3 of 9.

    Raises
    ------
    ContractError
        There are fewer than three tokens.
    """
    stride = tokens // SIDE
    if stride == 0:
        raise ContractError(
            f"{tokens} tokens along an axis do not make {SIDE} cells",
            where="cell_window",
            mend=f"use a transformer whose grid is at least {SIDE} x {SIDE} tokens",
        )
    return tokens - (SIDE - 1) * stride, stride


def pool_cells(grid: Tensor, *, compat: Literal["release"] | None = None) -> Tensor:
    """Nine cells of a region, row by row.

    Parameters
    ----------
    grid
        (n, rows, columns, dim) tokens of regions.
    compat
        `release`: the layout of Stamp's release, in which no row is a cell.

    Returns
    -------
    (n, 9, dim)

    Raises
    ------
    ContractError
        The grid is smaller than 3 x 3.
    """
    windows = [cell_window(k) for k in grid.shape[1:3]]
    kernel, stride = zip(*windows, strict=True)
    pooled = F.avg_pool2d(grid.permute(0, 3, 1, 2), kernel, stride)
    if compat == "release":
        return pooled.reshape(len(grid), SIDE * SIDE, -1)
    return pooled.flatten(2).transpose(1, 2)


def cell_cosines(ref: Tensor, cells: Tensor) -> Tensor:
    """Cosine of each patch with each cell of its region, (n, 9), in 32-bit.

    Parameters
    ----------
    ref
        (n, dim)
    cells
        (n, 9, dim)
    """
    with torch.autocast(ref.device.type, enabled=False):
        return torch.einsum("nd,ncd->nc", F.normalize(ref.float(), dim=-1), F.normalize(cells.float(), dim=-1))


def localisation_loss(cosines: Tensor, cell: Tensor, scale: Tensor | float) -> Tensor | None:
    """Cross-entropy of the cell that the patch lies in.

    Parameters
    ----------
    cosines
        (n, 9) of `cell_cosines`.
    cell
        (n,) 0 to 8, or `NOWHERE`, whose rows are left out.
    scale
        Multiplies the cosines.

    Returns
    -------
    Scalar, the mean over rows that have an answer; None where none has.
    """
    there = torch.nonzero(cell != NOWHERE).squeeze(1)
    if not len(there):
        return None
    return F.cross_entropy(scale * cosines.index_select(0, there), cell.index_select(0, there))


def one_sided_nce(a: Tensor, b: Tensor, scale: Tensor | float, *, duplicates: Sequence[Tensor] = ()) -> Tensor:
    """InfoNCE from `a` to `b` alone: each row of `a` is to find its own among all rows of `b`, and not the reverse.

    Stamp's release compares patches with regions so. For the symmetric form see `contrastive.info_nce`.

    Parameters
    ----------
    a, b
        (n, dim), L2-normalised; row i of `a` belongs to row i of `b`.
    scale
        Multiplies the cosine.
    duplicates
        Keys (n,) of integers. Two rows with an equal key in any of them are not negatives of each other.

    Returns
    -------
    Scalar, in 32-bit.
    """
    with torch.autocast(a.device.type, enabled=False):
        logits = Keys(duplicates).mask(scale * (a.float() @ b.float().T), 0, -torch.inf)
        return F.cross_entropy(logits, torch.arange(len(a), device=a.device))
