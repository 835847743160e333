"""Captions for the rows of any section: from a file, from the table's own column, or from templates, in this order.

A file (`--captions`) is a CSV, a TSV or JSON objects one a line, with `caption`, `barcode` (or `geo_accession`) and,
where barcodes alone are not unique, `section`.

A template (`--caption-template`) names columns of the table in braces: `{cell_type} from {tissue}[ of a {sex} donor]`.
A value is missing if it is empty or a word for that (`unknown`, `na`, `nan`, `none` ...). A clause in square brackets
with a missing value is dropped; a missing value outside brackets makes the template useless for that row. Of several
templates one is drawn among those a row can use, by seed, section and barcode, whatever the order of rows; a row that
can use none has no caption.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from triglyph.errors import ContractError, RecipeError
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.readers.base import ReadOptions
from triglyph.tissue.readers.pairs import read_pairs
from triglyph.tissue.readers.row_files import Captions

MISSING = frozenset({"", "nan", "none", "na", "n/a", "<na>", "null", "unknown", "not applicable", "not available"})
BARCODE_COLUMNS = ("barcode", "geo_accession")
_CLAUSE = re.compile(r"\[([^\[\]]*)\]")
_FIELD = re.compile(r"\{([^{}]*)\}")


def read_captions(path: Path) -> Captions:
    """A file of captions.

    Raises
    ------
    SourceError
        It is not readable, or lacks a column.
    ContractError
        A row has two captions.
    """
    table = read_pairs(path)
    key = next((c for c in BARCODE_COLUMNS if c in table.rows), BARCODE_COLUMNS[0])
    mend = "name the columns section (optional), barcode and caption"
    barcodes, captions = table.column(key, mend=mend), table.column("caption", mend=mend)
    sections = table.column("section", mend=mend) if "section" in table.rows else [""] * len(barcodes)
    rows: dict[tuple[str, str], str] = {}
    for number, (section, barcode, caption) in enumerate(zip(sections, barcodes, captions, strict=True), start=1):
        if rows.setdefault((section, barcode), caption) != caption:
            raise ContractError(
                f"{barcode!r} of section {section or 'any'!r} has two captions",
                where=f"{path}, row {number}",
                mend="keep one",
            )
    return Captions(path, table.sha256, rows)


@dataclass(frozen=True)
class Template:
    """A sentence with fields in braces and optional clauses in square brackets."""

    text: str

    def __post_init__(self) -> None:
        bare = _FIELD.sub("", _CLAUSE.sub(lambda m: m[1], self.text))
        if not self.fields or any(c in bare for c in "{}[]") or "" in self.fields:
            raise RecipeError(
                f"{self.text!r} is not a template",
                where="--caption-template",
                mend="name columns in braces, and put what may be left out in square brackets, not nested: "
                "'{cell_type} from {tissue}[ of a {sex} donor]'",
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of columns, in order."""
        return tuple(name.strip() for name in _FIELD.findall(self.text))

    def fill(self, values: Mapping[str, str]) -> str:
        """The sentence, or "" where a value that it cannot do without is missing ("" in `values`)."""

        def clause(found: re.Match[str]) -> str:
            return found[1] if all(values[n.strip()] for n in _FIELD.findall(found[1])) else ""

        kept = _CLAUSE.sub(clause, self.text)
        if not all(values[n.strip()] for n in _FIELD.findall(kept)):
            return ""
        return " ".join(_FIELD.sub(lambda m: values[m[1].strip()], kept).split())


def caption_draft(draft: SectionDraft, options: ReadOptions) -> None:
    """Give the draft's rows their captions, and say in its provenance where they came from.

    Raises
    ------
    ContractError
        The file has no caption for any row of the section.
    RecipeError
        A template names a column that the table lacks, or is none.
    """
    if options.captions is None and not options.caption_template:
        return
    obs = draft.table.obs
    barcodes = [str(b) for b in obs.index]
    own = _texts(obs["caption"]) if "caption" in obs else [""] * len(obs)
    found = list(own)
    said: dict[str, Any] = {}
    if options.captions is not None:
        filed = options.captions.of(draft.section_id, barcodes)
        if not any(filed):
            raise ContractError(
                "the captions file has none for this section",
                where=f"{options.captions.path}, section {draft.section_id}, barcodes such as {barcodes[0]!r}",
                mend="check its columns section and barcode, or leave the section out with --only",
            )
        said["file"] = {
            "name": options.captions.path.name,
            "sha256": options.captions.sha256,
            "rows": sum(map(bool, filed)),
        }
        found = [f or o for f, o in zip(filed, own, strict=True)]
    if options.caption_template:
        templated = _templated(draft, options, [not f for f in found])
        said["templates"] = {
            "texts": list(options.caption_template),
            "seed": options.seed or 0,
            "rows": sum(map(bool, templated)),
        }
        found = [f or t for f, t in zip(found, templated, strict=True)]
    said["without"] = sum(not f for f in found)
    draft.table.obs["caption"] = pd.Series(found, index=obs.index, dtype=object)
    draft.source["captions"] = said


def _templated(draft: SectionDraft, options: ReadOptions, wanted: Sequence[bool]) -> list[str]:
    templates = [Template(text) for text in options.caption_template]
    obs = draft.table.obs
    names = sorted({name for template in templates for name in template.fields})
    if lacking := [n for n in names if n not in obs]:
        raise RecipeError(
            f"the table has no column {lacking[0]!r}",
            where=f"--caption-template, section {draft.section_id}",
            mend=f"it has {', '.join(map(str, obs.columns[:40]))}",
        )
    columns = {name: _texts(obs[name]) for name in names}
    out = []
    for row, barcode in enumerate(obs.index):
        values = {name: column[row] for name, column in columns.items()}
        usable = [text for t in templates if (text := t.fill(values))] if wanted[row] else []
        draw = f"{options.seed or 0}|{draft.section_id}|{barcode}".encode()
        out.append(usable[int.from_bytes(hashlib.sha256(draw).digest()[:8]) % len(usable)] if usable else "")
    return out


def _texts(column: pd.Series) -> list[str]:
    """Values as words, "" where missing; 54.0 is 54, and no digit is lost."""
    values = np.asarray(column)  # floats in their own precision: 0.1 of 32 bits is 0.10000000149 in 64
    words = []
    for value in values if values.dtype.kind == "f" else column.astype(object):
        whole = isinstance(value, float | np.floating) and float(value).is_integer()
        text = "" if pd.isna(value) else str(int(value)) if whole else str(value).strip()
        words.append("" if text.lower() in MISSING else text)
    return words
