"""The figures of a comparison: differences to a reference, each patient across models, each gene of two models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.comparison import Comparison
from triglyph.metrics.bootstrap import MIN_PATIENTS
from triglyph.report.comparison_grids import arrowed, number, signed
from triglyph.report.style import INK, MUTED, PALETTE, new_figure, png, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

MARKS = {"better": ("#0072B2", "o"), "worse": ("#D55E00", "s")}
"""Verdict -> colour and marker; every other verdict is a grey diamond."""
OTHER = (MUTED, "D")
NAMED_GENES = 3
_COLUMNS = 3


def forest(tests: Sequence[Comparison], differences: Sequence[Mapping[str, float]]) -> bytes:
    """Differences to the reference, a panel per metric, a line per model.

    Parameters
    ----------
    tests
        Of one family, all against one reference.
    differences
        For each test, patient -> difference; drawn as small dots where there are too few patients for an interval.
    """
    metrics = list(dict.fromkeys(c.quantity.metric for c in tests))
    models = list(dict.fromkeys(c.paired.a for c in tests))
    with _panels(len(metrics), 0.34 * len(models) + 0.95, share_y=True) as (figure, panels):
        for axes, metric in zip(panels, metrics, strict=True):
            axes.axvline(0, color=INK, linewidth=0.8)
            for c, of in zip(tests, differences, strict=True):
                if c.quantity.metric == metric:
                    _line(axes, models.index(c.paired.a), c, of)
            axes.set_yticks(range(len(models)), models)
            axes.set_ylim(len(models) - 0.4, -0.6)
            axes.margins(x=0.08)
            axes.tick_params(axis="y", length=0)
            better = (
                "← better"
                if any(c.paired.lower_is_better for c in tests if c.quantity.metric == metric)
                else ("better →")
            )
            axes.set(title=metric, xlabel=f"difference to {tests[0].paired.b}, {better}")
            axes.xaxis.label.set_fontsize(8)
        _legend(figure, tests)
        return png(figure)


def _line(axes: Axes, y: int, c: Comparison, differences: Mapping[str, float]) -> None:
    p = c.paired
    colour, marker = MARKS.get(p.verdict, OTHER)
    if p.ci:
        axes.plot([p.ci.low, p.ci.high], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt")
    elif p.n_patients:
        axes.plot(list(differences.values()), [y] * len(differences), "|", color=colour, markersize=9)
    if p.n_patients:
        filled = colour if p.n_patients >= MIN_PATIENTS else "white"
        axes.plot([p.difference], [y], marker, color=colour, markerfacecolor=filled, markersize=5.5)
    wins = f"{p.wins}/{p.n_patients}" if p.n_patients else "undefined"
    axes.annotate(wins, (1.0, y), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                  va="center", fontsize=7.5, annotation_clip=False)  # fmt: skip


def _legend(figure: Figure, tests: Sequence[Comparison]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for verdict in dict.fromkeys(c.paired.verdict for c in tests):
        colour, marker = MARKS.get(verdict, OTHER)
        few = verdict == "too few patients for a claim"
        words = "too few patients for a claim: each one's difference, and the mean" if few else verdict
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=5.5, linewidth=0 if few else 1.8,
                              markerfacecolor="white" if few else colour, label=words))  # fmt: skip
    figure.legend(handles=handles, loc="outside lower left", ncols=3, fontsize=8)


def patient_lines(values: Mapping[str, Mapping[str, Mapping[str, float]]]) -> bytes:
    """Each patient a line across models, a panel per metric; where patients are few, each has a colour and its numbers.

    Parameters
    ----------
    values
        Metric -> model -> patient -> value, NaN where undefined.
    """
    models = list(dict.fromkeys(m for of in values.values() for m in of))
    patients = sorted({who for of in values.values() for by in of.values() for who in by})
    few = len(patients) < MIN_PATIENTS
    with _panels(len(values), 3.3 if few else 2.9, share_y=False) as (figure, panels):
        for axes, (metric, by_model) in zip(panels, values.items(), strict=True):
            table = np.array([[by_model.get(m, {}).get(who, np.nan) for m in models] for who in patients])
            x = np.arange(len(models))
            for i, who in enumerate(patients):
                colour = PALETTE[i % len(PALETTE)] if few else MUTED
                axes.plot(x, table[i], "-o", color=colour, linewidth=1.0, markersize=3, alpha=1 if few else 0.6,
                          label=who if few else None)  # fmt: skip
            there = ~np.isnan(table).all(axis=0)
            mean = np.nanmean(table[:, there], axis=0)
            axes.plot(x[there], mean, "_", color=INK, markersize=17, markeredgewidth=2.2, label="mean", zorder=1.5)
            if few:
                _numbers(axes, table)
            axes.set_xticks(x, models, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)
            axes.set_xlim(-0.5, len(models) - 0.5)
            axes.set(title=arrowed(metric))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=6, fontsize=8)
        return png(figure)


def _numbers(axes: Axes, table: Floats) -> None:
    """Every value, pushed apart where they would overlap."""
    from matplotlib.patheffects import withStroke

    low, high = np.nanmin(table, initial=np.inf), np.nanmax(table, initial=-np.inf)
    room = 0.055 * (high - low) if high > low else 1.0
    for x, column in enumerate(table.T):
        at = -np.inf
        for row in np.argsort(column)[: int((~np.isnan(column)).sum())]:
            at = max(at + room, column[row])
            axes.annotate(number(column[row]), (x, at), xytext=(5, 0), textcoords="offset points", fontsize=6.5,
                          va="center", path_effects=[withStroke(linewidth=2, foreground="white")])  # fmt: skip


class Genes(NamedTuple):
    """Each gene of two models."""

    names: Sequence[str]
    reference: Sequence[float]
    """(genes,)"""
    other: Sequence[float]
    """(genes,)"""

    def better(self, *, lower_is_better: bool) -> int:
        """Number of genes for which the other model is better."""
        return sum((y < x) if lower_is_better else (y > x) for x, y in zip(self.reference, self.other, strict=True))


def gene_scatter(panels: Mapping[str, Genes], *, name: str, lower_is_better: bool) -> bytes:
    """Each gene of the model `name` and of another, a panel per other model; the genes furthest apart are named."""
    with _panels(len(panels), 3.1, share_y=False) as (figure, drawn):
        for axes, (model, genes) in zip(drawn, panels.items(), strict=True):
            x, y = np.asarray(genes.reference, float), np.asarray(genes.other, float)
            ends = [min(x.min(), y.min()), max(x.max(), y.max())]
            axes.plot(ends, ends, color=INK, linewidth=0.8)
            wins, losses = (y < x, y > x) if lower_is_better else (y > x, y < x)
            for side, (colour, marker) in ((wins, MARKS["better"]), (losses, MARKS["worse"]), (x == y, OTHER)):
                axes.plot(x[side], y[side], marker, color=colour, markersize=3.8, alpha=0.75, markeredgewidth=0)
            order = np.argsort(y - x, kind="stable")
            _names(axes, genes.names, x, y, [i for i in order[:NAMED_GENES] if y[i] < x[i]], 1)
            _names(axes, genes.names, x, y, [i for i in order[-NAMED_GENES:] if y[i] > x[i]], -1)
            axes.set_aspect("equal", adjustable="box")
            axes.margins(0.1)
            better = genes.better(lower_is_better=lower_is_better)
            axes.set(xlabel=name, ylabel=model, title=f"better for {better} of {len(x)} genes")
        return png(figure)


def _names(axes: Axes, names: Sequence[str], x: Floats, y: Floats, rows: Sequence[int], side: int) -> None:
    """Symbols of some genes to the right (1) or left (-1) of their dots, pushed apart."""
    room, at = 0.04 * float(max(np.ptp(x), np.ptp(y))), -np.inf
    for row in sorted(rows, key=lambda i: (y[i], i)):
        at = max(at + room, float(y[row]))
        axes.annotate(names[row], (x[row], at), xytext=(5 * side, 0), textcoords="offset points", fontsize=6.5,
                      ha="left" if side > 0 else "right", va="center")  # fmt: skip


@contextmanager
def _panels(n: int, height: float, *, share_y: bool) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of n panels, three in a row; a `$` in a name is a `$`."""
    import matplotlib as mpl

    with styled(), mpl.rc_context({"text.parse_math": False}):
        columns = 2 if n == 4 else min(n, _COLUMNS)
        rows = -(-n // columns)
        figure = new_figure((3.25 if columns > 2 else 3.9) * columns + 0.9, height * rows + 0.35)
        grid = figure.subplots(rows, columns, squeeze=False, sharey="row" if share_y else False)
        for axes in grid.ravel()[n:]:
            axes.set_axis_off()
        yield figure, list(grid.ravel()[:n])


def forest_words(tests: Sequence[Comparison]) -> str:
    """The forest plot for those who do not see it."""
    return "Forest plot. " + "; ".join(
        f"{c.paired.a}, {c.quantity.metric}: {signed(c.paired.difference)}"
        + (f" [{signed(c.paired.ci.low)}, {signed(c.paired.ci.high)}]" if c.paired.ci else "")
        + f", {c.paired.verdict}"
        for c in tests
    )
