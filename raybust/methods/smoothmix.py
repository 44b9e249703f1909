"""SmoothMix: Jeong, Park, Kim, Lee, Kim and Shin, "SmoothMix: Training Confidence-calibrated
Smoothed Classifiers for Certified Robustness" (NeurIPS 2021, arXiv:2111.09277).

As in the authors' code, the attack has no radius, all passes of a step share their noises, and the
mixed target keeps the gradient of the mean prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import Method, StepContext
from raybust.methods.mixup import blend
from raybust.numerics.attacks import Network, attacked, gradient_at, mean_log_probability
from raybust.numerics.balls import Threat, normal, uniform

_LEAST = 0.1
"""Share of `eta` at the start of the warm-up, as in the authors' first of ten epochs."""


@dataclass(frozen=True, kw_only=True)
class Smoothmix(Method):
    """Cross entropy on m noisy copies + eta KL(target || p) at x~ = (1 - lam) x + lam x_adv, lam ~
    U(0, 1/2), where the smoothed prediction p- is right; target = (1 - lam) p- + lam / K.

    The authors use m 2, 4 steps of 0.5, 1, 2 and eta 5 for CIFAR-10 at sigma 0.25, 0.5, 1, with
    `one_step` above 0.25; for MNIST m 4 and 2, 4, 8 steps of 1.
    """

    sigma: float = option(0.25, "Standard deviation of the noise.", gt=0, unit="pixels in [0, 1]")
    m: int = option(2, "Noisy copies of each image; a step costs m passes.", ge=1, unit="copies")
    steps: int = option(4, "Gradient steps of the attack.", ge=1)
    step: float = option(0.5, "Length of a step in L2.", gt=0, unit="pixels in [0, 1]")
    eta: float = option(5.0, "Weight of the mixed images' divergence.", ge=0)
    one_step: bool = option(
        False, "Whether the images after the attack's first step replace the clean ones."
    )
    warmup: float = option(
        0.067,
        "Fraction of the run over which `eta` rises from a tenth, and the first step of `one_step`"
        " likewise; the authors' 10 of 150 epochs.",
        ge=0,
        lt=1,
    )

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss above; see `Method.loss`."""
        noise = self.sigma * normal(images.repeat(self.m, 1, 1, 1), context.generator)
        shape = self.m, len(images)
        noise = noise.reshape(self.m, *images.shape)

        def noisy(points: Tensor) -> Tensor:
            logits: Tensor = network((points + noise).flatten(0, 1))
            return logits

        rise = self._rise(context.progress)
        center, worst = images, images
        if self.eta or self.one_step:
            with attacked(network):
                center, worst = self._attack(noisy, images, context.sharp(targets), rise)
        logits = noisy(center)
        repeated = targets.repeat(self.m, *[1] * (targets.ndim - 1))
        fit: Tensor = F.cross_entropy(logits, repeated)
        if not self.eta:
            return fit
        mean = logits.softmax(1).reshape(*shape, -1).mean(0)
        keep = 1 - uniform(images[:, 0, 0, 0], context.generator) / 2
        label = blend(mean, torch.full_like(mean, 1 / mean.shape[1]), keep)
        mixed = noisy(blend(center, worst, keep)).log_softmax(1).reshape(*shape, -1)
        classes = targets if targets.ndim == 1 else targets.argmax(1)
        right = mean.detach().argmax(1) == classes
        divergence = F.kl_div(mixed, label.expand_as(mixed), reduction="none").sum(2)
        mixing = (right * divergence).mean()
        context.metrics["smoothmix/divergence"] = mixing.detach()
        return fit + self.eta * rise * mixing

    def noise(self) -> float:
        """Returns the training sigma, which certification also uses."""
        return self.sigma

    def _rise(self, progress: float) -> float:
        if not self.warmup:
            return 1.0
        return min(1.0, _LEAST + (1 - _LEAST) * progress / self.warmup)

    def _attack(
        self, noisy: Network, images: Tensor, labels: Tensor, rise: float
    ) -> tuple[Tensor, Tensor]:
        """Returns the images that take the place of the clean ones, and the adversarial ones.

        Args:
            noisy: images (B, C, H, W) to logits (m B, K) of their noisy copies.
            images: (B, C, H, W) in [0, 1].
            labels: (B,) or (B, K).
            rise: share of the warm-up.
        """
        everywhere = Threat("l2", 1.0)  # only its steepest direction and its box are used

        def objective(logits: Tensor) -> Tensor:
            logs = logits.log_softmax(1).reshape(self.m, len(images), -1)
            smoothed = mean_log_probability(logs)
            return F.cross_entropy(smoothed, labels, reduction="sum")

        center = worst = images
        for number in range(self.steps):
            direction = everywhere.steepest(gradient_at(noisy, worst, objective), images)
            worst = (worst + self.step * direction).clamp(0, 1)
            if number == 0 and self.one_step:
                center = images + (worst - images) * _limited(worst - images, rise * self.step)
        return center, worst


def _limited(delta: Tensor, most: float) -> Tensor:
    """Returns the factors (B, 1, 1, 1) that bound the L2 norms of (B, C, H, W) by `most`."""
    sizes = Threat("l2", most).size(delta)
    return (most / sizes.clamp(min=1e-12)).clamp(max=1.0).reshape(-1, 1, 1, 1)
