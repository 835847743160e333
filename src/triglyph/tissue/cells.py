"""Labelled cells of a location: how many of each class lie in it, for truth of several classes at once.

    obsm["cells"]        (n, classes) int32
    uns["cell_classes"]  names of the columns; the first is the background

A section that has them need not have genes. The column `label` holds the commonest class that is not the background.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from triglyph.errors import ContractError

CELLS, CLASSES = "cells", "cell_classes"


def labelled_cells(section: Any) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Counts (n, classes) of a section, and the names of the classes.

    Raises
    ------
    ContractError
        Its cells are not labelled.
    """
    table = section.table
    if CELLS not in table.obsm or CLASSES not in table.uns:
        raise ContractError(
            "no cell is labelled", where=f"section {section.id}", mend="read one of pathocell, lizard, pannuke"
        )
    return np.asarray(table.obsm[CELLS], dtype=np.int32), tuple(str(name) for name in table.uns[CLASSES])
