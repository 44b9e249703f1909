"""The metrics that a sweep may optimize or constrain: their names and value ranges.

This module covers the training loop's metrics; `raybust.search.goals` covers those of methods,
which are named by the method's key (`geodesic/distance`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from raybust.config.assess import FastAttack, FastBounds, FastCertify

SECTIONS = (
    "train", "validation", "passes", "certified_fast", "certified_linf_fast", "attacked_fast",
)  # fmt: skip
"""First components of the training loop's metric names."""
CHEAP = ("certified_fast", "certified_linf_fast", "attacked_fast")
"""Sections that are not measured every epoch, as validation is."""
SELECTED = "train/selected_epoch"
"""Metric that says which epoch's network a run uses, with `train.select` other than `last`."""

_SHARES = (
    "validation/accuracy",
    "certified_fast/abstention",
    "certified_fast/accuracy_at/",
    "certified_linf_fast/accuracy_",
    "attacked_fast/robust_accuracy",
)
_SIGNED = "train/loss"
"""A method's penalty may make it negative."""


def measured(certified: FastCertify, attacked: FastAttack, bounds: FastBounds) -> list[str]:
    """Returns the training loop's metrics that a sweep may use.

    Args:
        certified: the section `certified_fast`; its metrics, one per radius among them, are
            listed even if `every` is 0.
        attacked: the section `attacked_fast`.
        bounds: the section `certified_linf_fast`; its metrics, one per radius, are listed if it is
            measured.
    """
    found = ["validation/accuracy", _SIGNED, "train/seconds", "passes/per_image"]
    found += ["certified_fast/acr", "certified_fast/abstention"]
    found += [f"certified_fast/accuracy_at/{radius:g}" for radius in certified.radii]
    found += ["certified_fast/moment_acr"] if certified.moment else []
    if bounds.every:
        found += [f"certified_linf_fast/accuracy_{eps:g}" for eps in bounds.eps]
    return found + ["attacked_fast/robust_accuracy"] * bool(attacked.every)


def selecting(certified: FastCertify, attacked: FastAttack, bounds: FastBounds) -> list[str]:
    """Returns the metrics by which `train.select` may choose an epoch: those of the validation part
    of which more is better; arguments as in `measured`."""
    every = certified.every, bounds.every, attacked.every
    wanted = ["validation", *(one for one, often in zip(CHEAP, every, strict=True) if often)]
    return [
        metric
        for metric in measured(certified, attacked, bounds)
        if metric.partition("/")[0] in wanted and metric != "certified_fast/abstention"
    ]


def standing(now: Mapping[str, float], selected: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics by which a run counts: those of the epoch whose network it uses, with
    the epoch, the passes and the seconds that it has spent.

    Args:
        now: metrics of the last epoch.
        selected: metrics of the epoch that `train.select` chose; empty without one.
    """
    spent = {
        key: value
        for key, value in now.items()
        if key in ("epoch", SELECTED) or key.startswith("passes/") or key.endswith("/seconds")
    }
    return {**selected, **spent} if selected else dict(now)


def limits(metric: str) -> tuple[float, float]:
    """Returns the smallest and largest possible value of a metric; infinite if unknown."""
    if metric.startswith(_SHARES):
        return 0.0, 1.0
    known = metric.partition("/")[0] in SECTIONS and metric != _SIGNED
    return 0.0 if known else -math.inf, math.inf
