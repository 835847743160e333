"""A rank vocabulary whose scales are non-zero means: what Stamp divides counts by.

Han et al., ICLR 2026 (Stamp), after Nicheformer: a gene's scale is the mean of its counts over the locations that have
any. Values of a location are divided by it and ranked, so a gene stands early where it is anomalously high.

A mean here is the exact quotient of two whole numbers, the sum of raw counts and the number of locations, over the
training sections that measured the gene: it depends on no order of sections, locations or columns, and a section whose
panel lacks the gene changes nothing. Names are read first, counts once.

The release rounds its means to whole numbers, which leaves nearly half of all genes with the scale 1 and nearly every
token in a tie; `rounded_mean` is that, for its weights and for comparison.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triglyph.errors import GeneError
from triglyph.genes.medians import Measured, commonest, known_symbols, named_counts, numbered
from triglyph.genes.ranking import largest_count
from triglyph.genes.tokens import RankVocabulary

Scale = Literal["mean", "rounded_mean"]


class NonZero(NamedTuple):
    """A gene over the training sections that measured it."""

    total: int
    """Sum of raw counts."""
    locations: int
    """How many locations have a count of it."""

    @property
    def mean(self) -> float:
        """Counts of a location that has any; at least 1."""
        return self.total / self.locations


def nonzero_counts(sections: Iterable[Measured]) -> dict[str, NonZero]:
    """Sums and occurrences of the genes of `sections`, by name; genes without any count are left out.

    Genes are named as `medians.recomputed_vocabulary` names them: by Ensembl id, their own or the one another section
    gives their symbol, or by symbol where no section has ids. Columns of one gene are added up before a location counts
    as one that has it.

    Parameters
    ----------
    sections
        The training sections, and no others. Read twice, for names and for counts, so an iterator will not do.

    Raises
    ------
    GeneError
        `sections` can be read only once, or a count of a measured gene is not a whole, non-negative number.
    """
    return _counted(sections, known_symbols(sections))


def means_vocabulary(
    sections: Iterable[Measured], *, max_genes: int | None = None, scale: Scale = "mean"
) -> RankVocabulary:
    """Tokens and non-zero means of the genes of `sections`; see `nonzero_counts`.

    Parameters
    ----------
    sections
        The training sections, and no others. An iterator will not do.
    max_genes
        Keep those that occur at most locations, so many; ties by name. Token ids follow the sorted names, from 2 on.
    scale
        `mean` is exact; `rounded_mean` is what the release divides by.

    Raises
    ------
    GeneError
        As `nonzero_counts`; or no gene that has a name has a count, or `scale` is another word.
    """
    if scale not in ("mean", "rounded_mean"):
        raise GeneError(f"no scale is called {scale!r}", mend="mean or rounded_mean")
    symbols = known_symbols(sections)
    counted = _counted(sections, symbols)
    chosen = commonest({name: found.locations for name, found in counted.items()}, max_genes)
    means = np.array([counted[name].mean for name in chosen])
    if scale == "rounded_mean":
        means = rounded_mean(means)
    return RankVocabulary(numbered(chosen), dict(zip(chosen, means.tolist(), strict=True)), symbols)


def rounded_mean(means: ArrayLike) -> NDArray[np.float64]:
    """Means as the release of Stamp rounds them: half up, and 1 for a gene that has none (0 or NaN)."""
    rounded = np.floor(np.nan_to_num(np.asarray(means, dtype=np.float64), nan=0.0) + 0.5)
    return np.where(rounded == 0, 1.0, rounded)


def _counted(sections: Iterable[Measured], symbols: dict[str, str] | None) -> dict[str, NonZero]:
    found: dict[str, NonZero] = {}
    for section in sections:
        names, counts, _ = named_counts(section, symbols)
        largest_count(counts.data)
        totals = np.asarray(counts.astype(np.int64).sum(axis=0)).ravel()
        locations = np.bincount(counts.indices, minlength=len(names))
        for name, total, occurs in zip(names, totals.tolist(), locations.tolist(), strict=True):
            if occurs:
                before = found.get(name, NonZero(0, 0))
                found[name] = NonZero(before.total + total, before.locations + occurs)
    return found
