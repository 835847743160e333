"""Every registered encoder, small enough to run in tests, and raw input for each modality."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from triglyph.encoders import registry
from triglyph.encoders.base import Encoded, Encoder, Expression
from triglyph.encoders.wordpiece import SPECIAL

GENES = tuple(f"GENE{i}" for i in range(40))
IDS = tuple(f"ENSG{i:011d}" for i in range(40))
CAPTIONS = (
    "invasive carcinoma",
    "a",
    "lymphoid aggregate with germinal centre, dense B cells and plasma cells beside adipose tissue",
    "connective tissue, few cells",
    "",
    "ductal carcinoma in situ",
)
# Hub architectures are cut to a layer or two; a third-party encoder is tested with its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "biobert": {"depth": 1},
    "conch": {"depth": 1},
    "geneformer-12l-30m": {"depth": 2, "max_tokens": 16},
    "phikon-v2": {"depth": 1},
    "uni2-h": {"depth": 1},
    "gene-mlp": {"genes": 24, "library_size": True},
    "stamp-release": {"depth": 1},
    "stamp-genes": {"dim": 32, "depth": 2, "heads": 4, "feedforward": 48, "max_tokens": 16},
}


def expression(n: int = 6, *, seed: int = 0, empty_rows: tuple[int, ...] = ()) -> Expression:
    """Counts of 40 genes; rows differ in depth."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.7, 3.0, len(GENES)) * rng.gamma(2.0, 1.0, (n, 1)) * rng.gamma(2.0, 0.5, (n, len(GENES)))
    counts = rng.poisson(rates)
    counts[list(empty_rows)] = 0
    return Expression(sp.csr_matrix(counts), GENES, IDS, np.ones(len(GENES), dtype=bool))


def raw(encoder: Encoder, n: int = 4, *, seed: int = 0) -> Any:
    """Raw input of an encoder's modality."""
    if encoder.modality == "image":
        px = encoder.card.input_px
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (n, px // 8, px // 8, 3), dtype=np.uint8)
        return coarse.repeat(8, axis=1).repeat(8, axis=2)
    if encoder.modality == "expression":
        return expression(n, seed=seed)
    return list(CAPTIONS[:n])


def take(given: Any, rows: list[int]) -> Any:
    """Some rows of raw input."""
    if isinstance(given, Expression):
        return Expression(given.counts[rows], given.symbols, given.ensembl_ids, given.measured)
    return given[rows] if isinstance(given, np.ndarray) else [given[i] for i in rows]


def fitted_assets(encoder: Encoder) -> dict[str, Any]:
    """A vocabulary for encoders that have published ones."""
    if encoder.card.name == "biobert":
        letters = [chr(c) for c in range(97, 123)]
        return {"vocabulary": [*SPECIAL, *letters, *(f"##{c}" for c in letters), ",", "cells", "tissue"]}
    if encoder.card.name == "geneformer-12l-30m":
        tokens = {gene: i + 2 for i, gene in enumerate(IDS)}
        return {"tokens": tokens, "scales": {g: 1.0 + (i % 7) for i, g in enumerate(IDS)}, "symbols": {}}
    if encoder.card.name == "stamp-release":
        tokens = {gene: i + 30 for i, gene in enumerate(IDS)}
        return {"tokens": tokens, "scales": {g: 1.0 + (i % 3) for i, g in enumerate(IDS)}, "symbols": {}}
    return {}


def make(name: str, *, seed: int = 0, **options: Any) -> Encoder:
    """A small encoder in evaluation mode, fitted, random weights drawn from `seed`."""
    torch.manual_seed(seed)
    pretrained = registry.card(name).weights == "hub"
    encoder = registry.build(name, random_init=pretrained, **{**SMALL.get(name, {}), **options})
    if encoder.card.fitted:
        encoder.fit([raw(encoder, 6, seed=s) for s in (1, 2)])
    else:
        encoder.load_assets(fitted_assets(encoder))
    return encoder.eval()


@cache
def shared(name: str) -> Encoder:
    """`make(name)`, once a session; do not change it."""
    return make(name)


@torch.no_grad()
def pooled(encoder: Encoder, given: Any) -> torch.Tensor:
    return encoder.encode(encoder.prepare(given)).pooled


@cache
@torch.no_grad()
def output(name: str) -> Encoded:
    """What the shared encoder makes of the default input, once a session."""
    encoder = shared(name)
    return encoder.encode(encoder.prepare(raw(encoder)))
