"""Splits of others, read from the files that they publish.

Files name sections and sometimes patients; who is whom is taken from the cohort alone, and the level of the split
follows from that. Where a file says otherwise, or nothing, the notes say so.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from triglyph.errors import SourceError, SplitError
from triglyph.tissue.split import Fold, Split, level_of_folds

SIDES = ("train", "val", "test")


class ReadSplit(NamedTuple):
    """A split, and what is to be known of it."""

    split: Split
    notes: tuple[str, ...]


def read_hest_splits(folder: Path, patients: Mapping[str, str], *, name: str) -> ReadSplit:
    """The folds of a task of HEST-Benchmark: `splits/train_<i>.csv` and `test_<i>.csv` with a column `sample_id`.

    Parameters
    ----------
    folder
        Of the task, or its `splits/`.
    patients
        Section id -> patient id, of the whole cohort.

    Raises
    ------
    SourceError
        There are no such files, or one of a pair is missing.
    SplitError
        A sample is not in the cohort, or on both sides.
    """
    folder = Path(folder)
    where = folder / "splits" if (folder / "splits").is_dir() else folder
    numbers = sorted({int(m[1]) for p in where.glob("*.csv") if (m := re.fullmatch(r"(?:train|test)_(\d+)", p.stem))})
    if not numbers:
        raise SourceError(
            "no train_<i>.csv and test_<i>.csv", where=where, mend="give the folder of a task, which holds splits/"
        )
    folds = []
    for i in numbers:
        train, test = (_column(where / f"{side}_{i}.csv", "sample_id") for side in ("train", "test"))
        folds.append(Fold(name=str(i), train=train, test=test))
    return _derived(folds, patients, name=name, made_by="split files of HEST-Benchmark", where=where)


def read_hescape_split(folder: Path, patients: Mapping[str, str], *, name: str) -> ReadSplit:
    """The fold of a panel of HESCAPE: `train.csv`, `val.csv`, `test.csv` with columns `id` and `patient`.

    Most cells of `patient` are empty there, and some are wrong; patients are the cohort's.

    Parameters
    ----------
    folder
        Of the panel, such as `data/human-lung-healthy-panel`.
    patients
        Section id -> patient id, of the whole cohort.

    Raises
    ------
    SourceError
        A file is missing, or has no column `id`.
    SplitError
        A section is not in the cohort, or on two sides.
    """
    folder = Path(folder)
    sides = {side: _column(folder / f"{side}.csv", "id") for side in SIDES}
    fold = Fold(train=sides["train"], val=sides["val"], test=sides["test"])
    made = _derived([fold], patients, name=name, made_by="split files of HESCAPE", where=folder)
    stated: dict[str, str] = {}
    for side in SIDES:
        for row in _table(folder / f"{side}.csv"):
            patient, title = ((row.get(key) or "").strip() for key in ("patient", "dataset_title"))
            # Patients are named within a dataset.
            stated[row["id"].strip()] = f"{title} / {patient}" if patient else ""
    return ReadSplit(made.split, (*made.notes, *_disagreements(stated, patients)))


def _disagreements(stated: Mapping[str, str], patients: Mapping[str, str]) -> list[str]:
    notes = []
    if silent := sorted(s for s, patient in stated.items() if not patient):
        notes.append(
            f"the files name no patient for {len(silent)} of {len(stated)} sections ({_some(silent)}); "
            "the cohort's patients are used"
        )
    theirs: dict[str, set[str]] = {}
    for section, patient in stated.items():
        if patient:
            theirs.setdefault(patient, set()).add(section)
    for patient, sections in sorted(theirs.items()):
        ours = sorted({patients[s] for s in sections})
        if len(ours) > 1:
            notes.append(
                f"the files have one patient ({patient}) in {_some(sorted(sections))}, the cohort {len(ours)}: "
                f"{_some(ours)}; if the files are right, the level is too high"
            )
    ours_to_theirs: dict[str, set[str]] = {}
    for section, patient in stated.items():
        if patient:
            ours_to_theirs.setdefault(patients[section], set()).add(patient)
    for patient, named in sorted(ours_to_theirs.items()):
        if len(named) > 1:
            notes.append(f"the cohort has one patient ({patient}), the files {len(named)}: {_some(sorted(named))}")
    return notes


def _derived(folds: Sequence[Fold], patients: Mapping[str, str], *, name: str, made_by: str, where: Path) -> ReadSplit:
    """The split of these folds, its level derived from the cohort's patients."""
    named = {s for fold in folds for s in (*fold.train, *fold.val, *fold.test)}
    if unknown := sorted(named - set(patients)):
        raise SplitError(
            f"sections that the cohort has not: {_some(unknown)}",
            where=where,
            mend="read them into the cohort under these ids, or leave them out of the files",
        )
    if nobody := sorted(s for s in named if not patients[s]):
        raise SplitError(
            f"the patients of sections {_some(nobody)} are not known, so the level of the split is not either",
            where=where,
            mend="fill them in",
        )
    level = level_of_folds(folds, patients)
    split = Split(name=name, level=level, folds=tuple(folds), made_by=made_by)
    split.check(patients)
    notes = []
    if level != "patient":
        for fold in folds:
            seen = {patients[s] for s in (*fold.train, *fold.val)}
            if both := sorted({patients[s] for s in fold.test} & seen):
                notes.append(f"fold {fold.name} has patients on both sides ({_some(both)}): the level is {level}")
    return ReadSplit(split, tuple(notes))


def _column(path: Path, column: str) -> tuple[str, ...]:
    """The ids in a column, none of them empty or twice."""
    ids = []
    for number, row in enumerate(_table(path, column), start=2):
        ids.append((row[column] or "").strip())
        if not ids[-1]:
            raise SourceError(f"no {column}", where=f"{path}, line {number}", mend="fill it in, or remove the line")
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise SplitError(f"listed twice: {_some(twice)}", where=path, mend="keep one line of each")
    return tuple(ids)


def _table(path: Path, column: str = "") -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
    except FileNotFoundError:
        raise SourceError("there is no such file", where=path, mend="give a folder with all files of a split") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"not readable as a table ({error})", where=path, mend="restore the file") from None
    if column and column not in (reader.fieldnames or ()):
        raise SourceError(
            f"the table has no column {column!r}",
            where=path,
            mend=f"it has {', '.join(map(str, reader.fieldnames or ())) or 'none'}",
        )
    return rows


def _some(names: Iterable[str], most: int = 8) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
