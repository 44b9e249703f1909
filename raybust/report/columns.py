"""The columns of a leaderboard, the same in Markdown and on the page.

Three groups that are never mixed: what was tried, what search saw on the validation part with its
cheap certificate, what finalists reached on the test set at publication fidelity. Stage report.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord

ACCURACY = "validation/accuracy"


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard, the same in every form that it is written in.

    Attributes:
        head: what stands above it.
        group: "trial" for what was tried, "search" for what was seen on the validation part,
            "test" for what finalists reached on the test set.
        cell: an entry to its text, "" for nothing to say.
    """

    head: str
    group: Literal["trial", "search", "test"]
    cell: Callable[[TrialRecord], str]


def columns_of(board: Leaderboard) -> list[Column]:
    """Returns the columns of a leaderboard, group by group."""
    seen = dict.fromkeys([ACCURACY, *(metric for metric, _ in board.objectives), board.metric])
    found = [
        Column("trial", "trial", lambda entry: str(entry.number)),
        Column("method", "trial", lambda entry: entry.method),
        Column("settings", "trial", lambda entry: settings(entry.point)),
    ]
    for metric in seen:
        head = "val. accuracy" if metric == ACCURACY else metric
        found.append(Column(head, "search", partial(_seen, board.metric, metric)))
    if board.constraints:
        found.append(Column("feasible", "search", lambda entry: _YES_NO[entry.feasible]))
    if board.pareto:
        members = set(board.pareto)
        found.append(Column("Pareto", "search", lambda entry: "yes" * (entry.number in members)))
    if any(entry.reason for entry in board.entries):
        found.append(Column("not measured", "test", lambda entry: entry.reason or ""))
    counts = {entry.examples for entry in board.entries if entry.examples is not None}
    images = f" ({counts.pop()} images)" if len(counts) == 1 else ""  # of an earlier version: none
    found.append(Column("test accuracy" + images, "test", lambda entry: number(entry.accuracy)))
    return found + _published(board, "certified") + _published(board, "attacked")


def _published(board: Leaderboard, kind: Literal["certified", "attacked"]) -> list[Column]:
    """Returns one column for each figure that some finalist has of that kind."""
    keys = {key for entry in board.entries for key in getattr(entry, kind) or {}}
    found = sorted((*named, key) for key in keys if (named := _named(key)))
    return [Column(head, "test", partial(_reached, kind, key)) for _, head, key in found]


def _seen(optimized: str, metric: str, entry: TrialRecord) -> str:
    return number(entry.value if metric == optimized else entry.metrics.get(metric))


def _reached(kind: str, key: str, entry: TrialRecord) -> str:
    return number((getattr(entry, kind) or {}).get(key))


def settings(point: dict[str, Any]) -> str:
    """Returns a point in one line, the method left out, keys without their section."""
    return ", ".join(
        f"{key.rpartition('.')[2]}={short(value)}"
        for key, value in point.items()
        if key != "method.name"
    )


def number(value: float | None) -> str:
    """Returns a figure with four decimals; "" where there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def short(value: Any) -> str:
    """Returns a value of a point with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


_YES_NO = {True: "yes", False: "no", None: ""}
_FIGURE = re.compile(
    r"certified/(?:acr|accuracy_at/(?P<radius>[\d.e+-]+))"
    r"|attacked/(?P<norm>[a-z]+\d?)_(?P<eps>[\d.e+-]+)/robust_accuracy"
)


def _named(key: str) -> tuple[tuple[str, float], str] | None:
    """Returns place (norm, radius) and head of a published figure that has a column."""
    match = _FIGURE.fullmatch(key)
    if match is None:
        return None
    if match["norm"]:
        eps = float(match["eps"])
        return (match["norm"], eps), f"robust at {match['norm']} {show_eps(eps)}"
    if match["radius"]:
        return ("", float(match["radius"])), f"cert. at {match['radius']}"
    return ("", -1.0), "ACR"


def show_eps(eps: float) -> str:
    """Returns a radius as people write it: 8/255 where it is a whole number of 255ths."""
    levels = eps * 255
    whole = eps < 1 and abs(levels - round(levels)) < 1e-3 and round(levels) > 0
    return f"{round(levels)}/255" if whole else f"{eps:g}"
