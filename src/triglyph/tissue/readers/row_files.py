"""What a user says of rows in a file beside the source: captions, and names of what to leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from triglyph.errors import SourceError
from triglyph.storage import file_digest


@dataclass(frozen=True)
class Captions:
    """Captions by section ("" for any) and barcode; see `captioning`."""

    path: Path
    sha256: str
    rows: Mapping[tuple[str, str], str]

    def of(self, section: str, barcodes: Sequence[str]) -> list[str]:
        """One a row, "" where the file has none."""
        return [self.rows.get((section, b)) or self.rows.get(("", b), "") for b in barcodes]


@dataclass(frozen=True)
class Excluded:
    """Names of what to leave out."""

    path: Path
    sha256: str
    names: frozenset[str]


def read_excluded(path: Path) -> Excluded:
    """A text file with one name a line; empty lines and what follows `#` are left out.

    Raises
    ------
    SourceError
        It is not readable, or names nothing.
    """
    mend = "give a text file with one accession or id a line"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"the list is not readable ({error})", where=path, mend=mend) from error
    names = frozenset(name for line in lines if (name := line.partition("#")[0].strip()))
    if not names:
        raise SourceError("the list names nothing", where=path, mend=mend)
    return Excluded(path, file_digest(path), names)
