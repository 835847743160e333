"""A HEST folder: sections of many platforms on one layout.

    st/<id>.h5ad          counts; obsm["spatial"] in level-0 pixels
    wsis/<id>.tif         pyramidal TIFF, optional (without it the section is expression only)
    metadata/<id>.json    pixel_size_um_estimated, st_technology, patient, dataset_title, species, organ ...
    HEST_v*.csv           the same facts of all sections, optional

Facts from the HEST library 1.1 (spots of Visium 55 µm, of ST 100 µm; Xenium pooled to squares of 100 µm, Visium HD to
128 µm). Patients are named within a dataset there, so a patient is `<dataset_title> / <patient>` here. The pitch is
measured: two sections of HEST are not on the lattice their metadata state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anndata as ad
import numpy as np

from triglyph.errors import ScaleError, SourceError
from triglyph.tissue.checks import MAX_ANISOTROPY, MAX_SCALE_DISAGREEMENT, image_size
from triglyph.tissue.draft import ImageSource, SectionDraft
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
from triglyph.tissue.readers.pictures import section_image
from triglyph.tissue.readers.rows import rows_worth_reading
from triglyph.tissue.readers.scales import Scale, file_scale, nearest_pitch, settle_scale
from triglyph.tissue.readers.tables import open_anndata, our_table, positions
from triglyph.units import Um, checked_mpp

CONTROLS = ("NegControl", "BLANK", "Blank", "antisense_", "Unassigned", "Deprecated", "Intergenic")
"""Prefixes of what a Xenium panel counts beside genes; HEST keeps them among the genes."""
_SPECIES = {"homo sapiens": "human", "mus musculus": "mouse"}


MAX_MPP = 0.8
"""µm per pixel above which `human_visium` leaves a section out, as SpatialWhisperer does."""


class Lattice(NamedTuple):
    """What a technology's locations are, where metadata do not say."""

    platform: str
    shape: Literal["circle", "square"]
    location_um: float
    pitch_um: float


TECHNOLOGIES = {
    "visium": Lattice("visium", "circle", 55, 100),
    "spatial transcriptomics": Lattice("st", "circle", 100, 200),
    "visium hd": Lattice("visium-hd", "square", 128, 128),
    "xenium": Lattice("xenium", "square", 100, 100),
}


class HestReader:
    """Reader of HEST folders."""

    platform = "hest"
    understands = frozenset({"mpp", "lossless", "human_visium", "min_genes", "min_window_std"})

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """One section per `st/*.h5ad`; with `human_visium`, those that SpatialWhisperer trains on."""
        tables = sorted((source / "st").glob("*.h5ad"))
        if not tables:
            raise SourceError(
                "not a HEST folder: it has no st/*.h5ad",
                where=source,
                mend="give the folder that holds st/, wsis/ and metadata/, or another --platform",
            )
        stated = _stated(source) if options.human_visium else None
        sections = []
        for table in tables:
            name = table.stem
            if options.human_visium and not is_human_visium(_facts(name, stated, source)):
                continue
            files = {"table": table, "metadata": source / "metadata" / f"{name}.json"}
            if (image := source / "wsis" / f"{name}.tif").is_file():
                files["image"] = image
            sections.append(SectionSource(name, self.platform, source, files))
        if not sections:
            raise SourceError(
                f"none of its {len(tables)} sections is human Visium of at most {MAX_MPP} µm/px",
                where=source,
                mend="leave --human-visium out, or fetch such sections",
            )
        return sections

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """Counts, image and metadata of one section."""
        notes = Notes()
        metadata = read_record(section.file("metadata"))
        found = open_anndata(section.file("table"))
        image_path = section.files.get("image")
        scale = _scale(section, metadata, image_path, options, notes)
        lattice = _lattice(metadata, section.files["metadata"])
        table = our_table(found, layer=None, notes=notes, where=section.files["table"])
        table.obsm["spatial"] = positions(found, "spatial", where=section.files["table"]) * scale.mpp
        if lattice.platform == "xenium":
            table = without_controls(table, notes)
        lattice = _measured(lattice, table.obsm["spatial"], metadata, notes)
        images: list[ImageSource] = []
        used = ["table", "metadata"]
        if image_path is not None:
            images.append(
                section_image(image_path, scale=scale, section_id=section.section_id, options=options, notes=notes)
            )
            _check_size(images[0], metadata, section.files["metadata"])
            used.append("image")
        else:
            notes.add("there is no image in wsis/; the section is expression only")
        table = keep_inside(table, images, options, notes)
        table = rows_worth_reading(table, images, options, notes)
        whose = origin(section, options, own=_own(metadata, section.files["metadata"]))
        kept = {k: metadata[k] for k in ("dataset_title", "st_technology", "oncotree_code", "license") if k in metadata}
        facts = {"patient_source": whose.source, "scale": {"mpp": scale.mpp, "source": scale.source}, "metadata": kept}
        return SectionDraft(
            section_id=section.section_id,
            patient=whose.patient,
            block=whose.block,
            platform=lattice.platform,
            table=table,
            location_um=Um(lattice.location_um),
            pitch_um=Um(lattice.pitch_um),
            location_shape=lattice.shape,
            images=images,
            species=whose.species,
            organ=whose.organ,
            source=provenance(section, used=used, notes=notes.lines, **facts),
        )


