"""`triglyph split`: divide a cohort into training, validation and test sections, and save the division."""

from __future__ import annotations

from pathlib import Path

from triglyph.errors import RecipeError


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
    val_patients: int = 0,
    seed: int = 0,
) -> Path:
    """Save a split of a cohort: by named sections, by held-out patients, or in patient-wise folds.

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
        None or several ways of dividing were asked for.
    SplitError
        The division leaks, or does not fit the cohort.
    """
    from rich.console import Console

    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.split import Fold, Split, holdout, patient_folds

    ways = [bool(train or test), test_patients is not None, folds is not None, leave_one_out]
    if sum(ways) != 1:
        raise RecipeError(
            "a split is made in one way",
            where="triglyph split",
            mend="give --train with --test, or --test-patients N, or --folds K, or --leave-one-out",
        )
    opened = Cohort.open(cohort)
    if train or test:
        if level not in ("patient", "within-patient"):
            raise RecipeError(f"no level {level!r}", where="--level", mend="patient, or within-patient")
        fold = Fold(train=tuple(train or ()), val=tuple(val or ()), test=tuple(test or ()))
        made = Split.model_validate({"name": name, "level": level, "folds": [fold], "made_by": "by hand"})
    elif test_patients is not None:
        made = holdout(opened.patients, name=name, test_patients=test_patients, val_patients=val_patients, seed=seed)
    else:
        made = patient_folds(opened.patients, name=name, folds=folds, val_patients=val_patients, seed=seed)
    path = opened.save_split(made)
    console = Console(stderr=True)
    for fold in made.folds:
        sides = "; ".join(
            f"{side} {', '.join(getattr(fold, side))}" for side in ("train", "val", "test") if getattr(fold, side)
        )
        console.print(f"{name}, fold {fold.name}: {sides}", highlight=False, soft_wrap=True)
    console.print(f"saved as {path}", highlight=False, soft_wrap=True)
    return path
