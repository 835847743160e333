"""`triglyph simulate`: patients with known truth, section by section, in as many processes as there are cores.

    OUT/sections/<id>/       as every cohort; the truth lies in each table
    OUT/clinical.csv         what a clinic would know of each patient, and the truth behind it
    OUT/genesets/            true, corrupted and shuffled gene sets
    OUT/protein/<id>.ome.tif where the world has protein channels
    OUT/simulation.json      the world: every knob

With `--layout vendor` each section is instead a folder as the platform's vendor writes it, for testing readers; its
truth lies beside it, where no reader looks:

    OUT/sections/<id>/       as the vendor writes them
    OUT/truth/<id>.h5ad      the section's table with its truth
    OUT/sections.csv         patient, platform, and what the vendor's files call the section: for `read --patients`

A section is written whole or not at all, so a run that is stopped goes on where it was; bytes do not depend on the
number of workers.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from triglyph.errors import ContractError, RecipeError, StorageError, TriglyphError

if TYPE_CHECKING:
    from triglyph.tissue.simulate.knobs.simulation import Simulation

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
        No such preset, difficulty or knob, fewer than one patient, donors or a lattice that the vendor's layout does
        not have, or a registration error that would put locations off the image.
    ContractError
        `out` holds another simulation, another layout of this one, or something else.
    StorageError
        The disk is full or read-only.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from triglyph.settings import settings
    from triglyph.tissue.simulate.presets import preset as look_up
    from triglyph.tissue.simulate.registration import check_registration
    from triglyph.tissue.simulate.vendors import check_layout

    config = look_up(preset, seed=seed, difficulty=difficulty, overrides=set or ())
    for name, value, least in (("patients", patients, 1), ("donors", donors, 0), ("workers", workers, 1)):
        if value is not None and value < least:
            raise RecipeError(f"{name} is {value}", where="simulate", mend=f"give at least {least}")
    if layout == "vendor" and donors:
        raise RecipeError("no vendor has a layout for donors", where="simulate --donors", mend="use --layout cohort")
    if layout == "vendor":
        check_layout(config)
    check_registration(config)
    path, scratch = Path(out), Path(out) / SCRATCH
    keys = [Key(p, s) for p in range(patients) for s in range(config.sections_of(p))]
    keys += [Key(d, 0, donor=True) for d in range(donors)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Once before anything is touched, and once when nobody else can begin another world there.
    _check_same(path, config, layout)
    with _alone(path), Progress(*columns) as progress:
        _check_same(path, config, layout)
        _write_world(config, path, layout)
        target = _CohortTarget(path, config) if layout == "cohort" else _VendorTarget(path, config)
        todo = [key for key in keys if not target.holds(key)]
        workers = min(settings.workers if workers is None else workers, max(len(todo), 1))
        shutil.rmtree(scratch, ignore_errors=True)
        task = progress.add_task("simulating sections", total=len(keys), completed=len(keys) - len(todo))
        try:
            for _ in _run([(config, key, path, layout) for key in todo], workers):
                progress.advance(task)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        _write_clinical(config, path, patients)
        target.finish()
    return path


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
        from triglyph.storage import write_json
        from triglyph.tissue.cohort import FORMAT, Cohort

        # `Cohort.create` wants an empty folder; here the world's record and the lock are there before.
        if not (path / "cohort.json").is_file():
            write_json(path / "cohort.json", {"format": FORMAT, "name": f"{config.name}-{config.seed}"})
        self._cohort = Cohort.open(path)

    def holds(self, key: Key) -> bool:
        return key.name in self._cohort

    def finish(self) -> None:
        self._cohort.refresh()


class _VendorTarget:
    """A folder of vendors' folders."""

    def __init__(self, path: Path, config: Simulation) -> None:
        self._path, self._config = path, config

    def holds(self, key: Key) -> bool:
        return (self._path / "sections" / key.name).exists()

    def finish(self) -> None:
        """List the sections that are there, also those of earlier runs with more patients."""
        from triglyph.storage import atomic_file
        from triglyph.tissue.simulate.cohort import patient_id
        from triglyph.tissue.simulate.vendors import vendor_name

        found = [re.fullmatch(r"P(\d+)-S(\d+)", folder.name) for folder in (self._path / "sections").iterdir()]
        numbers = sorted((int(m[1]) - 1, int(m[2]) - 1) for m in found if m)
        rows = ["section,patient,platform,vendor_name"]
        for p, s in numbers:
            key, platform = Key(p, s), self._config.spots.platform
            rows.append(f"{key.name},{patient_id(p)},{platform},{vendor_name(self._config, p, s)}")
        with atomic_file(self._path / "sections.csv") as partial:
            partial.write_text("\n".join(rows) + "\n", encoding="utf-8")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Make the folder and hold it; another run into it waits until this one is done."""
    from filelock import FileLock

    lock = FileLock(path / ".simulate.lock")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise StorageError(
            f"cannot be written to: {error.strerror or error}", where=path, mend="choose a writable --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _write_world(config: Simulation, path: Path, layout: str) -> None:
    """What the whole world has once: its knobs, before anything else is there, and its gene sets."""
    from triglyph.storage import write_json
    from triglyph.tissue.simulate.genesets import write_gene_sets

    if not (path / WORLD).is_file():
        knobs = config.model_dump(mode="json")
        write_json(path / WORLD, {**_identity(config, layout), "simulation": knobs})
    # Each time: a killed run may have left some of them, and they are quick and always the same.
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
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
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


def _end_with_parent() -> None:
    """In a worker: end when the process that began it is gone, as by `kill -9`.

    A worker that lived on would write sections into a folder that nobody holds any more, under the next run.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def write_section(config: Simulation, key: Key, path: Path, layout: str) -> str:
    """Simulate one section into the cohort, or the folder of vendors' folders, at `path`."""
    from threadpoolctl import threadpool_limits

    from triglyph.tissue.section import Section
    from triglyph.tissue.simulate.cohort import simulate_section
    from triglyph.tissue.simulate.donors import simulate_donor
    from triglyph.tissue.simulate.specimen import Specimen
    from triglyph.tissue.simulate.vendors import write_truth, write_vendor

    scratch, folder = path / SCRATCH, path / "sections" / key.name
    # One process a core already; and sums must not depend on how many threads share them.
    with threadpool_limits(1):
        if layout == "vendor":
            specimen = Specimen(config, key.person, key.section)
            # What lies beside comes first, so that a vendor's folder that is there has it.
            write_truth(specimen, path / "truth" / f"{key.name}.h5ad", protein=path / "protein")
            write_vendor(specimen, folder)
            return key.name
        if key.donor:
            draft = simulate_donor(config, key.person)
        else:
            draft = simulate_section(
                config, key.person, key.section, scratch / f"{key.name}.tif", protein=path / "protein"
            )
        Section.write(draft, folder, scratch=scratch)
    return key.name


