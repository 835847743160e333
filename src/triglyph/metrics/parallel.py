"""A few threads for numpy: sorting, sums and products leave the interpreter free, so two cores do twice the work.

Work is cut into the same pieces whatever the number of threads, and results come back in order, so no figure depends
on how many there were.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Out = TypeVar("Out")


def n_threads() -> int:
    """`OMP_NUM_THREADS` where it is set, as for BLAS, so that worker processes keep to their share; else the cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    # Not every system has affinities; a container's share is seen only there.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(function: Callable[[Item], Out], items: Sequence[Item]) -> list[Out]:
    """`function` of every item, in the order of the items; the first error is raised.

    BLAS keeps to one thread meanwhile: threads that start threads wait for each other.
    """
    workers = min(n_threads(), len(items))
    if workers <= 1:
        return [function(item) for item in items]
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))


def spans(n: int, step: int) -> list[slice]:
    """Slices of `step`, at least one, that cover 0..n."""
    step = max(1, step)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]
