"""The picture and the table of a learning-rate range test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from raybust.reporting.plots import COLORS, canvas

_ROOM = 1.3


def plot_rates(
    columns: Mapping[str, Sequence[float]], suggestion: float, path: Path, title: str
) -> None:
    """Draws the loss over the learning rate, with the suggested rate.

    Args:
        columns: `rate`, `loss` and `smoothed` of each step.
        suggestion: the suggested rate.
        path: of the picture.
        title: above the picture.
    """
    figure, (axes,) = canvas()
    rates, smoothed = columns["rate"], columns["smoothed"]
    axes.semilogx(rates, columns["loss"], color="0.7", linewidth=0.8, label="loss of a batch")
    axes.semilogx(rates, smoothed, color=COLORS[0], label="smoothed")
    label = f"suggested: train.lr={suggestion:g}"
    axes.axvline(suggestion, color=COLORS[1], linestyle="--", label=label)
    axes.set_ylim(0, _ROOM * max(smoothed))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def rates_table(columns: Mapping[str, Sequence[float]]) -> str:
    """Returns the columns as tab-separated text with a header."""
    rows = zip(*columns.values(), strict=True)
    lines = ("\t".join(f"{value:.6g}" for value in row) for row in rows)
    return "\n".join(["\t".join(columns), *lines, ""])
