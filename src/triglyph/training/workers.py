"""Loader workers: forked where that is safe, and gone when the process they work for is gone."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from multiprocessing.connection import wait

START_METHOD = "fork" if sys.platform == "linux" else None
"""Forked workers share the prepared input in memory instead of each unpickling a copy. They never touch a GPU."""


def leave_with_parent(_worker: int) -> None:
    """End this worker when its parent ends, however that happens.

    After `kill -9` of the parent, a worker of torch's loader may wait for ever to hand over a batch that nobody takes,
    and keep its memory.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="leave-with-parent", daemon=True).start()
