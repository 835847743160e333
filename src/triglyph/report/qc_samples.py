"""What stands in a section's picture where locations have no place on a piece of tissue: some of them, one by one.

For bulk profiles that is what the tables say of them; where each location has a picture of its own, what a model would
be shown of it.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from triglyph.report.style import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from triglyph.tissue.section import Section

LISTED = 20
"""Locations of whom captions are printed."""
COLUMNS, ROWS = 6, 2
"""Of pictures."""
SHOWN_PX = 320


def draw_samples(figure: Figure, section: Section) -> None:
    """Locations evenly drawn from the section, in the left three quarters of the figure.

    Raises
    ------
    SourceError
        A picture does not open.
    """
    if section.info.pictures is not None:
        _draw_pictures(figure, section)
    else:
        _list_captions(figure, section)


def _draw_pictures(figure: Figure, section: Section) -> None:
    from PIL import Image

    there = np.flatnonzero(section.has_picture())
    rows = there[sampled(len(there), COLUMNS * ROWS)]
    sides = section.table.obs["picture_px"].to_numpy()
    captions, labels = section.captions, section.labels
    windows = section.location_windows()
    figure.text(0.012, 0.905, f"{len(rows)} of {len(there):,} squares of pictures", fontsize=10, color=MUTED)
    width, height = 0.755 / COLUMNS, 0.86 / ROWS
    try:
        for place, row in enumerate(rows):
            left, top = 0.012 + place % COLUMNS * width, 0.87 - place // COLUMNS * height
            picture = Image.fromarray(windows.read(int(row), max(int(sides[row]), 1), None))
            picture.thumbnail((SHOWN_PX, SHOWN_PX))
            axes = figure.add_axes((left, top - 0.29, width * 0.94, 0.29))
            axes.imshow(np.asarray(picture), interpolation="antialiased")
            axes.set_anchor("NW")
            axes.axis("off")
            said = ": ".join(text for text in (str(labels[row]), captions[row]) if text) or "no caption"
            lines = "\n".join(textwrap.wrap(said, 34)[:4])
            figure.text(left, top - 0.3, lines, fontsize=8, color=INK, va="top", parse_math=False)
    finally:
        windows.close()


def _list_captions(figure: Figure, section: Section) -> None:
    rows = sampled(section.n_locations, LISTED)
    figure.text(0.012, 0.905, f"{len(rows)} of {section.n_locations:,} locations", fontsize=10, color=MUTED)
    names, captions, labels = section.table.obs_names, section.captions, section.labels
    for place, row in enumerate(rows):
        y = 0.87 - place * 0.85 / LISTED
        about = captions[row] or "no caption"
        for x, text, most in ((0.012, names[row], 28), (0.16, labels[row], 22), (0.28, about, 92)):
            short = textwrap.shorten(str(text), most)
            figure.text(x, y, short, fontsize=9, color=INK if x > 0.1 else MUTED, va="top", parse_math=False)


def sampled(n: int, most: int) -> NDArray[np.intp]:
    """At most `most` of `n` rows, evenly apart."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round()).astype(np.intp)


def facts(section: Section) -> list[tuple[str, str]]:
    """In words: how many captions, labels and pictures there are."""
    captions = [c for c in section.captions if c.strip()]
    labels = Counter(label for label in section.labels if label)
    distinct = f"{len(captions):,} of {section.n_locations:,} locations, {len(set(captions)):,} different"
    rows: list[tuple[str, str]] = [("captions", distinct)]
    if section.info.pictures is not None:
        rows.append(("pictures", f"{section.info.pictures.n_files:,} files, {section.info.pictures.mpp_source}"))
    if labels:
        rows.append(("labels", ", ".join(f"{name} {n:,}" for name, n in labels.most_common(12))))
    return rows
