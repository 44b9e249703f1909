"""The metrics that a sweep may go by: their names, and where their values lie.

The loop's own are listed here; a method's own stand under its key (`geodesic/distance`), which
`raybust.search.goals` knows.
"""

from __future__ import annotations

import math

from raybust.config.assess import FastAttack, FastCertify

SECTIONS = ("train", "validation", "passes", "certified_fast", "attacked_fast")
"""First parts of the names of the loop's own metrics."""

_SHARES = (
    "validation/accuracy",
    "certified_fast/abstention",
    "certified_fast/accuracy_at/",
    "attacked_fast/robust_accuracy",
)
_SIGNED = "train/loss"
"""A method's penalty may make it negative."""


def measured(certified: FastCertify, attacked: FastAttack) -> list[str]:
    """Returns the loop's own metrics that a sweep may go by.

    Args:
        certified: the section `certified_fast`, whose radii are metrics; the others are listed
            even where `every` is 0.
        attacked: the section `attacked_fast`.
    """
    found = ["validation/accuracy", _SIGNED, "train/seconds", "passes/per_image"]
    found += ["certified_fast/acr", "certified_fast/abstention"]
    found += [f"certified_fast/accuracy_at/{radius:g}" for radius in certified.radii]
    found += ["certified_fast/moment_acr"] if certified.moment else []
    return found + ["attacked_fast/robust_accuracy"] * bool(attacked.every)


def limits(metric: str) -> tuple[float, float]:
    """Returns the least and the largest value that a metric can have; infinite where not known."""
    if metric.startswith(_SHARES):
        return 0.0, 1.0
    known = metric.partition("/")[0] in SECTIONS and metric != _SIGNED
    return 0.0 if known else -math.inf, math.inf
