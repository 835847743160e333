"""From a section to what an encoder reads, and from there to `section.embeddings`, once per encoder state.

The three modalities of a location are found here and nowhere else: windows around its centre at the encoder's own
µm per pixel, its row of raw counts, its caption. A location without one of them is absent from that modality: it is
never encoded, and its row of the stored array is NaN, so that using it by mistake cannot go unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from triglyph.cards import digest
from triglyph.encoders.base import Encoder, EncoderCard, Expression, Inputs
from triglyph.encoders.expression import ExpressionEncoder
from triglyph.errors import ContractError, GeneError, StorageError

if TYPE_CHECKING:
    from triglyph.tissue.section import Section
    from triglyph.tissue.store import ArrayStore

Progress = Callable[[int], None]
"""Called with the number of rows just done."""

IMAGE = "he"
"""The image that image encoders read."""


def present(section: Section, modality: str) -> NDArray[np.bool_]:
    """Which locations of a section have a modality, (n_locations,).

    An image: the section has a full-resolution H&E, or the location a picture of its own. Expression: at least one
    count (an empty location has no composition). Text: a caption that is not blank.
    """
    if modality == "image":
        return section.has_picture(IMAGE)
    if modality == "expression":
        counts, *_ = section.expression()
        return np.asarray(counts.sum(axis=1)).ravel() > 0
    return np.array([bool(caption.strip()) for caption in section.captions], dtype=bool)


def raw_chunks(
    section: Section, card: EncoderCard, rows: NDArray[np.intp], *, size: int
) -> Iterator[tuple[NDArray[np.intp], Any]]:
    """What `Encoder.prepare` expects, `size` rows of a section at a time, as (rows, raw).

    Pixels come from `section.windows` where they are cached, else from the slide or the locations' own pictures, in
    the order that decodes each tile or file once; rows are therefore not in the order asked for.

    Parameters
    ----------
    rows
        (k,) locations that have the modality.
    """
    if card.modality == "image":
        yield from _window_chunks(section, card, rows, size)
    elif card.modality == "expression":
        counts, symbols, ensembl_ids, measured = section.expression()
        for chunk in _chunks(rows, size):
            yield chunk, Expression(counts[chunk], symbols, ensembl_ids, measured)
    else:
        captions = section.captions
        for chunk in _chunks(rows, size):
            yield chunk, [captions[i] for i in chunk]


def windows_fingerprint(card: EncoderCard) -> str:
    """Names the pixels an image encoder reads: encoders with the same window share them."""
    return digest({"image": IMAGE, "px": card.input_px, "mpp": card.mpp})


def cache_windows(section: Section, card: EncoderCard, *, progress: Progress | None = None) -> str:
    """Fill `section.windows` with this card's windows unless they are there; returns their fingerprint."""
    fingerprint = windows_fingerprint(card)
    if section.windows.has(fingerprint):
        _report(progress, section.n_locations)
        return fingerprint
    px = _window_px(card)
    here = present(section, "image")
    about = {"name": f"windows-{px}px", "kind": "windows", "image": IMAGE, "input_px": px, "mpp": card.mpp}
    shape = (section.n_locations, px, px, 3)
    with (
        _once(section.windows, fingerprint),
        section.windows.writing(fingerprint, shape=shape, dtype=np.uint8, card=about) as (values, there),
    ):
        for rows, windows in _window_chunks(section, card, np.flatnonzero(here), 64):
            values[rows] = windows
            _report(progress, len(rows))
        there[:] = here
    return fingerprint


