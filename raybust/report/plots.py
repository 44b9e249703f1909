"""Pictures of certification logs: the certified-accuracy curve and the distribution of pA.

PNG (or PDF, by the name) through matplotlib, without a display; interactive HTML through plotly
where the extra `[plots]` is installed. Stage `report` of the arrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from raybust.errors import RequestError
from raybust.report.figures import acr, budget, certified_accuracy, votes
from raybust.report.logs import Floats, Log

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which color-blind readers can tell apart."""
STYLES = ("-", "--", "-.", ":")
NORMS = {"l2": r"$\ell_2$", "linf": r"$\ell_\infty$", "l1": r"$\ell_1$", "l0": r"$\ell_0$"}


def steps(log: Log) -> tuple[Floats, Floats]:
    """Returns the certified-accuracy curve exactly: radii at which it falls, and its values up to
    each of them; ends at accuracy 0."""
    radii = np.unique(np.concatenate(([0.0], log.radius[log.correct])))
    end = np.nextafter(radii[-1], np.inf)
    grid = np.append(radii, end)
    return grid, certified_accuracy(log, grid)


def plot_curves(logs: Sequence[Log], path: str | Path, title: str = "") -> Path:
    """Draws certified accuracy over the radius of several logs into a file; returns its path.

    Args:
        logs: at least one with rows; others are left out.
        path: a .png or .pdf.
        title: above the picture.
    """
    shown = _shown(logs)
    figure, axes = _figure(len(shown))
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
    axes.set(xlabel=f"{NORMS[_norm(shown)]} radius", ylabel="certified accuracy", title=title)
    axes.set_xlim(left=0.0)
    axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    return _save(figure, path)


def plot_votes(logs: Sequence[Log], path: str | Path, title: str = "") -> Path:
    """Draws the distribution of pA, the share of draws for the certified class: over the examples
    that are certified correctly, cumulated. Returns the path.

    Args:
        logs: logs of Gaussian noise whose n and alpha are known or can be inferred.
        path: a .png or .pdf.
        title: above the picture.
    """
    shown = _shown(logs)
    figure, axes = _figure(len(shown))
    for number, log in enumerate(shown):
        made = budget(log)
        if made is None:
            continue
        shares = np.sort(votes(log, made)[log.correct])
        height = 1.0 - np.arange(len(shares)) / len(log) - (len(log) - len(shares)) / len(log)
        axes.step(
            shares,
            height,
            where="pre",
            color=COLORS[number % len(COLORS)],
            linewidth=1.8,
            label=log.name,
        )
    axes.set(xlabel="$p_A$", ylabel="correct examples with at least $p_A$", title=title)
    axes.set_xlim(0.5, 1.0)
    axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    return _save(figure, path)


def interactive_curves(logs: Sequence[Log], path: str | Path, title: str = "") -> Path:
    """Writes the same curves as one HTML page that needs no network; returns its path.

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
        title=title or None,
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
    norms = sorted({log.protocol.norm if log.protocol else "l2" for log in logs})
    if len(norms) > 1:
        raise RequestError(
            f"the logs' radii are of different norms ({', '.join(norms)}); draw each"
        )
    return norms[0]


def _shown(logs: Sequence[Log]) -> list[Log]:
    shown = [log for log in logs if len(log)]
    if not shown:
        raise RequestError("no log has a row to draw")
    return shown


def _figure(logs: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.9 + 0.35 * logs), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: str | Path) -> Path:
    figure.savefig(path, dpi=200)
    return Path(path)
