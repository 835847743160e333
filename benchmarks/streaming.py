"""Streaming a cohort through neighbourhood batches: memory by the number of files, and how well it shuffles.

    OMP_NUM_THREADS=1 uv run --no-sync python benchmarks/streaming.py

Memory: a cohort of `SECTIONS[-1]` expression-only sections is written, all of one size. For each number of them a
process of its own goes through one epoch of `NeighbourhoodBatches` with `AT_ONCE` sections at once, and reads the
counts of every row: once through `LazySections`, which keeps two windows open, and once through the `Cohort`, which
keeps all. Shown is how far the peak of resident memory rises above what the process has after one section was read and
let go, beside the bytes of the tables that may be open at a time (the floor); and the time of the epoch beside that of
reading every section once, in order.

Training: the same for `fit` itself, an epoch of `stamp-genes` of next to no size over 20 and 80 of these sections: the
vocabulary's pass over all sections, every step, and the sample that the embedding is centred by. Alone with `--fit`.

Shuffle: the same batches without files, for several `sections_at_once`, beside rows one by one over all sections (a
full shuffle) and sections in their order (none). `sections` is how many a batch holds rows of, on the mean; `lag k` is
the correlation over sections of how many rows batch t and batch t + k have of each, on the mean over t: 1 where a
batch shows what the last one showed, 0 where it tells nothing about it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import psutil
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.tissue.cohort import Cohort
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.lazy_sections import LazySections
from triglyph.tissue.section import Section
from triglyph.training.batches import Batches
from triglyph.training.loop import fit
from triglyph.training.neighbourhood_batches import NeighbourhoodBatches
from triglyph.training.recipe import typed

SECTIONS, AT_ONCE, BATCH = (20, 80, 320), 4, 126
TRAINED = (20, 80)
"""Numbers of sections that `fit` is measured with."""
SIDE, GENES, DENSE = 24, 3000, 0.2
LOCATIONS = SIDE * SIDE
LAGS = (1, 4, 16)


def draft(number: int) -> SectionDraft:
    """SIDE x SIDE spots."""
    rng = np.random.default_rng(number)
    counts = sp.random_array((LOCATIONS, GENES), density=DENSE, rng=rng, format="csr")
    counts.data = 1 + rng.poisson(2.0, counts.nnz)
    rows, columns = np.divmod(np.arange(LOCATIONS), SIDE)
    table = ad.AnnData(
        sp.csr_matrix(counts.astype(np.int32)),
        obs=pd.DataFrame(index=[f"{r}x{c}" for r, c in zip(rows, columns, strict=True)]),
        var=pd.DataFrame({"ensembl_id": "", "measured": True}, index=[f"G{i}" for i in range(GENES)]),
        obsm={"spatial": np.stack([columns, rows], axis=1) * 100.0},
    )
    name = f"S{number:04d}"
    return SectionDraft(section_id=name, patient=name, platform="made", table=table, location_um=55.0, pitch_um=100.0)


def nbytes(section: Section) -> int:
    """Of a table's counts."""
    x = section.table.X
    return int(x.data.nbytes + x.indices.nbytes + x.indptr.nbytes)


def one_epoch(sections: Sequence[Section]) -> None:
    offsets = np.cumsum([0, *(section.n_locations for section in sections)])
    batches = NeighbourhoodBatches(
        offsets,
        places=lambda s: sections[s].centres_um,
        batch_size=BATCH,
        seed=0,
        sections_at_once=AT_ONCE,
    )
    seen = 0
    for batch in batches:
        of = np.searchsorted(offsets, batch.rows, side="right") - 1
        for number in np.unique(of).tolist():
            rows = batch.rows[of == number] - offsets[number]
            seen += sections[number].table.X[rows].shape[0]
    assert seen == offsets[-1]


def measure(folder: Path, count: int, way: str) -> None:
    """In a process of its own: prints JSON."""
    cohort = Cohort.open(folder)
    ids = cohort.ids[:count]
    first = cohort.opened(ids[0])
    floor = nbytes(first) * 2 * AT_ONCE
    del first
    before = psutil.Process().memory_info().rss
    start = time.process_time()
    sections = LazySections(cohort, ids, keep=2 * AT_ONCE) if way == "lazy" else [cohort[s] for s in ids]
    one_epoch(sections)
    epoch = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.process_time()
    for section in LazySections(cohort, ids, keep=1):
        assert section.table.X.shape[0] == LOCATIONS
    once = time.process_time() - start
    print(json.dumps({"growth": peak - before, "floor": floor, "epoch": epoch, "once": once}))


