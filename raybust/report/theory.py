"""What location on a geodesic and size of a sample do (`raybust.numerics.transport.theory`), as a
table and a picture: lines are closed forms where there are any, markers with error bars are
measured, control arms dashed. Stage `report` of the arrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raybust.numerics.transport.theory import Line, Panel


def theory_table(panels: Sequence[Panel]) -> str:
    """Returns a Markdown table a panel: a row for each line, "mean +- half the 95 % interval
    [closed form]" for each x."""
    text = []
    for panel in panels:
        x = panel.lines[0].x
        text += [f"{panel.title}: {panel.y} by {panel.x}", ""]
        text.append(f"| | {' | '.join(f'{at:g}' for at in x)} |")
        text.append(f"|---|{'---:|' * len(x)}")
        for line in panel.lines:
            cells = [_cell(line, at) for at in range(len(x))]
            text.append(f"| {line.name} | {' | '.join(cells)} |")
        text.append("")
    return "\n".join(text)


def _cell(line: Line, at: int) -> str:
    exact = f" [{line.exact[at]:.3f}]" if line.exact else ""
    return f"{line.values[at]:.3f} +- {line.halves[at]:.3f}{exact}"


def plot_theory(panels: Sequence[Panel], picture: str | Path) -> Path:
    """Draws the panels, three in a row; returns the path.

    Args:
        panels: of the sweep.
        picture: a .png, .pdf or .svg that is written.
    """
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(13, 4.8 * rows), layout="constrained")
    for number, panel in enumerate(panels, 1):
        _draw(figure.add_subplot(rows, 3, number), panel)
    figure.savefig(picture, dpi=80)
    return Path(picture)


def _draw(axes: Axes, panel: Panel) -> None:
    groups = sorted({line.group for line in panel.lines})
    for line in panel.lines:
        color, dashes = f"C{groups.index(line.group)}", "--" if line.control else "-"
        mark = "s" if line.control else "o"
        if line.exact:
            axes.plot(line.x, line.exact, dashes, color=color, linewidth=1.2)
        axes.errorbar(
            line.x,
            line.values,
            yerr=line.halves,
            fmt=mark,
            linestyle="none" if line.exact else dashes,
            markerfacecolor="white" if line.control else color,
            color=color,
            capsize=2,
            markersize=4,
            label=line.name,
        )
    if panel.log:
        axes.set_xscale("log", base=2)
        axes.set_xticks(panel.lines[0].x, [f"{size:g}" for size in panel.lines[0].x])
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.grid(alpha=0.3)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),
        ncols=2,
        fontsize=8,
        title=panel.exact or None,
        title_fontsize=8,
        frameon=False,
    )
