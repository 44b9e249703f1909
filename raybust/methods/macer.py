"""MACER: Zhai, Dan, He, Zhang, Gong, Ravikumar, Hsieh and Wang, "MACER: Attack-free and Scalable
Robust Training via Maximizing Certified Radius" (ICLR 2020, arXiv:2001.02378), following the
authors' code where the paper omits details.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import Method, StepContext
from raybust.numerics.moments import probability_cross_entropy, probability_hinge


@dataclass(frozen=True, kw_only=True)
class Macer(Method):
    """loss = mean_i [-log(z_i[y_i] + 1e-10) + weight sigma / 2 (gamma - xi_i)] over k noisy copies
    of each image.

    z = mean_j softmax(u_j) over the copies; xi = PHI^-1(q1) - PHI^-1(q2), q the two largest of
    mean_j softmax(beta u_j). The second term includes only images whose q1 is the label's and whose
    |xi| is at most gamma, no saturated ones. Defaults are for CIFAR-10 at sigma 0.25; the authors
    use weight 4 at 0.5 and start with weight 0 at 1.0.
    """

    sigma: float = option(0.25, "Standard deviation of the noise.", gt=0, unit="pixels in [0, 1]")
    k: int = option(16, "Noisy copies of each image; a step costs k passes.", ge=1, unit="copies")
    weight: float = option(12.0, "Weight lambda of the radius in the loss.", ge=0)
    gamma: float = option(8.0, "Largest rewarded xi.", gt=0, unit="2 radius / sigma")
    beta: float = option(16.0, "Inverse temperature in the radius.", gt=0)
    warmup: float = option(0.0, "Fraction of training with weight 0.", ge=0, lt=1)

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss above; see `Method.loss`."""
        copies = images.repeat_interleave(self.k, 0)
        noise = torch.empty_like(copies).normal_(generator=context.generator)
        logits = network(copies + self.sigma * noise).unflatten(0, (len(images), self.k))
        loss = probability_cross_entropy(logits.softmax(2).mean(1), targets)
        if context.progress >= self.warmup and self.weight:
            labels = targets if targets.ndim == 1 else targets.argmax(1)
            soft = (self.beta * logits).softmax(2).mean(1)
            hinge = probability_hinge(soft, labels, self.gamma)
            loss = loss + self.weight * self.sigma / 2 * hinge
        return loss.mean()

    def noise(self) -> float:
        """Returns the training sigma, which certification also uses."""
        return self.sigma
