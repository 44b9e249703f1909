"""The leaderboard of a sweep: search results and publication results in separate columns.

What search saw (validation part, cheap certificate) ranks the trials; what the finalists reached on
the test set stands beside it with its protocol and never ranks. Stage report.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raybust.errors import RequestError

NAME = "leaderboard"


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
        feasible: whether it meets the sweep's constraints; None where there are none.
        reason: why it failed.
        accuracy: clean accuracy on the test set, finalists only.
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
    feasible: bool | None = None
    reason: str | None = None
    accuracy: float | None = None
    certified: dict[str, float] | None = None
    attacked: dict[str, float] | None = None
    log: Path | None = None

    @property
    def final(self) -> bool:
        """Whether it was measured on the test set."""
        return self.accuracy is not None

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
    """A sweep that is done.

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
        search: how trials were scored, in one line.
        protocol: how the finalists were measured, in one line; "" where there were none.
        curve: picture of the finalists' certified accuracy, or None.
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
    search: str = ""
    protocol: str = ""
    curve: Path | None = None

    def count(self, state: str) -> int:
        """Returns the number of trials that did not train to their end in that state."""
        return sum(entry.state == state for entry in self.others)

    def markdown(self) -> str:
        """Returns the table with the protocol under it."""
        radii = sorted(
            {
                float(key.rpartition("/")[2])
                for entry in self.entries
                for key in entry.certified or {}
                if key.startswith("certified/accuracy_at/")
            }
        )
        heads = ["rank", "trial", "method", "settings", "val. accuracy", self.metric,
                 "test accuracy", "ACR", *(f"cert. at {radius:g}" for radius in radii)]  # fmt: skip
        rows = [self._row(rank, entry, radii) for rank, entry in enumerate(self.entries, 1)]
        widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
        lines = [
            "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
            for row in (heads, ["-" * width for width in widths], *rows)
        ]
        total, pruned = len(self.entries) + len(self.others), self.count("PRUNED")
        notes = [
            f"{total} trials: {len(self.entries)} trained to the end, {pruned} stopped early,"
            f" {self.count('FAIL')} failed. Ranked by {self.metric} on the validation part."
        ]
        if self.protocol:
            notes.append(f"Columns from `test accuracy` on: {self.protocol}")
        return "\n".join([*lines, "", *notes])

    def _row(self, rank: int, entry: Entry, radii: list[float]) -> list[str]:
        settings = ", ".join(
            f"{key.rpartition('.')[2]}={_short(value)}"
            for key, value in entry.point.items()
            if key != "method.name"
        )
        certified = entry.certified or {}
        numbers = [
            entry.metrics.get("validation/accuracy"),
            entry.value,
            entry.accuracy,
            certified.get("certified/acr"),
            *(certified.get(f"certified/accuracy_at/{radius:g}") for radius in radii),
        ]
        cells = ["" if number is None else f"{number:.4f}" for number in numbers]
        return [str(rank), str(entry.trial), entry.method, settings, *cells]

    def plain(self) -> dict[str, Any]:
        """Returns the leaderboard as JSON data."""
        listed = {key: [_plain(e) for e in getattr(self, key)] for key in ("entries", "others")}
        return {**_plain(self), **listed}

    @classmethod
    def read(cls, folder: Path) -> Leaderboard:
        """Reads what `write` left in a sweep's folder.

        Raises:
            RequestError: there is none.
        """
        path = folder / f"{NAME}.json"
        if not path.exists():
            raise RequestError(f"{folder.name}: has no {path.name}; `raybust tune` ends with one")
        plain = json.loads(path.read_text())
        for key in ("entries", "others"):
            plain[key] = tuple(_entry(entry) for entry in plain[key])
        plain["objectives"] = tuple((metric, mode) for metric, mode in plain["objectives"])
        plain |= {key: tuple(plain[key]) for key in ("constraints", "pareto")}
        curve = plain["curve"] and folder / Path(plain["curve"]).name
        return cls(**plain | {"folder": folder, "curve": curve})

    def text(self) -> str:
        """Returns what the command line prints."""
        lines = [self.markdown(), ""]
        if self.curve is not None:
            lines.append(f"certified accuracy  {self.curve}")
        lines.append(f"leaderboard         {self.folder / (NAME + '.md')}")
        lines.append("browse it           raybust ui")
        return "\n".join(lines)

    def write(self) -> list[Path]:
        """Writes the Markdown table and the JSON data into the sweep's folder; returns the
        files."""
        table, plain = self.folder / f"{NAME}.md", self.folder / f"{NAME}.json"
        table.write_text(f"# {self.sweep}\n\n{self.markdown()}\n")
        plain.write_text(json.dumps(self.plain(), indent=1) + "\n")
        return [table, plain]


def _plain(item: Entry | Leaderboard) -> dict[str, Any]:
    return {key: str(v) if isinstance(v, Path) else v for key, v in vars(item).items()}


def _entry(plain: dict[str, Any]) -> Entry:
    history = {int(epoch): value for epoch, value in plain["history"].items()}
    log = plain["log"] and Path(plain["log"])
    return Entry(**plain | {"history": history, "log": log})


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
