"""Picture files that tests make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, size: tuple[int, int], *, seed: int = 0) -> np.ndarray:
    """A PNG of coarse colour noise, (height, width, 3), written to `path`."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 250, (-(-size[1] // 8), -(-size[0] // 8), 3), dtype=np.uint8)
    pixels = np.repeat(np.repeat(coarse, 8, 0), 8, 1)[: size[1], : size[0]]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels
