"""Exact projections onto the intersection of an L1 or L2 ball with bounds of either sign.

Projection keeps the signs, so the variables are magnitudes m and rooms r (how far a coordinate may
move in its direction). Solved as continuous quadratic knapsacks (Brucker, 1984; Kiwiel, 2008);
without bounds the L1 case is Duchi et al. (2008, "Efficient projections onto the l1-ball"). The
intersection matters: Croce and Hein (2021, arXiv:2103.01208).
"""

from __future__ import annotations

import torch
from torch import Tensor

_MOST = 100
_EVERY = 4
"""Rounds between the checks for convergence on a GPU, each of which stalls the host."""


def shrink_l2(magnitude: Tensor, room: Tensor, eps: float) -> Tensor:
    """Returns min(c m, r) for the largest c <= 1 at which its L2 norm is at most eps.

    The set of coordinates at their room grows monotonically as c rises from eps / ||m||, so the
    iteration is finite, usually about five rounds.

    Args:
        magnitude: m >= 0, (B, ...).
        room: r >= 0, same shape; infinity for no bound.
        eps: radius, > 0.
    """
    dims = tuple(range(1, magnitude.ndim))
    squares = magnitude.square()
    room_squares = room.square()
    zero = torch.zeros((), dtype=magnitude.dtype, device=magnitude.device)
    scale = (eps / squares.sum(dims, keepdim=True).sqrt()).clamp(max=1.0)
    on_host = magnitude.device.type == "cpu"
    for number in range(_MOST):
        capped = scale * magnitude > room
        left = eps**2 - torch.where(capped, room_squares, zero).sum(dims, keepdim=True)
        free = torch.where(capped, zero, squares).sum(dims, keepdim=True)
        new = (left.clamp(min=0.0) / free).sqrt().nan_to_num(nan=1.0).clamp(max=1.0)
        new = torch.maximum(new, scale)
        if (on_host or number % _EVERY == _EVERY - 1) and torch.equal(new, scale):
            break
        scale = new
    return torch.minimum(scale * magnitude, room)


def shrink_l1(magnitude: Tensor, room: Tensor, eps: float) -> Tensor:
    """Returns clip(m - v, 0, r) for the smallest v >= 0 at which its sum is at most eps.

    Bracketed Newton's method on the piecewise linear sum; every fourth round bisects.

    Args:
        magnitude: m >= 0, (B, ...).
        room: r >= 0, same shape; infinity for no bound.
        eps: radius, > 0.
    """
    dims = tuple(range(1, magnitude.ndim))
    tolerance = 8 * torch.finfo(magnitude.dtype).eps * eps
    low = torch.zeros_like(magnitude.sum(dims, keepdim=True))
    high = magnitude.amax(dims, keepdim=True)
    threshold, on_host = low, magnitude.device.type == "cpu"
    for number in range(_MOST):
        kept = torch.minimum((magnitude - threshold).clamp(min=0.0), room)
        excess = kept.sum(dims, keepdim=True) - eps
        done = (excess.abs() <= tolerance) | ((threshold == 0) & (excess <= 0))
        if (on_host or number % _EVERY == _EVERY - 1) and bool(done.all()):
            break
        moving = ((kept > 0) & (kept < room)).sum(dims, keepdim=True)
        low = torch.where(excess > 0, threshold, low)
        high = torch.where(excess > 0, high, threshold)
        newton = threshold + excess / moving
        safe = (newton > low) & (newton < high) & (number % 4 != 3)
        new = torch.where(safe, newton, (low + high) / 2)
        threshold = torch.where(done, threshold, new)
    return kept
