"""One trial of a sweep, as recorded by the study and shown on the leaderboard.

The study fills in what the search measured on the validation part; finalists also have results on
the test set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

Point = dict[str, Any]
"""Searched keys to values."""

FINISHED = ("COMPLETE", "PRUNED", "FAIL")
"""States of a trial that has ended."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Attributes:
        number: its number in the sweep, from 0.
        method: key of its method.
        state: COMPLETE, PRUNED (stopped early), FAIL or RUNNING.
        point: searched keys to values.
        value: the optimized metric after the last epoch, or None; the mean over the seeds.
        metrics: all metrics of that epoch, on the validation part; likewise means, but passes and
            seconds add up over the seeds.
        history: epoch to value of the optimized metric, of the first seed.
        spent: epoch to the budget spent so far, in its unit, of the first seed.
        feasible: whether the metrics meet the constraints; None without constraints or metrics.
        reason: why the trial failed, or why a finalist was not fully measured.
        accuracy: clean accuracy on the test set, finalists only.
        examples: number of (the first) test examples behind `accuracy`.
        certified: `certified/*` on the test set, finalists only.
        attacked: `attacked/*` on the test set, finalists only.
        log: the finalist's certificates, of its first seed.
        values: the optimized metric, then the other objectives, of each seed.
        seeds: index of each of these seeds, from 0.
        failed: why further seeds failed, a sentence each.
        in_race: whether no other trial beats it (`raybust.search.race`); None for a trial that
            takes no part: without a race, infeasible, or with a seed that failed.
        by_seed: `accuracy`, `certified` and `attacked` of each seed, if a finalist has several;
            the attributes of these names are their means.
    """

    number: int
    method: str
    state: str
    point: Point
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
    values: tuple[tuple[float, ...], ...] = ()
    seeds: tuple[int, ...] = (0,)
    failed: tuple[str, ...] = ()
    in_race: bool | None = None
    by_seed: tuple[dict[str, Any], ...] = ()

    @property
    def first_seed(self) -> TrialRecord:
        """The record with the test results of its first seed, whose network is the one to use."""
        return replace(self, **self.by_seed[0], by_seed=()) if self.by_seed else self

    @property
    def epoch(self) -> int:
        """The last reported epoch, 0 for none."""
        return max(self.history, default=0)

    @property
    def final(self) -> bool:
        """Whether every requested measurement on the test set succeeded."""
        return self.accuracy is not None and self.reason is None

    @property
    def passes(self) -> float:
        """Images passed through the network in training, forward plus backward."""
        return self.metrics.get("passes/forward", 0.0) + self.metrics.get("passes/backward", 0.0)

    @property
    def seconds(self) -> float:
        """Seconds of training and validation."""
        keys = ("train/seconds", "validation/seconds")
        return sum(self.metrics.get(key, 0.0) for key in keys)


def ranked(records: Iterable[TrialRecord], mode: str) -> list[TrialRecord]:
    """Returns the trials that trained to the end, best first; feasible ones before others, then
    those in the race before those that it left behind.

    Args:
        records: trials in any state.
        mode: "max" or "min", of their value.
    """
    sign = -1 if mode == "max" else 1
    complete = [record for record in records if record.state == "COMPLETE"]
    return sorted(
        complete,
        key=lambda r: (
            r.feasible is False,
            bool(r.failed),
            r.in_race is False,
            sign * (r.value or 0.0),
            r.number,
        ),
    )


def front(records: Sequence[TrialRecord], directions: Mapping[str, str]) -> list[TrialRecord]:
    """Returns the trials that no other one dominates.

    Args:
        records: trials with all metrics.
        directions: metric to "max" or "min".
    """
    signs = {key: 1 if mode == "max" else -1 for key, mode in directions.items()}
    values = [[sign * record.metrics[key] for key, sign in signs.items()] for record in records]
    return [
        record
        for record, mine in zip(records, values, strict=True)
        if not any(_dominates(other, mine) for other in values)
    ]


def _dominates(left: list[float], right: list[float]) -> bool:
    return all(a >= b for a, b in zip(left, right, strict=True)) and left != right
