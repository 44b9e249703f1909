"""Racing: which configurations of a sweep get a further seed, and which are left behind.

A configuration is left behind once the leader is better on the seeds that both have, by a one-sided
t test whose variance is pooled over all configurations. Nothing is stored: the values that are
there decide anew each time, so a configuration may come back. The test, the pooling and the order
in which seeds are given are our choice; the idea is that of Birattari et al. (GECCO 2002).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

Values = Sequence[float]
"""The goals of one trained network; greater is better."""
Runs = Mapping[int, Sequence[Values]]
"""Configuration to the values of its seeds, in the order of the seeds."""


@dataclass(frozen=True)
class Race:
    """The state of a race.

    Attributes:
        runs: values by configuration and seed.
        level: error of leaving a configuration behind that is as good as the leader.
    """

    runs: Runs
    level: float

    def standing(self) -> list[int]:
        """Returns the configurations that are still in the race, the best mean first."""
        leaders, noise = self.leaders(), _noise(self.runs)
        left = {
            number
            for number, own in self.runs.items()
            if any(one != number and self._beats(self.runs[one], own, noise) for one in leaders)
        }
        return sorted(set(self.runs) - left, key=self._order)

    def leaders(self) -> list[int]:
        """Returns, of the configurations with most seeds, those that no other of them is better
        than in every goal; for one goal, that is the best mean."""
        most = max((len(own) for own in self.runs.values()), default=0)
        means = {n: np.mean(own, axis=0) for n, own in self.runs.items() if len(own) == most}
        return [
            number
            for number, mine in means.items()
            if not any((other >= mine).all() and (other > mine).any() for other in means.values())
        ]

    def next_seed(self, started: Mapping[int, int], most: int) -> int | None:
        """Returns the configuration whose next seed is to be trained; None if there is none now.

        Those in the race catch up with the leader before it goes ahead, the best mean first.

        Args:
            started: configuration to its seeds, those in training included.
            most: seeds of a configuration at most.
        """
        standing = self.standing()
        ahead = max((started[number] for number in standing), default=0)
        behind = [number for number in standing if started[number] < ahead]
        if behind:
            return behind[0]
        return standing[0] if standing and ahead < most else None

    def _order(self, number: int) -> tuple[float, int]:
        return -float(np.mean(self.runs[number], axis=0)[0]), number

    def _beats(
        self, leader: Sequence[Values], other: Sequence[Values], noise: tuple[np.ndarray, int]
    ) -> bool:
        """Whether the leader is better in every goal on the seeds that both have."""
        variance, freedom = noise
        shared = min(len(leader), len(other))
        ahead = np.mean(leader[:shared], axis=0) - np.mean(other[:shared], axis=0)
        if not freedom:
            return False
        limit = float(stdtrit(freedom, 1 - self.level)) * np.sqrt(2 * variance / shared)
        return bool((ahead > limit).all())


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the 95 % t interval of the mean over seeds; (nan, nan) for one seed."""
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    half = float(stdtrit(count - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    mean = float(np.mean(values))
    return mean - half, mean + half


def _noise(runs: Runs) -> tuple[np.ndarray, int]:
    """Returns the variance of a goal over seeds, within configurations and after the seeds' common
    effects, and its degrees of freedom.

    The s-th seed of a configuration less the mean of its earlier ones has the variance
    (1 + 1 / s) times that; its mean over configurations is the effect of the seeds.
    """
    goals = next((len(own[0]) for own in runs.values()), 1)
    total, freedom = np.zeros(goals), 0
    for seed in range(1, max((len(own) for own in runs.values()), default=0)):
        steps = [
            np.subtract(own[seed], np.mean(own[:seed], axis=0))
            for own in runs.values()
            if len(own) > seed
        ]
        if len(steps) > 1:
            total += np.var(steps, axis=0) * len(steps) / (1 + 1 / seed)
            freedom += len(steps) - 1
    return total / max(freedom, 1), freedom
