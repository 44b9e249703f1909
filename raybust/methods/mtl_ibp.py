"""MTL-IBP: De Palma, Bunel, Dvijotham, Kumar, Stanforth and Lomuscio, "Expressive Losses for
Verified Robustness via Convex Combinations" (ICLR 2024, arXiv:2305.13991).

As in the authors' code, batch norm takes its statistics from the adversarial pass, for both parts
of the loss. alpha = 0 is `pgd`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import StepContext
from raybust.methods.ibp import Ibp
from raybust.methods.pgd import Pgd, accuracy
from raybust.numerics.balls import Threat


@dataclass(frozen=True, kw_only=True)
class MtlIbp(Ibp, Pgd):
    """A mixture of the losses of `ibp` and `pgd` in the Linf ball: loss = alpha CE(-lb, y) +
    (1 - alpha) CE(network(x + delta), y) + regularizer.
    """

    norm: Literal["linf"] = option("linf", "Norm of the ball.")
    alpha: float = option(
        0.5,
        "Weight of the bounds; the authors use 0.5 for CIFAR-10 at 8/255, 0.004 at 2/255, and 0.01"
        " for MNIST at 0.1.",
        ge=0,
        le=1,
    )
    attack_scale: float = option(
        1.0,
        "Radius of the attack in radii of the bounds; the authors use 2.1 for CIFAR-10 at 2/255 and"
        " 2 for MNIST at 0.1.",
        gt=0,
    )

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss above; see `Method.loss`. With alpha = 0 nothing is bounded, so the
        regularizers are off too."""
        if self.alpha == 0:
            return Pgd.loss(self, network, images, targets, context) + self.lasso(network)
        worst = self.worst(network, images, targets, context)
        plain = self.plain(network, worst, context)
        context.metrics["train/attacked_accuracy"] = accuracy(plain.logits, targets)
        attacked = F.cross_entropy(plain.logits, targets)
        eps = self.plan(images, context.progress)[0].eps / self.attack_scale
        robust, penalty = self.bounded(network, (images, eps), targets, plain, context)
        mixed = self.alpha * robust + (1 - self.alpha) * attacked
        return mixed + penalty + self.lasso(network)

    def threat(self, pixels: int) -> Threat:
        """Returns the ball of the attack."""
        return super().threat(pixels).scaled(self.attack_scale)
