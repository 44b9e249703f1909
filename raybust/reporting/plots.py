"""Figures of certification logs: the certified-accuracy curve and the distribution of pA.

PNG or PDF, by file name, with matplotlib, without a display; interactive HTML with plotly if the
extra `[plots]` is installed. Colors and canvas are shared with the other figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from raybust.errors import RequestError
from raybust.reporting.figures import acr, certified_accuracy, votes
from raybust.reporting.logs import Floats, Log

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The color-blind safe palette of Okabe and Ito."""
STYLES = ("-", "--", "-.", ":")
NORMS = {"l2": r"$\ell_2$", "linf": r"$\ell_\infty$", "l1": r"$\ell_1$", "l0": r"$\ell_0$"}


def canvas(width: float = 7.2, height: float = 4.2, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Returns an empty figure of that size in inches, with panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    found = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    for axes in found:
        axes.grid(color="0.88", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, found


def save_curves(figure: Figure, path: str | Path) -> Path:
    """Adds accuracy ticks and the legend to a figure of curves and saves it; returns its path."""
    (axes,) = figure.axes
    axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=200)
    return Path(path)


def steps(log: Log) -> tuple[Floats, Floats]:
    """Returns the exact certified-accuracy curve: radii where it drops, and its values up to each
    of them; ends at accuracy 0."""
    radii = np.unique(np.concatenate(([0.0], log.radius[log.correct])))
    end = np.nextafter(radii[-1], np.inf)
    grid = np.append(radii, end)
    return grid, certified_accuracy(log, grid)


def plot_curves(logs: Sequence[Log], path: str | Path) -> Path:
    """Draws certified accuracy over the radius for several logs; returns the path.

    Args:
        logs: logs, at least one with rows; logs without rows are skipped.
        path: the .png or .pdf to write.
    """
    shown = _shown(logs)
    figure, (axes,) = canvas(6.4, 3.9 + 0.35 * len(shown))
    for number, log in enumerate(shown):
        radii, values = steps(log)
        axes.step(
            radii,
            values,
            where="pre",
            color=COLORS[number % len(COLORS)],
            linestyle=STYLES[number // len(COLORS) % len(STYLES)],
            linewidth=1.8,
            label=_legend(log),
        )
    axes.set(xlabel=f"{NORMS[_norm(shown)]} radius", ylabel="certified accuracy")
    axes.set_xlim(left=0.0)
    return save_curves(figure, path)


def vote_steps(log: Log, known: Floats) -> tuple[Floats, Floats]:
    """Returns the curve of `plot_votes` from 0 to 1: pA where it drops, and its values up to each
    of them.

    Args:
        log: with rows.
        known: its `votes`, (N,).
    """
    shares = np.sort(known[log.correct])
    left = np.arange(len(shares), -1, -1) / len(log)
    return np.concatenate(([0.0], shares, [1.0])), np.concatenate((left[:1], left))


def plot_votes(logs: Sequence[Log], path: str | Path) -> Path:
    """Draws the cumulative distribution of pA, the share of draws for the certified class, over
    correctly certified examples; returns the path.

    Args:
        logs: those whose rows state the votes, or Gaussian L2 logs whose n and alpha can be
            inferred; others are left out.
        path: the .png or .pdf to write.
    """
    shown = _shown(logs)
    figure, (axes,) = canvas(6.4, 3.9 + 0.35 * len(shown))
    for number, log in enumerate(shown):
        known = votes(log)
        if known is None:
            continue
        shares, height = vote_steps(log, known)
        axes.step(
            shares,
            height,
            where="pre",
            color=COLORS[number % len(COLORS)],
            linewidth=1.8,
            label=log.name,
        )
    axes.set(xlabel="$p_A$", ylabel="correct examples with at least $p_A$")
    axes.set_xlim(0.5, 1.0)
    return save_curves(figure, path)


def interactive_curves(logs: Sequence[Log], path: str | Path) -> Path:
    """Writes the curves of `plot_curves` as a self-contained HTML page; returns the path.

    Raises:
        RequestError: plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise RequestError("interactive plots need plotly: pip install 'raybust[plots]'") from None
    figure, shown = go.Figure(), _shown(logs)
    for number, log in enumerate(shown):
        radii, values = steps(log)
        line = {"shape": "vh", "color": COLORS[number % len(COLORS)]}
        figure.add_trace(go.Scatter(x=radii, y=values, mode="lines", name=_legend(log), line=line))
    figure.update_layout(
        template="simple_white",
        xaxis={"title": f"{_norm(shown)} radius", "rangemode": "tozero", "showgrid": True},
        yaxis={"title": "certified accuracy", "range": [0, 1], "tickformat": ".0%"},
        legend={"orientation": "h", "y": -0.2},
    )
    figure.write_html(path, include_plotlyjs=True)
    return Path(path)


def _legend(log: Log) -> str:
    found = acr(log)
    return f"{log.name}\nACR {found.value:.3f} ({found.terms})"


def _norm(logs: Sequence[Log]) -> str:
    norms = sorted({log.norm for log in logs})
    if len(norms) > 1:
        raise RequestError(
            f"the logs have radii in different norms ({', '.join(norms)}); report them separately"
        )
    return norms[0]


def _shown(logs: Sequence[Log]) -> list[Log]:
    shown = [log for log in logs if len(log)]
    if not shown:
        raise RequestError("no log has rows to draw")
    return shown
