"""What a step does beside its batch, as pure functions of the step: learning rate, who learns, random state.

Since nothing here has a state, nothing has to be saved: a resumed run computes what an uninterrupted one would have.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from triglyph.models.method import Method
from triglyph.training.recipe import TrainingConfig


class Schedule(NamedTuple):
    """Linear warm-up, then a cosine over all steps to a floor.

    With a frozen warm-up only the heads learn at first; then towers join and the rate climbs anew, as SpatialWhisperer
    does (3 % of the steps each, floor at a twentieth).
    """

    total: int
    warmup: int
    frozen: int
    floor: float

    @classmethod
    def of(cls, config: TrainingConfig, *, total: int) -> Schedule:
        """The schedule of a recipe for a number of steps."""
        warmup, frozen = (math.ceil(fraction * total) for fraction in (config.warmup, config.frozen_warmup))
        return cls(total, warmup, frozen, config.min_lr)

    def heads_only(self, step: int) -> bool:
        """Whether towers are still frozen at a step."""
        return step < self.frozen

    def factor(self, step: int) -> float:
        """The learning rate at a step, as a fraction of its peak; never 0, so that no step is lost."""
        since = step if step < self.frozen else step - self.frozen
        climb = min(1.0, (since + 1) / self.warmup) if self.warmup else 1.0
        cosine = (1 + math.cos(math.pi * step / self.total)) / 2
        return climb * (self.floor + (1 - self.floor) * cosine)


def parameter_groups(model: Method, config: TrainingConfig) -> list[dict[str, Any]]:
    """What learns, in groups with the `scale` of their rate; only matrices of linear maps decay."""
    decaying = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("encoders."), id(parameter) in decaying), []).append(parameter)
    return [
        {
            "params": parameters,
            "scale": config.tower_lr if tower else 1.0,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (tower, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def clip_gradients(model: Method, limit: float | None) -> Tensor:
    """The norm of the gradients of all parameters together, which are scaled down to `limit` where it is larger.

    What learns apart (`Method.apart`) is no part of that norm and is scaled by its own: it changes nothing else.
    """
    most = math.inf if limit is None else limit
    own = {id(p) for module in model.apart for p in module.parameters()}
    learning = [p for p in model.parameters() if p.grad is not None]
    for module in model.apart:
        nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], most)
    return nn.utils.clip_grad_norm_([p for p in learning if id(p) not in own], most)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Set every random state to a function of (seed, step, rank): dropout needs no saved state to be repeated."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(2)
    torch.manual_seed((int(words[0]) << 31) ^ int(words[1]))
    random.seed(int(words[0]))
    # Libraries that draw from the global states must repeat too.
    np.random.seed(int(words[1]))


@contextmanager
def reproducible(*, on_cpu: bool) -> Iterator[None]:
    """Fixed order of summation on the CPU inside the block; the caller's random states are given back after it."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    was = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    filled = deterministic.fill_uninitialized_memory
    try:
        if on_cpu:
            torch.use_deterministic_algorithms(mode=True)
            deterministic.fill_uninitialized_memory = False
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warn_only)
        deterministic.fill_uninitialized_memory = filled
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
