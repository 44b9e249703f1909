"""Two shares of the same images, such as accuracies: exact McNemar test and Tango's score interval.

Sources: McNemar, Psychometrika 12 (1947); Tango, Statistics in Medicine 17 (1998), whose score
statistic also gives the two one-sided tests of equivalence.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import binom, binomtest

from raybust.significance.paired import Paired

POWER = 0.8
"""Probability of a finding at the number of images or seeds that would decide (our choice)."""
LEVEL = 0.05
"""Probability of a false finding, for all comparisons of a family together."""


def compare_shares(
    a: NDArray[np.bool_], b: NDArray[np.bool_], margin: float, level: float = LEVEL
) -> Paired:
    """Compares the shares of images on which A and B are right.

    Args:
        a: bool (N,), whether A is right on each image.
        b: bool (N,), likewise for B.
        margin: of equivalence, as a share.
        level: at which `needed` images decide.
    """
    only_a, only_b, total = int((a & ~b).sum()), int((~a & b).sum()), len(a)
    low, high = tango_interval(only_a, only_b, total)
    return Paired(
        a=float(a.mean()),
        b=float(b.mean()),
        low=low,
        high=high,
        p=mcnemar(only_a, only_b),
        p_within=max(
            float(ndtr(-tango(only_a, only_b, total, -margin))),
            float(ndtr(tango(only_a, only_b, total, margin))),
        ),
        margin=margin,
        images=total,
        needed=_needed(only_a, only_b, total, level),
        test="exact McNemar",
        checks={},
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Returns the two-sided p-value of the exact McNemar test.

    Args:
        only_a: images on which A alone is right.
        only_b: images on which B alone is right.
    """
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def tango(only_a: int, only_b: int, total: int, difference: float) -> float:
    """Returns Tango's score statistic, standard normal if the true difference A - B is the given
    one.

    Args:
        only_a: images on which A alone is right.
        only_b: images on which B alone is right.
        total: number of images.
        difference: the hypothesis, in (-1, 1).
    """
    second = -only_a - only_b + (2 * total - only_a + only_b) * difference
    third = -only_b * difference * (1 - difference)
    share_b = (math.sqrt(max(second**2 - 8 * total * third, 0.0)) - second) / (4 * total)
    variance = total * (2 * share_b + difference * (1 - difference))
    distance = only_a - only_b - total * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def tango_interval(only_a: int, only_b: int, total: int) -> tuple[float, float]:
    """Returns the 95 % score interval of the difference A - B."""
    limit, edge = float(ndtri(1 - LEVEL / 2)), 1 - 1e-12

    def above(difference: float) -> float:
        return tango(only_a, only_b, total, difference) - limit

    def below(difference: float) -> float:
        return tango(only_a, only_b, total, difference) + limit

    middle = (only_a - only_b) / total
    low = brentq(above, -edge, middle) if above(-edge) > 0 > above(middle) else -1.0
    high = brentq(below, middle, edge) if below(middle) > 0 > below(edge) else 1.0
    return float(low), float(high)


def _needed(only_a: int, only_b: int, total: int, level: float) -> int | None:
    """Returns the images at which an exact McNemar test finds the observed shares, by the normal
    approximation of its power."""
    difference, unequal = abs(only_a - only_b) / total, (only_a + only_b) / total
    if not difference:
        return None
    sums = float(ndtri(1 - level / 2)) * math.sqrt(unequal)
    sums += float(ndtri(POWER)) * math.sqrt(max(unequal - difference**2, 0.0))
    return max(math.ceil((sums / difference) ** 2), _fewest(unequal, level))


def _fewest(unequal: float, level: float) -> int:
    """Returns the images with which the smallest number of discordant ones that can be significant
    is expected."""
    fewest = next(n for n in range(1, 60) if 2 * binom.cdf(0, n, 0.5) <= level)
    return math.ceil(fewest / unequal)
