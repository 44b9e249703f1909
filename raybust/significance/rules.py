"""One-sided decisions for a gate: is a value at least a bound, or not worse than another one?

Each rule passes if the test of its opposite rejects, fails if the test of itself rejects, and is
undecided otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binom
from scipy.stats import t as student

from raybust.significance.means import Floats
from raybust.significance.shares import tango

State = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True)
class Ruling:
    """A decided rule.

    Attributes:
        state: of the rule.
        value: of the candidate.
        reference: of the reference, None without one.
        p_passes: p-value of the rule being broken, which passing rejects.
        p_fails: p-value of the rule being kept, which failing rejects.
    """

    state: State
    value: float
    reference: float | None
    p_passes: float
    p_fails: float


def share_at_least(right: NDArray[np.bool_], least: float, level: float) -> Ruling:
    """Decides whether a share is at least a bound, by exact binomial tests.

    Args:
        right: bool (N,).
        least: the bound, in [0, 1].
        level: probability of each error.
    """
    hits, total = int(right.sum()), len(right)
    above, below = float(binom.sf(hits - 1, total, least)), float(binom.cdf(hits, total, least))
    return _ruling(hits / total, None, above, below, level)


def mean_at_least(values: Floats, least: float, level: float) -> Ruling:
    """Decides whether a mean is at least a bound, by t tests.

    Args:
        values: (N,).
        least: the bound.
        level: probability of each error.
    """
    return _by_t(values, least, level, None)


def share_not_worse(
    candidate: NDArray[np.bool_], reference: NDArray[np.bool_], margin: float, level: float
) -> Ruling:
    """Decides whether a share is not more than a margin below another one on the same images, by
    Tango's score test. It is approximate: at a level of 5 %, up to 7 % of errors were seen where no
    image speaks for the candidate.

    Args:
        candidate: bool (N,).
        reference: bool (N,).
        margin: as a share.
        level: probability of each error.
    """
    only_a, only_b = int((candidate & ~reference).sum()), int((~candidate & reference).sum())
    statistic = tango(only_a, only_b, len(candidate), -margin)
    values = float(candidate.mean()), float(reference.mean())
    return _ruling(*values, float(ndtr(-statistic)), float(ndtr(statistic)), level)


def mean_not_worse(candidate: Floats, reference: Floats, margin: float, level: float) -> Ruling:
    """Decides whether a mean is not more than a margin below another one on the same images, by
    paired t tests.

    Args:
        candidate: (N,).
        reference: (N,).
        margin: in the unit of the values.
        level: probability of each error.
    """
    return _by_t(candidate, -margin, level, reference)


def _by_t(values: Floats, least: float, level: float, reference: Floats | None) -> Ruling:
    moved = values if reference is None else values - reference
    error = float(moved.std(ddof=1)) / math.sqrt(len(moved)) if len(moved) > 1 else math.nan
    distance = float(moved.mean()) - least
    # Where all are equal, nothing is known of the others.
    above = float(student.sf(distance / error, len(moved) - 1)) if error > 0 else 0.5
    other = None if reference is None else float(reference.mean())
    return _ruling(float(values.mean()), other, above, 1 - above, level)


def _ruling(
    value: float, reference: float | None, above: float, below: float, level: float
) -> Ruling:
    """Returns the ruling of two p-values: of at most the bound, and of at least it."""
    state: State = "passed" if above <= level else "failed" if below <= level else "undecided"
    return Ruling(state, value, reference, above, below)
