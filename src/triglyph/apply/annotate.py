"""Annotating a cohort: what is settled once, then section by section; run again, it goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import triglyph
from triglyph.apply.labelling import (
    Abstain,
    LabelCalibration,
    Labelling,
    Target,
    calibrate,
    logit_scale,
    target_of,
    vectors_of,
)
from triglyph.apply.prompts import Prompts
from triglyph.apply.reference import DEFINITION, Reference
from triglyph.apply.reports import AnnotateReport
from triglyph.apply.trained import TrainedModel
from triglyph.cards import digest
from triglyph.errors import ContractError, TriglyphError
from triglyph.storage import file_digest, read_json
from triglyph.tissue.annotations import Annotation, columns_of
from triglyph.training.features import present
from triglyph.training.release import CONFIG, TENSORS
from triglyph.training.run import Run

if TYPE_CHECKING:
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.section import Section

Outcome = Literal["annotated", "already", "absent"]
After = Callable[["Section", Annotation], None]
"""What is done with each section's annotation: pictures, GeoJSON."""


def settle(
    run: Path,
    *,
    prompts: Prompts,
    name: str,
    modality: Target | None,
    calibration: str,
    abstain: str | None,
    ood: float,
    trained_on: Cohort,
    device: Any = "cpu",
    weights: dict[str, Path] | None = None,
) -> tuple[Labelling, Path | None]:
    """Open the model, fit or read what is fitted, and say it all in `about`.

    Parameters
    ----------
    run
        Folder of a finished run.
    calibration
        `none`, `fit` (on the labels of the training sections; saved as `RUN/calibrations/<name>.json`), or a file that
        was saved so.
    abstain
        See `Abstain.parse`.
    ood
        Quantile of the training locations' distances beyond which a location is strange; 0 measures none.
    trained_on
        A cohort that may hold the sections that the model was trained on; asked only where they are needed.

    Returns
    -------
    The labelling, and where its calibration lies.

    Raises
    ------
    ContractError
        The model reads no words; or training sections are needed and are not in `trained_on`.
    """
    model = TrainedModel.open(run, device=device, weights=weights)
    target, identity = target_of(model, modality), model_digest(run)
    fitted, path = None, None
    if calibration == "fit":
        path = Path(run) / "calibrations" / f"{name}.json"
        sections = training_sections(run, trained_on, what="labels to calibrate on", mend="--calibration FILE")
        fitted = calibrate(model, sections, digest=identity, modality=target, prompts=prompts)
        fitted.save(path)
    elif calibration != "none":
        path = Path(calibration)
        fitted = LabelCalibration.read(path, model=identity, modality=target, prompts=prompts)
    limit = None if abstain is None else Abstain.parse(abstain, calibrated=fitted is not None)
    reference = reference_of(run, model, target, trained_on) if ood else None
    threshold = float("inf") if reference is None else reference.threshold(ood)
    scale = logit_scale(model, target)
    about = {
        "triglyph": triglyph.__version__,
        "model": {"run": Path(run).resolve().name, "digest": identity, "recipe": model.manifest.get("recipe", "")},
        "modality": target,
        "prompts": prompts.model_dump(mode="json"),
        "probability": f"softmax of {scale:.4g} x cosine" if fitted is None else "softmax of the calibrated cosines",
        "calibration": None if fitted is None else fitted.model_dump(mode="json", exclude={"prompts", "model"}),
        "abstain": None if limit is None else f"{limit.by} < {limit.below:g}",
        "strange": None
        if reference is None
        else {"definition": DEFINITION, "quantile": ood, "threshold": threshold, "reference": reference.about},
        "transductive": list(model.transductive),
    }
    labelling = Labelling(
        model, name, target, prompts, vectors_of(model, prompts), scale, about, fitted, limit, reference, threshold
    )
    return labelling, path


def model_digest(run: Path) -> str:
    """Sixteen hex digits of a run's release."""
    folder = Run(Path(run)).model_path
    return digest([file_digest(folder / name) for name in (TENSORS, CONFIG)])


