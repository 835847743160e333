"""One batch of the rows of all processes, with gradients.

Contrastive losses want every row of every process as a negative. Embeddings of all modalities travel in a single
collective, padded to the longest process; its backward sums over processes what each of them sends back. Each process
then computes the whole loss, so the averaging of gradients that data-parallel training does anyway makes the result
exactly the gradient of one process holding all rows (CLIP, arXiv 2103.00020, does the same without padding).

A loss that is a mean over rows, each by itself, needs no rows of others, and only how many they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from triglyph.errors import ContractError


def is_distributed() -> bool:
    """Whether more than one process takes part."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class Mean(NamedTuple):
    """A mean over some rows of this process."""

    value: Tensor | None
    """Scalar; None of no rows."""
    rows: int


def means_over_processes(means: Mapping[str, Mean], *, device: torch.device) -> dict[str, Tensor]:
    """The means over the rows of all processes; those of no row anywhere are left out.

    Each process weighs its own by its share of the rows, times the number of processes: averaging gradients over them,
    as data-parallel training does, then gives the gradient of the mean over all rows. What the scalars say is that mean
    too, in every process; a process without rows is told it, and has no gradient.

    Every process must call this with the same names, in the same order.
    """
    if not is_distributed():
        return {name: mean.value for name, mean in means.items() if mean.value is not None}
    sums = [0.0 if mean.value is None else float(mean.value.detach()) * mean.rows for mean in means.values()]
    numbers = torch.tensor([*sums, *(float(mean.rows) for mean in means.values())], dtype=torch.float64, device=device)
    dist.all_reduce(numbers)
    found = {}
    for (name, mean), total, count in zip(means.items(), *numbers.reshape(2, -1).tolist(), strict=True):
        if count and mean.value is not None:
            mine = mean.value * (mean.rows * dist.get_world_size() / count)
            found[name] = mine + (total / count - mine.detach())
        elif count:
            found[name] = torch.tensor(total / count, dtype=torch.float32, device=device)
    return found


def gather_batch(
    embeddings: Mapping[str, Tensor], rows: Mapping[str, Tensor], keys: Mapping[str, Tensor], *, n: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The union of the batches of all processes.

    Every process must call this with the same modalities and keys, in the same order; a modality that a process has
    no rows of is given as (0, dim).

    Parameters
    ----------
    embeddings
        modality -> (k, dim), one `dim` for all.
    rows
        modality -> (k,) positions in this process's batch.
    keys
        name -> (n,) integers.
    n
        Rows of this process's batch.

    Returns
    -------
    The same three, of all processes one after the other; positions are shifted to stay unique.
    """
    if not is_distributed():
        return dict(embeddings), dict(rows), dict(keys)
    if embeddings.keys() != rows.keys():
        raise ContractError(f"embeddings of {sorted(embeddings)} but rows of {sorted(rows)}", where="gather_batch")
    modalities, names = list(embeddings), list(keys)
    device = next(iter(embeddings.values())).device
    mine = torch.tensor([n, *(len(rows[m]) for m in modalities)], device=device)
    sizes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, mine)
    counts = [[int(x) for x in size] for size in sizes]
    ns = [c[0] for c in counts]

    values = _gather_padded(torch.cat([embeddings[m] for m in modalities]), [sum(c[1:]) for c in counts])
    positions = _gather_integers(torch.cat([rows[m] for m in modalities]), [sum(c[1:]) for c in counts])
    offsets = [sum(ns[:rank]) for rank in range(len(ns))]
    out_embeddings, out_rows = {}, {}
    for i, modality in enumerate(modalities):
        pieces = [slice(sum(c[1 : 1 + i]), sum(c[1 : 2 + i])) for c in counts]
        out_embeddings[modality] = torch.cat([v[s] for v, s in zip(values, pieces, strict=True)])
        out_rows[modality] = torch.cat([p[s] + o for p, s, o in zip(positions, pieces, offsets, strict=True)])
    out_keys = {name: torch.cat(_gather_integers(keys[name], ns)) for name in names}
    return out_embeddings, out_rows, out_keys


def _padded(x: Tensor, length: int) -> Tensor:
    return torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])])


def _gather_integers(x: Tensor, lengths: list[int]) -> list[Tensor]:
    mine = _padded(x, max(lengths))
    found = [torch.empty_like(mine) for _ in lengths]
    dist.all_gather(found, mine)
    return [f[:k] for f, k in zip(found, lengths, strict=True)]


def _gather_padded(x: Tensor, lengths: list[int]) -> list[Tensor]:
    from torch.distributed.nn.functional import all_gather

    if torch.is_grad_enabled() and not x.requires_grad:
        # Backward is a collective too: a process without rows must take part in it.
        x = x.detach().requires_grad_()
    found = all_gather(_padded(x, max(lengths)))  # type: ignore[no-untyped-call]
    return [f[:k] for f, k in zip(found, lengths, strict=True)]
