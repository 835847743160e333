"""The null: twenty or more subjects that know nothing, judged alike and summed up honestly."""

from __future__ import annotations

import numpy as np
import pytest

from bench_fakes import FakeModel, RandomModel, trial
from triglyph.bench.contracts import Subject
from triglyph.bench.expression.protocol import Expression
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.labels.zero_shot import ZeroShot
from triglyph.bench.null import NULL, NULL_HIGH, NULL_MEAN, null_rows, summaries, verdict, verdicts
from triglyph.bench.registry import PROTOCOLS
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.suite import applicable, evaluate
from triglyph.bench.table import markdown, merge, show, tabulate
from triglyph.errors import ContractError, RecipeError

WHOLE = {"direction": "image->expression", "metric": "recall@10", "aggregation": "per-section", "group": "all"}


def pick(rows, **wanted):
    return [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]


@pytest.fixture(scope="module")
def judged():
    """A method that knows something, with its null."""
    made = trial()
    protocols = [Retrieval(), ZeroShot()]
    rows = [r for p in protocols for r in p.run(Subject("method", FakeModel()), made)]
    return rows + null_rows(RandomModel, made, protocols, n_refits=20, seed=100)


def test_each_refit_is_a_control_row_with_its_seed_under_the_methods_own_protocol(judged):
    refits = pick(judged, model=NULL, **WHOLE)
    assert [r.seed for r in refits] == list(range(100, 120))
    assert {r.role for r in refits} == {"control"}
    assert {r.protocol for r in refits} == {pick(judged, model="method", **WHOLE)[0].protocol}
    assert all(r.chance == 10 / 196 and r.n_gallery == 196 for r in refits)
    assert {r.group for r in judged if r.role == "control"} == {"all"}


def test_the_two_summaries_are_the_mean_and_the_95th_percentile_towards_better(judged):
    values = [r.value for r in pick(judged, model=NULL, **WHOLE)]
    assert pick(judged, model=NULL_MEAN, **WHOLE)[0].value == pytest.approx(np.mean(values))
    assert pick(judged, model=NULL_HIGH, **WHOLE)[0].value == pytest.approx(np.percentile(values, 95))
    assert pick(judged, model=NULL_HIGH, **WHOLE)[0].seed is None
    ranks = {**WHOLE, "metric": "median-rank"}
    values = [r.value for r in pick(judged, model=NULL, **ranks)]
    assert pick(judged, model=NULL_HIGH, **ranks)[0].value == pytest.approx(np.percentile(values, 5))


def test_the_null_is_at_chance_and_a_method_that_knows_something_exceeds_it(judged):
    auroc = {"task": "zero-shot", "direction": "text->image", "aggregation": "macro"}
    assert pick(judged, model=NULL_MEAN, **auroc)[0].value == pytest.approx(0.5, abs=0.05)
    found = verdicts(judged)
    assert found
    assert all(v.exceeds for v in found)
    ranked = {"recall@1", "recall@5", "recall@10", "median-rank"}
    assert {v.row.metric for v in found} == {*ranked, "auroc", "macro-f1", "macro-f1@calibrated"}


def test_what_knows_nothing_does_not_exceed_its_null_more_often_than_it_should():
    made = trial(test=1)
    null = null_rows(RandomModel, made, [Retrieval()], n_refits=40, seed=0)
    exceeding = [
        verdict(r, null).exceeds
        for seed in range(1000, 1030)
        for r in pick(Retrieval().run(Subject("nothing", RandomModel(seed)), made), **WHOLE)
    ]
    assert np.mean(exceeding) < 0.2


def test_refits_that_are_undefined_are_left_out_of_the_summaries(judged):
    refits = pick(judged, model=NULL, **WHOLE)
    some = [refits[0].model_copy(update={"value": None}), *refits[1:]]
    assert summaries(some)[0].value == pytest.approx(np.mean([r.value for r in refits[1:]]))
    none = summaries([r.model_copy(update={"value": None}) for r in refits])
    assert [r.value for r in none] == [None, None]
    assert verdict(refits[0].model_copy(update={"role": "method"}), none).exceeds is None


def test_too_few_refits_or_no_null_are_refused(judged):
    with pytest.raises(RecipeError, match="95th percentile"):
        null_rows(RandomModel, trial(), [Retrieval()], n_refits=19)
    with pytest.raises(ContractError, match="no null for"):
        verdict(judged[0], [])


