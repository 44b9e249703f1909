"""Verdicts in words: better, worse, equivalent within the margin, or cannot say.

The comparisons of a command are one family. Values that are upper bounds only prove no side better
and no two equivalent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from raybust.significance.families import holm
from raybust.significance.paired import Paired
from raybust.significance.shares import LEVEL

Verdict = Literal["better", "worse", "equivalent", "cannot say"]


@dataclass(frozen=True)
class Decision:
    """A comparison with its verdict.

    Attributes:
        found: the comparison.
        adjusted: its p-value, adjusted for all that were asked (Holm).
        verdict: on A.
        negligible: whether the difference, though found, is within the margin.
        held: whether the numbers speak for a verdict that values which are upper bounds only cannot
            prove; it is then "cannot say".
    """

    found: Paired
    adjusted: float
    verdict: Verdict
    negligible: bool
    held: bool = False


def decide(
    family: Sequence[Paired], bounds: Sequence[tuple[bool, bool]] | None = None
) -> list[Decision]:
    """Returns the verdicts on a family of comparisons, at a level of 5 % for the family.

    A difference is better or worse if its adjusted p-value is at most 5 %. Otherwise it is
    equivalent if both one-sided tests, each at 5 %, reject a difference as large as the margin.

    A value that is only an upper bound proves neither that its side is the better one nor that the
    two are equivalent.

    Args:
        family: all comparisons that were asked.
        bounds: of each comparison, whether A's and B's values are upper bounds only; None for none.
    """
    adjusted = holm([found.p for found in family])
    bounds = bounds or [(False, False)] * len(family)
    decisions = []
    for found, value, upper in zip(family, adjusted, bounds, strict=True):
        within = found.p_within <= LEVEL
        verdict: Verdict = "equivalent" if within else "cannot say"
        unproven = within and any(upper)
        if value <= LEVEL:
            verdict = "better" if found.difference > 0 else "worse"
            unproven = upper[0] if found.difference > 0 else upper[1]
        if unproven:
            verdict = "cannot say"
        negligible = within and value <= LEVEL and not any(upper)
        decisions.append(Decision(found, value, verdict, negligible, unproven))
    return decisions
