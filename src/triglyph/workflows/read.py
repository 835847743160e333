"""`triglyph read`: vendors' folders become sections of a cohort.

Each section is read, checked, written whole or not at all, and pictured; then the next. A section that is there
already, from the same files with the same options, is not read again, so a run that was killed goes on where it was.
A broken section is reported and the others are read; a full disk stops the run.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from triglyph.errors import ContractError, RecipeError, SourceError, StorageError, TriglyphError

if TYPE_CHECKING:
    from rich.console import Console

    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.readers.base import Reader, ReadOptions, SectionSource
    from triglyph.tissue.section import Section

SCRATCH = ".scratch"
QC = "qc.png"


@dataclass(frozen=True)
class SectionRow:
    """What became of one section."""

    section: str
    status: Literal["read", "already there", "failed"]
    detail: str
    notes: tuple[str, ...] = ()
    error: TriglyphError | None = None


@dataclass(frozen=True)
class ReadReport:
    """What became of every section; `exit_code` is 1 if any failed."""

    cohort: Path
    rows: tuple[SectionRow, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the sections that could not be read."""
        return tuple(row.section for row in self.rows if row.status == "failed")

    @property
    def exit_code(self) -> int:
        """0 if every section is there, 1 if one failed."""
        return int(bool(self.failed))