def is_human_visium(facts: Mapping[str, Any]) -> bool:
    """The filter of SpatialWhisperer: 384 sections of HEST 1.1."""
    mpp = _number(facts, "pixel_size_um_estimated")
    named = (facts.get("st_technology"), facts.get("species")) == ("Visium", "Homo sapiens")
    return named and mpp is not None and mpp <= MAX_MPP


def _stated(source: Path) -> dict[str, dict[str, Any]] | None:
    """Rows of `HEST_v*.csv` by section, the latest version's; None where there is no such table."""
    import pandas as pd

    tables = sorted(source.glob("HEST_v*.csv"))
    if not tables:
        return None
    try:
        found = pd.read_csv(tables[-1], usecols=["id", "st_technology", "species", "pixel_size_um_estimated"])
    except (OSError, ValueError) as error:
        raise SourceError(
            f"the table of sections is not readable ({error})", where=tables[-1], mend="fetch it again"
        ) from error
    return {str(row["id"]): {str(k): v for k, v in row.items()} for row in found.to_dict("records")}


def _facts(name: str, stated: dict[str, dict[str, Any]] | None, source: Path) -> dict[str, Any]:
    if stated is None:
        return read_record(source / "metadata" / f"{name}.json")
    if name not in stated:
        raise SourceError(
            f"the table of sections lacks {name}", where=source, mend="fetch the HEST_v*.csv of this version of HEST"
        )
    return stated[name]


def without_controls(table: ad.AnnData, notes: Notes) -> ad.AnnData:
    """`table` without control and unassigned codewords, which are no genes."""
    control = np.array([str(name).startswith(CONTROLS) for name in table.var_names])
    if control.any():
        notes.add(f"left out {int(control.sum())} control and unassigned codewords, which are no genes")
        table = table[:, ~control].copy()
    return table


def _number(metadata: Mapping[str, Any], key: str) -> float | None:
    """A number that is there; HEST writes null or NaN where it knows none."""
    value = metadata.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return float(value) if isinstance(value, int | float) else None


def _own(metadata: dict[str, Any], path: Path) -> Origin:
    patient, title = (str(metadata.get(k) or "").strip() for k in ("patient", "dataset_title"))
    named = f"{title} / {patient}" if patient and title else patient
    species = str(metadata.get("species") or "")
    return Origin(
        patient=named,
        source=path.name,
        species=_SPECIES.get(species.lower(), species.lower()),
        organ=str(metadata.get("organ") or "").lower(),
    )


def _scale(
    section: SectionSource, metadata: dict[str, Any], image: Path | None, options: ReadOptions, notes: Notes
) -> Scale:
    path = section.files["metadata"]
    stated = []
    estimated, embedded = (_number(metadata, f"pixel_size_um_{k}") for k in ("estimated", "embedded"))
    if estimated is not None:
        stated.append(Scale(checked_mpp(estimated, where=path), "metadata pixel_size_um_estimated"))
    if image is not None and (own := file_scale(image)) is not None:
        stated.append(own)
    # HEST estimates from the array because the scanner's own number is often wrong; it is told, not believed.
    if estimated and embedded and abs(estimated - embedded) > MAX_SCALE_DISAGREEMENT * min(estimated, embedded):
        notes.add(f"the scanner's file said {embedded:.4f} µm/px (metadata pixel_size_um_embedded); it is not used")
    if not stated and options.mpp is None:
        raise ScaleError("the metadata have no pixel_size_um_estimated", where=path, mend="give --mpp")
    return settle_scale(stated, given=options.mpp, where=f"{section.root}, section {section.section_id}")


def _lattice(metadata: dict[str, Any], path: Path) -> Lattice:
    technology = str(metadata.get("st_technology") or "").strip().lower()
    if technology not in TECHNOLOGIES:
        raise SourceError(
            f"st_technology is {metadata.get('st_technology')!r}",
            where=path,
            mend=f"it should be one of {', '.join(TECHNOLOGIES)}",
        )
    known = TECHNOLOGIES[technology]
    if known.shape == "square":
        return known
    diameter = _number(metadata, "spot_diameter") or known.location_um
    return known._replace(location_um=diameter)


def _measured(lattice: Lattice, centres_um: np.ndarray, metadata: dict[str, Any], notes: Notes) -> Lattice:
    """The pitch as it is in the data; a square bin is as wide as the pitch."""
    stated = _number(metadata, "inter_spot_dist") or lattice.pitch_um
    measured = nearest_pitch(centres_um)
    if not measured > 0:
        return lattice._replace(pitch_um=stated)
    if abs(measured - stated) <= MAX_ANISOTROPY * stated:
        pitch = stated
    else:
        notes.add(f"locations are {measured:.1f} µm apart, not {stated:g} µm as stated; what is measured is used")
        pitch = measured
    return lattice._replace(pitch_um=pitch, location_um=pitch if lattice.shape == "square" else lattice.location_um)


def _check_size(image: ImageSource, metadata: dict[str, Any], path: Path) -> None:
    width, height = (_number(metadata, f"fullres_px_{k}") for k in ("width", "height"))
    size = image_size(image)
    if width and height and (round(width), round(height)) != size:
        raise ScaleError(
            f"the image is {size[0]} x {size[1]} px, the metadata say {width:.0f} x {height:.0f} px",
            where=f"{image.path}, {path}",
            mend="get the full-resolution image of this section; positions are in its pixels",
        )
