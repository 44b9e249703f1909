"""SmoothAdv: Salman, Yang, Li, Zhang, Zhang, Razenshteyn and Bubeck, "Provably Robust Deep Learning
via Adversarially Trained Smoothed Classifiers" (NeurIPS 2019, arXiv:1906.04584).

Attacks the smoothed classifier, estimated on m noise draws that are fixed across the attack's steps
and reused for training, as in the authors' code. Noise comes last and is not clamped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import StepContext
from raybust.methods.pgd import Pgd, accuracy
from raybust.numerics.attacks import attacked, mean_log_probability
from raybust.numerics.balls import normal


@dataclass(frozen=True, kw_only=True)
class Smoothadv(Pgd):
    """Cross entropy on noisy copies of worst-case images for the smoothed classifier:
    loss = mean over i of CE(network(x + delta + sigma e_i), y), delta ~ argmax over ||delta|| <=
    eps of -log mean over i of p_y(x + delta + sigma e_i).
    """

    sigma: float = option(0.25, "Standard deviation of the noise.", gt=0, unit="pixels in [0, 1]")
    samples: int = option(2, "Noise draws per image, m; costs m passes instead of one.", ge=1)
    norm: Literal["linf", "l2", "l1"] = option("l2", "Norm of the ball.")
    eps: float = option(0.5, "Radius of the ball.", gt=0, unit="pixels in [0, 1], in `norm`")
    steps: int = option(4, "Number of gradient steps of the attack.", ge=1)
    start: Literal["uniform", "center", "gaussian", "n_fgsm"] = option(
        "center", "Start of the attack, as in `pgd`."
    )
    warmup: float = option(
        0.1, "Fraction of the run over which eps rises linearly from 0.", ge=0, lt=1
    )

    def find(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Any:
        """Returns the adversarial images (B, C, H, W) and the noise (m, B, C, H, W)."""
        m, count = self.samples, len(images)
        copies = images.repeat(m, 1, 1, 1)
        noise = (self.sigma * normal(copies, context.generator)).reshape(m, *images.shape)

        def noisy(point: Tensor) -> Tensor:
            logits: Tensor = network((point + noise).flatten(0, 1))
            return logits

        labels = context.sharp(targets)

        def objective(logits: Tensor) -> Tensor:
            smoothed = mean_log_probability(logits.log_softmax(1).reshape(m, count, -1))
            return F.cross_entropy(smoothed, labels, reduction="sum")

        with attacked(network, statistics=self.statistics):
            return self.attack(noisy, images, objective, context), noise

    def loss_at(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Tensor,
        context: StepContext,
        found: Any,
    ) -> Tensor:
        """Returns the mean cross entropy of the noisy copies; see `Adversarial.loss_at`."""
        worst, noise = found
        logits = network((worst + noise).flatten(0, 1))
        repeated = targets.repeat(self.samples, *[1] * (targets.ndim - 1))
        context.metrics["train/attacked_accuracy"] = accuracy(logits, repeated)
        return F.cross_entropy(logits, repeated)

    def noise(self) -> float:
        """Returns the training sigma, which certification also uses."""
        return self.sigma
