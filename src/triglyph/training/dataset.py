"""Training rows: the locations of a cohort's training sections, and what each tower reads of them.

A locked tower reads its cached output, so its epochs touch no pixel. A tower that learns reads prepared input: all of
it in memory where it is small, else prepared batch by batch (from `section.windows`, for pixels). Rows that have no
pair to learn from are left out, and counted.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from triglyph.encoders.base import Encoder, Inputs, Modality
from triglyph.encoders.image import ImageEncoder
from triglyph.encoders.pretext_vit import ref_px
from triglyph.errors import ContractError, RecipeError
from triglyph.models.base import Batch
from triglyph.models.method import RegionConfig
from triglyph.tissue.lazy_sections import LazySections
from triglyph.tissue.regions import shrink
from triglyph.training.features import check_genes, present, raw_chunks
from triglyph.training.neighbourhood_batches import Neighbourhoods

if TYPE_CHECKING:
    from triglyph.tissue.section import Section

MEMORY_LIMIT = 1 << 30
"""Bytes of one modality's prepared input that are held in memory; more is prepared anew for every batch."""


@dataclass(frozen=True)
class Rows:
    """Which locations are trained on, and what they have."""

    sections: Sequence[Section]
    """A tuple, or `LazySections`, which keeps few of them open."""
    section: NDArray[np.int64]
    """(n,) position in `sections`"""
    location: NDArray[np.int64]
    """(n,) row of that section"""
    present: dict[str, NDArray[np.bool_]]
    """modality -> (n,)"""
    left_out: int
    """Locations that have nothing to learn from."""
    dealt: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """modality -> (n,) row whose input is shown in the place of each; modalities that are not named show their own."""

    def __len__(self) -> int:
        return len(self.section)

    @cached_property
    def groups(self) -> NDArray[np.str_]:
        """(n,) modalities of each row, joined by `+`."""
        names = np.full(len(self), "", dtype=object)
        for modality, here in self.present.items():
            names[here] = [f"{name}+{modality}" if name else modality for name in names[here]]
        return names.astype(str)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(sections + 1,) section s has the rows offsets[s] to offsets[s + 1]."""
        return np.searchsorted(self.section, np.arange(len(self.sections) + 1)).astype(np.int64)

    def places(self, number: int) -> NDArray[np.float64]:
        """(k, 2) centres of the rows of a section, µm; NaN where it is unplaced."""
        start, stop = self.offsets[number : number + 2]
        return self.sections[number].centres_um[self.location[start:stop]]

    @property
    def captions(self) -> NDArray[np.object_]:
        """(n,) strings, "" where missing; read anew each time, and as objects: one long caption widens no other."""
        found = np.full(len(self), "", dtype=object)
        for number, section in enumerate(self.sections):
            mine = self.section == number
            found[mine] = np.array(section.captions, dtype=object)[self.location[mine]]
        return found

    def shuffled(self, modalities: Sequence[str], *, seed: int) -> Rows:
        """These rows with the inputs of `modalities` dealt anew among those that have them: pairs that mean nothing.

        Raises
        ------
        RecipeError
            No row has the modality.
        """
        dealt: dict[str, NDArray[np.int64]] = {}
        for number, modality in enumerate(sorted(modalities)):
            if modality not in self.present:
                raise RecipeError(
                    f"no tower reads {modality}", where="data.shuffled", mend=f"name one of {', '.join(self.present)}"
                )
            rng = np.random.default_rng([seed, number, zlib.crc32(b"shuffled")])
            mine = np.flatnonzero(self.present[modality])
            dealt[modality] = np.arange(len(self))
            dealt[modality][mine] = rng.permutation(mine)
        return replace(self, dealt=dealt)

    def counts(self) -> dict[str, int]:
        """What is trained on and what is left out, for the manifest and for people."""
        groups, sizes = np.unique(self.groups, return_counts=True)
        return {
            "rows": len(self),
            "left_out": self.left_out,
            **{m: int(here.sum()) for m, here in self.present.items()},
            **{str(g): int(k) for g, k in zip(groups, sizes, strict=True) if "+" in g},
        }


def training_rows(
    sections: Sequence[Section],
    modalities: Sequence[str],
    needs: Iterable[Sequence[str]],
    *,
    held_out: Mapping[str, Sequence[str]] | None = None,
    without: Mapping[Modality, Sequence[str]] | None = None,
) -> Rows:
    """All locations of `sections` that have something to learn from.

    Parameters
    ----------
    needs
        A location is taken if it has all modalities of one of these.
    held_out
        Section id -> barcodes that a `within-section` split tests on.
    without
        modality -> ids of sections, or patterns of them, in which it is taken for absent.

    Raises
    ------
    ContractError
        No location has what is needed, or a held-out barcode is not in its section.
    """
    numbers, locations, left_out, needs = [], [], 0, tuple(needs)
    here: dict[str, list[NDArray[np.bool_]]] = {m: [] for m in modalities}
    for number, section in enumerate(sections):
        hidden = {m for m, patterns in (without or {}).items() if _matches(section.id, patterns)}
        has = {m: present(section, m) & (m not in hidden) for m in modalities}
        usable = np.zeros(section.n_locations, dtype=bool)
        for need in needs:
            usable |= np.logical_and.reduce([has[m] for m in need])
        allowed = ~_held_out(section, (held_out or {}).get(section.id, ()))
        rows = np.flatnonzero(usable & allowed)
        left_out += int(allowed.sum()) - len(rows)
        numbers.append(np.full(len(rows), number))
        locations.append(rows)
        for m in modalities:
            here[m].append(has[m][rows])
    section_of = np.concatenate(numbers) if numbers else np.zeros(0, dtype=np.int64)
    if not len(section_of):
        raise ContractError(
            f"no location has {' or '.join(' and '.join(need) for need in needs)}",
            where=f"sections {', '.join(s.id for s in sections) or '(none)'}",
            mend="train on sections that have them, or on other modalities",
        )
    return Rows(
        sections,
        section_of.astype(np.int64),
        np.concatenate(locations).astype(np.int64),
        {m: np.concatenate(x) for m, x in here.items()},
        left_out,
    )


class Visit(NamedTuple):
    """What a step sees, and in which epoch: what is drawn anew for every epoch hangs on it."""

    epoch: int
    seen: NDArray[np.int64] | Neighbourhoods


class Source(Protocol):
    """Where a modality's tensors come from."""

    def __call__(self, rows: NDArray[np.int64], /) -> Inputs:
        """Tensors of dataset rows, all of which have the modality."""
        ...


