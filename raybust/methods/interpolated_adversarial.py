"""Interpolated adversarial training: Lamb, Verma, Kannala and Bengio (AISec 2019,
arXiv:1906.06784). Images are attacked with their own labels before they are mixed.

A baseline for `adversarial_mixup`, known to be weak under AutoAttack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import StepContext
from raybust.methods.mixup import blend, mixture, probabilities
from raybust.methods.pgd import Pgd, accuracy


@dataclass(frozen=True, kw_only=True)
class InterpolatedAdversarial(Pgd):
    """Mixup loss on clean and attacked images: loss = (1 - share) M(x, y) + share M(x + delta, y),
    M mixup's cross entropy; each M draws its own ratios and partners.
    """

    alpha: float = option(1.0, "Parameter of the Beta distribution of mixup's ratios.", gt=0)
    share: float = option(0.5, "Weight of the loss on attacked images.", ge=0, le=1)

    def loss_at(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Tensor,
        context: StepContext,
        found: Any,
    ) -> Tensor:
        """Returns the weighted mean of the two mixup losses; see `Adversarial.loss_at`."""
        clean, _ = self._mixed(network, images, targets, context)
        robust, hits = self._mixed(network, found, targets, context)
        context.metrics["train/attacked_accuracy"] = hits
        return (1 - self.share) * clean + self.share * robust

    def _mixed(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> tuple[Tensor, Tensor]:
        """Returns mixup's cross entropy and the accuracy on each target's dominant class."""
        mixed, ratio, order = mixture(images, self.alpha, context.generator)
        logits = network(mixed)
        labels = probabilities(targets, logits.shape[1], logits.dtype)
        labels = blend(labels, labels[order], ratio)
        return F.cross_entropy(logits, labels), accuracy(logits, labels)
