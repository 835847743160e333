"""Genes that all sections of a trial measure."""

from __future__ import annotations

from collections.abc import Sequence

from triglyph.bench.contracts import SectionLike
from triglyph.errors import GeneError


def common_genes(sections: Sequence[SectionLike]) -> tuple[str, ...]:
    """Symbols measured in all sections, sorted.

    Raises
    ------
    GeneError
        There is none.
    """
    sets = []
    for section in sections:
        _, symbols, _, measured = section.expression()
        sets.append({s for s, m in zip(symbols, measured, strict=True) if m})
    common = sorted(set.intersection(*sets)) if sets else []
    if not common:
        raise GeneError(
            "the sections have no measured gene in common",
            where=", ".join(s.id for s in sections),
            mend="harmonise their gene symbols, or judge them apart",
        )
    return tuple(common)
