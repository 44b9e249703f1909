"""Tables and figures of the studies.

Geodesic augmentation: lines are closed forms, if any, markers with error bars are measurements,
controls are dashed. Moments: propagated over sampled variance, layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raybust.studies.geodesic import Line, Panel
from raybust.studies.moments import LayerVariance


def theory_table(panels: Sequence[Panel]) -> str:
    """Returns a Markdown table per panel: a row per line, "mean +- half the 95% interval [closed
    form]" for each x."""
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
    """Draws the panels, three per row; returns the path.

    Args:
        panels: panels of the sweep.
        picture: the .png, .pdf or .svg to write.
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


def variance_table(layers: Sequence[LayerVariance]) -> str:
    """Returns a Markdown table: a row per step with both variances and their ratio.

    Args:
        layers: steps in order of computation; an undefined ratio (no variance) is shown as "-".
    """
    lines = ["| layer | kind | propagated | sampled | ratio |", "|---|---|---:|---:|---:|"]
    for layer in layers:
        ratio = f"{layer.ratio:.3g}" if math.isfinite(layer.ratio) else "-"
        numbers = f"{layer.propagated:.3g} | {layer.sampled:.3g} | {ratio}"
        lines.append(f"| {layer.name} | {layer.kind} | {numbers} |")
    return "\n".join(lines) + "\n"


def plot_variances(
    runs: Mapping[str, Sequence[LayerVariance]], picture: str | Path, title: str = ""
) -> Path:
    """Draws the ratios over depth, a line per label, on a logarithmic axis; returns the path.

    Args:
        runs: steps of one network by label, such as the mode.
        picture: the .png, .pdf or .svg to write.
        title: title of the figure.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, layers in runs.items():
        shown = [(at, layer.ratio) for at, layer in enumerate(layers) if 0 < layer.ratio < math.inf]
        axes.plot(*zip(*shown, strict=True), marker=".", label=label)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel("step of the network")
    axes.set_ylabel("propagated over sampled variance")
    axes.set_title(title)
    axes.legend()
    figure.savefig(picture)
    return Path(picture)
