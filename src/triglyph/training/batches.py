"""Batches: which rows each step sees, a pure function of (seed, epoch, step).

Nothing else decides it: not the number of processes, loader workers, or how often a run was stopped and resumed. Rows
that have the same modalities form a group; groups are mixed evenly, so every batch holds each in proportion, or by
given weights, in which case a small group is gone through more often than a large one. With `sections_per_batch` rows
come in handfuls of one section: a batch then holds as many rows of each of its sections.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ContractError, RecipeError

Seen = TypeVar("Seen")
"""What one process is given at a step."""


class BatchOrder(abc.ABC, Generic[Seen]):
    """Batches endless over epochs, from any (epoch, step) on.

    Iterating yields from the current position to the end of its epoch and leaves the position at the start of the
    next one, as a sampler does.
    """

    epoch: int
    step: int

    @property
    @abc.abstractmethod
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""

    @abc.abstractmethod
    def batch(self, epoch: int, step: int) -> Seen:
        """What this process sees at a step."""

    @abc.abstractmethod
    def _identity(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same."""

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Seen]:
        while self.step < self.steps_per_epoch:
            seen = self.batch(self.epoch, self.step)
            self.step += 1
            yield seen
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Position, and what must be equal for it to mean the same."""
        return {"epoch": self.epoch, "step": self.step, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position.

        Raises
        ------
        ContractError
            It was saved over other rows, or with another seed or batch size.
        """
        mine = self._identity()
        if other := [f"{key}: {state.get(key)} saved, {mine[key]} now" for key in mine if state.get(key) != mine[key]]:
            raise ContractError(
                f"the saved position is of other batches ({'; '.join(other)})",
                where=type(self).__name__,
                mend="resume with the data and recipe the run was started with",
            )
        self.epoch, self.step = int(state["epoch"]), int(state["step"])

    def _check_step(self, step: int) -> None:
        if not 0 <= step < self.steps_per_epoch:
            raise ContractError(f"step {step} of an epoch of {self.steps_per_epoch}", where=type(self).__name__)


