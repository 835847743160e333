"""`triglyph encoders`: what encoders there are, what they need, and what their licences allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

# The verbs say `Card`, for the command line reads their annotations and an `EncoderCard` costs torch.
from triglyph.cards import Card

if TYPE_CHECKING:
    from triglyph.encoders.base import EncoderCard


def encoders_list(*, modality: Literal["image", "expression", "text"] | None = None) -> list[Card]:
    """Print a table of the installed encoders.

    Parameters
    ----------
    modality
        Only those that read images, expression or text.

    Returns
    -------
    list of EncoderCard
        In the order of the table.
    """
    from rich.console import Console
    from rich.table import Table

    from triglyph.encoders import registry

    cards = sorted((registry.card(n) for n in registry.names(modality)), key=lambda c: (c.modality, c.name))
    table = Table(box=None, pad_edge=False)
    for column in ("encoder", "reads", "dim", "µm/px", "window µm", "licence", "weights"):
        table.add_column(column, no_wrap=column == "encoder")
    for card in cards:
        table.add_row(
            card.name,
            card.modality,
            str(card.dim),
            _scale(card),
            f"{card.window_um:g}" if card.window_um else "",
            card.licence,
            registry.availability(card.name),
        )
    console = Console()
    console.print(table)
    if modality in (None, "image"):
        console.print("[dim]more: lazyslide:<name>, any image model of lazyslide-models (the extra `lazyslide`)[/]")
    return [*cards]


def encoders_show(name: str) -> Card:
    """Print an encoder's card.

    Parameters
    ----------
    name
        As in `triglyph encoders list`.

    Returns
    -------
    EncoderCard
        The card.

    Raises
    ------
    RecipeError
        There is no such encoder; the error names close ones.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from triglyph.encoders import registry

    card = registry.card(name)
    commercial = {True: "yes", False: "no", None: "ask"}[card.commercial_use]
    rows = {
        "reads": card.modality,
        "dim": f"{card.dim}, pooled by {card.pooling}",
        "parameters": f"{card.parameters:,}" if card.parameters is not None else "depends on options",
        "window": f"{card.input_px} px at {_scale(card)} µm/px" if card.input_px else "",
        "window side": f"{card.window_um:g} µm" if card.window_um else "",
        "mean, std": f"{card.mean}, {card.std}" if card.mean else "",
        "tokens": f"at most {card.max_tokens}" if card.max_tokens else "",
        "learns first": "its vocabulary, from training sections" if card.fitted else "",
        "licence": card.licence,
        "commercial use": commercial,
        "gated": "yes: accept its terms, then `hf auth login`" if card.gated else "",
        "hub": f"{card.hub_id} at {card.revision[:12] or 'main'}" if card.hub_id else "",
        "weights": registry.availability(name),
        "has seen": ", ".join(card.pretrained_on),
        "cite": card.citation,
        "page": card.homepage,
        "options": ", ".join(f"{k}={v!r}" for k, v in registry.default_options(name).items()),
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in rows.items():
        if value:
            table.add_row(f"[dim]{key}[/]", escape(value))
    console = Console()
    console.print(f"[bold]{escape(card.name)}[/]  {escape(card.summary)}")
    console.print(table)
    return card


def _scale(card: EncoderCard) -> str:
    if card.input_px is None:
        return ""
    return "level 0" if card.mpp is None else f"{card.mpp:g}"
