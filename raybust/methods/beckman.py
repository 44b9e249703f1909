"""Beckmann barycenter defense: Subramanyam, "Beckman Defense" (2023, arXiv:2301.01495).

The network sees, in place of an image, the barycenter of two rotated copies of it; an adversarially
trained network is fine-tuned on that for an epoch. Only evaluation code was released: the training
is our reading of the abstract. The published gains are against an attacker who does not see the
transform; the transform is part of the network here, so that every attack on it is adaptive.
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
    """The transform, to go in front of a network: x -> (1 - weight) x + weight B(views of x).

    It has no parameters. Images outside [0, 1], which smoothing noise makes, are clipped for the
    barycenter, whose measures are not negative (our choice).
    """

    def __init__(self, prices: Prices, *, views: int, angle: float, weight: float) -> None:
        """Keeps the settings.

        Args:
            prices: constants of the barycenter.
            views: rotated copies, K.
            angle: of the first copy, in degrees; see `rotations`.
            weight: share of the barycenter in the result, in [0, 1].
        """
        super().__init__()
        self.prices, self.views, self.angle, self.weight = prices, views, angle, weight
        self.attack: Attack = "adaptive"

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to images of the same shape, in [0, 1] where the images are."""
        if self.weight == 0 or (self.attack == "oblivious" and not self.training):
            return images
        copies = rotations(images.clamp(0, 1), self.views, self.angle)
        result = barycenter(copies, self.prices)
        if self.weight < 1:
            result = images.lerp(result, self.weight)
        if self.attack == "bpda" and not self.training:
            return images + (result - images).detach()
        return result

    def extra_repr(self) -> str:
        """The settings, as tables of attacks name them."""
        p = self.prices
        return (
            f"rho={p.rho:g}, mu={p.mu:g}, theta={p.theta:g}, views={self.views},"
            f" angle={self.angle:g}, weight={self.weight:g}"
        )

    @contextmanager
    def attacked_by(self, attack: Attack) -> Iterator[None]:
        """Shows the module to the attacks in the block as `attack` says: `oblivious` not at all,
        `bpda` (Athalye et al., 2018, arXiv:1802.00420) with the identity for its gradient.

        Attacks of training put the network in eval mode (`attacked`); the loss, which sees the
        transform as it is, has it in train mode.
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

    Meant as a short fine-tuning of an adversarially trained network: init=RUN, train.epochs=1,
    train.lr=0.01. At the published constants no mass moves between pixels and the barycenter is
    min(mean - 0.1, p_1, p_2) of the two copies, in [0, 1]. In the release the second copy equals
    the first by mistake, which is views=1 theta=0.05 here.
    """

    base: Method = field(default_factory=Pgd)
    init: str | None = option(
        None,
        "Run, checkpoint folder or weights file from which the weights start; fresh if not given.",
    )
    weight: float = option(
        1.0, "Share of the barycenter in the network's input, the image being the rest.", ge=0, le=1
    )
    rho: float = option(0.5, "Price of changing a view's pixels, times half their squares.", gt=0)
    mu: float = option(0.1, "Price of mass made or lost, over that of carrying it a pixel.", gt=0)
    theta: float = option(0.1, "Price of the barycenter's mass; theta / (K rho) darker.", ge=0)
    views: int = option(2, "Rotated copies of the image, K.", ge=1)
    angle: float = option(
        4.0, "Rotation of the first copy; the others to -angle.", ge=0, le=180, unit="degrees"
    )
    attack: Literal["adaptive", "oblivious", "bpda"] = option(
        "adaptive",
        "What training's attack sees of the transform: all, nothing, or an identity gradient.",
    )

    def problems(self) -> list[str]:
        """Rules across fields, beside the fields' own."""
        found = super().problems()
        if not found and self.theta > self.views * self.mu:
            found.append(
                f"theta: got {self.theta:g}, expected <= views mu = {self.views * self.mu:g}: above"
                " it the barycenter of all images is black"
            )
        return found

    def front(self) -> nn.Module:
        """The transform, before the base's own front where it has one."""
        own = Barycentric(
            Prices(self.rho, self.mu, self.theta),
            views=self.views,
            angle=self.angle,
            weight=self.weight,
        )
        other = self.base.front()
        return own if other is None else nn.Sequential(own, other)

    def initial(self) -> str | None:
        """`init`, or what the base starts from."""
        return self.init if self.init is not None else self.base.initial()

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the base's loss, its attack seeing the transform as `attack` says; see
        `Method.loss`. The network has the module of `front` in front."""
        front = next(module for module in network.modules() if isinstance(module, Barycentric))
        with front.attacked_by(self.attack):
            return self.base.loss(network, images, targets, context)
