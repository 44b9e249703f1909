"""What a sweep goes by, held against what its trials measure, before anything starts.

Metrics that nobody logs, that are never measured, or so seldom that early stopping judges nothing;
finalists that would not be of the test set. Stage tune.
"""

from __future__ import annotations

import re

from raybust import methods
from raybust.config import Config
from raybust.config.measured import SECTIONS, measured
from raybust.errors import RequestError, unknown
from raybust.search.space import Space

_CHEAP = ("certified_fast", "attacked_fast")
"""Sections of what is measured now and then; validation is after every epoch."""

_LATEST = 0.5
"""Share of the budget by which a scheduler must have seen its metric: a trial that is stopped later
saves less than half (our choice)."""


def check_goals(config: Config, space: Space) -> None:
    """Refuses a sweep whose metrics, early stopping or finalists its trials cannot serve.

    Args:
        config: the sweep's own configuration.
        space: what is searched.

    Raises:
        RequestError: what is wrong, and what to set.
    """
    found = [
        *_unknown(config, space),
        *_never(config),
        *_too_late(config, space),
        *_not_of_the_test_set(config),
    ]
    if found:
        raise RequestError(*found)


def _unknown(config: Config, space: Space) -> list[str]:
    """Returns the metrics of sections that are neither the loop's nor a method's in question."""
    keys = _methods(config, space)
    known = measured(config.certified_fast, config.attacked_fast)
    return [
        f"tune.{field}: {text}"
        for field, metric in config.tune.asked()
        if metric.partition("/")[0] not in (*SECTIONS, *keys)
        for text in unknown("metric", metric, [*known, *(f"{key}/*" for key in keys)]).problems
    ]


def _methods(config: Config, space: Space) -> set[str]:
    """Returns the keys of the methods that a trial may train with, bases included."""
    named = [d for d in space.domains if re.fullmatch(r"method(\.base)*\.name", d.key)]
    queue = [config.method, *(methods.get(name)() for d in named for name in d.values)]
    found = set()
    while queue:
        method = queue.pop()
        found.add(method.key)
        queue += [method.base] if hasattr(method, "base") else []
    return found


def _never(config: Config) -> list[str]:
    found = []
    for metric in dict.fromkeys(metric for _, metric in config.tune.asked()):
        section = metric.partition("/")[0]
        if section in _CHEAP and not getattr(config, section).every:
            found.append(
                f"{section}.every: got 0, which never measures {metric}, that the sweep needs;"
                f" set {section}.every=0.05, a twentieth of the budget"
            )
    return found


def _too_late(config: Config, space: Space) -> list[str]:
    """Returns what is wrong where early stopping sees its metric for the first time when most of
    the budget is spent."""
    part, (unit, epochs) = config.tune, config.train.budget
    section = part.metric.partition("/")[0]
    if part.scheduler == "none" or section not in _CHEAP:
        return []
    every = share = getattr(config, section).every
    if every == 1 or (every > 1 and unit != "epoch"):  # each epoch, or how many there are is open
        return []
    if every > 1:
        searched = [v for d in space.domains if d.key == "train.epochs" for v in d.values]
        share = every / max(searched, default=epochs)
    latest = max(part.grace, _LATEST)
    if share <= latest:
        return []
    return [
        f"{section}.every: got {every:g}, with which early stopping by {part.scheduler} first sees"
        f" {part.metric} after {100 * share:.0f} % of the budget, expected at most {latest:g} of"
        f" it; set {section}.every=0.05, or tune.scheduler=none"
    ]


def _not_of_the_test_set(config: Config) -> list[str]:
    if not config.tune.finalists:
        return []
    return [
        f"{key}.split: got '{split}', but finalists are measured on the test set; leave it, or set"
        f" tune.finalists=0 and afterwards `raybust {key} SWEEP/NUMBER {key}.split={split}`"
        for key in ("certify", "evaluate")
        if (split := getattr(config, key).split) != "test"
    ]
