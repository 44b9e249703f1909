"""Averaged weights, `train.ema`, as in the code of Wang et al. (ICML 2023, arXiv:2302.04638).

In the first 2.5 % of the run the average is the network. From then on, in step t = 0, 1, ..., the
decay is min(`train.ema`, (1 + t) / (10 + t)). Batch norm's statistics are not averaged: at the end
of an epoch the average takes the network's.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

WARMUP = 0.025
"""Fraction of the run in which the average is the network."""
STEADY = 10**9
"""A number of steps after which the decay is `train.ema`."""


class Average:
    """A network with averaged weights beside the one in training.

    Attributes:
        network: the average.
        steps: averaged so far; with the weights, all that resuming needs.
    """

    def __init__(self, network: nn.Module, limit: float) -> None:
        """Starts at the network.

        Args:
            network: the one in training.
            limit: the largest decay, `train.ema`.
        """
        self.network = copy.deepcopy(network)
        self.steps = 0
        self._limit = limit

    def decay(self) -> float:
        """Returns the decay of the next averaged step."""
        return min(self._limit, (1 + self.steps) / (10 + self.steps))

    @torch.no_grad()
    def follow(self, network: nn.Module, progress: float) -> None:
        """Takes in the weights after a step.

        Args:
            network: the one in training.
            progress: completed fraction of the run before the step.
        """
        warming = progress < WARMUP
        share = 1.0 if warming else 1 - self.decay()
        for mean, value in zip(self.network.parameters(), network.parameters(), strict=True):
            mean.lerp_(value, share)
        self.steps += not warming

    @torch.no_grad()
    def end_epoch(self, network: nn.Module) -> None:
        """Takes over buffers, batch norm's statistics among them."""
        for mine, value in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(value)
