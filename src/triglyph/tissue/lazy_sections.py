"""Sections of a cohort opened when they are looked at, and let go again: memory does not grow with their number.

A `Cohort` keeps every section it has opened, with its table, which is right as long as they fit. Training that streams
through thousands of them reads through this instead.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import overload

from triglyph.errors import ContractError, SourceError
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.section import Section


class LazySections(Sequence[Section]):
    """A sequence of sections of which only the last used are open.

    Parameters
    ----------
    cohort
        Where they lie; what its manifest states otherwise than the source holds here too.
    sections
        Ids, in this order; all of the cohort, sorted, if None.
    keep
        How many stay open, each with its table once that was read. To have a section does not read its table; who
        holds on to one keeps it in memory beyond this number.

    Raises
    ------
    SourceError
        The cohort has no such section.
    ContractError
        `keep` is less than 1.
    """

    def __init__(self, cohort: Cohort, sections: Sequence[str] | None = None, *, keep: int = 4) -> None:
        self.cohort, self.keep = cohort, keep
        self.ids: tuple[str, ...] = tuple(cohort.ids if sections is None else sections)
        if unknown := [section for section in self.ids if section not in cohort]:
            raise SourceError(
                f"no section {', '.join(map(repr, unknown[:10]))}",
                where=cohort.path,
                mend=f"the cohort has {', '.join(cohort.ids[:20])}",
            )
        if keep < 1:
            raise ContractError(f"{keep} sections kept open", where="LazySections", mend="keep 1 or more")
        self._open: OrderedDict[str, Section] = OrderedDict()

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Section: ...

    @overload
    def __getitem__(self, index: slice) -> LazySections: ...

    def __getitem__(self, index: int | slice) -> Section | LazySections:
        if isinstance(index, slice):
            return LazySections(self.cohort, self.ids[index], keep=self.keep)
        section = self.ids[index]
        if section not in self._open:
            while len(self._open) >= self.keep:  # before another is opened, so that there are never more
                self._open.popitem(last=False)
            self._open[section] = self.cohort.opened(section)
        self._open.move_to_end(section)
        return self._open[section]
