"""Published gene dictionaries, from JSON or from the pickle they were released as, without executing the pickle.

Geneformer's token and median dictionaries are pickles of `{Ensembl id: number}` with NumPy scalars. Unpickling calls
whatever a file names, so this reader names everything itself: dict, str, bytes, int, float, and stand-ins that rebuild
a NumPy scalar from its bytes. Anything else is refused by name before it is looked up.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triglyph.errors import SourceError
from triglyph.storage import read_json

# What the unpickler raises on bytes that are no pickle; its documentation promises no list.
_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    struct.error,
)
_FORMATS = {
    "f4": "f", "f8": "d", "f2": "e", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "b1": "?",
}  # fmt: skip


class _Refused(Exception):
    """A pickle names something that is neither a number nor a string."""


class _Dtype:
    """Stands in for `numpy.dtype`: remembers a plain number's type and byte order."""

    def __init__(self, name: str, *_: Any) -> None:
        if name not in _FORMATS:
            raise _Refused(f"numpy.dtype({name!r})")
        self.code, self.order = _FORMATS[name], "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(dtype: Any, data: Any = b"") -> float | int | bool:
    """Stands in for `numpy.core.multiarray.scalar`."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise _Refused("numpy.core.multiarray.scalar of something that is not a number")
    value: float | int | bool = struct.unpack(dtype.order + dtype.code, data)[0]
    return value


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Stands in for `_codecs.encode`, which old protocols use to write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"_codecs.encode with {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encode,
}


class _Numbers(pickle.Unpickler):
    """An unpickler that can build dictionaries of numbers and strings, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"persistent id {pid!r}")


def read_dictionary(path: Path) -> dict[str, Any]:
    """A dictionary from gene ids to numbers or strings.

    Parameters
    ----------
    path
        `.json`, or a pickle (`.pkl`, `.pickle`) as published with Geneformer.

    Raises
    ------
    SourceError
        The file is not such a dictionary, or the pickle holds anything but numbers and strings; the error names it.
    """
    if path.suffix == ".json":
        found = read_json(path)
    else:
        try:
            with path.open("rb") as stream:
                found = _Numbers(stream).load()
        except FileNotFoundError:
            raise SourceError("there is no such file", where=path, mend="check the path") from None
        except _Refused as error:
            raise SourceError(
                f"the pickle holds more than numbers and strings, and was not opened: {error}",
                where=path,
                mend="use the file as published, or convert it to JSON where you trust it",
            ) from None
        except _DAMAGED as error:
            raise SourceError(
                f"not a readable pickle ({type(error).__name__}: {error})", where=path, mend="fetch the file again"
            ) from None
    if not isinstance(found, dict):
        raise SourceError(f"holds a {type(found).__name__}, not a dictionary", where=path)
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str | int | float):
            raise SourceError(
                f"maps {key!r} to {value!r}; genes to numbers or names are expected", where=path, mend="check the file"
            )
    return found
