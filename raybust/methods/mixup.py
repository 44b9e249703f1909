"""Mixup: Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization" (ICLR
2018, arXiv:1710.09412). Wraps any method and passes it mixed images and targets.

Also defines what the mixing methods share: ratios, partners, targets as probabilities.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import Method, StepContext
from raybust.methods.standard import Standard
from raybust.numerics.modes import evaluating


class Prepared(NamedTuple):
    """Result of `setup`: the number of classes and the base's prepared state."""

    classes: int
    base: Any


@dataclass(frozen=True, kw_only=True)
class Mixup(Method):
    """Loss of `base` on mixed images and targets: lam x_i + (1 - lam) x_j, lam ~ Beta(alpha,
    alpha), j a random partner in the batch.

    Each image has its own lam, as in the paper's formula; the authors' code draws one per batch.
    With base=pgd the attack perturbs the mixed image.
    """

    base: Method = field(default_factory=Standard)
    alpha: float = option(
        1.0, "Parameter of the ratio's Beta distribution; values near 0 disable mixing.", gt=0
    )

    def setup(self, network: nn.Module, images: Tensor, targets: Tensor) -> Prepared:
        """Returns the number of classes and the base's prepared state."""
        with evaluating(network), torch.no_grad():
            classes = network(images[:1]).shape[1]
        return Prepared(classes, self.base.setup(network, images, targets))

    def inner(self, context: StepContext) -> StepContext:
        """Returns the context with the base's prepared state."""
        return dataclasses.replace(context, prepared=context.prepared.base)

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the base's loss on the mixed batch; see `Method.loss`."""
        mixed, ratio, order = mixture(images, self.alpha, context.generator)
        labels = probabilities(targets, context.prepared.classes, images.dtype)
        labels = blend(labels, labels[order], ratio)
        return self.base.loss(network, mixed, labels, self.inner(context))


def mixture(
    images: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mixed images (B, C, H, W), their ratios (B,) and the partners' indices, int64 (B,).

    Args:
        images: (B, C, H, W).
        alpha: parameter of the Beta distribution of each image's mixing ratio.
        generator: source of randomness, on the images' device.
    """
    ratio, order = pairing(images, alpha, generator)
    return blend(images, images[order], ratio), ratio, order


def pairing(images: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws for each of B images a ratio from Beta(alpha, alpha), (B,) in the images' dtype, and
    the index of a partner in the batch, int64 (B,); a partner may be the image itself.

    Args:
        images: (B, ...); only its length, dtype and device are used.
        alpha: > 0; each ratio is one of two Gamma(alpha) variables divided by their sum.
        generator: source of randomness, on the images' device.
    """
    count, device = len(images), images.device
    order = torch.randperm(count, generator=generator, device=device)
    shape = torch.full((2, count), alpha, dtype=torch.float64, device=device)
    first, second = torch._standard_gamma(shape, generator=generator)
    ratio = (first / (first + second)).nan_to_num(nan=1.0)  # NaN: both underflow at tiny alpha
    return ratio.to(images.dtype), order


def blend(first: Tensor, second: Tensor, ratio: Tensor) -> Tensor:
    """Returns ratio first + (1 - ratio) second, (B, ...), for ratios (B,); bitwise equal to `first`
    where the ratio is 1 or where both inputs are equal."""
    return torch.lerp(second, first, column(ratio, first))


def column(values: Tensor, like: Tensor) -> Tensor:
    """Reshapes (B,) to (B, 1, ..., 1), to broadcast against `like` (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def probabilities(targets: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Converts labels (B,) to one-hot probabilities (B, K); returns (B, K) targets unchanged."""
    return targets if targets.ndim == 2 else F.one_hot(targets, classes).to(dtype)
