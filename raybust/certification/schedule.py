"""When to stop sampling an example: three schedules, each valid at level alpha.

`fixed` is CERTIFY of Cohen et al. (2019); `looks` spends alpha over cumulative looks (union bound);
`sequence` is a mixture confidence sequence (Voracek, 2024). Each is a table of counts: at look j
with n_j draws, k >= `reached[j][t]` proves target t and k <= `futile[j][t]` gives it up. All bounds
of an example hold simultaneously, so any stopping rule is valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from raybust.errors import RequestError
from raybust.numerics import bounds

FUTILITY = 0.05
"""Probability, over all looks, of giving up a target that the last look would prove with even odds
(our choice). It only costs power; no certificate depends on it."""

ScheduleName = Literal["fixed", "looks", "sequence"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Looks, bounds and stopping rule.

    Attributes:
        name: `fixed`, `looks` or `sequence`.
        n: maximum draws per example.
        alpha: probability that any of an example's bounds is wrong.
        targets: probabilities to decide, each in [1/2, 1]; empty: never stop early.
    """

    name: ScheduleName
    n: int
    alpha: float
    targets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        last = len(self.times) - 1
        if self.lower(self.n, self.n, last) <= 0.5:
            raise RequestError(
                f"certify.n: got {self.n}, which certifies nothing at alpha = {self.alpha:g} with "
                f"schedule {self.name}, even if every draw agrees; take more draws"
            )

    @cached_property
    def times(self) -> tuple[int, ...]:
        """Cumulative draws at the looks."""
        if self.name == "fixed":
            return (self.n,)
        return bounds.look_times(self.n) if self.name == "looks" else bounds.growing_times(self.n)

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """Alpha of each look; for `sequence`, whose bounds hold jointly, all of it."""
        looks = len(self.times)
        if self.name == "sequence":
            return (self.alpha,) * looks
        return bounds.spend_alpha(looks, self.alpha)

    @cached_property
    def reached(self) -> tuple[tuple[int, ...], ...]:
        """For each look and target, the smallest count that proves the target."""
        return tuple(tuple(self.least(j, p) for p in self.targets) for j in range(len(self.times)))

    @cached_property
    def futile(self) -> tuple[tuple[int, ...], ...]:
        """For each look but the last and each target, the largest count that gives it up, or -1."""
        looks = range(len(self.times) - 1)
        return tuple(tuple(self._given_up(j, p) for p in self.targets) for j in looks)

    def lower(self, k: int, n: int, look: int) -> float:
        """Returns the lower bound for k of n draws at a look, at its share of alpha."""
        if self.name == "sequence":
            return bounds.mixture_lower(k, n, self.alpha)
        return float(bounds.clopper_pearson_lower(k, n, self.levels[look]))

    def least(self, look: int, p: float) -> int:
        """Returns the smallest count at a look whose lower bound is at least p."""
        if self.name == "sequence":
            return bounds.mixture_least_count(self.times[look], p, self.alpha)
        return bounds.least_count(self.times[look], p, self.levels[look])

    def best(self, counts: Sequence[int]) -> tuple[float, int]:
        """Returns the largest lower bound of the looks so far, and its look.

        Args:
            counts: successes at look 0, 1, ..., at least one.
        """
        found = [self.lower(k, self.times[j], j) for j, k in enumerate(counts)]
        look = max(range(len(found)), key=found.__getitem__)
        return found[look], look

    def stops(self, counts: Sequence[int]) -> bool:
        """Returns whether an example is done after these looks: every target is proved or given up,
        or no draws are left.

        Args:
            counts: successes at look 0, 1, ..., at least one.
        """
        if len(counts) == len(self.times):
            return True
        return bool(self.targets) and all(
            any(k >= self.reached[j][t] or k <= self.futile[j][t] for j, k in enumerate(counts))
            for t in range(len(self.targets))
        )

    def _given_up(self, look: int, p: float) -> int:
        """Returns the largest count at a look that is improbable under the class probability at
        which the last look proves p with even odds."""
        n, least = self.times[look], self.least(len(self.times) - 1, p)
        if least > self.n:
            return n
        even = float(bounds.clopper_pearson_lower(least, self.n, 0.5))
        if self.name == "sequence":
            return n - bounds.mixture_least_count(n, 1 - even, FUTILITY)
        return n - bounds.least_count(n, 1 - even, FUTILITY / (len(self.times) - 1))
