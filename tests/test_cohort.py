"""Cohort and Split: the manifest a person edits, and divisions that do not leak."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import small
from triglyph.errors import ContractError, SourceError, SplitError
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.split import Fold, Split, holdout, level_of, patient_folds


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    small.cohort(folder, images=False)
    return folder / "cohort"


@pytest.fixture
def cohort(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "cohort")
    return Cohort.open(tmp_path / "cohort")


def test_sections_come_back_in_order_with_their_patients(cohort):
    assert cohort.ids == ["S0", "S1", "S2"]
    assert cohort.patients == {"S0": "P0", "S1": "P1", "S2": "P2"}
    assert [s.id for s in cohort] == cohort.ids
    assert cohort.genes(cohort.ids) == tuple(sorted(small.GENES))
    with pytest.raises(SourceError, match="no section 'X'"):
        cohort["X"]


def test_a_person_may_edit_the_manifest(cohort):
    table = pd.read_csv(cohort.path / "sections.csv").set_index("section")
    table.loc["S1", "patient"] = "P0"
    table["treated"] = ["yes", "no", "no"]
    table.to_csv(cohort.path / "sections.csv")
    before = cohort.digest()
    again = Cohort.open(cohort.path)
    assert again["S1"].patient == "P0"
    assert list(again.manifest["treated"]) == ["yes", "no", "no"]
    assert again.digest() != before


def test_a_row_lost_by_a_kill_is_found_again(cohort):
    table = pd.read_csv(cohort.path / "sections.csv")
    table[table.section != "S2"].to_csv(cohort.path / "sections.csv", index=False)
    assert Cohort.open(cohort.path).ids == ["S0", "S1", "S2"]
    (cohort.path / "sections.csv").unlink()
    assert Cohort.open(cohort.path).patients["S2"] == "P2"


def test_a_missing_folder_a_double_row_and_an_empty_patient_are_errors(cohort):
    path = cohort.path / "sections.csv"
    table = pd.read_csv(path)
    pd.concat([table, table.iloc[[0]]]).to_csv(path, index=False)
    with pytest.raises(ContractError, match="listed twice: S0"):
        Cohort.open(cohort.path)
    table.assign(patient=["P0", "", "P2"]).to_csv(path, index=False)
    with pytest.raises(ContractError, match=r"patient is not known[\s\S]*section S1"):
        Cohort.open(cohort.path)
    table.assign(patient=["P0", "NA", "P2"]).to_csv(path, index=False)
    with pytest.raises(ContractError, match="section S1"):
        Cohort.open(cohort.path)
    table.to_csv(path, index=False)
    shutil.rmtree(cohort.path / "sections" / "S1")
    with pytest.raises(ContractError, match="not there: S1"):
        Cohort.open(cohort.path)


def test_one_patient_spelt_twice_is_refused_before_it_leaks(cohort):
    path = cohort.path / "sections.csv"
    table = pd.read_csv(path)
    table.assign(patient=["P0", "p0", "P2"]).to_csv(path, index=False)
    with pytest.raises(ContractError, match="spelt twice"):
        Cohort.open(cohort.path)
    table.assign(patient=["P0", "P0 ", "P2"]).to_csv(path, index=False)
    assert Cohort.open(cohort.path).patients["S1"] == "P0"


@pytest.mark.parametrize(
    "broken", ["", "section,patient\n", "a,b\n1\n2,3,4,5\n", "section,patient,block,organ\nS0,P,,\n"]
)
def test_a_manifest_that_is_no_table_is_named(cohort, broken):
    (cohort.path / "sections.csv").write_text(broken)
    with pytest.raises(ContractError, match=r"sections\.csv"):
        Cohort.open(cohort.path)


def test_a_copied_section_is_not_another_section(cohort):
    shutil.copytree(cohort.path / "sections" / "S0", cohort.path / "sections" / "S9")
    with pytest.raises(ContractError, match="'S9' holds the section 'S0'"):
        Cohort.open(cohort.path)


def test_two_sections_of_one_id_are_refused(cohort):
    with pytest.raises(ContractError, match="two sections are called 'S0'"):
        cohort.add(small.draft("S0", patient="P9"))


def test_a_cohort_is_not_made_in_a_folder_of_other_things(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ContractError, match="other things"):
        Cohort.create(tmp_path)
    with pytest.raises(SourceError, match="not a cohort"):
        Cohort.open(tmp_path)


def test_splits_are_saved_once_and_checked(cohort):
    split = Split(name="main", level="patient", folds=(Fold(train=("S0", "S1"), test=("S2",)),))
    cohort.save_split(split)
    assert cohort.split("main") == split
    cohort.save_split(split)
    other = Split(name="main", level="patient", folds=(Fold(train=("S0",), test=("S2",)),))
    with pytest.raises(SplitError, match="another split"):
        cohort.save_split(other)
    with pytest.raises(SplitError, match="that is saved .main;"):
        cohort.split("mine")
    unknown = Split(name="x", level="patient", folds=(Fold(train=("S0",), test=("S9",)),))
    with pytest.raises(SplitError, match="S9"):
        cohort.save_split(unknown)


def test_a_patient_on_both_sides_is_refused_at_patient_level_alone():
    patients = {"a1": "A", "a2": "A", "b1": "B"}
    fold = Fold(train=("a1", "b1"), test=("a2",))
    with pytest.raises(SplitError, match="both sides, train and test.*: A"):
        Split(name="x", level="patient", folds=(fold,)).check(patients)
    Split(name="x", level="within-patient", folds=(fold,)).check(patients)
    leaky = Fold(train=("a1",), val=("a2",), test=("b1", "a2"))
    with pytest.raises(SplitError, match="both sides, val and test"):
        Split(name="x", level="patient", folds=(leaky,))


def test_the_level_of_a_test_section_follows_from_its_patient():
    patients = {"a1": "A", "a2": "A", "b1": "B"}
    assert level_of("b1", training=["a1"], patients=patients) == "patient"
    assert level_of("a2", training=["a1"], patients=patients) == "within-patient"
    assert level_of("a1", training=["a1"], patients=patients) == "within-section"


@given(
    people=st.lists(st.integers(1, 4), min_size=3, max_size=12),
    folds=st.integers(2, 5),
    val=st.integers(0, 1),
    seed=st.integers(0, 1000),
)
def test_patient_folds_test_every_section_once_and_never_split_a_patient(people, folds, val, seed):
    patients = {f"p{i}-{j}": f"p{i}" for i, n in enumerate(people) for j in range(n)}
    k = min(folds, len(people))
    if len(people) - -(-len(people) // k) - val < 1:  # the largest fold would leave nobody to train on
        with pytest.raises(SplitError, match="nobody"):
            patient_folds(patients, name="k", folds=k, val_patients=val, seed=seed)
        return
    split = patient_folds(patients, name="k", folds=k, val_patients=val, seed=seed)
    split.check(patients)
    tested = [s for f in split.folds for s in f.test]
    assert sorted(tested) == sorted(patients)
    for fold in split.folds:
        assert sorted((*fold.train, *fold.val, *fold.test)) == sorted(patients)
    assert split.digest() == patient_folds(patients, name="k", folds=k, val_patients=val, seed=seed).digest()


def test_holdout_holds_out_whole_patients():
    patients = {f"s{i}": f"p{i // 2}" for i in range(12)}
    split = holdout(patients, name="h", test_patients=2, val_patients=1, seed=3)
    split.check(patients)
    fold = split.fold()
    assert len(fold.test) == 4
    assert len(fold.val) == 2
    assert len(fold.train) == 6
    with pytest.raises(SplitError):
        holdout(patients, name="h", test_patients=6)
    assert np.unique([patients[s] for s in fold.test]).size == 2


# ---- the clinical table


def test_the_clinical_table_comes_back_by_patient_and_may_lack_some(cohort):
    (cohort.path / "clinical.csv").write_text("patient,months,event\nP2,12.5,1\n P0,40,0\n")
    table = cohort.clinical
    assert list(table.index) == ["P2", "P0"]
    assert table.loc["P2", "months"] == 12.5
    assert table["event"].tolist() == [1, 0]


def test_a_patient_called_by_a_number_stays_text(cohort):
    path = cohort.path / "sections.csv"
    pd.read_csv(path).assign(patient=["001", "002", "003"]).to_csv(path, index=False)
    (cohort.path / "clinical.csv").write_text("patient,event\n001,1\n")
    assert list(Cohort.open(cohort.path).clinical.index) == ["001"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("patient,event\nP0,1\nP9,0\n", r"no section of P9[\s\S]*mend"),
        ("patient,event\nP0,1\nP0,0\n", "listed twice: P0"),
        ("patient,event\nP0,1\n,0\n", r"patient is not known[\s\S]*row 2"),
        ("person,event\nP0,1\n", "no column `patient`"),
        ("", "not readable as a table"),
    ],
)
def test_a_clinical_table_that_does_not_fit_the_cohort_is_refused(cohort, text, what):
    (cohort.path / "clinical.csv").write_text(text)
    with pytest.raises(ContractError, match=what):
        _ = cohort.clinical


def test_a_cohort_without_a_clinical_table_says_so(cohort):
    with pytest.raises(SourceError, match="no clinical table"):
        _ = cohort.clinical
