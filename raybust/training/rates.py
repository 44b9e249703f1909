"""A learning-rate range test: the loss of a network as the rate rises from step to step.

Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3. The rise
is exponential. What the suggestions are worth was measured on MNIST, see docs/configuration.md.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raybust.config import Config
from raybust.data import Dataset
from raybust.errors import WorkError
from raybust.training.loop import Trainer

STEPS = 200
_LOWEST = {"sgd": 1e-4, "adamw": 1e-6}
_HIGHEST = {"sgd": 10.0, "adamw": 1.0}
_SMOOTHING = 0.9
_DIVERGED = 2.0
"""Times the first loss at which the test ends (our choice)."""


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test.

    Attributes:
        rates: learning rate of each step.
        losses: of each step's batch.
        smoothed: exponential mean of the losses.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]

    @property
    def lowest(self) -> float:
        """The rate at which the smoothed loss is least."""
        return self.rates[min(range(len(self.rates)), key=self.smoothed.__getitem__)]

    @property
    def suggestion(self) -> float:
        """Half of `lowest`, to one digit (our choice)."""
        return float(f"{self.lowest / 2:.0e}")


class _Rising(Trainer):
    """A trainer whose rate does not follow the schedule."""

    at = 0.0

    def rate(self, progress: float) -> float:
        return self.at


def range_test(
    config: Config,
    dataset: Dataset,
    device: torch.device,
    advance: Callable[[int], None] = lambda steps: None,
) -> RangeTest:
    """Trains a new network for at most `STEPS` steps, the rate rising exponentially from 1e-4 to 10
    for SGD and from 1e-6 to 1 for AdamW. Stops early where the loss is twice that at the start.

    Args:
        config: the complete configuration.
        dataset: result of `raybust.data.load`.
        device: where it trains.
        advance: called after each step with 1.

    Raises:
        WorkError: the loss is not a number from the first step.
    """
    train = dataclasses.replace(config.train, ema=0.0)
    trainer = _Rising(dataclasses.replace(config, train=train), dataset, device)
    trainer.objective.train()
    trainer.generator.manual_seed(config.seed)
    trainer.begin_round()
    low, high = (limits[train.optimizer] for limits in (_LOWEST, _HIGHEST))
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    for number, (images, labels) in zip(range(STEPS), _batches(trainer), strict=False):
        trainer.at = low * (high / low) ** (number / (STEPS - 1))
        loss = float(trainer.step(images, labels, 0.0))
        advance(1)
        if not math.isfinite(loss):
            break
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        rates.append(trainer.at)
        losses.append(loss)
        smoothed.append(mean / (1 - _SMOOTHING ** len(rates)))
        if smoothed[-1] > _DIVERGED * smoothed[0]:
            break
    if not rates:
        raise WorkError(f"the loss is {loss} at the first step, with a rate of {low:g}")
    return RangeTest(tuple(rates), tuple(losses), tuple(smoothed))


def _batches(trainer: Trainer) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches of epoch after epoch."""
    for epoch in itertools.count():
        yield from trainer.batches.epoch(epoch)
