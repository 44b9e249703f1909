"""Mixup: Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization" (ICLR
2018, arXiv:1710.09412). Wraps any method, which is then given mixed images and targets.

Also the parts that the other mixing methods share: ratios, partners, targets as probabilities.
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


class Prepared(NamedTuple):
    """What `setup` finds: the number of classes, and what the base prepared."""

    classes: int
    base: Any


@dataclass(frozen=True, kw_only=True)
class Mixup(Method):
    """Loss of `base` on mixed images and targets: lam x_i + (1 - lam) x_j, lam ~ Beta(alpha,
    alpha), j a random partner in the batch.

    Each image has its own lam, as in the paper's formula; the authors' code draws one a batch. With
    base=pgd the attack is on the mixed image.
    """

    base: Method = field(default_factory=Standard)
    alpha: float = option(
        1.0, "Parameter of the Beta distribution of the ratio; towards 0 nothing is mixed.", gt=0
    )

    def setup(self, network: nn.Module, images: Tensor, targets: Tensor) -> Prepared:
        """Returns the number of classes and what the base prepares."""
        modes = [(module, module.training) for module in network.modules()]
        with torch.no_grad():
            classes = network.eval()(images[:1]).shape[1]
        for module, mode in modes:
            module.training = mode
        return Prepared(classes, self.base.setup(network, images, targets))

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the base's loss on the mixed batch; see `Method.loss`."""
        prepared: Prepared = context.prepared
        inner = dataclasses.replace(context, prepared=prepared.base)
        mixed, ratio, order = mixture(images, self.alpha, context.generator)
        labels = probabilities(targets, prepared.classes, images.dtype)
        return self.base.loss(network, mixed, blend(labels, labels[order], ratio), inner)


def mixture(
    images: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mixed images (B, C, H, W), their ratios (B,) and their partners, int64 (B,).

    Args:
        images: (B, C, H, W).
        alpha: parameter of the Beta distribution of the ratio of an image to its partner.
        generator: source of randomness, on the images' device.
    """
    ratio, order = pairing(images, alpha, generator)
    return blend(images, images[order], ratio), ratio, order


def pairing(images: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns a ratio from Beta(alpha, alpha), (B,) of the images' dtype, and a partner in the
    batch, int64 (B,), for each of B images; a partner may be the image itself.

    Args:
        images: (B, ...), for number, dtype and device.
        alpha: > 0; each ratio is a Gamma(alpha) variable over the sum of two.
        generator: source of randomness, on the images' device.
    """
    count, device = len(images), images.device
    order = torch.randperm(count, generator=generator, device=device)
    shape = torch.full((2, count), alpha, dtype=torch.float64, device=device)
    first, second = torch._standard_gamma(shape, generator=generator)
    ratio = (first / (first + second)).nan_to_num(nan=1.0)  # both underflow for tiny alpha only
    return ratio.to(images.dtype), order


def blend(first: Tensor, second: Tensor, ratio: Tensor) -> Tensor:
    """Returns ratio first + (1 - ratio) second, (B, ...), for ratios (B,); `first` to the last bit
    where the ratio is 1, and both where they are equal."""
    return torch.lerp(second, first, column(ratio, first))


def column(values: Tensor, like: Tensor) -> Tensor:
    """Returns (B,) as (B, 1, ..., 1), to go with `like`, (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def probabilities(targets: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Returns labels (B,) as one-hot probabilities (B, K) of a dtype; probabilities stay."""
    return targets if targets.ndim == 2 else F.one_hot(targets, classes).to(dtype)
