"""What a reader is: `discover` says cheaply which sections a source holds, `read` makes one of them a SectionDraft.

Readers are classes found by name through the entry-point group `triglyph.readers`; a new platform is one file and one
line. A reader never writes into its source, never guesses a patient or a scale, and says in `notes` whatever it left
out or changed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from triglyph.errors import ContractError, RecipeError, SourceError, StorageError
from triglyph.storage import file_digest, read_json
from triglyph.tissue.checks import checked_patient, image_size, outside_image
from triglyph.tissue.draft import ImageSource, SectionDraft
from triglyph.tissue.readers.row_files import Captions, Excluded

GROUP = "triglyph.readers"


@dataclass(frozen=True)
class SectionSource:
    """The files of one section, by role. Required ones are listed even where they are missing."""

    section_id: str
    platform: str
    root: Path
    files: Mapping[str, Path]

    def file(self, role: str) -> Path:
        """The path of a file that must be there.

        Raises
        ------
        SourceError
            It is not, or it is empty.
        """
        path = self.files.get(role)
        if path is None or not path.exists():
            raise SourceError(
                f"section {self.section_id}: the {role} file is missing",
                where=path or self.root,
                mend="restore it, or leave the section out with --only",
            )
        if path.is_file() and path.stat().st_size == 0:
            raise SourceError(f"section {self.section_id}: the {role} file is empty", where=path, mend="copy it again")
        return path


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a user may say about a source. Readers refuse what they do not understand; see `Reader.understands`."""

    scratch: Path
    """Folder for files a reader has to make; what lies in it moves into the section."""
    mpp: float | None = None
    """µm per level-0 pixel of the full image."""
    patient: str | None = None
    """One patient for every section."""
    patients: Mapping[str, Mapping[str, str]] | None = None
    """Section -> row of the patients file (`patient`, optionally `block`, `species`, `organ`)."""
    image: Path | None = None
    """The full-resolution image of this section."""
    outside: Literal["error", "drop"] = "error"
    """What to do with locations that lie outside the image."""
    lossless: bool = False
    """Whether pyramids that have to be made keep every bit."""
    species: str | None = None
    organ: str | None = None
    # Platform by platform:
    patient_pattern: str | None = None
    spatial_key: str | None = None
    spatial_unit: Literal["px", "um", "none"] | None = None
    """`none`: rows have no place on a slide."""
    counts_layer: str | None = None
    patient_column: str | None = None
    section_column: str | None = None
    label_column: str | None = None
    location_um: float | None = None
    pitch_um: float | None = None
    image_column: str | None = None
    caption_column: str | None = None
    preprocess: Literal["resize_crop"] | None = None
    """`resize_crop`: pictures have no scale; each is resized to what an encoder reads, as published code does."""
    compat: Literal["release"] | None = None
    """`release`: as SpatialWhisperer's own evaluation lays images and patches out."""
    missing: Literal["error", "drop"] = "error"
    """What to do with pictures that are not there."""
    crops: int | None = None
    """Squares drawn per caption."""
    seed: int | None = None
    """Of what is drawn."""
    captions: Captions | None = None
    """Captions of rows, by section and barcode."""
    caption_template: tuple[str, ...] = ()
    """Sentences that name columns of the table in braces; see `captioning`."""
    exclude: Excluded | None = None
    """What to leave out: accessions of samples or series, ids of datasets."""
    min_genes: int | None = None
    """Rows with fewer genes are left out."""
    samples_per_section: int | None = None
    assay: tuple[str, ...] = ()
    human_visium: bool = False
    """Only human Visium sections of at most 0.8 µm/px."""
    min_window_std: float | None = None
    """Rows whose window of the image varies no more than this (of 1) are left out."""

    def said(self) -> dict[str, Any]:
        """What differs from the defaults and shapes a section, JSON-serialisable."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in ("scratch", "patients", "image") and value != f.default:
                out[f.name] = value.sha256 if isinstance(value, Captions | Excluded) else value
        return {name: list(value) if isinstance(value, tuple) else value for name, value in out.items()}


COMMON = frozenset({"scratch", "patient", "patients", "outside", "species", "organ", "captions", "caption_template"})
"""Options every reader understands."""


class Reader(Protocol):
    """One platform."""

    platform: str
    understands: frozenset[str]
    """Names of the `ReadOptions` it uses beyond `COMMON`."""

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """The sections `source` holds, sorted by id, without opening large files.

        Raises
        ------
        SourceError
            `source` is not of this platform.
        """
        ...

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """One section.

        Raises
        ------
        TriglyphError
            A file is missing or broken, a scale or the patient is not known, or two scales contradict each other.
        """
        ...


def platforms() -> list[str]:
    """Names of all readers that are installed."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def find_reader(platform: str) -> Reader:
    """The reader of a platform.

    Raises
    ------
    RecipeError
        There is none of that name.
    """
    found = [entry for entry in entry_points(group=GROUP) if entry.name == platform]
    if not found:
        raise RecipeError(
            f"there is no reader for platform {platform!r}",
            where="--platform",
            mend=f"choose one of {', '.join(platforms())}, or register one in the entry-point group {GROUP}",
        )
    reader: Reader = found[0].load()()
    return reader


