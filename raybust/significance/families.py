"""Several comparisons at once. Source: Holm, Scandinavian Journal of Statistics 6 (1979)."""

from __future__ import annotations

from collections.abc import Sequence


def holm(values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted so that the chance of one false finding or more is at most the
    level, whatever their dependence.

    Args:
        values: p-values of the family.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    found, largest = [0.0] * len(values), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[at]))
        found[at] = largest
    return found
