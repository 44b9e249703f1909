"""The leaderboard of a sweep: search results and publication results in separate columns.

What search saw (validation part, cheap certificate) ranks the trials; what the finalists reached on
the test set stands beside it with its protocol and never ranks. Stage report.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raybust.errors import RequestError
from raybust.files import replace_text
from raybust.report.columns import columns_of
from raybust.report.names import markdown

NAME = "leaderboard"
PAGE = "report.html"
UNITS = {
    "epoch": "epochs",
    "passes/per_image": "forward and backward passes a training image",
    "train/seconds": "seconds of training",
}
"""Metric in which the budget of a trial counts, to its name."""


@dataclass(frozen=True)
class Entry:
    """One trial.

    Attributes:
        trial: its number.
        method: its method.
        state: COMPLETE, PRUNED (stopped early) or FAIL.
        point: searched keys to values.
        value: the optimized metric after the last epoch.
        metrics: all metrics of that epoch, on the validation part.
        history: epoch to value of the optimized metric.
        spent: each of these epochs to what of the budget was spent, in the board's unit.
        feasible: whether it meets the sweep's constraints; None where there are none.
        reason: why it failed, or why as a finalist not all of it could be measured.
        accuracy: clean accuracy on the test set, finalists only.
        examples: of how many of its examples that is, the first ones.
        certified: `certified/*` on the test set, finalists only.
        attacked: `attacked/*` on the test set, finalists only.
        log: the finalist's certificates.
    """

    trial: int
    method: str
    state: str
    point: dict[str, Any]
    value: float | None
    metrics: dict[str, float]
    history: dict[int, float] = field(default_factory=dict)
    spent: dict[int, float] = field(default_factory=dict)
    feasible: bool | None = None
    reason: str | None = None
    accuracy: float | None = None
    examples: int | None = None
    certified: dict[str, float] | None = None
    attacked: dict[str, float] | None = None
    log: Path | None = None

    @property
    def final(self) -> bool:
        """Whether all was measured on the test set that was to be."""
        return self.accuracy is not None and self.reason is None

    @property
    def passes(self) -> float:
        """Images that went through the network in training, forward and backward."""
        return self.metrics.get("passes/forward", 0.0) + self.metrics.get("passes/backward", 0.0)

    @property
    def seconds(self) -> float:
        """Seconds of training and validation."""
        keys = ("train/seconds", "validation/seconds")
        return sum(self.metrics.get(key, 0.0) for key in keys)


@dataclass(frozen=True)
class Leaderboard:
    """A sweep, done or on its way.

    Attributes:
        sweep: its name.
        metric: the optimized metric, which early stopping and the ranks go by.
        mode: "max" or "min".
        entries: trials that trained to their end, best first; those that meet the constraints
            before those that do not.
        others: trials that were stopped early or failed, by number.
        folder: the sweep's folder.
        objectives: (metric, "max" or "min") of a sweep of several objectives; else empty.
        constraints: as the user wrote them, for instance "validation/accuracy >= 0.8".
        pareto: numbers of the trials that no other one dominates; empty for one objective.
        importances: searched key to its share of the metric's variance, as far as known.
        budget: what each trial might spend, in words.
        unit: in which that counts, a key of `UNITS`.
        search: how trials were scored, in one line.
        protocol: how the finalists were measured, in one line; "" where there were none.
        curve: picture of the finalists' certified accuracy, or None.
        space: searched keys, each with domain, default and condition, in words.
        running: trials that have not ended.
        environment: name to version of what it ran on.
        command: what runs it again.
    """

    sweep: str
    metric: str
    mode: str
    entries: tuple[Entry, ...]
    others: tuple[Entry, ...]
    folder: Path
    objectives: tuple[tuple[str, str], ...] = ()
    constraints: tuple[str, ...] = ()
    pareto: tuple[int, ...] = ()
    importances: dict[str, float] = field(default_factory=dict)
    budget: str = ""
    unit: str = "epoch"
    search: str = ""
    protocol: str = ""
    curve: Path | None = None
    space: tuple[tuple[str, str, str, str], ...] = ()
    running: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    command: str = ""

    @property
    def best(self) -> Entry | None:
        """The trial that search puts first, or None."""
        return self.entries[0] if self.entries else None

    @property
    def finalists(self) -> tuple[Entry, ...]:
        """The trials that were measured on the test set, in the order of search."""
        return tuple(entry for entry in self.entries if entry.final)

    @property
    def state(self) -> str:
        """How many trials there are in each state, in one sentence."""
        total = len(self.entries) + len(self.others) + self.running
        states = [
            f"{len(self.entries)} trained to the end",
            f"{self.count('PRUNED')} stopped early",
        ]
        states.append(f"{self.count('FAIL')} failed")
        if self.running:
            states.append(f"{self.running} not ended yet")
        return f"{total} trial{'s' * (total != 1)}: {', '.join(states)}."

    @property
    def why_empty(self) -> str:
        """Why no trial is ranked; "" where one is."""
        if self.entries:
            return ""
        reasons = sorted({entry.reason for entry in self.others if entry.reason})
        if reasons:
            return "No trial trained to its end: " + "; ".join(reasons)
        if self.running:
            return "No trial has trained to its end yet; the sweep goes on, or was interrupted."
        if self.others:
            return "No trial trained to its end: all were stopped early."
        return "No trial was begun."

    def count(self, state: str) -> int:
        """Returns the number of trials that did not train to their end in that state."""
        return sum(entry.state == state for entry in self.others)

    def markdown(self) -> str:
        """Returns the table with the protocol under it."""
        columns = columns_of(self)
        heads = ["rank", *(column.head for column in columns)]
        rows = [
            [str(rank), *(column.cell(entry) for column in columns)]
            for rank, entry in enumerate(self.entries, 1)
        ]
        cells = [[markdown(cell) for cell in row] for row in (heads, *rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
        lines = [
            "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
            for row in (cells[0], ["-" * width for width in widths], *cells[1:])
        ]
        notes = [f"{self.state} Ranked by {self.metric} on the validation part."]
        if self.why_empty:
            notes.append(self.why_empty)
        if self.protocol:
            first = next(column.head for column in columns if column.group == "test")
            notes.append(f"Columns from `{first}` on: {self.protocol}")
        return "\n".join([*lines, "", *notes])

    def plain(self) -> dict[str, Any]:
        """Returns the leaderboard as JSON data."""
        listed = {
            key: [_plain(e) | {"point": _point(e.point)} for e in getattr(self, key)]
            for key in ("entries", "others")
        }
        for entry in listed["entries"]:  # below the sweep's folder, which may be moved
            if entry["log"] and Path(entry["log"]).is_relative_to(self.folder):
                entry["log"] = str(Path(entry["log"]).relative_to(self.folder))
        return {**_plain(self), **listed}

    @classmethod
    def read(cls, folder: Path) -> Leaderboard:
        """Reads what `write` left in a sweep's folder.

        Raises:
            RequestError: there is none, or it is not one.
        """
        path = folder / f"{NAME}.json"
        if not path.exists():
            raise RequestError(f"{folder.name}: has no {path.name}; `raybust tune` ends with one")
        try:
            return cls._parse(json.loads(path.read_text()), folder)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RequestError(
                f"{folder.name}: {path.name} cannot be read ({type(error).__name__}: {error});"
                " remove it, and `raybust tune` writes it anew"
            ) from None

    @classmethod
    def _parse(cls, plain: dict[str, Any], folder: Path) -> Leaderboard:
        for key in ("entries", "others"):
            plain[key] = tuple(_entry(entry, folder) for entry in plain[key])
        plain["objectives"] = tuple((metric, mode) for metric, mode in plain["objectives"])
        plain |= {key: tuple(plain[key]) for key in ("constraints", "pareto")}
        plain["space"] = tuple(tuple(row) for row in plain.get("space", ()))
        curve = plain["curve"] and folder / Path(plain["curve"]).name
        return cls(**plain | {"folder": folder, "curve": curve})

    def text(self) -> str:
        """Returns what the command line prints."""
        lines = [self.markdown(), ""]
        if self.curve is not None:
            lines.append(f"certified accuracy  {self.curve}")
        lines.append(f"leaderboard         {self.folder / (NAME + '.md')}")
        lines.append(f"report              {self.folder / PAGE}")
        return "\n".join(lines)

    def write(self) -> list[Path]:
        """Writes the Markdown table and the JSON data into the sweep's folder; returns the
        files."""
        table, plain = self.folder / f"{NAME}.md", self.folder / f"{NAME}.json"
        table.write_text(f"# {self.sweep}\n\n{self.markdown()}\n")
        replace_text(plain, json.dumps(self.plain(), indent=1) + "\n")
        return [table, plain]


def _plain(item: Entry | Leaderboard) -> dict[str, Any]:
    return {key: _json(value) for key, value in vars(item).items()}


def _json(value: Any) -> Any:
    """Returns a value as strict JSON has it: no NaN, no infinity, no path."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _point(point: dict[str, Any]) -> dict[str, Any]:
    """Returns a point as strict JSON has it: an infinite value, such as a norm's p, as text."""
    return {key: str(v) if v in (math.inf, -math.inf) else v for key, v in point.items()}


def _entry(plain: dict[str, Any], folder: Path) -> Entry:
    history = {int(epoch): v for epoch, v in plain["history"].items() if v is not None}
    spent = {int(epoch): amount for epoch, amount in plain.get("spent", {}).items()}
    metrics = {key: value for key, value in plain["metrics"].items() if value is not None}
    point = {key: float(v) if v in ("inf", "-inf") else v for key, v in plain["point"].items()}
    log = plain["log"] and folder / plain["log"]
    return Entry(
        **plain
        | {"history": history, "spent": spent, "metrics": metrics, "point": point, "log": log}
    )
