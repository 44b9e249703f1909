"""SABR: Mueller, Eckert, Fischer and Vechev, "Certified Training: Small Boxes are All You Need"
(ICLR 2023, arXiv:2210.04871).

An attack finds the center of a small box inside the ball, and the loss is that of interval bounds
on the small box. Batch norm takes its statistics from the adversarial pass. share = 1 is `ibp`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import StepContext
from raybust.methods.ibp import Ibp
from raybust.methods.pgd import Pgd
from raybust.numerics.balls import Threat


@dataclass(frozen=True, kw_only=True)
class Sabr(Ibp, Pgd):
    """Cross entropy of the worst logits in a small box around an adversarial image: loss =
    CE(-lb, y) + regularizer over ||x' - (x + delta)|| <= share eps, ||delta|| <= (1 - share) eps.
    """

    norm: Literal["linf"] = option("linf", "Norm of the ball.")
    share: float = option(
        0.4, "Radius of the small box in radii of the ball; smaller favors accuracy.", gt=0, le=1
    )

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss above; see `Method.loss`."""
        center = images
        if self.share < 1:
            center = self.worst(network, images, targets, context).detach()
        plain = self.plain(network, center, context)
        eps = super().threat(images[0].numel()).eps * self.rise(context.progress)
        around = center, self.share * eps
        robust, penalty = self.bounded(network, around, targets, plain, context)
        return robust + penalty + self.lasso(network)

    def threat(self, pixels: int) -> Threat:
        """Returns the ball of the small boxes' centers."""
        return super().threat(pixels).scaled(1 - self.share)
