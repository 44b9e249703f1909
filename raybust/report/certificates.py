"""Certification logs by their paths: one picture, one table. What the command line and a run's end
call.

Stage `report` of the arrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raybust.report.logs import Log, read_log
from raybust.report.plots import plot_curves
from raybust.report.tables import latex_table, markdown_table


def read_logs(paths: Sequence[str | Path], labels: Sequence[str] | None = None) -> list[Log]:
    """Returns the logs of some files.

    Args:
        paths: certification logs, ours or others'.
        labels: a name for each; the files' names where not given.
    """
    names: Sequence[str | None] = labels or [None] * len(paths)
    return [read_log(path, name) for path, name in zip(paths, names, strict=True)]


def draw_curve(
    paths: Sequence[str | Path], picture: str | Path, labels: Sequence[str] | None = None
) -> Path:
    """Draws certified accuracy over the radius of some logs into a .png or .pdf; returns its
    path."""
    return plot_curves(read_logs(paths, labels), picture)


def table(
    paths: Sequence[str | Path],
    radii: Sequence[float],
    labels: Sequence[str] | None = None,
    latex: bool = False,
) -> str:
    """Returns a table of some logs, Markdown or LaTeX; warnings of reading stand under it.

    Args:
        paths: one row each.
        radii: one column each.
        labels: a name for each.
        latex: LaTeX in place of Markdown.
    """
    logs = read_logs(paths, labels)
    lines = [f"{log.name}: {warning}" for log in logs for warning in log.warnings]
    if latex:
        return latex_table(logs, radii) + "".join(f"% {line}\n" for line in lines)
    return markdown_table(logs, radii) + "".join(f"\n> {line}\n" for line in lines)
