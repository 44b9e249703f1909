"""Consistency regularization: Jeong and Shin, "Consistency Regularization for Certified Robustness
of Smoothed Classifiers" (NeurIPS 2020, arXiv:2006.04062). The cheapest strong baseline: m passes.

All m copies of a batch share one step; the authors' code splits the batch into m parts and takes
one step on each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import Method, StepContext


@dataclass(frozen=True, kw_only=True)
class Consistency(Method):
    """loss = mean CE over m noisy copies + weight mean_j KL(p || p_j) + eta H(p), p = mean_j p_j.

    Defaults are for CIFAR-10 at sigma 0.25; the authors use weight 10 at 0.5 and 1.0, and weight 5
    on ImageNet (eta 0.1 at sigma 1).
    """

    sigma: float = option(0.25, "Standard deviation of the noise.", gt=0, unit="pixels in [0, 1]")
    m: int = option(2, "Noisy copies of each image; a step costs m passes.", ge=2, unit="copies")
    weight: float = option(20.0, "Weight lambda of the divergence from the mean.", ge=0)
    eta: float = option(0.5, "Weight of the mean prediction's entropy.", ge=0)

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss above; see `Method.loss`."""
        copies = images.repeat(self.m, 1, 1, 1)
        noise = torch.empty_like(copies).normal_(generator=context.generator)
        logits = network(copies + self.sigma * noise)
        fit = F.cross_entropy(logits, targets.repeat(self.m, *[1] * (targets.ndim - 1)))
        logs = logits.log_softmax(1).unflatten(0, (self.m, len(images)))
        log_mean = logs.logsumexp(0) - math.log(self.m)
        mean = log_mean.exp()
        divergence = (mean * (log_mean - logs)).sum(2).mean()
        entropy = -(mean * log_mean).sum(1).mean()
        total: Tensor = fit + self.weight * divergence + self.eta * entropy
        return total

    def noise(self) -> float:
        """Returns the training sigma, which certification also uses."""
        return self.sigma
