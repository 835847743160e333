"""`triglyph audit` on cohorts, runs, recipes and encoders as they lie on disk; its exit code; its page of the docs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp

import small
from audit_cases import Made, MadeCohort
from support import SHARED, needs_shared
from triglyph.bench.audit.kinds import KINDS
from triglyph.bench.audit.subject import Exposure, read_recipe, read_subject
from triglyph.bench.audit.whole import audit_split
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.cli import main
from triglyph.encoders.base import FUNCTIONAL, EncoderCard
from triglyph.errors import ContractError, SourceError, SplitError
from triglyph.storage import write_json
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.plain import PlainCohort
from triglyph.tissue.simulate.cohort import draft_of
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.split import Fold, Split, patient_folds
from triglyph.workflows.audit import audit
from triglyph.workflows.info import info

DOCS = Path(__file__).parents[1] / "docs" / "audit.md"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    made = small.cohort(folder, patients=4, images=False)
    made.save_split(Split(name="main", level="patient", folds=(Fold(train=("S0", "S1"), test=("S2", "S3")),)))
    return made.path


@pytest.fixture
def cohort(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "cohort")
    return Cohort.open(tmp_path / "cohort")


def declare(cohort, name, *, level="patient", **fold):
    """Write a split as a person would, whatever it holds."""
    write_json(cohort.path / "splits" / f"{name}.json", {"name": name, "level": level, "folds": [fold]})


def edit(cohort, **columns):
    table = pd.read_csv(cohort.path / "sections.csv", dtype=str, keep_default_na=False)
    table.assign(**columns).to_csv(cohort.path / "sections.csv", index=False)


def names(path):
    found = json.loads((path / "audit.json").read_text())
    return {f["name"] for a in found["audits"] for f in a["findings"] if f["severity"] == "fail"}


# ---- exit codes


def test_a_clean_cohort_exits_with_0_and_writes_what_was_and_was_not_checked(cohort, tmp_path, capsys):
    assert main(["audit", str(cohort.path), "--split", "main", "--out", str(tmp_path / "out")]) == 0
    (found,) = json.loads((tmp_path / "out" / "audit.json").read_text())["audits"]
    assert found["split"] == "main"
    assert "patient-on-both-sides" in found["checked"]
    assert {"name": "donor-on-both-sides", "why": "the manifest says nothing in a column 'donor'"} in found["unchecked"]
    assert "main (patient) passes" in capsys.readouterr().out


def test_a_split_that_cohorts_refuse_to_open_is_audited_and_exits_with_1(cohort, tmp_path, capsys):
    edit(cohort, patient=["P0", "P1", "P0", "P3"])
    with pytest.raises(SplitError):
        Cohort.open(cohort.path).split("main")
    assert main(["audit", str(cohort.path), "--out", str(tmp_path / "out")]) == 1
    assert names(tmp_path / "out") == {"patient-on-both-sides"}
    shown = capsys.readouterr().out
    assert "inflates" in shown
    assert "mend" in shown


def test_columns_that_a_person_added_to_the_manifest_are_looked_at(cohort, tmp_path):
    edit(cohort, donor=["d0", "d1", "d1", "d3"])
    assert main(["audit", str(cohort.path), "--out", str(tmp_path / "out")]) == 1
    assert names(tmp_path / "out") == {"donor-on-both-sides"}


def test_a_level_may_be_asked_for(cohort, tmp_path):
    declare(cohort, "w", level="within-patient", train=["S0", "S1"], test=["S2", "S3"])
    edit(cohort, patient=["P0", "P1", "P0", "P3"])
    assert main(["audit", str(cohort.path), "--split", "w"]) == 0
    assert main(["audit", str(cohort.path), "--split", "w", "--level", "patient"]) == 1


def test_random_spots_of_real_sections_are_caught(cohort, tmp_path):
    held = {s: [str(b) for b in cohort[s].table.obs_names[5::12]] for s in cohort.ids}
    declare(cohort, "95-5", level="patient", train=cohort.ids, test=cohort.ids, test_locations=held)
    assert main(["audit", str(cohort.path), "--split", "95-5", "--out", str(tmp_path / "out")]) == 1
    assert {"section-on-both-sides", "neighbours-on-both-sides"} <= names(tmp_path / "out")


def test_without_a_saved_split_each_patient_is_left_out_once(cohort):
    (cohort.path / "splits" / "main.json").unlink()
    (found,) = audit(cohort.path).audits
    assert found.split == "every patient left out once"
    assert found.passed


@pytest.mark.parametrize("arguments", [["--split", "none"], ["--run", "nowhere"], ["--seen", "nowhere.txt"]])
def test_what_is_not_there_is_an_error_of_use(cohort, arguments):
    assert main(["audit", str(cohort.path), *arguments]) == 2


# ---- runs, recipes and encoders


def run_folder(path, **changes):
    manifest = {
        "kind": "train",
        "recipe": "model",
        "split": {"name": "main", "fold": "0"},
        "training_sections": ["S0"],
        "validation_sections": ["S1"],
        "training_patients": ["P0"],
        "encoders": {"image": {"encoder": "stain-texture", "fingerprint": "ab" * 8, "mode": "locked"}},
    }
    path.mkdir()
    write_json(path / "manifest.json", {**manifest, **changes})
    return path


def test_a_run_is_read_from_its_manifest(tmp_path):
    found = read_subject(run_folder(tmp_path / "run", fitted={"genes": ["S0"], "scaler": ["S3"]}))
    assert found.training_sections == ("S0", "S1")
    assert (found.split, found.folds, found.training_patients) == ("main", ("0",), ("P0",))
    assert [f.what for f in found.fitted] == ["genes", "scaler"]
    assert found.encoders == (Exposure(encoder="stain-texture"),)


def test_a_bench_run_says_its_protocols_and_what_they_read(tmp_path):
    cards = {"p/1": {"name": "p", "fitted": {"genes": "all sections"}, "constants": {"modality": "text"}}}
    folder = run_folder(tmp_path / "run", kind="bench", subject={"embedding": "stain-texture"}, protocols=cards)
    found = read_subject(folder)
    assert found.inputs == ("text",)
    assert found.protocols[0]["name"] == "p"
    assert found.encoders == (Exposure(encoder="stain-texture"),)


def test_probes_of_captions_are_told_from_probes_of_images_by_their_cards_and_their_rows(tmp_path):
    text, image = (LinearProbe(modality=m) for m in ("text", "image"))
    assert text.stamp != image.stamp

    def inputs(name, *of, **more):
        cards = {p.stamp: p.card().model_dump(mode="json") for p in of}
        return read_subject(run_folder(tmp_path / name, kind="bench", protocols=cards, **more)).inputs

    assert inputs("text", text) == ("text",)
    assert inputs("image", image) is None  # the card does not say; captions are then advised on
    assert inputs("rows", image, inputs=["image"]) == ("image",)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"training_sections": ["S0", "S2"]}, {"trained-on-test"}),
        ({"training_patients": ["P3"]}, {"patient-on-both-sides"}),
        ({"fitted": {"scaler": ["S3"]}}, {"fitted-on-test"}),
        ({"fitted": {"scaler": ["S3"]}, "transductive": ["the scaler sees the test section"]}, set()),
        ({"input_genes": ["EPCAM", "KRT8"], "target_genes": ["KRT8"]}, {"target-genes-among-inputs"}),
    ],
)
def test_a_run_is_held_against_its_own_split(cohort, tmp_path, changes, expected):
    run = run_folder(tmp_path / "run", **changes)
    assert main(["audit", str(cohort.path), "--run", str(run), "--out", str(tmp_path / "o")]) == int(bool(expected))
    assert names(tmp_path / "o") == expected


def test_a_recipe_is_audited_before_it_is_trained(cohort, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\ndata: {train: [S0, S2]}\nmodel: {towers: {image: {encoder: stain-texture}}}\n")
    found = read_recipe(recipe, cohort)
    assert found.training_sections == ("S0", "S2")
    assert found.training_patients == ("P0", "P2")
    assert main(["audit", str(cohort.path), "--run", str(recipe), "--out", str(tmp_path / "o")]) == 1
    assert names(tmp_path / "o") == {"trained-on-test", "patient-on-both-sides"}
    recipe.write_text("name: mine\ndata: {split: main}\n")
    assert main(["audit", str(cohort.path), "--run", str(recipe)]) == 0


def embedded(cohort, *, seen=()):
    card = EncoderCard(name="foundation", modality="image", dim=8, pooling="cls", input_px=224, mpp=0.5, seen=seen)
    about = {"name": card.name, "encoder": card.model_dump(mode="json")}
    for i, section in enumerate(cohort):
        with section.embeddings.writing("ab" * 8, shape=(36, 8), dtype=np.float32, card=about) as (values, present):
            values[:] = np.random.default_rng(i).normal(size=(36, 8))
            present[:] = True
    return card


def test_sections_on_the_card_of_stored_features_are_found(cohort, tmp_path):
    embedded(cohort, seen=("hest:S3",))
    assert main(["audit", str(cohort.path), "--embedding", "foundation", "--out", str(tmp_path / "o")]) == 1
    assert names(tmp_path / "o") == {"seen-by-encoder"}
    with pytest.raises(ContractError, match="'nothing' names 0 stored features"):
        audit(cohort.path, embedding="nothing")


def test_a_list_of_seen_sections_may_be_text_or_json(cohort, tmp_path):
    text, record = tmp_path / "uni.txt", tmp_path / "drvi.json"
    text.write_text("# from the supplement\nTENX95\nS2  # renamed\n")
    record.write_text(json.dumps({"encoder": "drvi", "all_but": ["S2S3"]}))
    assert Exposure.read(text) == Exposure(encoder="uni", seen=("TENX95", "S2"))
    for path, expected in ((text, {"seen-by-encoder"}), (record, {"seen-by-encoder", "unknown-section"})):
        assert main(["audit", str(cohort.path), "--seen", str(path), "--out", str(tmp_path / "o")]) == 1
        assert names(tmp_path / "o") == expected
    record.write_text(json.dumps({"encoder": "drvi", "but": []}))
    with pytest.raises(SourceError, match="its keys are"):
        Exposure.read(record)


def test_what_an_encoder_has_seen_does_not_change_what_it_computes():
    assert not {"seen", "pretrained_on"} & set(FUNCTIONAL)


def test_phrases_of_prompts_count_as_the_class(cohort, tmp_path):
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("tumour: [sample 1]\nstroma: [sample 2]\nlymphoid: []\n")
    (plain,), (asked,) = (audit(cohort.path, prompts=p).audits for p in (None, prompts))
    assert plain.named("caption-names-label")  # its captions begin with the label
    assert asked.named("caption-names-label")[0].what != plain.named("caption-names-label")[0].what


# ---- simulated tissue


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Five patients, the first with two serial sections, each with biology of their own; no pictures."""
    config = preset("tiny", seed=3, overrides=["molecules.patient_gene=0.6", "molecules.patient_profile=0.4"])
    cohort = Cohort.create(tmp_path_factory.mktemp("simulated") / "cohort")
    for patient, count in enumerate((2, 1, 1, 1, 1)):
        for number in range(count):
            cohort.add(draft_of(Specimen(config, patient, number), []))
    return cohort


