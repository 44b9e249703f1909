"""Adversarial vertex mixup: Lee, Lee and Yoon (CVPR 2020, arXiv:2003.02484).

Trains on points between an image and a vertex beyond its adversarial example, with labels smoothed
more the farther out they are. Defaults are the paper's for CIFAR-10. A baseline for
`adversarial_mixup`. The paper itself finds no significant gain under CW, a margin attack, so judge
it by `apgd-dlr` and `apgd-t`, not by cross entropy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import StepContext
from raybust.methods.mixup import blend, column, probabilities
from raybust.methods.pgd import Pgd, accuracy
from raybust.numerics.balls import uniform


@dataclass(frozen=True, kw_only=True)
class Avmixup(Pgd):
    """Cross entropy at x + u gamma delta, u ~ U(0, 1) for each image, delta PGD's perturbation,
    with the label (1 - u) s(y, l1) + u s(y, l2): s(y, l) = l y + (1 - l) (1 - y) / (K - 1).

    The point is clipped to [0, 1] (our choice).
    """

    gamma: float = option(2.0, "Distance of the vertex, in multiples of the perturbation.", gt=0)
    l1: float = option(1.0, "Label confidence at the image.", gt=0, le=1)
    l2: float = option(0.1, "Label confidence at the vertex.", ge=0, le=1)

    def loss_at(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Tensor,
        context: StepContext,
        found: Any,
    ) -> Tensor:
        """Returns the mean cross entropy at the points; see `Adversarial.loss_at`."""
        share = uniform(images[:, 0, 0, 0], context.generator)
        points = images + column(share, images) * self.gamma * (found - images)
        logits = network(points.clamp(0, 1))
        labels = probabilities(targets, logits.shape[1], logits.dtype)
        context.metrics["train/attacked_accuracy"] = accuracy(logits, labels)
        label = blend(smoothed(labels, self.l2), smoothed(labels, self.l1), share)
        return F.cross_entropy(logits, label)


def smoothed(labels: Tensor, confidence: float) -> Tensor:
    """Returns smoothed labels (B, K): `confidence` on the class, the remainder spread evenly over
    the other K - 1; K >= 2."""
    return confidence * labels + (1 - confidence) * (1 - labels) / (labels.shape[1] - 1)
