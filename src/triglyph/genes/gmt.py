"""Gene sets in GMT files: a line per set, tab-separated: name, description, then the genes.

The format has no header and no escape, so what cannot be written back as it was read is refused: an empty or repeated
name, a line without genes, an empty field. A gene named twice in one set would count twice and is refused too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from triglyph.errors import GeneError, SourceError
from triglyph.storage import atomic_file


class GeneSet(NamedTuple):
    """A named set of genes."""

    name: str
    description: str
    """Free text, or a link; may be empty."""
    genes: tuple[str, ...]
    """Symbols, each once, in the order of the file."""


def read_gmt(path: Path) -> dict[str, GeneSet]:
    """The gene sets of a GMT file by name, in its order.

    Empty lines and a byte-order mark are passed over.

    Raises
    ------
    SourceError
        There is no such file, or it is not UTF-8 text.
    GeneError
        A line breaks the format, or a name stands twice; the line is named.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SourceError("there is no such file", where=path, mend="check the path") from None
    except UnicodeDecodeError as error:
        raise SourceError(f"not UTF-8 text ({error})", where=path, mend="save it as UTF-8") from None
    sets: dict[str, GeneSet] = {}
    # Not splitlines: it would break a line at characters that a description may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        fields = line.split("\t")
        if len(fields) < 3:
            raise GeneError(
                f"{len(fields)} tab-separated fields, not at least 3",
                where=where,
                mend="write name, description and genes, with tabs between them",
            )
        name, description, *genes = fields
        found = GeneSet(name, description, tuple(genes))
        _check(found, where=where)
        if found.name in sets:
            raise GeneError(f"a second set is called {found.name!r}", where=where, mend="give each set its own name")
        sets[found.name] = found
    if not sets:
        raise GeneError("there are no gene sets", where=path, mend="give a file with at least one line")
    return sets


def write_gmt(sets: Iterable[GeneSet], path: Path) -> Path:
    """Write gene sets as GMT, atomically, so that `read_gmt` gives them back.

    Raises
    ------
    GeneError
        There is none, a name stands twice, or a set cannot be told in this format.
    StorageError
        The disk is full or read-only.
    """
    path, lines = Path(path), {}
    for number, given in enumerate(sets):
        where = f"{path}, set {number} ({given.name!r})"
        _check(given, where=where)
        if given.name in lines:
            raise GeneError(f"a second set is called {given.name!r}", where=where, mend="give each set its own name")
        lines[given.name] = "\t".join([given.name, given.description, *given.genes])
    if not lines:
        raise GeneError("there are no gene sets", where=path, mend="give at least one")
    with atomic_file(path) as partial:
        # Bytes, so that no platform turns the ends of lines into its own.
        partial.write_bytes(("\n".join(lines.values()) + "\n").encode("utf-8"))
    return path


def _check(given: GeneSet, *, where: object) -> None:
    if any(c in field for field in (given.name, given.description, *given.genes) for c in "\t\n\r"):
        raise GeneError("a name, description or gene holds a tab or a line's end", where=where, mend="remove it")
    if not given.name.strip() or given.name != given.name.strip():
        raise GeneError(
            f"the set's name {given.name!r} is empty or has blanks around it", where=where, mend="name it plainly"
        )
    if not given.genes:
        raise GeneError("the set has no genes", where=where, mend="add genes, or remove the set")
    if odd := [gene for gene in given.genes if not gene or gene != gene.strip()]:
        raise GeneError(
            f"the gene {odd[0]!r} is empty or has blanks around it",
            where=where,
            mend="remove tabs at the line's end and blanks around genes",
        )
    if len(set(given.genes)) < len(given.genes):
        twice = sorted({gene for gene in given.genes if given.genes.count(gene) > 1})
        raise GeneError(f"genes stand twice in the set: {', '.join(twice[:5])}", where=where, mend="keep each once")
