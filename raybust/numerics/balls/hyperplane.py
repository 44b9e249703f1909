"""The nearest point of a hyperplane within the [0, 1] box, in Linf, L2 and L1: exact, by sorting.

Croce and Hein (2020, arXiv:1907.02044, section 3). Each coordinate moves toward the hyperplane or
not at all, so the variables are magnitudes m between 0 and the room r inside the box: minimize the
norm subject to sum |w_i| m_i = |w . x - b|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raybust.numerics.balls.threat import Norm

_TINY = 1e-30


def to_hyperplane(points: Tensor, normals: Tensor, offsets: Tensor, norm: Norm) -> Tensor:
    """Returns the shortest steps (B, C, H, W) that move points onto their hyperplanes inside the
    box, or, if the box does not reach the hyperplane, as close to it as possible.

    Args:
        points: x, (B, C, H, W) in [0, 1].
        normals: w, (B, C, H, W).
        offsets: w . x - b, the signed excess of each point over its hyperplane: (B,).
        norm: norm of the steps.
    """
    slopes = normals.flatten(1).double().abs()
    excess = offsets.double().abs()[:, None]
    signs = -torch.sign(offsets).reshape(-1, 1) * torch.sign(normals.flatten(1))
    flat = points.flatten(1).double()
    room = torch.where(signs > 0, 1 - flat, flat) * (signs != 0)
    moved = _greedy(slopes, room, excess) if norm == "l1" else _capped(slopes, room, excess, norm)
    return (signs * moved).to(points.dtype).view_as(points)


def _capped(slopes: Tensor, room: Tensor, excess: Tensor, norm: Norm) -> Tensor:
    """Returns m = min(c v, r) with sum |w| m = excess: v is 1 for Linf, |w| for L2. The sum is
    piecewise linear in c, with a break where a coordinate reaches its room."""
    speeds = torch.ones_like(slopes) if norm == "linf" else slopes
    breaks = torch.where(speeds > 0, room / speeds.clamp(min=_TINY), torch.inf)
    order = breaks.argsort(1)
    breaks = breaks.gather(1, order)
    filled = (slopes * room).gather(1, order)
    rates = (slopes * speeds).gather(1, order)
    done = filled.cumsum(1) - filled  # by coordinates full before a break
    rate = rates.flip(1).cumsum(1).flip(1)  # of the others, including the one at the break
    reached = done + rate * torch.where(breaks.isfinite(), breaks, torch.zeros_like(breaks))
    at = (reached < excess).sum(1, keepdim=True)
    last = at.clamp(max=slopes.shape[1] - 1)
    scale = (excess - done.gather(1, last)) / rate.gather(1, last).clamp(min=_TINY)
    scale = torch.where(at == slopes.shape[1], torch.inf, scale.clamp(min=0))
    return torch.minimum(torch.nan_to_num(scale * speeds, nan=0.0, posinf=torch.inf), room)


def _greedy(slopes: Tensor, room: Tensor, excess: Tensor) -> Tensor:
    """Returns the m of smallest sum: coordinates with the largest |w| fill their rooms first."""
    order = slopes.argsort(1, descending=True)
    steep, space = slopes.gather(1, order), room.gather(1, order)
    before = (steep * space).cumsum(1) - steep * space
    wanted = ((excess - before) / steep.clamp(min=_TINY)).clamp(min=0)
    moved = torch.where(steep > 0, torch.minimum(wanted, space), torch.zeros_like(space))
    return torch.zeros_like(moved).scatter_(1, order, moved)
