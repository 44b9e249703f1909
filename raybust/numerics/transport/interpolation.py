"""Points on the Wasserstein geodesic of two clouds: McCann's displacement interpolation, which for
the squared Euclidean cost is the weighted barycenter of the two (McCann, Advances in Mathematics
128, 1997; Agueh and Carlier, SIAM J. Math. Anal. 43, 2011). Part of numerics.

A location t in [0, 1] runs from the first cloud to the second. The entropic barycenter is the
textbook's free-support iteration: that Zhu et al. (2023) use one is known, its form is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raybust.numerics.transport.coupling import full_plan, sinkhorn, squared_distances

_SLACK = 1e-4
"""Largest error of a plan's total that `displacement` accepts, for plans in float32."""


def interpolate(x: Tensor, y: Tensor, t: float | Tensor) -> Tensor:
    """Returns (1 - t) x + t y; exactly x at t = 0 and y at t = 1.

    Args:
        x: (n, ...).
        y: (n, ...), the partner of each.
        t: location in [0, 1], one or (n,).

    Raises:
        ValueError: a location is outside [0, 1] or NaN.
    """
    at = check_location(torch.as_tensor(t, dtype=x.dtype, device=x.device))
    if at.ndim:
        at = at.view(-1, *[1] * (x.ndim - 1))
    return (1 - at) * x + at * y


def displacement(x: Tensor, y: Tensor, plan: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Returns the points (s, ...) of mu_t = sum_ij plan_ij delta at (1 - t) x_i + t y_j, and their
    weights (s,): one for each entry of the plan that is not 0, row by row.

    A point of the geodesic where the plan is optimal, of some curve where it is not.

    Args:
        x: (n, ...).
        y: (m, ...).
        plan: (n, m), a coupling.
        t: location in [0, 1].

    Raises:
        ValueError: the location is outside [0, 1], or the plan is none: all zero, NaN, negative, or
            of another total than 1.
    """
    least, total = float(plan.min()), float(plan.sum())
    if not (least >= 0 and abs(total - 1) <= _SLACK):
        raise ValueError(
            f"plan: got total {total:g}, least entry {least:g}, expected a coupling, of total 1 and"
            " without negative entries: the solver gave up"
        )
    row, column = plan.nonzero(as_tuple=True)
    return interpolate(x[row], y[column], t), plan[row, column]


def barycenter(x: Tensor, y: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Returns points (s, ...) and weights (s,) of argmin (1 - t) W2^2(x, .) + t W2^2(y, .), exact,
    for uniform weights; s = n where n = m, else at most n + m - 1.

    Args:
        x: (n, ...).
        y: (m, ...).
        t: location in [0, 1].
    """
    plan = full_plan(squared_distances(x, y))
    points, weights = displacement(x, y, plan, t)
    return points, weights.to(x.dtype)


def sinkhorn_barycenter(
    x: Tensor, y: Tensor, t: float, *, eps: float = 0.01, rounds: int = 10, steps: int = 200
) -> Tensor:
    """Returns n points of an entropic barycenter at t, from the textbook's free-support iteration
    Z <- (1 - t) n P(Z, x) x + t n P(Z, y) y (Cuturi and Doucet, ICML 2014, arXiv:1310.4375).

    Smaller than the exact one, the more so the larger eps: for comparisons only.

    Args:
        x: (n, d), also where the iteration starts.
        y: (m, d).
        t: location in [0, 1].
        eps: > 0, as a share of the median cost.
        rounds: iterations.
        steps: most Sinkhorn iterations in each.

    Raises:
        ValueError: as `squared_distances` and `interpolate`.
    """
    points = x.double()
    for _ in range(rounds):
        means = []
        for cloud in (x, y):
            cost = squared_distances(points, cloud)
            scale = float(cost.quantile(0.5)) or 1.0  # 0: one point, which any plan keeps
            plan = sinkhorn(cost, eps * scale, steps=steps)
            means.append(project(plan, cloud.double()))
        points = interpolate(means[0], means[1], t)
    return points.to(x.dtype)


def project(plan: Tensor, y: Tensor) -> Tensor:
    """Returns the barycentric projection (n, ...) of a plan (n, m): the mean of the y_j that each
    row meets. Shrinks the cloud unless the plan is a permutation.

    Raises:
        ValueError: a row of the plan meets nothing, or NaN.
    """
    rows = plan.sum(1, keepdim=True)
    if not (rows > 0).all():
        raise ValueError(f"plan: got a row with sum {float(rows.min()):g}, expected > 0")
    shares = plan / rows
    return (shares @ y.flatten(1)).view(len(plan), *y.shape[1:])


def variation(values: Tensor, locations: Tensor, power: int = 1) -> Tensor:
    """Returns sum_k |G(t_k+1) - G(t_k)|^p / (t_k+1 - t_k)^(p-1), over the first axis: at most the
    integral of |dG/dt|^p over the grid, to which it rises under nested refinement.

    Args:
        values: G on the grid, (s + 1, ...).
        locations: (s + 1,), rising.
        power: p, >= 1.
    """
    steps = locations.diff().view(-1, *[1] * (values.ndim - 1))
    return (values.diff(dim=0).abs() ** power / steps ** (power - 1)).sum(0)


def check_location(t: Tensor) -> Tensor:
    """Returns locations as they are.

    Raises:
        ValueError: one is outside [0, 1] or NaN.
    """
    if not ((t >= 0) & (t <= 1)).all():
        raise ValueError(f"location: got {t.detach().flatten().tolist()}, expected in [0, 1]")
    return t
