"""The paths of a batch as curves of labeled images, and computations along them: means over each
geodesic, slopes, gradient ascent to the worst location.

All images of a geodesic share one location: what is maximized and smoothed is a property of the
distribution, not of an image.
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
    """Both ends of M paths on `pairs` geodesics.

    Attributes:
        start: images (M, C, H, W) in [0, 1], or points (M, ...) that `decode` maps to images.
        end: like `start`.
        source: label probabilities (M, K) of `start`.
        target: label probabilities (M, K) of `end`.
        pair: int64 (M,), the geodesic of each path.
        pairs: number of geodesics.
        noise: (M, C, H, W), smoothing noise shared by all points of a path; 0 for none.
        decode: decoder of the points' space.
    """

    start: Tensor
    end: Tensor
    source: Tensor
    target: Tensor
    pair: Tensor
    pairs: int
    noise: Tensor | float
    decode: Callable[[Tensor], Tensor] | None = None

    def at(self, chosen: Tensor) -> Curves:
        """Returns some of the paths, by position int64 (m,); geodesics keep their index."""
        noise = self.noise[chosen] if isinstance(self.noise, Tensor) else self.noise
        return self._replace(
            start=self.start[chosen],
            end=self.end[chosen],
            source=self.source[chosen],
            target=self.target[chosen],
            pair=self.pair[chosen],
            noise=noise,
        )

    def first(self, most: int | None) -> Curves:
        """Returns at most `most` paths of each geodesic, the first ones; all if None. Reads from
        the device."""
        if most is None:
            return self
        number = F.one_hot(self.pair, self.pairs).cumsum(0).gather(1, self.pair[:, None])[:, 0]
        return self.at((number <= most).nonzero()[:, 0])

    def distance(self) -> Tensor:
        """Returns the root mean square of the distances between both ends, a scalar."""
        return (self.end - self.start).square().flatten(1).sum(1).mean().sqrt()

    def images(self, t: float | Tensor) -> Tensor:
        """Returns the images (M, C, H, W) at location t, one or (M,), without noise."""
        points = interpolate(self.start, self.end, t)
        return points if self.decode is None else self.decode(points)

    def noisy(self, t: float | Tensor) -> Tensor:
        """Returns the images at location t with noise, added after mixing so that sigma is the same
        everywhere on the path."""
        return self.images(t) + self.noise

    def labels(self, t: float | Tensor, rule: str = "soft") -> Tensor:
        """Returns the label probabilities (M, K) at location t, one or (M,).

        Args:
            t: location in [0, 1].
            rule: `soft`, (1 - t) source + t target; `nearest`, source if t <= 1/2, else target;
                `source`.

        Raises:
            ValueError: a location is outside [0, 1]; never for `source`, which ignores it.
        """
        if rule == "soft":
            return interpolate(self.source, self.target, t)
        if rule == "source":
            return self.source
        near = check_location(t) <= 0.5
        if isinstance(near, bool):
            return self.source if near else self.target
        near = near.to(self.source.device).expand(len(self.source))
        return torch.where(near[:, None], self.source, self.target)

    def losses(self, logits: Tensor, t: float | Tensor, rule: str = "soft") -> Tensor:
        """Returns the mean cross entropy (pairs,) of each geodesic, for the logits (M, K) of the
        images at location t."""
        each = F.cross_entropy(logits, self.labels(t, rule), reduction="none")
        return self.means(each[:, None])[:, 0]

    def performance(self, logits: Tensor, t: float | Tensor, kind: str = "loss") -> Tensor:
        """Returns the quantity to smooth on each geodesic: the mean cross entropy to the mixed
        label (pairs, 1), or for kind `probabilities` the mean probabilities (pairs, K)."""
        if kind == "probabilities":
            return self.means(logits.softmax(1))
        return self.losses(logits, t)[:, None]

    def means(self, values: Tensor) -> Tensor:
        """Averages over the paths of each geodesic: (..., M, D) to (..., pairs, D)."""
        member = F.one_hot(self.pair, self.pairs).to(values.dtype)
        return (member / member.sum(0)).T @ values


def between(
    space: Space, probabilities: Tensor, paths: Paths, noise: Tensor | float = 0.0
) -> Curves:
    """Returns the paths of a batch as curves in a space.

    Args:
        space: the batch as B points.
        probabilities: label probabilities (B, K).
        paths: which point goes to which.
        noise: as in `Curves`.
    """
    end, target = space.points[paths.partner], probabilities[paths.partner]
    if paths.weights is not None:
        ends = paths.weights @ space.points.flatten(1)
        end = ends.view(len(ends), *space.points.shape[1:])
        target = paths.weights.to(probabilities.dtype) @ probabilities
    return Curves(
        space.points[paths.source],
        end,
        probabilities[paths.source],
        target,
        paths.pair,
        paths.pairs,
        noise,
        space.decode,
    )


def slope(
    network: Callable[[Tensor], Tensor], curves: Curves, at: Tensor, *, label: bool = True
) -> Tensor:
    """Returns d/dt of the mean cross entropy to the mixed label on each geodesic, (pairs,), with a
    graph for its gradient.

    With batch norm in train mode, which couples the images of a batch, this is the geodesic's share
    of the slope of the batch loss: the effect of its motion on all, not of all on it.

    Args:
        network: images to logits.
        curves: curves of this batch.
        at: location in [0, 1], a scalar.
        label: whether the label moves with the image; in the derivative that Zhu et al. (2023)
            print, it does not.
    """
    t = at.detach().expand(len(curves.start)).clone().requires_grad_()
    # Compiled graphs and fused attention have no second derivatives.
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        logits = network(curves.noisy(t))
    loss = F.cross_entropy(logits, curves.labels(t if label else t.detach()), reduction="sum")
    (found,) = torch.autograd.grad(loss, t, create_graph=True)
    return curves.means(found[:, None])[:, 0]


def climb(objective: Callable[[Tensor], Tensor], u: Tensor, steps: int) -> Tensor:
    """Returns locations (pairs,) in [0, 1] after independent sign-gradient ascent steps of length
    1/4, 1/8, ... (our choice: independent of the scale of the loss).

    Args:
        objective: locations (pairs,) to values (pairs,), elementwise.
        u: starting locations (pairs,) in [0, 1].
        steps: number of steps.
    """
    for number in range(steps):
        at = u.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(at).sum(), at)
        u = (at.detach() + gradient.sign() / 2 ** (number + 2)).clamp(0, 1)
    return u


def jittered(segments: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a rising grid (segments + 1,) from 0 to 1 whose inner points are uniform, each within
    half a cell of its regular position: a fixed grid would miss variation between its points."""
    draw = torch.rand(segments - 1, generator=generator, device=like.device, dtype=like.dtype)
    inner = torch.arange(1, segments, dtype=like.dtype, device=like.device) - 0.5 + draw
    zero = inner.new_zeros(1)
    return torch.cat([zero, inner / segments, zero + 1])
