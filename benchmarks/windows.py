"""The window reader beside plain `openslide.read_region` of the same windows, in one run.

    uv run python benchmarks/windows.py [SLIDE.tif --mpp MPP]

Both read the same squares of tissue from the same file at the same pyramid level; ours also places them to a fraction
of a pixel and resamples them to the asked size. The floor is the bare decoding of the tiles that the windows touch.
Ratios are medians over rounds that alternate the two; above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import openslide

from triglyph.tissue.frames import Affine
from triglyph.tissue.pixels import TiffPixels
from triglyph.tissue.windows import WindowReader

CASES = [(112.0, 224), (112.0, 112), (224.0, 224), (448.0, 224), (112.0, 64)]
WINDOWS, ROUNDS = 300, 7


def made_slide(folder: Path) -> Path:
    from triglyph.tissue.pyramid import write_pyramid

    rng = np.random.default_rng(0)
    coarse = rng.integers(120, 255, (600, 600, 3), dtype=np.uint8)
    image = np.repeat(np.repeat(coarse, 16, axis=0), 16, axis=1)
    image = np.clip(image + rng.integers(-12, 12, image.shape, dtype=np.int16), 0, 255).astype(np.uint8)
    path = folder / "slide.tif"
    write_pyramid(image, path, mpp=0.5)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", nargs="?", type=Path)
    parser.add_argument("--mpp", type=float, default=0.5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.slide or made_slide(Path(folder))
        print(f"{path.name}, {arguments.mpp} µm/px, {WINDOWS} windows, median of {ROUNDS} rounds")
        print(f"{'window':>8} {'output':>7} {'ours ms':>8} {'openslide ms':>13} {'ratio':>6} {'decode floor ms':>16}")
        for size_um, out_px in CASES:
            if arguments.mpp * out_px / size_um > 1.5:
                continue
            rows = [one_round(path, arguments.mpp, size_um, out_px, seed) for seed in range(ROUNDS)]
            ours, peer, floor = (statistics.median(r[i] for r in rows) for i in range(3))
            ratio = statistics.median(r[1] / r[0] for r in rows)
            print(f"{size_um:6.0f}µm {out_px:5d}px {ours:8.2f} {peer:13.2f} {ratio:6.2f} {floor:16.2f}")


def one_round(path: Path, mpp: float, size_um: float, out_px: int, seed: int) -> tuple[float, float, float]:
    """Milliseconds a window: ours, OpenSlide, and only decoding the tiles."""
    reader = WindowReader(path, to_um=Affine.scale(mpp))  # a new reader and slide a round: both caches start empty
    slide = openslide.OpenSlide(path)
    plan = reader.plan(size_um, out_px)
    level = reader.pixels.levels[plan.level]
    width_um, height_um = reader.size_um
    centres = np.random.default_rng(seed).uniform(size_um, [width_um - size_um, height_um - size_um], (WINDOWS, 2))

    start = time.perf_counter()
    for centre in centres:
        reader.read(centre, size_um, out_px)
    ours = time.perf_counter() - start

    side = round(plan.span_x)
    start = time.perf_counter()
    for centre in centres:
        x, y = (centre - size_um / 2) / mpp
        np.asarray(slide.read_region((int(x), int(y)), plan.level, (side, side)).convert("RGB"))
    peer = time.perf_counter() - start

    bare = TiffPixels(path)
    start = time.perf_counter()
    for centre in centres:
        x, y = (centre - size_um / 2) / mpp / level.step_x
        bare.read(plan.level, int(x), int(y), side, side)
    floor = time.perf_counter() - start
    return tuple(1e3 * t / WINDOWS for t in (ours, peer, floor))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
