"""A picture of an annotated section: its H&E; beside it the classes, what was left undecided, and what is strange."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from triglyph.report.maps import draw_classes, draw_crosses, draw_hollow, draw_tissue
from triglyph.report.style import INK, MUTED, PALETTE, new_figure, png, styled
from triglyph.tissue.annotations import UNSURE, Annotation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from triglyph.tissue.section import Section

UNDECIDED = "#8A9099"
STRANGE = "out of distribution"


def palette_of(classes: Sequence[str]) -> dict[str, str]:
    """A colour for each class, and for `UNSURE`; classes beyond the palette get steps of a colour wheel."""
    from matplotlib.colors import hsv_to_rgb, to_hex

    # The greys at the palette's end would be taken for undecided ones.
    named = PALETTE[:8]
    wheel = [to_hex(tuple(hsv_to_rgb((i * 0.618 % 1.0, 0.55, 0.75)))) for i in range(max(0, len(classes) - len(named)))]
    return {**dict(zip(classes, [*named, *wheel], strict=False)), UNSURE: UNDECIDED}


def annotation_picture(section: Section, annotation: Annotation, palette: Mapping[str, str]) -> bytes:
    """H&E beside the labels over it, with a legend that counts, a scale bar in µm and what was asked in words; PNG.

    Parameters
    ----------
    palette
        As of `palette_of`.

    Raises
    ------
    ContractError
        The section is unplaced.
    """
    a = annotation
    low, high = section.centres_um.min(axis=0), section.centres_um.max(axis=0)
    width, height = high - low + 3 * (section.info.pitch_um or section.location_um)
    panel = 3.9
    entries = _entries(a)
    # The legend may be taller than the tissue: nothing is left of panels that it is squeezed beside.
    listed = sum(0.14 * (1 + label.count("\n")) + 0.09 for _, label in entries) + 0.4
    tall = max(min(max(panel * float(height / width), 2.4), 5.6), listed)
    pictured = any(i.name == "he" and i.role == "full" for i in section.info.images)
    whose = f"Section {section.id}, patient {section.patient}"
    with styled():
        figure = new_figure(panel * (1 + pictured) + 2.1, tall + 0.6)
        panels = figure.subplots(1, 2 + pictured, width_ratios=[panel] * (1 + pictured) + [2.1], squeeze=False)[0]
        if pictured:
            draw_tissue(panels[0], section, max_px=1100)
            panels[0].set_title(whose)
        labelled = panels[-2]
        draw_tissue(labelled, section, fade=0.4, max_px=1100)
        classes = a.label.copy()
        classes[classes == UNSURE] = ""
        draw_classes(labelled, section, classes, palette, alpha=0.6)
        draw_hollow(labelled, section, a.label == UNSURE, colour=palette[UNSURE])
        draw_crosses(labelled, section, a.strange)
        told = f"{'Calibrated' if a.about['calibration'] else 'Zero-shot'} labels from {_source(a)}"
        labelled.set_title(told if pictured else f"{whose}\n{told}")
        _legend(panels[-1], a, entries, palette)
        figure.supxlabel("\n".join(textwrap.wrap(_words(a), 125 if pictured else 74)), x=0.01, ha="left", fontsize=7)
        return png(figure, dpi=160)


def _source(a: Annotation) -> str:
    return "the image" if a.about["modality"] == "image" else "gene expression"


def _entries(a: Annotation) -> list[tuple[str, str]]:
    """(class, its line of the legend, with its share of the locations that were looked at), then what marks mean."""
    counts, n = a.counts(), max(1, int(a.present.sum()))
    found = [(c, c, counts[c]) for c in a.classes]
    if a.about["abstain"]:
        found.append((UNSURE, UNSURE, counts[UNSURE]))
    if a.about["strange"]:
        found.append((STRANGE, STRANGE, int(a.strange.sum())))
    # A share stays in one line: the space before its sign does not break.
    return [(k, textwrap.fill(f"{name}  {100 * count / n:.1f}\N{NO-BREAK SPACE}%", 30)) for k, name, count in found]


def _legend(axes: Axes, a: Annotation, entries: Sequence[tuple[str, str]], palette: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    axes.set_axis_off()
    ring: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": palette[UNSURE], "markeredgewidth": 1.0}
    cross: dict[str, Any] = {"marker": "x", "color": INK, "markersize": 6, "markeredgewidth": 1.2}
    handles = []
    for key, label in entries:
        mark = ring if key == UNSURE else cross if key == STRANGE else {"color": palette[key]}
        handles.append(Line2D([], [], label=label, **{"marker": "o", "linestyle": "", "markersize": 7, **mark}))
    legend = axes.legend(
        handles=handles,
        loc="center left",
        fontsize=8.5,
        labelcolor=INK,
        handletextpad=0.3,
        borderaxespad=0,
        labelspacing=0.7,
        title=f"of {a.present.sum():,} locations",
        title_fontsize=8,
        alignment="left",
    )
    legend.get_title().set_color(MUTED)


def _words(a: Annotation) -> str:
    about = a.about
    told = [f"Model {about['model']['run']} ({about['model']['digest']}), asked in words alone."]
    if about["calibration"]:
        told.append(f"Calibrated on labels of {len(about['calibration']['patients'])} training patients.")
    if about["abstain"]:
        told.append(f"Unsure: {about['abstain']}.")
    if about["strange"]:
        quantile = about["strange"]["quantile"]
        told.append(f"Out of distribution: farther from the training tissue than {100 * quantile:g} % of it.")
    return " ".join(told)
