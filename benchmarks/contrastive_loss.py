"""The streamed contrastive loss beside the dense form, in one run: seconds, peak memory and the largest difference.

    uv run python benchmarks/contrastive_loss.py [--rows 16384] [--dim 512] [--rounds 3]

Each form runs in a process of its own, forward and backward, and reports the peak of its resident memory above what it
held before the loss. Rounds alternate and the median counts. The floor is arithmetic: the dense form needs three
n x n x dim products (logits, and the gradient of either side), measured here as one product times three; ours takes
the logits twice, so four.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from triglyph.objectives.contrastive import info_nce

SCALE = 1 / 0.07


def inputs(n: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of pairs that partly agree, and the scale."""
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(n, dim, generator=rng)
    b = a + torch.randn(n, dim, generator=rng)
    a, b = F.normalize(a, dim=1).requires_grad_(), F.normalize(b, dim=1).requires_grad_()
    return a, b, torch.tensor(SCALE, requires_grad=True)


def dense(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """As CLIP's paper writes it."""
    logits = scale * a @ b.T
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def one(form: str, n: int, dim: int, kept: Path | None) -> None:
    """Measure one form and print it as JSON."""
    a, b, scale = inputs(n, dim)
    if form == "products":
        with torch.no_grad():
            start, cpu = time.perf_counter(), time.process_time()
            for rows in a.split(1024):
                rows @ b.T
            print(json.dumps({"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}))
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    loss = dense(a, b, scale) if form == "dense" else info_nce(a, b, scale)
    loss.backward()
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if kept is not None:
        torch.save({"loss": loss.detach(), "a": a.grad, "b": b.grad, "scale": scale.grad}, kept)
    print(json.dumps({"wall": wall, "cpu": used, "peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--form", choices=["dense", "streamed", "products"])
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    if given.form is not None:
        one(given.form, given.rows, given.dim, given.keep)
        return
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            for form in ("products", "dense", "streamed"):
                command = [sys.executable, __file__, "--form", form, "--keep", f"{folder}/{form}.pt"]
                command += ["--rows", str(given.rows), "--dim", str(given.dim)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found.setdefault(form, []).append(json.loads(out))
        theirs, ours = (torch.load(Path(folder) / f"{f}.pt", weights_only=True) for f in ("dense", "streamed"))
    print(f"{given.rows} x {given.dim}, {torch.get_num_threads()} threads, median of {given.rounds} alternating rounds")
    product = statistics.median(r["wall"] for r in found["products"])
    base = statistics.median(r["wall"] for r in found["dense"])
    for form in ("dense", "streamed"):
        wall, cpu, peak = (statistics.median(r[k] for r in found[form]) for k in ("wall", "cpu", "peak_mib"))
        print(
            f"{form:>9}: {wall:6.2f} s ({base / wall:.2f} x dense, {wall / (3 * product):.2f} x the floor of "
            f"three products), {cpu:6.2f} s of CPU, peak {peak:7.0f} MiB"
        )
    peaks = [statistics.median(r["peak_mib"] for r in found[f]) for f in ("streamed", "dense")]
    print(f"peak of streamed over dense: {peaks[0] / peaks[1]:.3f}")
    for name, value in theirs.items():
        worst = (ours[name] - value).abs().max() / value.abs().max()
        print(f"largest difference in {name}, of its largest: {float(worst):.1e}")


if __name__ == "__main__":
    main()
