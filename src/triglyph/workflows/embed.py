"""`triglyph embed`: a frozen encoder over a cohort, once; run again, it goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triglyph.apply.reports import EmbedReport
from triglyph.errors import RecipeError


def embed(
    cohort: Path,
    *,
    encoder: str,
    weights: Path | None = None,
    sections: tuple[str, ...] | None = None,
    options: dict[str, Any] | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> EmbedReport:
    """Write an encoder's features of every location beside each section.

    Parameters
    ----------
    cohort
        Folder of the cohort.
    encoder
        Name as in `triglyph encoders list`, or `lazyslide:<name>`.
    weights
        Folder or file of published weights; otherwise they come from the Hugging Face cache or hub.
    sections
        Ids of sections; all unless given.
    options
        Keyword arguments of the encoder.
    batch_size
        Locations encoded at once.
    device
        `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Returns
    -------
    EmbedReport
        What became of each section; its `exit_code` is 1 if one failed.

    Raises
    ------
    RecipeError
        No such encoder, option or device; or an encoder that has to be trained first.
    WeightsError
        Weights are absent, gated, or do not fit.
    """
    from triglyph.encoders import registry

    card = registry.card(encoder)
    if card.weights == "random":
        raise RecipeError(
            f"{encoder} starts untrained: its features would mean nothing",
            mend="train it with a recipe (`triglyph train`), or embed with a pretrained encoder",
        )
    if batch_size < 1:
        raise RecipeError(f"batch_size is {batch_size}", where="embed", mend="give at least 1")

    from rich.console import Console
    from rich.markup import escape

    from triglyph.apply.embed import embed_cohort, resolve_device
    from triglyph.tissue.cohort import Cohort

    opened = Cohort.open(Path(cohort))
    resolve_device(device)
    built = registry.build(encoder, weights=weights, **(options or {}))
    report = embed_cohort(opened, built, sections=sections, batch_size=batch_size, device=device)
    console = Console(stderr=True)
    said = [
        (len(report.embedded), "embedded"),
        (len(report.already), "already there"),
        (len(report.absent), f"without {card.modality}"),
        (len(report.failed), "[red]failed[/]"),
    ]
    console.print(f"{encoder} ({report.fingerprint}): " + ", ".join(f"{n} {what}" for n, what in said if n))
    for section, why in report.failed.items():
        console.print(f"[red]{escape(section)}[/]: {escape(why)}")
    return report
