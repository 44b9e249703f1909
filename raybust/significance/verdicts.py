"""Verdicts in words: better, worse, equivalent within the margin, or cannot say."""

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
    """

    found: Paired
    adjusted: float
    verdict: Verdict
    negligible: bool


def decide(family: Sequence[Paired]) -> list[Decision]:
    """Returns the verdicts on a family of comparisons, at a level of 5 % for the family.

    A difference is better or worse if its adjusted p-value is at most 5 %. Otherwise it is
    equivalent if both one-sided tests, each at 5 %, reject a difference as large as the margin.

    Args:
        family: all comparisons that were asked.
    """
    adjusted = holm([found.p for found in family])
    decisions = []
    for found, value in zip(family, adjusted, strict=True):
        within = found.p_within <= LEVEL
        verdict: Verdict = "equivalent" if within else "cannot say"
        if value <= LEVEL:
            verdict = "better" if found.difference > 0 else "worse"
        decisions.append(Decision(found, value, verdict, within and value <= LEVEL))
    return decisions