class Locations(Dataset[Batch]):
    """Batches as `triglyph.models.base` defines them, from arrays of dataset rows.

    Parameters
    ----------
    rows
        What is there.
    encoders
        One per modality.
    cached
        modality -> fingerprint, of towers whose output is read from `section.embeddings`.
    wider
        Regions that are shown with the windows of an image tower.
    """

    def __init__(
        self,
        rows: Rows,
        encoders: Mapping[str, Encoder],
        *,
        cached: Mapping[str, str],
        wider: RegionConfig | None = None,
    ) -> None:
        self.rows = rows
        self.cached = dict(cached)
        self.caption_keys = _keys(rows.captions) if "text" in rows.present else None
        self.sources: dict[str, Source] = {
            m: _features(rows, m, cached[m]) if m in cached else _prepared(rows, encoders[m]) for m in rows.present
        }

        self.regions = None if wider is None else _Regions(rows, encoders["image"], wider)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: NDArray[np.int64] | Neighbourhoods | Visit) -> Batch:
        epoch, index = index if isinstance(index, Visit) else (0, index)
        rows = np.asarray(index.rows if isinstance(index, Neighbourhoods) else index, dtype=np.int64)
        batch: Batch = {
            "n": len(rows),
            "index": torch.from_numpy(rows.copy()),
            "section": torch.from_numpy(self.rows.section[rows]),
        }
        if isinstance(index, Neighbourhoods):
            batch |= {name: torch.from_numpy(getattr(index, name)) for name in ("group", "near", "centres_um")}
        if self.caption_keys is not None:
            shown = self.rows.dealt.get("text")
            batch["duplicates"] = {"text": torch.from_numpy(self.caption_keys[rows if shown is None else shown[rows]])}
        for modality, source in self.sources.items():
            positions = np.flatnonzero(self.rows.present[modality][rows])
            if not len(positions):
                continue
            shown = self.rows.dealt.get(modality)
            wanted = rows[positions] if shown is None else shown[rows[positions]]
            entry: dict[str, Any] = {"rows": torch.from_numpy(positions)}
            if modality == "text" and modality not in self.cached and self.caption_keys is not None:
                _, first, copies = np.unique(self.caption_keys[wanted], return_index=True, return_inverse=True)
                entry["copies"] = torch.from_numpy(copies.reshape(-1))
                wanted = wanted[first]
            batch[modality] = {**entry, **source(wanted)}
            if modality == "image" and self.regions is not None:
                batch[modality] |= self.regions(wanted, batch[modality]["pixels"], epoch)
        return batch

    def features(self, modality: str) -> NDArray[np.float32]:
        """(k, dim) cached output of a locked tower for all rows that have the modality."""
        if modality not in self.cached:
            raise ContractError(f"the {modality} tower learns, so its output is not cached", where="Locations.features")
        return self.sources[modality](np.flatnonzero(self.rows.present[modality]))["features"].numpy()


