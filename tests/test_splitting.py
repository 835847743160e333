"""Divisions of a cohort: balanced, nested, within sections, read from files; and the verb that saves them."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import small
from audit_cases import MadeCohort
from audit_cases import section as made_section
from bench_fakes import FakeSection
from triglyph.bench.audit.whole import audit_split
from triglyph.bench.contracts import Trial
from triglyph.cli import main
from triglyph.encoders.registry import card
from triglyph.encoders.registry import names as encoder_names
from triglyph.errors import RecipeError, SourceError, SplitError
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.split import Fold, Split, level_of_folds, patient_folds
from triglyph.tissue.split_files import read_hescape_split, read_hest_splits
from triglyph.tissue.splitting import (
    BUFFER_UM,
    WIDEST_WINDOW_UM,
    blocked_within,
    nested_folds,
    random_within,
    stratified_folds,
)
from triglyph.workflows.split import _profiles, split

PANEL_COLUMNS = "dataset_title,gene_panel,id,organ,disease_state,patient,preservation_method"


def one_each(sites):
    """A section a patient, and the site of each."""
    return {f"s{i}": f"p{i}" for i in range(len(sites))}, {f"s{i}": {site: 1.0} for i, site in enumerate(sites)}


# ---- balanced folds


@given(
    sites=st.lists(st.sampled_from("abcd"), min_size=4, max_size=24), folds=st.integers(2, 4), seed=st.integers(0, 9)
)
def test_folds_have_as_many_of_every_site_and_in_all_give_or_take_one(sites, folds, seed):
    patients, profiles = one_each(sites)
    made = stratified_folds(patients, profiles, name="k", folds=folds, seed=seed)
    made.check(patients)
    assert sorted(s for f in made.folds for s in f.test) == sorted(patients)
    sizes = [len(f.test) for f in made.folds]
    assert max(sizes) - min(sizes) <= 1
    for site in set(sites):
        counts = [sum(profiles[s] == {site: 1.0} for s in f.test) for f in made.folds]
        assert max(counts) - min(counts) <= 1


def test_labels_of_whole_patients_are_balanced_better_than_by_chance():
    rng = np.random.default_rng(0)
    patients = {f"s{p}.{i}": f"p{p}" for p in range(12) for i in range(2)}
    profiles = {s: dict(zip("xyz", rng.gamma(0.4, 100, 3), strict=True)) for s in patients}

    def unevenness(made):
        total = [[sum(profiles[s][c] for s in f.test) for c in "xyz"] for f in made.folds]
        return (np.std(total, axis=0) / np.mean(total, axis=0)).mean()

    drawn = [unevenness(patient_folds(patients, name="k", folds=3, seed=i)) for i in range(20)]
    balanced = [unevenness(stratified_folds(patients, profiles, name="k", folds=3, seed=i)) for i in range(20)]
    assert np.mean(balanced) < 0.6 * np.mean(drawn)


def test_balanced_folds_are_the_same_again_and_say_what_they_cannot_balance():
    patients, profiles = one_each("aabbcc")
    made = stratified_folds(patients, profiles, name="k", folds=2, val_patients=1, seed=3)
    assert made.digest() == stratified_folds(patients, profiles, name="k", folds=2, val_patients=1, seed=3).digest()
    assert all(len(f.val) == 1 for f in made.folds)
    with pytest.raises(SplitError, match="nothing to balance is known of patients p2"):
        stratified_folds(patients, {**profiles, "s2": {}}, name="k", folds=2)
    with pytest.raises(SplitError, match="7 folds of 6 patients"):
        stratified_folds(patients, profiles, name="k", folds=7)


# ---- folds within folds


@pytest.mark.parametrize("inner", [None, 2])
def test_inner_folds_divide_the_training_side_and_never_hold_whom_the_outer_fold_tests(inner):
    patients = {f"s{i}": f"p{i // 2}" for i in range(12)}
    outer = patient_folds(patients, name="k", folds=3, val_patients=1, seed=1)
    made = nested_folds(outer, patients, folds=inner, seed=1)
    assert [m.name for m in made] == ["k/0", "k/1", "k/2"]
    for fold, within in zip(outer.folds, made, strict=True):
        within.check(patients)
        assert len(within.folds) == (4 if inner is None else 2)
        assert sorted(s for f in within.folds for s in f.test) == sorted((*fold.train, *fold.val))
        for f in within.folds:
            assert not {*f.train, *f.test} & set(fold.test)
    with pytest.raises(SplitError, match="would not be apart"):
        nested_folds(random_within({"a": ("1", "2")}, name="w"), patients)


# ---- within sections


def test_random_locations_are_a_share_of_every_section_and_do_not_depend_on_the_others():
    locations = {s: tuple(f"b{i}" for i in range(n)) for s, n in (("a", 200), ("b", 3))}
    made = random_within(locations, name="w", seed=4)
    assert made.level == "within-section"
    held = made.folds[0].test_locations
    assert {s: len(b) for s, b in held.items()} == {"a": 10, "b": 1}
    assert held["a"] == random_within({"a": locations["a"]}, name="v", seed=4).folds[0].test_locations["a"]
    assert held["a"] != random_within(locations, name="w", seed=5).folds[0].test_locations["a"]
    with pytest.raises(SplitError, match="has 1 locations"):
        random_within({"a": ("b0",)}, name="w")
    with pytest.raises(SplitError, match=r"share of 1\.0"):
        random_within(locations, name="w", share=1.0)


def grid(side=20, pitch_um=100.0):
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * pitch_um
    return tuple(f"b{i}" for i in range(side**2)), xy


@pytest.mark.parametrize("buffer_um", [0.0, 100.0, 250.0])
def test_blocks_test_every_location_once_and_training_ones_lie_further_than_the_buffer(buffer_um):
    barcodes, xy = grid()
    made = blocked_within({"a": (barcodes, xy)}, name="w", folds=4, block_um=500, buffer_um=buffer_um)
    assert sorted(b for f in made.folds for b in f.test_locations["a"]) == sorted(barcodes)
    at = {b: i for i, b in enumerate(barcodes)}
    for fold in made.folds:
        tested = np.array([at[b] for b in fold.test_locations["a"]])
        assert len(tested) == 100
        training = np.setdiff1d(np.arange(400), [at[b] for b in fold.withheld["a"]])
        distance = np.linalg.norm(xy[training, None] - xy[None, tested], axis=2).min(axis=1)
        assert distance.min() > buffer_um
        # Nothing further away is given up.
        near = np.linalg.norm(xy[:, None] - xy[None, tested], axis=2).min(axis=1) <= buffer_um
        assert set(np.flatnonzero(near)) | set(tested) == set(range(400)) - set(training)
        corners = {(x // 500, y // 500) for x, y in xy[tested]}
        assert len(corners) == 4
    assert made.level == "within-section"
    assert (made.folds[0].buffer_locations is None) == (buffer_um == 0)


def test_the_default_buffer_keeps_windows_of_every_encoder_of_ours_apart_and_the_audit_sees_a_narrower_one():
    widest = max(card(name).window_um or 0 for name in encoder_names("image"))
    assert widest == WIDEST_WINDOW_UM
    assert 2**0.5 * widest < BUFFER_UM
    barcodes, xy = grid(side=30)
    section = made_section("a", "p", side=30)
    one = MadeCohort({"a": section})
    assert np.array_equal(section.centres_um, xy)
    # Centres 224 µm apart are not enough: on the diagonal their windows overlap.
    for buffer, clear in (({"buffer_um": 200}, False), ({"buffer_um": 224}, False), ({}, True)):
        made = blocked_within({"a": (barcodes, xy)}, name="w", **buffer)
        audit = audit_split(one, made, tile_um=widest, tables=False)
        assert (not audit.named("overlapping-tiles")) is clear, buffer


def test_blocks_that_cannot_be_divided_are_refused():
    barcodes, xy = grid(side=4)
    with pytest.raises(SplitError, match="is one block"):
        blocked_within({"a": (barcodes, xy)}, name="w", block_um=1000)
    with pytest.raises(SplitError, match="nothing of section a is further than 900 µm"):
        blocked_within({"a": (barcodes, xy)}, name="w", folds=2, block_um=200, buffer_um=900)
    with pytest.raises(SplitError, match="nothing to test in 4, 5"):
        blocked_within({"a": (barcodes, xy)}, name="w", folds=6, block_um=200, buffer_um=0)
    with pytest.raises(SplitError, match="1 folds"):
        blocked_within({"a": (barcodes, xy)}, name="w", folds=1)


def test_a_section_of_few_blocks_is_tested_in_fewer_folds_and_trains_in_the_others():
    many, few = grid(), grid(side=4)
    made = blocked_within({"a": many, "b": few}, name="w", folds=5, block_um=200, buffer_um=0)
    assert [("b" in f.test, "b" in f.train) for f in made.folds].count((False, True)) == 1


def test_the_judge_trains_on_nothing_that_lies_in_the_buffer():
    section = FakeSection("a", "p")
    barcodes = tuple(section.table.obs_names)
    made = blocked_within({"a": (barcodes, section.centres_um)}, name="w", folds=3, block_um=600, buffer_um=200)

    class Sections(dict):
        def __init__(self, sections):
            super().__init__({s.id: s for s in sections})
            self.patients = {s.id: s.patient for s in sections}

    for fold in made.folds:
        trial = Trial.of(Sections([section]), made, fold=fold.name)
        assert set(trial.test[0].table.obs_names) == set(fold.test_locations["a"])
        assert set(trial.train[0].table.obs_names) == set(barcodes) - set(fold.withheld["a"])
        assert len(fold.withheld["a"]) > len(fold.test_locations["a"])


def test_a_buffer_must_be_beside_what_is_tested():
    with pytest.raises(SplitError, match="is also tested"):
        Fold(train=("a",), test=("a",), test_locations={"a": ("1",)}, buffer_locations={"a": ("1", "2")})
    with pytest.raises(SplitError, match="around nothing"):
        Fold(train=("a",), test=("b",), buffer_locations={"a": ("1",)})


def test_splits_without_a_buffer_keep_the_digest_that_they_had_before_there_were_buffers():
    made = Split(name="main", level="patient", folds=(Fold(train=("S0",), test=("S1",)),))
    assert "buffer_locations" not in made.model_dump(mode="json")["folds"][0]
    assert made.digest() == "a941855971aa62e8"
    buffered = Fold(train=("a",), test=("a",), test_locations={"a": ("1",)}, buffer_locations={"a": ("2",)})
    assert Fold.model_validate(buffered.model_dump(mode="json")) == buffered


# ---- files of others


def write_hest(folder, folds, columns="sample_id,patches_path,expr_path"):
    (folder / "splits").mkdir(parents=True, exist_ok=True)
    for i, sides in enumerate(folds):
        for side, ids in zip(("train", "test"), sides, strict=True):
            lines = [columns, *(f"{s},patches/{s}.h5,adata/{s}.h5ad" for s in ids)]
            (folder / "splits" / f"{side}_{i}.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_level_of_hest_files_follows_from_the_patients_of_the_cohort(tmp_path):
    folder = write_hest(tmp_path, [(("T1", "T2"), ("T3",)), (("T3",), ("T1", "T2"))])
    apart = {"T1": "A", "T2": "A", "T3": "B", "T9": "C"}
    made, notes = read_hest_splits(folder, apart, name="idc")
    assert (made.level, notes) == ("patient", ())
    assert [(f.name, f.train, f.test) for f in made.folds] == [
        ("0", ("T1", "T2"), ("T3",)),
        ("1", ("T3",), ("T1", "T2")),
    ]
    assert read_hest_splits(folder / "splits", apart, name="idc").split == made
    made, notes = read_hest_splits(folder, {**apart, "T3": "A"}, name="idc")
    assert made.level == "within-patient"
    assert notes == tuple(f"fold {i} has patients on both sides (A): the level is within-patient" for i in "01")


def test_more_than_ten_folds_come_in_order(tmp_path):
    folder = write_hest(tmp_path, [((f"T{1 - i % 2}",), (f"T{i % 2}",)) for i in range(12)])
    made, _ = read_hest_splits(folder, {"T0": "A", "T1": "B"}, name="k")
    assert [f.name for f in made.folds] == [str(i) for i in range(12)]


def test_hest_files_that_do_not_fit_are_refused_by_name(tmp_path):
    patients = {"T1": "A", "T2": "B"}
    folder = write_hest(tmp_path / "a", [(("T1", "TENX95"), ("T2", "TENX99"))])
    with pytest.raises(SplitError, match="TENX95, TENX99"):
        read_hest_splits(folder, patients, name="k")
    with pytest.raises(SplitError, match="both sides, train and test: T1"):
        read_hest_splits(write_hest(tmp_path / "b", [(("T1",), ("T1",))]), patients, name="k")
    with pytest.raises(SplitError, match="listed twice: T1"):
        read_hest_splits(write_hest(tmp_path / "c", [(("T1", "T1"), ("T2",))]), patients, name="k")
    with pytest.raises(SplitError, match="patients of sections T2 are not known"):
        read_hest_splits(write_hest(tmp_path / "d", [(("T1",), ("T2",))]), {**patients, "T2": ""}, name="k")
    with pytest.raises(SourceError, match="no column 'sample_id'"):
        read_hest_splits(write_hest(tmp_path / "e", [(("T1",), ("T2",))], columns="id,p,e"), patients, name="k")
    (folder / "splits" / "test_0.csv").unlink()
    with pytest.raises(SourceError, match="no such file"):
        read_hest_splits(folder, patients, name="k")
    with pytest.raises(SourceError, match="no train_<i>.csv"):
        read_hest_splits(tmp_path, patients, name="k")


def write_hescape(folder, **sides):
    folder.mkdir(exist_ok=True)
    for side in ("train", "val", "test"):
        lines = [PANEL_COLUMNS, *(f"Lung,panel,{s},Lung,Healthy,{p},FFPE" for s, p in sides[side])]
        (folder / f"{side}.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_hescape_files_say_nothing_of_patients_that_the_cohort_does_not_know_better(tmp_path):
    folder = write_hescape(
        tmp_path / "lung",
        train=[("N1", "V96"), ("N2", "")],
        val=[("N3", "")],
        test=[("N4", "V78")],
    )
    patients = {"N1": "a", "N2": "b", "N3": "c", "N4": "d"}
    made, notes = read_hescape_split(folder, patients, name="lung")
    assert (made.level, made.folds[0].val) == ("patient", ("N3",))
    assert notes == ("the files name no patient for 2 of 4 sections (N2, N3); the cohort's patients are used",)
    # Two sections of one lung, as in the published files.
    made, notes = read_hescape_split(folder, {**patients, "N4": "a"}, name="lung")
    assert made.level == "within-patient"
    assert any("patients on both sides (a)" in note for note in notes)
    assert any("the cohort has one patient (a), the files 2: Lung / V78, Lung / V96" in note for note in notes)
    # A validation patient counts as seen.
    assert read_hescape_split(folder, {**patients, "N4": "c"}, name="lung").split.level == "within-patient"


def test_one_patient_of_the_files_that_is_two_in_the_cohort_is_told(tmp_path):
    folder = write_hescape(tmp_path / "x", train=[("N1", "V")], val=[("N2", "W")], test=[("N3", "V")])
    made, notes = read_hescape_split(folder, {"N1": "a", "N2": "b", "N3": "c"}, name="x")
    assert made.level == "patient"
    assert notes == (
        "the files have one patient (Lung / V) in N1, N3, the cohort 2: a, c; if the files are right, "
        "the level is too high",
    )


def test_hescape_files_that_do_not_fit_are_refused_by_name(tmp_path):
    folder = write_hescape(tmp_path / "skin", train=[("N1", "")], val=[("N2", "")], test=[("N2", "")])
    with pytest.raises(SplitError, match="both sides, val and test: N2"):
        read_hescape_split(folder, {"N1": "a", "N2": "b"}, name="skin")
    with pytest.raises(SplitError, match="the cohort has not: N2"):
        read_hescape_split(folder, {"N1": "a"}, name="skin")
    (folder / "val.csv").unlink()
    with pytest.raises(SourceError, match="no such file"):
        read_hescape_split(folder, {"N1": "a", "N2": "b"}, name="skin")


def test_the_level_counts_validation_as_seen():
    fold = Fold(train=("a",), val=("b",), test=("c",))
    assert level_of_folds([fold], {"a": "1", "b": "2", "c": "3"}) == "patient"
    assert level_of_folds([fold], {"a": "1", "b": "3", "c": "3"}) == "within-patient"


# ---- the verb


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return small.cohort(tmp_path_factory.mktemp("split"), patients=4, images=False)


def test_the_verb_balances_a_column_of_the_manifest_of_the_clinical_table_and_labels(cohort):
    table = pd.read_csv(cohort.path / "sections.csv", dtype=str, keep_default_na=False)
    table["site"] = ["x", "y", "x", "y"]
    table.to_csv(cohort.path / "sections.csv", index=False)
    clinical = pd.DataFrame({"patient": [f"P{i}" for i in range(4)], "grade": ["1", "1", "2", "2"]})
    clinical.to_csv(cohort.path / "clinical.csv", index=False)
    for column, groups in (("site", [{"0", "2"}, {"1", "3"}]), ("grade", [{"0", "1"}, {"2", "3"}])):
        split(cohort.path, name=f"by-{column}", folds=2, stratify=column)
        for fold in Cohort.open(cohort.path).split(f"by-{column}").folds:
            assert Counter(next(i for i, g in enumerate(groups) if s[1] in g) for s in fold.test) == {0: 1, 1: 1}
    split(cohort.path, name="by-label", folds=2, stratify="label")
    assert Cohort.open(cohort.path).split("by-label").made_by == "stratified_folds"
    with pytest.raises(RecipeError, match="no column 'stage'"):
        split(cohort.path, name="x", folds=2, stratify="stage")


def test_a_patient_of_many_sections_weighs_no_more_than_another():
    table = pd.DataFrame({"site": ["x", "x", "y", "x"]}, index=["a1", "a2", "a3", "b1"])
    patients = {s: s[0] for s in table.index}
    profiles = _profiles(SimpleNamespace(manifest=table, patients=patients), "site")
    weights = {p: sum(sum(profiles[s].values()) for s in patients if s[0] == p) for p in "ab"}
    assert weights == {"a": pytest.approx(1), "b": 1}
    assert profiles["a3"] == {"y": pytest.approx(1 / 3)}


def test_the_verb_saves_folds_within_folds_under_their_names(cohort):
    split(cohort.path, name="loo", leave_one_out=True, nested=0)
    opened = Cohort.open(cohort.path)
    assert len(opened.split("loo").folds) == 4
    for fold in opened.split("loo").folds:
        inner = opened.split(f"loo/{fold.name}")
        assert len(inner.folds) == 3
        assert not {s for f in inner.folds for s in (*f.train, *f.test)} & set(fold.test)


def test_the_verb_divides_sections_and_stamps_the_level(cohort):
    assert main(["split", str(cohort.path), "--name", "leaky", "--within-section", "random", "--share", "0.25"]) == 0
    opened = Cohort.open(cohort.path)
    assert opened.split("leaky").level == "within-section"
    assert {len(b) for b in opened.split("leaky").folds[0].test_locations.values()} == {9}
    arguments = ["--within-section", "blocked", "--block-um", "130", "--buffer-um", "60", "--folds", "3"]
    assert main(["split", str(cohort.path), "--name", "blocks", *arguments]) == 0
    blocks = opened.split("blocks")
    assert len(blocks.folds) == 3
    assert all(f.buffer_locations for f in blocks.folds)


def test_the_verb_reads_the_files_of_others_and_tells_what_it_saw(cohort, tmp_path, capsys):
    folder = write_hest(tmp_path / "task", [(("S0", "S1"), ("S2", "S3"))])
    assert main(["split", str(cohort.path), "--name", "hest", "--from", "hest", str(folder)]) == 0
    assert Cohort.open(cohort.path).split("hest").level == "patient"
    panel = write_hescape(tmp_path / "panel", train=[("S0", "")], val=[("S1", "")], test=[("S2", "")])
    assert main(["split", str(cohort.path), "--name", "hescape", "--from", "hescape", str(panel)]) == 0
    assert "name no patient for 3 of 3 sections" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"folds": 2, "leave_one_out": True},
        {"within_section": "random", "leave_one_out": True},
        {"test_patients": 1, "stratify": "organ"},
        {"leave_one_out": True, "stratify": "organ"},
        {"test_patients": 1, "nested": 2},
        {"folds": 2, "share": 0.1},
        {"within_section": "blocked", "share": 0.1},
        {"within_section": "random", "folds": 3},
        {"within_section": "random", "buffer_um": 3.0},
        {"within_section": "random", "val_patients": 1},
        {"train": ["S0"], "test": ["S1"], "val_patients": 1},
    ],
)
def test_an_option_that_does_nothing_is_refused(cohort, options):
    with pytest.raises(RecipeError, match="one way|does nothing here"):
        split(cohort.path, name="never", **options)
    assert "never" not in Cohort.open(cohort.path).splits


def test_splits_by_hand_by_patients_and_in_folds_are_as_before(cohort):
    split(cohort.path, name="hand", train=["S0"], val=["S1"], test=["S2"])
    split(cohort.path, name="held", test_patients=1, val_patients=1, seed=2)
    split(cohort.path, name="folds", folds=2)
    opened = Cohort.open(cohort.path)
    assert opened.split("hand").folds[0] == Fold(train=("S0",), val=("S1",), test=("S2",))
    assert [len(getattr(opened.split("held").folds[0], side)) for side in ("train", "val", "test")] == [2, 1, 1]
    assert opened.split("folds") == patient_folds(opened.patients, name="folds", folds=2)
    with pytest.raises(RecipeError, match="no level"):
        split(cohort.path, name="x", train=["S0"], test=["S1"], level="spot")
