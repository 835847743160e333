"""What a user says of rows in a file beside the source: captions, and names of what to leave out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from triglyph.errors import RecipeError, SourceError
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
    """Names of what to leave out; one fits only what is spelled the same, case and version included."""

    path: Path
    sha256: str
    names: frozenset[str]
    met: set[str] = field(default_factory=set, compare=False, repr=False)
    """Those that any source had, so far."""

    def among(self, present: Iterable[str]) -> frozenset[str]:
        """Those that a source has."""
        found = self.names.intersection(present)
        self.met.update(found)
        return found

    def note(self, left_out: int, total: int, what: str, found: frozenset[str]) -> str:
        """What the list did to one file, in words."""
        return (
            f"{self.path.name} excluded {left_out:,} of {total:,} {what} by {len(found):,} of {len(self.names):,} names"
        )

    def check(self) -> None:
        """Call it once all sources are discovered.

        Raises
        ------
        RecipeError
            No source had any of the names: a list that excludes nothing is of something else, or misspelled.
        """
        if not self.met:
            shown = ", ".join(map(repr, sorted(self.names)[:4]))
            raise RecipeError(
                f"none of the {len(self.names):,} names is in the sources: {shown}",
                where=self.path,
                mend="spell accessions and ids as the sources do, case and version included, or leave out --exclude",
            )


def read_excluded(path: Path) -> Excluded:
    """A text file with one name a line; empty lines and what follows `#` are left out.

    Raises
    ------
    SourceError
        It is not readable, or names nothing.
    """
    mend = "give a text file with one accession or id a line"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"the list is not readable ({error})", where=path, mend=mend) from error
    names = frozenset(name for line in lines if (name := line.partition("#")[0].strip()))
    if not names:
        raise SourceError("the list names nothing", where=path, mend=mend)
    return Excluded(path, file_digest(path), names)
