"""Where on the geodesics of a batch: the locations that a label rule allows, and the worst of them.
Part of numerics.

By the envelope theorem the gradient at a maximum needs the location only as a constant, so all of
this is without a gradient for the network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raybust.numerics.attacks import attacked
from raybust.numerics.transport.curves import Curves, climb

_MIDDLE = 0.5


def reach(u: Tensor, rule: str, cap: float) -> Tensor:
    """Returns the location of u in [0, 1] among those that a label rule allows: all of [0, 1] for
    `soft`, [0, cap] for `source`, [0, cap] and [1 - cap, 1] for `nearest`."""
    if rule == "source":
        return cap * u
    if rule == "nearest":
        return torch.where(u <= 0.5, 2 * cap * u, 1 - 2 * cap * (1 - u))
    return u


def grid_of(points: int, rule: str, cap: float, like: Tensor) -> Tensor:
    """Returns a grid (points,) of the allowed locations: the middles of its cells, or with the
    label of one end the far ends of its cells, since a fixed label's loss is the largest at the
    cap. `nearest` has the odd point at the start, and where the sides meet, at 1/2, that once."""
    steps = torch.arange(1, points + 1, dtype=like.dtype, device=like.device)
    if rule == "soft":
        return (steps - 0.5) / points
    if rule == "source":
        return cap * steps / points
    near, far = steps[: (points + 1) // 2], steps[: points // 2]
    cells = points // 2 + (cap == _MIDDLE)
    return torch.cat([cap * near / len(near), 1 - cap * far.flip(0) / cells])


def losses_at(network: nn.Module, curves: Curves, t: Tensor, rule: str) -> Tensor:
    """Returns the mean cross entropy (pairs,) at one location, or at one of each geodesic."""
    at = t[curves.pair] if t.ndim else t.expand(len(curves.pair))
    return curves.losses(network(curves.noisy(at)), at, rule)


def worst_of_grid(network: nn.Module, curves: Curves, grid: Tensor, rule: str) -> Tensor:
    """Returns the location (pairs,) of a grid where the mean cross entropy of each geodesic is the
    largest, in eval mode, under noise but never under attack; a forward pass a location.

    Args:
        network: images to logits; it is as it was afterwards.
        curves: of this batch.
        grid: locations (G,).
        rule: of the labels, see `Curves.labels`.
    """
    with attacked(network), torch.no_grad():
        losses = torch.stack([losses_at(network, curves, t, rule) for t in grid])
    return grid[losses.argmax(0)]


def climbed(
    network: nn.Module, curves: Curves, u: Tensor, *, steps: int, rule: str, cap: float
) -> Tensor:
    """Returns the locations (pairs,) that `climb` reaches from those of u (pairs,) in [0, 1], of
    the same loss as `worst_of_grid`."""
    with attacked(network):
        found = climb(lambda at: losses_at(network, curves, reach(at, rule, cap), rule), u, steps)
    return reach(found, rule, cap)


def decoded_accuracy(network: nn.Module, curves: Curves, count: int = 32) -> Tensor:
    """Returns the accuracy, a scalar, on about `count` of the curves' beginnings, decoded where
    they are codes, in eval mode without noise."""
    some = slice(None, None, max(1, len(curves.start) // count))
    start = curves.start[some]
    with attacked(network), torch.no_grad():
        found = network(start if curves.decode is None else curves.decode(start)).argmax(1)
    right: Tensor = found == curves.source[some].argmax(1)
    return right.float().mean()
