"""Progress bars that say what is done, how fast, and how it goes; silent where nobody looks. And CPU time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Advance = Callable[..., None]
"""`advance(rows, note="")`"""


@contextmanager
def bar(title: str, total: int, *, show: bool, done: int = 0, unit: str = "") -> Iterator[Advance]:
    """A progress bar for the block; `advance(k, note=...)` moves it by `k`.

    Without a terminal it prints one line at the end.
    """
    if not show:
        yield lambda _rows, note="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", justify="left"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")

        def advance(rows: int, note: str = "") -> None:
            fields: dict[str, Any] = {"note": note} if note else {}
            progress.update(task, advance=rows, **fields)

        yield advance


def cpu_seconds() -> float:
    """CPU time of this process since it began, and of those it has waited for."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system
