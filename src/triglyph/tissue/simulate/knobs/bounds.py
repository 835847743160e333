"""Bounds of the simulator's knobs: numbers of each kind, ordered ranges, and names that something reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field

from triglyph.cards import Frozen
from triglyph.configs import near
from triglyph.units import MPP_RANGE


class Bounded(Frozen):
    """A block of knobs; no number in it is infinite or not a number."""

    model_config = ConfigDict(allow_inf_nan=False)


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"{ends[0]:g} to {ends[1]:g} runs backwards: give the smaller end first")
    return ends


def _refuse_unknown(given: Iterable[str], known: tuple[str, ...], what: str) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{key!r} is no {what}{near(key, known) or '; they are ' + ', '.join(known)}")


def keyed(known: tuple[str, ...], what: str, *, every: bool = True) -> AfterValidator:
    """A table whose keys are `known`: no other, which nothing would read, and with `every` all of them."""

    def check(table: Mapping[str, Any]) -> Mapping[str, Any]:
        _refuse_unknown(table, known, what)
        if every and (lacking := [key for key in known if key not in table]):
            raise ValueError(f"there is no value for the {what} {', '.join(map(repr, lacking))}")
        return table

    return AfterValidator(check)


def each_once(known: tuple[str, ...], what: str) -> AfterValidator:
    """Names out of `known`, none twice."""

    def check(names: tuple[str, ...]) -> tuple[str, ...]:
        _refuse_unknown(names, known, what)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the {what} {', '.join(map(repr, twice))} is named twice")
        return names

    return AfterValidator(check)


Positive = Annotated[float, Field(gt=0)]
"""A length, a density or a scale."""
Spread = Annotated[float, Field(ge=0)]
"""A standard deviation, or an amount that may be nothing."""
Share = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(ge=MPP_RANGE[0], le=MPP_RANGE[1])]
"""µm per pixel."""
Grey = Annotated[float, Field(ge=0, le=255)]
"""Grey level of 8 bits."""
Range = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
"""Ends of a range, the smaller one first."""
ScaleRange = Annotated[tuple[Scale, Scale], AfterValidator(_ordered)]
GreyRange = Annotated[tuple[Grey, Grey], AfterValidator(_ordered)]
