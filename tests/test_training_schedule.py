from __future__ import annotations

import math

import pytest
import torch

from test_models_alignment import model
from triglyph.training.recipe import TrainingConfig
from triglyph.training.schedule import Schedule, parameter_groups


def test_the_rate_climbs_then_follows_a_cosine_to_its_floor() -> None:
    schedule = Schedule.of(TrainingConfig(warmup=0.1, min_lr=0.05), total=100)
    assert [schedule.factor(s) for s in range(10)] == pytest.approx(
        [(s + 1) / 10 * (0.05 + 0.95 * (1 + math.cos(math.pi * s / 100)) / 2) for s in range(10)]
    )
    assert schedule.factor(50) == pytest.approx(0.525)
    assert schedule.factor(99) == pytest.approx(0.05, abs=1e-3)
    assert not schedule.heads_only(0)


def test_after_the_frozen_warm_up_the_rate_climbs_anew() -> None:
    # SpatialWhisperer: 3 % of the steps train heads alone, then towers join and the warm-up starts again.
    schedule = Schedule.of(TrainingConfig(warmup=0.03, frozen_warmup=0.03), total=1000)
    assert [schedule.heads_only(s) for s in (0, 29, 30)] == [True, True, False]
    assert schedule.factor(30) == pytest.approx(schedule.factor(0), rel=0.01)
    assert schedule.factor(29) > 20 * schedule.factor(30)
    assert schedule.factor(60) > 0.95


def test_no_step_has_a_rate_of_zero() -> None:
    for total in (1, 2, 7, 100):
        schedule = Schedule.of(TrainingConfig(min_lr=0.0), total=total)
        assert all(schedule.factor(s) > 0 for s in range(total))


def test_only_matrices_of_learning_parts_decay() -> None:
    m = model("locked")
    groups = parameter_groups(m, TrainingConfig(weight_decay=0.1, tower_lr=0.5))
    named = {id(p): name for name, p in m.named_parameters()}
    decayed = {named[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {f"heads.{x}.{part}.weight" for x in m.modalities for part in ("inner", "outer", "skip")}
    assert not any(named[id(p)].startswith("encoders.") for g in groups for p in g["params"])
    learning = model()
    groups = parameter_groups(learning, TrainingConfig(tower_lr=0.5))
    assert {g["scale"] for g in groups} == {0.5, 1.0}
    assert sum(len(g["params"]) for g in groups) == len(list(learning.parameters()))
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in learning.parameters())
    assert isinstance(groups[0]["params"][0], torch.nn.Parameter)