def test_simulated_tissue_passes_and_no_two_patients_are_taken_for_one(simulated):
    found = audit_split(simulated, patient_folds(simulated.patients, name="loo"))
    assert found.passed
    assert "near-duplicates" in found.checked
    assert not found.named("people-alike")


def test_serial_sections_of_simulated_tissue_under_two_ids_are_near_duplicates(simulated, tmp_path):
    shutil.copytree(simulated.path, tmp_path / "cohort")
    cohort = Cohort.open(tmp_path / "cohort")
    edit(cohort, patient=[f"donor {i}" for i in range(6)], block="")
    cohort = Cohort.open(cohort.path)
    found = audit_split(cohort, patient_folds(cohort.patients, name="loo"))
    assert {f.name for f in found.failures} == {"near-duplicates"}
    assert all("P01-S1" in f.what and "P01-S2" in f.what for f in found.failures)


def test_patients_of_one_site_are_not_taken_for_one_however_strong_its_effect_and_serial_sections_still_are():
    knobs = ["anatomy.side_um=1000", "molecules.filler_genes=150", "molecules.site_gene=2"]
    config = preset("confounded", seed=5, overrides=knobs)
    sections = {}
    for patient, number in (*((p, 0) for p in range(7)), (0, 1)):
        specimen = Specimen(config, patient, number)
        table = specimen.table
        sections[f"P{patient}-S{number}"] = Made(
            id=f"P{patient}-S{number}",
            patient=f"P{patient}" if number == 0 else "filed otherwise",
            centres_um=np.asarray(table.obsm["spatial"]),
            counts=sp.csr_matrix(table.X),
            labels=np.full(len(table), ""),
            captions=[""] * len(table),
            symbols=tuple(table.var_names),
            ensembl_ids=("",) * table.n_vars,
        )
    cohort = MadeCohort(sections)
    found = audit_split(cohort, patient_folds(cohort.patients, name="loo"))
    assert {frozenset(f.sections) for f in found.failures} == {frozenset({"P0-S0", "P0-S1"})}
    # The two that share a site with nobody else are worth a word.
    assert {frozenset(f.sections) for f in found.named("people-alike")} == {frozenset({"P4-S0", "P5-S0"})}


