"""Ceilings of labels bound every metric that a method has, also where a probe's penalty would leave it no weight."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bench_fakes import CLASSES, FakeModel, FakeSection
from triglyph.bench.ceilings.labels import UNPENALISED
from triglyph.bench.ceilings.rows import ceiling_rows
from triglyph.bench.ceilings.subjects import DOMAINS
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.labels.zero_shot import ZeroShot
from triglyph.bench.truth import TrueDomains


class Known(FakeSection):
    """Stripes of classes that are the domains; one location in five is labelled at random."""

    def __post_init__(self):
        super().__post_init__()
        self.shares = (self.labels[:, None] == np.array(CLASSES)).astype(float)
        rng = np.random.default_rng(self.seed)
        self.labels[::5] = rng.choice(CLASSES, len(self.labels[::5]), p=[0.1, 0.1, 0.8])
        self.info = SimpleNamespace(source={"truth_domains": list(CLASSES)})

    @property
    def table(self):
        return SimpleNamespace(obs={}, layers={}, obsm={"truth_domains": self.shares})


@pytest.fixture(scope="module")
def known():
    made = [Known(f"s{i}", f"p{i}", seed=i, side=9) for i in range(4)]
    return Trial(tuple(made[:2]), tuple(made[2:]), {s.id: s.patient for s in made}, "made")


def of_all(rows):
    return {
        (r.direction, r.metric, r.aggregation, r.group): r.value
        for r in rows
        if r.aggregation in ("macro", "per-patient")
    }


@pytest.mark.parametrize("variant", ["default", "her2st", "A", "B", "C"])
def test_no_penalty_of_a_variant_keeps_the_ceiling_from_the_labels(known, variant):
    protocol = LinearProbe(variant=variant, n_boot=0)
    rows = ceiling_rows(protocol, known, FakeModel())
    found = of_all(rows)["image->label", "balanced-accuracy", "per-patient", "all"]
    assert all(UNPENALISED in r.transductive for r in rows)
    # Stripes are right but for the one location in five: nobody who knows them alone does better.
    best = np.mean([
        np.mean([(np.array(CLASSES)[s.shares.argmax(1)] == s.labels)[s.labels == c].mean() for c in CLASSES])
        for s in known.test
    ])  # fmt: skip
    assert found == pytest.approx(best, abs=0.03)
    if variant == "A":  # the same shares in their own unit: no weight, one class for all
        own = of_all(protocol.run(Subject(DOMAINS, TrueDomains()), known))
        assert own["image->label", "balanced-accuracy", "per-patient", "all"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("grouping", ["sum", "max"])
def test_words_have_a_ceiling_of_every_metric_and_super_class_that_bounds_them(known, grouping):
    protocol = ZeroShot(n_boot=0, groups={"lobule": ("fat", "gland")}, grouping=grouping)
    method = of_all(protocol.run(Subject("mine", FakeModel(noise=1.0)), known))
    ceiling = of_all(ceiling_rows(protocol, known, FakeModel()))
    assert set(ceiling) == set(method)
    metrics = {"auroc", "auroc@lobule", "macro-f1", "macro-f1@calibrated"}
    assert {metric for _, metric, _, _ in ceiling} == metrics
    assert all(ceiling[of] >= method[of] for of in ceiling)
    for metric in ("macro-f1", "macro-f1@calibrated"):
        assert ceiling["text->image", metric, "per-patient", "all"] > 0.75
    plain = ceiling_rows(ZeroShot(n_boot=0, calibrate=False), known, FakeModel())
    assert {r.metric for r in plain} == {"auroc", "macro-f1"}
