"""How the tests run: as many files at once as there are cores, each on one thread, the long ones first.

A file stays in one worker, so that what it shares between its tests is made once; the files whose tests start and kill
processes stay together, since they share a server that takes longer to start than most of them to run.
`-n0` runs all in one process, `--pdb` as well.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

# How long an example takes says how busy the machine is.
settings.register_profile("any speed", deadline=None)
settings.load_profile("any speed")

START_PROCESSES = ("test_training_resume", "test_lora", "test_training_release", "test_ddp", "test_simulate_workflow")
LONG_FIRST = (*START_PROCESSES, "test_hescape_experiment", "test_docs")
"""Else one of them is begun when all others are done, and a core waits."""


class Files(LoadFileScheduling):
    """A file is a unit of work; those that start processes are one together."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "processes" if file.endswith(tuple(f"/{name}.py" for name in START_PROCESSES)) else file


def pytest_configure(config: pytest.Config) -> None:
    """Before the workers start: two of two threads each are slower than two of one."""
    if config.getoption("numprocesses", None):
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Files:
    return Files(config, log)  # type: ignore[arg-type]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Cores that this process may use (each worker holds up to 3 GB); for one file none, it runs in this process."""
    named = {arg.split("::")[0] for arg in config.args}
    if len(named) == 1 and named.pop().endswith(".py"):
        return 0
    return min(len(os.sched_getaffinity(0)), 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONG_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
