"""Any AnnData, with or without an image: the reader for what has no reader.

Nothing is guessed: the user says what unit `obsm["spatial"]` is in, how large a location is, and, where no file states
it, the scale; or --spatial-unit none, for cells and profiles that have no place on a slide. Sources are `.h5ad` or
`.zarr`, or a folder of them; an image lies beside its table under the same name, or is given with --image. One table
may hold several sections, told apart by `section_column`.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np

from triglyph.errors import ContractError, RecipeError, ScaleError, SourceError
from triglyph.tissue.checks import MAX_ANISOTROPY
from triglyph.tissue.draft import ImageSource, SectionDraft
from triglyph.tissue.readers.base import Notes, Origin, ReadOptions, SectionSource, keep_inside, origin, provenance
from triglyph.tissue.readers.counts import species_of
from triglyph.tissue.readers.pictures import section_image
from triglyph.tissue.readers.scales import Scale, file_scale, nearest_pitch, settle_scale
from triglyph.tissue.readers.tables import open_anndata, our_table, positions
from triglyph.units import Um

PATIENT_COLUMN = "patient"
_TABLES = (".h5ad", ".zarr")
_IMAGES = (".tif", ".tiff", ".ome.tif", ".svs", ".ndpi", ".mrxs", ".jpg", ".jpeg", ".png")


class AnnDataReader:
    """Reader of AnnData tables."""

    platform = "anndata"
    understands = frozenset(
        {
            "mpp",
            "image",
            "lossless",
            "spatial_key",
            "spatial_unit",
            "counts_layer",
            "patient_column",
            "section_column",
            "location_um",
            "pitch_um",
        }
    )

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """One section per table, or per value of `section_column`."""
        if source.suffix in _TABLES and source.exists():
            tables, root = [source], source.parent
        else:
            tables = sorted(p for p in source.glob("*") if p.suffix in _TABLES) if source.is_dir() else []
            root = source
        if not tables:
            raise SourceError(
                "there is no AnnData: neither an .h5ad or .zarr nor a folder of them",
                where=source,
                mend="check the path, or give another --platform",
            )
        sections = []
        for table in tables:
            if options.section_column is not None:
                names = _sections(table, options.section_column)
                sections += [SectionSource(name, self.platform, root, {"table": table}) for name in names]
                continue
            files = {"table": table}
            beside = [p for p in (table.with_name(table.stem + suffix) for suffix in _IMAGES) if p.is_file()]
            if len(beside) > 1 and options.image is None:
                raise SourceError(
                    f"section {table.stem} has several images", where=root, mend="name one of them with --image"
                )
            if beside:
                files["image"] = beside[0]
            sections.append(SectionSource(table.stem, self.platform, root, files))
        return sections

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """Counts and positions, in the frame of the image (or of the positions, if there is none)."""
        notes, path = Notes(), section.file("table")
        where = f"{path}, section {section.section_id}"
        unit, size_um = _said(options, where)
        found = _rows(open_anndata(path), section, options)
        if size_um is None:
            return self._unplaced(found, section, options, notes)
        image_path = options.image or section.files.get("image")
        scale = _scale(unit, image_path, options, where)
        table = our_table(found, layer=options.counts_layer, notes=notes, where=where)
        centres = positions(found, options.spatial_key or "spatial", where=where)
        table.obsm["spatial"] = centres * (scale.mpp if scale is not None and unit == "px" else 1.0)
        if options.pitch_um is not None:
            _check_pitch(table.obsm["spatial"], options.pitch_um, scale, where)
        images: list[ImageSource] = []
        used = ["table"]
        if image_path is not None and scale is not None:
            images.append(
                section_image(image_path, scale=scale, section_id=section.section_id, options=options, notes=notes)
            )
            used += ["image"] if options.image is None else []
        table = keep_inside(table, images, options, notes)
        whose = origin(section, options, own=_own(found, options, where))
        facts = {
            "patient_source": whose.source,
            "scale": {"mpp": scale.mpp, "source": scale.source} if scale is not None else {},
            "spatial_unit": unit,
        }
        return SectionDraft(
            section_id=section.section_id,
            patient=whose.patient,
            block=whose.block,
            platform=self.platform,
            table=table,
            location_um=Um(size_um),
            pitch_um=None if options.pitch_um is None else Um(options.pitch_um),
            images=images,
            species=whose.species or species_of(table.var["ensembl_id"].to_numpy()),
            organ=whose.organ,
            source=provenance(section, used=used, notes=notes.lines, **facts),
        )

    def _unplaced(self, found: ad.AnnData, section: SectionSource, options: ReadOptions, notes: Notes) -> SectionDraft:
        """Counts and columns alone."""
        path = section.files["table"]
        table = our_table(found, layer=options.counts_layer, notes=notes, where=path)
        if "image" in section.files:
            notes.add(
                f"the image {section.files['image'].name} is left out, since rows have no place (--spatial-unit none)"
            )
        whose = origin(section, options, own=_own(found, options, f"{path}, section {section.section_id}"))
        return SectionDraft(
            section_id=section.section_id,
            patient=whose.patient,
            block=whose.block,
            platform=self.platform,
            table=table,
            location_um=None,
            pitch_um=None,
            location_shape="none",
            species=whose.species or species_of(table.var["ensembl_id"].to_numpy()),
            organ=whose.organ,
            source=provenance(section, used=["table"], patient_source=whose.source, notes=notes.lines),
        )


def _said(options: ReadOptions, where: object) -> tuple[str, float | None]:
    """Unit of the positions and size of a location, µm; None where there are none."""
    if options.spatial_unit is None:
        raise RecipeError(
            "the unit of the positions is not known",
            where=where,
            mend="give --spatial-unit px (level-0 pixels of the image), um, or none, where rows have no place",
        )
    if options.spatial_unit == "none":
        places = ("mpp", "image", "spatial_key", "location_um", "pitch_um")
        if given := [name for name in places if getattr(options, name) is not None]:
            raise RecipeError(
                f"--spatial-unit none, and yet --{given[0].replace('_', '-')}", where=where, mend="give one of the two"
            )
        return "none", None
    if options.location_um is None:
        raise RecipeError(
            "the size of a location is not known", where=where, mend="give --location-um (55 for a Visium spot)"
        )
    return options.spatial_unit, options.location_um


def _sections(path: Path, column: str) -> list[str]:
    return sorted(set(_column(open_anndata(path), column, path).astype(str)))


def _column(found: ad.AnnData, column: str, where: object, *, mend: str = "") -> np.ndarray:
    if column not in found.obs:
        shown = ", ".join(map(str, found.obs.columns[:12])) or "no columns"
        raise ContractError(
            f"obs has no column {column!r}",
            where=where,
            mend=f"{mend or 'name a column that is there'}; obs has {shown}",
        )
    values = found.obs[column]
    if values.isna().any():
        row = int(np.flatnonzero(values.isna())[0])
        raise ContractError(
            f"obs[{column!r}] is empty", where=f"{where}, row {row} (barcode {found.obs_names[row]})", mend="fill it"
        )
    return values.astype(object).to_numpy()


def _rows(found: ad.AnnData, section: SectionSource, options: ReadOptions) -> ad.AnnData:
    if options.section_column is None:
        return found
    mine = _column(found, options.section_column, section.files["table"]).astype(str) == section.section_id
    return found[mine].copy()


def _own(found: ad.AnnData, options: ReadOptions, where: object) -> Origin:
    if options.patient is not None or options.patients is not None:
        return Origin("", "")
    column = options.patient_column or PATIENT_COLUMN
    mend = "give --patient-column NAME, --patients FILE.csv (columns section, patient) or --patient ID"
    names = sorted(set(_column(found, column, where, mend=mend).astype(str)))
    if len(names) > 1:
        raise ContractError(
            f"one section of {len(names)} patients: {', '.join(names[:5])}",
            where=f"{where}, obs[{column!r}]",
            mend="tell sections apart with --section-column, or correct the column",
        )
    return Origin(names[0] if names else "", f"obs[{column!r}]")


def _scale(unit: str, image: Path | None, options: ReadOptions, where: object) -> Scale | None:
    if image is None and unit == "um":
        return None
    stated = [own] if image is not None and (own := file_scale(image)) is not None else []
    return settle_scale(stated, given=options.mpp, where=where)


def _check_pitch(centres_um: np.ndarray, pitch_um: float, scale: Scale | None, where: object) -> None:
    measured = nearest_pitch(np.asarray(centres_um))
    if np.isfinite(measured) and abs(measured - pitch_um) > MAX_ANISOTROPY * pitch_um:
        at = f" at {scale.mpp:.4f} µm/px ({scale.source})" if scale is not None else ""
        raise ScaleError(
            f"locations are {measured:.2f} µm apart{at}, not {pitch_um:g} µm as --pitch-um says",
            where=where,
            mend="check --spatial-unit, --mpp and --pitch-um",
        )
