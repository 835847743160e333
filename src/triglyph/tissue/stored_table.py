"""A section's table on disk: the SpatialData store it is written to, once, and the digests that name its content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from triglyph.tissue.cells import CELLS, CLASSES
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.pictures import COLUMNS, HASH

ELEMENT = "locations"


def write_table(draft: SectionDraft, path: Path) -> None:
    """Write a checked draft's table, and its locations as shapes where they have a place, to the folder `path`."""
    import pandas as pd
    import spatialdata as sd
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    n = draft.table.n_obs
    table = draft.table.copy()
    table.uns.pop("spatialdata_attrs", None)
    if draft.location_um is None:
        with ad.settings.override(auto_shard_zarr_v3=True):
            sd.SpatialData(tables={"table": TableModel.parse(table)}).write(path)
        return
    table.obs["region"] = pd.Categorical([ELEMENT] * n)
    table.obs["instance_id"] = np.arange(n)
    table = TableModel.parse(table, region=ELEMENT, region_key="region", instance_key="instance_id")
    transformations = {"global": Identity()}
    if draft.location_shape == "circle":
        shapes = ShapesModel.parse(
            np.asarray(table.obsm["spatial"]),
            geometry=0,
            radius=draft.location_um / 2,
            index=np.arange(n),
            transformations=transformations,
        )
    else:
        import geopandas as gpd
        from shapely import box

        half = draft.location_um / 2
        x, y = np.asarray(table.obsm["spatial"]).T
        squares = gpd.GeoDataFrame(geometry=box(x - half, y - half, x + half, y + half), index=np.arange(n))
        shapes = ShapesModel.parse(squares, transformations=transformations)
    # Without shards a table of many genes becomes thousands of files of a kilobyte each.
    with ad.settings.override(auto_shard_zarr_v3=True):
        sd.SpatialData(shapes={ELEMENT: shapes}, tables={"table": table}).write(path)


def strings_digest(values: Any) -> str:
    """Sixteen hex digits of strings in their order."""
    return hashlib.sha256("\n".join(map(str, values)).encode()).hexdigest()[:16]


def table_digest(table: ad.AnnData) -> str:
    """Sixteen hex digits that change with any count, gene, centre, caption, label, labelled cell or picture."""
    h = hashlib.sha256(strings_digest(table.var_names).encode())
    counts = sp.csr_matrix(table.X).sorted_indices()
    for array in (counts.data.astype("<i8"), counts.indices.astype("<i8"), counts.indptr.astype("<i8")):
        h.update(array.tobytes())
    h.update(np.asarray(table.obsm["spatial"], dtype="<f8").tobytes())
    h.update(table.var["measured"].to_numpy(dtype=bool).tobytes())
    for column in (table.var["ensembl_id"], table.obs["caption"], table.obs["label"]):
        h.update(strings_digest(column).encode())
    if CELLS in table.obsm:
        h.update(strings_digest(table.uns[CLASSES]).encode())
        h.update(np.asarray(table.obsm[CELLS], dtype="<i8").tobytes())
    if HASH in table.obs:  # pictures; tables without them keep the digest they always had
        for name in (*COLUMNS, HASH):
            h.update(strings_digest(table.obs[name]).encode())
    return h.hexdigest()[:16]