@needs_shared
def test_serial_sections_of_her2st_filed_as_patients_are_all_found_and_no_two_patients_are_taken_for_one():
    sections = {}
    for name in ("A1", "A2", "B1", "B2", "C1", "D1"):
        table = pl.read_csv(SHARED / "her2st" / "counts" / f"{name}.tsv.gz", separator="\t")
        array = np.array([[float(v) for v in spot.split("x")] for spot in table[:, 0]])
        counts = table[:, 1:3000]
        sections[name] = Made(
            id=name,
            patient=name[0],
            centres_um=array * 200,
            counts=sp.csr_matrix(counts.to_numpy().astype(np.int32)),
            labels=np.full(len(counts), ""),
            captions=[""] * len(counts),
            symbols=tuple(counts.columns),
            ensembl_ids=("",) * counts.shape[1],
        )
    cohort = MadeCohort(sections)
    assert audit_split(cohort, patient_folds(cohort.patients, name="loo")).passed
    filed = cohort.renamed({s: s for s in sections})
    found = audit_split(filed, patient_folds(filed.patients, name="loo"))
    assert {f.name for f in found.failures} == {"near-duplicates"}
    pairs = {tuple(re.findall(r"[A-D][12](?= \()", f.what)) for f in found.failures}
    assert pairs == {pair for p in "AB" for pair in ((f"{p}1", f"{p}2"), (f"{p}2", f"{p}1"))}


