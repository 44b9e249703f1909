"""Adversarial training: Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models
Resistant to Adversarial Attacks" (ICLR 2018, arXiv:1706.06083). With one step and start=n_fgsm it
is the single-step training of de Jorge et al. (NeurIPS 2022, arXiv:2202.01181).

Batch norm is in eval mode during the attack (Pang et al., ICLR 2021, arXiv:2010.00467) unless
`statistics=batch`. Base class of the methods that train on attacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import Adversarial, StepContext
from raybust.numerics.attacks import Network, ascend, attacked, n_fgsm
from raybust.numerics.balls import Threat, normal

_ORDERS = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
STEP = 2.5
"""Total length of all steps, in radii, if no step size is given."""

_GAUSSIAN_START = 0.001


@dataclass(frozen=True, kw_only=True)
class Pgd(Adversarial):
    """Cross entropy on the worst images that projected gradient ascent finds in a norm ball and
    in [0, 1]: loss = CE(network(x + delta), y), delta ~ argmax over ||delta|| <= eps of the same.
    """

    norm: Literal["linf", "l2", "l1"] = option("linf", "Norm of the ball.")
    eps: float = option(8 / 255, "Radius of the ball.", gt=0, unit="pixels in [0, 1], in `norm`")
    rms: float | None = option(
        None,
        "Radius that replaces `eps`, comparable across norms: the root mean square change if all "
        "pixels change equally, eps = rms d^(1/p) for d pixels.",
        gt=0,
        le=1,
        unit="pixels in [0, 1]",
    )
    steps: int = option(10, "Number of gradient steps of the attack.", ge=1)
    step: float | None = option(
        None, "Step size; defaults to 2.5 eps / steps.", gt=0, unit="in `norm`"
    )
    start: Literal["uniform", "center", "gaussian", "n_fgsm"] = option(
        "uniform",
        "Start of the attack: in the ball, at the image, 0.001 e from it, or within 2 eps with one "
        "step of eps and no projection onto the ball (N-FGSM, needs steps=1).",
    )
    warmup: float = option(
        0.0, "Fraction of the run over which eps rises linearly from 0.", ge=0, lt=1
    )
    early_steps: int | None = option(
        None, "Attack steps in the early part of the run; defaults to `steps`.", ge=1
    )
    early: float = option(0.5, "Fraction of the run that counts as early.", ge=0, le=1)
    statistics: Literal["running", "batch"] = option(
        "running", "Batch norm statistics used during the attack, which never updates them."
    )

    def problems(self) -> list[str]:
        """Adds constraints across fields."""
        found = super().problems()
        if self.start == "n_fgsm" and (self.steps != 1 or self.early_steps not in (None, 1)):
            found.append(f"steps: got {self.steps}, expected 1, because start is n_fgsm")
        return found

    def find(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Any:
        """Returns the adversarial images."""
        return self.worst(network, images, targets, context)

    def loss_at(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Tensor,
        context: StepContext,
        found: Any,
    ) -> Tensor:
        """Returns the mean cross entropy of the attacked batch; see `Adversarial.loss_at`."""
        logits = network(found)
        context.metrics["train/attacked_accuracy"] = accuracy(logits, targets)
        return F.cross_entropy(logits, targets)

    def worst(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Freezes the network, attacks the images' cross entropy and returns the adversarial images
        (B, C, H, W); arguments as in `Method.loss`."""
        labels = context.sharp(targets)

        def objective(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, reduction="sum")

        with attacked(network, statistics=self.statistics):
            return self.attack(network, images, objective, context)

    def attack(
        self,
        network: Network,
        images: Tensor,
        objective: Callable[[Tensor], Tensor],
        context: StepContext,
    ) -> Tensor:
        """Attacks the images with the current schedule; returns adversarial images (B, C, H, W).

        Args:
            network: maps images to logits, prepared by `attacked`.
            images: (B, C, H, W) in [0, 1].
            objective: maps logits to the scalar to maximize, a sum over the batch.
            context: generator and progress.
        """
        threat, steps, step = self.plan(images, context.progress)
        if self.start == "n_fgsm":
            return n_fgsm(network, images, threat, objective, context.generator)
        start = self.first(images, threat, context.generator)
        return ascend(network, images, threat, objective, start=start, steps=steps, step=step)

    def plan(self, images: Tensor, progress: float) -> tuple[Threat, int, float]:
        """Returns the ball, the number of steps and the step size for the current progress.

        Args:
            images: (B, C, H, W); only their size is used.
            progress: completed fraction of the run.
        """
        rise = min(1.0, progress / self.warmup) if self.warmup else 1.0
        threat = self.threat(images[0].numel()).scaled(rise)
        steps = self.steps
        if self.early_steps is not None and progress < self.early:
            steps = self.early_steps
        return threat, steps, STEP * threat.eps / steps if self.step is None else self.step * rise

    def threat(self, pixels: int) -> Threat:
        """Returns the ball for images with C H W = `pixels`."""
        eps = self.eps if self.rms is None else self.rms * pixels ** (1 / _ORDERS[self.norm])
        return Threat(self.norm, eps)

    def first(self, images: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Returns the perturbations (B, C, H, W) at which the attack starts.

        Args:
            images: (B, C, H, W) in [0, 1].
            threat: the ball.
            generator: source of randomness.
        """
        if self.start == "center":
            return torch.zeros_like(images)
        if self.start == "gaussian":
            delta = _GAUSSIAN_START * normal(images, generator)
            return threat.project(delta, images, exact=False)
        return threat.sample(images, generator)


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the fraction of logits (B, K) whose top class matches targets (B,) or (B, K)."""
    classes = targets if targets.ndim == 1 else targets.argmax(1)
    return (logits.detach().argmax(1) == classes).float().mean()
