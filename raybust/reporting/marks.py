"""Shared by the figures of a sweep: a color and a marker per method, the legend, the file size.

A method has the same mark in all figures of a sweep. Beyond the seven colors of the palette,
methods also differ in marker or line style.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raybust.reporting.plots import COLORS, STYLES
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
RING: dict[str, Any] = {
    "markersize": 12,
    "markerfacecolor": "none",
    "markeredgecolor": "black",
}
"""Style of the ring around finalists."""
STATES = {"COMPLETE": "trained to the end", "PRUNED": "stopped early", "FAIL": "failed"}
LONGEST_NAME = 36


@dataclass(frozen=True)
class Mark:
    """The style of a method."""

    color: str
    marker: str
    line: Any


def marks(board: Leaderboard) -> dict[str, Mark]:
    """Returns the mark of each method of a sweep, the same in all its figures."""
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
    """Returns all finished trials, by number."""
    return sorted((*board.entries, *board.others), key=lambda entry: entry.number)


def legend(
    figure: Figure, known: dict[str, Mark], extra: Iterable[Line2D] = (), lines: bool = False
) -> None:
    """Adds a legend of methods and further entries below a figure, which grows accordingly.

    Args:
        figure: the figure.
        known: the methods shown.
        extra: further entries.
        lines: whether methods are shown as lines instead of points.
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
    """Returns a legend entry for something other than a method."""
    return Line2D([], [], **{"linestyle": "", "color": "0.35", **looks}, marker=marker, label=label)


def save(figure: Figure, path: Path) -> Path:
    """Saves a figure, at most 1,600 pixels wide; returns the path."""
    figure.savefig(path, dpi=min(150.0, 1600 / figure.get_size_inches()[0]))
    return path


def cut(text: str) -> str:
    """Returns a name, shortened in the middle if it is too long to draw."""
    text = text.replace("$", r"\$")
    half = LONGEST_NAME // 2
    return text if len(text) <= LONGEST_NAME else f"{text[:half]}…{text[-half:]}"


def finite(value: float | None) -> TypeGuard[float]:
    """Returns whether there is a value to draw."""
    return value is not None and math.isfinite(value)