def test_a_suite_judges_the_method_its_baselines_and_its_null_in_one_table():
    made = trial(train=3, test=1)
    model = FakeModel()
    core = (Retrieval, ZeroShot, LinearProbe, Expression)
    protocols = [p for p in applicable(model, made).protocols if type(p) in core]
    assert [type(p) for p in protocols] == list(core)
    said = []
    rows = evaluate(
        Subject("method", model), made, protocols, stain_texture=FakeModel(), refit=RandomModel, report=said.append
    )
    assert {r.role for r in rows} == {"method", "baseline", "ceiling", "control"}
    assert {r.model for r in pick(rows, task="retrieval", role="baseline")} == {
        "position + ridge",
        "stain-texture + ridge",
    }
    assert {r.model for r in pick(rows, task="expression", role="baseline")} == {
        "mean",
        "library size",
        "position",
        "haematoxylin mean",
        "stain-texture",
    }
    assert {r.model for r in pick(rows, task="linear-probe", role="baseline")} == {"position", "stain-texture"}
    ridge = pick(rows, model="stain-texture + ridge", **WHOLE)[0]
    assert ridge.value > 3 * ridge.chance
    assert pick(rows, model="mean", metric="pearson", group="all")[0].value is None
    assert pick(rows, model="library size", metric="mse", group="all")[0].transductive
    assert said[-1] == "null: refit 20 of 20"


def test_only_protocols_that_fit_are_applied():
    made = trial(unlabelled=tuple(range(196)))
    offer = applicable(FakeModel(), made)
    assert [p.name for p in offer.protocols] == ["retrieval", "expression", "hest-benchmark"]
    assert offer.left_out["knn-20"] == "no test location has a label"
    offer = applicable(FakeModel(modalities=("expression",)), trial())
    read = ["linear-probe", "knn-20", "simpleshot", "clustering", "label-retrieval", "batch-effect"]
    assert [p.name for p in offer.protocols] == read
    assert {p.modality for p in offer.protocols} == {"expression"}
    assert (offer.left_out["expression"], offer.left_out["retrieval"]) == ("needs an image", "needs two modalities")


def test_every_protocol_is_offered_by_all_or_left_out_with_a_reason():
    for model in (FakeModel(), FakeModel(modalities=("image",))):
        offer = applicable(model, trial())
        offered = {p.name for p in offer.protocols}
        assert not offered & set(offer.left_out)
        assert all(offer.left_out.values())
        variants = {name for name in PROTOCOLS if name.startswith(("hest-benchmark-", "spatialwhisperer-"))}
        assert offered | set(offer.left_out) | variants == {*PROTOCOLS, "hest-benchmark-*", "spatialwhisperer-*"}
    assert applicable(None, trial()).protocols == ()


# ---- tables


def test_the_table_puts_one_quantity_in_one_line_with_the_methods_first(judged):
    table, zero_shot = tabulate(judged)
    assert (table.task, zero_shot.task) == ("retrieval", "zero-shot")
    assert table.models == zero_shot.models == ("method", NULL_MEAN, NULL_HIGH)
    text = markdown([table, zero_shot])
    line = next(x for x in text.splitlines() if "image->expression | recall@10 | per-section" in x)
    assert line.count("|") == text.splitlines()[2].count("|")
    assert "]* |" in line  # starred: it exceeds its null
    assert "spatial blocks" in text
    patients = [x for x in table.lines if x.row.aggregation == "per-patient"]
    assert {x.row.group for x in patients} == {"all", "test-patient0", "test-patient1"}


def test_numbers_of_other_constants_never_share_a_line():
    made, few, many = trial(), Subject("few", FakeModel()), Subject("many", FakeModel())
    rows = [*Expression(n_genes=10).run(few, made), *Expression(n_genes=20).run(many, made)]
    assert all(len(line.values) == 1 for table in tabulate(rows) for line in table.lines)


def test_a_value_inside_its_null_has_no_star(judged):
    low = [
        r.model_copy(update={"value": 0.0}) if r.model == "method" and r.metric != "median-rank" else r for r in judged
    ]
    assert "*" not in "".join(
        c for t in tabulate(low) for x in t.lines for c in t.cells(x) if "rank" not in x.row.metric
    )


def test_models_of_two_runs_are_told_apart_only_where_they_differ(judged):
    other = [r.model_copy(update={"value": 0.1}) if r.model == "method" else r for r in judged]
    table = tabulate(merge({"first": judged, "second": other}))[0]
    assert table.models == ("method @ first", "method @ second", NULL_MEAN, NULL_HIGH)


def test_undefined_absent_and_transductive_values_are_shown_as_such(judged):
    row = judged[0]
    assert show(None) == "–"
    assert show(row.model_copy(update={"value": None})) == "undefined"
    bare = row.model_copy(update={"value": 0.5, "ci_low": None, "transductive": ("saw it",)})
    assert show(bare) == "0.500†"
    assert "† method: saw it" in tabulate([bare.model_copy(update={"group": "all"})])[0].notes()
