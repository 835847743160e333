"""Features of a location that are there already or cost nothing, as embedders: protocols judge them like any model."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.contracts import Array, Embedder, SectionLike
from triglyph.errors import ContractError

Bools = NDArray[np.bool_]


class Features(abc.ABC):
    """An embedder that is features of one modality: `embed` and `pooled` are the same, and there are no words."""

    modality: str = "image"
    training_sections: Sequence[str] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """The one it has."""
        return (self.modality,)

    def pooled(self, section: Any, modality: Any) -> tuple[Array, Bools]:
        """(n, dim) features and which locations have them."""
        if modality != self.modality:
            raise ContractError(f"these are {self.modality} features, not {modality}", where=type(self).__name__)
        return self.features(section)

    def embed(self, section: Any, modality: Any) -> tuple[Array, Bools]:
        """As `pooled`."""
        return self.pooled(section, modality)

    def embed_text(self, texts: list[str]) -> Array:
        """Refused: features have no words."""
        raise ContractError(f"{type(self).__name__} cannot read text", mend="judge a model with a text tower")

    @abc.abstractmethod
    def features(self, section: Any) -> tuple[Array, Bools]:
        """(n, dim) and which of the n locations have them."""


@dataclass(frozen=True)
class StoredFeatures(Features):
    """What a frozen encoder left in `section.embeddings`."""

    fingerprint: str
    modality: str = "image"

    def features(self, section: Any) -> tuple[Array, Bools]:
        stored = section.embeddings.read(self.fingerprint)
        return stored.values, stored.present


@dataclass(frozen=True)
class ObsmFeatures(Features):
    """A key of the table's `obsm`; rows that are not finite are absent."""

    key: str
    modality: str = "image"

    def features(self, section: Any) -> tuple[Array, Bools]:
        values = np.asarray(section.table.obsm[self.key], dtype=np.float64)
        if values.ndim != 2:
            raise ContractError(f"obsm[{self.key!r}] must be (n, dim)", where=f"shape {values.shape}")
        return values, np.asarray(np.isfinite(values).all(axis=1))


@dataclass(frozen=True)
class Columns(Features):
    """Some columns of other features; column 0 of `stain-texture` is the mean of haematoxylin."""

    source: Embedder
    columns: tuple[int, ...]
    modality: str = "image"

    def features(self, section: SectionLike) -> tuple[Array, Bools]:
        values, present = self.source.pooled(section, self.modality)
        return np.asarray(values)[:, list(self.columns)], present


@dataclass(frozen=True)
class Alone(Features):
    """Features of one part of what is fused, in the table of the fusion."""

    source: Embedder
    of: str
    """The modality that they are of."""
    modality: str

    @property
    def training_sections(self) -> Sequence[str]:  # type: ignore[override]
        """Those of the source."""
        return self.source.training_sections

    def features(self, section: Any) -> tuple[Array, Bools]:
        return self.source.pooled(section, self.of)


@dataclass(frozen=True)
class Position(Features):
    """Polynomials of a location's place, z-scored within its section: what merely knowing where would give.

    Sections are not rotated onto each other; where they lie differently on their slides this is a weak baseline, and
    on near-copies of one block a strong one.
    """

    degree: int = 4
    modality: str = "image"

    def features(self, section: SectionLike) -> tuple[Array, Bools]:
        xy = np.asarray(section.centres_um, dtype=np.float64)
        spread = xy.std(axis=0)
        x, y = ((xy - xy.mean(axis=0)) / np.where(spread > 0, spread, 1.0)).T
        powers = [(i, j) for i in range(self.degree + 1) for j in range(self.degree + 1 - i) if i + j]
        return np.stack([x**i * y**j for i, j in powers], axis=1), np.ones(len(xy), dtype=bool)


@dataclass(frozen=True)
class Depth(Features):
    """log1p of a location's total count: what sequencing depth alone would give. It reads the test counts."""

    modality: str = "image"

    def features(self, section: SectionLike) -> tuple[Array, Bools]:
        counts, _, _, measured = section.expression()
        total = np.asarray(counts[:, np.flatnonzero(measured)].sum(axis=1)).ravel()
        return np.log1p(total)[:, None], total > 0


@dataclass(frozen=True)
class Constant(Features):
    """Nothing at all: ridge then predicts every gene's training mean."""

    modality: str = "image"

    def features(self, section: SectionLike) -> tuple[Array, Bools]:
        n = len(section.centres_um)
        return np.zeros((n, 1)), np.ones(n, dtype=bool)
