"""What the experiments share: one fold of one cohort, and rows that are made once and read ever after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from triglyph.bench.contracts import Subject, Trial
    from triglyph.bench.protocol import Protocol
    from triglyph.metrics.result import Result


def judged(folder: Path, trial: Trial, work: Iterable[tuple[Subject, Protocol]]) -> list[Result]:
    """The rows in a folder; made first where they are not there, whole or not at all.

    Parameters
    ----------
    work
        Who is judged by what; not looked at where the rows are there.
    """
    from triglyph.metrics.result import read_results, write_results
    from triglyph.storage import atomic_folder

    if not folder.exists():
        found = [row for subject, protocol in work for row in protocol.run(subject, trial)]
        with atomic_folder(folder) as partial:
            write_results(found, partial)
    return read_results(folder)
