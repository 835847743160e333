"""Run a frozen encoder over a cohort, once.

What one section yields is written whole or not at all by `training.features.encode_section`, under the encoder's
fingerprint, which covers weights, options, transform, scale and window. So a run that is killed goes on where it was,
and embedding twice does nothing. A section that fails is reported and leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from triglyph.apply.reports import EmbedReport
from triglyph.encoders.base import Encoder
from triglyph.errors import RecipeError, TriglyphError
from triglyph.training.features import Progress, encode_section, present

if TYPE_CHECKING:
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.section import Section

Outcome = Literal["embedded", "already", "absent"]


def embed_section(
    section: Section,
    encoder: Encoder,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    fingerprint: str | None = None,
    progress: Progress | None = None,
) -> tuple[str, Outcome]:
    """Embed one section, unless it is done.

    Locations without the modality are not encoded: their `present` is False and their row NaN, never zero.

    Parameters
    ----------
    section
        Where to read from and write to.
    encoder
        Frozen; its modality says what is read.
    batch_size
        Locations encoded at once.
    device
        Where to encode.
    fingerprint
        `encoder.fingerprint()`, where the caller has it already.
    progress
        Called with numbers of locations done, that add up to all of the section's.

    Returns
    -------
    The encoder's fingerprint, and whether the section was embedded now, already, or lacks the modality.

    Raises
    ------
    GeneError
        The section measured none of the encoder's genes.
    ScaleError
        The image is too coarse for the encoder.
    SourceError
        The image does not open or is damaged.
    """
    fingerprint = encoder.fingerprint() if fingerprint is None else fingerprint
    n, done = section.n_locations, 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(rows)

    outcome: Outcome = "already" if section.embeddings.has(fingerprint) else "embedded"
    if outcome == "embedded" and not present(section, encoder.card.modality).any():
        outcome = "absent"
    if outcome != "absent":
        try:
            encode_section(
                section, encoder, batch_size=batch_size, device=device, fingerprint=fingerprint, progress=count
            )
        except torch.OutOfMemoryError as error:
            raise TriglyphError(
                f"{device} has not enough memory for {batch_size} locations at once",
                where=f"section {section.id}",
                mend=f"give a --batch-size below {batch_size}",
            ) from error
    count(n - done)
    return fingerprint, outcome


def embed_cohort(
    cohort: Cohort,
    encoder: Encoder,
    *,
    sections: Sequence[str] | None = None,
    batch_size: int = 64,
    device: str = "auto",
    show: bool = True,
) -> EmbedReport:
    """Embed sections of a cohort, with a progress bar.

    Parameters
    ----------
    cohort
        Its sections are written to.
    encoder
        Frozen.
    sections
        Ids; None means all.
    batch_size
        Locations encoded at once.
    device
        `auto` takes CUDA or Apple's MPS where there is one.
    show
        Draw a progress bar on stderr.

    Returns
    -------
    EmbedReport
        Sections that failed are in it; the others are done.
    """
    from triglyph.training.progress import bar

    where = resolve_device(device)
    todo = [cohort[s] for s in (cohort.ids if sections is None else sections)]
    report = EmbedReport(encoder.fingerprint())
    with bar(f"{encoder.card.name}", sum(s.n_locations for s in todo), show=show, unit="locations") as advance:
        for section in todo:
            done = 0

            def count(rows: int, section_id: str = section.id) -> None:
                nonlocal done
                done += rows
                advance(rows, note=section_id)

            try:
                _, outcome = embed_section(
                    section,
                    encoder,
                    batch_size=batch_size,
                    device=where,
                    fingerprint=report.fingerprint,
                    progress=count,
                )
            except (TriglyphError, OSError, ValueError, KeyError, RuntimeError) as error:
                # Libraries under a damaged section raise any of these; the message is kept, the run goes on.
                report.failed[section.id] = str(error) if isinstance(error, TriglyphError) else repr(error)
                advance(section.n_locations - done, note=section.id)
            else:
                getattr(report, outcome).append(section.id)
    return report


def resolve_device(name: str) -> torch.device:
    """A device by name; `auto` takes the fastest there is.

    Raises
    ------
    RecipeError
        There is no such device here.
    """
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise RecipeError(f"no device {name!r} here: {first}", mend="use auto, cpu, cuda or cuda:N") from None
