"""TRADES: Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan, "Theoretically Principled Trade-off between
Robustness and Accuracy" (ICML 2019, arXiv:1901.08573).

As in the authors' code, the attack maximizes the divergence from a start 0.001 e off the image (at
the image the gradient is 0), and both loss terms are computed in train mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import StepContext
from raybust.methods.pgd import Pgd, accuracy
from raybust.numerics.attacks import attacked


@dataclass(frozen=True, kw_only=True)
class Trades(Pgd):
    """Clean cross entropy plus the largest change of the prediction under attack: loss =
    CE(network(x), y) + beta max over ||delta|| <= eps of KL(p(x) || p(x + delta)).
    """

    beta: float = option(
        6.0, "Weight of the divergence; larger values trade accuracy for robustness.", gt=0
    )
    start: Literal["uniform", "center", "gaussian", "n_fgsm"] = option(
        "gaussian", "Start of the attack, as in `pgd`; not `center`, where the gradient is 0."
    )

    def problems(self) -> list[str]:
        """Adds constraints across fields."""
        found = super().problems()
        if self.start == "center":
            found.append("start: got 'center', expected another start: the gradient is 0 there")
        return found

    def find(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Any:
        """Returns the images whose predictions differ most from the clean ones."""
        with attacked(network, statistics=self.statistics):
            with torch.no_grad():
                clean = network(images).softmax(1)
            return self.attack(
                network,
                images,
                lambda logits: F.kl_div(logits.log_softmax(1), clean, reduction="sum"),
                context,
            )

    def loss_at(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Tensor,
        context: StepContext,
        found: Any,
    ) -> Tensor:
        """Returns cross entropy plus beta times the mean divergence; see `Adversarial.loss_at`."""
        natural, moved = network(images), network(found)
        divergence = F.kl_div(moved.log_softmax(1), natural.softmax(1), reduction="batchmean")
        context.metrics["train/divergence"] = divergence.detach()
        context.metrics["train/attacked_accuracy"] = accuracy(moved, targets)
        return F.cross_entropy(natural, targets) + self.beta * divergence
