"""Cells of a Xenium run: ids, outlines, label masks and the picture of their DNA."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from triglyph.tissue.simulate.anatomy.ellipses import in_radii
from triglyph.tissue.simulate.anatomy.outlines import CORNERS, areas_um2, cell_outlines, nucleus_outlines
from triglyph.tissue.simulate.knobs.names import CELL_TYPES
from triglyph.tissue.simulate.streams import stream
from triglyph.tissue.simulate.vendors.tenx import mixed
from triglyph.tissue.simulate.vendors.xenium_frame import PIXEL_UM, InstrumentFrame

UNASSIGNED = "UNASSIGNED"
METHOD = "Segmented by nucleus expansion of 5.0µm"
_DATASET = 1
_CHUNK = 1024
_BACKGROUND, _DNA = 60.0, 1600.0
"""Grey levels of the DNA picture: empty, and per unit of a nucleus' haematoxylin."""
_EDGE_UM = 0.4
_EPOCH = (1980, 1, 1, 0, 0, 0)


class CellSheet:
    """Cells of a specimen as the instrument reports them, in its frame; rows are those of `Tissue.cells`."""

    def __init__(self, frame: InstrumentFrame) -> None:
        cells = frame.specimen.tissue.cells
        self.cells, self.frame = cells, frame
        nuclei, whole = nucleus_outlines(cells), cell_outlines(cells)
        self.nucleus_um2, self.cell_um2 = areas_um2(nuclei), areas_um2(whole)
        self.nuclei, self.outlines = frame.outlines(nuclei), frame.outlines(whole)
        self.prefixes = np.sort(mixed(np.arange(len(cells))))
        self.ids = _id_strings(self.prefixes)

    @property
    def centroids(self) -> NDArray[np.float64]:
        """(cells, 2) µm"""
        return np.asarray(self.outlines.mean(1))

    @property
    def nucleus_centroids(self) -> NDArray[np.float64]:
        """(cells, 2) µm"""
        return np.asarray(self.nuclei.mean(1))


def boundaries(sheet: CellSheet, outlines: NDArray[np.float64]) -> pd.DataFrame:
    """Corners of every outline in order, the first repeated at the end, as `*_boundaries.parquet` has them."""
    closed = np.concatenate([outlines, outlines[:, :1]], axis=1)
    corners = closed.shape[1]
    return pd.DataFrame(
        {
            "cell_id": np.repeat(sheet.ids, corners),
            "vertex_x": closed[..., 0].ravel().astype(np.float32),
            "vertex_y": closed[..., 1].ravel().astype(np.float32),
            "label_id": np.repeat(np.arange(len(outlines), dtype=np.int32) + 1, corners),
        }
    )


def label_mask(outlines: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.uint32]:
    """Pixels of every outline, its number from 1; where two overlap the first keeps them."""
    from PIL import Image, ImageDraw

    mask = Image.new("I", (shape[1], shape[0]))
    draw = ImageDraw.Draw(mask)
    # Pixel (i, j) has its centre at (j + 0.5, i + 0.5). The first is drawn last.
    corners = np.round(outlines / PIXEL_UM - 0.5).astype(np.int64).reshape(len(outlines), -1)
    for number in range(len(corners), 0, -1):
        draw.polygon(corners[number - 1].tolist(), fill=number)
    return np.asarray(mask).view(np.uint32)


