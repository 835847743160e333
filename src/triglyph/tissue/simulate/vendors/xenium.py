"""Xenium, as its onboard analysis 3 writes a region, and the H&E of the same section in a frame of its own.

    experiment.xenium   gene_panel.json
    transcripts.parquet   cells.parquet   cells.csv.gz   cell_feature_matrix.h5
    cell_boundaries.parquet   nucleus_boundaries.parquet   cells.zarr.zip
    morphology_focus/morphology_focus_0000.ome.tif
    <id>_he_image.ome.tif   <id>_he_imagealignment.csv   <id>_he_keypoints.csv

Everything but the H&E lies in the instrument's frame (`xenium_frame`). A transcript belongs to the cell whose label it
lies in. Transcripts are in the order of their place, which tells nothing of the cell that made them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.storage import atomic_folder, write_json
from triglyph.tissue.simulate.cohort import section_id
from triglyph.tissue.simulate.molecules.transcripts import (
    BLANK,
    CODEWORD,
    CONTROLS,
    GENE,
    PROBE,
    QUALITY,
    Molecules,
    draw_transcripts,
    panel,
)
from triglyph.tissue.simulate.picture.he import he_pixels
from triglyph.tissue.simulate.picture.ome import write_ome
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.simulate.streams import stream
from triglyph.tissue.simulate.vendors.tenx import (
    gene_features,
    write_csv_gz,
    write_matrix_h5,
)
from triglyph.tissue.simulate.vendors.xenium_cells import (
    METHOD,
    UNASSIGNED,
    CellSheet,
    boundaries,
    dna_picture,
    label_mask,
    write_cells_zarr,
)
from triglyph.tissue.simulate.vendors.xenium_frame import PIXEL_UM, InstrumentFrame

SOFTWARE = "xenium-3.0.0"
FEATURE_TYPES = {
    GENE: "Gene Expression",
    PROBE: "Negative Control Probe",
    CODEWORD: "Negative Control Codeword",
    BLANK: "Unassigned Codeword",
}
_CATEGORIES = {PROBE: "negative_control_probe", CODEWORD: "negative_control_codeword", BLANK: "unassigned_codeword"}
_FIRST_ID = 1 << 48
_FOV_UM = 670.0
_DEPTH_UM = 5.0
"""Thickness of the section."""
_NO_NUCLEUS_UM = 1000.0


def write_xenium(specimen: Specimen, folder: Path) -> Path:
    """Write one section as the output folder of a Xenium region, with its H&E; see `write_vendor`."""
    config, name = specimen.config, section_id(*specimen.keys)
    frame, features = InstrumentFrame(specimen), _Features(specimen)
    sheet = CellSheet(frame)
    mask = label_mask(sheet.outlines, frame.shape_px)
    molecules = draw_transcripts(specimen)
    places = frame.place(molecules.xy_um).astype(np.float32)
    molecules = replace(molecules, cell=_labels_at(mask, places))
    counts = cell_counts(molecules, features, len(sheet.ids))
    cells = _cell_table(sheet, counts, features)
    pixels, dye = he_pixels(specimen)
    with atomic_folder(folder) as partial:
        transcripts = _transcripts(specimen, molecules, places, sheet, features)
        transcripts.to_parquet(partial / "transcripts.parquet", index=False)
        cells.to_parquet(partial / "cells.parquet", index=False)
        write_csv_gz(partial / "cells.csv.gz", cells)
        matrix = partial / "cell_feature_matrix.h5"
        write_matrix_h5(matrix, counts, sheet.ids.tolist(), features.table, library=name, software=SOFTWARE)
        for kind, outlines in (("cell", sheet.outlines), ("nucleus", sheet.nuclei)):
            boundaries(sheet, outlines).to_parquet(partial / f"{kind}_boundaries.parquet", index=False)
        write_cells_zarr(sheet, mask, partial / "cells.zarr.zip")
        (partial / "morphology_focus").mkdir()
        focus = partial / "morphology_focus" / "morphology_focus_0000.ome.tif"
        write_ome(focus, dna_picture(sheet), mpp=PIXEL_UM, channel="DAPI")
        write_ome(partial / f"{name}_he_image.ome.tif", pixels, mpp=dye.mpp, quality=config.stain.quality)
        _write_csv(partial / f"{name}_he_imagealignment.csv", pd.DataFrame(frame.alignment(dye.mpp)), header=False)
        _write_csv(partial / f"{name}_he_keypoints.csv", frame.keypoints(dye.mpp), header=True)
        write_json(partial / "gene_panel.json", features.panel_record())
        write_json(partial / "experiment.xenium", _experiment(specimen, name, molecules, counts, features))
    return folder


class _Features:
    """Rows of the feature table: the panel's genes in the world's order, then controls."""

    def __init__(self, specimen: Specimen) -> None:
        symbols = np.array(specimen.world.symbols, dtype=object)
        self.core, self.addon = panel(specimen.config, specimen.patient)
        self.genes = np.flatnonzero(self.core | self.addon)
        parts = [gene_features(symbols[self.genes].tolist())]
        self._start = {GENE: 0}
        for kind, names in CONTROLS.items():
            self._start[kind] = sum(map(len, parts))
            parts.append(gene_features(names).assign(feature_type=FEATURE_TYPES[kind]))
        self.table = pd.concat(parts, ignore_index=True)
        categories = np.where(self.core[self.genes], "predesigned_gene", "custom_gene").tolist()
        for kind, names in CONTROLS.items():
            categories += [_CATEGORIES[kind]] * len(names)
        self.categories = np.array(categories, dtype=object)

    def rows(self, molecules: Molecules) -> NDArray[np.int64]:
        """(n,) the row of each molecule's feature."""
        on_panel = np.searchsorted(self.genes, molecules.gene)
        start = np.array([self._start[kind] for kind in sorted(self._start)])
        return np.asarray(np.where(molecules.kind == GENE, on_panel, start[molecules.kind] + molecules.gene))

    def of_kind(self, kind: int) -> NDArray[np.bool_]:
        """(features,)"""
        return np.asarray(self.table["feature_type"] == FEATURE_TYPES[kind])

    def panel_record(self) -> dict[str, Any]:
        """`gene_panel.json`."""
        targets = []
        for codeword, (name, category) in enumerate(zip(self.table["name"], self.categories, strict=True)):
            gene = category.endswith("_gene")
            data = {"id": name, "name": name} if gene else {"name": name}
            source = "predesigned" if category == "predesigned_gene" else "custom" if gene else "control"
            targets.append(
                {
                    "codewords": [codeword],
                    "source": {"category": source, "identity": {"design_id": "simulated", "name": "simulated"}},
                    "type": {"data": data, "descriptor": "gene" if gene else category},
                }
            )
        identity = {"design_id": "simulated", "name": "simulated", "version": "1.0.0"}
        return {
            "metadata": {"schema_version": "1"},
            "payload": {
                "chemistry": {"version": "v1"},
                "panel": {
                    "identity": identity,
                    "num_gene_targets": len(self.genes),
                    "species": "human",
                    "tissue": "breast",
                },
                "targets": targets,
            },
        }