def read(
    sources: list[Path],
    *,
    out: Path,
    platform: str,
    only: list[str] | None = None,
    image: list[str] | None = None,
    mpp: float | None = None,
    patient: str | None = None,
    patients: Path | None = None,
    patient_pattern: str | None = None,
    patient_column: str | None = None,
    section_column: str | None = None,
    label_column: str | None = None,
    outside: Literal["error", "drop"] = "error",
    lossless: bool = False,
    species: str | None = None,
    organ: str | None = None,
    spatial_key: str | None = None,
    spatial_unit: Literal["px", "um", "none"] | None = None,
    counts_layer: str | None = None,
    location_um: float | None = None,
    pitch_um: float | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    preprocess: Literal["resize_crop"] | None = None,
    compat: Literal["release"] | None = None,
    missing: Literal["error", "drop"] = "error",
    crops: int | None = None,
    seed: int | None = None,
    captions: Path | None = None,
    caption_template: list[str] | None = None,
    exclude: Path | None = None,
    min_genes: int | None = None,
    samples_per_section: int | None = None,
    assay: list[str] | None = None,
    human_visium: bool = False,
    min_window_std: float | None = None,
) -> ReadReport:
    """Read vendors' folders into a cohort; run it again to go on where it stopped.

    Parameters
    ----------
    sources
        Folders (or files) of one platform.
    out
        The cohort's folder; made if it is not there.
    platform
        Name of the reader: st, visium, hest, anndata; dlpfc, hbc for Visium with a table of labels; quilt, captions,
        kriegsmann for pictures with captions or labels; pathocell, lizard, pannuke for images with labelled nuclei;
        slides for slides alone; archs4, census for expression alone; or one that a package registered.
    only
        Ids of the sections to read; all by default.
    image
        Full-resolution image: FILE where one section is read, else SECTION=FILE, once per section.
    mpp
        µm per level-0 pixel, or pixel of a picture, where no file says it.
    patient
        One patient for all sections.
    patients
        CSV with the columns section, patient and, if you like, block, species, organ; `vendor_name` where the files
        call a section otherwise. `sections.csv` of `simulate --layout vendor` is one.
    patient_pattern
        st: regular expression whose first group is the patient in a section's id; her2st's `^([A-Za-z]+)\\d+$` if
        left out. pathocell, lizard, pannuke, slides: the same, without a default (slides: but for TCGA's names);
        `(.+)` takes every image for a patient.
    patient_column
        anndata: the obs column that holds the patient. captions, quilt: the column of the table.
    section_column
        anndata: the obs column that tells the sections of one table apart. captions: the column of the table.
    label_column
        dlpfc, hbc: the column of the table of labels; `layer_guess_reordered` or `layer_guess`, and the 20 regions of
        `fine_annot_type` or `ground_truth`, if left out.
    outside
        Locations outside the image: an error, or left out and noted.
    lossless
        Whether pyramids that have to be made keep every bit.
    species
        Where the files do not say it.
    organ
        Where the files do not say it.
    spatial_key
        anndata: the key of obsm that holds the centres.
    spatial_unit
        anndata: px (level-0 pixels), um, or none, where rows have no place on a slide.
    counts_layer
        anndata: the layer of raw counts, if it is not X.
    location_um
        anndata: diameter of a spot, or side of a bin. slides: side of a square, 112 µm if left out.
    pitch_um
        anndata: distance of neighbouring locations, which is checked. slides: of squares, as wide as they are if left
        out.
    image_column
        captions: the column of paths, relative to the table's folder; `image` if left out.
    caption_column
        captions, quilt: the column of captions; `caption` if left out.
    preprocess
        captions, kriegsmann: `resize_crop` declares the pictures unscaled; the middle square of each is resized to
        what an encoder reads, as published code does.
    compat
        pathocell, lizard, pannuke: `release` lays images and patches out as SpatialWhisperer's own evaluation does,
        and declares 0.5 µm/px, so that its encoder reads 224 native pixels.
    missing
        captions, quilt, kriegsmann: pictures that are not there are an error, or left out and noted.
    crops
        quilt: squares drawn per caption, 10 if left out.
    seed
        quilt: of the squares; of the templates' draw; 0 if left out.
    captions
        CSV, TSV or JSON objects one a line, with the columns barcode (or geo_accession), caption and, if barcodes are
        not unique, section. Goes before captions of the source itself.
    caption_template
        Sentences for rows without a caption, with columns of the table in braces and what may be left out in square
        brackets: '{cell_type} from {tissue}[ of a {sex} donor]'. Of several, one is drawn for each row.
    exclude
        archs4, census: text file of accessions (samples or series) or dataset ids to leave out, one a line.
    min_genes
        archs4: leave out profiles of fewer genes, 250 if left out; census: cells, 100; hest: spots, 0.
    samples_per_section
        archs4: pack series into sections of at most so many samples; one series a section if left out.
    assay
        census: assays to keep; 10x 3' v2 and v3, 10x 5' v1 and v2 if left out.
    human_visium
        hest: keep human Visium sections of at most 0.8 µm/px alone, by HEST_v1_1_0.csv or the metadata.
    min_window_std
        hest: leave out spots whose 224 level-0 pixels vary no more than this, of 1.

    Returns
    -------
    ReadReport
        One row a section.

    Raises
    ------
    SourceError
        A source is not of this platform.
    ContractError
        Two sections have one id.
    RecipeError
        An option is not understood by this platform.
    StorageError
        The disk is full or read-only; finished sections stay, nothing half-written does.
    """
    from rich.console import Console

    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.readers.base import ReadOptions, check_options, find_reader, read_patients
    from triglyph.tissue.readers.captioning import Template, read_captions
    from triglyph.tissue.readers.row_files import read_excluded

    console = Console(stderr=True)
    reader = find_reader(platform)
    options = ReadOptions(
        scratch=out / SCRATCH,
        mpp=mpp,
        patient=patient,
        patients=read_patients(patients) if patients is not None else None,
        patient_pattern=patient_pattern,
        patient_column=patient_column,
        section_column=section_column,
        label_column=label_column,
        outside=outside,
        lossless=lossless,
        species=species,
        organ=organ,
        spatial_key=spatial_key,
        spatial_unit=spatial_unit,
        counts_layer=counts_layer,
        location_um=location_um,
        pitch_um=pitch_um,
        image_column=image_column,
        caption_column=caption_column,
        preprocess=preprocess,
        compat=compat,
        missing=missing,
        crops=crops,
        seed=seed,
        captions=read_captions(captions) if captions is not None else None,
        caption_template=tuple(Template(text).text for text in caption_template or ()),
        exclude=read_excluded(exclude) if exclude is not None else None,
        min_genes=min_genes,
        samples_per_section=samples_per_section,
        assay=tuple(assay or ()),
        human_visium=human_visium,
        min_window_std=min_window_std,
    )
    check_options(reader, replace(options, image=Path(image[0])) if image else options)
    sections = _chosen(_discover(reader, sources, options), only)
    images = _images(image or [], sections)
    cohort = Cohort.create(out)
    _sweep(out / SCRATCH)
    _sweep_manifest(out)
    rows = []
    try:
        for number, section in enumerate(sections, start=1):
            mine = replace(options, image=images.get(section.section_id))
            row = _read_one(cohort, reader, section, mine)
            _say(console, row, f"{number}/{len(sections)}")
            rows.append(row)
    finally:
        _sweep(out / SCRATCH)
    cohort.refresh()
    report = ReadReport(out, tuple(rows))
    good = len(rows) - len(report.failed)
    console.print(f"{good} of {len(rows)} sections are in {out}", highlight=False)
    if report.failed:
        console.print(f"[red]failed:[/] {', '.join(report.failed)}; mend them and run the same command again")
    return report


