"""Rows of a section that are worth training on: enough genes, and a window of the image that shows something.

SpatialWhisperer drops spots of fewer than 100 Geneformer tokens, which are the genes with a count whose Ensembl id is
in its dictionary, and spots whose 224 level-0 pixels deviate by at most 0.1 after ImageNet normalisation. Taken over
all three channels at once, plain white has 0.16 and passes, for the channels differ; so a deviation here is a channel's
own, averaged over the three: plain white has 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.errors import ContractError, RecipeError
from triglyph.tissue.draft import ImageSource
from triglyph.tissue.readers.base import Notes, ReadOptions
from triglyph.tissue.windows import WindowReader

WINDOW_PX = 224
IMAGENET_STD = (0.229, 0.224, 0.225)


def rows_worth_reading(
    table: ad.AnnData, images: Sequence[ImageSource], options: ReadOptions, notes: Notes
) -> ad.AnnData:
    """`table` without rows of too few genes (`min_genes`) or of an empty window (`min_window_std`).

    Raises
    ------
    ContractError
        No row is left.
    RecipeError
        There is no image to look at.
    """
    keep = np.ones(table.n_obs, dtype=bool)
    if options.min_genes is not None:
        keep = genes_detected(table) >= options.min_genes
        notes.add(f"left out {int((~keep).sum()):,} rows of fewer than {options.min_genes} genes")
    if options.min_window_std is not None:
        full = [image for image in images if image.role == "full"]
        if not full:
            raise RecipeError("there is no image to look at", where="--min-window-std", mend="leave it out")
        rows = np.flatnonzero(keep)
        flat = window_deviation(full[0], np.asarray(table.obsm["spatial"])[rows]) <= options.min_window_std
        keep[rows[flat]] = False
        notes.add(f"left out {int(flat.sum()):,} rows whose window varies no more than {options.min_window_std:g}")
    if not keep.any():
        raise ContractError(
            f"none of its {table.n_obs:,} rows is kept", where="--min-genes, --min-window-std", mend="lower them"
        )
    return table if keep.all() else table[keep].copy()


def genes_detected(table: ad.AnnData) -> NDArray[np.int64]:
    """(n,) genes with a count; of those with an Ensembl id, where the table has any."""
    counts = sp.csr_matrix(table.X)
    ids = table.var["ensembl_id"].to_numpy() != ""
    return np.asarray((counts[:, ids] if ids.any() else counts).astype(bool).sum(axis=1)).ravel()


def window_deviation(image: ImageSource, centres_um: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) deviation of the pixels around each centre, in ImageNet's units, averaged over the channels."""
    reader = WindowReader(image.path, to_um=image.to_um, mpp_source=image.mpp_source)
    out = np.empty(len(centres_um))
    try:
        for row in reader.reading_order(centres_um):
            window = reader.read_level0(centres_um[row], WINDOW_PX)
            out[row] = np.mean(window.reshape(-1, 3).std(axis=0) / 255 / np.array(IMAGENET_STD))
    finally:
        reader.close()
    return out
