"""What the folders of 10x Genomics share: feature-barcode matrices, barcodes and previews."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from PIL import Image

GENE_EXPRESSION = "Gene Expression"
GENOME = "simulated"
HIRES_PX, LOWRES_PX = 2000, 600
_CHUNK = 80_000


def gene_features(symbols: Sequence[str]) -> pd.DataFrame:
    """Rows of a feature table. The simulator's genes have no Ensembl ids, so symbols stand in for them."""
    return pd.DataFrame({"id": list(symbols), "name": list(symbols), "feature_type": GENE_EXPRESSION})


def write_matrix_h5(
    path: Path, counts: sp.csr_matrix, barcodes: Sequence[str], features: pd.DataFrame, *, library: str, software: str
) -> None:
    """A `*_feature_bc_matrix.h5` of version 2, as Cell Ranger 3 and later write it.

    Parameters
    ----------
    counts
        (barcodes, features) integers.
    features
        Columns `id`, `name`, `feature_type`.
    library
        Name of the sample.
    software
        Name and version of what the file claims to be of.
    """
    import h5py

    counts = sp.csr_matrix(counts)
    counts.sort_indices()
    stored = {"chunks": (_CHUNK,), "maxshape": (None,), "compression": "gzip", "shuffle": True}
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs["chemistry_description"] = "simulated"
        file.attrs["filetype"] = "matrix"
        file.attrs["library_ids"] = np.array([library], dtype="S")
        file.attrs["original_gem_groups"] = np.array([1])
        file.attrs["software_version"] = software
        file.attrs["version"] = 2
        group = file.create_group("matrix")
        # Features x barcodes by column is barcodes x features by row.
        group.create_dataset("data", data=counts.data.astype(np.int32), **stored)
        group.create_dataset("indices", data=counts.indices.astype(np.int64), **stored)
        group.create_dataset("indptr", data=counts.indptr.astype(np.int64), **stored)
        group["shape"] = np.array([counts.shape[1], counts.shape[0]], dtype=np.int32)
        group.create_dataset("barcodes", data=np.array(barcodes, dtype="S"), **stored)
        table = group.create_group("features")
        table["_all_tag_keys"] = np.array(["genome"], dtype="S")
        for name in ("id", "name", "feature_type"):
            table.create_dataset(name, data=features[name].to_numpy().astype("S"), **stored)
        table.create_dataset("genome", data=np.full(len(features), GENOME).astype("S"), **stored)


def write_previews(pixels: NDArray[np.uint8], folder: Path) -> dict[str, float]:
    """`tissue_hires_image.png` and `tissue_lowres_image.png`; their scales against the full image, by JSON key."""
    image, scales = Image.fromarray(pixels), {}
    longest = max(image.size)
    for name, side in (("hires", HIRES_PX), ("lowres", LOWRES_PX)):
        scale = min(1.0, side / longest)
        size = (round(image.width * scale), round(image.height * scale))
        image.resize(size, Image.Resampling.BOX).save(folder / f"tissue_{name}_image.png")
        scales[f"tissue_{name}_scalef"] = size[0] / image.width
    return scales


def write_csv_gz(path: Path, table: pd.DataFrame, *, sep: str = ",", index: bool = False) -> None:
    """A gzipped table without name or time in its header."""
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
        packed.write(table.to_csv(sep=sep, index=index, lineterminator="\n").encode())


def mixed(numbers: NDArray[np.integer[Any]]) -> NDArray[np.uint32]:
    """Numbers below 2³² stirred into others, one to one: they look drawn and are the same for everybody."""
    x = np.asarray(numbers).astype(np.uint64)
    for factor, shift in ((0x7FEB352D, 16), (0x846CA68B, 15)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    return np.asarray(x ^ (x >> np.uint64(16)), dtype=np.uint32)
