"""Evaluations under attack: a figure of robust accuracy over the radius, and a table of several
evaluations, each row with its protocol.

Reads the summaries written by `raybust evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybust.disk.files import read_json
from raybust.errors import RequestError
from raybust.report.comparison import Comparison
from raybust.report.naming import markdown
from raybust.report.plots import COLORS, canvas, save_curves

Curve = Sequence[tuple[float, float, float, float]]
"""(eps, accuracy, lower, upper end of its interval), ascending in eps."""

_ROUNDING = 1e-9


def compare_attacks(named: Sequence[tuple[str, Path]], folder: Path) -> Comparison:
    """Writes one table of evaluations under attack, with a row per run, protocol and radius.

    Args:
        named: label and summary of each.
        folder: folder of the table, created if missing.
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
    return Comparison(file.read_text(), tuple(figures), (file,), kind="attacks")


def _check(path: Path, summary: Mapping[str, Any]) -> None:
    """Rejects a summary that contradicts its rows.

    Raises:
        RequestError: names the radius.
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
                f"{path}: states a robust accuracy of {point['robust']:.4f} at {point['eps']:g},"
                f" but its rows give {robust:.4f}; run `raybust evaluate` again"
            )


def _figures(label: str, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the summary of one protocol, one per radius."""
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
    """Describes the effort of the attacks of a protocol."""
    steps = {"pgd": "pgd_steps", "apgd": "steps", "fab": "steps", "square": "queries"}
    parts = [
        f"{name} {protocol[key]} {'queries' if key == 'queries' else 'steps'}"
        for name, key in steps.items()
        if any(attack.startswith(name) for attack in protocol["attacks"])
    ]
    runs = protocol["restarts"]
    return ", ".join([*parts, f"{runs} restart{'s' * (runs != 1)}"])


def draw_robust_curve(curves: Mapping[str, Curve], path: str | Path, *, norm: str) -> Path:
    """Draws robust accuracy over eps, with bands for the intervals; returns the path.

    Args:
        curves: label to points.
        path: the .png or .pdf to write.
        norm: norm of eps, for the axis label.
    """
    figure, (axes,) = canvas(6.4)
    for number, (label, points) in enumerate(curves.items()):
        eps, accuracy, low, high = zip(*points, strict=True)
        color = COLORS[number % len(COLORS)]
        axes.plot(eps, accuracy, color=color, marker="o", markersize=4, label=label)
        axes.fill_between(eps, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel=f"eps ({norm}, pixels in [0, 1])", ylabel="robust accuracy")
    axes.set_xlim(left=0.0)
    return save_curves(figure, path)
