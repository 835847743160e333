"""The Section: one piece of tissue, a folder in a µm frame.

    section.json    what it is, its images by reference, scale and where it came from
    section.zarr/   SpatialData: tables/table (raw counts per location), shapes/locations
    images/         only pyramids that had to be made
    embeddings/, windows/   one immutable entry per encoder state
    annotations/    one file per annotation, by name

It is written once, whole or not at all. Everything learnt later lies beside it and never rewrites counts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.cards import Frozen
from triglyph.errors import ContractError, SourceError
from triglyph.storage import atomic_folder, file_digest, read_json, write_json
from triglyph.tissue.annotations import AnnotationStore, join
from triglyph.tissue.checks import check_draft
from triglyph.tissue.draft import ImageSource, LocationShape, SectionDraft
from triglyph.tissue.frames import Affine
from triglyph.tissue.pictures import PictureInfo, PictureWindows, take_hashes, verify_pictures
from triglyph.tissue.store import ArrayStore
from triglyph.tissue.stored_table import ELEMENT, strings_digest, table_digest, write_table
from triglyph.tissue.windows import SlideWindows, WindowReader

if TYPE_CHECKING:
    import spatialdata

FORMAT = 1


class ImageInfo(Frozen):
    """An image by reference."""

    name: str
    role: Literal["full", "preview"]
    path: str
    """Relative to the section's folder, with forward slashes."""
    sha256: str
    size_px: tuple[int, int]
    to_um: Affine
    mpp: float
    mpp_source: str


class SectionInfo(Frozen):
    """`section.json`."""

    format: int = FORMAT
    id: str
    patient: str
    block: str
    platform: str
    species: str
    organ: str
    location_um: float | None
    """None, and `location_shape` "none", where locations have no place."""
    location_shape: LocationShape
    pitch_um: float | None
    n_locations: int
    n_genes: int
    locations: str
    """Digest of the barcodes in their order."""
    table: str
    """Digest of counts, genes, which were measured, centres, captions and labels."""
    images: tuple[ImageInfo, ...]
    pictures: PictureInfo | None = None
    """Where every location has a picture file of its own."""
    source: dict[str, Any]


