"""Figures of a sweep: Pareto front, optimization history, learning curves, importances, compute.

All show the validation part at search fidelity; rings mark the trials that went on to the test
set. PNG, without a display.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from raybust.reporting.columns import ACCURACY
from raybust.reporting.marks import (
    RING,
    STATES,
    cut,
    every,
    finite,
    legend,
    marks,
    save,
    sign,
)
from raybust.reporting.parallel import plot_parallel
from raybust.reporting.plots import COLORS, canvas
from raybust.search.leaderboard import UNITS, Leaderboard
from raybust.search.records import TrialRecord

_STATE_COLORS = {"COMPLETE": COLORS[0], "PRUNED": COLORS[4], "FAIL": COLORS[1]}
_NAMED = 12


@dataclass(frozen=True)
class Picture:
    """A figure with its title and caption.

    Attributes:
        title: a few words.
        caption: what it shows, and its marks.
        path: the file.
        whole: whether it needs the full width of a page.
    """

    title: str
    caption: str
    path: Path
    whole: bool = False


def draw(board: Leaderboard, folder: Path) -> list[Picture]:
    """Draws the figures of a sweep, skipping those without data.

    Args:
        board: the sweep, with any number of trials.
        folder: existing folder for the files.
    """
    front = "Pareto front" if board.objectives else "Metric and accuracy"
    plans: list[tuple[str, str, str, Callable[[Leaderboard, Path], Path | None]]] = [
        ("pareto", front, _FRONT_TEXT[bool(board.objectives)], plot_front),
        ("history", "Optimization history", _HISTORY_TEXT, plot_history),
        ("learning", "Learning curves", _LEARNING_TEXT, plot_learning),
        ("importances", "Parameter importances", _IMPORTANCE_TEXT, plot_importances),
        ("parallel", "Parallel coordinates", _PARALLEL_TEXT, plot_parallel),
        ("compute", "Compute spent", _COMPUTE_TEXT, plot_compute),
    ]
    found = []
    for name, title, caption, plot in plans:
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)  # from an earlier report
        if plot(board, path) is not None:
            words = caption.format(metric=board.metric, unit=UNITS[board.unit])
            found.append(Picture(title, words, path, whole=name in ("parallel", "compute")))
    return found


_FRONT_TEXT = {
    True: "Trials that completed training, on the validation part; the line bounds the region"
    " dominated by the Pareto set. Hollow: misses a constraint. Ringed: went on to the test set.",
    False: "Trials that completed training, on the validation part. Hollow: misses a constraint."
    " Ringed: went on to the test set.",
}
_HISTORY_TEXT = (
    "{metric} of each trial after its last epoch, and the best so far among those that completed"
    " training and meet the constraints. Crosses at the bottom are failed trials."
)
_LEARNING_TEXT = (
    "{metric} over {unit}, the unit of the budget; the best trial is thick, a bar marks a trial"
    " that was stopped early."
)
_IMPORTANCE_TEXT = (
    "Share of the variance of {metric} explained by each searched key, as estimated by the study:"
    " a hint from few trials, not a measurement."
)
_PARALLEL_TEXT = (
    "One line per trial, darker for better ones. A key that a trial lacks leaves a gap, which is"
    " dotted for the best trials. Failed trials are omitted."
)
_COMPUTE_TEXT = (
    "Images passed through the network in training (forward and backward), and seconds of training"
    " and validation, summed over all trials of a method."
)


def plot_front(board: Leaderboard, path: Path) -> Path | None:
    """Draws the objectives against each other, or a single metric against clean accuracy; returns
    the path, or None if no trial completed training."""
    pairs = _pairs(board)
    known = marks(board)
    shown = [e for e in board.entries if all(finite(_at(board, e, m)) for p in pairs for m in p)]
    if not shown:
        return None
    figure, panels = canvas(7.2 if len(pairs) == 1 else 4.6 * len(pairs), 4.8, len(pairs))
    for panel, (across, up) in zip(panels, pairs, strict=True):
        panel.margins(0.08)
        points = [(e, _at(board, e, across) or 0.0, _at(board, e, up) or 0.0) for e in shown]
        for entry, x, y in points:
            mark = known[entry.method]
            inside = mark.color if entry.feasible is not False else "none"
            panel.plot(
                x, y, mark.marker, color=mark.color, markerfacecolor=inside, markersize=7, alpha=0.9
            )
        _front(panel, board, points, across if len(pairs) == 1 else None)
        panel.set(xlabel=cut(_label(board, across)), ylabel=cut(_label(board, up)))
    extra = [sign("misses a constraint", "o", markerfacecolor="none")] * bool(board.constraints)
    extra += [sign("finalist", "o", **RING)] * any(e.final for e, *_ in points)
    legend(figure, {name: mark for name, mark in known.items() if _has(shown, name)}, extra)
    return save(figure, path)


def plot_history(board: Leaderboard, path: Path) -> Path | None:
    """Draws the metric by trial and the best so far; returns the path, or None without values."""
    trials, known = every(board), marks(board)
    if not any(finite(entry.value) for entry in trials):
        return None
    figure, (axes,) = canvas()
    for entry in trials:
        mark = known[entry.method]
        if entry.state == "FAIL" or not finite(entry.value):
            foot = axes.get_xaxis_transform()
            axes.plot(entry.number, 0.02, "x", color=mark.color, transform=foot, clip_on=False)
            continue
        done = entry.state == "COMPLETE"
        inside = mark.color if done and entry.feasible is not False else "none"
        axes.plot(
            entry.number, entry.value, mark.marker if done else "1", color=mark.color,
            markerfacecolor=inside, markersize=6 if done else 8,
        )  # fmt: skip
        if entry.final:
            axes.plot(entry.number, entry.value, "o", **RING)
    steps = _best_so_far(board, trials)
    extra = []
    if steps:
        axes.step(*zip(*steps, strict=True), where="post", color="black", linewidth=1.2)
        extra.append(Line2D([], [], color="black", linewidth=1.2, label="best so far"))
    signs = {"PRUNED": sign("stopped early", "1"), "FAIL": sign("failed", "x")}
    extra += [line for state, line in signs.items() if board.count(state)]
    extra += [sign("misses a constraint", "o", markerfacecolor="none")] * bool(board.constraints)
    extra += [sign("finalist", "o", **RING)] * bool(board.finalists)
    axes.set(xlabel="trial", ylabel=cut(_label(board, board.metric)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.03, y=0.08)
    legend(figure, known, extra)
    return save(figure, path)


def plot_learning(board: Leaderboard, path: Path) -> Path | None:
    """Draws the metric over the budget spent, epoch by epoch; returns the path, or None if no trial
    has two epochs."""
    curves = {
        e.number: [(e.spent[k], v) for k, v in sorted(e.history.items()) if finite(v)]
        for e in every(board)
    }
    if all(len(curve) < 2 for curve in curves.values()):
        return None
    known, best = marks(board), board.best
    figure, (axes,) = canvas()
    many = len(curves) > 40
    for entry in every(board):
        if not curves[entry.number]:
            continue
        first = best is not None and entry.number == best.number
        color = known[entry.method].color
        alpha = 0.35 if entry.state != "COMPLETE" else 0.45 if many and not first else 0.85
        axes.plot(
            *zip(*curves[entry.number], strict=True), color=color, alpha=alpha,
            linestyle=known[entry.method].line, linewidth=2.6 if first else 1.2,
            zorder=3 if first else 2,
        )  # fmt: skip
        if entry.state == "PRUNED":
            axes.plot(*curves[entry.number][-1], "|", color=color, markersize=8, alpha=0.7)
    axes.set(xlabel=UNITS[board.unit], ylabel=cut(_label(board, board.metric)))
    if board.unit == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    stopped = [sign("stopped early", "|")] * bool(board.count("PRUNED"))
    legend(figure, known, stopped, lines=True)
    return save(figure, path)


def plot_importances(board: Leaderboard, path: Path) -> Path | None:
    """Draws the share of variance explained by each key; returns the path, or None if unknown."""
    found = sorted((v, key) for key, v in board.importances.items() if finite(v))
    if not found:
        return None
    shares, keys = zip(*found, strict=True)
    figure, (axes,) = canvas(height=1.2 + 0.32 * len(keys))
    bars = axes.barh([cut(key) for key in keys], shares, color=COLORS[0], height=0.65)
    axes.bar_label(bars, [f"{100 * share:.0f} %" for share in shares], padding=3, fontsize=8)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, max(*shares, 0.01) * 1.12)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(f"share of the variance of {cut(board.metric)}")
    return save(figure, path)


def plot_compute(board: Leaderboard, path: Path) -> Path | None:
    """Draws passes and seconds by method and state; returns the path, or None if none is known."""
    trials = every(board)
    if not any(entry.passes or entry.seconds for entry in trials):
        return None
    methods = sorted(marks(board), reverse=True)
    figure, (left, right) = canvas(9.2, 1.6 + 0.3 * len(methods), 2)
    for panel, measure, label in (
        (left, lambda entry: entry.passes, "image passes"),
        (right, lambda entry: entry.seconds, "seconds"),
    ):
        panel.grid(visible=False, axis="y")
        start = np.zeros(len(methods))
        for state, text in STATES.items():
            spent = np.array(
                [
                    sum(measure(e) for e in trials if e.method == name and e.state == state)
                    for name in methods
                ]
            )
            panel.barh(
                [cut(name) for name in methods], spent, left=start, height=0.65,
                color=_STATE_COLORS[state], label=text,
            )  # fmt: skip
            start += spent
        panel.set(xlabel=label, xlim=(0.0, max(*start, 1e-9) * 1.04))
    left.xaxis.set_major_formatter(EngFormatter(sep=""))
    left.set_ylim(-0.7, len(methods) - 0.3)
    right.set_ylim(-0.7, len(methods) - 0.3)
    right.tick_params(labelleft=False)
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside lower center", ncols=3, frameon=False, fontsize=8,
    )  # fmt: skip
    return save(figure, path)


def _pairs(board: Leaderboard) -> list[tuple[str, str]]:
    """Returns the metrics on the x and y axes of each panel."""
    if board.objectives:
        return [(b, a) for a, b in combinations([metric for metric, _ in board.objectives][:3], 2)]
    return [("passes" if board.metric == ACCURACY else ACCURACY, board.metric)]


def _at(board: Leaderboard, entry: TrialRecord, metric: str) -> float | None:
    if metric == "passes":
        return entry.passes
    return entry.value if metric == board.metric else entry.metrics.get(metric)


def _label(board: Leaderboard, metric: str) -> str:
    if metric == "passes":
        return "images passed through the network in training"
    modes = {board.metric: board.mode, **dict(board.objectives)}
    arrow = {"max": " (more is better)", "min": " (less is better)"}.get(modes.get(metric, ""), "")
    return ("validation accuracy" if metric == ACCURACY else metric) + arrow


def _front(
    panel: Axes,
    board: Leaderboard,
    points: Sequence[tuple[TrialRecord, float, float]],
    across: str | None,
) -> None:
    """Draws the boundary of the region dominated by the Pareto set, rings the finalists, and labels
    both.

    Args:
        panel: the axes.
        board: the sweep.
        points: trials with their coordinates.
        across: metric on the x axis; None for a projection of more objectives, without boundary.
    """
    members = sorted((x, y) for entry, x, y in points if entry.number in board.pareto)
    if across and len(members) > 1:
        where: Literal["pre", "post"] = (
            "pre" if dict(board.objectives).get(across) == "max" else "post"
        )
        panel.step(*zip(*members, strict=True), where=where, color="0.3", linewidth=1.0, zorder=1)
    named = sorted(
        (x, y, entry.number)
        for entry, x, y in points
        if entry.final or entry.number in board.pareto
    )
    for place, (x, y, trial) in enumerate(named[:_NAMED]):
        offset, side = ((7, 5), "left") if place % 2 else ((-7, -11), "right")
        panel.annotate(
            str(trial), (x, y), xytext=offset, textcoords="offset points", fontsize=8, ha=side
        )
    for entry, x, y in points:
        if entry.final:
            panel.plot(x, y, "o", **RING)


def _best_so_far(board: Leaderboard, trials: Sequence[TrialRecord]) -> list[tuple[int, float]]:
    best, found = None, []
    better = max if board.mode == "max" else min
    for entry in trials:
        if entry.state == "COMPLETE" and entry.feasible is not False and finite(entry.value):
            best = entry.value if best is None else better(best, entry.value)
        if best is not None:
            found.append((entry.number, best))
    return found


def _has(entries: Sequence[TrialRecord], method: str) -> bool:
    return any(entry.method == method for entry in entries)