def test_a_plain_table_is_audited_as_far_as_it_goes():
    rng = np.random.default_rng(0)
    people = np.repeat([f"P{i}" for i in range(6)], 40)
    features = rng.normal(size=(240, 16))
    features[200:] = features[:40] + 0.01 * rng.normal(size=(40, 16))
    table = ad.AnnData(
        rng.normal(size=(240, 30)),
        obs=pd.DataFrame({"patient": people}, index=[f"c{i}" for i in range(240)]),
        obsm={"X_uni": features},
    )
    plain = PlainCohort(table, Path("plain.h5ad"))
    found = audit_split(plain, patient_folds(plain.patients, name="loo"), embedding="X_uni")
    assert {f.name for f in found.failures} == {"near-duplicates"}
    assert all("P0" in f.what and "P5" in f.what for f in found.failures)
    why = {u.name: u.why for u in found.unchecked}
    assert why["same-section-twice"] == "the table holds values that are not counts"
    assert "overlapping-tiles" in why
    assert "donor-on-both-sides" in why


def test_a_plain_table_is_audited_and_shown_by_the_verbs(tmp_path, capsys):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"who": np.repeat([f"P{i}" for i in range(6)], 40), "kind": np.tile(["a", "b"], 120)},
        index=[f"c{i}" for i in range(240)],
    )
    path = tmp_path / "cells.h5ad"
    counts, features = sp.csr_matrix(rng.poisson(3.0, (240, 30))), rng.normal(size=(240, 8))
    ad.AnnData(counts, obs=obs, obsm={"mine": features}).write_h5ad(path)
    command = ["audit", str(path), "--patient-column", "who"]
    assert main([*command, "--label-column", "kind", "--embedding", "mine"]) == 0
    assert "leave-one-patient-out (patient) passes" in capsys.readouterr().out
    # A file of a split is audited as it stands, also where it could not be opened.
    leaky = {"name": "mine", "level": "patient", "folds": [{"train": ["P0", "P1"], "test": ["P1", "P2"]}]}
    write_json(tmp_path / "mine.json", leaky)
    assert main([*command, "--split", str(tmp_path / "mine.json"), "--out", str(tmp_path / "o")]) == 1
    assert names(tmp_path / "o") == {"section-on-both-sides"}
    for wrong in (["--embedding", "other"], ["--run", str(tmp_path / "none")], ["--section-column", "nobody"]):
        assert main([*command, *wrong]) == 2
    capsys.readouterr()
    assert main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert all(said in shown for said in ("240", "6 values: P0, P1", "mine: 8 numbers"))


def test_info_shows_the_audit_of_a_run_as_audit_does(cohort, tmp_path, capsys):
    held = {s: [str(b) for b in cohort[s].table.obs_names[5::12]] for s in cohort.ids}
    declare(cohort, "95-5", level="within-section", train=cohort.ids, test=cohort.ids, test_locations=held)
    (made,) = audit(cohort.path, split="95-5").audits
    printed = capsys.readouterr().out
    assert printed.count("neighbours-on-both-sides") == 1
    assert "sections S0, S1, S2, S3" in printed
    run = run_folder(tmp_path / "run", kind="bench", audit=made.model_dump(mode="json"))
    assert info(run).facts["audit"] == "failed: neighbours-on-both-sides"
    shown = capsys.readouterr().out
    assert printed in shown
    assert "severity" not in shown


# ---- the docs


def test_the_page_lists_every_kind_as_the_code_has_it():
    rows = [line.strip("| \n").split(" | ") for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    assert [row[0].strip("`") for row in rows] == list(KINDS)
    for row in rows:
        kind = KINDS[row[0].strip("`")]
        assert row[1:] == [kind.severity, kind.catches, kind.inflates], row[0]
