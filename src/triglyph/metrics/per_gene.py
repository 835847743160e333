"""Values of single genes: `genes.parquet` of a bench run, one row per gene, metric, section, model and fold.

A protocol that pools sections leaves `section` empty, one that pools patients `patient` too. Genes are no replicates:
they share tissue, depth and patients, so these values are drawn and never tested.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from triglyph.errors import ContractError, StorageError
from triglyph.metrics.result import Level, Result
from triglyph.storage import atomic_file

FILE = "genes.parquet"
PER_GENE = "per-gene"
"""`aggregation` of rows whose `group` is a gene."""
KEY = ("task", "protocol", "split", "fold", "level", "model", "section", "patient", "gene", "metric")
SCHEMA = pl.Schema({**dict.fromkeys(KEY, pl.String), "value": pl.Float64})


def gene_values(
    genes: Sequence[str],
    values: ArrayLike,
    *,
    task: str,
    protocol: str,
    split: str,
    fold: str,
    level: Level,
    model: str,
    metric: str,
    section: str = "",
    patient: str = "",
) -> pl.DataFrame:
    """The rows of one metric of one model on one section.

    Parameters
    ----------
    genes
        Symbols.
    values
        (genes,), NaN where undefined.
    protocol
        `name/version/digest`, as in `Result`.
    section, patient
        Empty where several were pooled.

    Raises
    ------
    ContractError
        There are not as many values as genes.
    """
    numbers = pl.Series("value", np.asarray(values, dtype=np.float64), dtype=pl.Float64, nan_to_null=True)
    if len(numbers) != len(genes):
        raise ContractError(f"{len(numbers)} values for {len(genes)} genes", where=f"{model}, {metric}, {section}")
    shared = {
        "task": task, "protocol": protocol, "split": split, "fold": fold, "level": level, "model": model,
        "section": section, "patient": patient, "metric": metric,
    }  # fmt: skip
    frame = pl.DataFrame({"gene": pl.Series(list(genes), dtype=pl.String), "value": numbers})
    return frame.with_columns(**{name: pl.lit(text) for name, text in shared.items()}).select(SCHEMA.names())


def from_results(rows: Iterable[Result]) -> pl.DataFrame:
    """The same table from rows with `aggregation="per-gene"`; empty where there are none. Nulls are left out."""
    found = [
        {**{name: getattr(r, name) for name in KEY if name in Result.model_fields}, "gene": r.group, "value": r.value}
        for r in rows
        if r.aggregation == PER_GENE and not (r.role == "control" and r.seed is not None)
    ]
    frame = pl.DataFrame(found, schema={name: kind for name, kind in SCHEMA.items() if name not in _PLACES})
    return frame.with_columns(**{name: pl.lit("") for name in _PLACES}).select(SCHEMA.names())


def write_genes(frames: Iterable[pl.DataFrame], folder: Path) -> Path:
    """Write `genes.parquet` into a run folder.

    Raises
    ------
    ContractError
        A column is missing or of another kind, a value is infinite, or a gene has two values in one place.
    """
    table = pl.concat([_checked(f, folder / FILE) for f in frames] or [pl.DataFrame(schema=SCHEMA)])
    if table.select(pl.col("value").is_infinite().any()).item():
        raise ContractError("a gene's value is infinite", where=folder / FILE, mend="give NaN where it is undefined")
    twice = table.filter(table.select(KEY).is_duplicated())
    if len(twice):
        raise ContractError(
            "a gene has two values in one place",
            where=", ".join(f"{name} {text}" for name, text in twice.select(KEY).row(0, named=True).items() if text),
            mend="name the section, or pool before writing",
        )
    with atomic_file(folder / FILE) as partial:
        table.write_parquet(partial, compression="zstd")
    return folder / FILE


def read_genes(folder: Path) -> pl.DataFrame | None:
    """`genes.parquet` of a run folder; None where the run left none.

    Raises
    ------
    StorageError
        The file is not readable.
    ContractError
        It is another table.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        table = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise StorageError(f"not readable as Parquet: {error}", where=path, mend="run the protocol again") from None
    return _checked(table, path)


_PLACES = ("section", "patient")


def _checked(table: pl.DataFrame, where: Path) -> pl.DataFrame:
    if table.schema != SCHEMA:
        wrong = sorted({f"{name} ({kind})" for name, kind in {*SCHEMA.items()} ^ {*table.schema.items()}})
        raise ContractError(
            f"not a table of genes: {', '.join(wrong) or 'columns in another order'}",
            where=where,
            mend=f"columns are {', '.join(SCHEMA)}",
        )
    return table.with_columns(pl.col("value").fill_nan(None))
