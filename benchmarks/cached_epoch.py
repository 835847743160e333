"""An epoch of a locked-tower run with cached features, beside the same epoch encoding every tile anew, in one run.

    uv run python benchmarks/cached_epoch.py

The same model, batches and optimiser steps; only where the image tower's output comes from differs. `anew` holds the
windows in memory, so that reading the slide does not count against it: what is saved is the encoder's forward pass
alone, and the ratio is a lower bound. Weights are random; they cost what trained ones cost.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from triglyph.encoders import registry
from triglyph.encoders.base import Expression
from triglyph.models.alignment import Alignment, AlignmentConfig
from triglyph.tissue.cohort import Cohort
from triglyph.training.batches import Batches
from triglyph.training.dataset import Locations, training_rows
from triglyph.training.features import encode_section
from triglyph.workflows.simulate import simulate

CASES = [("stain-texture", {}), ("tile-vit", {})]
ROUNDS = 3


def one_epoch(model: Alignment, data: Locations, batches: Batches, epoch: int) -> float:
    """Seconds."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.train()
    start = time.perf_counter()
    for step in range(batches.steps_per_epoch):
        optimizer.zero_grad(set_to_none=True)
        model(data[batches.batch(epoch, step)]).losses["total"].backward()
        optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        cohort = Cohort.open(simulate("tiny", patients=4, out=Path(folder) / "cohort"))
        print(f"{len(cohort)} sections, median of {ROUNDS} epochs each, alternating")
        print(f"{'image tower':>22} {'cached ms':>10} {'anew ms':>10} {'ratio':>7} {'filling the cache, once, ms':>29}")
        for name, options in CASES:
            encoders = {
                "image": registry.build(name, random_init=True, **options).eval(),
                "expression": registry.build("gene-mlp"),
            }
            config = AlignmentConfig.model_validate(
                {
                    "towers": {
                        "image": {"encoder": name, "mode": "locked", "options": options},
                        "expression": {"encoder": "gene-mlp", "mode": "scratch"},
                    },
                    "pairs": {"image-expression": 1.0},
                }
            )
            rows = training_rows(list(cohort), ("image", "expression"), config.active_pairs)
            encoders["expression"].fit(Expression(*section.expression()) for section in cohort)
            start = time.perf_counter()
            for section in cohort:
                print_ = encode_section(section, encoders["image"])
            fill = time.perf_counter() - start
            model = Alignment(config, encoders)
            batches = Batches(rows.groups, batch_size=64, seed=0)
            cached, anew = Locations(rows, encoders, cached={"image": print_}), Locations(rows, encoders, cached={})
            times = [
                (one_epoch(model, cached, batches, i), one_epoch(model, anew, batches, i)) for i in range(ROUNDS + 1)
            ][1:]  # the first warms up
            fast, slow = (statistics.median(t[k] for t in times) for k in (0, 1))
            ratio = statistics.median(b / a for a, b in times)
            print(f"{name:>22} {1e3 * fast:10.1f} {1e3 * slow:10.1f} {ratio:7.1f} {1e3 * fill:29.1f}")


if __name__ == "__main__":
    main()