def memory(folder: Path) -> None:
    print(f"one epoch, {AT_ONCE} sections at once, {LOCATIONS} locations x {GENES} genes each; MiB above one section")
    print(f"{'sections':>9} {'lazy':>8} {'floor':>8} {'kept':>8} {'epoch / reading once, CPU':>27}")
    for count in SECTIONS:
        found = {
            way: json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--measure", str(folder), str(count), way],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for way in ("lazy", "cohort")
        }
        lazy, kept = found["lazy"], found["cohort"]
        sizes = [x / 2**20 for x in (lazy["growth"], lazy["floor"], kept["growth"])]
        print(f"{count:>9} {sizes[0]:>8.1f} {sizes[1]:>8.1f} {sizes[2]:>8.1f} {lazy['epoch'] / lazy['once']:>27.2f}")


def measure_fit(folder: Path, count: int) -> None:
    """In a process of its own: prints JSON."""
    cohort = Cohort.open(folder)
    first = cohort.opened(cohort.ids[0])
    floor = nbytes(first) * 2 * AT_ONCE
    options = {"dim": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 64}
    recipe = {
        "name": "streaming",
        "method": "stamp-genes",
        "data": {"train": list(cohort.ids[:count])},
        "model": {
            "towers": {"expression": {"encoder": "stamp-genes", "mode": "scratch", "options": options}},
            "context_from": 0.0,
        },
        "training": {"epochs": 1, "batch_size": BATCH, "sections_at_once": AT_ONCE, "accelerator": "cpu"},
    }
    out = folder.parent / "runs"
    # Once with the fewest sections there can be: what training takes by itself, imports and all, is no growth.
    few = {**recipe, "data": {"train": list(cohort.ids[: 2 * AT_ONCE])}}
    fit(typed(few, where=__file__), cohort=cohort, out=out / f"few-{count}", show=False)
    del first
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.process_time()
    fit(typed(recipe, where=__file__), cohort=cohort, out=out / f"{count}", show=False)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"before": before, "peak": peak, "floor": floor, "seconds": seconds}))


def training(folder: Path) -> None:
    print(f"\nfit, {AT_ONCE} sections at once: peak of resident memory, MiB")
    print(f"{'sections':>9} {'of ' + str(2 * AT_ONCE):>8} {'peak':>8} {'all tables':>11} {'CPU s':>7}")
    for count in TRAINED:
        ran = subprocess.run(
            [sys.executable, __file__, "--measure", str(folder), str(count), "fit"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = json.loads(ran.stdout.splitlines()[-1])
        tables = found["floor"] / (2 * AT_ONCE) * count
        sizes = " ".join(f"{found[name] / 2**20:>8.1f}" for name in ("before", "peak"))
        print(f"{count:>9} {sizes} {tables / 2**20:>11.1f} {found['seconds']:>7.1f}")


def quality(batches: list[NDArray[np.int64]], count: int) -> tuple[float, ...]:
    """Mean number of sections in a batch; correlation of their shares at each lag."""
    shares = np.array([np.bincount(rows // LOCATIONS, minlength=count) for rows in batches], dtype=float)
    centred = shares - shares.mean(axis=1, keepdims=True)
    centred /= np.sqrt((centred**2).sum(axis=1, keepdims=True))
    return (shares > 0).sum(axis=1).mean(), *((centred[lag:] * centred[:-lag]).sum(axis=1).mean() for lag in LAGS)


def shuffle() -> None:
    count = SECTIONS[-1]
    y, x = np.divmod(np.arange(LOCATIONS), SIDE)
    centres = np.stack([x, y], axis=1) * 100.0
    offsets = np.arange(count + 1) * LOCATIONS
    print(f"\n{count} sections of {LOCATIONS} locations, batches of {BATCH} rows, groups of 9")
    print(f"{'sections_at_once':>17} {'sections':>9} " + " ".join(f"{f'lag {lag}':>7}" for lag in LAGS))

    def show(name: str, batches: list[NDArray[np.int64]]) -> None:
        sections, *lags = quality(batches, count)
        print(f"{name:>17} {sections:>9.2f} " + " ".join(f"{lag:>7.3f}" for lag in lags))

    n = count * LOCATIONS
    show("none", [np.arange(i, min(i + BATCH, n)) for i in range(0, n, BATCH)])
    for at_once in (1, 4, 16, None):
        made = NeighbourhoodBatches(
            offsets, places=lambda _: centres, batch_size=BATCH, seed=0, sections_at_once=at_once
        )
        show("all" if at_once is None else str(at_once), [batch.rows for batch in made])
    show("full, by rows", list(Batches(np.zeros(n), batch_size=BATCH, seed=0)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", nargs=3)
    parser.add_argument("--fit", action="store_true", help="training alone")
    given = parser.parse_args()
    if given.measure:
        folder, count, way = given.measure
        if way == "fit":
            measure_fit(Path(folder), int(count))
        else:
            measure(Path(folder), int(count), way)
        return
    if not given.fit:
        shuffle()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cohort"
        Cohort.create(path)
        for number in range(max(TRAINED) if given.fit else SECTIONS[-1]):
            made = draft(number)
            Section.write(made, path / "sections" / made.section_id)
        Cohort.open(path).refresh()
        if not given.fit:
            memory(path)
        training(path)


if __name__ == "__main__":
    main()
