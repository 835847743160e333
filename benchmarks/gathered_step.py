"""A training step that encodes the rows that are there, beside one that encodes every row and masks, in one run.

    uv run python benchmarks/gathered_step.py [--rows 128] [--rounds 5]

Rows are text + expression or image + expression, 54 to 46, as in the training of SpatialWhisperer, whose release fills
what is missing with zeros, runs the encoders on it and masks the logits. Both steps have the same rows, model and loss;
`masked` is written here after that description. Image and text are transformers of four layers, 384 wide, on 16 patches
and 64 tokens, the expression tower is a small MLP; all of them learn, in both forms.
The bound is arithmetic: the share of the encoders' time that masking wastes, measured one encoder at a time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from triglyph.encoders import registry
from triglyph.models.alignment import Alignment, AlignmentConfig

TEXT_SHARE = 0.54
GENES, TOKENS = 1000, 64
TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "image": ("tile-vit", {"dim": 384, "depth": 4, "heads": 6, "patch_px": 16}),
    "expression": ("gene-mlp", {"dim": 128, "hidden": 256, "genes": GENES}),
    "text": ("bert-small", {"dim": 384, "depth": 4, "heads": 6, "vocabulary_size": 4096}),
}
PAIRS = {"image-expression": 1.0, "expression-text": 1.0}


def build() -> Alignment:
    """The model, of random weights."""
    torch.manual_seed(0)
    encoders = {m: registry.build(name, **options) for m, (name, options) in TOWERS.items()}
    config = {
        "towers": {m: {"encoder": name, "mode": "scratch", "options": o} for m, (name, o) in TOWERS.items()},
        "pairs": PAIRS,
        "dim": 256,
    }
    return Alignment(AlignmentConfig.model_validate(config), encoders).train()


def inputs(n: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Inputs of all rows for every tower, zeros where missing, and which rows have it."""
    rng = torch.Generator().manual_seed(0)
    has_text = torch.arange(n) < round(TEXT_SHARE * n)
    rows = {"image": ~has_text, "expression": torch.ones(n, dtype=torch.bool), "text": has_text}
    side = registry.card("tile-vit").input_px or 0
    full = {
        "image": {"pixels": torch.randint(0, 256, (n, side, side, 3), generator=rng, dtype=torch.uint8)},
        "expression": {
            "values": torch.randn(n, GENES, generator=rng),
            "scale": torch.ones(n, 1),
            "library": torch.zeros(n, 1),
        },
        "text": {
            "ids": torch.randint(5, 4096, (n, TOKENS), generator=rng),
            "mask": torch.ones(n, TOKENS, dtype=torch.bool),
        },
    }
    return full, rows


def gathered(full: dict[str, dict[str, Tensor]], rows: dict[str, Tensor], n: int) -> dict[str, Any]:
    """The batch as the package makes it."""
    at = {m: torch.nonzero(here).ravel() for m, here in rows.items()}
    entries = {m: {"rows": at[m], **{k: v[at[m]] for k, v in full[m].items()}} for m in full}
    return {"n": n, "index": torch.arange(n), "section": torch.zeros(n, dtype=torch.long), **entries}


def masked(model: Alignment, full: dict[str, dict[str, Tensor]], rows: dict[str, Tensor], n: int) -> dict[str, Any]:
    """A batch whose features were encoded for every row, and then cut to those that are there."""
    batch: dict[str, Any] = {"n": n, "index": torch.arange(n), "section": torch.zeros(n, dtype=torch.long)}
    for modality, values in full.items():
        at = torch.nonzero(rows[modality]).ravel()
        pooled = model.encoder(modality).encode(values).pooled
        batch[modality] = {"rows": at, "features": pooled.index_select(0, at)}
    return batch


def timed(step: Callable[[], float]) -> tuple[float, float]:
    """Seconds, and what the step gives."""
    start = time.perf_counter()
    value = step()
    return time.perf_counter() - start, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    model, n = build(), given.rows
    full, rows = inputs(n)

    def step(make: Callable[[], dict[str, Any]]) -> float:
        torch.manual_seed(1)
        model.zero_grad(set_to_none=True)
        loss = model(make()).losses["total"]
        loss.backward()
        return float(loss.detach())

    forms = {
        "gathered": lambda: step(lambda: gathered(full, rows, n)),
        "masked": lambda: step(lambda: masked(model, full, rows, n)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(given.rounds + 1):
        for name, form in forms.items():
            seconds[name].append(timed(form)[0])
    alone = {}
    for modality in full:

        def encode(m: str = modality) -> float:
            model.zero_grad(set_to_none=True)
            pooled = model.encoder(m).encode(full[m]).pooled
            pooled.sum().backward()
            return 0.0

        alone[modality] = statistics.median(timed(encode)[0] for _ in range(given.rounds))
    # The first round warms up.
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    share = {m: float(here.float().mean()) for m, here in rows.items()}
    bound = sum(alone.values()) / sum(alone[m] * share[m] for m in alone)
    print(f"{n} rows, {torch.get_num_threads()} threads, median of {given.rounds} alternating rounds")
    for name, value in medians.items():
        print(f"{name:>9}: {1000 * value:8.0f} ms a step")
    print(f"every row and a mask over gathered rows: {medians['masked'] / medians['gathered']:.2f}")
    each = ", ".join(f"{m} {1000 * s:.0f} ms" for m, s in alone.items())
    print(f"bound from the encoders' own times: {bound:.2f} ({each})")
    model.eval()
    with torch.no_grad():
        losses = [float(model(b).losses["total"]) for b in (gathered(full, rows, n), masked(model, full, rows, n))]
    print(f"losses without dropout: {losses[0]:.6f} gathered, {losses[1]:.6f} masked")


if __name__ == "__main__":
    main()
