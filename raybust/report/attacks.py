"""Evaluations under attack: robust accuracy over the radius in a picture, and several evaluations
in one table, each row with the protocol that made it.

What is read are the summaries that `raybust evaluate` leaves. Stage `report`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from raybust.disk.files import read_json
from raybust.errors import RequestError
from raybust.report.naming import markdown

Curve = Sequence[tuple[float, float, float, float]]
"""(eps, accuracy, lower, upper end of its interval), ascending in eps."""

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


_ROUNDING = 1e-9


@dataclass(frozen=True)
class AttackComparison:
    """What a comparison of evaluations gives.

    Attributes:
        markdown: the table, a row for each evaluation, protocol and radius.
        figures: the same as numbers.
        files: what was written.
    """

    markdown: str
    figures: tuple[dict[str, Any], ...]
    files: tuple[Path, ...]

    def text(self) -> str:
        """Returns what the command line prints."""
        return "\n".join([self.markdown.rstrip(), "", *map(str, self.files)])

    def plain(self) -> dict[str, Any]:
        """Returns the same for --json."""
        return {"attacks": list(self.figures), "files": [str(path) for path in self.files]}


def compare_attacks(named: Sequence[tuple[str, Path]], folder: Path) -> AttackComparison:
    """Writes one table of evaluations under attack, also those behind a front.

    Args:
        named: label and summary of each.
        folder: where the table goes; made where it is missing.
    """
    figures = []
    for label, path in named:
        whole = read_json(path)
        _check(path, whole)
        for one in (*whole.get("views", {}).values(), whole):
            figures += _figures(label, one)
    lines = ["| run | protocol | attacks | eps | clean | robust [95 %] | examples | distrust |",
             "|---|---|---|---:|---:|---:|---:|---|"]  # fmt: skip
    for row in figures:
        robust, low, high = (f"{100 * row[key]:.2f}" for key in ("robust", "low", "high"))
        robust = f"{'at most ' * row['upper_bound']}{robust}"
        lines.append(
            f"| {markdown(row['run'])} | {row['protocol']}, {row['effort']} | "
            f"{', '.join(row['attacks'])} | "
            f"{row['norm']} {row['eps']:.4g} | {100 * row['clean']:.2f} | "
            f"{robust} [{low}, {high}] | "
            f"{row['examples']} {row['split']} | {', '.join(row['flags']) or 'none'} |"
        )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "attacked.md"
    file.write_text("\n".join(lines) + "\n")
    return AttackComparison(file.read_text(), tuple(figures), (file,))


def _check(path: Path, summary: Mapping[str, Any]) -> None:
    """Refuses a summary that its own rows contradict.

    Raises:
        RequestError: with the radius.
    """
    rows = path.with_suffix(".tsv")
    if not rows.exists():
        return
    lines = rows.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    names, *cells = (line.split("\t") for line in lines)
    found = [dict(zip(names, line, strict=False)) for line in cells]
    for point in summary["points"]:
        mine = [row for row in found if float(row["eps"]) == point["eps"]]
        robust = sum(row["robust"] == "1" for row in mine) / max(len(mine), 1)
        if abs(robust - point["robust"]) > _ROUNDING:
            raise RequestError(
                f"{path}: has a robust accuracy of {point['robust']:.4f} at {point['eps']:g}, but"
                f" its rows have {robust:.4f}; `raybust evaluate` makes it anew"
            )


def _figures(label: str, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of one protocol's summary, a radius each."""
    protocol = summary["protocol"]
    return [
        {
            "run": label,
            "protocol": protocol["view"],
            "front": protocol["front"],
            "attacks": protocol["attacks"],
            "norm": protocol["norm"],
            "eps": point["eps"],
            "clean": summary["clean"],
            **{key: point[key] for key in ("robust", "low", "high")},
            "upper_bound": point.get("upper_bound", False),
            "examples": protocol["examples"],
            "split": protocol["split"],
            "effort": _effort(protocol),
            "flags": [flag["name"] for flag in summary["flags"]],
        }
        for point in summary["points"]
        if point["eps"] in protocol["eps"]
    ]


def _effort(protocol: Mapping[str, Any]) -> str:
    """Returns how much the attacks of a protocol try, in words."""
    steps = {"pgd": "pgd_steps", "apgd": "steps", "fab": "steps", "square": "queries"}
    parts = [
        f"{name} {protocol[key]} {'queries' if key == 'queries' else 'steps'}"
        for name, key in steps.items()
        if any(attack.startswith(name) for attack in protocol["attacks"])
    ]
    runs = protocol["restarts"]
    return ", ".join([*parts, f"{runs} restart{'s' * (runs != 1)}"])


def draw_robust_curve(curves: Mapping[str, Curve], path: str | Path, *, norm: str) -> Path:
    """Draws robust accuracy over eps into a file; returns its path.

    Args:
        curves: label to points; the interval of each is a band.
        path: a .png or .pdf.
        norm: of eps, for the axis.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for number, (label, points) in enumerate(curves.items()):
        eps, accuracy, low, high = zip(*points, strict=True)
        color = _COLORS[number % len(_COLORS)]
        axes.plot(eps, accuracy, color=color, marker="o", markersize=4, label=label)
        axes.fill_between(eps, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel=f"eps ({norm}, pixels in [0, 1])", ylabel="robust accuracy")
    axes.set_xlim(left=0.0)
    axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=200)
    return Path(path)
