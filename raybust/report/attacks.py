"""Pictures of evaluations under attack: robust accuracy over the radius. Stage `report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

Curve = Sequence[tuple[float, float, float, float]]
"""(eps, accuracy, lower, upper end of its interval), ascending in eps."""

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw_robust_curve(curves: Mapping[str, Curve], path: str | Path, *, norm: str) -> Path:
    """Draws robust accuracy over eps into a file; returns its path.

    Args:
        curves: label to points; the interval of each is a band.
        path: a .png or .pdf.
        norm: of eps, for the axis.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for number, (label, points) in enumerate(curves.items()):
        eps, accuracy, low, high = zip(*points, strict=True)
        color = _COLORS[number % len(_COLORS)]
        axes.plot(eps, accuracy, color=color, marker="o", markersize=4, label=label)
        axes.fill_between(eps, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel=f"eps ({norm}, pixels in [0, 1])", ylabel="robust accuracy")
    axes.set_xlim(left=0.0)
    axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=200)
    return Path(path)
