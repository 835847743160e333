"""Atomic writes: a file or folder is either absent or whole, also after `kill -9` or a full disk.

A folder is written beside its target under a name that starts with `.partial-`, then renamed. What a killed
process left behind is removed by the next one that writes the same target.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from triglyph.errors import StorageError

PARTIAL = ".partial-"


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder to write into, renamed to `target` when the block ends without error.

    One process at a time holds `target`; leftovers of dead ones are swept first.

    Raises
    ------
    StorageError
        `target` exists, or the disk is full or read-only.
    """
    with _storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            partial = target.parent / f"{PARTIAL}{target.name}"
            shutil.rmtree(partial, ignore_errors=True)
            if target.exists():
                raise StorageError("already written", where=target, mend="remove it, or write to another place")
            partial.mkdir()
            try:
                yield partial
                _fsync(partial)
                os.rename(partial, target)
                _fsync(target.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A path to write to, renamed over `target` when the block ends without error."""
    with _storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep_dead(target)
        # The suffix is kept, since writers choose formats by it.
        partial = target.parent / f"{PARTIAL}{os.getpid()}-{target.name}"
        try:
            yield partial
            _fsync(partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(target) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The JSON in `path`.

    Raises
    ------
    StorageError
        The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError("there is no such file", where=path, mend="check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"not readable as JSON: {error}", where=path, mend="restore the file") from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sweep_dead(target: Path) -> None:
    """Remove what processes of this machine that no longer live left of `target`."""
    for leftover in target.parent.glob(f"{PARTIAL}*-{glob.escape(target.name)}"):
        pid = leftover.name.removeprefix(PARTIAL).split("-")[0]
        if pid.isdecimal() and int(pid) != os.getpid() and not _alive(int(pid)):
            leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storage_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        mends = {
            errno.ENOSPC: "free some space and run the same command again; nothing half-written is left",
            errno.EDQUOT: "raise the quota and run the same command again; nothing half-written is left",
            errno.EROFS: "choose a writable --out",
            errno.EACCES: "choose a writable --out",
        }
        if error.errno not in mends:
            raise
        raise StorageError(os.strerror(error.errno), where=target, mend=mends[error.errno]) from error