def _discover(reader: Reader, sources: Sequence[Path], options: ReadOptions) -> list[SectionSource]:
    found: dict[str, SectionSource] = {}
    if not sources:
        raise RecipeError("no source is given", where="the options of `read`", mend="name at least one folder")
    for source in sources:
        if not source.exists():
            raise SourceError("there is no such file or folder", where=source, mend="check the path")
        try:
            sections = reader.discover(source, options)
        except SourceError as error:
            others = _platforms_of(source, options, reader.platform)
            if not others:
                raise
            raise SourceError(
                error.what, where=error.where, mend=f"it looks like --platform {' or '.join(others)}"
            ) from error
        for section in sections:
            if section.section_id in found:
                first = found[section.section_id]
                raise ContractError(
                    f"two sections are called {section.section_id!r}",
                    where=f"{first.root} and {section.root}",
                    mend="rename one of them, or read them into two cohorts",
                )
            found[section.section_id] = section
    if options.exclude is not None:
        options.exclude.check()
    return list(found.values())


def _platforms_of(source: Path, options: ReadOptions, tried: str) -> list[str]:
    """Which other readers take `source` for theirs."""
    from triglyph.tissue.readers.base import find_reader, platforms

    fits = []
    for name in platforms():
        if name == tried:
            continue
        try:
            find_reader(name).discover(source, options)
        except TriglyphError:
            continue
        fits.append(name)
    return fits


def _chosen(sections: list[SectionSource], only: Sequence[str] | None) -> list[SectionSource]:
    if not only:
        return sections
    ids = [s.section_id for s in sections]
    unknown = [name for name in only if name not in ids]
    if unknown:
        raise RecipeError(
            f"there is no section {', '.join(unknown)}", where="--only", mend=f"the sources hold {', '.join(ids)}"
        )
    return [s for s in sections if s.section_id in only]


def _images(given: Sequence[str], sections: Sequence[SectionSource]) -> dict[str, Path]:
    """Section id -> its image, from `FILE` or `SECTION=FILE`."""
    ids = [s.section_id for s in sections]
    images: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or name not in ids:
            if len(ids) != 1:
                raise RecipeError(
                    f"{text!r} does not say which of {len(ids)} sections it is of",
                    where="--image",
                    mend=f"give --image SECTION=FILE; the sections are {', '.join(ids[:20])}",
                )
            name, path = ids[0], text
        if name in images:
            raise RecipeError(f"section {name} is given two images", where="--image", mend="give one")
        images[name] = Path(path)
    return images


def _read_one(cohort: Cohort, reader: Reader, section: SectionSource, options: ReadOptions) -> SectionRow:
    from triglyph.tissue.checks import check_draft, safe_id
    from triglyph.tissue.readers.captioning import caption_draft

    try:
        name = safe_id(section.section_id, where=section.root)
        request = _request(section, options)
        with _scratch(options.scratch / name) as scratch:
            if (cohort.folder(name) / "section.json").is_file():
                if name not in cohort:
                    cohort.refresh()  # another process has just written it
                done = _same(cohort[name], request)
                _picture(done)
                return SectionRow(name, "already there", _detail(done))
            draft = reader.read(section, replace(options, scratch=scratch))
            draft.source["request"] = request
            caption_draft(draft, options)
            # Checked here too, where it is known which file a bad row stands in: readers name it first.
            check_draft(draft, where=next(iter(section.files.values())))
            written = cohort.add(draft, scratch=scratch)
            _picture(written)
        return SectionRow(name, "read", _detail(written), tuple(written.info.source.get("notes", ())))
    except TriglyphError as error:
        if isinstance(error.__cause__, OSError) and isinstance(error, StorageError):
            raise  # a full disk: no other section would fare better
        return SectionRow(section.section_id, "failed", error.what, error=error)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            mend = "free some space (or choose another --out) and run the same command again"
            raise StorageError(os.strerror(error.errno), where=cohort.path, mend=mend) from error
        # Libraries raise any of these on files that are damaged in a way no reader foresaw; the run goes on.
        where = f"{section.root}, section {section.section_id}"
        broken = SourceError(f"cannot be read: {error!r}", where=where, mend="check the section's files")
        broken.__cause__ = error
        return SectionRow(section.section_id, "failed", broken.what, error=broken)


