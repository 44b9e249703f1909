"""The section `tune`: what a sweep optimizes, under which constraints, by which sampler and
scheduler, and how much of it there is.

Objectives and constraints are texts, so that one line of YAML or of the command line says them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from raybust.config.measured import limits
from raybust.config.options import Section, option


@dataclass(frozen=True, kw_only=True)
class Tune(Section):
    """The search. Its space is the block `search` of the same file."""

    trials: int = option(
        20, "Trials of the sweep, the finished ones of an earlier start included.", ge=1
    )
    metric: str = option(
        "certified_fast/acr",
        "What is optimized, a metric that every epoch reports; early stopping goes by it.",
    )
    mode: Literal["max", "min"] = option("max", "Whether more of it is better.")
    objectives: tuple[str, ...] = option(
        (),
        "Several objectives, each `max METRIC` or `min METRIC`, for a Pareto front; `metric`, one "
        "of them, still drives early stopping and the ranks.",
    )
    constraints: tuple[str, ...] = option(
        (),
        "Each `METRIC >= NUMBER` or `METRIC <= NUMBER`, of a trial's last epoch; trials that break "
        "one rank below all others, and the sampler avoids them.",
    )
    sampler: Literal["tpe", "gp", "cmaes", "nsga2", "qmc", "random", "grid"] = option(
        "tpe", "Optuna's sampler; tpe is multivariate, in groups, with constant liar."
    )
    startup: int = option(10, "Random trials before tpe, gp or cmaes model anything.", ge=0)
    population: int | None = option(
        None, "Trials of a generation of nsga2 (50) and cmaes (by the dimensions).", ge=2
    )
    storage: str | None = option(
        None,
        "Optuna storage: a database URL, or `journal:FILE`; the SQLite file study.db in the "
        "sweep's folder if not given.",
    )
    scheduler: Literal["asha", "hyperband", "median", "none"] = option(
        "asha", "Early stopping; hyperband is the asynchronous one, of three brackets."
    )
    grace: float = option(
        0.1,
        "Share of the budget (train.epochs, passes or seconds) that every trial has.",
        gt=0,
        le=1,
    )
    reduction: float = option(3.0, "asha goes on with the best 1/reduction of a rung.", gt=1)
    concurrent: int | None = option(
        None, "Trials at a time; as many as the cluster has room for if not given.", ge=1
    )
    finalists: int = option(
        2,
        "Best trials that are certified by `certify` and attacked by `evaluate` on the test set; "
        "of several objectives, so many of the Pareto set, spread over it, then the best of the "
        "methods that are not in it.",
        ge=0,
    )
    points: tuple[dict[str, Any], ...] = option(
        (), "Points tried after the defaults, each a map from searched key to value."
    )
    finish_first: bool = option(
        False,
        "Whether the defaults, of each method that is searched, and `points` are trained to the "
        "end, whatever the scheduler says, so that all of them are compared at the full budget.",
    )
    warm_start: str | None = option(
        None, "Earlier sweep whose trials the sampler learns from; of the same metric."
    )

    def directions(self) -> dict[str, str]:
        """Returns the optimized metrics, `metric` first, each with "max" or "min"."""
        pairs = (text.split() for text in self.objectives)
        return {self.metric: self.mode} | {metric: mode for mode, metric in pairs}

    def bounds(self) -> list[tuple[str, str, float]]:
        """Returns (metric, ">=" or "<=", number) of each constraint."""
        return [bound for text in self.constraints if (bound := _bound(text)) is not None]

    def asked(self) -> list[tuple[str, str]]:
        """Returns (field, metric) of all that the sweep goes by, `metric` first."""
        found = [("metric", self.metric)]
        found += [("objectives", key) for key in self.directions() if key != self.metric]
        return found + [("constraints", key) for key, _, _ in self.bounds()]

    def problems(self) -> list[str]:
        """Rules across fields, beside the fields' own."""
        found = super().problems()
        for text in self.objectives:
            if not re.fullmatch(r"\s*(max|min)\s+\S+\s*", text):
                found.append(f"objectives: got {text!r}, expected `max METRIC` or `min METRIC`")
        for text in self.constraints:
            if _bound(text) is None:
                found.append(
                    f"constraints: got {text!r}, expected `METRIC >= NUMBER` or `METRIC <= NUMBER`,"
                    " the number finite"
                )
        if found:
            return found
        found += self._objective_problems() + self._empty()
        several = len(self.directions()) > 1
        if several and self.sampler == "cmaes":
            found.append("sampler: cmaes takes one objective; choose tpe, gp or nsga2")
        if self.constraints and self.sampler == "cmaes":
            found.append("sampler: cmaes knows no constraints; choose tpe, gp or nsga2")
        return found

    def _objective_problems(self) -> list[str]:
        pairs = [text.split() for text in self.objectives]
        metrics = [metric for _, metric in pairs]
        found = [
            f"objectives: got {metric} {count} times, expected each metric once"
            for metric in dict.fromkeys(metrics)
            if (count := metrics.count(metric)) > 1
        ]
        if pairs and [self.mode, self.metric] not in pairs:
            found.append(
                f"objectives: got {list(self.objectives)}, expected '{self.mode} {self.metric}'"
                " (tune.mode and tune.metric) among them, because early stopping needs it"
            )
        return found

    def _empty(self) -> list[str]:
        """Returns what is wrong with bounds that leave a metric no value."""
        bounds, found = self.bounds(), []
        for metric in dict.fromkeys(metric for metric, _, _ in bounds):
            least, most = limits(metric)
            low = max([least, *(n for key, sign, n in bounds if (key, sign) == (metric, ">="))])
            high = min([most, *(n for key, sign, n in bounds if (key, sign) == (metric, "<="))])
            if low > high:
                texts = zip(self.constraints, bounds, strict=True)
                given = " and ".join(repr(text) for text, (key, _, _) in texts if key == metric)
                within = f", for {metric} in [{least:g}, {most:g}]" * math.isfinite(least)
                found.append(
                    f"constraints: got {given}, which no value meets; expected bounds with room"
                    f" between them{within}"
                )
        return found


def _bound(text: str) -> tuple[str, str, float] | None:
    """Returns metric, sign and number of a constraint, None where it is not one."""
    match = re.fullmatch(r"\s*(\S+)\s+(>=|<=)\s+(\S+)\s*", text)
    if match is None:
        return None
    try:
        number = float(match[3])
    except ValueError:
        return None
    return (match[1], match[2], number) if math.isfinite(number) else None