def encode_rows(
    section: Section,
    encoder: Encoder,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Pooled output of `encoder` for every location of a section, in memory.

    Returns
    -------
    values
        (n_locations, dim) float32; NaN where nothing is present.
    present
        (n_locations,) bool: the modality is there, and the encoder reads something of it. A location whose counts are
        all of genes that a rank encoder does not know is not present.

    Raises
    ------
    ContractError
        The encoder gave a value that is not finite.
    """
    values = np.full((section.n_locations, encoder.card.dim), np.nan, dtype=np.float32)
    there = np.zeros(section.n_locations, dtype=bool)
    for rows, pooled, read in _encoded(section, encoder, batch_size, device, progress):
        values[rows[read]], there[rows[read]] = pooled[read], True
    return values, there


def encode_section(
    section: Section,
    encoder: Encoder,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    fingerprint: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Make sure that `section.embeddings` holds `encoder`'s pooled output; returns the encoder's fingerprint.

    Nothing is computed if it is there, and nothing is left behind if it is interrupted. Every location that has the
    modality is present, since training counts on it: one whose genes a rank encoder does not know has what that gives
    for nothing.

    Parameters
    ----------
    batch_size
        Rows encoded at once.
    fingerprint
        `encoder.fingerprint()` where the caller has it already: hashing a large tower takes seconds.
    progress
        Called with numbers of rows that add up to the section's locations with this modality, or to all its
        locations if the entry was there.
    """
    fingerprint = encoder.fingerprint() if fingerprint is None else fingerprint
    store = section.embeddings
    if store.has(fingerprint):
        _report(progress, section.n_locations)
        return fingerprint
    about = {
        "name": encoder.card.name,
        "kind": "embedding",
        "encoder": encoder.card.model_dump(mode="json"),
        "options": encoder.options(),
    }
    shape = (section.n_locations, encoder.card.dim)
    with (
        _once(store, fingerprint),
        store.writing(fingerprint, shape=shape, dtype=np.float32, card=about) as (
            values,
            there,
        ),
    ):
        values[:] = np.nan
        for rows, pooled, _ in _encoded(section, encoder, batch_size, device, progress):
            values[rows] = pooled
        there[:] = present(section, encoder.card.modality)
    return fingerprint


def check_genes(section: Section, encoder: Encoder) -> None:
    """Refuse a section none of whose measured genes an expression encoder knows: all its locations would be alike.

    Raises
    ------
    GeneError
        No gene matches.
    """
    if not isinstance(encoder, ExpressionEncoder):
        return
    counts, symbols, ensembl_ids, measured = section.expression()
    found, known = encoder.matched(Expression(counts, symbols, ensembl_ids, measured))
    if found == 0:
        raise GeneError(
            f"none of its {len(symbols)} genes is among the {known} that {encoder.card.name} knows",
            where=f"section {section.id}, such as {', '.join(symbols[:3])}",
            mend="check symbols and Ensembl ids, and the species",
        )


def to_device(inputs: Inputs, device: str | torch.device) -> Inputs:
    """Tensors of prepared inputs on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}


def _encoded(
    section: Section, encoder: Encoder, batch_size: int, device: str | torch.device, progress: Progress | None
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.bool_]]]:
    """Rows, pooled output of each, and of which of them the encoder reads anything."""
    card = encoder.card
    rows = np.flatnonzero(present(section, card.modality))
    if len(rows):
        check_genes(section, encoder)
    copies = _copies(section, rows) if card.modality == "text" else None
    was_training = encoder.training
    encoder.eval().to(device)
    try:
        firsts = rows if copies is None else np.array(sorted(copies), dtype=np.intp)
        for chunk, raw in raw_chunks(section, card, firsts, size=batch_size):
            with torch.no_grad():
                inputs = encoder.prepare(raw)
                pooled = encoder.encode(to_device(inputs, device)).pooled.float().cpu().numpy()
            readable = encoder.readable(inputs)
            read = np.ones(len(pooled), dtype=bool) if readable is None else readable.numpy()
            if not np.isfinite(pooled).all():
                row = chunk[np.flatnonzero(~np.isfinite(pooled).all(axis=1))[0]]
                raise ContractError(
                    f"{card.name} gave values that are not finite",
                    where=f"section {section.id}, row {row}",
                    mend="encode in 32-bit precision, or look at the input of this location",
                )
            if copies is not None:
                pooled, read = (of.repeat([len(copies[i]) for i in chunk], axis=0) for of in (pooled, read))
            done = chunk if copies is None else np.concatenate([copies[i] for i in chunk])
            yield done, pooled, read
            _report(progress, len(done))
    finally:
        encoder.train(was_training)


def _copies(section: Section, rows: NDArray[np.intp]) -> dict[int, NDArray[np.intp]]:
    """First row of each distinct caption -> all rows that have it: a caption is encoded once."""
    captions = section.captions
    where: dict[str, list[int]] = {}
    for row in rows:
        where.setdefault(captions[row], []).append(int(row))
    return {same[0]: np.array(same, dtype=np.intp) for same in where.values()}


def _window_px(card: EncoderCard) -> int:
    if card.input_px is None:
        raise ContractError("an image encoder must say its input_px", where=card.name, mend="complete its card")
    return card.input_px


def _window_chunks(
    section: Section, card: EncoderCard, rows: NDArray[np.intp], size: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint8]]]:
    px = _window_px(card)
    fingerprint = windows_fingerprint(card)
    if section.windows.has(fingerprint):
        values = section.windows.read(fingerprint).values
        for chunk in _chunks(rows, size):
            yield chunk, np.asarray(values[chunk])
        return
    if not len(rows):
        return
    reader = section.location_windows(IMAGE)
    try:
        for chunk in _chunks(reader.order(rows), size):
            yield chunk, np.stack([reader.read(int(row), px, card.mpp) for row in chunk])
    finally:
        reader.close()


def _chunks(rows: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _report(progress: Progress | None, rows: int) -> None:
    if progress is not None:
        progress(rows)


@contextmanager
def _once(store: ArrayStore, fingerprint: str) -> Iterator[None]:
    """Another process may have written the same immutable entry meanwhile: that is as good as our own."""
    try:
        yield
    except StorageError:
        if not store.has(fingerprint):
            raise