def dna_picture(sheet: CellSheet) -> NDArray[np.uint16]:
    """Nuclei as a fluorescence microscope shows them: bright on dark, brighter the denser their chromatin."""
    config, keys = sheet.frame.specimen.config, sheet.frame.specimen.keys
    cells, shape = sheet.cells, sheet.frame.shape_px
    dense = np.array([config.anatomy.nuclei[name].haematoxylin for name in CELL_TYPES])[cells.kind]
    level = _DNA * dense * np.exp(0.15 * stream(config.seed, "dna", *keys).standard_normal(len(cells)))
    centres = sheet.frame.place(cells.xy_um) / PIXEL_UM - 0.5
    turned = cells.angle + np.arctan2(sheet.frame.stated.d, sheet.frame.stated.a)
    picture = np.full(shape, _BACKGROUND, dtype=np.uint16)
    for (x, y), a, b, angle, bright in zip(
        centres, cells.long_um / 2 / PIXEL_UM, cells.short_um / 2 / PIXEL_UM, turned, level, strict=True
    ):
        half = a + _EDGE_UM / PIXEL_UM
        left, right = max(int(x - half), 0), min(int(x + half) + 2, shape[1])
        top, bottom = max(int(y - half), 0), min(int(y + half) + 2, shape[0])
        dx, dy = np.arange(left, right) - x, (np.arange(top, bottom) - y)[:, None]
        radius = np.hypot(*in_radii(dx, dy, np.cos(angle), np.sin(angle), a, b))
        inside = np.clip((1 - radius) * b * PIXEL_UM / _EDGE_UM + 0.5, 0, 1)
        view = picture[top:bottom, left:right]
        np.maximum(view, (_BACKGROUND + bright * inside).astype(np.uint16), out=view)
    return picture


def write_cells_zarr(sheet: CellSheet, mask: NDArray[np.uint32], path: Path) -> None:
    """`cells.zarr.zip`: ids, summary, polygons and masks, in an order and with a date that are always the same.

    `mask` are the cells' labels; the nuclei's are made here.
    """
    import zarr

    number, shape = len(sheet.cells), sheet.frame.shape_px
    folder = path.with_name("cells.zarr")
    root = zarr.open_group(folder, mode="w", zarr_format=2)
    root.attrs.update({"major_version": 6, "minor_version": 0, "name": "CellSegmentationDataset"})
    root.attrs.update({"number_cells": number, "segmentation_methods": [METHOD]})
    ids = np.stack([sheet.prefixes, np.full(number, _DATASET, dtype=np.uint32)], 1)
    _store(root, "cell_id", ids)
    columns = {
        "cell_centroid_x": sheet.centroids[:, 0],
        "cell_centroid_y": sheet.centroids[:, 1],
        "cell_area": sheet.cell_um2,
        "nucleus_centroid_x": sheet.nucleus_centroids[:, 0],
        "nucleus_centroid_y": sheet.nucleus_centroids[:, 1],
        "nucleus_area": sheet.nucleus_um2,
        "z_level": np.zeros(number),
        "nucleus_count": np.ones(number),
    }
    summary = _store(root, "cell_summary", np.column_stack(list(columns.values())))
    summary.attrs["column_names"] = list(columns)
    _store(root, "masks/0", label_mask(sheet.nuclei, shape))
    _store(root, "masks/1", mask)
    for index, outlines in enumerate((sheet.nuclei, sheet.outlines)):
        group = f"polygon_sets/{index}"
        _store(root, f"{group}/cell_index", np.arange(number, dtype=np.uint32))
        _store(root, f"{group}/method", np.zeros(number, dtype=np.uint32))
        _store(root, f"{group}/num_vertices", np.full(number, CORNERS, dtype=np.int32))
        _store(root, f"{group}/vertices", outlines.reshape(number, -1).astype(np.float32))
    transform = np.diag([1 / PIXEL_UM, 1 / PIXEL_UM, 1.0, 1.0]).astype(np.float32)
    _store(root, "masks/homogeneous_transform", transform)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.writestr(zipfile.ZipInfo(file.relative_to(folder).as_posix(), _EPOCH), file.read_bytes())
    shutil.rmtree(folder)


def _store(root: Any, name: str, values: NDArray[Any]) -> Any:
    chunks = tuple(max(1, min(n, _CHUNK)) for n in values.shape)
    return root.create_array(name, data=values, chunks=chunks)


def _id_strings(prefixes: NDArray[np.uint32]) -> NDArray[np.str_]:
    """`aaaabbbc-1`: eight letters a to p, one for each half byte."""
    half_bytes = (prefixes[:, None] >> np.arange(28, -1, -4, dtype=np.uint32)) & 15
    letters = np.array(list("abcdefghijklmnop"))[half_bytes]
    return np.array(["".join(row) + f"-{_DATASET}" for row in letters], dtype="U10")