class _Features(NamedTuple):
    """Cached output, memory-mapped section by section."""

    rows: Rows
    values: tuple[NDArray[np.float32], ...]

    def __call__(self, rows: NDArray[np.int64], /) -> Inputs:
        out = np.empty((len(rows), self.values[0].shape[1]), dtype=np.float32)
        for number, at in _by_section(self.rows, rows):
            out[at] = self.values[number][self.rows.location[rows[at]]]
        return {"features": torch.from_numpy(out)}


class _Regions:
    """The region about each location, which cell of it the location's window is, and that window as one token."""

    def __init__(self, rows: Rows, encoder: Encoder, config: RegionConfig) -> None:
        assert isinstance(encoder, ImageEncoder)
        self.rows, self.config = rows, config
        self.cuts, self.ref_px = config.cuts(encoder.card), ref_px(encoder)

    def __call__(self, rows: NDArray[np.int64], pixels: Tensor, epoch: int) -> Inputs:
        draw = self.config.draw(epoch)
        regions = np.empty(pixels.shape, dtype=np.uint8)
        cells = np.empty(len(rows), dtype=np.int64)
        for number, at in _by_section(self.rows, rows):
            regions[at], cells[at] = self.cuts.read(self.rows.sections[number], self.rows.location[rows[at]], draw)
        ref = shrink(pixels.numpy(), self.ref_px)
        return {"region": torch.from_numpy(regions), "ref": torch.from_numpy(ref), "cell": torch.from_numpy(cells)}


class _Held(NamedTuple):
    """Prepared input in memory; `place` (n,) is where a dataset row lies in it."""

    inputs: Inputs
    place: NDArray[np.int64]

    def __call__(self, rows: NDArray[np.int64]) -> Inputs:
        at = torch.from_numpy(self.place[rows])
        return _cut({name: tensor[at] for name, tensor in self.inputs.items()})


class _Fresh(NamedTuple):
    """Input prepared when it is asked for."""

    rows: Rows
    encoder: Encoder

    def __call__(self, rows: NDArray[np.int64]) -> Inputs:
        pieces: list[Inputs] = []
        place, begun = np.empty(len(rows), dtype=np.int64), 0
        for number, at in _by_section(self.rows, rows):
            # A row that is there twice is prepared once.
            unique, inverse = np.unique(self.rows.location[rows[at]], return_inverse=True)
            ((order, raw),) = raw_chunks(self.rows.sections[number], self.encoder.card, unique, size=len(unique))
            pieces.append(self.encoder.prepare(raw))
            place[at] = begun + np.argsort(order)[inverse.reshape(-1)]
            begun += len(unique)
        at_once = torch.from_numpy(place)
        return {name: tensor[at_once] for name, tensor in concat_inputs(pieces).items()}


def concat_inputs(pieces: Sequence[Inputs]) -> Inputs:
    """Prepared inputs one after the other; shorter token axes are padded with 0, which every encoder masks."""
    out: Inputs = {}
    for name in pieces[0]:
        tensors = [piece[name] for piece in pieces]
        shape = tuple(max(t.shape[axis] for t in tensors) for axis in range(1, tensors[0].ndim))
        out[name] = torch.cat([_pad_to(t, shape) for t in tensors])
    return out


