"""The demo, from simulation to report, and what it must show on patients that were held out."""

from __future__ import annotations

import pytest

from triglyph.bench.null import NULL
from triglyph.metrics.result import Result, read_results
from triglyph.workflows.demo import demo

RETRIEVAL = ("retrieval", "image->expression", "recall@10", "per-section")
ZERO_SHOT = ("zero-shot", "text->image", "auroc", "macro")


def rows(results: list[Result], key: tuple[str, str, str, str], role: str) -> list[Result]:
    return [
        r
        for r in results
        if (r.task, r.direction, r.metric, r.aggregation) == key and r.group == "all" and r.role == role
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_finds_pairs_and_names_tissue_in_patients_it_has_not_seen(tmp_path):
    report = demo(out=tmp_path)
    results = read_results(tmp_path)

    (found,) = rows(results, RETRIEVAL, "method")
    assert found.level == "patient"
    assert found.n_gallery is not None
    assert found.n_gallery >= 400
    assert found.chance == pytest.approx(10 / found.n_gallery, rel=0.02)
    assert found.value is not None
    assert found.value >= 8 * found.chance

    (named,) = rows(results, ZERO_SHOT, "method")
    assert named.level == "patient"
    assert named.value is not None
    assert named.value >= 0.90

    for row, key in ((found, RETRIEVAL), (named, ZERO_SHOT)):
        null = sorted(r.value for r in rows(results, key, "control") if r.model == NULL and r.value is not None)
        assert len(null) >= 20
        assert row.value > null[-2], "above the 95th percentile of its null"
    assert sum(null) / len(null) == pytest.approx(0.5, abs=0.05)
    assert any("stain-texture" in r.model for r in rows(results, RETRIEVAL, "baseline"))
    assert any("stain-texture" in r.model for r in rows(results, ZERO_SHOT, "baseline"))

    text = report.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") >= 4
    before = report.stat().st_mtime_ns
    demo(out=tmp_path)  # run again, it goes through without training anew
    assert read_results(tmp_path) == results
    assert report.stat().st_mtime_ns >= before
