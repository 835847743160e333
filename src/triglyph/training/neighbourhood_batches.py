"""Batches of whole neighbourhoods, streamed section by section.

Stamp (ICLR 2026) trains on groups of neighbouring locations. Groups are drawn anew every epoch, one section at a time,
and a cohort may be larger than memory: every epoch shuffles the sections, takes them in windows of `sections_at_once`,
and shuffles the groups of a window together. The epoch is the windows one after the other, and a step is a slice of it.

Where a section's groups lie in the epoch follows from the sizes of sections alone, so any (epoch, step) is computed
from the windows that it lies in, and no other section is looked at: the order is a pure function of (seed, epoch,
step), resumes exactly, and needs the places of two windows at a time, whatever the number of sections.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.cards import digest
from triglyph.errors import ContractError, RecipeError
from triglyph.tissue.neighbourhoods import near, neighbourhoods, reach_um
from triglyph.training.batches import BatchOrder

OPEN_WINDOWS = 2
"""A step may lie across the border of two windows."""


class Neighbourhoods(NamedTuple):
    """What a step sees: whole groups, one after the other."""

    rows: NDArray[np.int64]
    """(k,) dataset rows; the first of every group is its centre."""
    group: NDArray[np.int64]
    """(k,) which group a row is of: 0, 1, ... in order."""
    near: NDArray[np.bool_]
    """(k,) whether a row lies within reach of its group's centre; the centre itself does not."""
    centres_um: NDArray[np.float64]
    """(k, 2) of the rows, NaN where they have no place"""


class _Window(NamedTuple):
    """The groups of the sections of a window, in the order of the epoch."""

    rows: NDArray[np.int64]
    """(g, size) dataset rows, -1 where a group is short"""
    near: NDArray[np.bool_]
    centres_um: NDArray[np.float64]
    """(g, size, 2)"""


