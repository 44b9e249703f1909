"""Checks that trials report the metrics a sweep optimizes, and that sweeps measured them alike.

Rejects metrics that nothing logs, that are never measured, or measured too rarely for early
stopping, and finalists that would not be measured on the test set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from raybust import config as configuration
from raybust import methods
from raybust.config import Config
from raybust.config.measured import CHEAP, SECTIONS, measured
from raybust.disk.runs import SCORING, belongs
from raybust.errors import RequestError, unknown
from raybust.search.space import Space

_NOT_OF_VALUES = (
    "certified_fast.every", "certified_fast.radii", "certified_fast.moment", "attacked_fast.every",
    "certified_linf_fast.every", "certified_linf_fast.eps",
)  # fmt: skip
"""Settings of these sections on which no value of another metric depends."""

_LATEST = 0.5
"""Share of the budget by which a scheduler must have seen its metric: stopping a trial later saves
less than half (our choice)."""


def check_goals(config: Config, space: Space) -> None:
    """Checks a sweep's metrics, early stopping and finalists against what its trials measure.

    Args:
        config: the sweep's own configuration.
        space: what is searched.

    Raises:
        RequestError: with every problem and the setting that fixes it.
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
    """Reports metrics whose section is neither the training loop's nor a candidate method's."""
    keys = _methods(config, space)
    known = measured(config.certified_fast, config.attacked_fast, config.certified_linf_fast)
    return [
        f"tune.{field}: {text}"
        for field, metric in config.tune.asked()
        if metric.partition("/")[0] not in (*SECTIONS, *keys)
        for text in unknown("metric", metric, [*known, *(f"{key}/*" for key in keys)]).problems
    ]


def _methods(config: Config, space: Space) -> set[str]:
    """Returns the keys of all methods that a trial may use, including base methods."""
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
        if section in CHEAP and not getattr(config, section).every:
            found.append(
                f"{section}.every: got 0, which never measures {metric}, but the sweep needs it;"
                f" set {section}.every=0.05, a twentieth of the budget"
            )
    return found


def _too_late(config: Config, space: Space) -> list[str]:
    """Reports early stopping that first sees its metric after most of the budget is spent."""
    part, (unit, epochs) = config.tune, config.train.budget
    section = part.metric.partition("/")[0]
    if part.scheduler == "none" or section not in CHEAP:
        return []
    every = share = getattr(config, section).every
    if every == 1 or (every > 1 and unit != "epoch"):  # every epoch, or unknown number of epochs
        return []
    if every > 1:
        searched = [v for d in space.domains if d.key == "train.epochs" for v in d.values]
        share = every / max(searched, default=epochs)
    latest = max(part.grace, _LATEST)
    if share <= latest:
        return []
    return [
        f"{section}.every: got {every:g}, so early stopping by {part.scheduler} first sees"
        f" {part.metric} after {100 * share:.0f} % of the budget, expected at most"
        f" {100 * latest:.0f} %; set {section}.every=0.05, or tune.scheduler=none"
    ]


def _not_of_the_test_set(config: Config) -> list[str]:
    if not config.tune.finalists:
        return []
    return [
        f"{key}.split: got '{split}', but finalists are measured on the test set; omit it, or set"
        f" tune.finalists=0 and then run `raybust {key} SWEEP/NUMBER {key}.split={split}`"
        for key in ("certify", "evaluate")
        if (split := getattr(config, key).split) != "test"
    ]


def scoring_difference(
    old: dict[str, Any], new: dict[str, Any], metrics: Sequence[str]
) -> list[str]:
    """Returns the settings under which two sweeps measured metrics differently, "key: old -> new".

    Args:
        old: configuration, as plain data.
        new: likewise.
        metrics: their names.
    """
    sections = {metric.partition("/")[0] for metric in metrics}
    keys: list[str] = [name for name in CHEAP if name in sections]
    keys += SCORING if "certified_fast" in sections else ()
    return [
        text
        for text in configuration.difference(old, new)
        if belongs(key := text.partition(":")[0], tuple(keys)) and key not in _NOT_OF_VALUES
    ]
