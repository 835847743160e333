"""Predicted expression: targets, who predicts them, and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import KNeighborsRegressor

from bench_fakes import FakeModel, FakeSection, trial
from triglyph.bench.ceilings.expression import expression_ceilings
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.expression.measures import Ceilings
from triglyph.bench.expression.placing import place
from triglyph.bench.expression.predictors import (
    AlignedPosition,
    CoreDepth,
    CoreRidge,
    Learner,
    MinMAE,
    ShuffledPairs,
    TrainingMean,
)
from triglyph.bench.expression.protocol import Expression, GenesFromGenes, read_panel
from triglyph.bench.expression.targets import Targets
from triglyph.bench.features import Features
from triglyph.bench.parts import Part
from triglyph.bench.truth import Truths
from triglyph.errors import ContractError, GeneError, SourceError, SplitError

CORE = tuple(f"G{i:02d}" for i in range(0, 40, 3))
QUICK = {"n_boot": 20, "n_genes": 8, "min_detected": 0.05}


def values(rows, metric, aggregation):
    return {r.group: r.value for r in rows if (r.metric, r.aggregation) == (metric, aggregation)}


def stacked(targets, sections, of):
    return np.concatenate([of(targets, s) for s in sections])


# ---- targets


def test_targets_are_the_most_variable_training_genes_and_never_of_the_core():
    made = trial(2, 2)
    targets = Targets(made, n_genes=8, min_detected=0.2, scale="log1p-counts", core=CORE)
    logged = np.log1p(np.concatenate([s.counts.toarray() for s in made.train]))
    free = [i for i in range(40) if f"G{i:02d}" not in CORE and (logged[:, i] > 0).mean() > 0.2]
    expected = sorted(free, key=lambda i: -logged[:, i].var())[:8]
    assert targets.genes == tuple(f"G{i:02d}" for i in expected)
    np.testing.assert_allclose(targets[made.test[0]][0], np.log1p(made.test[0].counts.toarray()[:, expected]))


def test_targets_do_not_change_when_test_counts_do():
    made = trial(2, 2)
    before = Targets(made, n_genes=5, min_detected=0.1).genes
    made.test[0].counts = made.test[0].counts[::-1] * 3
    assert Targets(made, n_genes=5, min_detected=0.1).genes == before


def test_genes_that_one_section_has_not_measured_are_neither_core_nor_target():
    made = trial(2, 2)
    made.test[0].measured = np.arange(40) >= 10
    targets = Targets(made, n_genes=40, min_detected=0.0, core=CORE)
    assert min(targets.genes) >= "G10"
    assert min(targets.core) >= "G10"
    with pytest.raises(GeneError, match="1 of 2 core genes"):
        Targets(made, n_genes=5, min_detected=0.0, core=("G00", "G20"))


def test_composition_is_of_all_that_a_section_measured():
    made = trial(1, 1)
    targets = Targets(made, n_genes=3, min_detected=0.1, core=CORE)
    section = made.test[0]
    counts = section.counts.toarray()
    columns = [int(g[1:]) for g in targets.genes]
    expected = np.log1p(counts[:, columns] / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 1e4)
    np.testing.assert_allclose(targets.composition(section), expected)


# ---- who predicts


def test_an_embedding_is_read_by_ridge_as_scikit_learn_does():
    made, model = trial(2, 2), FakeModel()
    protocol = Expression(standardise="none", **QUICK)
    rows = protocol.run(Subject("fake", model), made)
    targets = protocol.targets(made)
    x = np.concatenate([model.embed(s, "image")[0] for s in made.train])
    y = np.concatenate([targets[s][0] for s in made.train])
    ridge = RidgeCV(np.logspace(0, 4, 9)).fit(x, y)
    for section in made.test:
        guess, truth = ridge.predict(model.embed(section, "image")[0]), targets[section][0]
        r = np.mean([pearsonr(guess[:, g], truth[:, g])[0] for g in range(8)])
        rho = np.mean([spearmanr(guess[:, g], truth[:, g])[0] for g in range(8)])
        assert values(rows, "pearson", "per-section")[section.id] == pytest.approx(r, abs=1e-6)
        assert values(rows, "spearman", "per-section")[section.id] == pytest.approx(rho, abs=1e-6)
        mse = ((guess - truth) ** 2).mean()
        assert values(rows, "mse", "per-section")[section.id] == pytest.approx(mse, rel=1e-6)
        r2 = 1 - ((guess - truth) ** 2).sum(axis=0) / ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
        assert values(rows, "r2", "per-section")[section.id] == pytest.approx(r2.mean(), abs=1e-6)


def test_min_mae_is_the_nearest_core_gene_by_brute_force():
    made = trial(2, 1)
    protocol = GenesFromGenes(core=CORE, **QUICK)
    targets = protocol.targets(made)
    x = np.concatenate([targets.core_values(s) for s in made.train])
    y = np.concatenate([targets[s][0] for s in made.train])
    nearest = [min(range(x.shape[1]), key=lambda c, j=j: np.abs(x[:, c] - y[:, j]).mean()) for j in range(8)]
    guess, present = MinMAE().learn(targets)(made.test[0])
    np.testing.assert_array_equal(guess, targets.core_values(made.test[0])[:, nearest])
    assert present.all()


def test_the_ridge_of_the_core_sees_the_seven_nearest_and_depth_as_the_reference_does():
    made = trial(2, 1)
    protocol = GenesFromGenes(core=CORE, **QUICK)
    targets = protocol.targets(made)

    def features(section):
        x = targets.core_values(section)
        distance = np.linalg.norm(section.centres_um[:, None] - section.centres_um[None], axis=2)
        # Ties of distance are settled by neither: compare where the seventh is nearer than the eighth.
        order = np.argsort(distance, axis=1, kind="stable")
        clear = np.sort(distance, axis=1)[:, 6] < np.sort(distance, axis=1)[:, 7] - 1e-9
        depth = np.log1p(np.expm1(x).sum(axis=1, keepdims=True))
        return np.hstack([x, x[order[:, :7]].mean(axis=1), 3 * depth]), clear

    for section in (*made.train, *made.test):
        jitter = np.random.default_rng(len(section.id)).uniform(-30, 30, section.centres_um.shape)
        section.centres_um = section.centres_um + jitter
    x = np.concatenate([features(s)[0] for s in made.train])
    y = np.concatenate([targets[s][0] for s in made.train])
    expected = RidgeCV(np.logspace(0, 6, 13)).fit(x, y).predict(features(made.test[0])[0])
    assert features(made.test[0])[1].all()
    np.testing.assert_allclose(CoreRidge(neighbours=7).learn(targets)(made.test[0])[0], expected, rtol=1e-6)


def test_pooled_figures_of_a_patient_are_those_of_the_reference_formulas():
    made = trial(2, 1, sections_each=2)
    protocol = GenesFromGenes(core=CORE, **QUICK)
    rows = protocol.run(Subject("ridge", CoreRidge(), role="baseline"), made)
    targets = protocol.targets(made)
    predict = CoreRidge().learn(targets)
    p = np.concatenate([predict(s)[0] for s in made.test])
    y = np.concatenate([targets[s][0] for s in made.test])
    off = (p - p.mean(0)) - (y - y.mean(0))
    patient = made.test[0].patient
    found = {m: values(rows, m, "patient-pooled")[patient] for m in ("mse-mean-removed", "mse", "spearman")}
    assert found["mse-mean-removed"] == pytest.approx((off**2).mean(), rel=1e-9)
    assert found["mse"] == pytest.approx(((p - y) ** 2).mean(), rel=1e-9)
    rho = np.mean([spearmanr(p[:, g], y[:, g])[0] for g in range(8)])
    assert found["spearman"] == pytest.approx(rho, abs=1e-9)


def test_depth_removed_spearman_is_that_of_the_reference_formula():
    made = trial(2, 1)
    protocol = GenesFromGenes(core=CORE, **QUICK)
    rows = protocol.run(Subject("ridge", CoreRidge(), role="baseline"), made)
    targets, section = protocol.targets(made), made.test[0]
    p = CoreRidge().learn(targets)(section)[0]
    total = section.counts.toarray().sum(axis=1, keepdims=True)
    line = np.hstack([np.ones_like(total), np.log1p(total)])
    left = p - line @ np.linalg.lstsq(line, p, rcond=None)[0]
    truth = targets.composition(section)
    rho = np.mean([spearmanr(left[:, g], truth[:, g])[0] for g in range(8)])
    assert values(rows, "spearman-depth-removed", "per-section")[section.id] == pytest.approx(rho, abs=1e-9)


def test_removing_depth_leaves_a_prediction_of_depth_nothing():
    made = trial(3, 2)
    protocol = GenesFromGenes(core=CORE, **QUICK)
    depth = protocol.run(Subject("depth", CoreDepth(), role="baseline"), made)
    ridge = protocol.run(Subject("ridge", CoreRidge(), role="baseline"), made)
    removed = "spearman-depth-removed"
    assert values(ridge, removed, "per-section")["all"] > values(depth, removed, "per-section")["all"] + 0.1


@dataclass(frozen=True)
class Oracle:
    """A model that predicts by itself; `wrong` breaks its promise."""

    trial: object
    scale: str = "log1p-cp10k"
    wrong: str = ""
    training_sections: tuple = ()
    modalities: tuple = ()

    def predict(self, section, genes):
        counts = section.counts.toarray().astype(float)
        logged = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
        out = logged[:, [int(g[1:]) for g in genes]]
        if self.wrong == "shape":
            out = out[:, 1:]
        if self.wrong == "nan":
            out[3, 2] = np.nan
        return out, np.ones(len(out), bool)


def test_a_model_that_predicts_genes_itself_is_asked_for_them_by_name():
    made = trial(1, 2)
    rows = Expression(**QUICK).run(Subject("oracle", Oracle(made)), made)
    assert values(rows, "pearson", "per-section")["all"] == pytest.approx(1.0)
    assert values(rows, "mse", "patient-pooled")["all"] == pytest.approx(0.0)
    assert values(rows, "r2-training-mean", "per-section")["all"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("oracle", "said"),
    [
        ({"scale": "log1p-counts"}, "predicts log1p-counts"),
        ({"wrong": "shape"}, "for 8 genes"),
        ({"wrong": "nan"}, "not finite"),
    ],
)
def test_a_model_that_breaks_its_promise_is_refused(oracle, said):
    made = trial(1, 1)
    with pytest.raises(ContractError, match=said):
        Expression(**QUICK).run(Subject("oracle", Oracle(made, **oracle)), made)


def test_shuffled_pairs_of_good_features_predict_nothing():
    made, subject = trial(3, 2), Subject("fake", FakeModel())
    protocol = Expression(**QUICK)
    control = ShuffledPairs(subject.source, made)
    true = values(protocol.run(subject, made), "pearson", "per-section")["all"]
    null = values(protocol.run(Subject("null", control, role="control"), made), "pearson", "per-section")["all"]
    assert true > 0.3
    assert abs(null) < true / 2


def test_shuffled_pairs_move_training_locations_among_themselves_alone():
    section, model = FakeSection("a", "p"), FakeModel(absent=(2, 150))
    inside, outside = Part(section, np.arange(90), training=True), Part(section, np.arange(100, 196))
    made = Trial((inside,), (outside,), {"a": "p"}, "made")
    values, present = model.embed(section, "image")
    moved, there = ShuffledPairs(model, made).embed(section, "image")
    np.testing.assert_array_equal(moved[90:], values[90:])
    np.testing.assert_array_equal(there[90:], present[90:])
    assert (moved[:90] != values[:90]).mean() > 0.9
    np.testing.assert_array_equal(np.sort(moved[:90], axis=0), np.sort(values[:90], axis=0))
    np.testing.assert_array_equal(np.isnan(moved[:, 0]), ~there)
    assert ShuffledPairs(model, made, seed=1).embed(section, "image")[0][0, 0] != moved[0, 0]


# ---- position


def turned(xy, degrees, flip=1.0):
    a = np.radians(degrees)
    return ((xy - xy.mean(axis=0)) * [flip, 1.0]) @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + 900.0


class Stain(Features):
    """A stain that follows the tissue, whatever way it lies."""

    def features(self, section):
        stain = np.stack([section.state[:, 0], section.state[:, 1], *section.state[:, :5].T], axis=1)
        return stain, np.ones(len(stain), bool)


@pytest.mark.parametrize(("degrees", "flip"), [(90, 1.0), (140, -1.0)])
def test_a_section_is_laid_back_onto_the_one_that_it_was_turned_from(degrees, flip):
    section = FakeSection("a", "p")
    stain = section.state[:, :3]
    moved = turned(section.centres_um, degrees, flip)
    placed = place(moved, stain, onto_um=section.centres_um, onto_stain=stain)
    assert np.median(np.linalg.norm(placed - section.centres_um, axis=1)) < 100  # half a pitch


def test_aligned_position_knows_a_copy_that_lies_otherwise_and_nothing_without_a_shared_block():
    made = trial(1, 1)
    train, test = made.train[0], made.test[0]
    test.state, test.counts, test.patient = train.state, train.counts, train.patient
    test.centres_um = turned(train.centres_um, 90)
    made.patients[test.id] = train.patient
    train.info = test.info = SimpleNamespace(block="one")
    protocol = Expression(**QUICK)
    subject = Subject("position, aligned", AlignedPosition(Stain()), role="baseline")
    assert values(protocol.run(subject, made), "pearson", "per-section")["all"] > 0.6  # refined to a third of a pitch
    test.info = SimpleNamespace(block="two")
    assert protocol.run(subject, made) == []


def test_parts_are_aligned_by_their_whole_sections_and_those_of_one_section_lie_as_they_are():
    one, other = FakeSection("a", "p"), FakeSection("b", "p")
    other.state = one.state
    other.centres_um = turned(one.centres_um, 90)
    one.info = other.info = SimpleNamespace(block="one")
    left, right = np.arange(60), np.arange(60, 196)
    test, made = Part(one, left), []
    for seen in (Part(one, right, training=True), Part(other, right, training=True)):
        of = Trial((seen,), (test,), {"a": "p", "b": "p"}, "made")
        targets = Expression(**QUICK).targets(of)
        guess, there = AlignedPosition(Stain()).learn(targets)(test)
        assert there.all()
        centres = one.centres_um[right]  # where either part lies in the frame of the tested section
        near = KNeighborsRegressor(8, weights="distance").fit(centres, targets[seen][0])
        made.append((guess, near.predict(test.centres_um)))
    np.testing.assert_allclose(*made[0])
    assert np.median(np.abs(made[1][0] - made[1][1])) < 0.1 * made[1][1].std()  # refined to a third of a pitch


def test_sections_that_do_not_overlap_by_half_are_not_laid_onto_each_other():
    large, small = FakeSection("a", "p"), FakeSection("b", "p", side=4)
    stains = [s.state[:, :3] for s in (large, small)]
    assert place(large.centres_um, stains[0], onto_um=small.centres_um, onto_stain=stains[1]) is None
    made = Trial((large,), (small,), {"a": "p", "b": "p"}, "made")
    large.info = small.info = SimpleNamespace(block="one")
    guess, there = AlignedPosition(Stain()).learn(Expression(**QUICK).targets(made))(small)
    assert not there.any()
    assert np.isnan(guess).all()


# ---- measures


class Fixed(Learner):
    """Predicts the truth, but for some genes a constant."""

    def __init__(self, constant):
        self.constant = constant

    def learn(self, targets):
        def predict(section):
            guess, counted = targets[section]
            guess = guess.copy()
            guess[:, self.constant] = 1.0
            return guess, counted

        return predict


def test_a_constant_prediction_costs_its_genes_and_is_counted():
    made = trial(1, 2)
    rows = Expression(**QUICK).run(Subject("half", Fixed([0, 1])), made)
    assert values(rows, "pearson", "per-section")["all"] == pytest.approx(6 / 8)
    assert set(values(rows, "genes-constant", "per-section").values()) == {2.0}
    assert {r.n_genes for r in rows if r.metric == "pearson" and r.aggregation == "per-section"} == {8}


def test_a_gene_that_the_truth_holds_constant_is_left_out_for_everybody_and_counted():
    made = trial(1, 2)
    protocol = Expression(**QUICK)
    gene = int(protocol.targets(made).genes[0][1:])
    counts = made.test[0].counts.tolil()
    counts[:, gene] = 0
    made.test[0].counts = counts.tocsr()
    made.memo.clear()
    for subject in (Subject("half", Fixed([0, 1])), Subject("fake", FakeModel())):
        rows = [r for r in protocol.run(subject, made) if r.group == made.test[0].id]
        assert {r.value for r in rows if r.metric == "genes-undefined"} == {1.0}
        assert {r.n_genes for r in rows if r.metric == "pearson" and r.aggregation == "per-section"} == {7}


def test_the_training_mean_has_no_correlation_and_an_error():
    made = trial(2, 2)
    rows = Expression(**QUICK).run(Subject("mean", TrainingMean(), role="baseline"), made)
    assert set(values(rows, "pearson", "per-section").values()) == {None}
    assert values(rows, "r2-training-mean", "per-section")["all"] == pytest.approx(0.0)
    assert values(rows, "mse", "per-section")["all"] > 0


def test_the_noise_free_rate_reaches_about_the_ceiling_and_no_more():
    made = trial(1, 2, side=30)
    rng, loading = np.random.default_rng(0), np.random.default_rng(8).normal(size=(16, 40))
    for section in (*made.train, *made.test):  # at the fakes' 300 counts a location the root lifts the ceiling by 0.05
        rate = np.exp(0.15 * section.state @ loading / 4 + np.linspace(-2, 2, 40)) * 50
        section.counts = sp.csr_matrix(rng.poisson(rate))
    targets = Expression(n_boot=20, n_genes=20).targets(made)
    columns = [int(g[1:]) for g in targets.genes]
    best = np.log1p(rate[:, columns] / rate.sum(axis=1, keepdims=True) * 1e4)
    truth = targets[section][0]  # of the last section
    reached = np.mean([pearsonr(best[:, g], truth[:, g])[0] for g in range(20)])
    ceiling = np.nanmean(Ceilings(targets).of(section, np.arange(900))["pearson"])
    assert reached == pytest.approx(ceiling, abs=0.03)


def test_permuting_locations_changes_nothing():
    made = trial(1, 1)
    protocol = Expression(n_boot=0, n_genes=8, min_detected=0.05)
    before = protocol.run(Subject("half", Fixed([1])), made)
    order = np.random.default_rng(0).permutation(len(made.test[0].centres_um))
    section = made.test[0]
    section.centres_um, section.counts = section.centres_um[order], section.counts[order]
    after = protocol.run(Subject("half", Fixed([1])), replace(made))
    for a, b in zip(before, after, strict=True):
        assert a.value == pytest.approx(b.value, abs=1e-9) if a.value is not None else b.value is None


def test_a_section_of_one_location_has_undefined_correlations_and_an_error():
    made = trial(1, 1)
    made.test[0].__init__("one", made.test[0].patient, side=1)
    made.patients["one"] = made.test[0].patient
    rows = Expression(**QUICK).run(Subject("fake", FakeModel()), made)
    assert values(rows, "pearson", "per-section")["one"] is None
    assert values(rows, "mse", "per-section")["one"] > 0


# ---- the protocol


def test_genes_from_genes_needs_its_panel():
    made = trial(1, 1)
    with pytest.raises(ContractError, match="no core panel"):
        GenesFromGenes().run(Subject("ridge", CoreRidge()), made)
    with pytest.raises(ContractError, match="may have seen the genes"):
        GenesFromGenes(core=CORE).run(Subject("fake", FakeModel()), made)
    with pytest.raises(ContractError, match="no core panel"):
        Expression(**QUICK).run(Subject("ridge", CoreRidge()), made)


def test_a_panel_file_is_read_in_order_each_gene_once(tmp_path):
    path = tmp_path / "panel.txt"
    path.write_text("B A # two\n\nC\nA\n")
    assert read_panel(path) == ("B", "A", "C")
    path.write_text("# nothing\n")
    with pytest.raises(SourceError, match="no gene"):
        read_panel(path)
    with pytest.raises(SourceError, match="no such panel"):
        read_panel(tmp_path / "none.txt")


def test_a_learner_is_held_to_the_same_split_as_a_model():
    made = trial(1, 1)
    control = ShuffledPairs(FakeModel(trained_on=(made.test[0].id,)), made)
    with pytest.raises(SplitError, match="trained or chosen on it"):
        Expression(**QUICK).run(Subject("null", control), made)


def test_half_of_the_counts_know_more_than_a_noise_free_prediction_could():
    made = trial(2, 2)
    rows = expression_ceilings(GenesFromGenes(core=CORE, **QUICK), made, Truths(), None)
    found = {
        r.model: r
        for r in rows
        if (r.metric, r.aggregation, r.group) == ("spearman-depth-removed", "per-section", "all")
    }
    half, bound = found["half of the counts"], found["ceiling: counting noise"]
    assert (half.role, bound.role) == ("control", "ceiling")
    assert half.value > bound.value > 0
