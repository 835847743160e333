"""Parts of sections: what one side of a within-section fold may see.

A part is a section of fewer locations. Whatever is computed of a section (an encoder's features, expression, truth) is
computed of the whole one and then cut, so that a source never has to know about parts. Ids of training parts differ
from those of test parts, since both sides of one section stand in one trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.errors import SplitError

Array = NDArray[Any]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Part:
    """Some locations of a section, to be read like a section."""

    whole: Any
    rows: NDArray[np.intp]
    """Ascending."""
    training: bool = False

    @property
    def id(self) -> str:
        """The section's own for what is tested, another for what is trained on."""
        return f"{self.whole.id} (training part)" if self.training else str(self.whole.id)

    @property
    def patient(self) -> str:
        """As the section's."""
        return str(self.whole.patient)

    @property
    def table(self) -> Any:
        """The rows of the section's table."""
        return self.whole.table[self.rows]

    @property
    def info(self) -> Any:
        """As the section's."""
        return self.whole.info

    @property
    def centres_um(self) -> NDArray[np.float64]:
        """(rows, 2)"""
        return np.asarray(self.whole.centres_um[self.rows])

    @property
    def captions(self) -> list[str]:
        """One per location of the part."""
        captions = self.whole.captions
        return [captions[i] for i in self.rows]

    @property
    def labels(self) -> Array:
        """One per location of the part."""
        return np.asarray(self.whole.labels)[self.rows]

    def expression(self) -> tuple[sp.csr_matrix, tuple[str, ...], tuple[str, ...], Bools]:
        """As the section's, of the part's locations."""
        counts, symbols, ensembl, measured = self.whole.expression()
        return sp.csr_matrix(counts)[self.rows], symbols, ensembl, measured


def whole_of(section: Any) -> Any:
    """The section that a part is of; a whole section itself."""
    return section.whole if isinstance(section, Part) else section


def cut(section: Any, *arrays: Array) -> tuple[Array, ...]:
    """Arrays over the locations of the whole section, cut to those of `section`."""
    return tuple(a[section.rows] for a in arrays) if isinstance(section, Part) else arrays


def embedded(source: Any, section: Any, modality: Any) -> tuple[Array, Bools]:
    """`source.embed` of a section or a part."""
    values, present = cut(section, *source.embed(whole_of(section), modality))
    return values, present


def pooled(source: Any, section: Any, modality: Any) -> tuple[Array, Bools]:
    """`source.pooled` of a section or a part."""
    values, present = cut(section, *source.pooled(whole_of(section), modality))
    return values, present


def divided(section: Any, barcodes: Sequence[str], *, where: str, buffer: Sequence[str] = ()) -> tuple[Part, Part]:
    """The training part of a section and the part of these barcodes, which is tested; the buffer is in neither.

    Raises
    ------
    SplitError
        A barcode is unknown or named twice, or one of the parts is empty.
    """
    at = {str(name): i for i, name in enumerate(section.table.obs_names)}
    if len(at) < len(section.table.obs_names):
        raise SplitError(
            f"two locations of section {section.id} have one barcode, so that nobody knows which is tested",
            where=where,
            mend="give every location of the section a name of its own",
        )
    named = (*barcodes, *buffer)
    unknown = [b for b in named if b not in at]
    if unknown or len(set(named)) < len(named):
        wrong = f"{len(unknown)} barcodes that it has not, such as {unknown[0]}" if unknown else "a barcode twice"
        raise SplitError(
            f"the test locations of section {section.id} name {wrong}",
            where=where,
            mend="make the split again from the cohort as it is",
        )
    rows = np.sort(np.array([at[b] for b in barcodes], dtype=np.intp))
    rest = np.setdiff1d(np.arange(len(at), dtype=np.intp), [at[b] for b in named])
    if not len(rows) or not len(rest):
        raise SplitError(
            f"section {section.id} has {len(rest)} locations to train on and {len(rows)} to test on",
            where=where,
            mend="hold out some of its locations, not none or all",
        )
    return Part(section, rest, training=True), Part(section, rows)
