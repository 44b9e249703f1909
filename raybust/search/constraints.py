"""By how much metrics violate a sweep's constraints (`tune.constraints`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_NEVER = 1e9
"""Violation of a constraint whose metric is missing or not finite."""


def violations(
    metrics: Mapping[str, float], bounds: Sequence[tuple[str, str, float]]
) -> dict[str, float]:
    """Returns the violation of each constraint, at most 0 if it is met.

    Args:
        metrics: by name.
        bounds: (metric, ">=" or "<=", number) of each constraint.
    """
    found = {}
    for key, sign, number in bounds:
        value = metrics.get(key, math.nan)
        beyond = number - value if sign == ">=" else value - number
        found[f"{key} {sign} {number}"] = beyond if math.isfinite(beyond) else _NEVER
    return found
