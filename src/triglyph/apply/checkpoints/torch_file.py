"""A file of `torch.save`, read without executing anything and without believing what it says of itself.

It is a zip of `NAME/data.pkl` and `NAME/data/0`, `NAME/data/1`, ... The pickle is read as data (`plain_pickle`), a
tensor's bytes only once its caller has accepted its shape. Entries are found by name inside the archive and never
become paths on disk; a compressed entry, which `torch.save` does not write, is refused, so nothing can grow on reading.
"""

from __future__ import annotations

import math
import re
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from triglyph.apply.checkpoints.plain_pickle import Refused, StoredTensor, read_pickle
from triglyph.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

MOST_PICKLE_BYTES = 2**24
"""Of `data.pkl`: it names tensors and holds none; a hundred thousand of them fit."""
_DAMAGED = (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, EOFError, OverflowError, OSError)
"""What `zipfile` raises on bytes that are no zip."""
_MEND = "fetch the published file again"


class TorchFile:
    """An open file; use it as a context manager.

    Parameters
    ----------
    path
        The file.
    records
        See `read_pickle`.

    Raises
    ------
    WeightsError
        It is not there, damaged, or holds anything but tensors, configurations and plain values.
    """

    content: Any
    """What was saved, with a `StoredTensor` for each tensor."""

    def __init__(self, path: Path, *, records: re.Pattern[str]) -> None:
        self.path = path
        if not path.is_file():
            raise WeightsError("there is no such file", where=path, mend="check the path")
        with self._readable("not a file of torch.save, or cut short"):
            self._zip = zipfile.ZipFile(path)
        with ExitStack() as unless_opened:
            unless_opened.callback(self.close)
            self._open(records)
            unless_opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._zip.close()

    def tensor(self, stored: StoredTensor, *, name: str) -> Tensor:
        """The bytes of a tensor as a tensor on the CPU; `name` stands in errors.

        Memory is that of its shape: look at it first.

        Raises
        ------
        WeightsError
            Its bytes are not there, are damaged, or do not lie as its shape says.
        """
        import torch

        dtype = getattr(torch, stored.storage.dtype)
        numel, entry = math.prod(stored.shape), self._entry(f"data/{stored.storage.key}", said=f"the storage of {name}")
        if not _contiguous(stored.shape, stored.stride) or stored.offset + numel > stored.storage.numel:
            raise self._wrong(f"{name} does not lie in its storage as its shape says")
        if entry.file_size != stored.storage.numel * dtype.itemsize:
            raise self._wrong(
                f"the storage of {name} has {entry.file_size} bytes, "
                f"not {stored.storage.numel} numbers of {stored.storage.dtype}"
            )
        with self._readable(f"the bytes of {name} are damaged"), self._zip.open(entry) as stream:
            stream.seek(stored.offset * dtype.itemsize)
            data = bytearray(stream.read(numel * dtype.itemsize))
        if len(data) != numel * dtype.itemsize:
            raise self._wrong(f"the bytes of {name} are cut short")
        return torch.frombuffer(data, dtype=dtype).reshape(stored.shape)

    def _open(self, records: re.Pattern[str]) -> None:
        entries = self._zip.infolist()
        self._entries = {entry.filename: entry for entry in entries}
        pickles = [name for name in self._entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1 or len(self._entries) != len(entries):
            raise self._wrong("not a file of torch.save: it has to hold one data.pkl, and no name twice")
        self._prefix = pickles[0].removesuffix("data.pkl")
        order = self._read("byteorder") if f"{self._prefix}byteorder" in self._entries else b"little"
        if order != sys.byteorder.encode():
            raise self._wrong("its numbers are stored in the other byte order")
        try:
            self.content = read_pickle(self._read("data.pkl"), records=records)
        except Refused as refused:
            raise WeightsError(f"not opened: {refused}", where=self.path, mend=_MEND) from None

    def _entry(self, name: str, *, said: str) -> zipfile.ZipInfo:
        entry = self._entries.get(f"{self._prefix}{name}")
        if entry is None:
            raise self._wrong(f"{said} is missing")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise self._wrong(f"{said} is compressed or encrypted, which torch.save does not do")
        return entry

    def _read(self, name: str) -> bytes:
        entry = self._entry(name, said=name)
        if entry.file_size > MOST_PICKLE_BYTES:
            raise self._wrong(f"{name} has {entry.file_size} bytes; {MOST_PICKLE_BYTES} is the most")
        with self._readable(f"{name} is damaged"):
            return self._zip.read(entry)

    def _wrong(self, what: str) -> WeightsError:
        return WeightsError(what, where=self.path, mend=_MEND)

    @contextmanager
    def _readable(self, otherwise: str) -> Iterator[None]:
        try:
            yield
        except _DAMAGED as error:
            raise self._wrong(f"{otherwise} ({type(error).__name__})") from error


def _contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether numbers lie row by row without gaps; the step along an axis of one means nothing."""
    step = 1
    for size, given in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and given != step:
            return False
        step *= size
    return True
