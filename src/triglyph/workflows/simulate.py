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
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.simulate.presets import Simulation

SCRATCH = ".partial-simulate"


def simulate(preset: str = "demo", *, patients: int = 6, out: Path, seed: int = 0, workers: int | None = None) -> Path:
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
    _check_same(cohort, config)
    keys = [(p, s) for p in range(patients) for s in range(config.sections_of(p))]
    todo = [key for key in keys if section_id(*key) not in cohort]
    workers = min(settings.workers if workers is None else workers, max(len(todo), 1))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    scratch = cohort.path / SCRATCH
    with FileLock(cohort.path / ".simulate.lock"), Progress(*columns) as progress:
        shutil.rmtree(scratch, ignore_errors=True)
        task = progress.add_task("simulating sections", total=len(keys), completed=len(keys) - len(todo))
        jobs = [(config, *key, cohort.folder(section_id(*key)), scratch) for key in todo]
        try:
            for _ in _run(jobs, workers):
                progress.advance(task)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    cohort.refresh()
    return cohort.path


Job = tuple["Simulation", int, int, Path, Path]


def _run(jobs: list[Job], workers: int) -> Iterator[str]:
    """Ids of sections as they are finished."""
    if workers == 1:
        yield from (write_section(*job) for job in jobs)
        return
    # Spawned, not forked: a fork of a process that has threads may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(write_section, *job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool as error:
            raise TriglyphError(
                "a worker process died",
                where="simulate",
                mend='give fewer workers if memory ran out; in a script, call it under `if __name__ == "__main__":`; '
                "finished sections are kept",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write_section(config: Simulation, patient: int, section: int, folder: Path, scratch: Path) -> str:
    """Simulate one section into `folder`; its image is drawn in `scratch` and moved."""
    from triglyph.tissue.section import Section
    from triglyph.tissue.simulate.cohort import section_id, simulate_section

    name = section_id(patient, section)
    Section.write(simulate_section(config, patient, section, scratch / f"{name}.tif"), folder, scratch=scratch)
    return name


def _check_same(cohort: Cohort, config: Simulation) -> None:
    """Refuse to mix two worlds in one cohort."""
    from triglyph.tissue.simulate.cohort import SIMULATOR, VERSION

    ours = {"simulator": SIMULATOR, "version": VERSION, "config": config.digest()}
    for section in cohort:
        theirs = {key: section.info.source.get(key) for key in ours}
        if theirs != ours:
            raise ContractError(
                f"section {section.id} is not of preset {config.name!r} with seed {config.seed}",
                where=cohort.path,
                mend="give another --out, or the preset and seed that began this cohort",
            )