def training_sections(run: Path, cohort: Cohort, *, what: str, mend: str) -> list[Section]:
    """The sections that a run was trained on, where a cohort holds them with the same counts, labels and images.

    Raises
    ------
    ContractError
        It does not.
    """
    mend = f"give --trained-on COHORT, the cohort of that run, once; or {mend}"
    record = Path(run) / "data.json"
    if not record.is_file():
        raise ContractError(f"nobody knows which sections have {what}: the run has no data.json", where=run, mend=mend)
    known: dict[str, list[str]] = read_json(record)["sections"]
    if missing := sorted(set(known) - set(cohort.ids)):
        raise ContractError(
            f"the model's training sections are needed ({what}), and {', '.join(missing[:5])} are not here",
            where=cohort.path,
            mend=mend,
        )
    found = [cohort[s] for s in sorted(known)]
    for section in found:
        info = section.info
        if known[section.id] != [info.table, info.locations, *(i.sha256 for i in info.images)]:
            raise ContractError(
                f"section {section.id} is not the one that the model was trained on", where=cohort.path, mend=mend
            )
    return found


def reference_of(run: Path, model: TrainedModel, modality: Target, cohort: Cohort) -> Reference:
    """What a run has stored of its training features; fitted and stored now, where `cohort` has its sections."""
    folder = Path(run) / "reference" / modality
    if not folder.is_dir():
        features, patients = [], []
        sections = training_sections(run, cohort, what="features that are usual", mend="--ood 0 to flag nothing")
        for section in sections:
            values, there = model.pooled(section, modality)
            if there.any():
                features.append(values[there])
                patients.append(section.patient)
        about = {"encoder": model.fingerprints[modality], "sections": sorted(s.id for s in sections)}
        Reference.fit(features, patients, about=about).save(folder)
    # Read again, so that the first answers are those of every later run.
    found = Reference.load(folder)
    if found.about["encoder"] != model.fingerprints[modality]:
        raise ContractError(
            "the stored reference is of another encoder", where=folder, mend="remove the folder and annotate again"
        )
    return found


def annotate_section(section: Section, labelling: Labelling) -> tuple[Annotation | None, Outcome]:
    """Annotate one section, unless the same was asked of it before; None where it lacks the modality.

    Raises
    ------
    ContractError
        A column of the table has the name that the annotation would take.
    """
    if taken := [c for c in columns_of(labelling.name) if c in section.table.obs or c in section.table.obsm]:
        raise ContractError(
            f"the table has a column {taken[0]!r} of its own", where=f"section {section.id}", mend="give another --name"
        )
    if not present(section, labelling.modality).any():
        return None, "absent"
    if section.annotations.about(labelling.name) == labelling.about:
        return section.annotations.read(labelling.name), "already"
    found = labelling.annotate(section)
    section.annotations.write(found)
    return found, "annotated"


def annotate_cohort(
    cohort: Cohort,
    labelling: Labelling,
    *,
    sections: Sequence[str] | None = None,
    after: After | None = None,
    show: bool = True,
) -> AnnotateReport:
    """Annotate sections of a cohort, with a progress bar.

    Parameters
    ----------
    sections
        Ids; None means all.
    after
        Called with each annotated section, also with those that were annotated before.
    show
        Draw a progress bar on stderr.

    Returns
    -------
    AnnotateReport
        Sections that failed are in it; the others are done.
    """
    from triglyph.training.progress import bar

    todo = [cohort[s] for s in (cohort.ids if sections is None else sections)]
    report = AnnotateReport(labelling.name)
    with bar(labelling.name, sum(s.n_locations for s in todo), show=show, unit="locations") as advance:
        for section in todo:
            try:
                found, outcome = annotate_section(section, labelling)
                if found is not None:
                    if after is not None:
                        after(section, found)
                    report.count(section.id, found)
                getattr(report, outcome).append(section.id)
            except (TriglyphError, OSError, ValueError, KeyError, RuntimeError) as error:
                # Libraries under a damaged section raise any of these; the message is kept, the run goes on.
                report.failed[section.id] = str(error) if isinstance(error, TriglyphError) else repr(error)
            labelling.model.forget()
            advance(section.n_locations, note=section.id)
    return report
