"""Annotations beside a section: one class per location, read off words by a model, under a name of the user's choice.

    annotations/<name>.parquet    one row per location; what was asked, of which model, in the file's own metadata

One file, so that it is replaced as it is read: whole. The same name given again replaces it; counts are never touched.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from triglyph.errors import ContractError, StorageError
from triglyph.storage import atomic_file

if TYPE_CHECKING:
    import anndata as ad

Floats = NDArray[np.float64]

UNSURE = "unsure"
"""The label of a location that was looked at and not decided."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_KEY = b"triglyph"


def checked_name(name: str) -> str:
    """`name` where it can name a file and a column.

    Raises
    ------
    ContractError
        It cannot.
    """
    if not _NAME.fullmatch(name):
        raise ContractError(
            f"{name!r} cannot name an annotation", mend="use letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


@dataclass(frozen=True)
class Annotation:
    """What a model answered for the n locations of a section."""

    name: str
    classes: tuple[str, ...]
    label: NDArray[np.object_]
    """(n,) a class; `UNSURE` where it abstained; "" where there was nothing to look at."""
    cosine: Floats
    """(n, classes) cosine of each location with the words for each class; NaN where there was nothing to look at."""
    probability: Floats
    """(n, classes), rows sum to 1."""
    distance: Floats
    """(n,) from what the model was trained on; NaN where nobody measured it."""
    strange: NDArray[np.bool_]
    """(n,) farther from it than the threshold in `about`."""
    about: dict[str, Any]
    """What was asked of which model, calibrated on what; plain values that JSON holds."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """(n,) where there was something to look at."""
        return np.asarray(np.isfinite(self.cosine).all(axis=1))

    @cached_property
    def best(self) -> Floats:
        """(n,) the highest probability."""
        return np.asarray(self.probability.max(axis=1))

    @cached_property
    def margin(self) -> Floats:
        """(n,) the highest less the second highest probability."""
        second, first = np.sort(self.probability, axis=1)[:, -2:].T
        return np.asarray(first - second)

    def counts(self) -> dict[str, int]:
        """Locations of each class, then of `UNSURE`."""
        return {name: int((self.label == name).sum()) for name in (*self.classes, UNSURE)}


class AnnotationStore:
    """The annotations of one section.

    Parameters
    ----------
    folder
        `SECTION/annotations`.
    locations
        Digest of the locations and their order; an annotation of others is refused.
    """

    def __init__(self, folder: Path, *, locations: str) -> None:
        self.folder, self.locations = folder, locations

    def path(self, name: str) -> Path:
        """Where an annotation lies, or will lie."""
        return self.folder / f"{checked_name(name)}.parquet"

    def names(self) -> list[str]:
        """All there are, sorted."""
        return sorted(p.stem for p in self.folder.glob("[!.]*.parquet"))

    def about(self, name: str) -> dict[str, Any] | None:
        """`Annotation.about` without its rows; None where there is none of that name.

        Raises
        ------
        StorageError
            The file is damaged, or not ours.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path(name)
        if not path.is_file():
            return None
        try:
            found = (pq.read_schema(path).metadata or {}).get(_KEY)
        except (pa.ArrowInvalid, OSError) as error:
            raise StorageError(f"damaged ({error})", where=path, mend="remove it and annotate again") from error
        if found is None:
            raise StorageError("not an annotation of ours", where=path, mend="remove it and annotate again")
        about: dict[str, Any] = json.loads(found)["about"]
        return about

    def write(self, annotation: Annotation) -> None:
        """Write an annotation, or put it in the place of one of the same name."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        a = annotation
        columns: dict[str, Any] = {
            "label": a.label.astype(str),
            "probability": a.best,
            "margin": a.margin,
            "distance": a.distance,
            "strange": a.strange,
        }
        for i, name in enumerate(a.classes):
            columns |= {f"cosine: {name}": a.cosine[:, i], f"probability: {name}": a.probability[:, i]}
        own = {"classes": list(a.classes), "locations": self.locations, "about": a.about}
        table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(own, ensure_ascii=False).encode()})
        with atomic_file(self.path(a.name)) as partial:
            pq.write_table(table, partial)

    def read(self, name: str) -> Annotation:
        """An annotation.

        Raises
        ------
        StorageError
            There is none of that name, or it is damaged.
        ContractError
            It was made of other locations.
        """
        import pyarrow.parquet as pq

        path, about = self.path(name), self.about(name)
        if about is None:
            raise StorageError(
                f"no annotation {name!r}",
                where=self.folder,
                mend=f"there are {', '.join(self.names()) or 'none'}; make one with `triglyph annotate`",
            )
        table = pq.read_table(path)
        own = json.loads(table.schema.metadata[_KEY])
        if own["locations"] != self.locations:
            raise ContractError(
                "made of other locations than this section has", where=path, mend="remove it and annotate again"
            )
        column = {c: table[c].to_numpy() for c in table.column_names}
        classes = tuple(own["classes"])
        return Annotation(
            name=name,
            classes=classes,
            label=column["label"].astype(object),
            cosine=np.stack([column[f"cosine: {c}"] for c in classes], axis=1),
            probability=np.stack([column[f"probability: {c}"] for c in classes], axis=1),
            distance=column["distance"],
            strange=column["strange"].astype(bool),
            about=about,
        )


def columns_of(name: str) -> tuple[str, ...]:
    """Columns of `obs` and keys of `obsm` that an annotation of that name takes."""
    return (name, *(f"{name}_{part}" for part in ("probability", "margin", "strange", "distance", "cosine")))


def join(table: ad.AnnData, annotation: Annotation) -> dict[str, Any]:
    """Put an annotation into `obs` and `obsm` of a table; returns what belongs into its `uns`.

    `obs["<name>"]` is the label, with `_probability`, `_margin`, `_strange` and `_distance` beside it;
    `obsm["<name>_cosine"]` and `obsm["<name>_probability"]` are (n, classes), in the order of `classes` in `uns`.
    """
    import pandas as pd

    a = annotation
    table.obs[a.name] = pd.Categorical(a.label.astype(str), categories=["", *a.classes, UNSURE])
    for part, values in (
        ("probability", a.best),
        ("margin", a.margin),
        ("strange", a.strange),
        ("distance", a.distance),
    ):
        table.obs[f"{a.name}_{part}"] = values
    table.obsm[f"{a.name}_cosine"] = a.cosine
    table.obsm[f"{a.name}_probability"] = a.probability
    # As JSON, since keys of `uns` may not hold every name that a class may have.
    return {"classes": list(a.classes), "about": json.dumps(a.about, ensure_ascii=False)}
