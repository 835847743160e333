"""Count thinning: halves of the same counts, which are independent given the rate of a Poisson."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


def split_counts(counts: sp.csr_matrix, rng: np.random.Generator) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Two matrices of counts that add up to `counts`; every single count goes to either with equal chance."""
    half = sp.csr_matrix(counts, dtype=np.int64, copy=True)
    whole = half.data.copy()
    half.data = rng.binomial(whole, 0.5)
    other = half.copy()
    other.data = whole - half.data
    return half, other
