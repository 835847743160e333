"""Encoders by name, found lazily through the entry-point group `triglyph.encoders`.

An entry point names a class: an `Encoder` with a class attribute `card`. Its module is imported when the encoder is
asked for; architectures come from timm and transformers, which are imported when it is built. A name with a colon,
`lazyslide:virchow2`, is looked up in that source instead.
"""

from __future__ import annotations

import difflib
import inspect
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from triglyph.encoders.base import Encoder, EncoderCard, Modality
from triglyph.encoders.hub import HubEncoder
from triglyph.errors import RecipeError

GROUP = "triglyph.encoders"
LAZYSLIDE = "lazyslide:"


@cache
def _entries() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise RecipeError(
                f"two packages define the encoder {entry.name!r}: {other.value} and {entry.value}",
                mend="uninstall one of them",
            )
    return found


@cache
def encoder_class(name: str) -> type[Encoder]:
    """The class behind a name.

    Raises
    ------
    RecipeError
        There is no encoder of that name; the error lists close ones.
    """
    if name.startswith(LAZYSLIDE):
        from triglyph.encoders import lazyslide

        return lazyslide.encoder_class(name.removeprefix(LAZYSLIDE))
    entries = _entries()
    if name not in entries:
        close = difflib.get_close_matches(name.lower(), entries, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(entries))}"
        raise RecipeError(f"no encoder is called {name!r}", mend=f"{hint} `triglyph encoders list` shows all")
    loaded = entries[name].load()
    if not (isinstance(loaded, type) and issubclass(loaded, Encoder) and isinstance(loaded.card, EncoderCard)):
        raise RecipeError(
            f"the entry point {name!r} is not an Encoder class with a `card`",
            where=entries[name].value,
            mend="let it name the class itself",
        )
    if loaded.card.name != name:
        raise RecipeError(f"the entry point {name!r} leads to a card called {loaded.card.name!r}", where=loaded)
    return loaded


def names(modality: Modality | None = None) -> list[str]:
    """Names of all installed encoders, sorted; of one modality if given."""
    return sorted(n for n in _entries() if modality is None or card(n).modality == modality)


def card(name: str) -> EncoderCard:
    """The card of an encoder; nothing is built or loaded."""
    return encoder_class(name).card


def default_options(name: str) -> dict[str, Any]:
    """The options of an encoder and their defaults."""
    parameters = inspect.signature(encoder_class(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def availability(name: str) -> str:
    """Whether an encoder can be used here, in words: `none needed`, `to be trained`, `cached`, `to fetch`."""
    cls = encoder_class(name)
    if cls.card.weights != "hub":
        return "none needed" if cls.card.weights == "none" else "to be trained"
    if issubclass(cls, HubEncoder) and cls.cached():
        return "cached"
    return "to fetch, gated" if cls.card.gated else "to fetch"


def build(name: str, *, weights: Path | None = None, random_init: bool = False, **options: Any) -> Encoder:
    """An encoder, in evaluation mode, on the CPU.

    Parameters
    ----------
    name
        As in `names()`, or `lazyslide:<name>`.
    weights
        Folder or file of published weights; None takes them from the Hugging Face cache or hub.
    random_init
        Leave a pretrained architecture untrained: to train it from scratch, to restore it from a checkpoint of ours,
        or to test it.
    options
        Keyword arguments of the encoder, as `Encoder.options()` gives them.

    Raises
    ------
    RecipeError
        Unknown name or option.
    WeightsError
        Weights are absent, gated, or do not fit the architecture.
    """
    cls = encoder_class(name)
    known = default_options(name)
    if unknown := sorted(set(options) - set(known)):
        raise RecipeError(
            f"{name} has no option {', '.join(map(repr, unknown))}", mend=f"options: {', '.join(known) or 'none'}"
        )
    if issubclass(cls, HubEncoder) and not random_init:
        return cls.from_weights(weights, **options).eval()
    if weights is not None:
        why = "was told to start from random weights" if random_init else "does not load weights of yours"
        raise RecipeError(f"{name} {why}, but weights were given", where=weights, mend="leave out one of the two")
    if random_init and cls.card.weights == "hub" and not issubclass(cls, HubEncoder):
        raise RecipeError(f"{name} brings its own weights, and cannot start from random ones")
    return cls(**options).eval()
