"""Interactive figures of a sweep in one self-contained HTML file.

The file includes the Plotly script once. plotly is the extra `[plots]`; without it, this module is
not imported.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from raybust.reporting.columns import ACCURACY, settings
from raybust.reporting.marks import STATES, Mark, every, finite, marks
from raybust.reporting.parallel import Scale, at, scales
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord

_SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down",
    "P": "cross", "X": "x", "p": "pentagon",
}  # fmt: skip


def write_interactive(board: Leaderboard, path: Path) -> Path | None:
    """Writes all figures into one page; returns the path, or None if there is nothing to draw.

    Args:
        board: the sweep, with any number of trials.
        path: the .html to write.
    """
    figures = [_front(board), _history(board), _importances(board), _parallel(board)]
    parts, script = [], True
    for figure in figures:
        if figure is None:
            continue
        figure.update_layout(template="simple_white", height=520)
        parts.append(figure.to_html(full_html=False, include_plotlyjs=script))
        script = False
    if not parts:
        return None
    body = "\n".join(parts)
    title = escape(board.sweep)
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
        f'<body style="font-family: system-ui, sans-serif"><h1>{title}</h1>\n{body}</body></html>\n'
    )
    return path


def _front(board: Leaderboard) -> Any:
    across, up = ACCURACY, board.metric
    if board.objectives:
        up, across = (metric for metric, _ in board.objectives[:2])
    elif up == ACCURACY:
        across = "passes/forward"
    points = [
        (e, x, y) for e in board.entries
        if finite(x := at(board, e, across)) and finite(y := at(board, e, up))
    ]  # fmt: skip
    title = "Pareto front (validation part)" if board.objectives else "Trials (validation part)"
    return _scatter(board, points, title, across, up)


def _history(board: Leaderboard) -> Any:
    points = [(e, float(e.number), e.value) for e in every(board) if finite(e.value)]
    return _scatter(board, points, "Optimization history", "trial", board.metric)


def _scatter(
    board: Leaderboard,
    points: list[tuple[TrialRecord, float, float]],
    title: str,
    across: str,
    up: str,
) -> Any:
    """Returns a figure with one trace per method, or None without points."""
    import plotly.graph_objects as go

    if not points:
        return None
    figure = go.Figure()
    for name, mark in marks(board).items():
        mine = [point for point in points if point[0].method == name]
        if not mine:
            continue
        figure.add_trace(
            go.Scatter(
                x=[x for _, x, _ in mine],
                y=[y for _, _, y in mine],
                text=[_words(entry) for entry, _, _ in mine],
                mode="markers",
                name=escape(name),
                marker=_marker(mark, [entry for entry, _, _ in mine]),
            )
        )
    figure.update_layout(title=title, xaxis_title=escape(across), yaxis_title=escape(up))
    return figure


def _marker(mark: Mark, entries: list[TrialRecord]) -> dict[str, Any]:
    symbol = _SYMBOLS[mark.marker]
    whole = [entry.state == "COMPLETE" and entry.feasible is not False for entry in entries]
    return {
        "color": mark.color,
        "size": [13 if entry.final else 9 for entry in entries],
        "symbol": [symbol if filled else f"{symbol}-open" for filled in whole],
    }


def _words(entry: TrialRecord) -> str:
    notes = [f"trial {entry.number}, {STATES.get(entry.state, entry.state)}", settings(entry.point)]
    notes += ["misses a constraint"] * (entry.feasible is False) + ["finalist"] * entry.final
    return "<br>".join(escape(note) for note in notes if note)


def _importances(board: Leaderboard) -> Any:
    import plotly.graph_objects as go

    found = sorted((v, key) for key, v in board.importances.items() if finite(v))
    if not found:
        return None
    shares, keys = zip(*found, strict=True)
    bars = go.Bar(x=shares, y=[escape(key) for key in keys], orientation="h")
    figure = go.Figure(bars)
    figure.update_layout(
        title="Parameter importances",
        xaxis={"tickformat": ".0%", "title": f"share of the variance of {escape(board.metric)}"},
    )
    return figure


def _parallel(board: Leaderboard) -> Any:
    """Returns parallel coordinates, with missing keys below the axes."""
    import plotly.graph_objects as go

    shown = [e for e in every(board) if e.state != "FAIL" and finite(e.value)]
    if not shown:
        return None
    figure = go.Figure(
        go.Parcoords(
            line={
                "color": [entry.value for entry in shown],
                "colorscale": "Viridis",
                "reversescale": board.mode == "min",
                "showscale": True,
                "colorbar": {"title": {"text": escape(board.metric)}},
            },
            labelangle=-20,
            dimensions=[_dimension(board, one, shown) for one in scales(board, shown)],
        )
    )
    figure.update_layout(
        title={
            "text": "Parallel coordinates (none: the trial lacks this key)",
            "y": 0.98,
        },
        margin={"t": 120, "l": 110},
    )
    return figure


def _dimension(board: Leaderboard, one: Scale, shown: list[TrialRecord]) -> dict[str, Any]:
    """Returns an axis from 0 to 1, with trials that lack the key at -0.15."""
    values = [at(board, entry, one.key) for entry in shown]
    places = [-0.15 if value is None else one.place(value) for value in values]
    ticks = one.ticks() + ([(-0.15, "none")] if None in values else [])
    return {
        "label": escape(one.key) + (" (log)" if one.log else ""),
        "values": places,
        "range": [-0.15 if None in values else 0, 1],
        "tickvals": [place for place, _ in ticks],
        "ticktext": [escape(text) for _, text in ticks],
    }
