"""The Result: one row shape for every evaluation, everywhere.

A run folder holds its rows twice, as `results.parquet` for machines and `results.json` for people and tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import polars as pl

from triglyph.cards import Frozen
from triglyph.errors import ContractError
from triglyph.storage import atomic_file, read_json, write_json

Role = Literal["method", "baseline", "control", "ceiling"]
Source = Literal["measured", "published", "architecture-only"]
Level = Literal["patient", "within-patient", "within-section"]


class Result(Frozen):
    """One number of one model on one task.

    `group` is the unit the value is of: a section id, a patient id, a class, or "all".
    `aggregation` names how it came together: `pooled`, `per-section`, `per-class`, `macro`, `per-patient`.
    """

    task: str
    protocol: str
    metric: str
    value: float | None
    """None where the metric is undefined (a constant gene, a class of one kind only); never a made-up number."""
    model: str
    role: Role
    split: str
    level: Level
    direction: str = ""
    source: Source = "measured"
    transductive: tuple[str, ...] = ()
    """What was chosen or fitted on the test set, in words; empty for nothing."""
    fold: str = ""
    group: str = "all"
    aggregation: str = "pooled"
    ci_low: float | None = None
    ci_high: float | None = None
    ci_unit: str = ""
    """What was resampled for the interval: `patient`, `spatial-block`; never a tile, spot or seed."""
    n_units: int | None = None
    """Number of those units."""
    chance: float | None = None
    n: int = 0
    """Number of observations (locations, classes, queries) behind the value."""
    n_genes: int | None = None
    n_gallery: int | None = None
    seed: int | None = None
    compat: str = ""


def as_frame(results: Iterable[Result]) -> pl.DataFrame:
    """The rows as a table with every column of `Result`, in its order."""
    rows = [{**row.model_dump(), "transductive": "; ".join(row.transductive)} for row in results]
    return pl.DataFrame(rows, schema=_SCHEMA)


def write_results(results: Iterable[Result], folder: Path) -> None:
    """Write `results.parquet` and `results.json` into `folder`."""
    rows = list(results)
    for row in rows:
        if row.value is not None and not math.isfinite(row.value):
            raise ContractError("a result is not finite; give None and say why in the log", where=row)
    with atomic_file(folder / "results.parquet") as partial:
        as_frame(rows).write_parquet(partial)
    write_json(folder / "results.json", [row.model_dump(mode="json") for row in rows])


def read_results(folder: Path) -> list[Result]:
    """The rows of a run folder."""
    return [Result.model_validate(row) for row in read_json(folder / "results.json")]


_FLOATS = {"value", "ci_low", "ci_high", "chance"}
_INTS = {"n_units", "n", "n_genes", "n_gallery", "seed"}
_SCHEMA = {
    name: pl.Float64 if name in _FLOATS else pl.Int64 if name in _INTS else pl.String for name in Result.model_fields
}
