"""Beckmann barycenter defense: Subramanyam, "Beckman Defense" (2023, arXiv:2301.01495).

Replaces each image by the barycenter of two rotated copies and fine-tunes an adversarially trained
network on these for one epoch. Only evaluation code was released: training follows our reading of
the abstract. The published gains assume an attacker unaware of the transform; here it is part of
the network, so every attack is adaptive.

The released code overwrites the second copy with the first, so the published gains belong to one
rotated and darkened copy, not to a barycenter of two. `spread` offers both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import Method, StepContext
from raybust.methods.pgd import Pgd
from raybust.numerics.barycenter import Prices, barycenter, rotations

Attack = Literal["adaptive", "oblivious", "bpda"]


class Barycentric(nn.Module):
    """Parameter-free transform in front of a network: x -> (1 - weight) x + weight B(views of x).

    The barycenter requires nonnegative measures, so images pushed outside [0, 1] by smoothing noise
    are clipped for it (our choice).
    """

    def __init__(
        self, prices: Prices, *, views: int, angle: float, weight: float, spread: bool
    ) -> None:
        """Stores the settings.

        Args:
            prices: constants of the barycenter.
            views: number K of rotated copies.
            angle: rotation of the first copy, in degrees; see `rotations`.
            weight: weight of the barycenter in the result, in [0, 1].
            spread: whether the copies are rotated differently; see `rotations`.
        """
        super().__init__()
        self.prices, self.views, self.angle, self.weight = prices, views, angle, weight
        self.spread = spread
        self.attack: Attack = "adaptive"

    def forward(self, images: Tensor) -> Tensor:
        """Transforms images (B, C, H, W), shape unchanged; preserves the range [0, 1]."""
        if self.weight == 0 or (self.attack == "oblivious" and not self.training):
            return images
        copies = rotations(images.clamp(0, 1), self.views, self.angle, spread=self.spread)
        result = barycenter(copies, self.prices)
        if self.weight < 1:
            result = images.lerp(result, self.weight)
        if self.attack == "bpda" and not self.training:
            return images + (result - images).detach()
        return result

    def extra_repr(self) -> str:
        """Returns the settings as shown in attack tables."""
        p = self.prices
        return (
            f"rho={p.rho:g}, mu={p.mu:g}, theta={p.theta:g}, views={self.views},"
            f" angle={self.angle:g}, weight={self.weight:g}"
            + ("" if self.spread else ", spread=False")
        )

    @contextmanager
    def attacked_by(self, attack: Attack) -> Iterator[None]:
        """Sets what attacks in the block see of the module: `oblivious` hides it, `bpda` (Athalye
        et al., 2018, arXiv:1802.00420) replaces its gradient by the identity.

        Training attacks run in eval mode (`attacked`); the loss runs in train mode and sees the
        actual transform.
        """
        mode = self.training
        self.training, self.attack = True, attack
        try:
            yield
        finally:
            self.training, self.attack = mode, "adaptive"


@dataclass(frozen=True, kw_only=True)
class Beckman(Method):
    """Loss of `base`, adversarial training, on the network behind the barycenter of rotated views.

    Intended for briefly fine-tuning an adversarially trained network: train.init=RUN,
    train.epochs=1, train.lr=0.01. At the published constants no mass moves between pixels and the
    barycenter is min(mean - 0.1, p_1, p_2) of the two copies, in [0, 1]. In the released code a bug
    makes the second copy equal the first, so it returns p_1 - 0.1: spread=False here.
    """

    base: Method = field(default_factory=Pgd)
    weight: float = option(
        1.0, "Weight of the barycenter in the network's input; the rest is the image.", ge=0, le=1
    )
    rho: float = option(0.5, "Cost factor on half the squared change of a view's pixels.", gt=0)
    mu: float = option(0.1, "Cost of adding or removing mass, relative to moving it a pixel.", gt=0)
    theta: float = option(0.1, "Cost of the barycenter's mass: darkens by theta / (K rho).", ge=0)
    views: int = option(2, "Number K of rotated copies of the image.", ge=1)
    angle: float = option(
        4.0, "Rotation of the first copy; the last has -angle.", ge=0, le=180, unit="degrees"
    )
    spread: bool = option(
        True, "Space the rotations from `angle` to -`angle`; false, as released: all are `angle`."
    )
    attack: Literal["adaptive", "oblivious", "bpda"] = option(
        "adaptive",
        "What the training attack sees of the transform: all, nothing, or an identity gradient.",
    )

    def problems(self) -> list[str]:
        """Adds constraints across fields."""
        found = super().problems()
        if not found and self.theta > self.views * self.mu:
            found.append(
                f"theta: got {self.theta:g}, expected <= views mu = {self.views * self.mu:g}, above"
                " which every barycenter is black"
            )
        return found

    def front(self) -> nn.Module:
        """Returns the transform, followed by the base's front module if any."""
        own = Barycentric(
            Prices(self.rho, self.mu, self.theta),
            views=self.views,
            angle=self.angle,
            weight=self.weight,
            spread=self.spread,
        )
        other = self.base.front()
        return own if other is None else nn.Sequential(own, other)

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the base's loss, with `attack` setting what its attack sees; see `Method.loss`.
        The network must include the module from `front`."""
        front = next(module for module in network.modules() if isinstance(module, Barycentric))
        with front.attacked_by(self.attack):
            return self.base.loss(network, images, targets, context)
