"""Locations on the geodesics of a batch: those that a label rule allows, and the worst of them.

By the envelope theorem the gradient at a maximum treats the location as a constant, so nothing
here needs gradients with respect to the network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raybust.numerics.attacks import attacked
from raybust.numerics.transport.curves import Curves, climb

_MIDDLE = 0.5


def reach(u: Tensor, rule: str, cap: float) -> Tensor:
    """Maps u in [0, 1] to the locations that a label rule allows: [0, 1] for `soft`, [0, cap] for
    `source`, [0, cap] and [1 - cap, 1] for `nearest`."""
    if rule == "source":
        return cap * u
    if rule == "nearest":
        return torch.where(u <= 0.5, 2 * cap * u, 1 - 2 * cap * (1 - u))
    return u


def grid_of(points: int, rule: str, cap: float, like: Tensor) -> Tensor:
    """Returns a grid (points,) of the allowed locations: midpoints of cells, or, for the label of
    one end, far ends of cells, since the loss of a fixed label is largest at the cap. For `nearest`
    an odd point goes to the start, and 1/2, where the sides can meet, appears once."""
    steps = torch.arange(1, points + 1, dtype=like.dtype, device=like.device)
    if rule == "soft":
        return (steps - 0.5) / points
    if rule == "source":
        return cap * steps / points
    near, far = steps[: (points + 1) // 2], steps[: points // 2]
    cells = points // 2 + (cap == _MIDDLE)
    return torch.cat([cap * near / len(near), 1 - cap * far.flip(0) / cells])


def losses_at(network: nn.Module, curves: Curves, t: Tensor, rule: str) -> Tensor:
    """Returns the mean cross entropy (pairs,) at one location, or at one per geodesic."""
    at = t[curves.pair] if t.ndim else t.expand(len(curves.pair))
    return curves.losses(network(curves.noisy(at)), at, rule)


def worst_of_grid(network: nn.Module, curves: Curves, grid: Tensor, rule: str) -> Tensor:
    """Returns the grid location (pairs,) with the largest mean cross entropy on each geodesic, in
    eval mode, with noise but not under attack; one forward pass per location.

    Args:
        network: images to logits; its state is restored.
        curves: curves of this batch.
        grid: locations (G,).
        rule: label rule, see `Curves.labels`.
    """
    with attacked(network), torch.no_grad():
        losses = torch.stack([losses_at(network, curves, t, rule) for t in grid])
    return grid[losses.argmax(0)]


def climbed(
    network: nn.Module, curves: Curves, u: Tensor, *, steps: int, rule: str, cap: float
) -> Tensor:
    """Returns the locations (pairs,) that `climb` reaches from u (pairs,) in [0, 1], for the same
    loss as `worst_of_grid`."""
    with attacked(network):
        found = climb(lambda at: losses_at(network, curves, reach(at, rule, cap), rule), u, steps)
    return reach(found, rule, cap)


def decoded_accuracy(network: nn.Module, curves: Curves) -> Tensor:
    """Returns the accuracy, a scalar, on about 32 of the curves' starting points, decoded if they
    are codes, in eval mode without noise."""
    some = slice(None, None, max(1, len(curves.start) // 32))
    start = curves.start[some]
    with attacked(network), torch.no_grad():
        found = network(start if curves.decode is None else curves.decode(start)).argmax(1)
    right: Tensor = found == curves.source[some].argmax(1)
    return right.float().mean()
