"""Expectation over transformation (Athalye et al., 2018, arXiv:1707.07397): gradients of a
randomized network are averaged over passes, so that attacks do not follow noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Expectation(nn.Module):
    """The average of a randomized network: its logits are the log of the mean softmax over several
    passes.

    Attributes:
        network: randomized with torch's global generator.
        samples: number of passes.
    """

    def __init__(self, network: nn.Module, samples: int) -> None:
        """Wraps a network.

        Args:
            network: images (B, C, H, W) to logits (B, K).
            samples: number of passes, >= 1.
        """
        super().__init__()
        assert samples >= 1, "an expectation needs a sample"
        self.network, self.samples = network, samples
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        """Returns the log mean softmax (B, K) of images (B, C, H, W)."""
        draws = [self.network(images).log_softmax(1) for _ in range(self.samples)]
        return mean_log_probability(torch.stack(draws))


def mean_log_probability(log_probabilities: Tensor) -> Tensor:
    """Returns the log of the mean probability over the first axis: (m, B, K) to (B, K)."""
    return log_probabilities.logsumexp(0) - math.log(len(log_probabilities))
