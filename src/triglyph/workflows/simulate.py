"""`triglyph simulate`: patients with known truth, section by section, in as many processes as there are cores.

    OUT/sections/<id>/       as every cohort; the truth lies in each table
    OUT/clinical.csv         what a clinic would know of each patient, and the truth behind it
    OUT/genesets/            true, corrupted and shuffled gene sets
    OUT/protein/<id>.ome.tif where the world has protein channels
    OUT/simulation.json      the world: every knob

With `--layout vendor` each section is instead a folder as the platform's vendor writes it, for testing readers. A
section is written whole or not at all, so a run that is stopped goes on where it was; bytes do not depend on the
number of workers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from triglyph.errors import ContractError, RecipeError, TriglyphError

if TYPE_CHECKING:
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.simulate.knobs import Simulation

SCRATCH = ".partial-simulate"
WORLD = "simulation.json"


def simulate(
    preset: str = "her2st-like",
    *,
    patients: int = 6,
    donors: int = 0,
    difficulty: Literal["easy", "standard", "hard"] = "standard",
    set: list[str] | None = None,
    layout: Literal["cohort", "vendor"] = "cohort",
    out: Path,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Simulate patients with known truth.

    Run again with more patients or donors, the cohort grows; what is there stays as it is.

    Parameters
    ----------
    preset
        `her2st-like`, `visium`, `visium-hd`, `xenium`: as hard as real tissue; `niche`, `confounded`: one effect made
        strong; `demo`, `tiny`: clean and quick.
    patients
        Number of patients.
    donors
        Number of donors of whom there is expression and text, and no image.
    difficulty
        Scales noise, batch effects, private biology, and errors of labels and captions.
    set
        `key=value` of single knobs, such as `molecules.niche=0`.
    layout
        `cohort`: ready for every other verb; `vendor`: folders as the platform's vendor writes them.
    out
        Folder: new, or one that this world began.
    seed
        The same seed gives the same bytes.
    workers
        Processes; all cores unless said otherwise. Above 1, a script that calls this must do so under
        `if __name__ == "__main__":`.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    RecipeError
        No such preset, difficulty or knob, or fewer than one patient.
    ContractError
        `out` holds another simulation, or something else.
    StorageError
        The disk is full or read-only.
    """
    from filelock import FileLock
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from triglyph.settings import settings
    from triglyph.tissue.simulate.presets import preset as look_up

    config = look_up(preset, seed=seed, difficulty=difficulty, overrides=set or ())
    for name, value, least in (("patients", patients, 1), ("donors", donors, 0), ("workers", workers, 1)):
        if value is not None and value < least:
            raise RecipeError(f"{name} is {value}", where="simulate", mend=f"give at least {least}")
    if layout == "vendor" and donors:
        raise RecipeError("no vendor has a layout for donors", where="simulate --donors", mend="use --layout cohort")
    target = _CohortTarget(Path(out), config) if layout == "cohort" else _VendorTarget(Path(out), config)
    keys = [Key(p, s) for p in range(patients) for s in range(config.sections_of(p))]
    keys += [Key(d, 0, donor=True) for d in range(donors)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    scratch = target.path / SCRATCH
    with FileLock(target.path / ".simulate.lock"), Progress(*columns) as progress:
        todo = [key for key in keys if not target.holds(key)]
        workers = min(settings.workers if workers is None else workers, max(len(todo), 1))
        shutil.rmtree(scratch, ignore_errors=True)
        _write_world(config, target.path)
        task = progress.add_task("simulating sections", total=len(keys), completed=len(keys) - len(todo))
        try:
            for _ in _run([(config, key, target.path, layout) for key in todo], workers):
                progress.advance(task)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        _write_clinical(config, target.path, patients)
    target.finish()
    return target.path


@dataclass(frozen=True)
class Key:
    """Which section: of a patient, or of a donor."""

    person: int
    section: int
    donor: bool = False

    @property
    def name(self) -> str:
        """Id of the section."""
        from triglyph.tissue.simulate.cohort import section_id
        from triglyph.tissue.simulate.donors import donor_id

        return f"{donor_id(self.person)}-S1" if self.donor else section_id(self.person, self.section)


Job = tuple["Simulation", Key, Path, str]


class _CohortTarget:
    """A cohort that is being filled."""

    def __init__(self, path: Path, config: Simulation) -> None:
        from triglyph.tissue.cohort import Cohort

        self.path = path
        self._cohort = Cohort.create(path, name=f"{config.name}-{config.seed}")
        _check_same(self._cohort, config)

    def holds(self, key: Key) -> bool:
        return key.name in self._cohort

    def finish(self) -> None:
        self._cohort.refresh()


class _VendorTarget:
    """A folder of vendors' folders."""

    def __init__(self, path: Path, config: Simulation) -> None:
        from triglyph.storage import read_json

        self.path = path
        world = path / WORLD
        if path.exists() and not world.is_file() and any(not p.name.startswith(".") for p in path.iterdir()):
            raise ContractError("the folder holds other things", where=path, mend="give a new or empty folder")
        path.mkdir(parents=True, exist_ok=True)
        if world.is_file() and read_json(world).get("digest") != config.digest():
            raise ContractError("the folder holds another simulation", where=path, mend="give another --out")

    def holds(self, key: Key) -> bool:
        return (self.path / "sections" / key.name).exists()

    def finish(self) -> None:
        return None


def _write_world(config: Simulation, path: Path) -> None:
    """What the whole world has once: its knobs and its gene sets."""
    from triglyph.storage import write_json
    from triglyph.tissue.simulate.cohort import SIMULATOR, VERSION
    from triglyph.tissue.simulate.genesets import write_gene_sets

    knobs = config.model_dump(mode="json")
    write_json(
        path / WORLD, {"simulator": SIMULATOR, "version": VERSION, "digest": config.digest(), "simulation": knobs}
    )
    if not (path / "genesets").exists():
        write_gene_sets(config, path)


def _write_clinical(config: Simulation, path: Path, patients: int) -> None:
    """What is known of the patients, once all of them are there; a table of more patients is kept."""
    from triglyph.tissue.simulate.outcome import write_clinical

    table = path / "clinical.csv"
    known = len(table.read_text(encoding="utf-8").splitlines()) - 1 if table.is_file() else 0
    if patients > known:
        write_clinical(config, patients, table)


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


def write_section(config: Simulation, key: Key, path: Path, layout: str) -> str:
    """Simulate one section into the cohort, or the folder of vendors' folders, at `path`."""
    from threadpoolctl import threadpool_limits

    from triglyph.tissue.section import Section
    from triglyph.tissue.simulate.cohort import simulate_section
    from triglyph.tissue.simulate.donors import simulate_donor
    from triglyph.tissue.simulate.specimen import Specimen
    from triglyph.tissue.simulate.vendors import write_vendor

    scratch, folder = path / SCRATCH, path / "sections" / key.name
    # One process a core already; and sums must not depend on how many threads share them.
    with threadpool_limits(1):
        if layout == "vendor":
            write_vendor(Specimen(config, key.person, key.section), folder)
            return key.name
        if key.donor:
            draft = simulate_donor(config, key.person)
        else:
            draft = simulate_section(
                config, key.person, key.section, scratch / f"{key.name}.tif", protein=path / "protein"
            )
        Section.write(draft, folder, scratch=scratch)
    return key.name


def _check_same(cohort: Cohort, config: Simulation) -> None:
    """Refuse to mix two worlds in one cohort."""
    from triglyph.tissue.simulate.cohort import SIMULATOR, VERSION

    ours = {"simulator": SIMULATOR, "version": VERSION, "config": config.digest()}
    for section in cohort:
        theirs = {key: section.info.source.get(key) for key in ours}
        if theirs != ours:
            raise ContractError(
                f"section {section.id} is not of preset {config.name!r} with seed {config.seed} and these knobs",
                where=cohort.path,
                mend="give another --out, or the preset, difficulty, knobs and seed that began this cohort",
            )