def _identity(config: Simulation, layout: str) -> dict[str, object]:
    """What `simulation.json` says besides the knobs: everything that a folder holds must agree in it."""
    from triglyph.tissue.simulate.cohort import SIMULATOR, VERSION

    return {"simulator": SIMULATOR, "version": VERSION, "layout": layout, "digest": config.digest()}


def _check_same(path: Path, config: Simulation, layout: str) -> None:
    """Refuse to mix two worlds, two layouts or two versions in one folder, or a world and something else."""
    from triglyph.storage import read_json
    from triglyph.tissue.cohort import Cohort

    if not path.exists():
        return
    ours, is_cohort = _identity(config, layout), (path / "cohort.json").is_file()
    if not path.is_dir():
        raise ContractError("this is a file", where=path, mend="give a new or empty folder")
    if (path / WORLD).is_file():
        theirs = read_json(path / WORLD)
        if not isinstance(theirs, dict) or theirs.get("simulator") != ours["simulator"]:
            raise ContractError("not a record of this simulator", where=path / WORLD, mend="give another --out")
        if theirs.get("digest") != ours["digest"]:
            raise _other_world(f"the simulation {theirs.get('digest')}", config, path)
        if theirs.get("version") != ours["version"]:
            raise ContractError(
                f"begun by version {theirs.get('version')} of the simulator, this is {ours['version']}",
                where=path / WORLD,
                mend="give another --out: the same knobs give other bytes now",
            )
        if theirs.get("layout") != layout:
            raise ContractError(
                f"the folder has the layout {theirs.get('layout')!r}, not {layout!r}",
                where=path / WORLD,
                mend=f"give another --out, or --layout {theirs.get('layout')}",
            )
    elif any(not p.name.startswith(".") for p in path.iterdir()) and not (is_cohort and layout == "cohort"):
        raise ContractError("the folder holds other things", where=path, mend="give a new or empty folder")
    if is_cohort:
        for section in Cohort.open(path):
            source = section.info.source
            if [source.get(k) for k in ("simulator", "version", "config")] != [
                ours[k] for k in ("simulator", "version", "digest")
            ]:
                raise _other_world(f"section {section.id}", config, path)


def _other_world(what: str, config: Simulation, path: Path) -> ContractError:
    return ContractError(
        f"{what} is not of preset {config.name!r} with seed {config.seed} and these knobs",
        where=path,
        mend="give another --out, or the preset, difficulty, knobs and seed that began this folder",
    )
