"""Small vendor folders for tests: the layouts of legacy ST, Space Ranger, HEST and plain AnnData, a few kilobytes each.

Counts are Poisson, positions lie exactly on the platform's lattice at a stated mpp, and pictures are smooth noise, so a
test knows what a reader should find.
"""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image

from triglyph.tissue.pyramid import write_pyramid

GENES = ("ERBB2", "KRT8", "COL1A1", "CD3E", "ALB")
_GZIP: dict[str, Any] = {"method": "gzip", "mtime": 0}
IDS = ("ENSG00000141736", "ENSG00000170421", "ENSG00000108821", "ENSG00000198851", "ENSG00000163631")


def picture(width: int, height: int, *, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8, smooth and not constant."""
    coarse = np.random.default_rng(seed).integers(120, 255, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def counts(n: int, *, seed: int = 0, genes: int = len(GENES)) -> np.ndarray:
    """(n, genes) int64, no row empty."""
    return np.random.default_rng(seed).poisson(3.0, (n, genes)) + 1


def st_folder(
    folder: Path,
    sections: tuple[str, ...] = ("C2",),
    *,
    side: int = 5,
    mpp: float = 5.0,
    mpp_y: float | None = None,
    images: bool = True,
    labels: bool = True,
    seed: int = 0,
) -> Path:
    """her2st's layout: `side` x `side` spots, 200 µm apart, first at array (3, 4)."""
    for name in ("counts", "spots", "images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, section in enumerate(sections):
        rng = np.random.default_rng([seed, number])
        x, y = (v.ravel() for v in np.meshgrid(np.arange(3, 3 + side), np.arange(4, 4 + side), indexing="ij"))
        new_x, new_y = x + rng.uniform(-0.05, 0.05, x.size), y + rng.uniform(-0.05, 0.05, y.size)
        spots = pd.DataFrame(
            {
                "x": x,
                "y": y,
                "new_x": new_x,
                "new_y": new_y,
                "pixel_x": (new_x - 2) * 200 / mpp,
                "pixel_y": (new_y - 3) * 200 / (mpp_y or mpp),
                "selected": 1,
            }
        )
        spots.to_csv(folder / "spots" / f"{section}_selection.tsv", sep="\t", index=False)
        table = pd.DataFrame(
            counts(x.size, seed=seed + number), index=[f"{a}x{b}" for a, b in zip(x, y, strict=True)], columns=GENES
        )
        # Not in the order of the spots; without the time of day, so that bytes are the same each time.
        table.iloc[::-1].to_csv(folder / "counts" / f"{section}.tsv.gz", sep="\t", compression=_GZIP)
        if images:
            size = round((side + 1) * 200 / mpp)
            Image.fromarray(picture(size, size, seed=number)).save(folder / "images" / f"{section}.jpg", quality=95)
        if labels:
            marked = pd.DataFrame({"x": new_x, "y": new_y, "label": np.where(x < 5, "invasive cancer", "undetermined")})
            marked.to_csv(folder / "labels" / f"{section}_labeled_coordinates.tsv", sep="\t", index=False)
    return folder


def write_10x_h5(
    path: Path,
    matrix: np.ndarray,
    barcodes: list[str],
    *,
    symbols: tuple[str, ...] = GENES,
    ids: tuple[str, ...] = IDS,
    kinds: tuple[str, ...] | None = None,
) -> None:
    """A feature-barcode matrix in the layout of Space Ranger; `matrix` is (barcodes, features)."""
    stored = sp.csr_matrix(matrix)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = stored.data, stored.indices, stored.indptr
        group["shape"] = np.array([stored.shape[1], stored.shape[0]], dtype=np.int32)
        group["barcodes"] = np.array(barcodes, dtype="S")
        features = group.create_group("features")
        features["id"], features["name"] = np.array(ids, dtype="S"), np.array(symbols, dtype="S")
        features["feature_type"] = np.array(kinds or ["Gene Expression"] * len(ids), dtype="S")


def visium_folder(
    folder: Path, *, rows: int = 8, columns: int = 8, mpp: float = 2.0, header: bool = True, hires: bool = True
) -> Path:
    """A Space Ranger output: a hexagonal array of rows x columns spots, the first row not in tissue."""
    spatial = folder / "spatial"
    spatial.mkdir(parents=True)
    row, step = (v.ravel() for v in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    column = 2 * step + row % 2
    frame = pd.DataFrame(
        {
            "barcode": [f"ACGT{i:03d}-1" for i in range(row.size)],
            "in_tissue": (row > 0).astype(int),
            "array_row": row,
            "array_col": column,
            "pxl_row_in_fullres": np.round((row * 50 * math.sqrt(3) + 100) / mpp).astype(int),
            "pxl_col_in_fullres": np.round((column * 50 + 100) / mpp).astype(int),
        }
    )
    name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    frame.to_csv(spatial / name, index=False, header=header)
    factor = 0.5
    # The printed diameter is some 65 µm, as in real outputs, not the nominal 55.
    write_json(
        spatial / "scalefactors_json.json",
        {"spot_diameter_fullres": 65 / mpp, "tissue_hires_scalef": factor, "tissue_lowres_scalef": factor / 4},
    )
    size = fullres_size(frame)
    if hires:
        Image.fromarray(picture(round(size[0] * factor), round(size[1] * factor))).save(
            spatial / "tissue_hires_image.png"
        )
    inside = frame[frame["in_tissue"] == 1]
    write_10x_h5(folder / "filtered_feature_bc_matrix.h5", counts(len(inside)), list(inside["barcode"]))
    return folder


def fullres_size(positions: pd.DataFrame) -> tuple[int, int]:
    """Width and height of the full-resolution image that goes with `visium_folder`'s positions."""
    return int(positions["pxl_col_in_fullres"].max() + 60), int(positions["pxl_row_in_fullres"].max() + 60)


def table(n_side: int = 5, *, pitch: float = 100.0, seed: int = 0, **obs: Any) -> ad.AnnData:
    """n_side x n_side locations `pitch` apart in `obsm["spatial"]`, starting one pitch in."""
    x, y = (v.ravel() for v in np.meshgrid(np.arange(n_side), np.arange(n_side), indexing="ij"))
    frame = pd.DataFrame({k: [v] * x.size for k, v in obs.items()}, index=[f"spot{i}" for i in range(x.size)])
    found = ad.AnnData(
        X=sp.csr_matrix(counts(x.size, seed=seed).astype(np.float32)), obs=frame, var=pd.DataFrame(index=list(GENES))
    )
    found.obsm["spatial"] = (np.column_stack([x, y]) + 1.0) * pitch
    return found


def hest_folder(
    folder: Path,
    section: str = "TENX1",
    *,
    mpp: float = 2.0,
    tag_mpp: float | None = None,
    image: bool = True,
    **metadata: Any,
) -> Path:
    """A HEST folder with one Visium section of 5 x 5 spots; `metadata` overrides what its JSON says."""
    for name in ("st", "wsis", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    found = table(5, pitch=100 / mpp)
    size = round(600 / mpp)
    found.write_h5ad(folder / "st" / f"{section}.h5ad")
    if image:
        write_pyramid(picture(size, size), folder / "wsis" / f"{section}.tif", mpp=tag_mpp or mpp, tile=64)
    said = {
        "id": section,
        "dataset_title": "A study",
        "patient": "Patient 1",
        "st_technology": "Visium",
        "species": "Homo sapiens",
        "organ": "Breast",
        "pixel_size_um_estimated": mpp,
        "pixel_size_um_embedded": None,
        "inter_spot_dist": 100.0,
        "spot_diameter": 55.0,
        "fullres_px_width": size,
        "fullres_px_height": size,
    }
    write_json(folder / "metadata" / f"{section}.json", said | metadata)
    return folder


def write_json(path: Path, value: Any) -> None:
    """Plain JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change some keys of a JSON file."""
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def edit_counts(path: Path, change: Any) -> None:
    """Rewrite a gzipped count table after `change(DataFrame) -> DataFrame`."""
    frame = pd.read_csv(path, sep="\t", index_col=0)
    change(frame).to_csv(path, sep="\t", compression=_GZIP)


def edit_text(path: Path, change: Any) -> None:
    """Rewrite a text file, gzipped or not, after `change(str) -> str`."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()).decode()).encode()))
    else:
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def leftovers(out: Path) -> list[str]:
    """What a broken run may not leave: partial or scratch files, and section folders without their record."""
    if not out.exists():
        return []
    names = [p.relative_to(out).as_posix() for p in out.rglob("*") if p.name.startswith((".partial-", ".scratch"))]
    sections = out / "sections"
    if sections.is_dir():
        names += [p.name for p in sections.iterdir() if p.is_dir() and not (p / "section.json").is_file()]
    return names
