"""`triglyph annotate`: labels in plain words for every location of a cohort, as tables, GeoJSON and pictures.

COHORT/sections/<id>/annotations/<name>.parquet   always; joined by `to_anndata`
OUT/<section>.png, <section>.geojson              a picture; what QuPath opens
OUT/summary.csv                                   how many locations of which class
OUT/annotated.h5ad, or <section>.h5ad             on request
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from triglyph.apply.reports import AnnotateReport
from triglyph.errors import ContractError, RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from triglyph.tissue.annotations import Annotation
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.section import Section

DONE = "annotated.json"
"""In OUT: which annotation of each section its files show."""


def annotate(
    cohort: Path,
    *,
    model: Path,
    labels: Annotated[tuple[str, ...], Parameter(consume_multiple=True)],
    name: str = "zero-shot",
    modality: Literal["image", "expression"] | None = None,
    calibration: str = "none",
    abstain: str | None = None,
    ood: float = 0.99,
    trained_on: Path | None = None,
    out: Path | None = None,
    h5ad: Literal["one", "each"] | None = None,
    sections: tuple[str, ...] | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> AnnotateReport:
    """Label every location in plain words; run again, it goes on where it stopped.

    Parameters
    ----------
    cohort
        Folder of the cohort. Annotations are written beside each section; counts are never touched.
    model
        The `--out` of `triglyph train`, with a text tower.
    labels
        Names of classes (`--labels tumour stroma`), or one YAML file of classes with synonyms.
    name
        Of the annotation. The same name again, asked otherwise, replaces it.
    modality
        What of a location is held against the words; its image where the model reads images.
    calibration
        `none`; `fit`, on the labels of the sections that the model was trained on, kept in `RUN/calibrations`; or such
        a file. Scores rank locations well and compare classes badly: without one, some classes take all.
    abstain
        Leave undecided: `'probability<0.6'` (after a calibration) or `'margin<0.1'`.
    ood
        Flag locations farther from the training tissue than this share of it; 0 flags none.
    trained_on
        The cohort that the model was trained on, where it is another: needed once, to calibrate and to flag.
    out
        Folder for pictures, GeoJSON and a summary.
    h5ad
        Also write the tables there, joined with the labels: `one` for all sections (genes measured in all), or `each`.
    sections
        Ids of sections; all unless given.
    device
        `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
    quiet
        Print nothing but errors.

    Returns
    -------
    AnnotateReport
        What became of each section; its `exit_code` is 1 if one failed.

    Raises
    ------
    RecipeError
        Labels or options are not understood.
    ContractError
        The model reads no words, no section has the modality, or what is needed of its training is not here.
    """
    from rich.console import Console

    from triglyph.apply.annotate import annotate_cohort, settle
    from triglyph.apply.embed import resolve_device
    from triglyph.apply.labelling import asked
    from triglyph.storage import atomic_file
    from triglyph.tissue.annotations import checked_name
    from triglyph.tissue.cohort import Cohort

    prompts = asked(labels)
    checked_name(name)
    if not 0 <= ood < 1:
        raise RecipeError(f"a quantile of {ood:g}", where="--ood", mend="give a number from 0 (none) to below 1")
    if h5ad is not None and out is None:
        raise RecipeError("there is no folder for the tables", where="--h5ad", mend="give --out")
    opened = Cohort.open(Path(cohort))
    chosen = list(opened.ids if sections is None else sections)
    labelling, path = settle(
        Path(model),
        prompts=prompts,
        name=name,
        modality=modality,
        calibration=calibration,
        abstain=abstain,
        ood=ood,
        trained_on=opened if trained_on is None else Cohort.open(Path(trained_on)),
        device=resolve_device(device),
    )
    if labelling.modality == "image" and not any(opened[s].has_image() for s in chosen):
        raise ContractError(
            "no section has a full-resolution image", where=opened.path, mend="annotate its --modality expression"
        )
    files = None if out is None else _Files(Path(out), labelling.classes)
    report = annotate_cohort(opened, labelling, sections=chosen, after=files, show=not quiet)
    report.calibration = path
    if files is not None:
        report.notes = files.notes
        with atomic_file(files.out / "summary.csv") as partial:
            partial.write_text(_summary(opened, report), encoding="utf-8")
        if h5ad is not None:
            _tables(opened, list(report.counts), files.out, one=h5ad == "one")
    _tell(Console(stderr=True), report, quiet=quiet)
    return report


class _Files:
    """Picture and GeoJSON of each section, made again only where they show something else."""

    def __init__(self, out: Path, classes: tuple[str, ...]) -> None:
        from triglyph.report.annotation import palette_of
        from triglyph.storage import read_json

        self.out, self.palette, self.notes = out, palette_of(classes), dict[str, str]()
        done = out / DONE
        self.done: dict[str, str] = read_json(done) if done.is_file() else {}

    def __call__(self, section: Section, annotation: Annotation) -> None:
        from triglyph.apply.geojson import write_geojson
        from triglyph.cards import digest
        from triglyph.report.annotation import annotation_picture
        from triglyph.storage import atomic_file, write_json

        if not section.placed:
            self.notes[section.id] = "its locations have no place on a piece of tissue: no picture, no GeoJSON"
            return
        picture, outlines = (self.out / f"{section.id}.{kind}" for kind in ("png", "geojson"))
        slide = any(i.name == "he" and i.role == "full" for i in section.info.images)
        if not slide:
            self.notes[section.id] = "it has no full-resolution image: no GeoJSON, and nothing under its picture"
        shown = digest([section.info.locations, annotation.name, annotation.about])
        if self.done.get(section.id) == shown and picture.is_file() and (outlines.is_file() or not slide):
            return
        with atomic_file(picture) as partial:
            partial.write_bytes(annotation_picture(section, annotation, self.palette))
        if slide:
            write_geojson(outlines, section, annotation, self.palette)
        self.done[section.id] = shown
        write_json(self.out / DONE, self.done)


def _summary(cohort: Cohort, report: AnnotateReport) -> str:
    """CSV: locations of each class, unsure and strange, by section."""
    import csv
    import io

    text = io.StringIO()
    columns = list(next(iter(report.counts.values()), {}))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["section", "patient", *columns])
    writer.writerows([s, cohort.patients[s], *counts.values()] for s, counts in report.counts.items())
    return text.getvalue()


def _tables(cohort: Cohort, sections: list[str], out: Path, *, one: bool) -> None:
    """`.h5ad` with labels and embeddings joined; of all sections, over the genes that all of them measured."""
    import anndata as ad

    from triglyph.storage import atomic_file

    if not sections:
        return
    if not one:
        for name in sections:
            with atomic_file(out / f"{name}.h5ad") as partial:
                cohort[name].to_anndata().write_h5ad(partial)
        return
    genes = list(cohort.genes(sections))
    tables, about = [], dict[str, Any]()
    for name in sections:
        table = cohort[name].to_anndata()
        about[name] = table.uns["triglyph"]
        table.obs["section"], table.obs["patient"] = name, cohort.patients[name]
        table.obs_names = [f"{name}:{barcode}" for barcode in table.obs_names]
        tables.append(table[:, genes].copy())
    # An inner join: a gene that a section did not measure would be filled with zeros.
    whole = ad.concat(tables, join="inner", merge="same")
    whole.uns["triglyph"] = {"sections": about}
    with atomic_file(out / "annotated.h5ad") as partial:
        whole.write_h5ad(partial)


def _tell(console: Console, report: AnnotateReport, *, quiet: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not quiet:
        said = [
            (len(report.annotated), "annotated"),
            (len(report.already), "already there"),
            (len(report.absent), "without the modality"),
            (len(report.failed), "[red]failed[/]"),
        ]
        console.print(f"{escape(report.name)}: " + ", ".join(f"{n} {what}" for n, what in said if n))
        total = {key: sum(c[key] for c in report.counts.values()) for key in next(iter(report.counts.values()), {})}
        everything = max(1, sum(n for key, n in total.items() if key != "strange"))
        table = Table("label", "locations", "share", box=None)
        for key, n in total.items():
            table.add_row(escape("out of distribution" if key == "strange" else key), f"{n:,}", f"{n / everything:.1%}")
        console.print(table)
        if report.calibration is not None:
            console.print(f"calibration: {escape(str(report.calibration))}")
        for section, why in report.notes.items():
            console.print(f"{escape(section)}: {why}")
    for section, why in report.failed.items():
        console.print(f"[red]{escape(section)}[/]: {escape(why)}")
