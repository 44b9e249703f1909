"""The leaderboard of a sweep as data: ranked trials, with search and test results kept apart.

Trials are ranked by their search results (validation part, cheap fidelity). Finalists also have
test results, with their protocol, which never affect the ranks.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raybust.disk.files import digest_of, strict
from raybust.errors import RequestError
from raybust.search.records import TrialRecord

NAME = "leaderboard"
UNITS = {
    "epoch": "epochs",
    "passes/per_image": "forward and backward passes per training image",
    "train/seconds": "seconds of training",
}
"""Metric that a trial's budget limits, to its display name."""


@dataclass(frozen=True)
class Leaderboard:
    """A sweep, finished or not.

    Attributes:
        sweep: its name.
        metric: the optimized metric, which decides early stopping and ranks.
        mode: "max" or "min".
        entries: trials that trained to the end, best first; feasible ones before infeasible ones.
        others: trials that were stopped early or failed, by number.
        folder: the sweep's folder.
        objectives: (metric, "max" or "min") of a multi-objective sweep; else empty.
        constraints: as the user wrote them, for instance "validation/accuracy >= 0.8".
        pareto: numbers of the trials that no other dominates; empty for one objective.
        importances: searched key to its share of the metric's variance, if known.
        dataset: its name, size of images, number of classes, in words.
        network: its name, or the names of those that are searched.
        budget: of each trial, in words.
        unit: of the budget, a key of `UNITS`.
        search: how trials were scored, in one line.
        protocol: how the finalists were measured, in one line; "" without finalists.
        space: searched keys, each with domain, default and condition, in words.
        running: number of unfinished trials.
        environment: name to version of the software it ran on.
        command: reruns the sweep.
        notes: sentences about finalists whose results are no longer current.
    """

    sweep: str
    metric: str
    mode: str
    entries: tuple[TrialRecord, ...]
    others: tuple[TrialRecord, ...]
    folder: Path
    objectives: tuple[tuple[str, str], ...] = ()
    constraints: tuple[str, ...] = ()
    pareto: tuple[int, ...] = ()
    importances: dict[str, float] = field(default_factory=dict)
    dataset: str = ""
    network: str = ""
    budget: str = ""
    unit: str = "epoch"
    search: str = ""
    protocol: str = ""
    space: tuple[tuple[str, str, str, str], ...] = ()
    running: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    command: str = ""
    notes: tuple[str, ...] = ()

    def _repr_markdown_(self) -> str:
        """Shows the table that the sweep wrote, in a notebook."""
        path = self.folder / f"{NAME}.md"
        return path.read_text() if path.exists() else f"{self.sweep}: no trial has finished"

    @property
    def best(self) -> TrialRecord | None:
        """The trial that the search ranks first, or None."""
        return self.entries[0] if self.entries else None

    @property
    def winner(self) -> TrialRecord | None:
        """The finalist to use: the first that meets the constraints, or None."""
        return next((entry for entry in self.finalists if entry.feasible is not False), None)

    @property
    def finalists(self) -> tuple[TrialRecord, ...]:
        """The trials that were measured on the test set, in the order of the search."""
        return tuple(entry for entry in self.entries if entry.final)

    @property
    def state(self) -> str:
        """The number of trials in each state, in one sentence."""
        total = len(self.entries) + len(self.others) + self.running
        states = [
            f"{len(self.entries)} trained to the end",
            f"{self.count('PRUNED')} stopped early",
        ]
        states.append(f"{self.count('FAIL')} failed")
        if self.running:
            states.append(f"{self.running} unfinished")
        return f"{total} trial{'s' * (total != 1)}: {', '.join(states)}."

    @property
    def why_empty(self) -> str:
        """Why no trial is ranked; "" if one is."""
        if self.entries:
            return ""
        reasons = sorted({entry.reason for entry in self.others if entry.reason})
        if reasons:
            return "No trial trained to the end: " + "; ".join(reasons)
        if self.running:
            return "No trial has trained to the end yet; the sweep is running or was interrupted."
        if self.others:
            return "No trial trained to the end: all were stopped early."
        return "No trial was started."

    def count(self, state: str) -> int:
        """Returns the number of `others` in a state."""
        return sum(entry.state == state for entry in self.others)

    def plain(self) -> dict[str, Any]:
        """Returns the leaderboard as JSON data."""
        listed = {
            key: [_record(record) for record in getattr(self, key)] for key in ("entries", "others")
        }
        for entry in listed["entries"]:  # relative to the sweep's folder, which may be moved
            if entry["log"] and Path(entry["log"]).is_relative_to(self.folder):
                entry["log"] = str(Path(entry["log"]).relative_to(self.folder))
        return {**_plain(self), **listed, "digest": digest_of(listed["entries"])}

    @classmethod
    def read(cls, folder: Path) -> Leaderboard:
        """Reads the leaderboard in a sweep's folder.

        Raises:
            RequestError: it does not exist or is invalid.
        """
        path = folder / f"{NAME}.json"
        if not path.exists():
            raise RequestError(f"{folder.name}: has no {path.name}; `raybust tune` writes it")
        try:
            return cls._parse(json.loads(path.read_text()), folder)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RequestError(
                f"{folder.name}: {path.name} cannot be read ({type(error).__name__}: {error});"
                " delete it and rerun `raybust tune` to write it again"
            ) from None

    @classmethod
    def _parse(cls, plain: dict[str, Any], folder: Path) -> Leaderboard:
        if plain.pop("digest", None) not in (None, digest_of(plain["entries"])):
            raise ValueError("its entries were changed after they were written")
        for key in ("entries", "others"):
            plain[key] = tuple(_parsed(entry, folder) for entry in plain[key])
        plain["objectives"] = tuple((metric, mode) for metric, mode in plain["objectives"])
        plain |= {key: tuple(plain[key]) for key in ("constraints", "pareto")}
        plain["space"] = tuple(tuple(row) for row in plain.get("space", ()))
        plain.pop("curve", None)  # raybust 0.1 wrote it
        plain.pop("notes", None)  # of the time of writing
        return cls(**plain | {"folder": folder})


def _record(record: TrialRecord) -> dict[str, Any]:
    plain = _plain(record) | {"point": _point(record.point)}
    return {"trial": plain.pop("number"), **plain}


def _plain(item: TrialRecord | Leaderboard) -> dict[str, Any]:
    return {key: strict(value) for key, value in vars(item).items()}


def _point(point: dict[str, Any]) -> dict[str, Any]:
    """Converts a point to strict JSON: infinite values, such as a norm's p, become text."""
    return {key: str(v) if v in (math.inf, -math.inf) else v for key, v in point.items()}


def _parsed(plain: dict[str, Any], folder: Path) -> TrialRecord:
    history = {int(epoch): v for epoch, v in plain["history"].items() if v is not None}
    spent = {int(epoch): amount for epoch, amount in plain.get("spent", {}).items()}
    metrics = {key: value for key, value in plain["metrics"].items() if value is not None}
    point = {key: float(v) if v in ("inf", "-inf") else v for key, v in plain["point"].items()}
    log = plain["log"] and folder / plain["log"]
    plain["number"] = plain.pop("trial")
    plain["failed"] = tuple(plain.get("failed", ()))
    plain["values"] = tuple(map(tuple, plain.get("values", ())))
    plain |= {"seeds": tuple(plain.get("seeds", (0,))), "by_seed": tuple(plain.get("by_seed", ()))}
    return TrialRecord(
        **plain
        | {"history": history, "spent": spent, "metrics": metrics, "point": point, "log": log}
    )