class NeighbourhoodBatches(BatchOrder[Neighbourhoods]):
    """Batches of neighbourhoods: every row once an epoch, in a group of its section.

    Parameters
    ----------
    offsets
        (sections + 1,) section s owns the dataset rows offsets[s] to offsets[s + 1]; a section may have none.
    places
        Section s -> (its rows, 2) centres in µm, all NaN where they have no place. Asked for when a step comes to the
        section, and again in every epoch; not kept.
    batch_size
        Rows of a step over all processes, at most: `batch_size // size` groups are taken. The last step of an epoch
        may have fewer; where it has fewer than there are processes, some see nothing at it.
    seed
        With epoch and step it decides the order; with epoch and section, the groups.
    size
        Rows of a group; see `triglyph.tissue.neighbourhoods`.
    reach
        How far from its group's centre a row is near, in pitches of its section: the median distance of neighbours.
    sections_at_once
        Sections whose groups are mixed, and that are in use at a time; None mixes all. A step that lies across two
        windows uses both, and more if windows have fewer groups than a step.
    rank, world_size
        This process takes every `world_size`-th group of each step.

    Raises
    ------
    RecipeError
        A batch holds no group, or a number is out of range.
    ContractError
        There are no rows, or fewer groups in a full step than processes.
    """

    def __init__(
        self,
        offsets: ArrayLike,
        *,
        places: Callable[[int], NDArray[np.float64]],
        batch_size: int,
        seed: int,
        size: int = 9,
        reach: float = 3.0,
        sections_at_once: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.offsets = np.asarray(offsets, dtype=np.int64)
        self.places, self.seed, self.size, self.reach = places, seed, size, reach
        self.sections_at_once = sections_at_once
        self.rank, self.world_size = rank, world_size
        self.epoch = self.step = 0
        self._check()
        self.groups_per_batch = batch_size // size
        if self.groups_per_batch < 1:
            raise RecipeError(
                f"a batch of {batch_size} rows holds no group of {size}",
                where="training.batch_size",
                mend=f"give {size} or more",
            )
        self.groups = -(-np.diff(self.offsets) // size)
        """(sections,) how many groups each has"""
        if self.groups_per_batch < world_size:
            raise ContractError(
                f"{self.groups_per_batch} groups of a step do not go round {world_size} processes",
                where="training.batch_size",
                mend=f"give {world_size * size} rows or more, or fewer processes",
            )
        self._open: OrderedDict[tuple[int, int], _Window] = OrderedDict()

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return int(-(-self.groups.sum() // self.groups_per_batch))

    def batch(self, epoch: int, step: int) -> Neighbourhoods:
        """The groups of this process at a step."""
        self._check_step(step)
        order = self._sections(epoch)
        at_once = self.sections_at_once or len(order)
        # (windows + 1,) where each window begins in the epoch, in groups.
        begins = np.append(0, np.cumsum(self.groups[order]))[[*range(0, len(order), at_once), len(order)]]
        first, last = step * self.groups_per_batch, min((step + 1) * self.groups_per_batch, int(begins[-1]))
        parts: list[_Window] = []
        for window in np.flatnonzero((begins[:-1] < last) & (begins[1:] > first)).tolist():
            whole = self._window(epoch, window, order[window * at_once : (window + 1) * at_once])
            mine = slice(max(0, first - int(begins[window])), last - int(begins[window]))
            parts.append(_Window(whole.rows[mine], whole.near[mine], whole.centres_um[mine]))
        mine = slice(self.rank, None, self.world_size)
        taken, within, centres = (np.concatenate(of)[mine] for of in zip(*parts, strict=True))
        there = taken >= 0
        return Neighbourhoods(taken[there], np.nonzero(there)[0], within[there], centres[there])

    def _sections(self, epoch: int) -> NDArray[np.int64]:
        """Sections that have rows, in the order of an epoch."""
        rng = np.random.default_rng([self.seed, epoch, len(self.groups)])
        return rng.permutation(np.flatnonzero(self.groups))

    def _window(self, epoch: int, window: int, sections: NDArray[np.int64]) -> _Window:
        key = (epoch, window)
        if key not in self._open:
            while len(self._open) >= OPEN_WINDOWS:
                self._open.popitem(last=False)
            drawn = [self._grouped(epoch, int(section)) for section in sections]
            # Numbers up to that of sections seed their groups and the order of sections.
            rng = np.random.default_rng([self.seed, epoch, len(self.groups) + 1 + window])
            order = rng.permutation(sum(len(part.rows) for part in drawn))
            self._open[key] = _Window(*(np.concatenate(parts)[order] for parts in zip(*drawn, strict=True)))
        self._open.move_to_end(key)
        return self._open[key]

    def _grouped(self, epoch: int, section: int) -> _Window:
        """A section's groups."""
        first, end = self.offsets[section : section + 2].tolist()
        centres = np.asarray(self.places(section), dtype=np.float64)
        if centres.shape != (end - first, 2):
            raise ContractError(
                f"{centres.shape} places of {end - first} rows",
                where=f"section {section} of NeighbourhoodBatches",
                mend="give x, y of those rows that are trained on",
            )
        groups = neighbourhoods(centres, size=self.size, seed=[self.seed, epoch, section])
        close = near(centres, groups, reach_um=reach_um(centres, pitches=self.reach))
        return _Window(np.where(groups < 0, -1, groups + first), close, centres[groups])

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "size": self.size,
            "groups_per_batch": self.groups_per_batch,
            "reach": self.reach,
            "sections_at_once": self.sections_at_once,
            "offsets": digest(self.offsets.tolist()),
        }

    def _check(self) -> None:
        o = self.offsets
        if o.ndim != 1 or len(o) < 2 or o[0] != 0 or (np.diff(o) < 0).any() or not o[-1]:
            raise ContractError(
                "offsets do not say which rows are of which section",
                where="NeighbourhoodBatches",
                mend="give 0 and the ends of sections, ascending, with 1 row or more",
            )
        if self.size < 1 or not self.reach >= 0 or (self.sections_at_once is not None and self.sections_at_once < 1):
            raise RecipeError(
                f"size {self.size}, reach {self.reach}, sections_at_once {self.sections_at_once}",
                where="training",
                mend="give a size of 1 or more, a reach of 0 or more, and 1 section or more",
            )
        if not 0 <= self.rank < self.world_size:
            raise ContractError(f"rank {self.rank} of {self.world_size} processes", where="NeighbourhoodBatches")
