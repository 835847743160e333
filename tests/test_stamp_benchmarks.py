"""Stamp's evaluations: a probe and clusters of annotated tissue, and expression by two metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, balanced_accuracy_score, f1_score

from bench_fakes import FakeModel, FakeSection
from bench_fakes import trial as fake_trial
from test_annotated_visium import dlpfc, hbc
from triglyph.bench.ceilings.rows import ceiling_rows
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.labels.clustering import Clustering
from triglyph.bench.labels.labelled import LabelProtocol
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.parts import divided
from triglyph.bench.registry import protocol
from triglyph.bench.stamp.published import TISSUE
from triglyph.bench.stamp.tissue import LAYERS, WHOLE, weighted_f1
from triglyph.cli import main
from triglyph.errors import ContractError, SplitError
from triglyph.metrics.bootstrap import Resamples
from triglyph.metrics.result import read_results
from triglyph.tissue.readers import annotated_visium

IN_LAYERS = dict(zip(("fat", "gland", "stroma"), ("L1", "L4", "WM"), strict=True))


def layered(made: Trial) -> Trial:
    for section in (*made.train, *made.test):
        section.labels = np.array([IN_LAYERS.get(label, label) for label in section.labels], dtype=object)
    return made


def pick(rows, **wanted):
    return [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]


def one(rows, **wanted):
    found = pick(rows, **wanted)
    assert len(found) == 1, [(r.metric, r.aggregation, r.group, r.level) for r in found]
    return found[0]


# ---- weighted F1


@pytest.mark.parametrize("seed", range(4))
def test_weighted_f1_is_that_of_scikit_learn_and_its_draws_surround_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(["a", "b", "c"], 90, p=[0.7, 0.25, 0.05])
    predicted = np.where(rng.random(90) < 0.6, labels, rng.choice(["a", "b", "c", "d"], 90))
    drawn = Resamples(np.arange(90) // 10, n_boot=400, seed=seed)
    found = weighted_f1(labels, predicted, ("a", "b", "c", "d"), drawn=drawn)
    wanted = f1_score(labels, predicted, average="weighted", zero_division=0)
    assert found.value == pytest.approx(wanted)
    assert found.draws.mean() == pytest.approx(wanted, abs=0.05)
    assert found.n == 90


def test_a_class_that_training_lacks_weighs_nothing() -> None:
    labels, drawn = np.array(["a", "a", "b", "new"]), Resamples(np.arange(4), n_boot=5)
    found = weighted_f1(labels, np.array(["a", "b", "b", "a"]), ("a", "b"), drawn=drawn)
    assert (found.value, found.n) == (pytest.approx(f1_score(["a", "a", "b"], ["a", "b", "b"], average="weighted")), 3)
    none = weighted_f1(np.array(["new"] * 4), np.array(["a"] * 4), ("a", "b"), drawn=drawn)
    assert np.isnan(none.value)
    assert none.n == 0


# ---- tissue


def test_the_probe_and_the_clusters_are_those_of_their_own_protocols() -> None:
    made, subject = layered(fake_trial(train=3, test=2)), Subject("fake", FakeModel())
    rows = protocol("stamp-dlpfc").run(subject, made)
    probe, clusters = LinearProbe().run(subject, made), Clustering(resolutions=()).run(subject, made)
    for found, metrics in ((probe, ["balanced-accuracy"]), (clusters, ["ari", "ari:sd", "nmi"])):
        for metric in metrics:
            theirs = [(r.task, r.group, r.aggregation, r.value, r.ci_low, r.chance) for r in pick(found, metric=metric)]
            ours = [(r.task, r.group, r.aggregation, r.value, r.ci_low, r.chance) for r in pick(rows, metric=metric)]
            assert ours == theirs
    assert {r.metric for r in rows} == {"balanced-accuracy", "weighted-f1", "ari", "ari:sd", "nmi"}
    assert {r.protocol for r in rows} == {protocol("stamp-dlpfc").stamp}
    assert {r.level for r in rows} == {"patient"}
    f1 = one(rows, metric="weighted-f1", aggregation="per-section", group=made.test[0].id)
    assert f1.ci_low <= f1.value <= f1.ci_high


def test_values_are_those_of_scikit_learn_on_each_section() -> None:
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    made, model = layered(fake_trial(train=2, test=1)), FakeModel()
    rows = protocol("stamp-dlpfc", {"modality": "expression", "n_starts": 3}).run(Subject("fake", model), made)
    x = np.concatenate([model.embed(s, "expression")[0] for s in made.train])
    y = np.concatenate([s.labels for s in made.train]).astype(str)
    (test,) = made.test
    new, truth = model.embed(test, "expression")[0], test.labels.astype(str)
    scale = StandardScaler().fit(x)
    said = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000).fit(scale.transform(x), y)
    predicted = said.predict(scale.transform(new))
    of = {"aggregation": "per-section", "group": test.id}
    assert one(rows, metric="balanced-accuracy", **of).value == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert one(rows, metric="weighted-f1", **of).value == pytest.approx(f1_score(truth, predicted, average="weighted"))
    k = [KMeans(3, n_init=1, random_state=s).fit_predict(new) for s in range(3)]
    ari = np.mean([adjusted_rand_score(truth, found) for found in k])
    assert one(rows, metric="ari", **of).value == pytest.approx(ari, abs=1e-6)
    assert {r.direction for r in rows} == {"expression->label"}


def test_layers_are_asked_for_and_anything_else_is_refused() -> None:
    assert LAYERS == annotated_visium.LAYERS
    with pytest.raises(ContractError, match="asks for the layers L1, .* and there is 'fat'"):
        protocol("stamp-dlpfc").run(Subject("fake", FakeModel()), fake_trial())
    made = layered(fake_trial())
    with pytest.raises(SplitError, match="trained or chosen on it"):
        protocol("stamp-dlpfc").run(Subject("fake", FakeModel(trained_on=(made.test[0].id,))), made)


def halves(section: FakeSection) -> tuple:
    names = [f"b{i}" for i, x in enumerate(section.centres_um[:, 1]) if x < 1400]
    return divided(section, names, where="made")


def test_within_one_section_the_probe_sees_a_part_and_clusters_the_whole() -> None:
    section, subject = FakeSection("only", "p"), Subject("fake", FakeModel())
    train, test = halves(section)
    made = Trial(train=(train,), test=(test,), patients={"only": "p"}, split="halves")
    rows = protocol("stamp-hbc").run(subject, made)
    assert {r.level for r in rows} == {"within-section"}
    whole = Clustering(resolutions=()).run(subject, Trial((), (section,), {"only": "p"}, "whole"))
    for metric in ("ari", "nmi"):
        of = {"metric": metric, "aggregation": "per-section", "group": "only"}
        assert one(rows, **of).value == one(whole, **of).value
        assert one(rows, **of).n == 196
        assert WHOLE in one(rows, **of).transductive
    probed = one(rows, metric="balanced-accuracy", aggregation="per-section", group="only")
    assert probed.n == len(test.rows) < 196
    assert WHOLE not in probed.transductive
    # What is trained on is nothing to the clusters.
    turned = replace(made, train=(replace(train, rows=train.rows[::2]),))
    of = {"metric": "ari", "aggregation": "per-section", "group": "only"}
    assert one(protocol("stamp-hbc").run(subject, turned), **of) == one(rows, **of)


def test_classes_too_small_to_be_found_are_probed_and_not_clustered() -> None:
    made = layered(fake_trial(train=2, test=1))
    for section in (*made.train, *made.test):
        section.labels[:4] = "L6"
    rows = protocol("stamp-dlpfc", {"min_clustered": 10}).run(Subject("fake", FakeModel()), made)
    of = {"aggregation": "per-section", "group": made.test[0].id}
    assert (one(rows, metric="ari", **of).n, one(rows, metric="weighted-f1", **of).n) == (192, 196)


def test_cards_say_what_the_paper_leaves_open_and_what_is_chosen() -> None:
    for name in ("stamp-dlpfc", "stamp-hbc"):
        card = protocol(name).card()
        assert set(card.constants) == set(type(protocol(name)).model_fields)
        assert {"balanced-accuracy", "weighted-f1", "ari", "nmi"} <= set(card.metrics)
        assert "without their labels" in card.fitted["clusters"]
        assert "not published, and are chosen here" in card.citation
    assert issubclass(type(protocol("stamp-hbc")), LabelProtocol)
    assert protocol("stamp-hbc").stamp != protocol("stamp-hbc", {"c": 1.0}).stamp


# ---- published


def test_published_rows_stand_only_at_the_declared_constants_and_claim_the_least() -> None:
    rows = protocol("stamp-dlpfc").published("donors")
    assert len(rows) == 16
    assert one(rows, model="Stamp_F, published", metric="balanced-accuracy").value == 0.721
    assert one(rows, model="Stamp_G, published", metric="ari").value == 0.369
    assert {(r.source, r.level, r.aggregation, r.chance) for r in rows} == {
        ("published", "within-section", "as published", None)
    }
    assert all("not known" in r.transductive[0] for r in rows)
    assert all(len(r.transductive) == 2 for r in rows if r.model.startswith("Stamp"))
    breast = protocol("stamp-hbc").published("folds")
    assert one(breast, model="UNI, published", metric="ari").value == 0.499
    assert one(breast, model="Stamp_F, published", metric="balanced-accuracy").direction == "fused->label"
    assert {model.removesuffix(", published") for model in {r.model for r in breast}} == set(TISSUE)
    # What is read is no constant; anything else is another protocol, which nobody has published.
    assert protocol("stamp-dlpfc", {"modality": "expression"}).published("donors") == rows
    for changed in ({"c": 1.0}, {"n_starts": 5}, {"seed": 1}, {"features": "pooled"}, {"variant": "A"}):
        assert protocol("stamp-dlpfc", changed).published("donors") == []
    expression = protocol("stamp-expression").published("held-out")
    assert [(r.aggregation, r.metric, r.value) for r in expression if r.model == "ST-Net, published"] == [
        ("as published, PSC", "mse", 0.330),
        ("as published, PSC", "pcc-v", 0.110),
        ("as published, HHK", "mse", 1.357),
        ("as published, HER2+", "mse", 1.190),
    ]
    assert protocol("stamp-expression", {"n_genes": 250}).published("held-out") == []


# ---- expression


def test_pcc_v_is_the_correlation_over_the_genes_that_vary_most_in_training() -> None:
    made, subject = fake_trial(train=3, test=2), Subject("fake", FakeModel())
    rows = protocol("stamp-expression", {"n_genes": 10}).run(subject, made)
    theirs = protocol("expression", {"n_genes": 10}).run(subject, made)
    of = {"aggregation": "per-patient", "group": "all"}
    assert one(rows, metric="pcc-v", **of).value == one(theirs, metric="pearson", **of).value
    assert one(rows, metric="pcc-v", **of).ci_low == one(theirs, metric="pearson", **of).ci_low
    assert one(rows, metric="mse", **of).value == one(theirs, metric="mse", **of).value
    assert {r.metric for r in rows if r.aggregation != "per-gene"} == {
        "pcc-v",
        "mse",
        "genes-undefined",
        "genes-constant",
    }
    genes = pick(rows, aggregation="per-gene")
    assert len(genes) == 10
    assert {r.metric for r in genes} == {"pearson"}
    logged = np.concatenate([s.counts.toarray() / s.counts.sum(axis=1).A for s in made.train])
    highest = np.argsort(-np.log1p(1e4 * logged).var(axis=0), kind="stable")[:10]
    assert {r.group for r in genes} == {f"G{i:02d}" for i in highest}
    assert "our definition, theirs is not published" in protocol("stamp-expression").card().metrics["pcc-v"]


def test_the_ceiling_of_counting_noise_goes_by_the_same_name() -> None:
    rows = ceiling_rows(protocol("stamp-expression", {"n_genes": 10}), fake_trial(), FakeModel())
    assert {r.metric for r in rows} == {"pcc-v"}
    assert {r.role for r in rows} == {"ceiling"}


# ---- from folders of vendors to a table


def judged(*arguments: object) -> int:
    return main(["bench", "run", *map(str, arguments), "--quiet"])


def test_donors_are_held_out_from_read_to_table(tmp_path: Path) -> None:
    cohort, out = tmp_path / "cohort", tmp_path / "out"
    assert main(["read", str(dlpfc(tmp_path / "in")), "--platform", "dlpfc", "--out", str(cohort)]) == 0
    assert main(["split", str(cohort), "--name", "donors", "--leave-one-out"]) == 0
    given = ["--cohort", cohort, "--split", "donors", "--embedding", "expression-pca-50"]
    assert judged("stamp-dlpfc", *given, "--set", "modality=expression", "--out", out) == 0
    rows = read_results(out)
    mine = pick(rows, model="expression-pca-50")
    assert {r.level for r in mine} == {"patient"}
    assert {r.group for r in mine if r.aggregation == "per-patient"} == {"Br5292", "Br8100", "all"}
    assert {"balanced-accuracy", "weighted-f1", "ari", "nmi"} <= {r.metric for r in mine}
    assert any(r.aggregation == "patients of all folds" and r.metric == "weighted-f1" for r in mine)
    assert pick(rows, model="library size")
    # Of these layers one alone has ten spots: there is nothing to agree with.
    assert {r.value for r in mine if r.metric == "ari"} == {None}
    assert one(rows, model="Stamp_G, published", metric="ari", fold="").value == 0.369
    assert "Stamp_F, published" in (out / "table.md").read_text()


def test_one_section_of_breast_cancer_is_judged_within(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    assert main(["read", str(hbc(tmp_path / "in")), "--platform", "hbc", "--out", str(cohort)]) == 0
    assert main(["split", str(cohort), "--name", "near", "--within-section", "random", "--share", "0.4"]) == 0
    given = ["stamp-hbc", "--cohort", cohort, "--split", "near", "--embedding", "expression-pca-50"]
    refused = judged(*given, "--set", "modality=expression", "--out", tmp_path / "refused")
    assert refused != 0  # test spots touch training spots
    out = tmp_path / "out"
    allowed = [*given, "--set", "modality=expression", "--allow", "neighbours-on-both-sides"]
    assert judged(*allowed, "--out", out) == 0
    mine = pick(read_results(out), model="expression-pca-50")
    assert {r.level for r in mine} == {"within-section"}
    assert one(mine, metric="ari", aggregation="per-section", group="all").n == 56
