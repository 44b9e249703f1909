"""Logit squeezing: Kannan, Kurakin and Goodfellow, "Adversarial Logit Pairing" (2018,
arXiv:1803.06373). Small logits on noisy images make training robust to weak attacks at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config import option
from raybust.methods import Method, StepContext


@dataclass(frozen=True, kw_only=True)
class LogitSqueezing(Method):
    """Cross entropy on noisy images plus a penalty on the size of their logits."""

    sigma: float = option(0.1, "Standard deviation of the noise.", ge=0, unit="pixels in [0, 1]")
    weight: float = option(0.05, "Weight of the penalty.", ge=0)
    penalty: Literal["squares", "absolute"] = option(
        "squares", "Mean of the squares or of the absolute values of the logits."
    )

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss of one step, a scalar; see `Method.loss`."""
        noise = torch.empty_like(images).normal_(generator=context.generator)
        logits = network(images + self.sigma * noise)
        size = logits.square().mean() if self.penalty == "squares" else logits.abs().mean()
        context.metrics["logit_squeezing/size"] = size.detach()
        return F.cross_entropy(logits, targets) + self.weight * size
