"""A table of evaluations under corruption, a row per run and protocol.

Reads the results written by `raybust evaluate`, and checks their figures against the counts beside
them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybust.corruptions import read_counts
from raybust.disk.files import check_digest, read_json
from raybust.errors import RequestError
from raybust.reporting.certificates import different_images
from raybust.reporting.comparison import Comparison
from raybust.reporting.naming import markdown, told_apart

_DETAIL = re.compile(r"(generated/)?(calibration/.*|error/(?!p_).*)")
"""Metrics without a column: those of single corruptions, but for norms."""


def compare_corruptions(named: Sequence[tuple[str, Path]], folder: Path) -> Comparison:
    """Writes one table of evaluations under corruption.

    Args:
        named: label and JSON result of each.
        folder: folder of the table, created if missing.

    Raises:
        RequestError: a result contradicts its counts.
    """
    figures, notes, known = [], [], []
    visible = [_shown(read_json(path)["protocol"]) for _, path in named]
    for label, path in told_apart(named, visible):
        whole = read_json(path)
        asked = whole["protocol"]
        _check(path, whole["metrics"], asked["sets"], whole.get("shape"))
        check_digest(path, whole, "raybust evaluate")
        kinds, examples = _shown(asked)[:2]
        known.append((label, asked))
        shown = {k: v for k, v in whole["metrics"].items() if not _DETAIL.fullmatch(k)}
        clean = {"clean error": whole["metrics"]["error/clean"]}
        figures.append({"run": label, "corruptions": kinds,
                        "dataset": asked["dataset"], "split": asked["split"],
                        "examples": examples, **clean, **shown})  # fmt: skip
        notes += [f"{label}: {note}." for note in whole.get("notes", [])]
    notes += [f"{name}: {what}" for name, what in different_images(known).items()]
    heads = list(dict.fromkeys(key for row in figures for key in row))
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|" + "---:|" * (len(heads) - 4)]
    for row in figures:
        cells = [markdown(_show(row.get(head, "-"))) for head in heads]
        lines.append(f"| {' | '.join(cells)} |")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "corrupted.md"
    file.write_text("\n".join([*lines, *(f"\n> {markdown(note)}" for note in notes)]) + "\n")
    return Comparison(file.read_text(), tuple(figures), (file,), kind="corruptions")


def _shown(asked: Mapping[str, Any]) -> tuple[str, Any, str, str]:
    """Returns what a row shows of a protocol: corruptions, examples, dataset and part."""
    kinds = [*asked["sets"], *(f"p={p:g} eps={eps:g}" for p, eps in asked["rows"])]
    kinds += [f"published ({asked['folder']})"] * bool(asked["folder"])
    kinds += ["generated"] * bool(asked["generated"])
    return " ".join(kinds), asked["examples"] or "all", asked["dataset"], asked["split"]


def _show(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _check(
    path: Path, metrics: Mapping[str, float], sets: Sequence[str], shape: Sequence[int] | None
) -> None:
    """Rejects a result that contradicts its counts.

    Args:
        path: of the result.
        metrics: as stated.
        sets: names of its sets of Lp noises.
        shape: of its images; None in results of raybust 0.1.

    Raises:
        RequestError: names the metric.
    """
    size = None if shape is None else (shape[0], shape[1], shape[2])
    found = read_counts(path.with_suffix(".jsonl"), sets, size).metrics()
    for name, value in found.items():
        stated = metrics.get(name, math.nan)
        both_nan = math.isnan(stated) and math.isnan(value)
        if not (both_nan or math.isclose(stated, value, abs_tol=1e-9)):
            raise RequestError(
                f"{path}: states {name} = {stated:.4f}, but its counts give {value:.4f}; run"
                " `raybust evaluate` again"
            )
