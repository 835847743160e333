"""`triglyph simulate`: a cohort of simulated patients, section by section, in as many processes as there are cores.

Each section is written whole or not at all, so a run that is stopped goes on where it was; the bytes do not depend on
the number of workers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from triglyph.errors import ContractError, RecipeError, TriglyphError

if TYPE_CHECKING:
    from triglyph.tissue.simulate.presets import Simulation

SCRATCH = ".partial-simulate"


def simulate(
    preset: str = "demo", *, patients: int = 6, out: Path, seed: int = 0, workers: int | None = None
) -> Path:
    """Simulate a cohort of patients with known truth.

    Run again with more patients, the cohort grows; patients that are there stay as they are.

    Parameters
    ----------
    preset
        `demo`: 6 patients make 8 sections of about 450 spots; `tiny`: sections of about 50 spots, for tests.
    patients
        Number of patients.
    out
        Folder of the cohort: new, or one that this preset and seed began.
    seed
        The same seed gives the same bytes.
    workers
        Processes; all cores unless said otherwise. Above 1, a script that calls this must do so under
        `if __name__ == "__main__":`.

    Returns
    -------
    Path
        The cohort's folder.

    Raises
    ------
    RecipeError
        No such preset, or fewer than one patient.
    ContractError
        `out` holds another simulation, or something else.
    StorageError
        The disk is full or read-only.
    """
    from filelock import FileLock
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from triglyph.settings import settings
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.simulate.cohort import section_id
    from triglyph.tissue.simulate.presets import preset as look_up

    config = look_up(preset, seed=seed)
    for name, value in (("patients", patients), ("workers", workers)):
        if value is not None and value < 1:
            raise RecipeError(f"{name} is {value}", where="simulate", mend="give at least 1")
    cohort = Cohort.create(Path(out), name=f"{preset}-{seed}")
    _check_same(cohort.path, config)
    keys = [(p, s) for p in range(patients) for s in range(config.sections_of(p))]
    todo = [key for key in keys if section_id(*key) not in cohort]
    workers = min(settings.workers if workers is None else workers, max(len(todo), 1))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    scratch = cohort.path / SCRATCH
    with FileLock(cohort.path / ".simulate.lock"), Progress(*columns) as progress:
        shutil.rmtree(scratch, ignore_errors=True)
        task = progress.add_task("simulating sections", total=len(keys), completed=len(keys) - len(todo))
        try:
            for _ in _finished(config, cohort, todo, scratch, workers):
                progress.advance(task)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            cohort.refresh()
    return cohort.path


def _finished(config, cohort, todo, scratch, workers) -> Iterator[None]:  # type: ignore[no-untyped-def]
    raise NotImplementedError
