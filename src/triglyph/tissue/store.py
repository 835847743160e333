"""Arrays beside a section, one row per location, immutable and named by fingerprint.

`embeddings/<fingerprint>/` holds what a frozen encoder made of a section, `windows/<fingerprint>/` the pixels of its
locations. An entry is written once, whole or not at all, and is memory-mapped on read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import ContractError, StorageError
from triglyph.storage import PARTIAL, atomic_folder, read_json, write_json

_NAME = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Stored:
    """One entry: `values` (n, ...), memory-mapped; `present` (n,) False where there was nothing to encode; `card`."""

    values: NDArray[Any]
    present: NDArray[np.bool_]
    card: dict[str, Any]


class ArrayStore:
    """The entries of one kind of one section.

    Parameters
    ----------
    folder
        `SECTION/embeddings` or `SECTION/windows`.
    rows
        Number of locations of the section.
    locations
        Digest of their identity and order; entries of other locations are refused.
    """

    def __init__(self, folder: Path, *, rows: int, locations: str) -> None:
        self.folder, self.rows, self.locations = folder, rows, locations

    def _path(self, fingerprint: str) -> Path:
        if not _NAME.fullmatch(fingerprint):
            raise ContractError(f"{fingerprint!r} is not a fingerprint (8 to 64 hex digits)", where=self.folder)
        return self.folder / fingerprint

    def has(self, fingerprint: str) -> bool:
        """Whether a whole entry is there."""
        return self._path(fingerprint).is_dir()

    def names(self) -> list[str]:
        """Fingerprints of all entries, sorted."""
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if p.is_dir() and _NAME.fullmatch(p.name))

    @contextmanager
    def writing(
        self, fingerprint: str, *, shape: tuple[int, ...], dtype: Any, card: dict[str, Any]
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
        """`values` of `shape` (a memory map) and `present` to fill; kept only if the block ends without error."""
        path = self._path(fingerprint)
        if shape[0] != self.rows:
            raise ContractError(f"{shape[0]} rows for a section of {self.rows} locations", where=path)
        with atomic_folder(path) as partial:
            values = np.lib.format.open_memmap(partial / "values.npy", mode="w+", dtype=dtype, shape=shape)
            present = np.zeros(self.rows, dtype=bool)
            yield values, present
            if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values[present]).all():
                row = int(np.flatnonzero(present)[~np.isfinite(values[present].reshape(present.sum(), -1)).all(1)][0])
                raise ContractError("an encoder gave a value that is not finite", where=f"{path}, row {row}")
            values.flush()
            del values
            np.save(partial / "present.npy", present, allow_pickle=False)
            write_json(partial / "card.json", {**card, "fingerprint": fingerprint, "locations": self.locations})

    def write(self, fingerprint: str, values: ArrayLike, *, present: ArrayLike, card: dict[str, Any]) -> None:
        """Write an entry at once."""
        array = np.asarray(values)
        with self.writing(fingerprint, shape=array.shape, dtype=array.dtype, card=card) as (out, there):
            out[...] = array
            there[...] = present

    def read(self, fingerprint: str) -> Stored:
        """An entry.

        Raises
        ------
        StorageError
            There is none of that name.
        ContractError
            It was made of other locations, or is damaged.
        """
        path = self._path(fingerprint)
        if not path.is_dir():
            raise StorageError("there is no such embedding", where=path, mend="run `triglyph embed` first")
        card = read_json(path / "card.json")
        try:
            values = np.load(path / "values.npy", mmap_mode="r", allow_pickle=False)
            present = np.load(path / "present.npy", allow_pickle=False)
        except (ValueError, OSError) as error:
            raise ContractError(f"damaged ({error})", where=path, mend="remove the folder and embed again") from error
        if card["locations"] != self.locations or len(values) != self.rows or present.shape != (self.rows,):
            raise ContractError(
                "made of other locations than this section has", where=path, mend="remove the folder and embed again"
            )
        return Stored(values, present, card)

    def sweep(self) -> None:
        """Remove what killed processes left behind."""
        import shutil

        if self.folder.is_dir():
            for leftover in self.folder.glob(f"{PARTIAL}*"):
                shutil.rmtree(leftover, ignore_errors=True)
