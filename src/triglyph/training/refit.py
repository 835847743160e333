"""Heads fitted again over cached pooled features: the null of the judge, and cheap ablations.

With `shuffle_pairs` the rows of each modality are permuted among themselves first. What such heads still achieve is
what the evaluation gives for nothing: same features, same loss, same number of steps, no correspondence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ContractError
from triglyph.models.alignment import Alignment
from triglyph.models.base import Batch
from triglyph.training.batches import Batches


def refit_heads(
    model: Alignment,
    features: Mapping[str, tuple[NDArray[np.float32], NDArray[np.bool_]]],
    *,
    seed: int,
    epochs: int = 10,
    lr: float = 1e-3,
    batch_size: int = 256,
    shuffle_pairs: bool = False,
    duplicates: ArrayLike | None = None,
    sections: ArrayLike | None = None,
    weight_decay: float = 0.0,
) -> Alignment:
    """Fresh heads and temperature on the encoders of `model`.

    Parameters
    ----------
    model
        Its configuration and encoders are taken; it is not changed.
    features
        modality -> pooled output (n, dim_in) of its encoder for training rows, and which of them are present (n,).
        Values of absent rows are never read.
    seed
        Decides initial heads, batches, dropout and the shuffle.
    shuffle_pairs
        Break the correspondence of modalities.
    duplicates
        (n,) keys, equal for equal captions.
    sections
        (n,) integers, for models whose negatives or centres are of a section; None: all rows are of one.
    lr
        Peak of a cosine with 3 % warm-up.

    Returns
    -------
    A model in evaluation mode that shares the encoders of `model`.

    Raises
    ------
    ContractError
        A modality of the model is missing, lengths differ, or no row has a pair.
    """
    modalities = model.modalities
    if missing := [m for m in modalities if m not in features]:
        raise ContractError(f"no features of {', '.join(missing)}", where="refit_heads", mend="give every modality's")
    n = len(features[modalities[0]][1])
    captions = np.arange(n) if duplicates is None else np.unique(np.asarray(duplicates), return_inverse=True)[1]
    of = np.zeros(n, dtype=np.int64) if sections is None else np.asarray(sections, dtype=np.int64)
    lengths = {len(x) for m in modalities for x in features[m]} | {len(captions), len(of)}
    if lengths != {n}:
        raise ContractError(f"features of different lengths: {sorted(lengths)}", where="refit_heads")
    here: dict[str, NDArray[np.bool_]] = {m: np.asarray(features[m][1], dtype=bool) for m in modalities}
    usable = np.zeros(n, dtype=bool)
    for a, b in model.config.active_pairs:
        usable |= here[a] & here[b]
    rows = np.flatnonzero(usable)
    if len(rows) < 2:
        raise ContractError("no two rows have a pair", where="refit_heads", mend="give features of the same locations")

    rng = np.random.default_rng([seed, 1])
    values: dict[str, torch.Tensor] = {}
    keys = torch.from_numpy(captions[rows].reshape(-1).astype(np.int64))
    for modality in modalities:
        order = rows.copy()
        if shuffle_pairs:
            mine = here[modality][rows]
            order[mine] = rng.permutation(rows[mine])
            if modality == "text":
                keys = torch.from_numpy(captions[order].reshape(-1).astype(np.int64))
        filled = np.where(here[modality][order, None], features[modality][0][order], np.float32(0))
        values[modality] = torch.from_numpy(filled.astype(np.float32, copy=False))

    groups = np.array(["+".join(m for m in modalities if here[m][row]) for row in rows])
    batches = Batches(groups, batch_size=min(batch_size, len(rows)), seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = Alignment(model.config, {m: model.encoder(m) for m in modalities})
        for modality in modalities:
            if modality in model.scalers:
                fresh.scaler(modality).load_state_dict(model.scaler(modality).state_dict())
        learnt = [p for name, p in fresh.named_parameters() if not name.startswith("encoders.")]
        optimizer = torch.optim.AdamW(learnt, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
        total = epochs * batches.steps_per_epoch
        warmup = max(1, math.ceil(0.03 * total))
        fresh.train()
        for step in range(total):
            at = batches.batch(*divmod(step, batches.steps_per_epoch))
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * step / total)) / 2
            batch: Batch = {
                "n": len(at),
                "index": torch.from_numpy(at),
                "section": torch.from_numpy(of[rows[at]]),
                "duplicates": {"text": keys[at]},
            }
            for modality in modalities:
                positions = np.flatnonzero(here[modality][rows[at]])
                batch[modality] = {
                    "rows": torch.from_numpy(positions),
                    "features": values[modality][torch.from_numpy(at[positions])],
                }
            optimizer.zero_grad(set_to_none=True)
            fresh(batch).losses["total"].backward()
            optimizer.step()
    return fresh.eval()
