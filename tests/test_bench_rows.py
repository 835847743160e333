"""Intervals of rows: who has no value is no unit, and what hangs on few blocks says so."""

from __future__ import annotations

import numpy as np
import pytest

from bench_fakes import FakeModel, FakeSection
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.labels.classes import Scored, score_rows
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.rows import Measure, Rows
from triglyph.metrics.merit import bounds_of


def judged(sections):
    """Rows of fake sections under a protocol whose blocks are 700 µm wide."""
    trial = Trial(train=(), test=tuple(sections), patients={s.id: s.patient for s in sections}, split="s")
    return Rows.start(LinearProbe(n_boot=200, block_um=700.0), Subject("m", FakeModel()), trial)


def measure(value, *, n_blocks=16, n_effective=None, spread=0.02, seed=0):
    draws = np.random.default_rng(seed).normal(value, spread, 200)
    return Measure(value=value, n=100, draws=draws, n_blocks=n_blocks, n_effective=n_effective)


def per_patient(measures):
    sections = [FakeSection(f"S{i}", f"P{i}") for i in range(len(measures))]
    rows = judged(sections).per_section(
        {s.id: m for s, m in zip(sections, measures, strict=True)}, metric="auroc", direction="x"
    )
    return {r.group: r for r in rows if r.aggregation == "per-patient"}


def test_blocks_of_a_section_without_a_value_are_no_units():
    nothing = Measure(value=float("nan"), n=0, draws=np.full(200, np.nan), n_blocks=2)
    both, one = (per_patient(m)["all"] for m in ([measure(0.8), nothing], [measure(0.8)]))
    assert (both.ci_low, both.ci_high, both.n_units) == (one.ci_low, one.ci_high, 16)


def test_patients_without_a_value_are_no_units():
    values = [0.6, 0.7, 0.8, 0.75, 0.65, 0.7, float("nan")]
    found = per_patient([measure(v) if v == v else Measure(value=v, n=0) for v in values])["all"]
    assert (found.ci_unit, found.n_units) == ("patient", 6)
    fewer = per_patient([measure(v) if i else Measure(value=float("nan"), n=0) for i, v in enumerate(values)])["all"]
    assert fewer.ci_low is None


def test_an_interval_of_few_effective_blocks_is_wider_and_of_one_there_is_none():
    whole, few, one = (per_patient([measure(0.8, n_effective=n)])["P0"] for n in (None, 4.0, 1.2))
    assert few.ci_high - few.ci_low > 1.5 * (whole.ci_high - whole.ci_low)
    assert few.n_units == whole.n_units == 16
    assert one.ci_low is None


def test_intervals_end_where_the_metric_ends():
    found = per_patient([measure(0.98, spread=0.05)])["P0"]
    assert found.ci_high == 1.0
    assert bounds_of("recall@5") == (0.0, 1.0)
    assert bounds_of("something else") == (-np.inf, np.inf)


@pytest.mark.parametrize("people", [1, 3])
def test_a_class_that_lies_in_one_block_has_an_auroc_and_no_interval(people):
    sections = [FakeSection(f"S{i}", f"P{i}") for i in range(people)]
    rng, scored = np.random.default_rng(0), []
    for section in sections:
        corner = (section.centres_um < 600).all(axis=1)
        spread = np.arange(len(corner)) % 3 == 0
        truth = np.stack([corner, spread], axis=1)
        scored.append(Scored(section, np.arange(len(corner)), truth + rng.normal(size=truth.shape), truth))
    rows = score_rows(judged(sections), scored, classes=["corner", "spread"], direction="x")
    by = {(r.aggregation, r.group): r for r in rows}
    assert by["per-class", "corner"].value > 0.6
    assert by["per-class", "corner"].ci_low is None
    for aggregation in ("per-class", "pooled"):
        assert by[aggregation, "spread"].ci_low < by[aggregation, "spread"].value < by[aggregation, "spread"].ci_high
    assert people > 1 or by["pooled", "corner"].ci_low is None