class Batches(BatchOrder[NDArray[np.int64]]):
    """Batches of rows.

    Parameters
    ----------
    groups
        (n,) name of the group of each row.
    batch_size
        Rows of a step over all processes.
    seed
        With epoch and step it decides the order.
    weights
        Group -> share of a batch, in any unit; groups that are not named get none. None mixes in proportion to size.
    sections, sections_per_batch
        (n,) section of each row, and how many sections a batch holds equally many rows of (now and then one twice).
        None draws rows by themselves. A section is gone through once before any row of it comes again, and its last
        handful is filled up with other rows of it: none is twice in a handful of a section with rows enough.
    drop_last
        Leave out the rows that do not fill a batch; they differ between epochs.
    rank, world_size
        This process takes every `world_size`-th row of each batch.
    """

    def __init__(
        self,
        groups: ArrayLike,
        *,
        batch_size: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
        sections: ArrayLike | None = None,
        sections_per_batch: int | None = None,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.groups = np.asarray(groups).astype(str)
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        self.rank, self.world_size = rank, world_size
        self.rows = {str(name): np.flatnonzero(self.groups == name) for name in np.unique(self.groups)}
        self.weights = None if weights is None else self._checked(weights)
        self.epoch = self.step = 0
        n = len(self.groups)
        self.handful, self._members = 1, dict[str, list[NDArray[np.intp]]]()
        if sections_per_batch is not None:
            if sections is None or len(np.asarray(sections)) != n or batch_size % sections_per_batch:
                raise RecipeError(
                    f"{batch_size} rows do not divide into {sections_per_batch} sections",
                    where="training.sections_per_batch",
                    mend="choose a divisor of training.batch_size",
                )
            self.handful, of = batch_size // sections_per_batch, np.asarray(sections)
            self._members = {g: [rows[of[rows] == s] for s in np.unique(of[rows])] for g, rows in self.rows.items()}
        if n == 0 or (drop_last and n < batch_size):
            raise ContractError(
                f"{n} rows do not fill a batch of {batch_size}", where="training.batch_size", mend="use a smaller batch"
            )
        if not 0 <= rank < world_size:
            raise ContractError(f"rank {rank} of {world_size} processes", where="Batches")
        self._kept: tuple[int, NDArray[np.int64]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        n = len(self.groups)
        if self.handful > 1:
            n = self.handful * max(self.batch_size // self.handful, n // self.handful)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def batch(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Rows of this process at a step."""
        self._check_step(step)
        whole = self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        return whole[self.rank :: self.world_size]

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "groups": {name: len(rows) for name, rows in self.rows.items()},
            "weights": self.weights,
            "handful": self.handful,
        }

    def _checked(self, weights: Mapping[str, float]) -> dict[str, float]:
        if unknown := sorted(set(weights) - set(self.rows)):
            raise RecipeError(
                f"no rows have exactly the modalities {', '.join(unknown)}",
                where="training.mixing",
                mend=f"groups of this data: {', '.join(f'{k} ({len(v)})' for k, v in self.rows.items())}",
            )
        used = {name: float(w) for name, w in weights.items() if w > 0}
        if not used or any(not 0 <= w < float("inf") for w in weights.values()):
            raise RecipeError("weights must be 0 or more, and one above 0", where="training.mixing")
        return used

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._kept is None or self._kept[0] != epoch:
            self._kept = (epoch, self._make_order(epoch))
        return self._kept[1]

    def _make_order(self, epoch: int) -> NDArray[np.int64]:
        """Rows of a whole epoch in their order."""
        n = len(self.groups)
        even = self.weights is None and self.handful == 1
        total = n if even else self.steps_per_epoch * self.batch_size // self.handful
        weights = {k: len(v) for k, v in self.rows.items()} if self.weights is None else self.weights
        places, handfuls = [], []
        for number, (name, share) in enumerate(_apportion(total, weights).items()):
            rng = np.random.default_rng([self.seed, epoch, number])
            drawn = self._by_section(rng, name, share) if self._members else self._one_by_one(rng, name, share)
            # Handful i of a group lies at a random point of the i-th of `share` equal parts of the epoch: groups stay
            # mixed in proportion all along it, and within a group the order is that of the draw.
            places.append(_spread(rng, share))
            handfuls.append(drawn)
        order = np.argsort(np.concatenate(places), kind="stable")
        return np.concatenate(handfuls)[order].astype(np.int64).ravel()

    def _one_by_one(self, rng: np.random.Generator, name: str, share: int) -> NDArray[np.intp]:
        """(share, 1) rows of a group, each as often as any other but for one."""
        return _handfuls(rng, self.rows[name], share, 1)

    def _by_section(self, rng: np.random.Generator, name: str, share: int) -> NDArray[np.intp]:
        """(share, handful) rows of a group, each line of one section, the sections in proportion and mixed."""
        sections = self._members[name]
        # Parts of a handful are rounded up or down by chance, so that small sections have their share over the epochs.
        upto = np.cumsum([0, *map(len, sections)])
        counts = np.diff(np.floor(upto * share / upto[-1] + rng.random()).astype(int))
        places, lines = [], []
        for count, rows in zip(counts.tolist(), sections, strict=True):
            lines.append(_handfuls(rng, rows, count, self.handful))
            places.append(_spread(rng, count))
        return np.concatenate(lines)[np.argsort(np.concatenate(places), kind="stable")]


def _handfuls(rng: np.random.Generator, rows: NDArray[np.intp], count: int, size: int) -> NDArray[np.intp]:
    """(count, size) of `rows`: one shuffle of all of them after another.

    Where a handful lies across two shuffles, the second first gives the rows that the handful has least often, so a
    handful holds no row twice before it holds them all.
    """
    rounds, n = -(-count * size // len(rows)), len(rows)
    drawn = np.empty(rounds * n, dtype=np.intp)
    for at in range(0, rounds * n, n):
        order = rng.permutation(n)
        if begun := at % size:
            often = np.bincount(drawn[at - begun : at], minlength=n)
            first = np.argsort(often[order], kind="stable")[: size - begun]
            order = np.concatenate([order[first], np.delete(order, first)])
        drawn[at : at + n] = order
    return rows[drawn[: count * size]].reshape(count, size)


def _spread(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """(count,) ascending points of [0, 1), one in each of as many equal parts."""
    return (np.arange(count) + rng.random(count)) / max(count, 1)


def _apportion(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Whole shares of `total` by largest remainder."""
    whole = sum(weights.values())
    exact = {name: total * w / whole for name, w in weights.items()}
    shares = {name: int(x) for name, x in exact.items()}
    for name in sorted(exact, key=lambda k: (shares[k] - exact[k], k))[: total - sum(shares.values())]:
        shares[name] += 1
    return shares
