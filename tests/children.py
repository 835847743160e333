"""Processes that tests start and kill.

They are forked from a server that has imported what is slow and run nothing, so that each starts in an instant and
no thread pool of the test process is inherited.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "triglyph.training.loop",
        "lightning.fabric",
        "timm.models.vision_transformer",
        "transformers.models.bert.modeling_bert",
        "tokenizers.trainers",
        "anndata.experimental",
        "safetensors.torch",
        "torch.distributed.nn",
    ]
)


def run(target: Callable[..., None], *args: Any, kill_after: float | None = None) -> int:
    """Run `target` in a child and give its exit code; -9 if it was killed, by itself or after `kill_after` seconds."""
    process = CONTEXT.Process(target=target, args=args)
    process.start()
    process.join(kill_after)
    if process.is_alive():
        process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def die() -> None:
    """As a power cut would have it."""
    os.kill(os.getpid(), signal.SIGKILL)


def gone(out: Path, *, within: float = 20.0) -> bool:
    """Whether the loader workers of a trainer that killed itself end too."""
    import psutil

    pids = json.loads((out.parent / "workers.json").read_text())
    deadline = time.monotonic() + within
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    return len(pids) > 0 and not any(psutil.pid_exists(pid) for pid in pids)


def fit(recipe: dict[str, Any], cohort: Path, out: Path, moment: str = "", number: int = 0) -> None:
    """Train; die at the `number`-th of some moment."""
    import torch

    from triglyph.training import loop
    from triglyph.training.recipe import typed
    from triglyph.training.run import Run

    torch.set_num_threads(1)
    count = 0

    def now() -> bool:
        nonlocal count
        count += 1
        return count == number

    def patch(owner: Any, name: str, before: Callable[..., None] | None, after: Callable[..., None] | None) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            hit = now()
            if hit and before:
                before(*args)
            result = original(*args, **kwargs)
            if hit and after:
                after(*args)
            return result

        setattr(owner, name, wrapped)

    def half_a_line(self: Run, *_: Any) -> None:
        with self.log_path.open("a") as stream:
            stream.write('{"step": ')
        die()

    def dead(*_: Any) -> None:
        workers = [process.pid for process in multiprocessing.active_children()]
        (out.parent / "workers.json").write_text(json.dumps(workers))
        die()

    match moment:
        case "step logged":
            patch(Run, "log_step", None, dead)
        case "line half written":
            patch(Run, "log_step", half_a_line, None)
        case "epoch logged":
            patch(Run, "log_epoch", None, dead)
        case "checkpoint half written":
            patch(torch, "save", None, dead)
        case "checkpoint written":
            patch(Run, "save_checkpoint", None, dead)
        case "towers written":
            patch(loop, "build_encoders", None, dead)
        case "release written":
            patch(loop, "save_model", None, dead)
    loop.fit(typed(recipe, where="test"), cohort=cohort, out=out, show=False)
