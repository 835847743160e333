"""Visium, as Space Ranger 1 to 4 writes it.

    filtered_feature_bc_matrix.h5 (or raw_feature_bc_matrix.h5, of which spots in tissue are kept)
    spatial/tissue_positions.csv | tissue_positions_list.csv | tissue_positions.parquet
    spatial/scalefactors_json.json, spatial/tissue_hires_image.png (or lowres)

The scale is fitted on the pitch: 100 µm between neighbours of the hexagonal array, so 50 µm per array column and
86.6 µm per array row. `spot_diameter_fullres` is no ruler: it spans about 65 µm, so that dividing by the nominal 55 µm
spot is wrong by some 15 %. The full-resolution image is not among the outputs; without --image the hires picture
is kept as a preview. A Visium HD folder of one bin size is read alike, its bins being the lattice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from triglyph.errors import ScaleError, SourceError
from triglyph.tissue.decode import decode
from triglyph.tissue.draft import ImageSource, SectionDraft
from triglyph.tissue.frames import Affine
from triglyph.tissue.readers.base import (
    Notes,
    Origin,
    ReadOptions,
    SectionSource,
    keep_inside,
    origin,
    provenance,
    read_record,
)
from triglyph.tissue.readers.counts import Counts, one_column_per_symbol, read_10x_h5, species_of
from triglyph.tissue.readers.pictures import section_image
from triglyph.tissue.readers.scales import LatticeFit, Scale, file_scale, fit_lattice, settle_scale
from triglyph.units import Mpp, Um

SPOT_UM, PITCH_UM = Um(55.0), Um(100.0)
_COUNTS = ("filtered_feature_bc_matrix.h5", "raw_feature_bc_matrix.h5")
_POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
_PREVIEWS = ("hires", "lowres")
_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")


class VisiumReader:
    """Reader of Space Ranger outputs. `--image` gives the full-resolution image the run was made with."""

    platform = "visium"
    understands = frozenset({"mpp", "image", "lossless"})

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """The folder itself, or each folder in it that is one (`<sample>` or `<sample>/outs`)."""
        folders = [source] if _is_output(source) else []
        if not folders and source.is_dir():
            inside = sorted(p for p in source.iterdir() if p.is_dir() and not p.name.startswith("."))
            folders = [f for p in inside for f in (p, p / "outs") if _is_output(f)]
        if not folders:
            bins = source / "binned_outputs"
            raise SourceError(
                "not a Space Ranger output: it has neither spatial/ with a count matrix nor folders that do",
                where=source,
                mend=f"give one bin size of this Visium HD run, such as {bins / 'square_016um'}"
                if bins.is_dir()
                else "give the `outs` folder, or another --platform",
            )
        return [_section(folder, self.platform) for folder in folders]

    def read(
        self,
        section: SectionSource,
        options: ReadOptions,
        *,
        own: Origin | None = None,
        beside: Sequence[str] = (),
    ) -> SectionDraft:
        """Counts of the spots in tissue; centres in µm from the full-resolution pixels.

        Parameters
        ----------
        own
            What a data set says of whose tissue it is; the user goes before it.
        beside
            Roles of further files that belong to the section's provenance.
        """
        notes = Notes()
        positions, factors = _read_positions(section.file("positions")), read_record(section.file("scalefactors"))
        counts = one_column_per_symbol(read_10x_h5(section.file("counts"), notes), notes)
        lattice = _lattice(factors, section.files["scalefactors"])
        fit = fit_lattice(
            positions[["array_col", "array_row"]].to_numpy() * lattice["step_um"],
            positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(),
            pitch_um=lattice["pitch_um"],
            where=section.files["positions"],
        )
        scale = _scale(section, fit, factors, options)
        table = _table(section, counts, positions, scale, notes)
        images: list[ImageSource] = []
        used = ["counts", "positions", "scalefactors", *beside]
        if options.image is not None:
            images.append(
                section_image(options.image, scale=scale, section_id=section.section_id, options=options, notes=notes)
            )
        preview = _preview(section, factors, scale, notes)
        if preview is not None:
            images.append(preview[1])
            used.append(preview[0])
        table = keep_inside(table, images, options, notes)
        whose = origin(section, options, own=own)
        facts = {"patient_source": whose.source, "scale": fit.record() | {"mpp": scale.mpp, "source": scale.source}}
        return SectionDraft(
            section_id=section.section_id,
            patient=whose.patient,
            block=whose.block,
            platform=lattice["platform"],
            table=table,
            location_um=lattice["location_um"],
            pitch_um=lattice["pitch_um"],
            location_shape=lattice["shape"],
            images=images,
            species=whose.species or species_of(counts.ensembl_ids),
            organ=whose.organ,
            source=provenance(section, used=used, notes=notes.lines, **facts),
        )


def mpp_by_spot_diameter(spot_diameter_fullres: float) -> float:
    """The scale that the nominal spot would give, 55 µm over `spot_diameter_fullres`; wrong, and here to show it."""
    return SPOT_UM / spot_diameter_fullres


def _is_output(folder: Path) -> bool:
    return (folder / "spatial").is_dir() and any((folder / name).is_file() for name in _COUNTS)


def _section(folder: Path, platform: str) -> SectionSource:
    name = folder.resolve().name
    if name == "outs":
        name = folder.resolve().parent.name
    elif name.startswith("square_") and folder.resolve().parent.name == "binned_outputs":
        run = folder.resolve().parents[1]
        name = f"{run.parent.name if run.name == 'outs' else run.name}-{name}"
    spatial = folder / "spatial"
    first = {
        "counts": [folder / n for n in _COUNTS],
        "positions": [spatial / n for n in _POSITIONS],
    }
    files = {role: next((p for p in paths if p.is_file()), paths[0]) for role, paths in first.items()}
    files["scalefactors"] = spatial / "scalefactors_json.json"
    for role in _PREVIEWS:
        found = [p for p in (spatial / f"tissue_{role}_image{suffix}" for suffix in (".png", ".jpg")) if p.is_file()]
        files |= {role: found[0]} if found else {}
    return SectionSource(name, platform, folder, files)


def _read_positions(path: Path) -> pd.DataFrame:
    mend = f"it should have the columns {', '.join(_COLUMNS)}"
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        elif path.name == "tissue_positions_list.csv":  # Space Ranger 1 wrote no header
            table = pd.read_csv(path, header=None, dtype={0: str})
            table.columns = pd.Index(_COLUMNS[: table.shape[1]])
        else:
            table = pd.read_csv(path, dtype={"barcode": str})
    except (OSError, ValueError) as error:
        raise SourceError(f"the positions file is not readable ({error})", where=path, mend=mend) from error
    lacking = [c for c in _COLUMNS if c not in table]
    if lacking:
        raise SourceError(f"the positions file lacks {', '.join(lacking)}", where=path, mend=mend)
    numbers = table[list(_COLUMNS[1:])].apply(pd.to_numeric, errors="coerce")
    bad = np.flatnonzero(~np.isfinite(numbers.to_numpy()).all(axis=1))
    if bad.size:
        row = f"row {bad[0]} (barcode {table['barcode'].iloc[bad[0]]})"
        raise SourceError(f"{bad.size} spots have no position", where=f"{path}, {row}", mend="restore the file")
    numbers.index = pd.Index(table["barcode"].astype(str).to_numpy(dtype=object), dtype=object)
    if numbers.index.has_duplicates:
        twice = numbers.index[numbers.index.duplicated()][0]
        raise SourceError(f"barcode {twice} has two positions", where=path, mend="restore the file")
    return numbers


def _lattice(factors: dict[str, Any], path: Path) -> dict[str, Any]:
    """µm per array column and row, pitch, size and shape of a location."""
    side = factors.get("bin_size_um")
    if side is None:
        steps = np.array([PITCH_UM / 2, PITCH_UM * math.sqrt(3) / 2])
        return {
            "platform": "visium",
            "step_um": steps,
            "pitch_um": PITCH_UM,
            "location_um": SPOT_UM,
            "shape": "circle",
        }
    if not isinstance(side, int | float) or not side > 0:
        raise ScaleError(f"bin_size_um is {side!r}", where=path, mend="restore the file")
    um = Um(float(side))
    steps = np.array([um, um])
    return {"platform": "visium-hd", "step_um": steps, "pitch_um": um, "location_um": um, "shape": "square"}


def _scale(section: SectionSource, fit: LatticeFit, factors: dict[str, Any], options: ReadOptions) -> Scale:
    stated = [fit.scale]
    where = f"{section.root}, section {section.section_id}"
    if isinstance(factors.get("microns_per_pixel"), int | float):
        stated.append(Scale(Mpp(float(factors["microns_per_pixel"])), "scalefactors_json.json"))
    if options.image is not None and (own := file_scale(options.image)) is not None:
        stated.append(own)
    return settle_scale(stated, given=options.mpp, where=where)


def _table(section: SectionSource, counts: Counts, positions: pd.DataFrame, scale: Scale, notes: Notes) -> ad.AnnData:
    unknown = ~np.isin(counts.barcodes, positions.index.to_numpy())
    if unknown.any():
        raise SourceError(
            f"{int(unknown.sum())} barcodes of the counts have no position (first: {counts.barcodes[unknown][0]})",
            where=section.files["positions"],
            mend="check that counts and positions are of one run",
        )
    at = positions.loc[counts.barcodes.tolist()]
    keep = at["in_tissue"].to_numpy() == 1
    if not keep.all():
        notes.add(f"left out {int((~keep).sum())} spots that are not in tissue")
        at = at[keep]
    obs = at[["array_row", "array_col"]].astype(np.int64)
    var = pd.DataFrame({"ensembl_id": counts.ensembl_ids}, index=pd.Index(counts.symbols, dtype=object))
    table = ad.AnnData(X=counts.matrix[keep], obs=obs, var=var)
    table.obsm["spatial"] = at[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=np.float64) * scale.mpp
    return table


def _preview(
    section: SectionSource, factors: dict[str, Any], scale: Scale, notes: Notes
) -> tuple[str, ImageSource] | None:
    """The hires picture, or the lowres one where hires is blank or missing; its role and the image."""
    for role in _PREVIEWS:
        if role not in section.files:
            continue
        path, key = section.files[role], f"tissue_{role}_scalef"
        if np.ptp(decode(path)) == 0:
            notes.add(f"{path.name} is blank and is left out")
            continue
        factor = factors.get(key)
        if not isinstance(factor, int | float) or not 0 < factor <= 1:
            raise ScaleError(f"{key} is {factor!r}", where=section.files["scalefactors"], mend="restore the file")
        mpp = Mpp(scale.mpp / factor)
        source = f"{scale.source}; {key} {factor:g}"
        return role, ImageSource(path=path, to_um=Affine.scale(mpp), mpp=mpp, mpp_source=source, role="preview")
    return None
