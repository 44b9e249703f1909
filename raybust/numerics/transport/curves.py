"""The paths of a batch as curves of labeled images, and what is computed along them: the mean of
each geodesic, its slope, the climb to the worst location. Part of numerics.

One location is shared by all images of a geodesic, since what is maximized and made smooth is a
property of the distribution, not of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raybust.numerics.transport.interpolation import check_location, interpolate
from raybust.numerics.transport.pairs import Paths
from raybust.numerics.transport.spaces import Space


class Curves(NamedTuple):
    """Both ends of M paths, on `pairs` geodesics.

    Attributes:
        start: images (M, C, H, W) in [0, 1], or points (M, ...) that `decode` makes such images of.
        end: as `start`.
        source: probabilities (M, K) of the start's label.
        target: those of the end's.
        pair: int64 (M,), the geodesic that a path is on.
        pairs: how many there are.
        noise: (M, C, H, W), smoothing noise, which all points of a path share; 0 where there is
            none.
        decode: of the space that the points are in.
    """

    start: Tensor
    end: Tensor
    source: Tensor
    target: Tensor
    pair: Tensor
    pairs: int
    noise: Tensor | float
    decode: Callable[[Tensor], Tensor] | None = None

    def images(self, t: float | Tensor) -> Tensor:
        """Returns the images (M, C, H, W) at a location, one or (M,), without noise."""
        points = interpolate(self.start, self.end, t)
        return points if self.decode is None else self.decode(points)

    def noisy(self, t: float | Tensor) -> Tensor:
        """Returns the images at a location with noise: mixed first, so that the noise has the full
        sigma everywhere on the path."""
        return self.images(t) + self.noise

    def labels(self, t: float | Tensor, rule: str = "soft") -> Tensor:
        """Returns the probabilities (M, K) at a location, one or (M,).

        Args:
            t: location in [0, 1].
            rule: `soft`, (1 - t) source + t target; `nearest`, the source's where t <= 1/2, else
                the target's; `source`.

        Raises:
            ValueError: a location is outside [0, 1], unless the rule is `source`, which has none.
        """
        if rule == "soft":
            return interpolate(self.source, self.target, t)
        if rule == "source":
            return self.source
        at = check_location(torch.as_tensor(t, device=self.source.device))
        at = at.expand(len(self.source))
        return torch.where(at[:, None] <= 0.5, self.source, self.target)

    def losses(self, logits: Tensor, t: float | Tensor, rule: str = "soft") -> Tensor:
        """Returns the mean cross entropy (pairs,) of each geodesic, for logits (M, K) of its images
        at a location."""
        each = F.cross_entropy(logits, self.labels(t, rule), reduction="none")
        return self.means(each[:, None])[:, 0]

    def performance(self, logits: Tensor, t: float | Tensor, kind: str = "loss") -> Tensor:
        """Returns what is to be smooth, of each geodesic: the mean cross entropy to the mixed label
        (pairs, 1), or with `probabilities` the mean of those (pairs, K)."""
        if kind == "probabilities":
            return self.means(logits.softmax(1))
        return self.losses(logits, t)[:, None]

    def means(self, values: Tensor) -> Tensor:
        """Returns the mean over the paths of each geodesic: (..., M, D) to (..., pairs, D)."""
        member = F.one_hot(self.pair, self.pairs).to(values.dtype)
        return (member / member.sum(0)).T @ values


def between(
    space: Space, probabilities: Tensor, paths: Paths, noise: Tensor | float = 0.0
) -> Curves:
    """Returns the paths of a batch as curves in a space.

    Args:
        space: its B points.
        probabilities: (B, K), of their labels.
        paths: who goes to whom.
        noise: as of `Curves`.
    """
    return Curves(
        space.points[paths.source],
        space.points[paths.partner],
        probabilities[paths.source],
        probabilities[paths.partner],
        paths.pair,
        paths.pairs,
        noise,
        space.decode,
    )


def slope(network: Callable[[Tensor], Tensor], curves: Curves, at: Tensor) -> Tensor:
    """Returns d/dt of the mean cross entropy to the mixed label on each geodesic, (pairs,), with a
    graph for its gradient: the image's motion and the label's.

    Through batch norms in training mode, by which all images of a batch meet, it is the geodesic's
    share of the slope of the batch's loss: what its own motion does to all, not what all do to it.

    Args:
        network: images to logits.
        curves: of this batch.
        at: location in [0, 1], a scalar.
    """
    t = at.detach().expand(len(curves.start)).clone().requires_grad_()
    # Neither what torch.compile makes nor fused attention has a second derivative.
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        logits = network(curves.noisy(t))
    loss = F.cross_entropy(logits, curves.labels(t), reduction="sum")
    (found,) = torch.autograd.grad(loss, t, create_graph=True)
    return curves.means(found[:, None])[:, 0]


def climb(objective: Callable[[Tensor], Tensor], u: Tensor, steps: int) -> Tensor:
    """Returns locations (pairs,) after gradient steps up, each on its own, of length 1/4, 1/8, ...
    in [0, 1] (our choice: the sign alone counts, so that the loss needs no scale).

    Args:
        objective: locations (pairs,) to values (pairs,), each of its own location.
        u: (pairs,) in [0, 1], the start.
        steps: how many.
    """
    for number in range(steps):
        at = u.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(at).sum(), at)
        u = (at.detach() + gradient.sign() / 2 ** (number + 2)).clamp(0, 1)
    return u


def jittered(segments: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a rising grid (segments + 1,) from 0 to 1 whose inner points are uniform, each within
    half a cell of its place: differences on a grid that stays would miss what fits between."""
    draw = torch.rand(segments - 1, generator=generator, device=like.device, dtype=like.dtype)
    inner = torch.arange(1, segments, dtype=like.dtype, device=like.device) - 0.5 + draw
    zero = inner.new_zeros(1)
    return torch.cat([zero, inner / segments, zero + 1])
