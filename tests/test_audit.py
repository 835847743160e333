"""The audit: each kind of leak is caught by name and at its severity, and is not seen where it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

import audit_cases as cases
from audit_cases import CLASSES, Store, image, rng, section, split, spots
from triglyph.bench.audit.case import plain
from triglyph.bench.audit.findings import gathered
from triglyph.bench.audit.fitted import undeclared
from triglyph.bench.audit.kinds import KINDS
from triglyph.bench.audit.lookalikes import Profile, pair_scores
from triglyph.bench.audit.subject import DeclaredSplit, Exposure, Fitted, SubjectInfo, read_subject
from triglyph.bench.audit.whole import audit_split
from triglyph.bench.registry import PROTOCOLS
from triglyph.tissue.split import Fold, Split, patient_folds


@pytest.fixture(scope="module")
def cohort():
    return cases.clean()


@pytest.fixture(scope="module")
def clean_audit(cohort):
    """With a subject that did nothing wrong."""
    made = split(cohort, patients=tuple(f"P{i}" for i in range(2, 8)))
    return audit_split(cohort, made, subject_info=clean_subject(cohort, training_sections=("P0-S0",)))


def clean_subject(cohort, **changes):
    fields = {
        "name": "model",
        "fitted": (Fitted(what="genes", sections=("P0-S0",)),),
        "protocols": (next(iter(PROTOCOLS.values()))().card().model_dump(mode="json"),),
        "inputs": ("expression",),
        "input_genes": ("G00", "G01"),
        "target_genes": ("G02", "ENSG00000000003.7"),
        "encoders": (Exposure(encoder="foundation", seen=("hest:TENX95", "P0-S0-old")),),
    }
    return SubjectInfo(**{**fields, **changes})


def severities(audit, name):
    return [f.severity for f in audit.named(name)]


def said(audit, name):
    return " / ".join(f.what for f in audit.named(name))


# ---- what is clean passes


def test_a_clean_cohort_passes_without_a_finding(clean_audit):
    assert clean_audit.passed
    assert [(f.name, f.what) for f in clean_audit.findings] == []


def test_a_clean_audit_made_every_check_but_those_it_says(clean_audit):
    assert set(clean_audit.checked) == set(KINDS)
    assert {(u.name, u.why.split(":")[0]) for u in clean_audit.unchecked} == {
        ("overlapping-tiles", "16 sections have no image, such as P0-S0"),
        ("near-duplicates", "embeddings"),
    }


def test_an_audit_without_subject_or_tables_says_what_it_did_not_check(cohort):
    audit = audit_split(cohort, split(cohort), tables=False)
    unchecked = {u.name for u in audit.unchecked}
    assert {"trained-on-test", "seen-by-encoder", "near-duplicates", "same-section-twice"} <= unchecked
    assert not unchecked & {"patient-on-both-sides", "donor-on-both-sides"}
    assert set(audit.checked).isdisjoint({"near-duplicates", "same-section-twice", "seen-by-encoder"})


def test_the_audit_does_not_depend_on_the_order_of_sections(cohort):
    leaky = cohort.renamed({"P5-S1": "P9", "P6-S1": "p-0"})
    turned = replace(leaky, sections=dict(reversed(leaky.sections.items())))
    made = split(leaky, train=("P0-S0", "P1-S0", "P2-S0", "P3-S0", "P5-S1"), test=("P5-S0", "P6-S1"))
    one, other = audit_split(leaky, made), audit_split(turned, made)
    assert one == other
    assert not one.passed


def test_the_audit_needs_no_torch():
    code = "import sys, triglyph.bench.audit.whole; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- who is on which side


def test_a_patient_on_both_sides_fails_at_patient_level_alone(cohort):
    fold = {"train": ("P0-S0", "P1-S0", "P2-S0"), "test": ("P0-S1", "P3-S0")}
    audit = audit_split(cohort, split(cohort, **fold))
    assert severities(audit, "patient-on-both-sides") == ["fail"]
    assert "P0 (trained on P0-S0; tested P0-S1)" in said(audit, "patient-on-both-sides")
    within = audit_split(cohort, split(cohort, level="within-patient", **fold))
    assert within.passed
    assert "within-patient" in within.notes[0]


def test_a_validation_patient_who_is_tested_fails_too(cohort):
    fold = {"train": ("P1-S0", "P2-S0"), "val": ("P0-S0",), "test": ("P0-S1",)}
    assert not audit_split(cohort, split(cohort, **fold), tables=False).passed


def test_a_model_trained_on_a_tested_patient_of_another_section_fails(cohort):
    made = split(cohort, train=("P1-S0", "P2-S0"), test=("P0-S1",))
    subject = clean_subject(cohort, training_patients=("P0",))
    audit = audit_split(cohort, made, subject_info=subject, tables=False)
    assert severities(audit, "patient-on-both-sides") == ["fail"]
    other = audit_split(cohort, made, subject_info=clean_subject(cohort, training_sections=("P0-S0",)), tables=False)
    assert severities(other, "patient-on-both-sides") == ["fail"]
    assert not other.named("trained-on-test")


@pytest.mark.parametrize("column", ["donor", "slide", "block"])
def test_a_donor_slide_or_block_under_two_patient_ids_fails(cohort, column):
    # HESCAPE's lung panel: NCBI856 and NCBI857 are counted as two donors, and are one lung.
    shared = {**cohort.columns[column], "P0-S0": "VUILD96", "P5-S0": "VUILD96"}
    audit = audit_split(cohort.with_(columns={column: shared}), split(cohort), tables=False)
    assert severities(audit, f"{column}-on-both-sides") == ["fail"]
    assert "VUILD96 (trained on P0-S0; tested P5-S0)" in said(audit, f"{column}-on-both-sides")
    assert len(audit.failures) == 1


def test_blocks_numbered_within_patients_are_no_names_and_are_not_compared(cohort):
    numbered = {s: f"B{s[-1]}" for s in cohort.ids}
    audit = audit_split(cohort.with_(columns={"block": numbered}), split(cohort), tables=False)
    assert audit.passed
    assert any(u.name == "block-on-both-sides" and "numbered" in u.why for u in audit.unchecked)


def test_missing_and_blank_columns_are_reported_as_not_checked(cohort):
    half = {s: v for s, v in cohort.columns["donor"].items() if s != "P3-S0"}
    bare = replace(cohort, columns={"donor": half})
    unchecked = {u.name: u.why for u in audit_split(bare, split(cohort), tables=False).unchecked}
    assert "blank for P3-S0" in unchecked["donor-on-both-sides"]
    assert "slide" in unchecked["slide-on-both-sides"]


def test_one_patient_spelt_twice_is_advice_and_fails_where_sections_agree(cohort):
    # P5 is another person; P0 is the same.
    alike = cohort.renamed({"P5-S0": "p-01", "P5-S1": "p-01", "P1-S0": "P01", "P1-S1": "P01"})
    audit = audit_split(replace(alike, columns={}), split(alike))
    assert severities(audit, "patient-spelt-twice") == ["advise"]
    assert "'P01' (trained on) and 'p-01' (tested)" in said(audit, "patient-spelt-twice")
    same = cohort.with_(replace(section("P5-S0", "P1"), patient="p 1"), replace(section("P5-S1", "P1"), patient="p 1"))
    audit = audit_split(replace(same, columns={}), split(same))
    assert severities(audit, "patient-spelt-twice") == ["fail"]


def test_donors_that_are_stated_tell_patients_of_like_names_apart(cohort):
    alike = cohort.renamed({"P5-S0": "p-1", "P5-S1": "p-1"})
    assert not audit_split(alike, split(alike), tables=False).named("patient-spelt-twice")


@pytest.mark.parametrize(("one", "other"), [("P01", "p-1"), ("Patient A", "patient_a"), ("é1", "É 001")])
def test_spellings_of_one_name_are_one(one, other):
    assert plain(one) == plain(other)


@pytest.mark.parametrize(("one", "other"), [("P1", "P11"), ("P1.1", "P11"), ("A1", "B1"), ("P10", "P1")])
def test_names_of_two_people_stay_two(one, other):
    assert plain(one) != plain(other)


def test_two_names_fused_by_a_missing_comma_are_told_apart(cohort):
    # HESCAPE's gene encoder held out ["TENX111" "NCBI884"], which Python reads as one name.
    fold = {"train": ("P0-S0", "P1-S0"), "test": ("P5-S0P6-S0", "P7-S0")}
    audit = audit_split(cohort, split(cohort, **fold), tables=False)
    assert severities(audit, "unknown-section") == ["fail"]
    assert "P5-S0 and P6-S0 fused: a missing comma?" in said(audit, "unknown-section")


def test_a_hold_out_list_with_fused_names_shows_both_as_seen_by_the_encoder(cohort):
    drvi = Exposure(encoder="drvi", all_but=("P5-S0P6-S0", "P7-S0", "P7-S1", "P5-S1", "P6-S1"))
    audit = audit_split(cohort, split(cohort), subject_info=SubjectInfo(name="m", encoders=(drvi,)), tables=False)
    assert "fused" in said(audit, "unknown-section")
    assert said(audit, "seen-by-encoder") == "drvi was trained on sections tested here: P5-S0, P6-S0"
    right = drvi.model_copy(update={"all_but": tuple(s for s in cohort.ids if s[1] in "567")})
    audit = audit_split(cohort, split(cohort), subject_info=SubjectInfo(name="m", encoders=(right,)), tables=False)
    assert audit.passed


def test_patients_named_after_sections_while_blocks_repeat_are_unknown(cohort):
    named = cohort.renamed({s: s for s in cohort.ids})
    audit = audit_split(named, split(named), tables=False)
    assert severities(audit, "patients-unknown") == ["advise"]
    alone = replace(named, columns={})
    audit = audit_split(alone, split(alone), tables=False)
    assert not audit.named("patients-unknown")
    assert any(u.name == "patients-unknown" for u in audit.unchecked)


def test_fewer_than_six_patients_is_advice(cohort):
    five = split(cohort, patients=("P0", "P1", "P2", "P3", "P4"))
    assert severities(audit_split(cohort, five, tables=False), "few-patients") == ["advise"]
    six = split(cohort, patients=("P0", "P1", "P2", "P3", "P4", "P5"))
    assert not audit_split(cohort, six, tables=False).named("few-patients")


# ---- the same tissue twice


def test_random_spots_inside_slides_fail_at_every_level_they_may_be_declared_at(cohort):
    held = spots(cohort, cohort.ids)
    for level, names in (
        ("patient", {"section-on-both-sides", "patient-on-both-sides", "neighbours-on-both-sides"}),
        ("within-patient", {"section-on-both-sides", "neighbours-on-both-sides"}),
        ("within-section", {"neighbours-on-both-sides"}),
    ):
        fold = Fold(train=tuple(cohort.ids), test=tuple(cohort.ids), test_locations=held)
        made = DeclaredSplit.model_validate({"name": "95/5", "level": level, "folds": [fold]})
        audit = audit_split(cohort, made, tables=False)
        assert {f.name for f in audit.failures} == names, level


def test_a_section_on_both_sides_without_test_locations_fails_within_section_too(cohort):
    fold = Fold(train=("P0-S0",), test=("P0-S0",))
    audit = audit_split(cohort, Split(name="all", level="within-section", folds=(fold,)), tables=False)
    assert severities(audit, "section-on-both-sides") == ["fail"]


def test_half_a_section_is_advised_against_at_its_border_and_passes_far_from_training(cohort):
    x = cohort["P0-S0"].centres_um[:, 0]
    held = {"P0-S0": tuple(f"b{i}" for i in np.flatnonzero(x >= 700))}
    fold = Fold(train=("P0-S0",), test=("P0-S0",), test_locations=held)
    made = Split(name="half", level="within-section", folds=(fold,))
    audit = audit_split(cohort, made, tables=False)
    assert severities(audit, "neighbours-on-both-sides") == ["advise"]
    assert audit.passed
    # Windows wider than the pitch overlap across the border, and have seen the same pixels.
    wide = audit_split(cohort, made, tile_um=112.0, tables=False)
    assert severities(wide, "overlapping-tiles") == ["fail"]
    margin = {"P0-S0": tuple(f"b{i}" for i in np.flatnonzero((x >= 500) & (x < 700)))}
    apart = made.model_copy(update={"folds": (fold.model_copy(update={"buffer_locations": margin}),)})
    assert audit_split(cohort, apart, tile_um=112.0, tables=False).passed
    assert not audit_split(cohort, apart, tables=False).named("neighbours-on-both-sides")


def test_a_copy_is_found_whatever_the_order_of_its_rows_and_genes(cohort):
    original = cohort["P0-S0"]
    rows, columns = rng("rows").permutation(len(original.labels)), rng("columns").permutation(cases.GENES)
    copy = replace(
        cohort["P5-S0"],
        counts=sp.csr_matrix(original.counts[rows][:, columns]),
        symbols=tuple(original.symbols[i] for i in columns),
        ensembl_ids=("",) * cases.GENES,
    )
    audit = audit_split(cohort.with_(copy), split(cohort))
    assert severities(audit, "same-section-twice") == ["fail"]
    assert "196 of its 196" in said(audit, "same-section-twice")


def test_a_tenth_of_a_section_copied_is_found(cohort):
    counts = cohort["P5-S0"].counts.toarray()
    counts[:20] = cohort["P0-S0"].counts.toarray()[30:50]
    copy = replace(cohort["P5-S0"], counts=sp.csr_matrix(counts))
    audit = audit_split(cohort.with_(copy), split(cohort))
    assert "20 of its 196" in said(audit, "same-section-twice")


def test_empty_locations_are_no_copies_of_each_other(cohort):
    thin = [replace(cohort[s], counts=cohort[s].counts * 0) for s in cohort.ids]
    audit = audit_split(cohort.with_(*thin), split(cohort))
    assert not audit.named("same-section-twice")
    assert any(u.name == "same-section-twice" and "too few counts" in u.why for u in audit.unchecked)


def test_sections_without_genes_are_named_where_counts_were_compared(cohort):
    bare = replace(cohort["P5-S0"], counts=sp.csr_matrix((196, 0)), symbols=(), ensembl_ids=())
    audit = audit_split(cohort.with_(bare), split(cohort))
    assert {"same-section-twice", "near-duplicates"} <= set(audit.checked)
    why = {u.name: u.why for u in audit.unchecked if "no genes" in u.why}
    assert why == {
        "same-section-twice": "counts: no genes in P5-S0",
        "near-duplicates": "expression: no genes in P5-S0",
    }


def test_one_image_at_one_place_is_one_section_and_beside_it_one_slide(cohort):
    here, there = (replace(cohort[s], images=(image(),)) for s in ("P0-S0", "P5-S0"))
    audit = audit_split(cohort.with_(here, there), split(cohort), tables=False)
    assert severities(audit, "same-section-twice") == ["fail"]
    beside = replace(there, images=(image(offset_um=(5000.0, 0.0)),))
    audit = audit_split(cohort.with_(here, beside), split(cohort), tables=False)
    assert not audit.named("same-section-twice")
    assert severities(audit, "slide-on-both-sides") == ["fail"]
    other = replace(there, images=(image("bb"),))
    assert audit_split(cohort.with_(here, other), split(cohort), tables=False).passed


def test_sections_that_overlap_on_one_image_fail_and_those_a_window_apart_do_not(cohort):
    here = replace(cohort["P0-S0"], images=(image(),))
    # Thirteen steps of 100 µm wide: at 1330 µm the next section's first column is 30 µm from this one's last.
    near = replace(cohort["P5-S0"], images=(image(offset_um=(1330.0, 0.0)),))
    level = {"level": "within-patient"}
    audit = audit_split(cohort.with_(here, near), split(cohort, **level), tables=False)
    assert severities(audit, "overlapping-tiles") == ["fail"]
    apart = replace(near, images=(image(offset_um=(1500.0, 0.0)),))
    assert audit_split(cohort.with_(here, apart), split(cohort, **level), tables=False).passed
    wide = audit_split(cohort.with_(here, apart), split(cohort, **level), tile_um=250.0, tables=False)
    assert severities(wide, "overlapping-tiles") == ["fail"]


def test_serial_sections_under_two_ids_are_near_duplicates(cohort):
    serial = replace(section("P5-S0", "P0"), patient="P5")
    audit = audit_split(cohort.with_(serial), split(cohort, level="patient"))
    assert set(severities(audit, "near-duplicates")) == {"fail"}
    assert {f.name for f in audit.failures} == {"near-duplicates"}
    assert "P5-S0 (patient P5, tested) and P0-S0 (patient P0, trained on)" in said(audit, "near-duplicates")


def test_an_embedding_made_twice_of_one_slide_is_a_near_duplicate(cohort):
    def embedded(jitter):
        out = []
        for s in cohort.ids:
            of = rng(cohort[s].patient, "stain").normal(size=24) + rng(s, "spots").normal(size=(196, 24))
            out.append(replace(cohort[s], embeddings=Store("feed", of.astype(np.float32))))
        twin = out[0].embeddings.values + jitter * rng("jitter").normal(size=(196, 24))
        return cohort.with_(*out[:-1], replace(out[-1], embeddings=Store("feed", twin)))

    audit = audit_split(embedded(0.1), split(cohort), embedding="feed")
    assert set(severities(audit, "near-duplicates")) == {"fail"}
    assert "embeddings feed" in said(audit, "near-duplicates")
    assert audit_split(embedded(5.0), split(cohort), embedding="feed").passed


def test_near_duplicates_are_not_judged_by_fewer_than_four_pairs_of_patients(cohort):
    few = replace(cohort, sections={s: cohort[s] for s in cohort.ids[:6]})
    audit = audit_split(few, split(few, patients=("P2",)))
    assert "near-duplicates" not in audit.checked
    assert any(u.name == "near-duplicates" and "too few patients" in u.why for u in audit.unchecked)


def test_features_that_tell_nobody_apart_accuse_nobody(cohort):
    flat = cohort.with_(
        *(replace(m, embeddings=Store("feed", np.linspace(-1, 1, 196)[:, None])) for m in cohort.sections.values())
    )
    audit = audit_split(flat, split(cohort), embedding="feed")
    assert audit.passed
    assert any("all patients look alike" in u.why for u in audit.unchecked)


def test_two_patients_half_as_far_apart_as_others_are_worth_a_word(cohort):
    mixed = section("P5-S0", "P5")
    cells = mixed.counts.toarray()
    like = section("P5-S0", "P0", noise="other").counts.toarray()
    both = rng("mix").binomial(like, 0.6) + rng("mix too").binomial(cells, 0.4)
    audit = audit_split(cohort.with_(replace(mixed, counts=sp.csr_matrix(both))), split(cohort))
    assert set(severities(audit, "people-alike")) == {"advise"}
    assert not audit.named("near-duplicates")


def test_pair_scores_are_those_of_a_plain_loop():
    profiles = {name: rng(name).normal(size=(7, 5)) for name in "abc"}
    rows = np.concatenate(list(profiles.values()))
    mean, deviation = rows.mean(0), rows.std(0)
    beside = np.abs(np.subtract.outer(np.arange(7), np.arange(7))) < 3
    made = {name: Profile(values, beside | (name == "c")) for name, values in profiles.items()}
    scores = pair_scores(made, {"a": "1", "b": "2", "c": "2"})
    assert set(scores) == {("a", "b"), ("a", "c")}
    x, y = ((profiles[n] - mean) / deviation for n in "ab")

    def matched(one, other, beside=None):
        best = []
        for i, u in enumerate(one):
            others = [v for j, v in enumerate(other) if beside is None or not beside[i, j]]
            best.append(max(u @ v / np.linalg.norm(u) / np.linalg.norm(v) for v in others))
        return np.quantile(best, 0.9)

    assert scores["a", "b"].between == pytest.approx((matched(x, y) + matched(y, x)) / 2)
    assert scores["a", "b"].within == pytest.approx((matched(x, x, beside) + matched(y, y, beside)) / 2)
    assert scores["a", "c"].within == -1  # all of c shares tissue: nothing is known of it alone


# ---- what was fitted on the test set


def test_a_model_trained_on_test_sections_fails(cohort):
    subject = clean_subject(cohort, training_sections=("P0-S0", "P5-S0"))
    audit = audit_split(cohort, split(cohort), subject_info=subject, tables=False)
    assert severities(audit, "trained-on-test") == ["fail"]
    assert "P5-S0" in said(audit, "trained-on-test")
    right = clean_subject(cohort, training_sections=("P0-S0", "P1-S0"))
    audit = audit_split(cohort, split(cohort), subject_info=right, tables=False)
    assert audit.passed
    assert "trained-on-test" in audit.checked


def test_a_run_on_a_fold_is_audited_on_that_fold_alone(cohort):
    folds = patient_folds(cohort.patients, name="folds", folds=4)
    subject = clean_subject(cohort, split="folds", folds=("1",), training_sections=folds.fold("1").train)
    assert audit_split(cohort, folds, subject_info=subject, tables=False).passed
    wrong = subject.model_copy(update={"folds": ("2",)})
    assert audit_split(cohort, folds, subject_info=wrong, tables=False).named("trained-on-test")


def test_held_out_locations_of_a_trained_section_may_be_tested(cohort):
    x = cohort["P0-S0"].centres_um[:, 0]
    held = {"P0-S0": tuple(f"b{i}" for i in np.flatnonzero(x >= 700))}
    made = Split(
        name="half",
        level="within-section",
        folds=(Fold(train=("P0-S0",), test=("P0-S0",), test_locations=held),),
    )
    subject = clean_subject(cohort, training_sections=("P0-S0",), fitted=())
    assert audit_split(cohort, made, subject_info=subject, tables=False).named("trained-on-test")
    left_out = subject.model_copy(update={"held_out_locations": {"P0-S0": len(held["P0-S0"])}})
    assert not audit_split(cohort, made, subject_info=left_out, tables=False).named("trained-on-test")


@pytest.mark.parametrize("what", ["genes", "scaler", "PCA", "prompts", "calibration"])
def test_what_was_fitted_on_test_sections_must_be_declared(cohort, what):
    fitted = Fitted(what=what, sections=("P0-S0", "P6-S1"))
    audit = audit_split(cohort, split(cohort), subject_info=clean_subject(cohort, fitted=(fitted,)), tables=False)
    assert severities(audit, "fitted-on-test") == ["fail"]
    declared = (fitted.model_copy(update={"declared": True}),)
    assert audit_split(cohort, split(cohort), subject_info=clean_subject(cohort, fitted=declared), tables=False).passed


@pytest.mark.parametrize(
    "on", ["each section, test sections too", "all sections", "the test section itself", "the whole cohort"]
)
def test_a_card_that_fits_on_more_than_training_must_declare_it(cohort, on):
    card = {"name": "p", "fitted": {"mean of each feature": on}, "transductive": []}
    audit = audit_split(cohort, split(cohort), subject_info=clean_subject(cohort, protocols=(card,)), tables=False)
    assert severities(audit, "fitted-on-test") == ["fail"]
    assert undeclared({**card, "transductive": ["features z-scored within each test section"]}) == []
    assert undeclared({**card, "transductive": ["the number of clusters"]}) != []


@pytest.mark.parametrize(
    "on", ["training sections", "all training sections", "training sections, never the test", "training: seen in all"]
)
def test_a_card_that_fits_on_training_alone_passes(on):
    assert undeclared({"fitted": {"genes": on}}) == []


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_protocol_of_ours_fits_on_the_test_set_undeclared(name):
    assert undeclared(PROTOCOLS[name]().card().model_dump(mode="json")) == []


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (("G00", "G01"), ("G01", "G02")),
        (("G01",), ("ENSG00000000001.12",)),
        (("ENSG00000000001",), ("G01",)),
        (("OLD1",), ("G01",)),
    ],
)
def test_target_genes_among_the_inputs_fail_by_any_of_their_names(cohort, inputs, targets):
    # One section calls G01 by an older symbol, under the same id.
    older = replace(cohort["P3-S0"], symbols=("G00", "OLD1", *cohort["P3-S0"].symbols[2:]))
    subject = clean_subject(cohort, input_genes=inputs, target_genes=targets)
    audit = audit_split(cohort.with_(older), split(cohort), subject_info=subject, tables=False)
    assert severities(audit, "target-genes-among-inputs") == ["fail"]


def test_two_ids_under_one_symbol_are_two_genes_and_the_symbol_is_either(cohort):
    twice = cohort.with_(replace(cohort["P3-S0"], ensembl_ids=("ENSG00000000099", *cohort["P3-S0"].ensembl_ids[1:])))

    def passes(read, predicted):
        subject = clean_subject(cohort, input_genes=(read,), target_genes=(predicted,))
        return audit_split(twice, split(cohort), subject_info=subject, tables=False).passed

    assert passes("ENSG00000000099", "ENSG00000000000")
    assert not passes("G00", "ENSG00000000000")
    assert not passes("ENSG00000000099", "G00")


@pytest.mark.parametrize(
    "seen", [("P5-S0",), ("hest:p5_s0",), ("other:NCBI783",), ("hest:*",), ("HEST-1k:*",), ("hest:TENX95", "P5-S0")]
)
def test_a_section_that_an_encoder_says_it_has_seen_fails(cohort, seen):
    source = {"platform": "hest", "files": {"table": {"path": "st/NCBI783.h5ad"}}}
    renamed = cohort.with_(replace(cohort["P5-S0"], source=source))
    subject = clean_subject(cohort, encoders=(Exposure(encoder="foundation", seen=seen),))
    audit = audit_split(renamed, split(cohort), subject_info=subject, tables=False)
    assert severities(audit, "seen-by-encoder") == ["fail"]
    assert "P5-S0" in said(audit, "seen-by-encoder")


def test_a_converted_checkpoint_says_which_datasets_it_was_trained_on(cohort, tmp_path):
    about = {"recipe": "published", "trained_on": ["HEST-1k"], "encoders": {}, "training_sections": []}
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    made = cohort.with_(replace(cohort["P5-S0"], source={"platform": "hest"}))
    audit = audit_split(made, split(cohort), subject_info=read_subject(tmp_path), tables=False)
    assert said(audit, "seen-by-encoder") == "published was trained on sections tested here: P5-S0"


def test_a_section_of_another_dataset_or_of_the_training_side_is_not_the_one_seen(cohort):
    stated = cohort.with_(columns={"dataset": dict.fromkeys(cohort.ids, "ours")})
    subject = clean_subject(cohort, encoders=(Exposure(encoder="f", seen=("hest:P5-S0", "ours:P0-S0")),))
    assert audit_split(stated, split(cohort), subject_info=subject, tables=False).passed
    theirs = clean_subject(cohort, encoders=(Exposure(encoder="f", pretrained_on=("Ours",)),))
    audit = audit_split(stated, split(cohort), subject_info=theirs, tables=False)
    assert severities(audit, "seen-by-encoder") == ["fail"]


def test_an_encoder_that_says_nothing_is_not_taken_to_have_seen_nothing(cohort):
    subject = clean_subject(cohort, encoders=(Exposure(encoder="silent"),))
    audit = audit_split(cohort, split(cohort), subject_info=subject, tables=False)
    assert any(u.name == "seen-by-encoder" and "silent" in u.why for u in audit.unchecked)
    assert "seen-by-encoder" not in audit.checked
    untrained = clean_subject(cohort, encoders=(Exposure(encoder="tiny", weights="random"),))
    assert "seen-by-encoder" in audit_split(cohort, split(cohort), subject_info=untrained, tables=False).checked


# ---- labels without biology


def telling(cohort, words=lambda label: label):
    return cohort.with_(
        *(replace(m, captions=[f"Many {words(c).upper()}s here" for c in m.labels]) for m in cohort.sections.values())
    )


def test_captions_that_name_the_label_fail_where_they_are_inputs(cohort):
    told = telling(cohort)
    for inputs, expected in ((("text",), ["fail"]), (None, ["advise"]), (("image",), [])):
        audit = audit_split(told, split(told), subject_info=clean_subject(cohort, inputs=inputs))
        assert severities(audit, "caption-names-label") == expected
    assert severities(audit_split(told, split(told)), "caption-names-label") == ["advise"]


def test_synonyms_name_the_label_and_captions_that_name_all_classes_name_none(cohort):
    other = {"fat": "adipose tissue", "gland": "epithelium", "stroma": "collagen"}
    told = telling(cohort, other.get)
    assert not audit_split(told, split(told)).named("caption-names-label")
    synonyms = {c: (w,) for c, w in other.items()}
    assert audit_split(told, split(told), synonyms=synonyms).named("caption-names-label")
    every = telling(cohort, lambda _: "fat, gland and stroma")
    assert not audit_split(every, split(every)).named("caption-names-label")


def relabelled(cohort, of):
    return cohort.with_(
        *(replace(m, labels=np.array(CLASSES[:2], dtype=object)[of(m).astype(int)]) for m in cohort.sections.values())
    )


def test_position_that_tells_the_label_of_other_patients_is_advised(cohort):
    centre = relabelled(cohort, lambda m: np.linalg.norm(m.centres_um - 650, axis=1) < 420)
    audit = audit_split(centre, split(cohort))
    assert severities(audit, "position-tells-label") == ["advise"]
    # The same disc somewhere else in every patient: as smooth, and no use to another patient.
    moved = relabelled(
        cohort,
        lambda m: np.linalg.norm((m.centres_um - 1400 * rng(m.patient, "at").random(2)) % 1400 - 650, axis=1) < 420,
    )
    assert not audit_split(moved, split(cohort)).named("position-tells-label")


def test_two_large_domains_that_happen_to_meet_prove_nothing(cohort):
    halves = relabelled(cohort, lambda m: m.centres_um[:, 0] < (700 if m.id == "P0-S0" else 1000))
    audit = audit_split(halves, split(cohort, train=("P0-S0",), test=("P5-S0",)))
    assert not audit.named("position-tells-label")
    # With more patients it does.
    assert audit_split(halves, split(cohort)).named("position-tells-label")


def test_depth_that_tells_the_label_is_advised(cohort):
    deep = [
        replace(m, counts=sp.csr_matrix(m.counts.toarray() * np.where(m.labels == "gland", 3, 1)[:, None]))
        for m in cohort.sections.values()
    ]
    audit = audit_split(cohort.with_(*deep), split(cohort))
    assert severities(audit, "depth-tells-label") == ["advise"]
    assert audit.passed


def test_a_class_on_one_side_only_is_advised(cohort):
    def without(kind, patients):
        return cohort.with_(
            *(
                replace(m, labels=np.where(m.labels == kind, "", m.labels))
                for m in cohort.sections.values()
                if m.patient in patients
            )
        )

    audit = audit_split(without("fat", ("P5", "P6", "P7")), split(cohort))
    assert said(audit, "class-on-one-side") == "classes trained on and not tested: fat"
    audit = audit_split(without("fat", ("P0", "P1", "P2", "P3", "P4")), split(cohort))
    assert said(audit, "class-on-one-side") == "classes tested and not trained on: fat"
    assert severities(audit, "class-on-one-side") == ["advise"]


def test_without_labels_nothing_is_said_of_them_but_that(cohort):
    blank = cohort.with_(*(replace(m, labels=np.full(len(m.labels), "")) for m in cohort.sections.values()))
    audit = audit_split(blank, split(cohort))
    names = {"class-on-one-side", "position-tells-label", "depth-tells-label", "caption-names-label"}
    assert names <= {u.name for u in audit.unchecked}
    assert not names & set(audit.checked)


# ---- what is allowed, and how it is said


def test_what_is_said_of_many_sections_and_folds_is_read_once_and_kept_in_full(cohort):
    held = spots(cohort, cohort.ids)
    folds = tuple(
        Fold(name=str(i), train=tuple(cohort.ids), test=tuple(part), test_locations={s: held[s] for s in part})
        for i, part in enumerate((cohort.ids[:8], cohort.ids[8:]))
    )
    audit = audit_split(cohort, Split(name="spots", level="within-section", folds=folds), tile_um=224.0, tables=False)
    assert [len(audit.named(n)) for n in ("overlapping-tiles", "neighbours-on-both-sides")] == [16, 16]
    tiles, neighbours = gathered(audit.findings)
    assert (tiles.name, neighbours.name) == ("overlapping-tiles", "neighbours-on-both-sides")
    assert tiles.what.startswith("test locations overlap a training location")
    assert audit.findings[0].what in tiles.what
    assert (tiles.sections, tiles.folds) == (tuple(cohort.ids), ("0", "1"))
    # What is said once keeps its own sentence.
    assert gathered(audit.findings[:1])[0].what == audit.findings[0].what


def test_findings_may_be_allowed_by_name(cohort):
    fold = {"train": ("P0-S0", "P1-S0", "P2-S0"), "test": ("P0-S1", "P3-S0")}
    audit = audit_split(cohort, split(cohort, **fold), tables=False)
    assert audit.not_allowed(["patient-on-both-sides"]) == ()
    assert audit.not_allowed(["few-patients"]) == audit.failures


def test_every_finding_says_what_it_inflates_and_the_mend():
    for name, kind in KINDS.items():
        assert kind.inflates, name
        assert kind.mend, name
        assert kind.catches, name
