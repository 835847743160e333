"""Report parts: self-contained HTML, figures for odd input, tables that print every patient."""

from __future__ import annotations

import json

import numpy as np
import pytest

import small
from triglyph.errors import ContractError
from triglyph.metrics.result import Result, read_results, write_results
from triglyph.report import figures, tables
from triglyph.report.html import Part, Picture, Table, write_html
from triglyph.report.run_report import curves
from triglyph.tissue.section import Section

PNG = b"\x89PNG\r\n\x1a\n"


def result(**changes: object) -> Result:
    row = {
        "task": "retrieval",
        "protocol": "retrieval/1/00000000",
        "metric": "recall@10",
        "value": 0.25,
        "model": "aligned",
        "role": "method",
        "split": "patients",
        "level": "patient",
        "direction": "image->expression",
        "aggregation": "per-section",
        "chance": 0.02,
        "n": 490,
        "n_gallery": 490,
    }
    return Result.model_validate({**row, **changes})


def test_the_page_loads_nothing_and_escapes_what_it_is_given(tmp_path):
    part = Part("Losses", "a < b", [Picture(PNG, "caption"), Table(["x"], [["<script>"]], emphasis=frozenset({0}))])
    page = write_html(tmp_path / "r.html", title="T", lead="L", facts=[("0.9", "auroc")], parts=[part]).read_text()
    assert "data:image/png;base64," in page
    assert "<script>" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "a &lt; b" in page


def test_figures_are_pictures_and_repeat_to_the_byte(tmp_path):
    section = Section.write(small.draft(folder=tmp_path), tmp_path / "out" / "S1")
    n = section.n_locations
    scores = np.random.default_rng(0).normal(size=(n, 2))
    scores[3] = np.nan
    classes = ["tumour", "stroma"]

    def draw() -> bytes:
        return figures.zero_shot_map(
            section,
            truth=section.labels,
            scores=scores,
            classes=["tumour", "stroma", "lymphoid"][:2],
            aurocs={"tumour": 0.9, "stroma": None},
        )

    section.table.obs["label"] = np.where(section.labels == "lymphoid", "", section.labels)
    assert draw() == draw()
    assert draw().startswith(PNG)
    window = np.zeros((16, 16, 3), np.uint8)
    drawn = figures.queries(section, texts=classes, scores=scores, windows=[[window], [window, window]], window_um=80)
    assert drawn.startswith(PNG)
    assert figures.losses({"total": ([0], [1.0])}).startswith(PNG)


def test_a_section_without_an_image_is_drawn_too(tmp_path):
    section = Section.write(small.draft(), tmp_path / "S1")
    scores = np.zeros((section.n_locations, 1))
    picture = figures.queries(
        section, texts=["x"], scores=scores, windows=[[np.zeros((8, 8, 3), np.uint8)]], window_um=9
    )
    assert picture.startswith(PNG)


def test_retrieval_is_drawn_with_its_null_and_chance():
    rows = [result(group=s, value=v) for s, v in (("S1", 0.2), ("S2", 0.3), ("all", 0.25))]
    rows += [result(model="null (shuffled pairs)", role="control", seed=i, value=0.02) for i in range(20)]
    rows += [result(model="ridge", role="baseline", group="S1", value=0.1)]
    assert figures.retrieval(rows).startswith(PNG)


def test_tables_show_summaries_once_and_every_patient():
    rows = [
        result(),
        result(model="null: mean", role="control"),
        result(model="null", role="control", seed=1),
        result(aggregation="per-patient", group="P1", value=0.2),
        result(aggregation="per-patient", group="P2", value=None),
    ]
    summary = tables.summary(rows, [("retrieval", "image->expression", "recall@10", "per-section")])
    assert [row[3] for row in summary.rows] == ["aligned", "null: mean"]
    assert summary.emphasis == {0}
    people = tables.by_patient(rows, [("retrieval", "image->expression", "recall@10")])
    assert people.header[-2:] == ["patient P1", "patient P2"]
    assert people.rows[0][-2:] == ["0.200", ""]


def test_results_are_read_back_as_they_were_and_undefined_stays_undefined(tmp_path):
    import polars as pl

    rows = [result(), result(value=None, transductive=("z-scored per section",), seed=3)]
    write_results(rows, tmp_path)
    assert read_results(tmp_path) == rows
    table = pl.read_parquet(tmp_path / "results.parquet")
    assert table["value"].to_list() == [0.25, None]
    assert set(json.loads((tmp_path / "results.json").read_text())[0]) == set(Result.model_fields)
    with pytest.raises(ContractError, match="finite"):
        write_results([result(value=float("nan"))], tmp_path / "bad")


def test_curves_are_read_from_the_log(tmp_path):
    lines = [{"step": i, "loss": {"total": 1.0 / (i + 1), "image-text": 2.0}} for i in range(3)]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    found = curves(tmp_path / "log.jsonl")
    assert found["total"] == ([0, 1, 2], [1.0, 0.5, 1 / 3])
