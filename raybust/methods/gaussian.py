"""Gaussian noise augmentation: the training of Cohen et al., "Certified Adversarial Robustness via
Randomized Smoothing" (ICML 2019, arXiv:1902.02918), after Lecuyer et al. (2019). The baseline for
certified accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import Method, StepContext


@dataclass(frozen=True, kw_only=True)
class Gaussian(Method):
    """Cross entropy on one noisy copy of each image: loss = CE(network(x + sigma e), y), e ~ N(0,
    I).

    The noise is not clamped because the certificate assumes unclamped noise.
    """

    sigma: float = option(0.25, "Standard deviation of the noise.", gt=0, unit="pixels in [0, 1]")

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the mean cross entropy of the noisy batch; see `Method.loss`."""
        noise = torch.empty_like(images).normal_(generator=context.generator)
        return F.cross_entropy(network(images + self.sigma * noise), targets)

    def noise(self) -> float:
        """Returns the training sigma, which certification also uses."""
        return self.sigma
