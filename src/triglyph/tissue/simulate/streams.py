"""Random streams: one per (seed, part, patient, section), so that no part of the simulator disturbs another.

Adding a draw to the stain changes no cell; adding a patient changes no other patient; the number of workers changes
nothing.
"""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, part: str, *keys: int) -> np.random.Generator:
    """The generator of `part` (a name such as `anatomy`) for the patient, section, ... given by `keys`."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(part.encode()), *keys]))
