"""What every benchmark shares: paired timing, and one JSON line a figure."""

from __future__ import annotations

import json
import operator
import statistics
import time
from collections.abc import Callable, Sequence

_GOALS = {"<=": operator.le, ">=": operator.ge}


def figure(name: str, values: Sequence[float], unit: str, goal: str = "") -> None:
    """Prints one figure: the median of its runs, against a goal such as ">= 0.95"."""
    value = statistics.median(values)
    holds = None
    if goal:
        sign, bound = goal.split()
        holds = _GOALS[sign](value, float(bound))
    record = {"name": name, "value": round(value, 4), "unit": unit, "goal": goal, "holds": holds}
    print(json.dumps({**record, "runs": [round(v, 4) for v in values]}), flush=True)


def paired(
    first: Callable[[], object], second: Callable[[], object], runs: int
) -> tuple[list[float], list[float]]:
    """Times two pieces of work in turn, after one warm-up of each; returns seconds of each run."""
    first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(runs):
        order = ((0, first), (1, second)) if run % 2 == 0 else ((1, second), (0, first))
        for which, work in order:
            began = time.perf_counter()
            work()
            times[which].append(time.perf_counter() - began)
    return times
