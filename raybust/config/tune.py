"""The section `tune`: objectives, constraints, sampler, scheduler and size of a sweep.

Objectives and constraints are strings, so that each fits on one line of YAML or on the command
line.
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
    """The search; its space is the `search` block of the same file."""

    trials: int = option(20, "Trials of the sweep, including those finished before a resume.", ge=1)
    metric: str = option(
        "certified_fast/acr",
        "Metric to optimize, which every epoch must report; drives early stopping.",
    )
    mode: Literal["max", "min"] = option("max", "Whether to maximize or minimize it.")
    objectives: tuple[str, ...] = option(
        (),
        "Several objectives, each `max METRIC` or `min METRIC`, for a Pareto front; must include "
        "`metric`, which still drives early stopping and ranking.",
    )
    constraints: tuple[str, ...] = option(
        (),
        "Each `METRIC >= NUMBER` or `METRIC <= NUMBER`, checked in a trial's last epoch; trials "
        "that violate one rank last, and the sampler avoids them.",
    )
    sampler: Literal["auto", "tpe", "gp", "cmaes", "nsga2", "qmc", "random", "grid"] = option(
        "auto",
        "Optuna sampler; auto is gp for one method and one objective in at most 300 trials, else "
        "tpe, which is multivariate, grouped, with constant liar.",
    )
    startup: int = option(10, "Random trials before tpe, gp or cmaes starts modeling.", ge=0)
    population: int | None = option(
        None, "Trials per generation; default: 50 for nsga2, by dimension for cmaes.", ge=2
    )
    storage: str | None = option(
        None,
        "Optuna storage: a database URL, or `journal:FILE`; default: the SQLite file study.db in "
        "the sweep's folder.",
    )
    scheduler: Literal["asha", "hyperband", "median", "none"] = option(
        "asha", "Early stopping; hyperband is asynchronous, with three brackets."
    )
    grace: float = option(
        0.1,
        "Fraction of the budget (train.epochs, passes or seconds) that every trial gets.",
        gt=0,
        le=1,
    )
    reduction: float = option(3.0, "asha promotes the best 1/reduction of each rung.", gt=1)
    concurrent: int | None = option(
        None, "Concurrent trials; default: as many as fit on the cluster.", ge=1
    )
    finalists: int = option(
        2,
        "Best trials to certify with `certify` and attack with `evaluate` on the test set; with "
        "several objectives, this many spread over the Pareto set, then the best trial of each "
        "method not in it.",
        ge=0,
    )
    keep: int = option(
        10,
        "Best trials whose weights stay on disk and go to MLflow; the finalists' always stay. Of "
        "the other trials, metrics, manifest and journal stay, and a file to train them again.",
        ge=0,
    )
    seeds: int = option(
        1,
        "Seeds of a configuration at most. Each starts with one; the leaders get further ones while"
        " no other beats them, and the sampler, the ranks and the finalists go by the means.",
        ge=1,
    )
    race_level: float = option(
        0.05,
        "Level of the t test on equal seeds that leaves a configuration behind in that race.",
        gt=0,
        lt=0.5,
    )
    points: tuple[dict[str, Any], ...] = option(
        (), "Points to try after the defaults, each a mapping from searched keys to values."
    )
    finish_first: bool = option(
        False,
        "Whether to train each searched method's defaults and `points` to the end, regardless of "
        "the scheduler, so that all of them are compared at the full budget.",
    )
    warm_start: str | None = option(
        None, "Earlier sweep of the same metric whose trials the sampler learns from."
    )

    def directions(self) -> dict[str, str]:
        """Returns the optimized metrics, `metric` first, mapped to "max" or "min"."""
        pairs = (text.split() for text in self.objectives)
        return {self.metric: self.mode} | {metric: mode for mode, metric in pairs}

    def bounds(self) -> list[tuple[str, str, float]]:
        """Returns (metric, ">=" or "<=", number) for each constraint."""
        return [bound for text in self.constraints if (bound := _parse_constraint(text))]

    def asked(self) -> list[tuple[str, str]]:
        """Returns (field, metric) for each metric that the sweep uses, `metric` first."""
        found = [("metric", self.metric)]
        found += [("objectives", key) for key in self.directions() if key != self.metric]
        return found + [("constraints", key) for key, _, _ in self.bounds()]

    def problems(self) -> list[str]:
        """Adds checks across fields."""
        found = super().problems()
        for text in self.objectives:
            if not re.fullmatch(r"\s*(max|min)\s+\S+\s*", text):
                found.append(f"objectives: got {text!r}, expected `max METRIC` or `min METRIC`")
        for text in self.constraints:
            if _parse_constraint(text) is None:
                found.append(
                    f"constraints: got {text!r}, expected `METRIC >= NUMBER` or `METRIC <= NUMBER`"
                    " with a finite NUMBER"
                )
        if found:
            return found
        found += self._objective_problems() + self._contradictions()
        several = len(self.directions()) > 1
        if several and self.sampler == "cmaes":
            found.append("sampler: cmaes supports one objective; choose tpe, gp or nsga2")
        if self.seeds > 1 and self.sampler in ("cmaes", "nsga2"):
            found.append(
                f"seeds: {self.sampler} cannot learn from means over seeds; got {self.seeds},"
                " expected 1, or choose tpe, gp, qmc, random or grid"
            )
        if self.constraints and self.sampler == "cmaes":
            found.append("sampler: cmaes supports no constraints; choose tpe, gp or nsga2")
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
                " (tune.mode and tune.metric) among them, which early stopping needs"
            )
        return found

    def _contradictions(self) -> list[str]:
        """Returns the problems of bounds that no value of a metric satisfies."""
        bounds, found = self.bounds(), []
        for metric in dict.fromkeys(metric for metric, _, _ in bounds):
            least, most = limits(metric)
            low = max([least, *(n for key, sign, n in bounds if (key, sign) == (metric, ">="))])
            high = min([most, *(n for key, sign, n in bounds if (key, sign) == (metric, "<="))])
            if low > high:
                texts = zip(self.constraints, bounds, strict=True)
                given = " and ".join(repr(text) for text, (key, _, _) in texts if key == metric)
                within = f" in [{least:g}, {most:g}]" * math.isfinite(least)
                found.append(
                    f"constraints: got {given}, which no value satisfies; expected a nonempty"
                    f" range{within}"
                )
        return found


def _parse_constraint(text: str) -> tuple[str, str, float] | None:
    """Returns a constraint's metric, sign and number, or None if it is malformed."""
    match = re.fullmatch(r"\s*(\S+)\s+(>=|<=)\s+(\S+)\s*", text)
    if match is None:
        return None
    try:
        number = float(match[3])
    except ValueError:
        return None
    return (match[1], match[2], number) if math.isfinite(number) else None
