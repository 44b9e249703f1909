"""Evaluations under attack: a figure of robust accuracy over the radius, and a table of several
evaluations, each row with its protocol.

Reads the summaries written by `raybust evaluate`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybust.disk.files import check_digest, read_json
from raybust.errors import RequestError
from raybust.evaluate import HEADLINE, AttackProtocol, AttackRow, summarize
from raybust.identity import fields_of
from raybust.reporting.certificates import different_images
from raybust.reporting.comparison import Comparison
from raybust.reporting.naming import markdown, told_apart
from raybust.reporting.plots import COLORS, canvas, save_curves

Curve = Sequence[tuple[float, float, float, float]]
"""(eps, accuracy, lower, upper end of its interval), ascending in eps."""

_ROUNDING = 1e-9


def compare_attacks(named: Sequence[tuple[str, Path]], folder: Path) -> Comparison:
    """Writes one table of evaluations under attack, with a row per run, protocol and radius.

    Args:
        named: label and summary of each.
        folder: folder of the table, created if missing.
    """
    figures, known = [], []
    shown = [_shown(read_json(path)["protocol"]) for _, path in named]
    for label, path in told_apart(named, shown):
        views = _views(path)
        known.append((label, views[HEADLINE]["protocol"]))
        for view in sorted(views, key=HEADLINE.__eq__):  # the headline last
            figures += _figures(label, views[view])
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
            f"{row['examples']} {row['split']} of {row['dataset']} | "
            f"{', '.join(row['flags']) or 'none'} |"
        )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "attacked.md"
    notes = [f"\n> {markdown(name)}: {what}" for name, what in different_images(known).items()]
    file.write_text("\n".join([*lines, *notes]) + "\n")
    return Comparison(file.read_text(), tuple(figures), (file,), kind="attacks")


def _views(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the summaries of an evaluation by view, the headline first.

    Raises:
        RequestError: one was edited, or contradicts its rows.
    """
    whole = read_json(path)
    found = {HEADLINE: whole, **whole.get("views", {})}
    for one in found.values():
        _check(path, one)
    check_digest(path, whole, "raybust evaluate")
    return found


def _check(path: Path, summary: Mapping[str, Any]) -> None:
    """Rejects a summary that contradicts its rows.

    Raises:
        RequestError: names the figure.
    """
    read = read_rows(path, summary["protocol"]["view"])
    if read is None:
        return
    protocol, rows = read
    found = json.loads(json.dumps(summarize(rows, protocol).plain()))
    figures = {"clean": (summary["clean"], found["clean"])}
    for theirs, ours in zip(summary["points"], found["points"], strict=True):
        figures |= {f"{key} at {ours['eps']:g}": (theirs.get(key), ours[key]) for key in ours}
    asked = [{**one["protocol"], "outputs": None} for one in (summary, found)]
    figures["protocol"] = (asked[0], asked[1])
    for name, (stated, value) in figures.items():
        if not _agree(stated, value):
            raise RequestError(
                f"{path}: states {name} = {_short(stated)}, but its rows give {_short(value)}; run"
                " `raybust evaluate` again"
            )
    names = {flag["name"] for flag in summary["flags"]}
    missing = [flag["name"] for flag in found["flags"] if flag["name"] not in names]
    if missing:
        raise RequestError(
            f"{path}: lacks the flag {missing[0]}, which its rows give; run `raybust evaluate`"
            " again"
        )


def read_rows(path: Path, view: str) -> tuple[AttackProtocol, list[AttackRow]] | None:
    """Returns the protocol and the rows of a view of an evaluation; None if another version of
    raybust wrote them.

    Args:
        path: of the summary.
        view: one of its views.

    Raises:
        RequestError: they are gone, incomplete, or contradict themselves.
    """
    stem = path.stem if view == HEADLINE else f"{path.stem}_{view}"
    file = path.with_name(f"{stem}.tsv")
    if not file.exists():
        raise RequestError(f"{path}: its rows, {file.name}, are gone; run `raybust evaluate`")
    try:
        head, _, *lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        protocol = AttackProtocol(**fields_of(head.removeprefix("# ")))
        rows = [AttackRow.parse(line) for line in lines]
    except TypeError:
        return None
    except (ValueError, IndexError) as error:
        raise RequestError(f"{file}: is not a table of attacks ({error})") from None
    for number, row in enumerate(rows, 1):
        if wrong := row.fault(protocol):
            raise RequestError(f"{file}: {wrong}, in row {number}")
    if len(rows) != protocol.examples * len(protocol.threats):
        raise RequestError(f"{file}: is not complete; run `raybust evaluate` again")
    return protocol, rows


def read_flags(path: Path) -> dict[str, tuple[str, ...]]:
    """Returns the names of the flags of each view of an evaluation, the headline first.

    Args:
        path: of the summary.

    Raises:
        RequestError: the summary contradicts its rows.
    """
    return {
        view: tuple(dict.fromkeys(flag["name"] for flag in one["flags"]))
        for view, one in _views(path).items()
    }


def _agree(stated: Any, value: Any) -> bool:
    """Returns whether two figures, or dicts of figures, are equal up to rounding."""
    if isinstance(value, dict) and isinstance(stated, dict):
        return stated.keys() == value.keys() and all(_agree(stated[k], value[k]) for k in value)
    if isinstance(value, float) and isinstance(stated, (int, float)):
        return math.isclose(stated, value, rel_tol=0, abs_tol=_ROUNDING) or stated == value
    return bool(stated == value)


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


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
            "dataset": protocol["dataset"],
            "effort": _effort(protocol),
            "flags": [flag["name"] for flag in summary["flags"]],
        }
        for point in summary["points"]
        if point["eps"] in protocol["eps"]
    ]


def _shown(protocol: Mapping[str, Any]) -> str:
    """Returns what a row shows of a protocol."""
    keys = ("view", "attacks", "norm", "eps", "examples", "split", "dataset")
    return f"{_effort(protocol)} {[protocol[key] for key in keys]}"


def _effort(protocol: Mapping[str, Any]) -> str:
    """Describes the effort of the attacks of a protocol."""
    steps = {"pgd": "pgd_steps", "apgd": "steps", "fab": "steps", "square": "queries"}
    parts = [
        f"{name} {protocol[key]} {'queries' if key == 'queries' else 'steps'}"
        for name, key in steps.items()
        if any(attack.startswith(name) for attack in protocol["attacks"])
    ]
    runs, passes = protocol["restarts"], protocol.get("eot", 1)
    averaged = [f"average of {passes} passes"] * (passes != 1)
    return ", ".join([*parts, f"{runs} restart{'s' * (runs != 1)}", *averaged])


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