def cell_counts(molecules: Molecules, features: _Features, cells: int) -> sp.csr_matrix:
    """(cells, features) molecules decoded well enough that fall in a cell, controls among them."""
    counted = molecules.take((molecules.qv >= QUALITY) & (molecules.cell >= 0))
    index, shape = (counted.cell, features.rows(counted)), (cells, len(features.table))
    return sp.coo_matrix((np.ones(len(counted), dtype=np.int32), index), shape=shape).tocsr()


def _labels_at(mask: NDArray[np.uint32], places_um: NDArray[np.float32]) -> NDArray[np.int32]:
    """(n,) the cell whose label lies at each place, -1 for none."""
    # In 64 bits, as readers will have it: pixels are the floor of the quotient of what is written.
    columns, rows = np.floor(places_um.astype(np.float64) / PIXEL_UM).astype(np.int64).T
    inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
    found = np.full(len(places_um), -1, dtype=np.int32)
    found[inside] = mask[rows[inside], columns[inside]].astype(np.int32) - 1
    return found


def _transcripts(
    specimen: Specimen, molecules: Molecules, places: NDArray[np.float32], sheet: CellSheet, features: _Features
) -> pd.DataFrame:
    """`transcripts.parquet`: every molecule, also the badly decoded ones and those of no cell."""
    order = np.lexsort((places[:, 0], places[:, 1]))
    molecules, places = molecules.take(order), places[order]
    rows, ids = features.rows(molecules), np.append(sheet.ids.astype(object), UNASSIGNED)
    depth = stream(specimen.config.seed, "transcripts depth", *specimen.keys).random(len(molecules))
    column, row = np.floor(places / _FOV_UM).astype(np.int64).clip(0).T
    fov, of_fov = np.unique(row * 1000 + column, return_inverse=True)
    distance = np.minimum(molecules.nucleus_um, _NO_NUCLEUS_UM)
    return pd.DataFrame(
        {
            "transcript_id": _FIRST_ID + np.arange(len(molecules), dtype=np.uint64),
            # The last of `ids` is that of no cell.
            "cell_id": ids[molecules.cell],
            "overlaps_nucleus": ((molecules.nucleus_um == 0) & (molecules.cell >= 0)).astype(np.uint8),
            "feature_name": features.table["name"].to_numpy(dtype=object)[rows],
            "x_location": places[:, 0],
            "y_location": places[:, 1],
            "z_location": (_DEPTH_UM * depth).astype(np.float32),
            "qv": molecules.qv,
            "fov_name": np.array([_fov_name(*divmod(int(number), 1000)) for number in fov], dtype=object)[of_fov],
            "nucleus_distance": distance.astype(np.float32),
            "codeword_index": rows.astype(np.int32),
            "codeword_category": features.categories[rows],
            "is_gene": molecules.kind == GENE,
        }
    )


