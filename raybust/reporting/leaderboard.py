"""The leaderboard of a sweep as Markdown, files and command-line output.

Search results and test results are in separate groups of columns, each with its protocol. The
figure shows the certified accuracy of the finalists.
"""

from __future__ import annotations

import json
from pathlib import Path

from raybust.disk.files import replace_text
from raybust.reporting.certificates import draw_curve
from raybust.reporting.columns import columns_of
from raybust.reporting.naming import markdown as escape
from raybust.search.leaderboard import NAME, Leaderboard

PAGE = "report.html"


def markdown(board: Leaderboard) -> str:
    """Returns the table with the protocol below it."""
    columns = columns_of(board)
    heads = ["rank", *(column.head for column in columns)]
    rows = [
        [str(rank), *(column.cell(entry) for column in columns)]
        for rank, entry in enumerate(board.entries, 1)
    ]
    cells = [[escape(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in (cells[0], ["-" * width for width in widths], *cells[1:])
    ]
    notes = [f"{board.state} Ranked by {board.metric} on the validation part."]
    if board.why_empty:
        notes.append(board.why_empty)
    if board.protocol:
        first = next(column.head for column in columns if column.group == "test")
        notes.append(f"Columns from `{first}` on: {board.protocol}")
    notes += [f"Trial {e.number}: {text}." for e in board.entries for text in e.failed]
    return "\n".join([*lines, "", *notes, *board.notes])


def text(board: Leaderboard) -> str:
    """Returns the output of the command line."""
    lines = [markdown(board), ""]
    if (curve := curve_of(board)) is not None:
        lines.append(f"certified accuracy  {curve}")
    lines.append(f"leaderboard         {board.folder / (f'{NAME}.md')}")
    lines.append(f"report              {board.folder / PAGE}")
    return "\n".join(lines)


def write(board: Leaderboard) -> list[Path]:
    """Writes the Markdown table and the JSON data into the sweep's folder; returns the files."""
    table, plain = board.folder / f"{NAME}.md", board.folder / f"{NAME}.json"
    table.write_text(f"# {board.sweep}\n\n{markdown(board)}\n")
    replace_text(plain, json.dumps(board.plain(), indent=1) + "\n")
    return [table, plain]


def curve_of(board: Leaderboard) -> Path | None:
    """Returns the path of the finalists' certified-accuracy figure, None without certificates."""
    certified = any(record.log is not None for record in board.entries)
    return board.folder / f"{NAME}.png" if certified else None


def draw_finalists(board: Leaderboard) -> Path | None:
    """Draws the finalists' certified accuracy; returns the path, None without certificates."""
    found = [(record, log) for record in board.entries if (log := record.log) is not None]
    path = curve_of(board)
    if path is None:
        return None
    labels = [
        f"{record.method} (trial {record.number}{', first seed' * bool(record.by_seed)})"
        for record, _ in found
    ]
    return draw_curve([log for _, log in found], path, labels)
