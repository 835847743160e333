"""`triglyph split`: divide a cohort into training, validation and test sections, and save the division."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from triglyph.errors import RecipeError, SourceError

if TYPE_CHECKING:
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.section import Section
    from triglyph.tissue.split import Fold, Split

LABEL = "label"


def split(
    cohort: Path,
    *,
    name: str,
    train: list[str] | None = None,
    val: list[str] | None = None,
    test: list[str] | None = None,
    level: str = "patient",
    test_patients: int | None = None,
    folds: int | None = None,
    leave_one_out: bool = False,
    stratify: str | None = None,
    nested: int | None = None,
    from_: tuple[Literal["hest", "hescape"], Path] | None = None,
    within_section: Literal["random", "blocked"] | None = None,
    share: float | None = None,
    block_um: float | None = None,
    buffer_um: float | None = None,
    only: list[str] | None = None,
    val_patients: int = 0,
    seed: int = 0,
) -> Path:
    """Save a split of a cohort, in one of six ways.

    By named sections (`--train A --test B`); by held-out patients (`--test-patients 2`); in patient-wise folds
    (`--folds 5`); one fold a patient (`--leave-one-out`); as others have published it (`--from hest TASK`); or, to show
    what that is worth, by locations within sections (`--within-section random`).

    Parameters
    ----------
    cohort
        Folder of the cohort.
    name
        Name of the split. A saved split is never changed.
    train, val, test
        Section ids, for a split by hand.
    level
        What a split by hand shows: `patient` (checked: no patient on two sides) or `within-patient`.
    test_patients
        Hold out this many patients, drawn by `seed`.
    folds
        Patient-wise folds, each patient tested once.
    leave_one_out
        One fold a patient.
    stratify
        With `folds`: balance this over them, patient by patient. A column of `sections.csv` or `clinical.csv`, or
        `label` for the classes of the locations.
    nested
        With `folds` or `leave_one_out`: also save, for each fold, this many folds of its training side, to choose
        things on, as `NAME/FOLD`. 0 leaves one training patient out.
    from_
        `hest DIR`: `train_<i>.csv` and `test_<i>.csv` of a task of HEST-Benchmark. `hescape DIR`: `train.csv`,
        `val.csv` and `test.csv` of a panel of HESCAPE. The level follows from the cohort's patients.
    within_section
        `random`: a share of every section's locations is tested, next to what is trained on. `blocked`: square blocks
        of tissue are, each once over `folds` (5), with a buffer around them that is on neither side.
    share
        With `within_section random`: what is held out, 0.05 if left out.
    block_um
        With `within_section blocked`: side of a block, 1000 µm if left out.
    buffer_um
        With `within_section blocked`: width of the buffer, 320 µm if left out: wider than the diagonal
        of any window that our encoders read.
    only
        Sections to divide; the rest of the cohort is on neither side. All, if left out.
    val_patients
        Patients of the training side set aside for validation.
    seed
        Of the drawing.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    RecipeError
        None or several ways of dividing were asked for, or an option of another way.
    SplitError
        The division leaks, or does not fit the cohort.
    """
    from rich.console import Console

    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.split import Fold, Split, holdout, patient_folds
    from triglyph.tissue.splitting import nested_folds, stratified_folds

    by_hand, by_folds = bool(train or val or test), folds is not None and within_section is None
    ways = [by_hand, test_patients is not None, by_folds, leave_one_out, from_ is not None, within_section is not None]
    if sum(ways) != 1:
        raise RecipeError(
            "a split is made in one way",
            where="triglyph split",
            mend="give --train with --test, or --test-patients N, or --folds K, or --leave-one-out, "
            "or --from hest DIR, or --within-section random",
        )
    drawn = by_folds or leave_one_out
    _belongs(stratify, "--stratify", "--folds", to=by_folds)
    _belongs(nested, "--nested", "--folds or --leave-one-out", to=drawn)
    _belongs(share, "--share", "--within-section random", to=within_section == "random")
    _belongs(folds, "--folds", "no --within-section, or blocked", to=by_folds or within_section == "blocked")
    for value, option in ((block_um, "--block-um"), (buffer_um, "--buffer-um")):
        _belongs(value, option, "--within-section blocked", to=within_section == "blocked")
    patient_wise = "--test-patients, --folds or --leave-one-out"
    _belongs(val_patients or None, "--val-patients", patient_wise, to=drawn or test_patients is not None)
    _belongs(only, "--only", "what is drawn", to=not by_hand and from_ is None)
    opened = Cohort.open(cohort)
    sections = {s: opened[s].patient for s in only} if only else opened.patients
    notes: Sequence[str] = ()
    if by_hand:
        if level not in ("patient", "within-patient"):
            raise RecipeError(f"no level {level!r}", where="--level", mend="patient, or within-patient")
        fold = Fold(train=tuple(train or ()), val=tuple(val or ()), test=tuple(test or ()))
        made = Split.model_validate({"name": name, "level": level, "folds": [fold], "made_by": "by hand"})
    elif test_patients is not None:
        made = holdout(sections, name=name, test_patients=test_patients, val_patients=val_patients, seed=seed)
    elif from_ is not None:
        from triglyph.tissue.split_files import read_hescape_split, read_hest_splits

        read = read_hest_splits if from_[0] == "hest" else read_hescape_split
        made, notes = read(Path(from_[1]), opened.patients, name=name)
    elif within_section is not None:
        made = _within([opened[s] for s in sections], within_section, name, seed, folds, share, block_um, buffer_um)
    elif stratify is not None and folds is not None:
        profiles = _profiles(opened, stratify)
        made = stratified_folds(
            sections,
            {s: profiles[s] for s in sections},
            name=name,
            folds=folds,
            val_patients=val_patients,
            seed=seed,
        )
    else:
        made = patient_folds(sections, name=name, folds=folds, val_patients=val_patients, seed=seed)
    inner = [] if nested is None else nested_folds(made, sections, folds=nested or None, seed=seed)
    path = opened.save_split(made)
    console = Console(stderr=True)
    for fold in made.folds:
        console.print(f"{name}, fold {fold.name}: {_sides(fold)}", highlight=False, soft_wrap=True)
    for note in (f"level: {made.level}", *notes):
        console.print(f"  {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"saved as {path}", highlight=False, soft_wrap=True)
    for one in inner:
        saved = opened.save_split(one)
        console.print(f"{len(one.folds)} folds of its training side saved as {saved}", highlight=False, soft_wrap=True)
    return path


def _belongs(value: object, option: str, way: str, *, to: bool) -> None:
    if value is not None and not to:
        raise RecipeError(f"{option} does nothing here", where="triglyph split", mend=f"use it with {way}")


def _within(
    sections: Sequence[Section],
    how: str,
    name: str,
    seed: int,
    folds: int | None,
    share: float | None,
    block_um: float | None,
    buffer_um: float | None,
) -> Split:
    from triglyph.tissue.splitting import BUFFER_UM, blocked_within, random_within

    barcodes = {s.id: tuple(map(str, s.table.obs_names)) for s in sections}
    if how == "random":
        return random_within(barcodes, name=name, share=0.05 if share is None else share, seed=seed)
    return blocked_within(
        {s.id: (barcodes[s.id], s.centres_um) for s in sections},
        name=name,
        folds=5 if folds is None else folds,
        block_um=1000.0 if block_um is None else block_um,
        buffer_um=BUFFER_UM if buffer_um is None else buffer_um,
        seed=seed,
    )


def _profiles(cohort: Cohort, column: str) -> Mapping[str, Mapping[str, float]]:
    """What is balanced: per section, its value with its share of the patient, or its labels with their numbers."""
    if column == LABEL:
        return {s.id: {c: float(n) for c, n in Counter(map(str, s.labels)).items() if c.strip()} for s in cohort}
    patients = cohort.patients
    if column in cohort.manifest.columns:
        values = {str(section): str(value).strip() for section, value in cohort.manifest[column].items()}
    else:
        try:
            clinical = cohort.clinical
        except SourceError:  # a cohort need not have the table
            clinical = None
        known = list(cohort.manifest.columns) + ([] if clinical is None else list(clinical.columns))
        if clinical is None or column not in clinical.columns:
            raise RecipeError(
                f"no column {column!r}", where="--stratify", mend=f"there are {', '.join([*known, LABEL])}"
            )
        of = clinical[column].dropna().astype(str).str.strip()
        values = {section: str(of.get(patient, "")) for section, patient in patients.items()}
    sections = Counter(patients.values())
    return {s: ({value: 1.0 / sections[patients[s]]} if value else {}) for s, value in values.items()}


def _sides(fold: Fold) -> str:
    if fold.test_locations is None:
        return "; ".join(
            f"{side} {', '.join(getattr(fold, side))}" for side in ("train", "val", "test") if getattr(fold, side)
        )
    tested, withheld = (sum(map(len, of.values())) for of in (fold.test_locations, fold.withheld))
    buffer = f", {withheld - tested} on neither side" if withheld > tested else ""
    return f"{tested} locations of {len(fold.test)} sections tested{buffer}"
