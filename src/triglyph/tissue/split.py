"""The Split: which sections train, validate and test a model; data, saved and hashed.

`level` says what a good result would show: `patient` (generalisation to people never seen; the only one that supports
such a claim), `within-patient` (other sections of people who were trained on), `within-section`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from triglyph.cards import Frozen
from triglyph.errors import SplitError

Level = Literal["patient", "within-patient", "within-section"]


class Fold(Frozen):
    """One division of sections. For `within-section` splits, `test_locations` names the held-out barcodes."""

    name: str = "0"
    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...]
    test_locations: dict[str, tuple[str, ...]] | None = None
    buffer_locations: dict[str, tuple[str, ...]] | None = None
    """Barcodes too near to tested ones: neither trained on nor tested."""

    @property
    def withheld(self) -> dict[str, tuple[str, ...]]:
        """Section id -> barcodes that training may not see: those tested, and those too near to them."""
        buffer = self.buffer_locations or {}
        return {s: (*barcodes, *buffer.get(s, ())) for s, barcodes in (self.test_locations or {}).items()}

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A fold without a buffer has the digest that it had before there were buffers.
        return {k: v for k, v in write(self).items() if k != "buffer_locations" or v is not None}

    @model_validator(mode="after")
    def _buffer_is_beside_what_is_tested(self) -> Fold:
        for section, barcodes in (self.buffer_locations or {}).items():
            tested = (self.test_locations or {}).get(section, ())
            if not tested or set(tested) & set(barcodes):
                raise SplitError(
                    f"the buffer of section {section} "
                    + ("is also tested" if tested else "is around nothing that is tested"),
                    where=f"fold {self.name!r}",
                    mend="name locations in `buffer_locations` that are near tested ones of the section",
                )
        return self


class Split(Frozen):
    """A named set of folds."""

    name: str
    level: Level
    folds: tuple[Fold, ...]
    seed: int | None = None
    made_by: str = ""

    @model_validator(mode="after")
    def _sides_are_apart(self) -> Split:
        for fold in self.folds:
            if not fold.train or not fold.test:
                raise SplitError(
                    "a fold needs sections to train on and sections to test on",
                    where=self._at(fold),
                    mend="name sections on both sides: --train C2 --test B4, or hold patients out: --test-patients 2",
                )
            sides = {"train": set(fold.train), "val": set(fold.val), "test": set(fold.test)}
            if self.level == "within-section":
                continue
            for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
                if both := sorted(sides[a] & sides[b]):
                    raise SplitError(f"sections on both sides, {a} and {b}: {', '.join(both)}", where=self._at(fold))
        return self

    def _at(self, fold: Fold) -> str:
        return f"split {self.name!r}, fold {fold.name!r}"

    def check(self, patients: Mapping[str, str]) -> None:
        """Compare with a cohort.

        Parameters
        ----------
        patients
            Section id -> patient id, of the whole cohort.

        Raises
        ------
        SplitError
            A section is unknown, or a patient is on both sides of a `patient`-level split.
        """
        for fold in self.folds:
            unknown = sorted({*fold.train, *fold.val, *fold.test} - set(patients))
            if unknown:
                raise SplitError(
                    f"sections that the cohort has not: {', '.join(unknown)}",
                    where=self._at(fold),
                    mend=f"the cohort has {', '.join(sorted(patients)[:12])}",
                )
            if self.level != "patient":
                continue
            test = {patients[s] for s in fold.test}
            for side in ("train", "val"):
                both = sorted(test & {patients[s] for s in getattr(fold, side)})
                if both:
                    raise SplitError(
                        f"patients on both sides, {side} and test, of a patient-level split: {', '.join(both)}",
                        where=self._at(fold),
                        mend="move all sections of a patient to one side, or declare level: within-patient",
                    )

    def fold(self, name: str = "0") -> Fold:
        """The fold of that name."""
        for fold in self.folds:
            if fold.name == name:
                return fold
        raise SplitError(
            f"no fold {name!r}", where=f"split {self.name!r}", mend=f"folds: {[f.name for f in self.folds]}"
        )


def patient_folds(
    patients: Mapping[str, str], *, name: str, folds: int | None = None, val_patients: int = 0, seed: int = 0
) -> Split:
    """Patient-level folds: `folds` groups of patients, each tested once; None leaves one patient out.

    Parameters
    ----------
    patients
        Section id -> patient id.
    val_patients
        Patients of the training side of each fold set aside for validation.
    """
    people = sorted(set(patients.values()))
    rng = np.random.default_rng(seed)
    order = [people[i] for i in rng.permutation(len(people))]
    k = len(people) if folds is None else folds
    if not 2 <= k <= len(people):
        raise SplitError(
            f"{k} folds of {len(people)} patients", where=f"split {name!r}", mend="use 2 or more, at most one a patient"
        )
    groups = [sorted(order[i::k]) for i in range(k)]
    folds_ = folds_of(patients, groups, order=order, name=name, val_patients=val_patients)
    return Split(name=name, level="patient", folds=folds_, seed=seed, made_by="patient_folds")


def folds_of(
    patients: Mapping[str, str], groups: Sequence[Sequence[str]], *, order: Sequence[str], name: str, val_patients: int
) -> tuple[Fold, ...]:
    """A fold for each group of patients, which it tests.

    Parameters
    ----------
    patients
        Section id -> patient id.
    order
        All patients; the first `val_patients` of a fold's training side are set aside for validation.
    name
        Of the split, for the error.
    """
    if len(order) - max(map(len, groups)) - val_patients < 1:
        raise SplitError(
            f"{len(groups)} folds with {val_patients} validation patients leave nobody of {len(order)} to train on",
            where=f"split {name!r}",
            mend="use more folds, or fewer validation patients",
        )
    made = []
    for i, group in enumerate(sorted(sorted(g) for g in groups)):
        rest = [p for p in order if p not in group]
        val = rest[:val_patients]
        made.append(
            Fold(
                name=str(i),
                train=sections_of(patients, [p for p in rest if p not in val]),
                val=sections_of(patients, val),
                test=sections_of(patients, group),
            )
        )
    return tuple(made)


def holdout(
    patients: Mapping[str, str], *, name: str, test_patients: int, val_patients: int = 0, seed: int = 0
) -> Split:
    """One fold that holds `test_patients` people out."""
    people = sorted(set(patients.values()))
    if test_patients + val_patients >= len(people):
        raise SplitError(
            f"{test_patients} test and {val_patients} validation patients of {len(people)}",
            where=f"split {name!r}",
            mend="leave at least one patient to train on",
        )
    order = [people[i] for i in np.random.default_rng(seed).permutation(len(people))]
    test, val = order[:test_patients], order[test_patients : test_patients + val_patients]
    train = order[test_patients + val_patients :]
    fold = Fold(train=sections_of(patients, train), val=sections_of(patients, val), test=sections_of(patients, test))
    return Split(name=name, level="patient", folds=(fold,), seed=seed, made_by="holdout")


def sections_of(patients: Mapping[str, str], wanted: Iterable[str]) -> tuple[str, ...]:
    """Section ids of the patients `wanted`, sorted."""
    keep = set(wanted)
    return tuple(sorted(s for s, p in patients.items() if p in keep))


def level_of(section: str, *, training: Sequence[str], patients: Mapping[str, str]) -> Level:
    """What testing on `section` shows, for a model trained on `training`."""
    if section in training:
        return "within-section"
    return "within-patient" if patients[section] in {patients[s] for s in training} else "patient"


def level_of_folds(folds: Iterable[Fold], patients: Mapping[str, str]) -> Level:
    """The highest level that every fold keeps: `patient` where nobody is on two sides of any.

    Sections themselves must be known to `patients`; sections on two sides are refused by `Split`.
    """
    for fold in folds:
        seen = {patients[s] for s in (*fold.train, *fold.val)}
        if any(patients[s] in seen for s in fold.test):
            return "within-patient"
    return "patient"
