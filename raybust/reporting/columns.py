"""The columns of a leaderboard, the same in Markdown and HTML.

Three separate groups: the trials, their search results on the validation part with the cheap
certificate, and the finalists' results on the test set at publication fidelity.
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
from raybust.config.measured import SELECTED
from raybust.numerics.balls.threat import show_eps
from raybust.reporting.naming import AT_LEAST
from raybust.search.race import interval
from raybust.search.records import TrialRecord

ACCURACY = "validation/accuracy"


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard.

    Attributes:
        head: heading.
        group: "trial" for settings, "search" for results on the validation part, "test" for
            finalists' results on the test set.
        cell: entry to text, "" if empty.
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
    if any(SELECTED in entry.metrics for entry in board.entries):
        found.append(Column("epoch used", "search", _epoch))
    if any(entry.in_race is not None for entry in board.entries):
        found.append(Column("seeds", "search", _seeds))
    if board.constraints:
        found.append(Column("feasible", "search", lambda entry: _YES_NO[entry.feasible]))
    if board.pareto:
        members = set(board.pareto)
        found.append(Column("Pareto", "search", lambda entry: "yes" * (entry.number in members)))
    if any(entry.reason for entry in board.entries):
        found.append(Column(NOT_MEASURED, "test", lambda entry: entry.reason or ""))
    counts = {entry.examples for entry in board.entries if entry.examples is not None}
    images = f" ({counts.pop()} images)" if len(counts) == 1 else ""  # none in old versions
    found.append(Column("test accuracy" + images, "test", lambda entry: number(entry.accuracy)))
    return found + _published(board, "certified") + _published(board, "attacked")


def _published(board: Leaderboard, kind: Literal["certified", "attacked"]) -> list[Column]:
    """Returns one column per metric of that kind that some finalist has."""
    keys = {key for entry in board.entries for key in getattr(entry, kind) or {}}
    found = sorted((*named, key) for key in keys if (named := _named(key)))
    return [Column(head, "test", partial(_reached, kind, key)) for _, head, key in found]


def _seen(optimized: str, metric: str, entry: TrialRecord) -> str:
    """Returns a figure; the optimized metric of several seeds with its interval."""
    if metric != optimized:
        return number(entry.metrics.get(metric))
    if len(entry.values) < 2:
        return number(entry.value)
    low, high = interval([goals[0] for goals in entry.values])
    return f"{number(entry.value)} [{number(low)}, {number(high)}]"


def _epoch(entry: TrialRecord) -> str:
    """Returns the epoch whose network the trial uses; the mean over several seeds."""
    mean = "mean " * (len(entry.values) > 1)
    return f"{mean}{entry.metrics[SELECTED]:g}" if SELECTED in entry.metrics else ""


def _seeds(entry: TrialRecord) -> str:
    """Returns how many seeds were trained, and whether the race left the trial behind."""
    failed = f", {len(entry.failed)} failed" * bool(entry.failed)
    return f"{len(entry.values)}{failed}{', left behind' * (entry.in_race is False)}"


def _reached(kind: str, key: str, entry: TrialRecord) -> str:
    """Returns a figure; an average certified radius with its interval; robust accuracy that is an
    upper bound or not to be trusted says so."""
    found = getattr(entry, kind) or {}
    text = number(found.get(key))
    if f"{key}_low" in found:
        at_least = AT_LEAST * bool(found.get(f"{key}_understated"))
        return f"{at_least}{text} [{number(found[f'{key}_low'])}, {number(found[f'{key}_high'])}]"
    if not text or not key.endswith("/robust_accuracy"):
        return text
    bound = "at most " * bool(found.get(key.replace("robust_accuracy", "upper_bound")))
    return f"{bound}{text}{' (distrust)' * bool(found.get('attacked/flags'))}"


def settings(point: dict[str, Any]) -> str:
    """Returns the settings of a point in one line, without the method and without sections."""
    return ", ".join(
        f"{key.rpartition('.')[2]}={short(value)}"
        for key, value in point.items()
        if key != "method.name"
    )


def number(value: float | None) -> str:
    """Formats a number with four decimals; "" if there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def short(value: Any) -> str:
    """Formats a value of a point with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


NOT_MEASURED = "not measured"
_YES_NO = {True: "yes", False: "no", None: ""}
_FIGURE = re.compile(
    r"certified(?P<bounds>_linf)?/(?:acr|accuracy_at/(?P<radius>[\d.e+-]+))"
    r"|attacked/(?P<norm>[a-z]+\d?)_(?P<eps>[\d.e+-]+)/robust_accuracy"
)


def _named(key: str) -> tuple[tuple[str, float], str] | None:
    """Returns the sort key (norm, radius) and heading of a metric with a column, else None."""
    match = _FIGURE.fullmatch(key)
    if match is None:
        return None
    if match["norm"]:
        eps = float(match["eps"])
        return (match["norm"], eps), f"robust at {match['norm']} {show_eps(eps)}"
    own = match["bounds"] or ""
    if match["radius"] and own:
        eps = float(match["radius"])
        return (own, eps), f"bounds at linf {show_eps(eps)}"
    if match["radius"]:
        return (own, float(match["radius"])), f"cert. at {match['radius']}"
    return (own, -1.0), f"ACR{' by bounds' * bool(own)}"
