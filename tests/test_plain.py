"""A plain AnnData as a cohort: anybody's embedding under the same judge."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from triglyph.errors import ContractError, RecipeError, SourceError, SplitError
from triglyph.metrics.result import read_results
from triglyph.tissue.plain import PlainCohort
from triglyph.tissue.split import patient_folds
from triglyph.workflows.bench_run import bench_run


def table(*, patients=4, n=60, spatial=True, seed=0):
    """Expression and classes follow an embedding that is kept in `obsm`."""
    rng = np.random.default_rng(seed)
    rows = patients * n
    state = rng.normal(size=(rows, 6))
    rate = np.exp(0.6 * state @ np.random.default_rng(1).normal(size=(6, 30)) / 2 + 1.5)
    obs = pd.DataFrame(
        {
            "who": np.repeat([f"P{i}" for i in range(patients)], n),
            "slide": np.repeat([f"s{i}" for i in range(2 * patients)], n // 2),
            "kind": np.where(state[:, 0] > 0, "tumour", "stroma"),
        },
        index=[f"c{i}" for i in range(rows)],
    )
    made = ad.AnnData(sp.csr_matrix(rng.poisson(rate)), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(30)]))
    made.obsm["mine"] = (state + 0.2 * rng.normal(size=state.shape)).astype(np.float32)
    if spatial:
        side = int(np.ceil(np.sqrt(n)))
        place = np.arange(rows) % n
        made.obsm["spatial"] = np.stack([place % side, place // side], axis=1).astype(float)
    return made


@pytest.fixture
def path(tmp_path):
    table().write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_sections_and_patients_are_those_of_the_columns(path):
    cohort = PlainCohort.read(path, patient="who", section="slide", label="kind", um_per_unit=100.0)
    assert cohort.patients == {f"s{i}": f"P{i // 2}" for i in range(8)}
    section = cohort["s3"]
    rows = np.flatnonzero(table().obs["slide"] == "s3")
    np.testing.assert_array_equal(section.expression()[0].toarray(), table().X.toarray()[rows])
    np.testing.assert_allclose(section.centres_um, table().obsm["spatial"][rows] * 100.0)
    assert list(section.labels) == list(table().obs["kind"].iloc[rows])
    assert sum(len(s.rows) for s in cohort) == len(table())


def test_without_a_section_column_a_patient_is_one_section(path):
    assert PlainCohort.read(path, patient="who").patients == {f"P{i}": f"P{i}" for i in range(4)}


def test_rows_in_any_order_are_the_same_cohort(path, tmp_path):
    order = np.random.default_rng(0).permutation(240)
    table()[order].copy().write_h5ad(tmp_path / "other.h5ad")
    one, two = (PlainCohort.read(p, patient="who") for p in (path, tmp_path / "other.h5ad"))
    for a, b in zip(one, two, strict=True):
        assert sorted(a.table.obs_names) == sorted(b.table.obs_names)
        assert a.expression()[0].sum() == b.expression()[0].sum()


@pytest.mark.parametrize(
    ("change", "options", "error", "said"),
    [
        (None, {"patient": "donor"}, SourceError, "no column 'donor'"),
        (None, {"patient": "who", "section": "block"}, SourceError, "no column 'block'"),
        (None, {"patient": "who", "counts_layer": "raw"}, SourceError, "no layer 'raw'"),
        (None, {"patient": "who", "section": "kind"}, ContractError, "of several patients"),
        (None, {"patient": "who", "um_per_unit": 0.0}, ContractError, "µm per unit"),
        ("unknown patient", {"patient": "who"}, ContractError, "have no patient"),
        ("no name", {"patient": "who"}, ContractError, "patient is not known"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, change, options, error, said):
    made = table()
    if change == "unknown patient":
        made.obs.loc["c3", "who"] = np.nan
    if change == "no name":
        made.obs.loc["c3", "who"] = "NA "
    made.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(error, match=said):
        PlainCohort.read(tmp_path / "cells.h5ad", **options)


def test_a_file_that_is_no_anndata_is_refused(tmp_path):
    (tmp_path / "cells.h5ad").write_text("no")
    with pytest.raises(SourceError, match="not readable"):
        PlainCohort.read(tmp_path / "cells.h5ad")
    with pytest.raises(SourceError, match="not there"):
        PlainCohort.read(tmp_path / "none.h5ad")


def test_normalised_values_are_no_counts(tmp_path):
    made = table()
    made.layers["raw"] = made.X.copy()
    made.X = made.X * 0.5
    made.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ContractError, match="not counts"):
        PlainCohort.read(tmp_path / "cells.h5ad", patient="who")["P0"].expression()
    cohort = PlainCohort.read(tmp_path / "cells.h5ad", patient="who", counts_layer="raw")
    assert cohort["P0"].expression()[0].sum() == table()[table().obs["who"] == "P0"].X.sum()


OPTIONS = {"embedding": "mine", "split": "leave-one-patient-out", "patient_column": "who", "quiet": True}


def test_an_embedding_of_a_table_is_judged_patient_by_patient(path, tmp_path):
    out = bench_run("expression", cohort=path, out=tmp_path / "run", um_per_unit=100.0, set=["n_genes=10"], **OPTIONS)
    rows = read_results(out)
    mine = {
        r.fold: r.value
        for r in rows
        if (r.model, r.metric, r.aggregation, r.group) == ("mine", "pearson", "per-section", "all")
    }
    assert set(mine) == {"0", "1", "2", "3"}
    assert min(mine.values()) > 0.3
    assert {r.level for r in rows} == {"patient"}
    assert "position" in {r.model for r in rows}
    over = [r for r in rows if r.aggregation == "folds of per-section" and (r.model, r.metric) == ("mine", "pearson")]
    assert [r.value for r in over] == [pytest.approx(np.mean(list(mine.values())))]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["subject"] == {"embedding": "mine", "obsm": "mine", "modality": "image"}


def test_all_leaves_out_what_a_table_without_counts_and_a_patient_without_labels_cannot_show(tmp_path, monkeypatch):
    one_community = lambda x, *, resolutions, **_: {r: np.zeros(len(x)) for r in resolutions}  # noqa: E731
    monkeypatch.setattr("triglyph.bench.labels.clustering.leiden", one_community)
    made = table(patients=3)
    made.X = made.X * 0.5
    made.obs.loc[made.obs["who"] == "P0", "kind"] = ""
    made.write_h5ad(tmp_path / "cells.h5ad")
    options = {**OPTIONS, "label_column": "kind", "baselines": False}
    out = bench_run("all", cohort=tmp_path / "cells.h5ad", out=tmp_path / "run", **options)
    assert {r.fold for r in read_results(out)} == {"1", "2", ""}
    left_out = json.loads((out / "manifest.json").read_text())["left_out"]
    assert {f"{name}: the table holds values that are not counts" for name in ("expression", "hest-benchmark")} < {
        *left_out
    }
    assert "linear-probe, fold 0: no test location has a label" in left_out
    made.obs["kind"] = ""
    made.write_h5ad(tmp_path / "bare.h5ad")
    with pytest.raises(ContractError, match="no protocol applies here"):
        bench_run("all", cohort=tmp_path / "bare.h5ad", out=tmp_path / "none", **options)


def test_labels_are_judged_by_the_column_that_is_named(path, tmp_path):
    out = bench_run("linear-probe", cohort=path, out=tmp_path / "run", label_column="kind", **OPTIONS)
    mine = [r.value for r in read_results(out) if (r.model, r.metric, r.aggregation) == ("mine", "auroc", "macro")]
    assert min(mine) > 0.9


def test_without_coordinates_position_and_intervals_are_left_out_and_the_rest_works(tmp_path):
    table(spatial=False).write_h5ad(tmp_path / "cells.h5ad")
    out = bench_run("expression", cohort=tmp_path / "cells.h5ad", out=tmp_path / "run", set=["n_genes=5"], **OPTIONS)
    rows = read_results(out)
    assert "position" not in {r.model for r in rows}
    assert {r.ci_unit for r in rows} == {""}
    assert all(r.value is None for r in rows if r.metric == "moran")
    assert any(r.value > 0.3 for r in rows if r.metric == "pearson" and r.model == "mine" and r.value is not None)


def test_a_split_of_ones_own_is_a_file(path, tmp_path):
    cohort = PlainCohort.read(path, patient="who")
    split = patient_folds(cohort.patients, name="two", folds=2)
    (tmp_path / "two.json").write_text(split.model_dump_json())
    assert cohort.split(str(tmp_path / "two.json")) == split
    with pytest.raises(SplitError, match="no split 'three'"):
        cohort.split("three")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"embedding": "yours"}, ContractError, "obsm has no 'yours'"),
        ({"model": "run", "embedding": None}, RecipeError, "a model reads sections of a cohort"),
    ],
)
def test_what_a_table_cannot_be_asked_is_said(path, tmp_path, changes, error, said):
    with pytest.raises(error, match=said):
        bench_run("expression", cohort=path, out=tmp_path / "run", **{**OPTIONS, **changes})


def test_what_an_embedding_was_fitted_on_is_not_known_unless_declared(path, tmp_path):
    options = {"cohort": path, "set": ["n_genes=5", "n_boot=0"], "baselines": False, **OPTIONS}
    said = read_results(bench_run("expression", out=tmp_path / "said", fitted_elsewhere=True, **options))
    rows = read_results(bench_run("expression", out=tmp_path / "run", **options))
    assert {r.transductive for r in rows} == {("what the embedding was fitted on is not known",)}
    assert {r.transductive for r in said} == {()}


@pytest.mark.parametrize(
    ("axis", "said"), [("obs_names", "locations with one name"), ("var_names", "genes with one name")]
)
def test_names_that_occur_twice_are_refused(tmp_path, axis, said):
    made = table()
    names = list(getattr(made, axis))
    setattr(made, axis, [names[1], *names[1:]])
    with pytest.raises(ContractError, match=said):
        PlainCohort(made, tmp_path / "cells.h5ad", patient="who")


def test_a_location_without_a_section_is_refused(tmp_path):
    made = table()
    made.obs.loc["c3", "slide"] = np.nan
    with pytest.raises(ContractError, match="have no section"):
        PlainCohort(made, tmp_path / "cells.h5ad", patient="who", section="slide")


def test_the_digest_changes_with_how_the_file_is_read(path):
    ways = [{}, {"label": "kind"}, {"um_per_unit": 2.0}, {"section": "slide"}]
    assert len({PlainCohort.read(path, patient="who", **way).digest() for way in ways}) == 4
