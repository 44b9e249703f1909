"""Parallel coordinates of a conditional space: one line per trial, one axis per key.

A key that a trial lacks leaves a gap in its line. Axes of positive values that span more than a
decade are logarithmic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from raybust.reporting.columns import ACCURACY, short
from raybust.reporting.marks import LONGEST_NAME, cut, every, finite, legend, marks, save
from raybust.reporting.plots import canvas
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord

METHOD = "method.name"
_DECADE = 10.0
_MOST_AXES = 24
_BRIDGED = 5
_BOX = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}


@dataclass(frozen=True)
class Scale:
    """One axis.

    Attributes:
        key: a searched key, or a metric.
        categories: the values in order, if one of them is not a finite number.
        low: smallest value.
        high: largest value.
        log: whether the axis is logarithmic.
    """

    key: str
    categories: tuple[str, ...]
    low: float
    high: float
    log: bool

    def place(self, value: Any) -> float:
        """Returns the position of a value, 0 to 1; 1/2 if all are equal."""
        if self.categories:
            number, low, high = float(self.categories.index(short(value))), 0.0, 0.0
            high = len(self.categories) - 1.0
        elif self.log:
            number, low, high = math.log(value), math.log(self.low), math.log(self.high)
        else:
            number, low, high = float(value), self.low, self.high
        return (number - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Returns positions and labels of the ticks."""
        if self.categories:
            return [(self.place(text), text) for text in self.categories]
        if self.high <= self.low:
            return [(0.5, short(self.low))]
        return [(self.place(value), f"{value:.3g}") for value in (self.low, self.high)]


def scales(board: Leaderboard, shown: Sequence[TrialRecord]) -> list[Scale]:
    """Returns the axes: method, keys of some trials, keys of all trials, accuracy, metric."""
    keys = list(dict.fromkeys(key for entry in shown for key in entry.point))
    of_all = [key for key in keys if all(key in entry.point for entry in shown)]
    method = [METHOD] if METHOD in keys else []
    rest = [key for key in keys if key not in (*of_all, METHOD)]
    metrics = dict.fromkeys([ACCURACY, *(metric for metric, _ in board.objectives), board.metric])
    order = [*method, *rest, *(key for key in of_all if key != METHOD)]
    order = order[: _MOST_AXES - len(metrics)]
    return [
        scale(board, key, [v for e in shown if (v := at(board, e, key)) is not None])
        for key in [*order, *metrics]
        if any(at(board, entry, key) is not None for entry in shown)
    ]


def scale(board: Leaderboard, key: str, values: Sequence[Any]) -> Scale:
    """Returns the axis for one or more values of a key."""
    if not all(_is_number(value) and math.isfinite(value) for value in values):
        texts = dict.fromkeys(short(value) for value in sorted(values, key=_order))
        return Scale(key, tuple(texts), 0.0, 0.0, False)
    low, high = float(min(values)), float(max(values))
    domains = {row[0]: row[1] for row in board.space}
    wide = low > 0 and high / low > _DECADE
    log = "log" in domains[key] if key in domains else wide and "/" not in key
    return Scale(key, (), low, high, log and low > 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _order(value: Any) -> tuple[bool, float, str]:
    """Sort key of categories: numbers by size, then texts."""
    number = _is_number(value)
    return (not number, value if number else 0.0, short(value))


def at(board: Leaderboard, entry: TrialRecord, key: str) -> Any:
    """Returns the value of a searched key or metric in a trial, or None."""
    if key in entry.point:
        return entry.point[key]
    value = entry.value if key == board.metric else entry.metrics.get(key)
    return value if finite(value) else None


def plot_parallel(board: Leaderboard, path: Path) -> Path | None:
    """Draws the trials that have a value of the metric; returns the path, or None without any."""
    shown = [e for e in every(board) if e.state != "FAIL" and finite(e.value)]
    if not shown:
        return None
    known, axes_of = marks(board), scales(board, shown)
    names = max(len(text) for _, text in axes_of[0].ticks())
    figure, (axes,) = canvas(min(22.0, 1.4 + 1.05 * len(axes_of)), 4.6)
    axes.grid(visible=False)
    axes.set_axis_off()
    sign = 1 if board.mode == "max" else -1
    order = sorted(shown, key=lambda e: (e.state == "COMPLETE", sign * (e.value or 0.0)))
    for place, entry in enumerate(order, 1):
        mark = known[entry.method]
        looks: dict[str, Any] = {
            "color": mark.color,
            "alpha": 0.12 + 0.8 * (place / len(order)) ** 3,
        }
        dots = [
            (i, one.place(value))
            for i, one in enumerate(axes_of)
            if (value := at(board, entry, one.key)) is not None
        ]
        axes.plot(*zip(*dots, strict=True), mark.marker, markersize=4, **looks)
        for left, right in pairwise(dots):
            pair = zip(left, right, strict=True)
            if right[0] - left[0] == 1:
                axes.plot(*pair, "-", linewidth=1.4, **looks)
            elif len(order) - place < max(_BRIDGED, len(order) // 10):
                axes.plot(*pair, ":", linewidth=1.0, **looks)
    for i, one in enumerate(axes_of):
        axes.plot([i, i], [0, 1], color="0.25", linewidth=1.0, zorder=0)
        label = cut(one.key).replace(".", ".\n").replace("/", "/\n") + "\n(log)" * one.log
        axes.text(i, 1.05, label, ha="center", va="bottom", fontsize=8)
        for y, text in one.ticks():
            side, x = ("right", i - 0.07) if i == 0 else ("left", i + 0.05)
            axes.text(x, y, cut(text), fontsize=7, ha=side, va="center", bbox=_BOX, zorder=4)
    axes.set_xlim(-0.3 - 0.06 * min(names, LONGEST_NAME), len(axes_of) - 0.5)
    gap = Line2D([], [], color="0.35", linestyle=":", label="trial lacks this key")
    legend(figure, known, [gap] * any(set(e.point) != set(shown[0].point) for e in shown))
    return save(figure, path)
