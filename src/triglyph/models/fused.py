"""Names of what is fused: one embedding of a location's image and expression, beside the modalities it is made of.

`fused` is a model's own fusion; `fused-NAME` another that it can make (`triglyph.models.method.Method.fusions`). No
location has it without both modalities.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from triglyph.errors import ContractError

FUSED = "fused"
PARTS = ("image", "expression")
"""What is fused."""
_NAME = re.compile(r"fused(?:-([a-z][a-z0-9-]*))?")
_PLAIN = ("image", "expression", "text")


def is_fused(modality: str) -> bool:
    """Whether a name is that of a fusion."""
    return _NAME.fullmatch(modality) is not None


def made_of(modality: str) -> str:
    """The fusion that a fused modality names: `sum` of `fused-sum`; "" for the model's own."""
    found = _NAME.fullmatch(modality)
    return (found and found[1]) or ""


def reads(modality: str) -> tuple[str, ...]:
    """The modalities that features of this name are made of; a plain one is made of itself.

    Raises
    ------
    ContractError
        It is the name of nothing.
    """
    if modality in _PLAIN:
        return (modality,)
    if not is_fused(modality):
        raise ContractError(f"nothing is called {modality!r}", mend=f"there are {', '.join(_PLAIN)}, fused, fused-NAME")
    return PARTS


def names(fusions: tuple[str, ...]) -> tuple[str, ...]:
    """What fusions are called where a modality is asked for: the first, a model's own, by both of its names."""
    return (FUSED, *(f"{FUSED}-{name}" for name in fusions)) if fusions else ()


def _known(modality: str) -> str:
    try:
        reads(modality)
    except ContractError as error:
        raise ValueError(f"{error.what}; {error.mend}") from None
    return modality


Readable = Annotated[str, AfterValidator(_known)]
"""`image`, `expression`, `text`, `fused` or `fused-NAME`, as a constant of a protocol."""


def not_of_itself(modality: object) -> object:
    """What expression may be predicted from; a check of a protocol's constant.

    Raises
    ------
    ValueError
        It holds the expression of the very location that is asked for.
    """
    if modality == "expression" or (isinstance(modality, str) and is_fused(modality)):
        raise ValueError(f"{modality} holds the expression that is asked for; take image or text")
    return modality
