"""How our figures look: one palette that colour-blind readers can tell apart, thin axes, µm scale bars."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008), ordered so that neighbours differ in lightness too.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7A5195", "#8C8C8C", "#333333")
INK, MUTED, ACCENT = "#1F2328", "#8A9099", "#0072B2"
ROLE_COLOUR = {"method": "#0072B2", "baseline": "#E69F00", "control": "#8A9099", "ceiling": "#009E73"}

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.dpi": 110,
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw inside this block; works without a screen and leaves the user's own settings alone."""
    import matplotlib as mpl

    with mpl.rc_context(_RC):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` x `height` inches that no window system knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure, *, dpi: int = 110) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour a name, in the order given."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def scale_bar(axes: Axes, *, width_um: float) -> None:
    """A bar of a round number of µm, about a fifth of the view of `width_um`, in the lower left; axes are in µm."""
    lengths = [length for k in range(7) for length in (10**k, 2 * 10**k, 5 * 10**k)]
    bar = min(lengths, key=lambda length: abs(length - width_um / 5))
    x0, x1 = axes.get_xlim()
    y0, y1 = axes.get_ylim()
    x, y = x0 + 0.04 * (x1 - x0), y0 + 0.05 * (y1 - y0)
    axes.plot([x, x + bar], [y, y], color="white", linewidth=5, solid_capstyle="butt", zorder=9)
    axes.plot([x, x + bar], [y, y], color=INK, linewidth=2.5, solid_capstyle="butt", zorder=10)
    label = f"{bar / 1000:g} mm" if bar >= 1000 else f"{bar:g} µm"
    axes.text(
        x + bar / 2,
        y + 0.025 * (y1 - y0),
        label,
        ha="center",
        va="bottom",
        fontsize=7.5,
        zorder=10,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.75},
    )
