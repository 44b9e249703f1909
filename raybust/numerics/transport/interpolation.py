"""Displacement interpolation on the Wasserstein geodesic of two clouds (McCann, Advances in
Mathematics 128, 1997), which for the squared Euclidean cost is their weighted barycenter (Agueh
and Carlier, SIAM J. Math. Anal. 43, 2011).

Location t in [0, 1] runs from the first cloud to the second.
"""

from __future__ import annotations

import torch
from torch import Tensor


def interpolate(x: Tensor, y: Tensor, t: float | Tensor) -> Tensor:
    """Returns (1 - t) x + t y; exactly x at t = 0 and y at t = 1.

    Args:
        x: (n, ...).
        y: (n, ...), the partners.
        t: location in [0, 1], one or (n,).

    Raises:
        ValueError: a location is outside [0, 1] or NaN.
    """
    at = torch.as_tensor(check_location(t), dtype=x.dtype)
    if at.ndim:
        at = at.to(x.device).view(-1, *[1] * (x.ndim - 1))
    return (1 - at) * x + at * y


def variation(values: Tensor, locations: Tensor, power: int = 1) -> Tensor:
    """Returns sum_k |G(t_k+1) - G(t_k)|^p / (t_k+1 - t_k)^(p-1) over the first axis: a lower bound
    on the integral of |dG/dt|^p, to which it rises under nested refinement.

    Args:
        values: G on the grid, (s + 1, ...).
        locations: (s + 1,), rising.
        power: p, >= 1.
    """
    steps = locations.diff().view(-1, *[1] * (values.ndim - 1))
    return (values.diff(dim=0).abs() ** power / steps ** (power - 1)).sum(0)


def check_location(t: float | Tensor) -> float | Tensor:
    """Returns the locations unchanged.

    Raises:
        ValueError: a location is outside [0, 1] or NaN. Tensors on a GPU are not checked, because
            that would stall the host.
    """
    known = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    if known.device.type == "cpu" and not ((known >= 0) & (known <= 1)).all():
        raise ValueError(f"location: got {known.detach().flatten().tolist()}, expected in [0, 1]")
    return t
