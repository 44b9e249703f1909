"""The leaderboard of a sweep: search results and publication results in separate columns.

What search saw (validation part, cheap certificate) ranks the trials; what the finalists reached on
the test set stands beside it with its protocol and never ranks. Stage report.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "leaderboard"


@dataclass(frozen=True)
class Entry:
    """One trial that trained to its end.

    Attributes:
        trial: its number.
        method: its method.
        point: searched keys to values.
        value: the optimized metric after the last epoch.
        metrics: all metrics of that epoch.
        accuracy: clean accuracy on the test set, finalists only.
        certified: `certified/*` on the test set, finalists only.
        log: the finalist's certificates.
    """

    trial: int
    method: str
    point: dict[str, Any]
    value: float | None
    metrics: dict[str, float]
    accuracy: float | None = None
    certified: dict[str, float] | None = None
    log: Path | None = None


@dataclass(frozen=True)
class Leaderboard:
    """All entries, best first.

    Attributes:
        sweep: name of the sweep.
        metric: what was optimized.
        entries: best first.
        pruned: trials that were stopped early.
        failed: trials that failed.
        protocol: how the finalists were certified, in one line; "" where none was.
        folder: the sweep's folder.
        curve: picture of the finalists' certified accuracy, or None.
    """

    sweep: str
    metric: str
    entries: tuple[Entry, ...]
    pruned: int
    failed: int
    protocol: str
    folder: Path
    curve: Path | None = None

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
        total = len(self.entries) + self.pruned + self.failed
        notes = [
            f"{total} trials: {len(self.entries)} trained to the end, {self.pruned} stopped early,"
            f" {self.failed} failed. Ranked by {self.metric} on the validation part."
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
        return {
            "sweep": self.sweep,
            "metric": self.metric,
            "protocol": self.protocol,
            "pruned": self.pruned,
            "failed": self.failed,
            "curve": None if self.curve is None else str(self.curve),
            "entries": [
                {**vars(entry), "log": None if entry.log is None else str(entry.log)}
                for entry in self.entries
            ],
        }

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


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