class Section:
    """One piece of tissue on disk. Open it with `Section.open`, or through a `Cohort`."""

    def __init__(self, path: Path, info: SectionInfo) -> None:
        self.path, self.info = path, info

    def __repr__(self) -> str:
        i = self.info
        images = ", ".join(f"{m.name} at {m.mpp:.3f} µm/px" for m in i.images) or "no image"
        if i.pictures is not None:
            images = f"{i.pictures.n_files} pictures, {i.pictures.scale}"
        what = f"{i.n_locations} locations, {i.n_genes} genes, {images}"
        return f"Section {i.id} ({i.platform}, patient {i.patient}): {what}"

    # ---- writing and opening

    @classmethod
    def write(cls, draft: SectionDraft, path: Path, *, scratch: Path | None = None) -> Section:
        """Check `draft` and write it to the folder `path`.

        Parameters
        ----------
        draft
            What a reader or the simulator made.
        path
            Must not exist.
        scratch
            Images under this folder are moved into the section; all others stay where they are, by reference.

        Raises
        ------
        ContractError
            The draft breaks the contract; nothing is written.
        """
        check_draft(draft, where=draft.section_id)
        with atomic_folder(path) as partial:
            images = tuple(_place(image, partial, path, scratch) for image in draft.images)
            pictures = None if draft.pictures is None else take_hashes(draft.table, draft.pictures, path)
            write_table(draft, partial / "section.zarr")
            info = SectionInfo(
                id=draft.section_id,
                patient=draft.patient,
                block=draft.block,
                platform=draft.platform,
                species=draft.species,
                organ=draft.organ,
                location_um=draft.location_um,
                location_shape=draft.location_shape,
                pitch_um=draft.pitch_um,
                n_locations=draft.table.n_obs,
                n_genes=draft.table.n_vars,
                locations=strings_digest(draft.table.obs_names),
                table=table_digest(draft.table),
                images=images,
                pictures=pictures,
                source=draft.source,
            )
            write_json(partial / "section.json", info.model_dump(mode="json"))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, *, overrides: Mapping[str, Any] | None = None) -> Section:
        """Open a section's folder.

        Parameters
        ----------
        path
            The folder.
        overrides
            Fields a cohort's manifest states otherwise (patient, block, species, organ).
        """
        if not (path / "section.json").is_file():
            raise SourceError(
                "not a section: it has no section.json", where=path, mend="give a folder that `triglyph read` wrote"
            )
        found = read_json(path / "section.json")
        if found.get("format") != FORMAT:
            raise ContractError(
                f"written in format {found.get('format')}, this version reads {FORMAT}",
                where=path,
                mend="read the source again with this version of triglyph",
            )
        return cls(path, SectionInfo.model_validate({**found, **(overrides or {})}))

    # ---- what it is

    @property
    def id(self) -> str:
        """Name, unique in a cohort."""
        return self.info.id

    @property
    def patient(self) -> str:
        """The unit of every claim."""
        return self.info.patient

    @property
    def n_locations(self) -> int:
        """Rows of the table."""
        return self.info.n_locations

    @property
    def placed(self) -> bool:
        """Whether locations have a place on a piece of tissue; else their centres are NaN."""
        return self.info.location_shape != "none"

    @property
    def location_um(self) -> float:
        """Diameter of a spot, or side of a bin or tile.

        Raises
        ------
        ContractError
            The section is unplaced.
        """
        if self.info.location_um is None:
            raise ContractError(
                "locations have no place on a piece of tissue", where=self.path, mend="leave this section out here"
            )
        return self.info.location_um

    @cached_property
    def table(self) -> ad.AnnData:
        """Raw counts per location; `obsm["spatial"]` in µm. Shared: copy it before changing it."""
        return ad.read_zarr(self.path / "section.zarr" / "tables" / "table")

    @cached_property
    def centres_um(self) -> NDArray[np.float64]:
        """(n, 2) centres in the section's frame; all NaN where the section is unplaced."""
        return np.asarray(self.table.obsm["spatial"], dtype=np.float64)

    @property
    def captions(self) -> list[str]:
        """One per location, "" where missing."""
        return self._strings("caption").tolist()

    @property
    def labels(self) -> NDArray[np.object_]:
        """One class per location, "" where unknown."""
        return self._strings("label")

    def _strings(self, column: str) -> NDArray[np.object_]:
        if column not in self.table.obs:
            return np.full(self.n_locations, "", dtype=object)
        return self.table.obs[column].astype(object).to_numpy()

    def expression(self) -> tuple[sp.csr_matrix, tuple[str, ...], tuple[str, ...], NDArray[np.bool_]]:
        """Counts (n, genes), symbols, Ensembl ids and the mask of measured genes."""
        var = self.table.var
        return (
            sp.csr_matrix(self.table.X),
            tuple(var.index.astype(str)),
            tuple(var["ensembl_id"].astype(str)),
            var["measured"].to_numpy(dtype=bool),
        )

    # ---- pixels and embeddings

    def has_image(self, name: str = "he") -> bool:
        """Whether there is a full-resolution image of that name, or pictures of it."""
        if self.info.pictures is not None and self.info.pictures.name == name:
            return True
        return any(i.name == name and i.role == "full" for i in self.info.images)

    def image_info(self, name: str = "he", *, allow_preview: bool = False) -> ImageInfo:
        """The record of an image.

        Raises
        ------
        SourceError
            There is none, or only a preview.
        """
        full = [i for i in self.info.images if i.name == name and i.role == "full"]
        preview = [i for i in self.info.images if i.name == name and i.role == "preview"]
        found = full or (preview if allow_preview else [])
        if found:
            return found[0]
        if self.has_image(name):
            raise SourceError(
                "every location has a picture of its own; there is no image of them all",
                where=self.path,
                mend="read them with `location_windows`",
            )
        if preview:
            raise SourceError(
                f"only a preview at {preview[0].mpp:.2f} µm/px is there, not the full-resolution image",
                where=self.path,
                mend="read it again with --image FILE",
            )
        raise SourceError(f"the section has no image {name!r}", where=self.path, mend="read it again with --image FILE")

    def image(self, name: str = "he", *, allow_preview: bool = False) -> WindowReader:
        """A window reader over an image."""
        info = self.image_info(name, allow_preview=allow_preview)
        return WindowReader(self.image_path(info), to_um=info.to_um, mpp_source=info.mpp_source)

    def location_windows(self, name: str = "he") -> SlideWindows | PictureWindows:
        """What encoders read: windows of locations by row, out of the image or out of each one's own picture."""
        pictures = self.info.pictures
        if pictures is not None and pictures.name == name:
            return PictureWindows(self.pictures_folder(pictures), self.table.obs, pictures)
        return SlideWindows(self.image(name), self.centres_um)

    def has_picture(self, name: str = "he") -> NDArray[np.bool_]:
        """(n,) which locations have pixels of that name."""
        pictures = self.info.pictures
        if pictures is not None and pictures.name == name:
            return (self.table.obs["picture"] != "").to_numpy(dtype=bool)
        return np.full(self.n_locations, self.has_image(name))

    def pictures_folder(self, info: PictureInfo) -> Path:
        """Where pictures lie now."""
        return Path(os.path.normpath(self.path / info.folder))

    def image_path(self, info: ImageInfo) -> Path:
        """Where an image lies now."""
        return Path(os.path.normpath(self.path / info.path))

    def verify(self) -> None:
        """Read every image once and compare its hash with the one taken when the section was written."""
        if self.info.pictures is not None:
            verify_pictures(self.pictures_folder(self.info.pictures), self.table.obs)
        for info in self.info.images:
            path = self.image_path(info)
            if not path.is_file() or file_digest(path) != info.sha256:
                raise SourceError(
                    f"image {info.name!r} is not the one that was read", where=path, mend="restore it, or read again"
                )

    @property
    def embeddings(self) -> ArrayStore:
        """Outputs of frozen encoders, (n, dim)."""
        return ArrayStore(self.path / "embeddings", rows=self.n_locations, locations=self.info.locations)

    @property
    def windows(self) -> ArrayStore:
        """Pixels of the locations, (n, px, px, 3)."""
        return ArrayStore(self.path / "windows", rows=self.n_locations, locations=self.info.locations)

    @property
    def annotations(self) -> AnnotationStore:
        """Classes that models gave the locations, by name."""
        return AnnotationStore(self.path / "annotations", locations=self.info.locations)

    # ---- the ecosystem's objects

    def to_anndata(self) -> ad.AnnData:
        """A copy of the table with every embedding joined as `obsm["<slug>"]` and its card in `uns["triglyph"]`.

        Rows that an encoder had nothing to encode for are NaN. Annotations are joined by name, see
        `triglyph.tissue.annotations.join`.
        """
        table = self.table.copy()
        cards = {}
        for fingerprint in self.embeddings.names():
            stored = self.embeddings.read(fingerprint)
            # Keys may hold letters, digits, "-._" alone; two states of one encoder are told apart by fingerprint.
            slug = "".join(c if c.isalnum() or c in "-._" else "-" for c in stored.card.get("name", "embedding"))
            slug = slug if slug not in table.obsm else f"{slug}-{fingerprint}"
            values = np.array(stored.values, dtype=np.float32)
            values[~stored.present] = np.nan
            table.obsm[slug] = values
            cards[slug] = _plain(stored.card)
        info = self.info.model_dump(mode="json")
        table.uns["triglyph"] = {
            "section": self.id,
            "patient": self.patient,
            "images": {i["name"]: _plain({k: i[k] for k in ("mpp", "mpp_source", "sha256")}) for i in info["images"]},
            "embeddings": cards,
            "annotations": {name: join(table, self.annotations.read(name)) for name in self.annotations.names()},
        }
        if info["pictures"] is not None:
            kept = ("name", "n_files", "mpp_source", "resize", "sha256")
            table.uns["triglyph"]["pictures"] = {key: info["pictures"][key] for key in kept}
        return table

    def to_spatialdata(self) -> spatialdata.SpatialData:
        """The SpatialData object: `tables["table"]` with embeddings joined, `shapes["locations"]`, in µm.

        An unplaced section has no shapes, and its table annotates nothing.
        """
        import spatialdata as sd

        data = sd.read_zarr(self.path / "section.zarr")
        data.tables["table"] = self.to_anndata()
        return data

    def to_wsidata(self) -> Any:
        """The H&E opened with wsidata (the `lazyslide` extra), with this section's locations as a shapes element."""
        try:
            from wsidata import open_wsi
        except ImportError:
            raise SourceError(
                "wsidata is not installed", where=self.path, mend="pip install 'triglyph[lazyslide]'"
            ) from None
        from spatialdata.models import ShapesModel

        info = self.image_info()
        wsi = open_wsi(self.image_path(info))
        centres = info.to_um.inverse()(self.centres_um)  # wsidata counts in level-0 pixels
        wsi.shapes[ELEMENT] = ShapesModel.parse(
            centres, geometry=0, radius=self.location_um / 2 / info.mpp, index=np.arange(self.n_locations)
        )
        return wsi


