"""CAT-RS: Jeong, Kim and Shin, "Confidence-aware Training of Smoothed Classifiers for Certified
Robustness" (AAAI 2023, arXiv:2212.09000).

As in the authors' code, the noise is attacked instead of the image, and the predictions to keep are
votes of a network that was trained with Gaussian noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import Method, StepContext
from raybust.numerics.attacks import Network, attacked, gradient_at
from raybust.numerics.balls import Threat, normal


@dataclass(frozen=True, kw_only=True)
class CatRs(Method):
    """loss = sum of the K smallest of m noisy copies' cross entropies, over m, plus, where K = m,
    weight max_i KL(q || p(x + noise_i*)); K ~ Binomial(m, share of right votes), at least 1.

    q are the votes' shares of the teacher; without one, those of the network's own m copies (our
    choice). noise* is the noise after an attack that keeps its mean and mean square. The authors
    use weight 0.5, 1, 2 on CIFAR-10 at sigma 0.25, 0.5, 1.
    """

    sigma: float = option(0.25, "Standard deviation of the noise.", gt=0, unit="pixels in [0, 1]")
    m: int = option(4, "Noisy copies of each image.", ge=1, unit="copies")
    weight: float = option(0.5, "Weight lambda of the worst divergence.", ge=0)
    eps: float = option(
        1.0, "Radius of the attack on the noise, L2.", gt=0, unit="pixels in [0, 1]"
    )
    steps: int = option(4, "Steps of the attack, each of 2 eps / steps.", ge=1)
    teacher: str | None = option(
        None,
        "Run, trial, checkpoint or weights file of a network trained with Gaussian noise; the"
        " authors' has sigma 0.25.",
    )
    votes: int = option(16, "Noisy copies of each image that the teacher votes on.", ge=1)
    teacher_sigma: float = option(
        0.25, "Standard deviation of the teacher's noise.", gt=0, unit="pixels in [0, 1]"
    )
    confidence: Literal["network", "teacher"] = option(
        "network", "Whose votes K is drawn by; `teacher` where the network is still at chance."
    )

    def problems(self) -> list[str]:
        """Adds constraints across fields."""
        found = super().problems()
        if self.confidence == "teacher" and self.teacher is None:
            found.append("confidence: got 'teacher', expected 'network' without method.teacher")
        return found

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss above; see `Method.loss`.

        Metrics: `cat_rs/confident`, the share of images with K = m.
        """
        shape = self.m, len(images)
        copies = images.repeat(self.m, 1, 1, 1)
        noise = self.sigma * normal(copies, context.generator)
        logits = network(copies + noise)
        own = _votes(logits.detach().reshape(*shape, -1))
        votes = own if context.teach is None else self._taught(images, context)
        repeated = targets.repeat(self.m, *[1] * (targets.ndim - 1))
        losses = F.cross_entropy(logits, repeated, reduction="none").reshape(shape)
        share = _right(votes if self.confidence == "teacher" else own, context.sharp(targets))
        draws = torch.rand(
            shape, generator=context.generator, device=images.device, dtype=images.dtype
        )
        kept = (draws < share).sum(0).clamp(min=1)
        ranks = torch.arange(self.m, device=images.device)[:, None]
        fit: Tensor = (losses.sort(0).values * (ranks < kept)).mean()
        confident = kept == self.m
        context.metrics["cat_rs/confident"] = confident.float().mean()
        if not self.weight:
            return fit
        with attacked(network):
            moved = self._attack(network, copies, noise, votes)
        found = network(copies + moved).log_softmax(1).reshape(*shape, -1)
        worst = F.kl_div(found, votes.expand_as(found), reduction="none").sum(2).amax(0)
        return fit + self.weight * (worst * confident).mean()

    def noise(self) -> float:
        """Returns the training sigma, which certification also uses."""
        return self.sigma

    def taught_by(self) -> str | None:
        """Returns the teacher."""
        return self.teacher

    def _taught(self, images: Tensor, context: StepContext) -> Tensor:
        """Returns the shares (B, K) of the teacher's votes."""
        assert context.teach is not None
        copies = images.repeat(self.votes, 1, 1, 1)
        noisy = copies + self.teacher_sigma * normal(copies, context.generator)
        logits = context.teach(noisy).reshape(self.votes, len(images), -1)
        return _votes(logits).to(images.dtype)

    def _attack(self, network: Network, copies: Tensor, noise: Tensor, votes: Tensor) -> Tensor:
        """Returns noise (m B, C, H, W) that moves the predictions away from the votes.

        Args:
            network: prepared by `attacked`.
            copies: images (m B, C, H, W).
            noise: of the same shape.
            votes: (B, K).
        """
        ball = Threat("l2", self.eps, box=False)
        repeated = votes.repeat(self.m, 1)
        mean, rms = _moments(noise)

        def objective(logits: Tensor) -> Tensor:
            return F.kl_div(logits.log_softmax(1), repeated, reduction="sum")

        moved = noise
        for _ in range(self.steps):
            gradient = gradient_at(network, copies + moved, objective)
            step = 2 * self.eps / self.steps * ball.steepest(gradient)
            moved = noise + ball.project(moved + step - noise, copies)
            center, size = _moments(moved)
            moved = mean + (moved - center) / size * rms
        return moved


def _votes(logits: Tensor) -> Tensor:
    """Returns the share of each class among the predictions of logits (m, B, K): (B, K)."""
    return F.one_hot(logits.argmax(2), logits.shape[2]).to(logits.dtype).mean(0)


def _right(votes: Tensor, targets: Tensor) -> Tensor:
    """Returns the share (B,) of votes (B, K) for targets (B,) or (B, K)."""
    if targets.ndim == 1:
        return votes.gather(1, targets[:, None])[:, 0]
    return (votes * targets).sum(1)


def _moments(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and root mean square of each row, (N, 1, 1, 1)."""
    dims = tuple(range(1, noise.ndim))
    return noise.mean(dims, keepdim=True), noise.square().mean(dims, keepdim=True).sqrt()
