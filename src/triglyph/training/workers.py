"""Loader workers that do not outlive the process they work for."""

from __future__ import annotations

import os
import threading
import time

POLL_SECONDS = 0.5


def leave_with_parent(_worker: int) -> None:
    """End this worker soon after its parent is gone, however that happened.

    After `kill -9` of the parent, a worker of torch's loader may wait for ever to hand over a batch that nobody takes,
    and keep its memory.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="leave-with-parent", daemon=True).start()