def check_options(reader: Reader, options: ReadOptions) -> None:
    """Refuse options that `reader` would ignore.

    Raises
    ------
    RecipeError
        Naming the option and the ones the reader understands.
    """
    said = {f.name for f in fields(options) if f.name != "scratch" and getattr(options, f.name) != f.default}
    drawing = {"seed"} if options.caption_template else set()
    unknown = sorted(said - COMMON - reader.understands - drawing)
    if unknown:
        known = sorted((COMMON | reader.understands) - {"scratch"})
        raise RecipeError(
            f"platform {reader.platform!r} has no use for {', '.join(_flag(u) for u in unknown)}",
            where="the options of `read`",
            mend=f"leave it out; it understands {', '.join(_flag(k) for k in known)}",
        )
    if options.patient is not None and options.patients is not None:
        raise RecipeError("both --patient and --patients are given", where="the options of `read`", mend="give one")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def read_patients(path: Path) -> dict[str, dict[str, str]]:
    """The patients file: section -> its row.

    The list that `simulate --layout vendor` writes is one, too; there `vendor_name` is what the files call a section,
    and the rows go by it.

    Raises
    ------
    SourceError
        It is missing, or is not a CSV with the columns `section` and `patient`.
    ContractError
        A row has no patient, or a section has two rows.
    """
    import pandas as pd

    optional = ("block", "species", "organ", "platform", "vendor_name")
    mend = f"give a CSV with the columns section, patient and, if you like, {', '.join(optional)}"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise SourceError(f"the patients file is not readable ({error})", where=path, mend=mend) from error
    missing = [c for c in ("section", "patient") if c not in table]
    unknown = [c for c in table if c not in ("section", "patient", *optional)]
    if missing or unknown:
        what = f"lacks the column {missing[0]!r}" if missing else f"has the unknown column {unknown[0]!r}"
        raise SourceError(f"the patients file {what}", where=path, mend=mend)
    rows: dict[str, dict[str, str]] = {}
    for line, record in enumerate(table.to_dict("records"), start=2):
        row = {str(k): str(v).strip() for k, v in record.items()}
        section = row.pop("section")
        section = row.pop("vendor_name", "") or section
        row.pop("platform", "")  # is said by --platform
        if section in rows:
            raise ContractError(f"section {section!r} has two rows", where=f"{path}, line {line}", mend="keep one")
        row["patient"] = checked_patient(row["patient"], where=f"{path}, line {line} (section {section!r})")
        rows[section] = row
    return rows


