"""`hest-benchmark` is the published protocol, its variants are what their names say, and no mean hides a gene."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench_fakes import FakeModel, FakeSection, trial
from support import needs_shared
from test_bench_her2st import StainTexture, tissue  # noqa: F401
from test_bench_her2st import trial as her2st_trial
from triglyph.bench.baselines import beside
from triglyph.bench.contracts import Subject
from triglyph.bench.expression import predictors
from triglyph.bench.expression.protocol import Expression
from triglyph.bench.features import Constant, Features
from triglyph.bench.hescape.expression import HescapeExpression
from triglyph.bench.hest.genes import variable_genes
from triglyph.bench.hest.protocol import (
    TRANSDUCTIVE_GENES,
    VARIANTS,
    HestAlphaCv,
    HestBenchmark,
    HestExactPca,
    HestIntercept,
    HestNoPca,
    HestTrainingGenes,
    with_variants,
)
from triglyph.bench.standing import standing
from triglyph.errors import ContractError, GeneError, RecipeError, SplitError

GENES = tuple(f"G{i:02d}" for i in range(5, 35))
ALL = (HestBenchmark, *VARIANTS)


class Wide(FakeModel):
    """The hidden state in 600 correlated features: enough for scikit-learn to approximate its PCA."""

    def embed(self, section, modality):
        state, present = super().embed(section, modality)
        rng = np.random.default_rng(11)
        mixed = np.nan_to_num(state) @ rng.normal(size=(state.shape[1], 600)) * np.linspace(0.1, 3, 600)
        own = np.random.default_rng([5, len(section.id), ord(section.id[-3])])
        values = mixed + 0.2 * own.normal(size=mixed.shape) + 4.0
        values[~present] = np.nan
        return values, present

    pooled = embed


def pick(rows, **wanted):
    return [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]


def one(rows, **wanted):
    found = pick(rows, **wanted)
    assert len(found) == 1, [(r.metric, r.aggregation, r.group, r.level) for r in found]
    return found[0]


def pooled(rows, metric="pearson"):
    return one(rows, metric=metric, aggregation="pooled", group="all")


def arrays(made, model, genes=GENES):
    """Features and log1p raw counts of both sides, without the package."""
    columns = [int(g[1:]) for g in genes]
    sides = []
    for side in (made.train, made.test):
        x, y = [], []
        for section in side:
            values, present = model.embed(section, "image")
            x.append(values[present])
            y.append(np.log1p(section.counts.toarray()[:, columns])[present])
        sides += [np.concatenate(x), np.concatenate(y)]
    return sides


def mean_pearson(guess, truth):
    return np.mean([np.corrcoef(guess[:, g], truth[:, g])[0, 1] for g in range(truth.shape[1])])


def test_the_protocol_equals_plain_scikit_learn():
    made, model = trial(train=2, test=2), Wide(absent=(3, 7))
    x, y, x_test, y_test = arrays(made, model)
    prepare = make_pipeline(StandardScaler(), PCA(n_components=64, random_state=1))
    scores = prepare.fit_transform(x)
    assert prepare[1]._fit_svd_solver == "randomized"
    ridge = Ridge(solver="lsqr", alpha=100 / (64 * 30), fit_intercept=False, max_iter=1000).fit(scores, y)
    expected = mean_pearson(ridge.predict(prepare.transform(x_test)), y_test)
    rows = HestBenchmark(genes=GENES, n_components=64).run(Subject("wide", model), made)
    row = pooled(rows)
    assert row.value == pytest.approx(expected, abs=1e-9)
    assert (row.n, row.n_genes, row.chance, row.level) == (len(x_test), 30, 0.0, "patient")
    assert 0.2 < row.value < 0.95
    assert row.ci_low < row.value < row.ci_high
    assert row.ci_unit == "spatial-block"


def test_alpha_of_the_published_protocol_is_a_hundred_over_components_times_genes():
    made, model = trial(train=2, test=1), Wide()
    x, y, _, _ = arrays(made, model, GENES[:25])
    scores = make_pipeline(StandardScaler(), PCA(256, random_state=1)).fit_transform(x)
    published = Ridge(solver="lsqr", alpha=0.0078125, fit_intercept=False, max_iter=1000)
    half = Ridge(solver="lsqr", alpha=2 * 0.0078125, fit_intercept=False, max_iter=1000)  # 25 genes, not 50
    assert not np.allclose(published.fit(scores, y).coef_, half.fit(scores, y).coef_, rtol=1e-7, atol=0)
    again = HestBenchmark(genes=GENES[:25], alpha=2 * 0.0078125).run(Subject("wide", model), made)
    rows = HestBenchmark(genes=GENES[:25]).run(Subject("wide", model), made)
    assert [r.value for r in rows] == [r.value for r in again]


def test_fewer_features_than_components_keep_all_of_them_and_count_in_alpha():
    made, model = trial(), FakeModel()
    x, y, x_test, y_test = arrays(made, model)
    prepare = make_pipeline(StandardScaler(), PCA(16, random_state=1))
    ridge = Ridge(solver="lsqr", alpha=100 / (16 * 30), fit_intercept=False, max_iter=1000)
    guess = ridge.fit(prepare.fit_transform(x), y).predict(prepare.transform(x_test))
    rows = HestBenchmark(genes=GENES).run(Subject("fake", model), made)
    assert pooled(rows).value == pytest.approx(mean_pearson(guess, y_test), abs=1e-9)


def prepared(variant, n_components):
    scale = StandardScaler()
    return {
        HestIntercept: make_pipeline(scale, PCA(n_components, random_state=1)),
        HestNoPca: make_pipeline(scale),
        HestExactPca: make_pipeline(scale, PCA(n_components, svd_solver="full")),
    }[variant]


@pytest.mark.parametrize(
    ("variant", "ridge", "components"),
    [
        (HestIntercept, Ridge(solver="lsqr", fit_intercept=True, max_iter=1000), 40),
        (HestNoPca, Ridge(solver="lsqr", fit_intercept=False, max_iter=1000), 600),
        (HestExactPca, Ridge(solver="cholesky", fit_intercept=False), 40),
    ],
)
def test_a_variant_is_what_its_name_says(variant, ridge, components):
    made, model = trial(), Wide()
    x, y, x_test, y_test = arrays(made, model)
    prepare = prepared(variant, 40)
    ridge = ridge.set_params(alpha=100 / (components * 30)).fit(prepare.fit_transform(x), y)
    expected = mean_pearson(ridge.predict(prepare.transform(x_test)), y_test)
    rows = variant(genes=GENES, n_components=40).run(Subject("wide", model), made)
    assert pooled(rows).value == pytest.approx(expected, abs=1e-8)


def test_many_locations_without_pca_are_solved_as_scikit_learn_would_stop_early():
    made, model = trial(train=4), FakeModel(noise=1.0)
    x, y, x_test, y_test = arrays(made, model)
    scale = StandardScaler().fit(x)
    alpha = 100 / (16 * 30)
    ridge, exact = (
        Ridge(alpha=alpha, solver=solver, fit_intercept=False, tol=0.03).fit(scale.transform(x), y)
        for solver in ("lsqr", "cholesky")
    )
    assert np.abs(ridge.coef_ - exact.coef_).max() > 1e-3
    rows = HestNoPca(genes=GENES, tol=0.03).run(Subject("fake", model), made)
    expected = mean_pearson(ridge.predict(scale.transform(x_test)), y_test)
    assert pooled(rows).value == pytest.approx(expected, abs=1e-10)


def test_alpha_by_inner_folds_is_that_of_brute_force_over_training_patients():
    made, model = trial(train=3, test=1), Wide(noise=1)
    x, y, _, _ = arrays(made, model)
    people = np.repeat([s.patient for s in made.train], 196)
    alphas = (1e-2, 1e2, 1e4, 1e6)
    scores = []
    for alpha in alphas:
        of = []
        for patient in np.unique(people):
            out = people == patient
            fit = make_pipeline(StandardScaler(), PCA(30, svd_solver="full"), Ridge(alpha=alpha)).fit(x[~out], y[~out])
            of.append(mean_pearson(fit.predict(x[out]), y[out]))
        scores.append(np.mean(of))
    best = alphas[int(np.argmax(scores))]
    protocol = HestAlphaCv(genes=GENES, n_components=30, alphas=alphas)
    assert protocol.alpha_by_patients(x, y, people) == best
    assert best not in (alphas[0], alphas[-1])
    rows = protocol.run(Subject("wide", model), made)
    fixed = HestBenchmark(genes=GENES, n_components=30, alpha=best).run(Subject("wide", model), made)
    assert [r.value for r in rows] == [r.value for r in fixed]


def test_alpha_is_chosen_between_patients_not_between_locations():
    rng = np.random.default_rng(0)
    people = np.repeat(["a", "b", "c", "d"], 150)
    shared = rng.normal(size=(600, 1))
    own = rng.normal(size=(600, 20))  # five features tell much of each patient, and nothing of the others
    told = np.kron(np.eye(4), np.ones((150, 5))) * own @ rng.choice([-1.0, 1.0], size=(20, 3))
    x = np.hstack([shared + 0.1 * rng.normal(size=(600, 10)), own])
    y = shared + told + 0.1 * rng.normal(size=(600, 3))
    protocol = HestAlphaCv(genes=GENES[:3], alphas=(1.0, 3e3))
    assert protocol.alpha_by_patients(x, y, people) == 3e3
    shuffled = np.random.default_rng(1).permutation(people)
    assert protocol.alpha_by_patients(x, y, shuffled) == 1.0


def test_alpha_is_never_chosen_by_test_sections():
    made, model = trial(train=3, test=1), Wide(noise=3)
    protocol = HestAlphaCv(genes=GENES, n_components=30)
    before = pooled(protocol.run(Subject("wide", model), made), "mse").value
    shuffled = replace(made, test=(*made.test, FakeSection("test9.0", "other", seed=3)))
    shuffled = replace(shuffled, patients={**made.patients, "test9.0": "other"})
    after = protocol.run(Subject("wide", model), shuffled)
    assert one(after, metric="mse", aggregation="per-section", group="test0.0").value == pytest.approx(before)


def test_with_one_training_patient_no_alpha_is_chosen_and_the_row_says_undefined(caplog):
    made = trial(train=1, test=1, sections_each=2)
    with caplog.at_level(logging.WARNING):
        rows = HestAlphaCv(genes=GENES).run(Subject("fake", FakeModel()), made)
    assert [(r.metric, r.value, r.aggregation) for r in rows] == [("pearson", None, "pooled")]
    assert "one training patient" in caplog.text
    assert pooled(HestBenchmark(genes=GENES).run(Subject("fake", FakeModel()), made)).value > 0.3


def test_every_row_set_has_its_own_name_and_digest_and_shares_the_given_constants():
    protocols = with_variants(HestBenchmark(genes=GENES, block_um=750.0, pca_seed=4))
    assert [type(p) for p in protocols] == list(ALL)
    assert len({p.stamp for p in protocols}) == len(ALL) == len({p.name for p in protocols})
    assert all(p.stamp.startswith(f"{p.name}/2/") for p in protocols)
    assert {p.block_um for p in protocols} == {750.0}
    assert {p.pca_seed for p in protocols} == {4}
    assert [p.genes for p in protocols] == [GENES] * 5 + [()]
    assert protocols[2].fit_intercept
    assert protocols[3].pca == "none"
    assert with_variants(HestNoPca()) == [HestNoPca()]
    assert "0.0" not in HestBenchmark().card().fitted["ridge"]


@pytest.mark.parametrize("variant", ALL)
def test_rows_carry_their_protocol_and_refuse_what_was_trained_on(variant):
    made, subject = trial(), Subject("fake", FakeModel())
    protocol = variant()
    rows = protocol.run(subject, made)
    assert rows == protocol.run(subject, made)
    assert {r.protocol for r in rows} == {protocol.stamp}
    assert {"pooled", "per-gene", "per-section", "per-patient"} == {r.aggregation for r in rows}
    assert set(protocol.card().constants) == set(variant.model_fields)
    assert set(protocol.card().aggregations) == {r.aggregation for r in rows}
    assert set(protocol.card().metrics) == {r.metric for r in rows}
    with pytest.raises(SplitError, match="trained or chosen on it"):
        protocol.run(Subject("fake", FakeModel(trained_on=(made.test[0].id,))), made)


# ---- genes


def spoilt(made):
    """The same trial, with genes that only a test section finds variable."""
    counts = made.test[0].counts.toarray()
    counts[::9, ::2] *= 30
    made.test[0].counts = sp.csr_matrix(counts)
    return made


def candidates(sections):
    """Names of the genes, and raw counts of all locations as a table."""
    common, tables = None, []
    for section in sections:
        table = pd.DataFrame(section.counts.toarray(), columns=[f"G{i:02d}" for i in range(section.genes)])
        tables.append(table)
        names = set(table.columns[(table > 0).sum() >= np.ceil(0.1 * len(table))])
        common = names if common is None else common & names
    return pd.concat(tables, ignore_index=True)[sorted(common)]


def test_genes_are_those_of_the_published_formula():
    made = trial(genes=120)
    counts = candidates([*made.train, *made.test])
    dispersion = np.log(counts.var(ddof=1) / counts.mean())
    grouped = dispersion.groupby(pd.cut(np.log1p(counts.mean()), bins=20), observed=True)
    score = ((dispersion - grouped.transform("mean")) / grouped.transform("std")).fillna(1.0)
    expected = tuple(sorted(score.nlargest(25).index))
    assert (grouped.transform("size") == 1).any()
    assert HestBenchmark(n_genes=25).chosen_genes(made) == expected


@pytest.mark.slow  # scanpy takes half a minute to import and compile
def test_genes_are_those_of_scanpy():
    import anndata as ad
    import scanpy as sc

    for seed in range(3):
        made = trial(genes=120, seed=seed)
        table = ad.AnnData(candidates([*made.train, *made.test]).astype(np.float32).rename(index=str))
        sc.pp.log1p(table)
        sc.pp.highly_variable_genes(table, n_top_genes=25)
        expected = tuple(table.var_names[table.var["highly_variable"]][:25])
        assert HestBenchmark(n_genes=25).chosen_genes(made) == expected


def test_genes_of_all_samples_see_the_test_set_and_every_row_says_so():
    made = spoilt(trial())
    assert HestBenchmark(n_genes=8).chosen_genes(trial()) != HestBenchmark(n_genes=8).chosen_genes(made)
    rows = HestBenchmark(n_genes=8).run(Subject("fake", FakeModel()), made)
    assert {r.transductive for r in rows} == {(TRANSDUCTIVE_GENES,)}


def test_genes_of_training_do_not_depend_on_the_test_sections():
    training = HestTrainingGenes(n_genes=8)
    assert training.chosen_genes(trial()) == training.chosen_genes(spoilt(trial()))
    assert {r.transductive for r in training.run(Subject("fake", FakeModel()), trial())} == {()}
    made = trial()
    made.test[0].measured = np.array([f"G{i:02d}" != training.chosen_genes(trial())[0] for i in range(40)])
    assert training.chosen_genes(trial())[0] not in training.chosen_genes(made)


def test_control_probes_and_genes_seen_too_seldom_in_any_section_are_no_candidates(caplog):
    class Named(FakeSection):
        def expression(self):
            counts, symbols, ids, measured = super().expression()
            return counts, ("BLANK_0001", "NegControlProbe", *symbols[2:]), ids, measured

    sections = [Named(f"s{i}", f"p{i}") for i in range(2)]
    counts = sections[1].counts.tolil()
    counts[:, 30] = 0
    counts[:19, 30] = 1  # 19 of 196 is under a tenth, 20 is not
    counts[:, 31] = 0
    counts[:20, 31] = 1
    sections[1].counts = counts.tocsr()
    genes = variable_genes(sections, n_genes=40, min_detected=0.1)
    assert "G30" not in genes
    assert "G31" in genes
    assert not any("BLANK" in g or "Control" in g for g in genes)
    assert "not 40" in caplog.text
    with pytest.raises(GeneError, match="no gene is seen"):
        variable_genes(sections, n_genes=40, min_detected=1.1)


def test_genes_are_given_as_a_list_or_as_the_file_of_the_benchmark(tmp_path):
    path = tmp_path / "var_50genes.json"
    path.write_text(json.dumps({"genes": list(GENES)}))
    protocol = HestBenchmark.configured({"genes": str(path)})
    assert protocol == HestBenchmark(genes=GENES)
    assert protocol.card().constants["genes"] == list(GENES)
    path.write_text("[1]")
    with pytest.raises(GeneError, match="not a list of genes"):
        HestBenchmark.configured({"genes": path})
    with pytest.raises(GeneError, match="does not measure: X1"):
        HestBenchmark(genes=("G01", "X1")).run(Subject("fake", FakeModel()), trial())
    made = trial()
    made.test[0].measured = np.array([i != 5 for i in range(40)])
    with pytest.raises(GeneError, match="does not measure: G05"):
        HestBenchmark(genes=GENES).run(Subject("fake", FakeModel()), made)
    with pytest.raises(RecipeError, match="given twice"):
        HestBenchmark.configured({"genes": ["G01", "G01"]})
    with pytest.raises(RecipeError, match="must be given"):
        HestBenchmark.configured({"genes_chosen_on": "elsewhere"})
    with pytest.raises(RecipeError, match="above 0"):
        HestBenchmark.configured({"alpha": 0.0})


def test_a_given_list_counts_as_having_seen_the_test_set_unless_it_is_said_otherwise():
    assert HestBenchmark(genes=GENES).card().transductive == (TRANSDUCTIVE_GENES,)
    assert HestBenchmark(genes=GENES, genes_chosen_on="elsewhere").card().transductive == ()


# ---- what stands beside


class Stain(Features):
    """Seven features, of which the first stands for haematoxylin."""

    def features(self, section):
        return section.state[:, :7], np.ones(len(section.state), bool)


def test_every_protocol_of_expression_has_every_baseline_and_lays_two_sections_onto_each_other_once(monkeypatch):
    made = trial(train=2, test=2, side=10)
    copy, other = made.test
    copy.state, copy.counts = made.train[0].state, made.train[0].counts
    copy.patient = made.patients[copy.id] = made.train[0].patient
    for section in (*made.train, *made.test):
        section.info = SimpleNamespace(block="one")
    laid, reached = [], []
    monkeypatch.setattr(predictors, "place", lambda xy, _, **onto: laid.append(onto) or xy)
    subject, stain = Subject("fake", FakeModel(), seed=3), Stain()
    protocols = [p(n_genes=20, n_boot=5) for p in (HestBenchmark, HestIntercept, HescapeExpression, Expression)]
    for protocol in protocols:
        rows = [r for s in beside(protocol, made, subject, stain) for r in protocol.run(s, made)]
        found = {r.model: r for r in rows if r.metric == "pearson" and r.aggregation == "per-section"}
        roles = {name.removeprefix("fake: "): found[name].role for name in found if not name.endswith("alignment")}
        assert set(roles) == set(standing(protocol)["baselines and controls"])
        assert {name for name in roles if roles[name] == "control"} == {"shuffled pairs"}
        assert {"mean", "library size", "position", "position, aligned", "haematoxylin mean", "stain-texture"} < set(
            roles
        )
        aligned = pick(rows, model="position, aligned", metric="pearson", aggregation="per-section")
        assert {r.group: r.level for r in aligned} == {copy.id: "within-patient", "all": "within-patient"}
        assert aligned[0].value == pytest.approx(1.0)  # a copy that lies as its original
        null = pick(rows, model="fake: shuffled pairs", metric="pearson", aggregation="per-section", group=other.id)
        truth = pick(protocol.run(subject, made), model="fake", metric="pearson", group=other.id)
        reached.append((abs(null[0].value), truth[0].value))
        assert (null[0].ci_low, null[0].seed) == (None, 3)
    null, truth = np.mean(reached, axis=0)
    assert null < truth / 2
    assert len(laid) == 1
    unfit = Subject("counts", FakeModel(modalities=("expression",)))
    assert "counts: shuffled pairs" not in {s.name for s in beside(protocols[0], made, unfit, stain)}


# ---- rows


def test_errors_and_r2_are_of_a_prediction_with_an_intercept():
    made, model = trial(test=2), FakeModel(noise=1.0)
    x, y, x_test, y_test = arrays(made, model)
    fit = make_pipeline(StandardScaler(), Ridge(alpha=100 / (16 * 30), tol=1e-12)).fit(x, y)
    error = (fit.predict(x_test) - y_test) ** 2
    rows = HestExactPca(genes=GENES).run(Subject("fake", model), made)
    assert pooled(rows, "mse").value == pytest.approx(error.mean())
    r2 = 1 - error.mean(0) / y_test.var(0)
    assert pooled(rows, "r2-test-mean").value == pytest.approx(r2.mean())
    skill = 1 - error.mean(0) / ((y_test - y.mean(0)) ** 2).mean(0)
    assert pooled(rows, "r2-training-mean").value == pytest.approx(skill.mean())
    assert 0 < r2.mean() < skill.mean() < 1
    for metric in ("mse", "r2-test-mean", "r2-training-mean"):
        row = pooled(rows, metric)
        assert row.ci_low < row.value < row.ci_high
    for gene, column in (("G05", 0), ("G20", 15)):
        r = np.corrcoef(fit.predict(x_test)[:, column], y_test[:, column])[0, 1]
        assert one(rows, aggregation="per-gene", group=gene).value == pytest.approx(r)


def test_pearson_within_sections_stands_beside_the_pooled_one_and_is_another_number():
    made, model = trial(test=3), FakeModel(noise=1.0)
    for i, section in enumerate(made.test):  # depth differs between sections: pooling is rewarded for it
        section.counts = section.counts * (1 + 3 * i)
    rows = HestExactPca(genes=GENES).run(Subject("fake", model), made)
    x, y, _, _ = arrays(made, model)
    fit = make_pipeline(StandardScaler(), Ridge(alpha=100 / (16 * 30))).fit(x, y)
    of = []
    for section in made.test:
        truth = np.log1p(section.counts.toarray()[:, 5:35])
        of.append(mean_pearson(fit.predict(model.embed(section, "image")[0]), truth))
        row = one(rows, metric="pearson", aggregation="per-section", group=section.id)
        assert row.value == pytest.approx(of[-1])
    assert one(rows, metric="pearson", aggregation="per-section", group="all").value == pytest.approx(np.mean(of))
    assert abs(pooled(rows).value - np.mean(of)) > 0.01


def test_a_constant_gene_is_counted_and_poisons_the_mean_in_the_release_alone():
    made = trial(test=1)
    counts = made.test[0].counts.toarray()
    counts[:, 10] = 0
    made.test[0].counts = sp.csr_matrix(counts)
    subject = Subject("fake", FakeModel())
    rows = HestBenchmark(genes=GENES).run(subject, made)
    assert pooled(rows).n_genes == 29
    assert pooled(rows, "genes-undefined").value == 1
    assert one(rows, aggregation="per-gene", group="G10").value is None
    without = HestBenchmark(genes=tuple(g for g in GENES if g != "G10"), alpha=100 / (16 * 30)).run(subject, made)
    assert pooled(rows).value == pytest.approx(pooled(without).value, abs=1e-6)
    release = HestBenchmark(genes=GENES, compat="release").run(subject, made)
    assert (pooled(release).value, pooled(release).ci_low, pooled(release).compat) == (None, None, "release")
    assert pooled(release, "mse").value == pooled(rows, "mse").value


def test_features_that_say_nothing_give_no_correlation_and_the_error_of_the_training_mean():
    made = trial()
    _, y, _, y_test = arrays(made, FakeModel())
    for variant in ALL:
        rows = variant(genes=GENES).run(Subject("mean", Constant(), role="baseline"), made)
        if variant is not HestTrainingGenes:
            assert pooled(rows).value is None
            assert pooled(rows, "mse").value == pytest.approx(((y.mean(0) - y_test) ** 2).mean())
            assert pooled(rows, "r2-training-mean").value == pytest.approx(0, abs=1e-9)


def test_pooled_rows_keep_levels_apart_and_draw_patients_from_six_on():
    made = trial(test=6)
    again = FakeSection("again", made.train[0].patient)
    made = replace(made, test=(*made.test, again), patients={**made.patients, "again": again.patient})
    rows = pick(
        HestBenchmark(genes=GENES).run(Subject("fake", FakeModel()), made), metric="pearson", aggregation="pooled"
    )
    assert {(r.level, r.n, r.ci_unit, r.n_units == 6) for r in rows} == {
        ("patient", 6 * 196, "patient", True),
        ("within-patient", 196, "spatial-block", False),
    }


def test_sections_of_one_location_or_none_are_in_the_open():
    made = trial(test=3)

    class Sparse(FakeModel):
        def embed(self, section, modality):
            values, present = super().embed(section, modality)
            if section.id.startswith("test1"):
                present[1:] = False
            if section.id.startswith("test2"):
                present[:] = False
            return values, present

    rows = HestBenchmark(genes=GENES).run(Subject("sparse", Sparse()), made)
    assert one(rows, metric="pearson", aggregation="per-section", group="test1.0").value is None
    assert one(rows, metric="mse", aggregation="per-section", group="test1.0").value > 0
    assert not pick(rows, group="test2.0")
    assert pooled(rows).n == 197
    nothing = FakeModel(absent=range(196))
    with pytest.raises(ContractError, match="fewer than two training locations"):
        HestBenchmark(genes=GENES).run(Subject("nothing", nothing), made)
    with pytest.raises(ContractError, match="has no image"):
        HestBenchmark(genes=GENES).run(Subject("text", FakeModel(modalities=("text",))), made)


# ---- real tissue


@needs_shared
def test_on_real_tissue_the_protocol_equals_plain_scikit_learn(tissue):  # noqa: F811
    made = her2st_trial(tissue, ("C2", "C3"), ("C4", "B4"))
    rows = HestBenchmark(n_genes=50).run(Subject("stain-texture", StainTexture()), made)
    genes = HestBenchmark(n_genes=50).chosen_genes(made)
    sides = {}
    for side, names in (("train", ("C2", "C3")), ("C4", ("C4",)), ("B4", ("B4",))):
        x = np.concatenate([tissue[s].features for s in names])
        y = [np.log1p(tissue[s].counts.toarray()[:, [tissue[s].symbols.index(g) for g in genes]]) for s in names]
        sides[side] = x, np.concatenate(y)
    prepare = make_pipeline(StandardScaler(), PCA(52, random_state=1))
    ridge = Ridge(solver="lsqr", alpha=100 / (52 * 50), fit_intercept=False, max_iter=1000)
    ridge.fit(prepare.fit_transform(sides["train"][0]), sides["train"][1])
    for section, level in (("C4", "within-patient"), ("B4", "patient")):
        x, y = sides[section]
        row = one(rows, metric="pearson", aggregation="pooled", level=level)
        assert row.value == pytest.approx(mean_pearson(ridge.predict(prepare.transform(x)), y), abs=1e-6)
