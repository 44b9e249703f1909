"""What stopped trials would have reached, for samplers that learn from whole trials alone.

Optuna's gp ignores a stopped trial, and does not count it among the random ones. With early
stopping that is most of a sweep, so it is shown an estimate instead.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection

from raybust.search.records import TrialRecord

_NEAR = 1e-6


def estimates(
    records: Collection[TrialRecord], metric: str, goals: Collection[str]
) -> dict[int, dict[str, float]]:
    """Returns the metrics that stopped trials would have had after the whole budget, by number.

    The optimized metric grows by the median growth of the whole trials from the same budget on; the
    others stay as they were measured last (our choice).

    Args:
        records: of all trials.
        metric: that `history` has.
        goals: metrics without which there is no estimate, `metric` among them.
    """
    whole = [record for record in records if record.state == "COMPLETE"]
    found = {}
    for record in records:
        if record.state != "PRUNED" or record.value is None:
            continue
        if not all(math.isfinite(record.metrics.get(key, math.nan)) for key in goals):
            continue
        spent = record.spent[record.epoch]
        growths = [g for other in whole if (g := _growth(other, spent)) is not None]
        growth = statistics.median(growths) if growths else 0.0
        found[record.number] = record.metrics | {metric: record.value + growth}
    return found


def _growth(record: TrialRecord, spent: float) -> float | None:
    """Returns by how much a whole trial's first seed grew after a budget; None if it was measured
    only later."""
    before = [epoch for epoch, own in record.spent.items() if own <= spent * (1 + _NEAR)]
    return record.history[record.epoch] - record.history[max(before)] if before else None
