"""How far propagated variances are from sampled ones, layer by layer: a table and a picture.

For covariance propagation (Zhen, Chakraborty and Singh, CVPR 2021, arXiv:2104.05888), whose rule
over-estimates more with every layer; `raybust.numerics.moments.layer_variances` measures. Stage
`report` of the arrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from raybust.numerics.moments import LayerVariance


def variance_table(layers: Sequence[LayerVariance]) -> str:
    """Returns a Markdown table: a row for each step, with both variances and their ratio.

    Args:
        layers: steps in the order of computation; a ratio that does not exist (no variance) is "-".
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
    """Draws the ratios over depth, a line for each mode, on a logarithmic axis; returns the path.

    Args:
        runs: steps by label, for instance by mode, of one network.
        picture: a .png, .pdf or .svg that is written.
        title: headline.
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