def read_record(path: Path) -> dict[str, Any]:
    """A vendor's JSON object.

    Raises
    ------
    SourceError
        It is not JSON, or not an object.
    """
    try:
        found = read_json(path)
    except StorageError as error:
        raise SourceError(error.what, where=path, mend=error.mend) from error
    if not isinstance(found, dict):
        raise SourceError("not a JSON object", where=path, mend="restore the file")
    return found


@dataclass(frozen=True)
class Origin:
    """Whose tissue a section is, and who said so."""

    patient: str
    source: str
    block: str = ""
    species: str = ""
    organ: str = ""


def origin(section: SectionSource, options: ReadOptions, *, own: Origin | None = None) -> Origin:
    """Patient, block, species and organ: what the user says, else what the files say (`own`), else an error.

    Raises
    ------
    ContractError
        Nobody says which patient it is.
    """
    where = f"{section.root}, section {section.section_id}"
    own = own or Origin("", "")
    if options.patients is not None:
        row = options.patients.get(section.section_id)
        if row is None:
            raise ContractError(
                "the patients file has no row for this section", where=where, mend="add a row for it to --patients FILE"
            )
        patient, source, block = row["patient"], "--patients", row.get("block", "")
        species, organ = row.get("species", ""), row.get("organ", "")
    elif options.patient is not None:
        patient, source, block, species, organ = options.patient, "--patient", "", "", ""
    else:
        patient, source, block, species, organ = own.patient, own.source, own.block, "", ""
    return Origin(
        patient=checked_patient(patient, where=where),
        source=source,
        block=block,
        species=options.species or species or own.species,
        organ=options.organ or organ or own.organ,
    )


def by_pattern(section: SectionSource, options: ReadOptions, default: str | None = None) -> Origin:
    """The patient as the part of the section's id that `patient_pattern`, or `default`, captures; also the block.

    Nobody where the user names patients otherwise, or there is no pattern.

    Raises
    ------
    RecipeError
        The pattern is none, or captures nothing.
    ContractError
        The id does not match.
    """
    text = options.patient_pattern or default
    if text is None or options.patient is not None or options.patients is not None:
        return Origin("", "")
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise RecipeError(
            f"{text!r} is not a pattern ({error})", where="--patient-pattern", mend="correct it"
        ) from None
    if pattern.groups < 1:
        raise RecipeError(f"{text!r} captures nothing", where="--patient-pattern", mend="put the patient in ( )")
    match = pattern.search(section.section_id)
    if match is None or not match.group(1):
        raise ContractError(
            f"the patient of section {section.section_id!r} cannot be told: its id does not match {text}",
            where=section.root,
            mend="give --patients FILE.csv (columns section, patient), --patient ID, or another --patient-pattern",
        )
    return Origin(match.group(1), f"id of the section, by {text}", block=match.group(1))


def provenance(section: SectionSource, *, used: Sequence[str], **facts: Any) -> dict[str, Any]:
    """`SectionDraft.source`: the platform, every file that was used with its hash, and what else there is to say."""
    files = {}
    for role in used:
        path = section.files[role]
        relative = Path(os.path.relpath(path, section.root)).as_posix()
        files[role] = {"path": relative, **({"sha256": file_digest(path)} if path.is_file() else {})}
    return {"platform": section.platform, "files": files, **facts}


@dataclass
class Notes:
    """What a reader left out or changed, in words a person reads."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Note one thing."""
        self.lines.append(line)


def keep_inside(table: Any, images: Sequence[ImageSource], options: ReadOptions, notes: Notes) -> Any:
    """`table` without the locations that lie outside an image, if the user said so; else as it is.

    The contract refuses a section that still has any.
    """
    if options.outside != "drop":
        return table
    for image in images:
        centres_px = image.to_um.inverse()(np.asarray(table.obsm["spatial"], dtype=np.float64))
        off = outside_image(centres_px, image_size(image))
        if off.any():
            names = ", ".join(map(str, table.obs_names[off][:5]))
            notes.add(f"left out {int(off.sum())} locations outside the image {image.path.name} ({names} …)")
            table = table[~off].copy()
    return table
