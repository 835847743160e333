"""Protocols on sections and models of numpy: right against plain formulas, honest about who was seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bench_fakes import CLASSES, EMBEDDINGS, FakeModel, FakeSection, RandomModel, trial
from triglyph.apply.prompts import Prompts
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.expression.protocol import Expression
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.labels.zero_shot import ZeroShot
from triglyph.bench.registry import parse_options, protocol
from triglyph.bench.retrieval import Retrieval
from triglyph.errors import ContractError, GeneError, RecipeError, SplitError
from triglyph.metrics.result import as_frame, write_results


def pick(rows, **wanted):
    return [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]


def one(rows, **wanted):
    found = pick(rows, **wanted)
    assert len(found) == 1, [(r.aggregation, r.group, r.level) for r in found]
    return found[0]


# ---- every protocol


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_rows_are_whole_write_to_disk_and_are_the_same_when_judged_again(name, tmp_path):
    made, subject = trial(), Subject("fake", FakeModel())
    rows = protocol(name).run(subject, made)
    assert rows == protocol(name).run(subject, made)
    assert {r.role for r in rows} == {"method"}
    assert {r.level for r in rows} == {"patient"}
    assert all(r.protocol == protocol(name).stamp and r.split == "made" for r in rows)
    assert {"per-section", "per-patient"} <= {r.aggregation for r in rows}
    write_results(rows, tmp_path)
    assert as_frame(rows).height == len(rows)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_test_section_that_was_trained_on_is_refused(name):
    made = trial()
    with pytest.raises(SplitError, match="trained or chosen on it"):
        protocol(name).run(Subject("fake", FakeModel(trained_on=(made.test[0].id,))), made)
    with pytest.raises(SplitError, match="trained or chosen on it"):
        protocol(name).run(Subject("fake", FakeModel()), replace(made, val=(made.test[1].id,)))
    with pytest.raises(SplitError, match="no section to test"):
        protocol(name).run(Subject("fake", FakeModel()), replace(made, test=()))


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_sections_of_trained_patients_are_stamped_and_never_averaged_with_others(name):
    made = trial(test=1)
    again = FakeSection("again", made.train[0].patient)
    mixed = replace(made, test=(*made.test, again), patients={**made.patients, "again": again.patient})
    rows = protocol(name).run(Subject("fake", FakeModel()), mixed)
    for r in rows:
        if r.group == "again":
            assert r.level == "within-patient"
        if r.group == made.test[0].id:
            assert r.level == "patient"
    both = pick(rows, group="all", metric=rows[0].metric, direction=rows[0].direction, aggregation="per-section")
    assert sorted(r.level for r in both) == ["patient", "within-patient"]


def test_patients_that_a_model_saw_in_another_cohort_count_as_seen():
    made = trial()
    subject = Subject("fake", FakeModel(trained_on=("elsewhere",)), training_patients=(made.test[0].patient,))
    assert made.levels(subject) == {made.test[0].id: "within-patient", made.test[1].id: "patient"}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_the_card_freezes_every_constant_and_its_digest_is_in_every_row(name):
    first, second = protocol(name), protocol(name, {"block_um": 750.0})
    assert first.stamp != second.stamp
    assert first.card().constants["block_um"] == 1000.0
    assert set(first.card().constants) == set(type(first).model_fields)


def test_few_patients_give_blocks_of_tissue_and_six_give_patients():
    few = Retrieval().run(Subject("fake", FakeModel()), trial(test=2, sections_each=2))
    assert {r.ci_unit for r in pick(few, metric="recall@10", direction="image->expression")} == {"spatial-block"}
    many = Retrieval().run(Subject("fake", FakeModel()), trial(test=6, sections_each=2))
    for aggregation in ("per-section", "per-patient"):
        row = one(many, metric="recall@10", direction="image->expression", aggregation=aggregation, group="all")
        assert (row.ci_unit, row.n_units) == ("patient", 6)
        assert row.ci_low <= row.value <= row.ci_high
    single = one(many, metric="recall@10", direction="image->expression", group="test0.0")
    assert single.ci_unit == "spatial-block"


def test_every_patient_has_a_row_and_patients_weigh_alike():
    made = trial(test=2)
    extra = FakeSection("more", made.test[0].patient, seed=5)
    made = replace(made, test=(*made.test, extra), patients={**made.patients, "more": extra.patient})
    rows = pick(Retrieval().run(Subject("f", FakeModel(noise=2)), made), metric="recall@5", direction="image->text")
    value = {r.group: r.value for r in rows if r.group != "all"}
    first = np.mean([value["test0.0"], value["more"]])
    assert value[made.test[0].patient] == pytest.approx(first)
    whole = one(rows, aggregation="per-patient", group="all")
    assert whole.value == pytest.approx((first + value["test1.0"]) / 2)
    sections = one(rows, aggregation="per-section", group="all")
    assert sections.value == pytest.approx(np.mean([value[s.id] for s in made.test]))


# ---- retrieval


def test_retrieval_equals_brute_force_over_the_full_gallery_in_every_direction():
    made, model = trial(test=2), FakeModel(noise=1.5, absent=(3, 50))
    rows = Retrieval().run(Subject("fake", model), made)
    assert {r.direction for r in rows} == {f"{a}->{b}" for a in model.modalities for b in model.modalities if a != b}
    for section in made.test:
        for source, target in (("image", "expression"), ("text", "image")):
            a, there = model.embed(section, source)
            b, _ = model.embed(section, target)
            scores = a[there] @ b[there].T
            ranks = (scores >= np.diag(scores)[:, None]).sum(axis=1)
            of = pick(rows, group=section.id, direction=f"{source}->{target}")
            for k in (1, 5, 10):
                row = one(of, metric=f"recall@{k}")
                assert row.value == pytest.approx((ranks <= k).mean())
                assert row.n == row.n_gallery == there.sum() == 194
                assert row.chance == pytest.approx(k / 194)
            assert one(of, metric="median-rank").value == np.median(ranks)


def test_identical_captions_are_one_item():
    captions = [f"kind {i % 7}" for i in range(14**2)]
    made = trial(test=1, captions=captions)
    rows = Retrieval().run(Subject("fake", FakeModel()), made)
    to_text = one(rows, direction="image->text", metric="recall@1", group="test0.0")
    assert (to_text.n, to_text.n_gallery) == (196, 7)
    assert to_text.chance == pytest.approx(1 / 7)
    assert to_text.ci_unit == "spatial-block"
    from_text = one(rows, direction="text->image", metric="recall@1", group="test0.0")
    assert (from_text.n, from_text.n_gallery) == (7, 196)
    assert from_text.chance == pytest.approx(1 / 7)
    assert from_text.value == 1.0
    assert from_text.ci_unit == ""


def test_captions_that_are_missing_take_no_part():
    captions = ["" if i % 2 else f"spot {i}" for i in range(14**2)]
    rows = Retrieval().run(Subject("fake", FakeModel()), trial(test=1, captions=captions))
    assert one(rows, direction="text->image", metric="recall@1", group="test0.0").n_gallery == 98
    assert one(rows, direction="image->expression", metric="recall@1", group="test0.0").n_gallery == 196


def test_a_model_that_knows_nothing_is_at_chance():
    rows = Retrieval().run(Subject("random", RandomModel(0)), trial(test=6))
    row = one(rows, metric="recall@10", direction="image->expression", aggregation="per-section", group="all")
    assert row.value == pytest.approx(row.chance, abs=0.025)


def test_retrieval_needs_two_modalities():
    with pytest.raises(ContractError, match="two modalities"):
        Retrieval().run(Subject("fake", FakeModel(modalities=("image",))), trial())


# ---- zero-shot


def zero_shot_by_hand(made, model, target):
    vectors = model.embed_text(list(CLASSES))
    scores = [model.embed(s, target)[0] @ vectors.T for s in made.test]
    labels = [s.labels for s in made.test]
    return scores, labels


def test_zero_shot_names_its_aggregations_and_each_is_what_it_says():
    made, model = trial(test=3, unlabelled=(0, 1, 2)), FakeModel(noise=3)
    rows = ZeroShot().run(Subject("fake", model), made)
    scores, labels = zero_shot_by_hand(made, model, "image")
    known = [of != "" for of in labels]
    grid = np.array(
        [
            [roc_auc_score(of[k] == c, s[k, i]) for i, c in enumerate(CLASSES)]
            for s, of, k in zip(scores, labels, known, strict=True)
        ]
    )
    of = pick(rows, direction="text->image", metric="auroc")
    assert one(of, aggregation="macro", group="all").value == pytest.approx(grid.mean())
    for i, c in enumerate(CLASSES):
        assert one(of, aggregation="per-class", group=c).value == pytest.approx(grid[:, i].mean())
    for s, section in enumerate(made.test):
        row = one(of, aggregation="per-section", group=section.id)
        assert row.value == pytest.approx(grid[s].mean())
        assert row.n == row.n_gallery == 193
        assert row.chance == 0.5
    k = np.concatenate(known)
    pooled = [
        roc_auc_score(np.concatenate(labels)[k] == c, np.concatenate(scores)[k, i]) for i, c in enumerate(CLASSES)
    ]
    assert one(of, aggregation="pooled", group="all").value == pytest.approx(np.mean(pooled))
    assert one(of, aggregation="pooled", group="gland").value == pytest.approx(pooled[1])
    assert one(of, aggregation="pooled", group="all").n_units == 3 * 9  # blocks of one section are not another's
    macro = one(of, aggregation="macro", group="all")
    assert macro.ci_low <= macro.value <= macro.ci_high
    assert macro.n_gallery == 193
    assert {r.direction for r in rows} == {"text->image", "text->expression"}


def test_prompts_default_to_class_names_and_templates_are_averaged_as_unit_vectors():
    made, model = trial(test=1), FakeModel()
    ZeroShot().run(Subject("fake", model), made)
    assert model.asked == [list(CLASSES)]
    prompts = Prompts(classes={"fat": ("fat", "stroma"), "gland": ()}, templates=("{}", "a {} here"))
    rows = ZeroShot(prompts=prompts).run(Subject("fake", model), made)
    assert model.asked[-1] == ["fat", "stroma", "a fat here", "a stroma here", "gland", "a gland here"]
    assert {r.group for r in pick(rows, aggregation="per-class")} == {"fat", "gland"}
    both = model.embed_text(["fat", "stroma"]).mean(axis=0)
    score = model.embed(made.test[0], "image")[0] @ both
    expected = roc_auc_score(made.test[0].labels == "fat", score)
    assert one(rows, direction="text->image", aggregation="per-class", group="fat").value == pytest.approx(expected)


def test_a_class_that_is_nowhere_in_the_test_is_undefined_and_not_in_the_mean():
    prompts = Prompts(classes={"fat": (), "unicorn": ()})
    rows = ZeroShot(prompts=prompts).run(Subject("fake", FakeModel()), trial())
    of = pick(rows, direction="text->image", metric="auroc")
    assert one(of, aggregation="per-class", group="unicorn").value is None
    assert one(of, aggregation="macro").value == one(of, aggregation="per-class", group="fat").value


def test_prompts_are_data(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text("fat: [adipose tissue, fat]\ngland: []\n")
    assert Prompts.read(path).sentences("fat") == ["adipose tissue", "fat"]
    path.write_text("classes: {fat: [fat]}\ntemplates: ['{}', 'a {} sample']\n")
    assert Prompts.read(path).sentences("fat") == ["fat", "a fat sample"]
    path.write_text("[1, 2]")
    with pytest.raises(RecipeError, match="mapping"):
        Prompts.read(path)


def test_zero_shot_says_what_is_missing():
    with pytest.raises(ContractError, match="needs text"):
        ZeroShot().run(Subject("fake", FakeModel(modalities=("image", "expression"))), trial())
    with pytest.raises(ContractError, match="no test section has labels"):
        ZeroShot().run(Subject("fake", FakeModel()), trial(unlabelled=tuple(range(196))))
    with pytest.raises(ContractError, match="no prompt is for a label"):
        ZeroShot(prompts=Prompts(classes={"x": ()})).run(Subject("fake", FakeModel()), trial())


# ---- linear probe


def test_the_probe_learns_on_training_sections_and_beats_chance_on_others():
    rows = LinearProbe().run(Subject("fake", FakeModel()), trial())
    assert one(rows, metric="auroc", aggregation="macro").value > 0.95
    row = one(rows, metric="balanced-accuracy", aggregation="per-section", group="all")
    assert row.value > 0.85
    assert row.chance == pytest.approx(1 / 3)
    nothing = LinearProbe().run(Subject("random", RandomModel(1)), trial(test=6))
    assert one(nothing, metric="auroc", aggregation="macro").value == pytest.approx(0.5, abs=0.05)


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_are_there():
    class Told(FakeModel):
        """Says the label itself, wrong for half of one class."""

        def embed(self, section, modality):
            values = np.stack([section.labels == c for c in CLASSES], axis=1).astype(float)
            if section.id.startswith("test"):
                fat = np.flatnonzero(section.labels == "fat")
                values[fat[::2]] = [0, 1, 0]
            return values, np.ones(len(values), bool)

    row = one(
        LinearProbe().run(Subject("told", Told()), trial(test=1)),
        metric="balanced-accuracy",
        aggregation="per-section",
        group="all",
    )
    assert row.value == pytest.approx((0.5 + 1 + 1) / 3, abs=0.01)


def test_a_class_that_training_never_saw_is_left_out_and_said(caplog):
    made = trial()
    for section in made.train:
        section.labels[section.labels == "fat"] = ""
    rows = LinearProbe().run(Subject("fake", FakeModel()), made)
    assert {r.group for r in pick(rows, aggregation="per-class")} == {"gland", "stroma"}
    assert "fat" in caplog.text


def test_a_probe_needs_two_labelled_classes():
    made = trial()
    for section in made.train:
        section.labels[:] = "fat"
    with pytest.raises(ContractError, match="a probe needs 2"):
        LinearProbe().run(Subject("fake", FakeModel()), made)


# ---- ridge to expression


def ridge_by_hand(made, model, n_genes):
    from sklearn.linear_model import RidgeCV

    log = lambda s: np.log1p(s.counts.toarray() / s.counts.toarray().sum(1, keepdims=True) * 1e4)  # noqa: E731
    x, y = (
        np.concatenate([model.embed(s, "image")[0] for s in made.train]),
        np.concatenate([log(s) for s in made.train]),
    )
    genes = [g for g in np.argsort(-y.var(0)) if (y[:, g] > 0).mean() > 0.1][:n_genes]
    mean, deviation = x.mean(0), x.std(0)
    ridge = RidgeCV(np.logspace(0, 4, 9)).fit((x - mean) / deviation, y[:, genes])
    out = {}
    for s in made.test:
        guess, truth = ridge.predict((model.embed(s, "image")[0] - mean) / deviation), log(s)[:, genes]
        out[s.id] = np.mean([np.corrcoef(guess[:, i], truth[:, i])[0, 1] for i in range(n_genes)])
    return out


def test_expression_equals_plain_scikit_learn():
    made, model = trial(), FakeModel()
    rows = Expression(n_genes=15).run(Subject("fake", model), made)
    for section, value in ridge_by_hand(made, model, 15).items():
        row = one(rows, metric="pearson", group=section)
        assert row.value == pytest.approx(value, abs=1e-9)
        assert row.ci_low <= row.value <= row.ci_high
        assert row.n_genes == 15
        assert row.chance == 0
    assert {r.transductive for r in rows} == {()}


def test_genes_are_chosen_on_training_alone_and_only_among_those_measured_everywhere():
    from triglyph.bench.expression.targets import Targets

    made = trial()
    before = Targets(made, n_genes=10, min_detected=0.1).genes
    made.test[0].counts = made.test[0].counts[:, ::-1].tocsr() * 50
    assert Targets(made, n_genes=10, min_detected=0.1).genes == before
    made.test[0].measured = np.array([f"G{i:02d}" != before[0] for i in range(40)])
    assert before[0] not in Targets(made, n_genes=10, min_detected=0.1).genes
    made.test[0].measured = np.zeros(40, bool)
    with pytest.raises(GeneError, match="no measured gene in common"):
        Targets(made, n_genes=10, min_detected=0.1)


def test_z_scoring_within_test_sections_is_declared_on_every_row():
    per_section = Expression(standardise="per-section")
    rows = per_section.run(Subject("fake", FakeModel()), trial())
    assert all(r.transductive == ("features z-scored within each test section",) for r in rows)
    assert per_section.stamp != Expression().stamp


def test_genes_that_are_constant_in_a_section_are_counted_and_left_out():
    made = trial(test=1)
    dense = made.test[0].counts.toarray()
    dense[:, 20:] = 0
    made.test[0].counts = made.test[0].counts.__class__(dense)
    rows = Expression(n_genes=40).run(Subject("fake", FakeModel()), made)
    undefined = one(rows, metric="genes-undefined", group="test0.0").value
    row = one(rows, metric="pearson", group="test0.0")
    assert undefined > 0
    assert row.n_genes + undefined == one(rows, metric="mse", group="test0.0").n_genes


def test_locations_without_counts_or_without_an_image_take_no_part():
    made = trial(test=1)
    dense = made.test[0].counts.toarray()
    dense[10] = 0
    made.test[0].counts = made.test[0].counts.__class__(dense)
    rows = Expression().run(Subject("fake", FakeModel(absent=(3, 4))), made)
    assert one(rows, metric="pearson", group="test0.0").n == 196 - 3


# ---- the registry and trials


def test_unknown_protocols_and_constants_are_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match="did you mean retrieval"):
        protocol("retreival")
    with pytest.raises(RecipeError, match="n_genes"):
        protocol("expression", {"n_gene": 3})
    with pytest.raises(RecipeError, match="prompts"):
        protocol("zero-shot", {"prompts": 3})


def test_constants_are_read_from_key_value_strings():
    assert parse_options(["n_genes=250", "alphas=[1, 10]", "prompts.classes={fat: [fat]}"]) == {
        "n_genes": 250,
        "alphas": [1, 10],
        "prompts": {"classes": {"fat": ["fat"]}},
    }
    with pytest.raises(RecipeError, match="key=value"):
        parse_options(["n_genes"])


def test_a_split_of_several_folds_asks_which():
    from triglyph.tissue.split import Fold, Split

    folds = tuple(Fold(name=str(i), train=("train0.0",), test=(f"test{i}.0",)) for i in range(2))
    split = Split(name="two", level="patient", folds=folds)
    made = trial()

    class Cohort(dict):
        patients = made.patients

    cohort = Cohort({s.id: s for s in (*made.train, *made.test)})
    with pytest.raises(SplitError, match="2 folds"):
        Trial.of(cohort, split)
    chosen = Trial.of(cohort, split, fold="1")
    assert (chosen.fold, chosen.test[0].id) == ("1", "test1.0")


# ---- retrieval across sections


def test_retrieval_across_ranks_every_query_among_the_locations_of_all_test_sections():
    made, model = trial(test=3), FakeModel()
    rows = protocol("retrieval-across").run(Subject("fake", model), made)
    image, words = ([model.embed(s, m) for s in made.test] for m in ("image", "text"))
    both = [np.flatnonzero(a[1] & b[1]) for a, b in zip(image, words, strict=True)]
    captions = np.concatenate([np.array(s.captions)[k] for s, k in zip(made.test, both, strict=True)])
    gallery = {}
    for i, kept in enumerate(both):
        for j in kept:
            gallery.setdefault(made.test[i].captions[j], words[i][0][j])
    start = 0
    for section, (values, _), kept in zip(made.test, image, both, strict=True):
        ranks = []
        for j, own in zip(kept, captions[start : start + len(kept)], strict=True):
            scores = {c: float(values[j] @ v) for c, v in gallery.items()}
            ranks.append(1 + sum(x > scores[own] for x in scores.values()))
        start += len(kept)
        row = one(rows, metric="median-rank", direction="image->text", aggregation="per-section", group=section.id)
        assert row.value == np.median(ranks)
        assert row.n_gallery == len(gallery)
    pixels = one(rows, metric="recall@50", direction="text->image", aggregation="per-section", group=made.test[0].id)
    assert pixels.n_gallery == len(captions)
