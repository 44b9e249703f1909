"""Threat models: the perturbations an attacker may add to an image, as a value object.

L1, L2 and Linf balls with and without the [0, 1] box: exact projection, steepest step, uniform
sampling, norm. Top-k L1 steps are SLIDE's (Tramer and Boneh, 2019, arXiv:1904.13000).

Notation: B images of shape C x H x W with d = C H W pixels in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from raybust.errors import RequestError
from raybust.numerics.balls.projection import shrink_l1, shrink_l2
from raybust.numerics.balls.source import Source, normal, uniform

Norm = Literal["linf", "l2", "l1"]
"""Norms of a threat model."""

_ORDERS = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
_PULLS = 20
_MARGIN = 16
"""Rounding units by which a projection stays inside the ball, because image + perturbation is
rounded again."""


@dataclass(frozen=True)
class Threat:
    """The perturbations delta with ||delta|| <= eps and, with the box, 0 <= image + delta <= 1.

    Attributes:
        norm: `linf`, `l2` or `l1`.
        eps: radius in the norm, pixels in [0, 1]; 0 allows nothing.
        box: whether perturbed images stay in [0, 1].
    """

    norm: Norm
    eps: float
    box: bool = True

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise RequestError(
                f"norm: got {self.norm!r}, expected one of {', '.join(get_args(Norm))}"
            )
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise RequestError(f"eps: got {self.eps}, expected a number >= 0")

    def scaled(self, factor: float) -> Threat:
        """Returns the threat with `factor` times the radius."""
        return replace(self, eps=factor * self.eps)

    def size(self, delta: Tensor) -> Tensor:
        """Returns the norm of each perturbation of a batch (B, ...): (B,)."""
        dims = tuple(range(1, delta.ndim))
        sizes: Tensor = torch.linalg.vector_norm(delta, _ORDERS[self.norm], dim=dims)
        return sizes

    def project(self, delta: Tensor, images: Tensor, *, exact: bool = True) -> Tensor:
        """Returns the nearest allowed perturbation in L2.

        Args:
            delta: (B, C, H, W).
            images: (B, C, H, W) in [0, 1].
            exact: False projects radially and then clips for L2 with the box: allowed and cheap,
                but not the nearest. Other projections are always exact.
        """
        if self.eps == 0:
            return torch.zeros_like(delta)
        if self.norm == "linf":
            return self.clip(delta.clamp(-self.eps, self.eps), images)
        eps = self.eps * (1 - _MARGIN * torch.finfo(delta.dtype).eps)
        if self.norm == "l2" and not (exact and self.box):
            scale = (eps / self.size(delta)).clamp(max=1.0)
            return self.clip(delta * _column(scale, delta), images)
        room = torch.full_like(delta, math.inf)
        if self.box:
            room = torch.where(delta > 0, 1 - images, images)
        shrink = shrink_l2 if self.norm == "l2" else shrink_l1
        return torch.copysign(shrink(delta.abs(), room, eps), delta)

    def pull_in(self, points: Tensor, images: Tensor) -> Tensor:
        """Moves points that rounding put outside the ball back into it: the errors of `images +
        delta` add up over the pixels of large images, most of all in L1.

        Args:
            points: (B, C, H, W), float32.
            images: (B, C, H, W), the centers.
        """
        delta = points.double() - images.double()
        factor = torch.ones(len(images), dtype=torch.float64, device=images.device)
        for _ in range(_PULLS):
            sizes = self.size(points.double() - images.double())
            outside = sizes > self.eps
            if not bool(outside.any()):
                break
            shrunk = factor * (1 - 1.5 * (sizes / self.eps - 1)) if self.eps else 0 * factor
            factor = torch.where(outside, shrunk.clamp(min=0.0), factor)
            moved = (images.double() + delta * _column(factor, delta)).to(points.dtype)
            points = torch.where(_column(outside, points), moved, points)
        return points

    def clip(self, delta: Tensor, images: Tensor) -> Tensor:
        """Returns the nearest perturbation inside the box; `delta` itself without one."""
        return torch.maximum(torch.minimum(delta, 1 - images), -images) if self.box else delta

    def steepest(
        self,
        gradient: Tensor,
        images: Tensor | None = None,
        *,
        share: float | Tensor | None = None,
    ) -> Tensor:
        """Returns the direction of norm 1 of steepest ascent; 0 where the gradient is 0.

        Linf: the sign. L2: the normalized gradient, exact even for tiny gradients. L1: the signs of
        the k coordinates with the largest gradient, over k. A single coordinate is steepest, but
        stops at the box: k defaults to the number of coordinates that the ball can fill up to the
        box, 1 without the box.

        Args:
            gradient: (B, C, H, W).
            images: (B, C, H, W), the centers of the balls, for the default k.
            share: k / d for L1, in (0, 1], for all or (B,); k is at least 1. SLIDE uses 0.01.
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            dims = tuple(range(1, gradient.ndim))
            peak = gradient.abs().amax(dims, keepdim=True)
            scaled = gradient / torch.where(peak > 0, peak, torch.ones_like(peak))
            norms = _column(self.size(scaled), gradient)
            return scaled / torch.where(norms > 0, norms, torch.ones_like(norms))
        if share is None:
            share = self.filled(gradient, images) / gradient[0].numel()
        return _top_signs(gradient, share)

    def filled(self, gradient: Tensor, images: Tensor | None) -> Tensor:
        """Returns how many coordinates, by decreasing gradient, an L1 ball of this radius fills up
        to the box: int64 (B,); 1 without the box or without images."""
        if not self.box or images is None:
            return torch.ones(len(gradient), dtype=torch.int64, device=gradient.device)
        room = torch.where(gradient > 0, 1 - images, images).flatten(1)
        order = gradient.abs().flatten(1).argsort(1, descending=True)
        used = room.gather(1, order).cumsum(1)
        return ((used < self.eps).sum(1) + 1).clamp(max=room.shape[1])

    def sample(self, images: Tensor, source: Source) -> Tensor:
        """Draws perturbations (B, C, H, W) uniformly from the ball, clipped into the box.

        L2: a Gaussian direction and radius eps U^(1/d). L1: exponential spacings with random signs
        (Devroye, 1986, chapter 5).

        Args:
            images: (B, C, H, W) in [0, 1].
            source: source of randomness.
        """
        pixels = images[0].numel()
        if self.norm == "linf":
            delta = uniform(images, source).mul_(2 * self.eps).sub_(self.eps)
        elif self.norm == "l2":
            delta = normal(images, source)
            radius = self.eps * uniform(images[:, 0, 0, 0], source) ** (1 / pixels)
            delta = delta * _column(radius / self.size(delta), delta)
        else:
            signed = uniform(images, source).mul_(2).sub_(1)
            below = 1 - torch.finfo(signed.dtype).eps / 2  # the spacing at 1 is infinite
            spacing = -torch.log1p(-signed.abs().clamp(max=below))
            rest = -torch.log1p(-uniform(images[:, 0, 0, 0], source))
            total = spacing.sum(tuple(range(1, images.ndim))) + rest
            delta = torch.copysign(spacing, signed) * _column(self.eps / total, images)
        return self.clip(delta, images)


def show_eps(eps: float) -> str:
    """Formats a radius as 8/255 if it is a whole number of 255ths below 1, also if rounded to six
    digits, as in names of metrics."""
    levels = eps * 255
    whole = eps < 1 and abs(levels - round(levels)) < 2e-4 and round(levels) > 0
    return f"{round(levels)}/255" if whole else f"{eps:g}"


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Reshapes (B,) to (B, 1, ..., 1), to broadcast with (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _top_signs(gradient: Tensor, share: float | Tensor) -> Tensor:
    """Returns the signs of each example's k largest coordinates, divided by their number."""
    sizes = gradient.abs().flatten(1)
    pixels = sizes.shape[1]
    if isinstance(share, Tensor):
        count = (share * pixels + 1e-3).long().clamp(1, pixels)
        order = sizes.sort(1, descending=True).values
        least = order.gather(1, count[:, None] - 1)
    else:
        least = sizes.topk(max(1, int(share * pixels)), dim=1).values[:, -1:]
    chosen = gradient.sign() * (gradient.abs() >= _column(least[:, 0], gradient))
    used = chosen.abs().sum(tuple(range(1, gradient.ndim)), keepdim=True)
    return chosen / used.clamp(min=1.0)
