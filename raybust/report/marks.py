"""What the pictures of a sweep share: a colour and a marker for each method, an empty canvas.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; beyond seven methods the
marker, or the line, tells them apart too. Stage report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raybust.report.plots import COLORS, STYLES
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
RING: dict[str, Any] = {
    "markersize": 12,
    "markerfacecolor": "none",
    "markeredgecolor": "black",
}
"""How finalists are marked."""
STATES = {"COMPLETE": "trained to the end", "PRUNED": "stopped early", "FAIL": "failed"}
LONGEST_NAME = 36


@dataclass(frozen=True)
class Mark:
    """How a method is drawn."""

    color: str
    marker: str
    line: Any


def marks(board: Leaderboard) -> dict[str, Mark]:
    """Returns the mark of each method of a sweep, the same in all of its pictures."""
    names = sorted({entry.method for entry in every(board)})
    count = len(COLORS)
    return {
        name: Mark(
            COLORS[i % count],
            MARKERS[(i + 3 * (i // count)) % len(MARKERS)],
            STYLES[i // count % len(STYLES)],
        )
        for i, name in enumerate(names)
    }


def every(board: Leaderboard) -> list[TrialRecord]:
    """Returns all trials that have ended, by number."""
    return sorted((*board.entries, *board.others), key=lambda entry: entry.number)


def canvas(width: float = 7.2, height: float = 4.2, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Returns an empty picture of that size in inches, with panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    found = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    for axes in found:
        axes.grid(color="0.88", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, found


def legend(
    figure: Figure, known: dict[str, Mark], extra: Iterable[Line2D] = (), lines: bool = False
) -> None:
    """Puts methods, then what else is drawn, below a picture, which grows by that much.

    Args:
        figure: the picture.
        known: the methods that it shows.
        extra: what else it shows.
        lines: whether methods are lines, not points.
    """
    handles = [
        Line2D([], [], color=mark.color, linestyle=mark.line, label=cut(name))
        if lines
        else sign(cut(name), mark.marker, color=mark.color)
        for name, mark in known.items()
    ]
    handles += extra
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    width, height = figure.get_size_inches()
    columns = max(1, min(len(handles), int(13 * width / (longest + 7))))
    figure.set_size_inches(width, height + 0.2 * math.ceil(len(handles) / columns))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )


def sign(label: str, marker: str, **looks: Any) -> Line2D:
    """Returns a line of the legend for something that is not a method."""
    return Line2D([], [], **{"linestyle": "", "color": "0.35", **looks}, marker=marker, label=label)


def save(figure: Figure, path: Path) -> Path:
    """Writes a picture of at most 1,600 pixels across; returns its path."""
    figure.savefig(path, dpi=min(150.0, 1600 / figure.get_size_inches()[0]))
    return path


def cut(text: str) -> str:
    """Returns a name, its middle left out where it is too long to be drawn."""
    text = text.replace("$", r"\$")
    half = LONGEST_NAME // 2
    return text if len(text) <= LONGEST_NAME else f"{text[:half]}…{text[-half:]}"


def finite(value: float | None) -> TypeGuard[float]:
    """Tells whether there is a value that can be drawn."""
    return value is not None and math.isfinite(value)