def _request(section: SectionSource, options: ReadOptions) -> dict[str, Any]:
    """What a section was asked to be: its files by name and size, and the options that shape it."""
    from triglyph import __version__

    files = {role: [path.name, path.stat().st_size] for role, path in sorted(section.files.items()) if path.is_file()}
    if options.image is not None and options.image.is_file():
        files["--image"] = [options.image.name, options.image.stat().st_size]
    said = options.said()
    if options.patients is not None:
        said["patients"] = dict(options.patients.get(section.section_id, {}))
    return {"platform": section.platform, "files": files, "options": said, "triglyph": __version__}


def _same(section: Section, request: dict[str, Any]) -> Section:
    """`section`, if it was read from what is asked for now."""
    before = section.info.source.get("request", {})
    differ = [key for key in ("platform", "files", "options") if before.get(key) != request[key]]
    if differ:
        raise ContractError(
            f"section {section.id} is there already, read otherwise ({', '.join(differ)} differ: "
            f"{_short(before.get(differ[0]))} then, {_short(request[differ[0]])} now)",
            where=section.path,
            mend="remove this folder and its row of sections.csv to read it again, or choose another --out",
        )
    return section


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 160 else text[:157] + "…"


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder on the cohort's own disk, held by this process and removed at the end."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{folder.name}.lock"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(scratch: Path) -> None:
    """Remove what dead processes left in the scratch folder; what a living one holds stays."""
    from filelock import FileLock, Timeout

    if not scratch.is_dir():
        return
    for folder in [p for p in scratch.iterdir() if p.is_dir()]:
        lock = FileLock(scratch / f"{folder.name}.lock")
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            continue
    if not any(p.is_dir() for p in scratch.iterdir()):
        shutil.rmtree(scratch, ignore_errors=True)


def _sweep_manifest(cohort: Path) -> None:
    """Remove what a process left that died while it wrote the manifest, under the lock it is written under."""
    from filelock import FileLock

    from triglyph.storage import PARTIAL

    with FileLock(cohort / ".sections.csv.lock"):
        for half in cohort.glob(f"{PARTIAL}*-sections.csv"):
            half.unlink(missing_ok=True)


def _picture(section: Section) -> None:
    """Draw the picture if it is missing; this process holds the section."""
    from triglyph.report.qc import write_qc
    from triglyph.storage import PARTIAL

    for half in section.path.glob(f"{PARTIAL}*-{QC}"):
        half.unlink(missing_ok=True)
    if not (section.path / QC).is_file():
        write_qc(section, section.path / QC)


def _detail(section: Section) -> str:
    info = section.info
    image = next((f"{i.mpp:.4f} µm/px from {i.mpp_source}" for i in info.images if i.role == "full"), "")
    if not image:
        pictures = info.pictures
        preview = "" if pictures is None else f"{pictures.n_files:,} pictures, {pictures.mpp_source}"
        preview = preview or next((f"preview at {i.mpp:.3f} µm/px from {i.mpp_source}" for i in info.images), "")
        image = preview or "no image"
    counted = f"{info.n_genes:,} genes, {int(section.table.X.sum()):,} counts, " if info.n_genes else ""
    return f"{info.n_locations:,} locations, {counted}patient {info.patient}, {image}"


def _say(console: Console, row: SectionRow, number: str) -> None:
    from rich.markup import escape

    colour = {"read": "green", "already there": "cyan", "failed": "red"}[row.status]
    line = f"[dim]{number:>7}[/] [bold]{escape(row.section)}[/] [{colour}]{row.status}[/]  {escape(row.detail)}"
    console.print(line, highlight=False, soft_wrap=True)
    for note in row.notes:
        console.print(f"          [dim]note: {escape(note)}[/]", highlight=False, soft_wrap=True)
    if row.error is not None:
        for name, text in (("where", row.error.where), ("mend", row.error.mend)):
            if text:
                console.print(f"          {name}: {escape(text)}", highlight=False, soft_wrap=True)