def _place(image: ImageSource, partial: Path, final: Path, scratch: Path | None) -> ImageInfo:
    """Move a scratch image into the section, or refer to one that stays; read its size to be sure that it opens."""
    from PIL import Image, UnidentifiedImageError

    if image.role == "full":
        reader = WindowReader(image.path, to_um=image.to_um, mpp_source=image.mpp_source)
        size_px = reader.size_px
        reader.close()
    else:
        try:
            with Image.open(image.path) as preview:
                size_px = preview.size
        except (UnidentifiedImageError, OSError) as error:
            raise SourceError(f"the image does not open ({error})", where=image.path, mend="copy it again") from error
    sha256 = file_digest(image.path)
    if scratch is not None and image.path.resolve().is_relative_to(scratch.resolve()):
        target = partial / "images" / image.path.name
        target.parent.mkdir(exist_ok=True)
        shutil.move(image.path, target)
        relative = f"images/{image.path.name}"
    else:
        relative = Path(os.path.relpath(image.path.resolve(), final.resolve())).as_posix()
    return ImageInfo(
        name=image.name,
        role=image.role,
        path=relative,
        sha256=sha256,
        size_px=size_px,
        to_um=image.to_um,
        mpp=image.mpp,
        mpp_source=image.mpp_source,
    )


def _plain(value: Any) -> Any:
    """What AnnData can write: no None, no tuples."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [str(v) for v in value]
    return value
