"""`slide-classification`: a label of whole slides by gated attention; bags of any size, and patients never seen."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import small
from bench_fakes import FakeSection
from test_bench_mutation import DIM, QUICK, FewTiles, Tables, cohort, one
from triglyph.bench.contracts import Subject
from triglyph.bench.features import Constant
from triglyph.bench.hescape.clinical import attach
from triglyph.bench.protocol import FoldError
from triglyph.bench.registry import protocol
from triglyph.bench.slides.attention_mil import GatedAttention, MilConfig, attention, fit, log_odds, padded
from triglyph.bench.slides.pooled import decided, evidence, pooled_over_folds
from triglyph.cli import main
from triglyph.errors import ContractError, SplitError
from triglyph.metrics.result import read_results

NAME = "slide-classification"


def known(made, labels, **of_sections):
    manifest = pd.DataFrame({"patient": made.patients, **of_sections})
    return attach(replace(made), Tables(pd.DataFrame({"response": labels}), manifest))


def run(made, labels, model=None, *, of_sections=None, **options):
    asked = protocol(NAME, {"label_column": "response", **QUICK, **options})
    return asked.run(Subject("fake", model or FewTiles(labels)), known(made, labels, **(of_sections or {})))


# ---- the model: whatever the bag


def model(seed: int) -> GatedAttention:
    torch.manual_seed(seed)
    made = GatedAttention(DIM, attention_dim=8, dropout=0.5).eval()
    torch.nn.init.normal_(made.classifier.weight)
    return made


@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 99), pads=st.integers(0, 9))
def test_order_padding_and_company_change_nothing_and_attention_sums_to_one(sizes, seed, pads):
    rng, made = np.random.default_rng(seed), model(seed)
    bags = [rng.normal(size=(n, DIM)) for n in sizes]
    tiles, mask = padded(bags)
    more = torch.full((len(bags), pads, DIM), torch.nan)
    with torch.no_grad():
        together = made(torch.cat([tiles, more], 1), torch.cat([mask, torch.zeros(len(bags), pads).bool()], 1))[0]
    for i, bag in enumerate(bags):
        order = rng.permutation(len(bag))
        weight = attention(made, bag)
        assert weight.sum() == pytest.approx(1.0, abs=1e-5)
        assert attention(made, bag[order]) == pytest.approx(weight[order], abs=1e-5)
        alone = log_odds(made, {"a": bag[order]})["a"]
        assert alone == pytest.approx(float(together[i]), abs=1e-4)
        if len(bag) == 1:
            assert weight.tolist() == [1.0]


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 99))
def test_the_order_of_patches_and_bags_changes_no_fit(seed):
    rng = np.random.default_rng(seed)
    bags = {f"p{i}": rng.normal(size=(int(rng.integers(1, 9)), DIM)) for i in range(6)}
    labels, how = {p: i % 2 == 0 for i, p in enumerate(bags)}, MilConfig(steps=4, dropout=0.0)
    first = log_odds(fit(bags, labels, how=how, seed=seed), bags)
    turned = {p: bags[p][rng.permutation(len(bags[p]))] for p in reversed(bags)}
    again = log_odds(fit(turned, labels, how=how, seed=seed), bags)
    assert [again[p] for p in bags] == pytest.approx([first[p] for p in bags], abs=1e-4)


# ---- the protocol


def test_a_label_of_unseen_patients_is_found_in_few_patches():
    made, labels = cohort()
    rows = run(made, labels, FewTiles(labels, share=0.06, far=4.0))
    for metric in ("auroc", "balanced-accuracy"):
        row = one(rows, model="fake", metric=metric)
        assert row.value > 0.8
        assert (row.aggregation, row.level, row.n, row.chance, row.ci_unit) == ("pooled", "patient", 12, 0.5, "patient")
    assert one(rows, model="fake", metric="brier", group="all").value < 0.2
    assert {r.direction for r in rows} == {"image->response"}
    assert {r.role for r in rows if r.model == "fake: mean-pooled"} == {"baseline"}


def test_nothing_in_the_patches_is_at_chance_and_shuffled_labels_too():
    made, labels = cohort(test=24)
    rows = run(made, labels, FewTiles(labels, far=0.0))
    assert one(rows, model="fake", metric="auroc").value == pytest.approx(0.5, abs=0.25)
    assert one(rows, model="fake", metric="balanced-accuracy").value == pytest.approx(0.5, abs=0.25)


def test_balanced_accuracy_is_the_mean_recall_of_who_is_likelier_than_in_training():
    made, labels = cohort(train=9, test=8, side=4)
    rows = run(made, labels, FewTiles(labels, far=1.5), steps=20)
    for name in ("fake", "fake: mean-pooled"):
        p = {r.group: r.value for r in rows if (r.model, r.metric) == (name, "probability")}
        y = {r.group: r.value for r in rows if (r.model, r.metric) == (name, "label")}
        assert y == {who: float(labels[who]) for who in p}
        share = 4 / 9
        recall = [np.mean([(p[who] > share) == side for who in p if labels[who] == side]) for side in (0, 1)]
        assert one(rows, model=name, metric="balanced-accuracy").value == pytest.approx(np.mean(recall))


def test_a_fit_is_its_seed_alone_and_sees_nothing_of_the_test_side():
    made, labels = cohort(train=6, test=4, side=4)
    rows = run(made, labels)
    assert run(made, labels) == rows
    assert run(made, labels, seed=1) != rows
    fewer = run(replace(made, test=made.test[:2]), labels)
    for who in sorted({s.patient for s in made.test[:2]}):
        of = {"model": "fake", "metric": "probability", "group": who}
        assert one(fewer, **of).value == one(rows, **of).value


def test_absent_patches_are_dropped_whatever_stands_in_them():
    made, labels = cohort(train=6, test=4, side=4)

    class Holes(FewTiles):
        fill = np.nan

        def embed(self, section, modality):
            x, present = super().embed(section, modality)
            x[::3], present[::3] = self.fill, False
            return x, present

        pooled = embed

    class Filled(Holes):
        fill = 1e9

    rows = run(made, labels, Holes(labels))
    assert run(made, labels, Filled(labels)) == rows
    assert all(np.isfinite(r.value) for r in rows if r.metric == "probability")

    class Broken(FewTiles):
        def embed(self, section, modality):
            x, present = super().embed(section, modality)
            x[2, 0] = np.inf
            return x, present

    with pytest.raises(ContractError, match="a feature of fake is not finite"):
        run(made, labels, Broken(labels))


def test_bags_of_one_patch_are_judged():
    made, labels = cohort(train=24, test=8, side=1)
    rows = run(made, labels, FewTiles(labels, share=1.0), steps=400)
    assert one(rows, model="fake", metric="auroc").value > 0.9
    assert one(rows, model="fake: mean-pooled", metric="auroc").value == 1.0


def test_sections_are_bags_with_labels_of_their_own_and_patients_stay_the_unit():
    made, _ = cohort(train=8, test=8, sections_each=2, side=5)
    sections = [s.id for s in (*made.train, *made.test)]
    kinds = {s: ("tumour", "normal")[i % 2] for i, s in enumerate(sections)}

    class BySection(FewTiles):
        def __init__(self):
            super().__init__({})

        def embed(self, section, modality):
            self.mutated = {section.patient: kinds[section.id] == "tumour"}
            return super().embed(section, modality)

        pooled = embed

    asked = {"bag": "section", "label_column": "kind", "of_sections": {"kind": kinds}}
    rows = run(made, {}, BySection(), **asked)
    auroc = one(rows, model="fake", metric="auroc")
    assert auroc.value > 0.9
    assert (auroc.n, auroc.n_units) == (16, 8)
    assert {r.group for r in rows if r.metric == "probability"} == {s.id for s in made.test}
    brier = {r.group: r.value for r in rows if (r.model, r.metric, r.aggregation) == ("fake", "brier", "per-section")}
    mine = one(rows, model="fake", metric="brier", aggregation="per-patient", group="test-00")
    assert mine.value == pytest.approx(np.mean([brier["test-00.0"], brier["test-00.1"]]))
    # As patients, the same sections contradict each other.
    with pytest.raises(ContractError, match="patient train-00 has 'tumour' and 'normal'"):
        run(made, {}, BySection(), **{**asked, "bag": "patient"})


def test_what_is_missing_is_refused_in_words_or_left_out_by_name(caplog):
    made, labels = cohort(train=6, test=6, side=4)
    some = {p: v for p, v in labels.items() if p not in ("train-03", "test-05")}
    with pytest.raises(ContractError, match="2 patients without a response: test-05, train-03"):
        run(made, some, FewTiles(labels))
    with caplog.at_level(logging.WARNING):
        rows = run(made, some, FewTiles(labels), missing="drop")
    assert "left out: test-05, train-03" in caplog.text
    assert one(rows, model="fake", metric="auroc").n == 5

    class Without(FewTiles):
        def embed(self, section, modality):
            x, present = super().embed(section, modality)
            return x, present & (section.patient != "test-01")

    with pytest.raises(ContractError, match="fake has no image at any location"):
        run(made, labels, Without(labels))
    dropped = run(made, labels, Without(labels), missing="drop")
    assert one(dropped, model="fake", metric="auroc").n == 5
    with pytest.raises(ContractError, match="nobody says which column holds the label"):
        run(made, labels, label_column="")
    with pytest.raises(ContractError, match="no table of patients or sections has a column 'stage'"):
        run(made, labels, label_column="stage")
    with pytest.raises(ContractError, match="fake has no expression"):
        protocol(NAME, {"label_column": "response", "modality": "expression"}).run(
            Subject("fake", FewTiles(labels, modalities=("image",))), known(made, labels)
        )


def test_a_fold_of_one_class_is_left_out_of_the_judging_and_patients_on_both_sides_are_refused():
    made, labels = cohort(train=4, test=4, side=4)
    with pytest.raises(FoldError, match="all are on one side"):
        run(made, {p: 0 if p.startswith("train") else v for p, v in labels.items()})
    again = FakeSection("again", "train-00", side=4)
    both = replace(made, test=(*made.test, again), patients={**made.patients, "again": "train-00"})
    with pytest.raises(SplitError, match="whose label was trained on: train-00"):
        run(both, labels)


def test_attention_for_a_picture_lies_where_the_patches_are_that_tell():
    made, labels = cohort(train=16, test=6, sections_each=2, side=6)
    asked = protocol(NAME, {"label_column": "response", **QUICK})
    subject = Subject("fake", FewTiles(labels, far=6.0, absent=()))

    class Holes(FewTiles):
        def embed(self, section, modality):
            x, present = super().embed(section, modality)
            x[0], present[0] = np.nan, False
            return x, present

    found = asked.attention(subject, known(made, labels))
    assert set(found) == {s.id for s in made.test}
    for who in {s.patient for s in made.test}:
        of = [s for s in made.test if s.patient == who]
        assert sum(found[s.id].sum() for s in of) == pytest.approx(1.0, abs=1e-4)
        x = np.concatenate([subject.embed(s, "image")[0] for s in of])
        odd = x[:, :2].max(axis=1) > 4
        weight = np.concatenate([found[s.id] for s in of])
        assert weight[odd].mean() > 2 * weight[~odd].mean()
    holes = asked.attention(Subject("fake", Holes(labels)), known(made, labels))
    for values in holes.values():
        assert np.flatnonzero(np.isnan(values)).tolist() == [0]


# ---- over folds


def test_evidence_is_what_training_did_not_say():
    p, share = np.array([0.5, 0.25, 0.9]), np.array([0.25, 0.25, 0.9])
    assert evidence(p, share) == pytest.approx([np.log(3), 0.0, 0.0])
    assert decided(p, share).tolist() == [True, False, False]


def leave_one_out(labels, model, name="fake"):
    made, _ = cohort(train=len(labels), test=0, side=5)
    rows = []
    for i, section in enumerate(made.train):
        fold = replace(made, train=tuple(s for s in made.train if s is not section), test=(section,), fold=f"{i}")
        asked = protocol(NAME, {"label_column": "response", **QUICK, "steps": 40})
        rows += asked.run(Subject(name, model), known(fold, labels))
    return rows, made.patients


def test_patients_of_all_folds_are_judged_at_once():
    _, labels = cohort(train=8, test=0)
    rows, patients = leave_one_out(labels, FewTiles(labels, far=6.0))
    assert {r.value for r in rows if r.metric == "auroc"} == {None}  # one patient a fold
    found = pooled_over_folds(rows, patients)
    of = {"aggregation": "patients of all folds", "fold": "", "model": "fake"}
    p = {r.group: (r.value, r.chance) for r in rows if (r.model, r.metric) == ("fake", "probability")}
    score = {who: evidence(*(np.array([v]) for v in of))[0] for who, of in p.items()}
    pairs = [
        (score[a] > score[b]) + 0.5 * (score[a] == score[b]) for a in score for b in score if labels[a] > labels[b]
    ]
    auroc = one(found, metric="auroc", **of)
    assert auroc.value == pytest.approx(np.mean(pairs))
    assert auroc.value > 0.8
    assert (auroc.n, auroc.n_units, auroc.ci_unit, auroc.level) == (8, 8, "patient", "patient")
    recall = [np.mean([(score[who] > 0) == side for who in score if labels[who] == side]) for side in (0, 1)]
    assert one(found, metric="balanced-accuracy", **of).value == pytest.approx(np.mean(recall))
    assert pooled_over_folds([r for r in rows if r.fold == "0"], patients) == []


def test_who_knows_the_prevalence_alone_is_at_chance_over_folds_and_not_below():
    """Held-out positives leave fewer of them to train on: ranked as it is, the prevalence would be wrong every time."""
    _, labels = cohort(train=8, test=0)
    rows, patients = leave_one_out(labels, Constant(modality="image"), name="majority")
    p = {r.group: r.value for r in rows if r.metric == "probability"}
    assert min(p[who] for who in p if not labels[who]) > max(p[who] for who in p if labels[who])
    found = pooled_over_folds(rows, patients)
    assert {r.metric: r.value for r in found} == {"auroc": 0.5, "balanced-accuracy": 0.5}


# ---- from a cohort to a table


def test_bench_run_reads_the_label_from_the_clinical_table_of_a_cohort(tmp_path):
    opened, out = small.cohort(tmp_path, patients=8, side=4, images=False), tmp_path / "out"
    cohort_path = opened.path
    people = sorted(set(opened.patients.values()))
    table = "".join(f"{p},{('no', 'yes')[i % 2]}\n" for i, p in enumerate(people))
    (cohort_path / "clinical.csv").write_text(f"patient,response\n{table}")
    assert main(["split", str(cohort_path), "--name", "folds", "--folds", "2", "--stratify", "response"]) == 0
    given = ["bench", "run", NAME, "--cohort", str(cohort_path), "--split", "folds", "--embedding", "expression-pca-50"]
    wanted = ["--set", "modality=expression", "--set", "label_column=response", "--set", "n_seeds=1", "--quiet"]
    assert main([*given, *wanted, "--out", str(out)]) == 0
    rows = read_results(out)
    for metric in ("auroc", "balanced-accuracy"):
        row = one(rows, model="expression-pca-50", metric=metric, aggregation="patients of all folds")
        assert (row.n, row.level, row.direction) == (8, "patient", "expression->response")
        assert 0.0 <= row.value <= 1.0
    assert one(rows, model="majority", metric="auroc", aggregation="patients of all folds").value == 0.5
    assert one(rows, model="expression-pca-50: mean-pooled", metric="auroc", aggregation="patients of all folds")
    assert main([*given, "--set", "label_column=stage", "--quiet", "--out", str(tmp_path / "refused")]) != 0
