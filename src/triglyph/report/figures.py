"""The figures of a run's report, each a function from results to PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from triglyph.metrics.result import Result
from triglyph.report.maps import class_legend, draw_classes, draw_tissue, draw_values
from triglyph.report.style import INK, MUTED, PALETTE, ROLE_COLOUR, colours, new_figure, png, styled

if TYPE_CHECKING:
    from triglyph.tissue.section import Section

Array = NDArray[Any]


def losses(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> bytes:
    """Training curves.

    Parameters
    ----------
    curves
        name -> (steps, values); `total` is drawn strongest. Each is smoothed by a running mean of a fiftieth of its
        length, with the raw values behind it.
    """
    with styled():
        figure = new_figure(7.2, 2.9)
        axes = figure.add_subplot()
        for i, (name, (steps, values)) in enumerate(curves.items()):
            total = name == "total"
            colour = INK if total else PALETTE[i % len(PALETTE)]
            x, y = np.asarray(steps, float), np.asarray(values, float)
            width = max(1, len(y) // 50)
            smooth = np.convolve(np.pad(y, (width - 1, 0), mode="edge"), np.ones(width) / width, mode="valid")
            axes.plot(x, y, color=colour, alpha=0.13, linewidth=0.7)
            axes.plot(x, smooth, color=colour, linewidth=2.0 if total else 1.4, label=name)
        axes.set(xlabel="training step", ylabel="contrastive loss", title="Losses")
        axes.legend(ncol=2)
        axes.margins(x=0.01)
        return png(figure)


def retrieval(results: Sequence[Result], *, metric: str = "recall@10") -> bytes:
    """Recall per direction: every held-out section as a dot, models side by side, the null's spread and chance.

    Rows used: `aggregation="per-section"` of `metric`, groups other than "all".
    """
    rows = [
        r
        for r in results
        if r.task == "retrieval" and r.metric == metric and r.aggregation == "per-section" and r.value is not None
    ]
    directions = list(dict.fromkeys(r.direction for r in rows if r.role == "method"))
    names = list(dict.fromkeys(r.model for r in rows if r.role in ("method", "baseline")))
    shades = _model_colours(rows, names)
    with styled():
        figure = new_figure(max(6.4, 1.55 * len(directions) + 2.2), 3.4)
        axes = figure.add_subplot()
        for x, direction in enumerate(directions):
            here = [r for r in rows if r.direction == direction]
            null = [r.value for r in here if r.role == "control" and r.group == "all" and r.seed is not None]
            if null:
                low, high = np.quantile(np.array(null, float), [0.0, 0.95])
                axes.fill_between([x - 0.42, x + 0.42], low, high, color=MUTED, alpha=0.35, linewidth=0)
            chance = next((r.chance for r in here if r.chance is not None), None)
            if chance is not None:
                axes.plot([x - 0.42, x + 0.42], [chance, chance], color=INK, linewidth=1, linestyle=(0, (2, 2)))
            for i, name in enumerate(names):
                at = x + (i - (len(names) - 1) / 2) * 0.22
                dots = np.array([r.value for r in here if r.model == name and r.group != "all"], float)
                if not len(dots):
                    continue
                axes.bar(at, dots.mean(), width=0.19, color=shades[name], alpha=0.28, linewidth=0)
                spread = np.linspace(-0.05, 0.05, len(dots)) if len(dots) > 1 else np.zeros(1)
                axes.plot(at + spread, dots, "o", color=shades[name], markersize=4.5)
        for name in names:
            axes.plot([], [], "o", color=shades[name], label=name)
        axes.fill_between([], [], [], color=MUTED, alpha=0.35, label="shuffled pairs, 95 %")
        axes.plot([], [], color=INK, linewidth=1, linestyle=(0, (2, 2)), label="chance")
        axes.set_xticks(range(len(directions)), [d.replace("->", " →\n") for d in directions])
        axes.set(ylabel=metric, title="Retrieval over the full gallery of each held-out section", ylim=(0, None))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return png(figure)


def zero_shot_map(
    section: Section, *, truth: Array, scores: Array, classes: Sequence[str], aurocs: Mapping[str, float | None]
) -> bytes:
    """The H&E, the true classes, the best-scoring class, then a map of every class's score.

    Parameters
    ----------
    truth
        (n,) class names, "" where unknown.
    scores
        (n, classes) similarity of each location to each class, NaN where the location has none.
    aurocs
        Class -> AUROC on this section, None where undefined.
    """
    palette = colours(classes)
    known = np.isfinite(scores).all(1)
    best = np.full(len(scores), "", dtype=object)
    # Raw scores are biased by class: each class is centred and scaled over the section before the best one is taken.
    z = (scores - np.nanmean(scores, 0)) / np.maximum(np.nanstd(scores, 0), 1e-9)
    best[known] = np.array(classes, dtype=object)[z[known].argmax(1)]
    columns = 4
    rows = 1 + -(-len(classes) // columns)
    with styled():
        figure = new_figure(2.55 * columns, 2.62 * rows)
        grid = figure.subplots(rows, columns, squeeze=False)
        draw_tissue(grid[0, 0], section)
        grid[0, 0].set_title(f"Held-out section {section.id}")
        for axes, named, title in ((grid[0, 1], truth, "Truth"), (grid[0, 2], best, "Zero-shot, from the image")):
            draw_tissue(axes, section, fade=0.6)
            draw_classes(axes, section, named, palette)
            axes.set_title(title)
        class_legend(grid[0, 3], palette)
        for i, name in enumerate(classes):
            axes = grid[1 + i // columns, i % columns]
            draw_tissue(axes, section, fade=0.6)
            draw_values(axes, section, scores[:, i])
            auroc = aurocs.get(name)
            axes.set_title(f"{name}\nAUROC {auroc:.2f}" if auroc is not None else f"{name}\nnot here", fontsize=8.5)
        for axes in grid.ravel()[columns + len(classes) :]:
            axes.set_axis_off()
        return png(figure)


def queries(
    section: Section, *, texts: Sequence[str], scores: Array, windows: Sequence[Sequence[Array]], window_um: float
) -> bytes:
    """Free-text queries: where in a section each one points, and the closest tiles of all held-out sections.

    Parameters
    ----------
    scores
        (n, texts) similarity over `section`.
    windows
        Per query, the closest tiles as uint8 pictures, best first.
    window_um
        Side of a tile.
    """
    most = max(len(w) for w in windows)
    with styled():
        figure = new_figure(2.5 + 1.22 * most, 2.5 * len(texts))
        parts = figure.subfigures(len(texts), 1, squeeze=False)[:, 0]
        for i, (part, text) in enumerate(zip(parts, texts, strict=True)):
            part.suptitle(f"“{text}”", x=0.01, ha="left", fontsize=10, fontweight="bold")
            left, right = part.subfigures(1, 2, width_ratios=(2.4, 1.22 * most))
            axes = left.add_subplot()
            draw_tissue(axes, section, fade=0.6)
            draw_values(axes, section, scores[:, i])
            grid = right.subplots(1, most, squeeze=False)[0]
            for axes in grid:
                axes.set_axis_off()
            for rank, (axes, window) in enumerate(zip(grid, windows[i], strict=False), start=1):
                axes.imshow(window, extent=(0, window_um, 0, window_um), interpolation="antialiased")
                axes.set_title(str(rank), loc="center", fontsize=8, fontweight="normal", color=MUTED)
            grid[0].text(0, -0.06, f"tiles of {window_um:.0f} µm", transform=grid[0].transAxes, fontsize=7.5, va="top")
        return png(figure)


def _model_colours(rows: Sequence[Result], names: Sequence[str]) -> dict[str, str]:
    """A model has the colour of its role; a second one of that role the next free colour."""
    taken: dict[str, str] = {}
    free = [c for c in PALETTE if c not in ROLE_COLOUR.values()]
    for name in names:
        role = next(r.role for r in rows if r.model == name)
        colour = ROLE_COLOUR[role]
        taken[name] = colour if colour not in taken.values() else free.pop(0)
    return taken