def _cut(inputs: Inputs) -> Inputs:
    """Token axes cut to the longest of these rows: what no row has is not computed with."""
    if "mask" not in inputs:
        return inputs
    mask = inputs["mask"]
    length = int(mask.any(dim=0).nonzero().max()) + 1 if mask.any() else 1
    return {name: t[:, :length] if t.ndim > 1 and t.shape[1] == mask.shape[1] else t for name, t in inputs.items()}


def _pad_to(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape[1:]) == shape:
        return tensor
    padded = tensor.new_zeros(len(tensor), *shape)
    padded[(slice(None), *(slice(k) for k in tensor.shape[1:]))] = tensor
    return padded


def _features(rows: Rows, modality: str, fingerprint: str) -> Source:
    values = []
    for number, section in enumerate(rows.sections):
        stored = section.embeddings.read(fingerprint)
        wanted = rows.location[(rows.section == number) & rows.present[modality]]
        if not stored.present[wanted].all():
            raise ContractError(
                f"the cached {modality} features lack {int((~stored.present[wanted]).sum())} locations that have it",
                where=f"section {section.id}, embeddings/{fingerprint}",
                mend="remove that folder and run again",
            )
        values.append(stored.values)
    return _Features(rows, tuple(values))


def _prepared(rows: Rows, encoder: Encoder) -> Source:
    """Held in memory if it fits, by the size of a first chunk, and if sections are."""
    fresh = _Fresh(rows, encoder)
    wanted = np.flatnonzero(rows.present[encoder.card.modality])
    if not len(wanted):
        return fresh
    for number in np.unique(rows.section[wanted]):  # a section of pictures has no genes, and no expression to encode
        check_genes(rows.sections[number], encoder)
    if isinstance(rows.sections, LazySections):
        return fresh
    sample = fresh(wanted[: min(32, len(wanted))])
    per_row = sum(t.nbytes for t in sample.values()) / min(32, len(wanted))
    if per_row * len(wanted) > MEMORY_LIMIT:
        return fresh
    place = np.full(len(rows), -1, dtype=np.int64)
    place[wanted] = np.arange(len(wanted))
    return _Held(concat_inputs([fresh(wanted[i : i + 1024]) for i in range(0, len(wanted), 1024)]), place)


def _by_section(rows: Rows, wanted: NDArray[np.int64]) -> list[tuple[int, NDArray[np.intp]]]:
    """Section number -> positions of `wanted` that lie in it."""
    of = rows.section[wanted]
    return [(int(number), np.flatnonzero(of == number)) for number in np.unique(of)]


def _keys(captions: NDArray[np.object_]) -> NDArray[np.int64]:
    """(n,) equal for equal captions, in their alphabetical order."""
    return pd.factorize(captions, sort=True)[0].astype(np.int64)


def _matches(section: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(section, pattern) for pattern in patterns)


def check_without(
    without: Mapping[Modality, Sequence[str]], sections: Sequence[Section], modalities: Sequence[str]
) -> None:
    """Refuse what is taken for absent where there is nothing to take away.

    Raises
    ------
    RecipeError
        `without` names a modality that no tower reads, or a pattern that none of `sections`, those trained and
        validated on, fits.
    """
    for modality, patterns in without.items():
        nowhere = [p for p in patterns if not any(_matches(s.id, (p,)) for s in sections)]
        if modality not in modalities or nowhere:
            raise RecipeError(
                f"{modality} is read by no tower" if modality not in modalities else f"no section is {nowhere[0]!r}",
                where=f"data.without.{modality}",
                mend=f"sections: {', '.join(s.id for s in sections[:8])}; modalities: {', '.join(modalities)}",
            )


def _held_out(section: Section, barcodes: Sequence[str]) -> NDArray[np.bool_]:
    names = section.table.obs_names.astype(str)
    if unknown := sorted(set(barcodes) - set(names)):
        raise ContractError(
            f"{len(unknown)} held-out barcodes are not in the section, the first {unknown[0]!r}",
            where=f"section {section.id}",
            mend="make the split again for this cohort",
        )
    return np.isin(names, list(barcodes))
