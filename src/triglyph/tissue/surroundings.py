"""The surroundings of locations: all that lie within a number of pitches, whatever the platform or lattice.

A number of nearest neighbours means something else on every lattice, and on a square one its last ones tie. A radius in
pitches (the median distance to the nearest neighbour) does not: 1.5 holds the eight neighbours of a square lattice and
the six of a hexagonal one.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from triglyph.errors import ContractError
from triglyph.tissue.neighbourhoods import reach_um


def surroundings(centres_um: ArrayLike, *, pitches: float, itself: bool = True) -> sp.csr_matrix:
    """(n, n) averages over each location's surroundings: rows add up to 1.

    Parameters
    ----------
    centres_um
        (n, 2) in µm; all NaN where locations have no place: each is then its own surroundings, or has none.
    pitches
        Radius, in pitches of these locations.
    itself
        Whether a location is among its surroundings. Left out, a row may be empty: of a location that is alone.

    Raises
    ------
    ContractError
        The radius is no positive number.
    """
    if not 0 < pitches < float("inf"):
        raise ContractError(f"surroundings of {pitches} pitches", where="surroundings", mend="give a positive number")
    centres: NDArray[np.float64] = np.asarray(centres_um, dtype=np.float64)
    n, radius_um = len(centres), reach_um(centres, pitches=pitches)
    own = np.arange(n if itself else 0)
    one, other = np.zeros((2, 0), dtype=np.int64)
    if not np.isnan(radius_um):
        one, other = cKDTree(centres).query_pairs(radius_um, output_type="ndarray").T
    rows, columns = np.concatenate([one, other, own]), np.concatenate([other, one, own])
    around = sp.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(n, n))
    return sp.csr_matrix(sp.diags_array(1.0 / np.maximum(np.diff(around.indptr), 1)) @ around)
