"""Stamp's first stage, end to end: what it learns, what it refuses, and that stopping it changes nothing."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import children
import small
from triglyph.apply.trained import TrainedModel
from triglyph.bench.contracts import Trial
from triglyph.bench.representations import ACROSS
from triglyph.configs import deep_merge
from triglyph.errors import ContractError, GeneError, RecipeError
from triglyph.models.stamp_genes import StampGenesConfig, StampModel
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.section import Section
from triglyph.tissue.split import Fold, Split
from triglyph.training.dataset import training_rows
from triglyph.training.loop import fit
from triglyph.training.recipe import load_recipe, typed
from triglyph.training.run import Run
from triglyph.training.towers import build_encoders
from triglyph.workflows.bench_subjects import judged as judged_subject

RECIPE: dict[str, Any] = {
    "name": "stamp",
    "method": "stamp-genes",
    "data": {"train": ["S0", "S1"], "val": ["S2"]},
    "model": {
        "towers": {
            "expression": {
                "encoder": "stamp-genes",
                "mode": "scratch",
                "options": {"dim": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 12},
            }
        },
        "context": "pooled",
        "context_from": 0.4,
        "baseline": "section",
        "start": "spectral",
        "readout": "own+around",
        "readout_reach": [1.5, 2.3],
    },
    "training": {"epochs": 3, "batch_size": 18, "lr": 0.01, "checkpoint_every": 2},
}


def without_places(draft: SectionDraft) -> SectionDraft:
    draft.table.obsm["spatial"] = np.full((draft.table.n_obs, 2), np.nan)
    draft.location_um, draft.pitch_um, draft.location_shape = None, None, "none"
    return draft


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small.cohort(tmp_path_factory.mktemp("stamp"), images=False)


@pytest.fixture(scope="module")
def whole(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert children.run(children.fit, RECIPE, cohort.path, out) == 0
    return out


def steps(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_context_joins_when_it_should_and_every_location_is_seen_once_an_epoch(whole: Path) -> None:
    lines = steps(whole)
    # 36 locations a section are 4 groups of 9; two groups are a step.
    assert len(lines) == 3 * 4
    with_context = ["contextual" in line["loss"] for line in lines]
    assert with_context == [line["step"] / 12 >= 0.4 for line in lines]
    assert all(np.isfinite(line["loss"]["total"]) for line in lines)
    assert "val_intrinsic" in (whole / "metrics.csv").read_text().splitlines()[0]
    assert Run(whole).manifest()["method"] == "stamp-genes"


@pytest.mark.parametrize(("moment", "number"), [("step logged", 3), ("epoch logged", 1), ("checkpoint written", 2)])
def test_a_killed_run_ends_bit_for_bit_as_an_uninterrupted_one(
    cohort: Cohort, whole: Path, tmp_path: Path, moment: str, number: int
) -> None:
    out = tmp_path / "run"
    assert children.run(children.fit, RECIPE, cohort.path, out, moment, number) == -9
    assert children.run(children.fit, RECIPE, cohort.path, out) == 0
    for name in ("log.jsonl", "metrics.csv", "model/model.safetensors", "towers.json"):
        assert (whole / name).read_bytes() == (out / name).read_bytes(), name


def test_streaming_sections_trains_on_all_their_rows_and_holds_the_tables_of_two_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = small.cohort(tmp_path, patients=8, images=False)
    read, found, most = ad.read_zarr, list[weakref.ref[ad.AnnData]](), 0

    def counted(path: Path) -> ad.AnnData:
        nonlocal most
        table = read(path)
        found.append(weakref.ref(table))
        most = max(most, sum(one() is not None for one in found))
        return table

    monkeypatch.setattr("triglyph.tissue.section.ad.read_zarr", counted)
    sections = {"train": [f"S{i}" for i in range(5)], "val": ["S5", "S6", "S7"]}
    recipe = deep_merge(RECIPE, {"data": sections, "training": {"sections_at_once": 1, "epochs": 1}})
    out = fit(typed(recipe, where="test"), cohort=cohort, out=tmp_path / "run", show=False)
    assert len(steps(out)) == 10
    assert Run(out).manifest()["rows"]["rows"] == 5 * 36
    # Two windows of one section each of those that are trained on, and of those that are validated on.
    assert 2 <= most <= 4
    assert len(found) > 16, "tables are read again"


def test_in_the_frozen_warm_up_only_the_heads_that_name_genes_learn(cohort: Cohort, tmp_path: Path) -> None:
    change = {"model": {"start": "random", "context_from": 0.0}, "training": {"epochs": 1, "frozen_warmup": 0.9}}
    recipe = typed(deep_merge(RECIPE, change), where="test")
    out = fit(recipe, cohort=cohort, out=tmp_path / "run", show=False)
    assert len(steps(out)) == 4, "ceil(0.9 * 4) steps are all of them"
    rows = training_rows([cohort["S0"], cohort["S1"]], ("expression",), (("expression",),))
    begun = build_encoders(recipe, rows, Run(tmp_path / "other"))["expression"].state_dict()
    model = TrainedModel.open(out).model
    assert isinstance(model, StampModel)
    assert all(torch.equal(tensor, begun[name]) for name, tensor in model.genes.state_dict().items())
    assert float(model.intrinsic.bias.abs().sum()) > 0
    assert model.contextual is not None
    assert float(model.contextual.bias.abs().sum()) > 0


def test_a_batch_in_which_nothing_is_named_teaches_nothing_in_the_frozen_warm_up_too(
    cohort: Cohort, whole: Path
) -> None:
    model = TrainedModel.open(whole).model.train()
    model.progress = 0.0
    batch = made_batch(cohort, model)
    batch["expression"]["ids"], batch["expression"]["mask"] = (batch["expression"][k][:, :0] for k in ("ids", "mask"))
    for heads_only in (False, True):
        model.heads_only = heads_only
        losses = model(batch).losses
        assert set(losses) == {"total"}
        losses["total"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("context", ["masked_only", "positionwise_full", None])
def test_every_form_of_context_trains(cohort: Cohort, tmp_path: Path, context: str | None) -> None:
    recipe = deep_merge(RECIPE, {"model": {"context": context, "context_from": 0.0}, "training": {"epochs": 1}})
    out = fit(typed(recipe, where="test"), cohort=cohort, out=tmp_path / "run", show=False)
    assert all(("contextual" in line["loss"]) == (context is not None) for line in steps(out))


def test_the_embedding_is_the_encoders_mean_and_that_of_the_surroundings(cohort: Cohort, whole: Path) -> None:
    model, section = TrainedModel.open(whole), cohort["S2"]
    values, present = model.embed(section, "expression")
    pooled, _ = model.pooled(section, "expression")
    assert present.all()
    seen = np.concatenate([model.pooled(cohort[s], "expression")[0] for s in ("S0", "S1")])
    own = (pooled - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0).mean())
    np.testing.assert_allclose(values[:, :16], own, rtol=1e-4, atol=1e-4)
    gap = np.hypot(*(section.centres_um[:, None] - section.centres_um[None]).transpose(2, 0, 1))
    for part, reach in ((slice(16, 32), 1.5), (slice(32, 48), 2.3)):
        near = gap <= reach * 60.0 * 1.02
        around = near @ own / near.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(values[:, part], around, rtol=1e-4, atol=1e-5)
    assert model.training_sections == ("S0", "S1", "S2")


def test_a_location_of_unknown_genes_alone_has_no_embedding_and_is_in_nobodys_surroundings(
    whole: Path, tmp_path: Path
) -> None:
    model, genes = TrainedModel.open(whole), (*small.GENES, "STRANGE")
    draft = small.draft("U", side=3, genes=genes)
    counts = np.asarray(draft.table.X.toarray())
    counts[4] = 0
    counts[4, -1] = 5
    draft.table.X = sp.csr_matrix(counts)
    without = small.draft("V", side=3, genes=genes)
    counts = counts.copy()
    counts[4] = 0
    without.table.X = sp.csr_matrix(counts)
    found, expected = (model.embed(Section.write(d, tmp_path / d.section_id), "expression") for d in (draft, without))
    assert found[1].tolist() == [k != 4 for k in range(9)]
    np.testing.assert_array_equal(found[0], expected[0])
    assert np.isnan(found[0][4]).all()


@pytest.mark.parametrize(
    ("reach", "said"),
    [([2.3, 1.5], "ascending"), ([1.5, 1.5], "ascending"), ([float("inf")], "finite"), ([], "at least")],
)
def test_reaches_of_the_readout_are_finite_and_ascending(reach: list[float], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        typed(deep_merge(RECIPE, {"model": {"readout_reach": reach}}), where="test")
    one = typed(deep_merge(RECIPE, {"model": {"readout_reach": 2}}), where="test").model
    assert isinstance(one, StampGenesConfig)
    assert one.readout_reach == (2.0,)


def test_the_order_of_spots_and_genes_changes_no_embedding(whole: Path, tmp_path: Path) -> None:
    model = TrainedModel.open(whole)
    rng = np.random.default_rng(0)
    draft = small.draft("S2", patient="P2", seed=2)
    spots, genes = rng.permutation(draft.table.n_obs), rng.permutation(draft.table.n_vars)
    plain = Section.write(small.draft("S2", patient="P2", seed=2), tmp_path / "plain")
    draft.table = draft.table[spots][:, genes].copy()
    moved = Section.write(draft, tmp_path / "moved")
    a, b = (model.embed(s, "expression")[0] for s in (plain, moved))
    np.testing.assert_allclose(a[spots], b, rtol=1e-4, atol=1e-6)


def test_few_spots_no_places_and_strange_genes_are_handled_or_refused(
    cohort: Cohort, whole: Path, tmp_path: Path
) -> None:
    model = TrainedModel.open(whole)
    few = small.draft("F", side=2)
    few.table = few.table[:3].copy()
    values, _ = model.embed(Section.write(few, tmp_path / "few"), "expression")
    assert values.shape == (3, 48)
    assert np.isfinite(values).all()
    unplaced = without_places(small.draft("U", side=3))
    values, _ = model.embed(Section.write(unplaced, tmp_path / "unplaced"), "expression")
    for part in (slice(16, 32), slice(32, 48)):
        np.testing.assert_array_equal(values[:, :16], values[:, part])
    strange = Section.write(small.draft("X", genes=tuple(f"G{i}" for i in range(12))), tmp_path / "strange")
    with pytest.raises(GeneError, match="none of its 12 genes"):
        model.embed(strange, "expression")


def test_sections_without_places_and_of_three_spots_are_trained_on(tmp_path: Path) -> None:
    made = Cohort.create(tmp_path / "cohort")
    few = small.draft("S0", patient="P0", side=2)
    few.table = few.table[:3].copy()
    unplaced = without_places(small.draft("S1", patient="P1", side=5))
    for draft in (few, unplaced):
        made.add(draft)
    recipe = deep_merge(RECIPE, {"data": {"val": []}, "model": {"context_from": 0.0}})
    lines = steps(fit(typed(recipe, where="test"), cohort=made, out=tmp_path / "run", show=False))
    assert all(np.isfinite(line["loss"]["total"]) for line in lines)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"towers": {"expression": {"mode": "locked"}}}, "the tower learns"),
        ({"towers": {"expression": {"encoder": "gene-mlp", "options": {}}}}, "does not read lists of genes"),
        ({"intrinsic": 0, "context": None}, "nothing to train"),
        ({"contxt": "pooled"}, "did you mean context"),
        ({"start": "spectral", "towers": {"expression": {"mode": "trained", "weights": "x"}}}, "spectral start"),
        ({"towers": {"expression": {"head": {"kind": "linear"}}}}, "take out towers.expression.head"),
    ],
)
def test_what_makes_no_sense_is_refused(cohort: Cohort, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    values = deep_merge(RECIPE, {"model": change})
    if "encoder" in change.get("towers", {}).get("expression", {}):
        values["model"]["towers"]["expression"]["options"] = {}
    with pytest.raises(RecipeError, match=said):
        fit(typed(values, where="test"), cohort=cohort, out=tmp_path / "run", show=False)


def test_a_method_that_is_not_there_is_named() -> None:
    with pytest.raises(RecipeError, match=r"no method 'stamp-gene'.*"):
        typed({**RECIPE, "method": "stamp-gene"}, where="test")


def test_shipped_recipes_are_of_the_size_of_the_paper_and_of_two_cores() -> None:
    paper = load_recipe("stamp-genes")
    assert isinstance(paper.model, StampGenesConfig)
    assert paper.model.towers["expression"].options == {
        "dim": 512,
        "depth": 12,
        "heads": 16,
        "feedforward": 1024,
        "max_tokens": 1500,
    }
    assert (paper.model.masked, paper.model.neighbourhood.size, paper.model.context_from) == (0.15, 9, 0.5)
    assert isinstance(load_recipe("stamp-genes-tiny").model, StampGenesConfig)


def test_evaluation_hides_the_same_tokens_every_time(cohort: Cohort, whole: Path) -> None:
    model = TrainedModel.open(whole).model
    assert isinstance(model, StampModel)
    batch = made_batch(cohort, model)
    with torch.no_grad():
        a, b = (model(batch).losses for _ in range(2))
    assert {k: float(v) for k, v in a.items()} == {k: float(v) for k, v in b.items()}


def made_batch(cohort: Cohort, model: Any) -> dict[str, Any]:
    inputs = model.genes.prepare(children_expression(cohort))
    n = len(inputs["ids"])
    return {
        "n": n,
        "expression": {"rows": torch.arange(n), **inputs},
        "section": torch.zeros(n, dtype=torch.long),
        "group": torch.arange(n) // 9,
        "near": torch.arange(n) % 9 > 0,
        "centres_um": torch.stack([torch.arange(n) % 6, torch.arange(n) // 6], dim=1).double() * 60.0,
    }


def test_where_later_genes_weigh_less_they_do_so_in_the_start_and_in_the_context(
    cohort: Cohort, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TrainedModel.open(whole).model
    assert isinstance(model, StampModel)
    batch = made_batch(cohort, model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lists: list[np.ndarray] = []

    def axes(pieces: Any, *, dim: int, seed: int) -> np.ndarray:
        lists.append(pieces[0].shares.toarray())
        return np.ones((model.genes.n_tokens, dim), dtype=np.float32)

    monkeypatch.setattr("triglyph.models.stamp_genes.within_section_axes", axes)
    losses = []
    for decay in (None, 1.0):
        monkeypatch.setitem(model.genes._options, "rank_decay", decay)
        model.start([batch])
        model.load_state_dict(state)
        with torch.no_grad():
            losses.append(float(model(batch).losses["contextual"]))
    first = int(batch["expression"]["ids"][0, 0])
    second = int(batch["expression"]["ids"][0, 1])
    assert lists[0][0, first] == lists[0][0, second]
    assert lists[1][0, second] == pytest.approx(lists[1][0, first] / np.sqrt(2), rel=1e-6)
    assert losses[0] != pytest.approx(losses[1], abs=1e-6)


def test_locations_without_genes_enter_neither_the_mean_nor_the_scale_of_embeddings(
    cohort: Cohort, whole: Path
) -> None:
    model = TrainedModel.open(whole).model
    assert isinstance(model, StampModel)
    batch = made_batch(cohort, model)
    model.finish([batch])
    centre, scale = model.centre.clone(), model.scale.clone()
    expression = batch["expression"]
    empty = {k: torch.zeros_like(expression[k][:4]) for k in ("ids", "mask")}
    more = {k: torch.cat([empty[k], expression[k], empty[k]]) for k in empty}
    model.finish([{**batch, "expression": more}])
    torch.testing.assert_close(model.centre, centre, rtol=0, atol=0)
    torch.testing.assert_close(model.scale, scale, rtol=0, atol=0)
    model.finish([{**batch, "expression": empty}])
    torch.testing.assert_close(model.centre, centre, rtol=0, atol=0)


def test_a_contextual_start_tells_neighbours_and_is_refused_where_there_are_none(
    cohort: Cohort, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fit(typed(deep_merge(RECIPE, {"model": {"start": "contextual"}}), where="test"), cohort=cohort, out=out, show=False)
    one, other = (TrainedModel.open(run).model.genes.gene_embedding.weight for run in (out, whole))
    assert torch.isfinite(one).all()
    assert not torch.allclose(one, other, atol=0.1)
    unplaced = Cohort.create(tmp_path / "cohort")
    for name in ("S0", "S1", "S2"):
        unplaced.add(without_places(small.draft(name, patient=name, seed=int(name[1]))))
    with pytest.raises(ContractError, match=r"no training section has 36[\s\S]*start: spectral"):
        fit(
            typed(deep_merge(RECIPE, {"model": {"start": "contextual"}}), where="test"),
            cohort=unplaced,
            out=tmp_path / "none",
            show=False,
        )


def test_a_spectral_start_without_variation_within_sections_is_refused(tmp_path: Path) -> None:
    made = Cohort.create(tmp_path / "cohort")
    for number in range(2):
        one = small.draft(f"S{number}", patient=f"P{number}", side=2, seed=number)
        one.table = one.table[:1].copy()
        made.add(one)
    recipe = deep_merge(RECIPE, {"data": {"val": []}})
    with pytest.raises(ContractError, match=r"do not differ within the training sections[\s\S]*start: random"):
        fit(typed(recipe, where="test"), cohort=made, out=tmp_path / "run", show=False)


def children_expression(cohort: Cohort) -> Any:
    from triglyph.encoders.base import Expression

    return Expression(*cohort["S2"].expression())


def test_a_baseline_is_the_frequency_in_the_section_and_is_no_part_of_a_release(cohort: Cohort, whole: Path) -> None:
    trained = TrainedModel.open(whole).model
    assert isinstance(trained, StampModel)
    batch = made_batch(cohort, trained)
    inputs = batch["expression"]
    trained.start([{**batch, "section": torch.arange(batch["n"]) % 2}])
    found = trained.train()._baseline(torch.tensor([0, 1, 7]))
    assert found is not None
    tokens = inputs["ids"][0::2][inputs["mask"][0::2]]
    counts = np.bincount(tokens, minlength=trained.genes.n_tokens)
    expected = np.log((counts + 1000 * (every := overall(inputs, trained.genes.n_tokens))) / (counts.sum() + 1000))
    np.testing.assert_allclose(found.logits[found.of[0]], expected, rtol=1e-4)
    # A section that was not seen, and every one in evaluation, has the frequencies of all together.
    np.testing.assert_allclose(found.logits[found.of[2]], np.log(every), rtol=1e-4)
    evaluated = trained.eval()._baseline(torch.tensor([0]))
    assert evaluated is not None
    np.testing.assert_allclose(evaluated.logits[evaluated.of[0]], np.log(every), rtol=1e-4)
    assert not any("baseline" in name for name in trained.state_dict())


def overall(inputs: dict[str, torch.Tensor], n_tokens: int) -> np.ndarray:
    counts = np.bincount(inputs["ids"][inputs["mask"]], minlength=n_tokens) + 0.5
    return counts / counts.sum()


def test_with_a_baseline_the_first_losses_are_those_of_frequencies(whole: Path) -> None:
    frequencies = steps(whole)[0]["loss"]["intrinsic"]
    assert frequencies == pytest.approx(np.log(12), abs=0.05)


def test_frequencies_go_where_the_model_goes(cohort: Cohort, whole: Path) -> None:
    trained = TrainedModel.open(whole).model
    assert isinstance(trained, StampModel)
    trained.start([made_batch(cohort, trained)])
    found = trained.double().train()._baseline(torch.tensor([0]))
    assert found is not None
    assert found.logits.dtype == torch.float64


def test_surroundings_are_never_made_dense(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TrainedModel.open(whole).model
    monkeypatch.setattr("scipy.sparse.csr_matrix.toarray", lambda _: pytest.fail("a matrix of all pairs of locations"))
    places = np.stack(np.meshgrid(np.arange(30.0), np.arange(30.0)), axis=-1).reshape(-1, 2)
    assert model.of_section("expression", torch.ones(900, 16), places).shape == (900, 48)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sections_per_batch": 2}, "sections_per_batch"),
        ({"mixing": {"expression": 1.0}}, "mixing"),
        ({"augment": {"symmetries": True}}, "stamp-genes reads no image"),
        ({"augment": {"stain": 0.1}}, "stamp-genes reads no image"),
    ],
)
def test_settings_of_other_batches_and_of_images_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        typed(deep_merge(RECIPE, {"training": change}), where="test")


def test_a_streamed_section_of_strange_genes_is_refused_too(tmp_path: Path) -> None:
    made = Cohort.create(tmp_path / "cohort")
    made.add(small.draft("S0", patient="P0"))
    strange = small.draft("S1", patient="P1", genes=tuple(f"G{i}" for i in range(12)))
    strange.table.X = strange.table.X * 0
    strange.table.X[0, 0] = 1
    made.add(strange)
    options = {**RECIPE["model"]["towers"]["expression"]["options"], "genes": 12}
    change = {"data": {"val": []}, "model": {"towers": {"expression": {"options": options}}}}
    recipe = deep_merge(RECIPE, {**change, "training": {"sections_at_once": 1}})
    with pytest.raises(GeneError, match="none of its 12 genes"):
        fit(typed(recipe, where="test"), cohort=made, out=tmp_path / "run", show=False)


def test_a_readout_over_both_parts_of_a_section_is_declared(cohort: Cohort, whole: Path) -> None:
    names = [str(name) for name in cohort["S2"].table.obs_names]
    within = Split(
        name="within",
        level="within-section",
        folds=(Fold(train=("S0", "S2"), test=("S2",), test_locations={"S2": tuple(names[:12])}),),
    )
    apart = Split(name="apart", level="patient", folds=(Fold(train=("S0", "S1"), test=("S2",)),))
    judged = judged_subject(cohort, whole, None, modality="expression", places="um", fitted_elsewhere=False)
    assert judged.of_trial is not None
    assert judged.of_trial(Trial.of(cohort, within)).transductive == (ACROSS,)
    assert judged.of_trial(Trial.of(cohort, apart)).transductive == ()