def _fov_name(row: int, column: int) -> str:
    """`B3` for the third field of view of the second row."""
    return f"{chr(ord('A') + row % 26) * (row // 26 + 1)}{column + 1}"


def _cell_table(sheet: CellSheet, counts: sp.csr_matrix, features: _Features) -> pd.DataFrame:
    """`cells.parquet`."""
    by_kind = {kind: np.asarray(counts[:, features.of_kind(kind)].sum(1)).ravel() for kind in FEATURE_TYPES}
    none, centroids = np.zeros(len(sheet.ids), dtype=np.int64), sheet.centroids
    return pd.DataFrame(
        {
            "cell_id": sheet.ids.astype(object),
            "x_centroid": centroids[:, 0],
            "y_centroid": centroids[:, 1],
            "transcript_counts": by_kind[GENE].astype(np.int64),
            "control_probe_counts": by_kind[PROBE].astype(np.int64),
            "genomic_control_counts": none,
            "control_codeword_counts": by_kind[CODEWORD].astype(np.int64),
            "unassigned_codeword_counts": by_kind[BLANK].astype(np.int64),
            "deprecated_codeword_counts": none,
            "total_counts": np.asarray(counts.sum(1)).ravel().astype(np.int64),
            "cell_area": sheet.cell_um2,
            "nucleus_area": sheet.nucleus_um2,
            "nucleus_count": none + 1,
            "segmentation_method": METHOD,
        }
    )


def _experiment(
    specimen: Specimen, name: str, molecules: Molecules, counts: sp.csr_matrix, features: _Features
) -> dict[str, Any]:
    """`experiment.xenium`."""
    genes = counts[:, features.of_kind(GENE)].sum(1)
    tissue = specimen.tissue
    area = float(tissue.cover.sum(dtype=np.float64)) * tissue.step_um**2
    return {
        "major_version": 6,
        "minor_version": 0,
        "patch_version": 0,
        "run_name": specimen.config.name,
        "run_start_time": "1970-01-01T00:00:00Z",
        "region_name": name,
        "preservation_method": "simulated",
        "num_cells": counts.shape[0],
        "transcripts_per_cell": float(np.median(np.asarray(genes))),
        "transcripts_per_100um": round(float(molecules.seen.sum()) / area * 100, 6),
        "cassette_name": "simulated",
        "slide_id": name,
        "panel_design_id": "simulated",
        "panel_name": f"{specimen.config.name} panel",
        "panel_organism": "Human",
        "panel_tissue_type": specimen.config.organ.capitalize(),
        "panel_num_targets_predesigned": int(features.core.sum()),
        "panel_num_targets_custom": int(features.addon.sum()),
        "pixel_size": PIXEL_UM,
        "instrument_sn": "simulated",
        "instrument_sw_version": "simulated",
        "analysis_sw_version": f"{SOFTWARE} (simulated)",
        "experiment_uuid": "",
        "cassette_uuid": "",
        "roi_uuid": "",
        "z_step_size": 3.0,
        "well_uuid": "",
        "images": {"morphology_focus_filepath": "morphology_focus/morphology_focus_0000.ome.tif"},
        "xenium_explorer_files": {"cells_zarr_filepath": "cells.zarr.zip"},
    }


def _write_csv(path: Path, table: pd.DataFrame, *, header: bool) -> None:
    path.write_text(table.to_csv(index=False, header=header, lineterminator="\n"), encoding="utf-8")
