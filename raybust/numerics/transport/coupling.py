"""Couplings of two point clouds: exact assignment, log-domain Sinkhorn, full plans.

Squared Euclidean costs in float64 on centered points, so that neither TF32 nor float32's
cancellation reaches them. SciPy solves assignments, POT full plans, both on the host and both
deterministic. Sinkhorn: Cuturi (NeurIPS 2013, arXiv:1306.0895), in the log domain after Peyre and
Cuturi (2019, arXiv:1803.00567, section 4.4). Part of numerics.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_THREADED = 64
"""Least side of a problem that a thread of its own pays for; below 32 threads lose (measured)."""
_SLACK = 1e-6
"""Largest error of a plan's marginals, of their total 1, that `check_plan` accepts."""


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Returns |x_i - y_j|^2, float64 (n, m), >= 0, without a gradient.

    Args:
        x: (n, ...), each point flattened.
        y: (m, ...), points of the same size.

    Raises:
        ValueError: there is no point, sizes differ, or an entry is NaN or infinite.
    """
    if not len(x) or not len(y) or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"points: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected at least one each,"
            " of one size"
        )
    with torch.no_grad():
        both = torch.cat([x.flatten(1), y.flatten(1)]).double()
        if not both.isfinite().all():
            raise ValueError("points: got NaN or infinite entries, expected numbers")
        both = both - both.mean(0)
        x, y = both[: len(x)], both[len(x) :]
        squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        return squares.clamp_(min=0)


def assignment(cost: Tensor) -> Tensor:
    """Returns the permutation s with the least sum of cost[i, s[i]], int64 (n,) on the cost's
    device.

    With equal numbers of points of equal weight it is an optimal plan.

    Args:
        cost: (n, n), finite.

    Raises:
        ValueError: the cost is not square (SciPy would match a part only, which is no coupling of
            the two clouds), or not finite.
    """
    return assignments([cost])[0]


def assignments(costs: Sequence[Tensor]) -> list[Tensor]:
    """Returns the `assignment` of each problem. One copy to the host for all of them; large
    problems are solved in as many threads as torch has.

    Args:
        costs: each (n, n), of any n, all on one device.
    """
    for cost in costs:
        if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
            raise ValueError(
                f"cost: got shape {tuple(cost.shape)}, expected (n, n): clouds of equal size"
            )
    if not costs:
        return []
    ends = list(itertools.accumulate(cost.numel() for cost in costs))
    host = torch.cat([cost.detach().flatten() for cost in costs]).cpu()
    if not host.isfinite().all():
        raise ValueError("cost: got NaN or infinite entries, expected numbers")
    parts = torch.tensor_split(host, ends[:-1])
    problems = [part.view(cost.shape).numpy() for part, cost in zip(parts, costs, strict=True)]
    threads = min(len(problems), torch.get_num_threads())
    if threads > 1 and max(len(problem) for problem in problems) >= _THREADED:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(_assign, problems))
    else:
        found = [_assign(problem) for problem in problems]
    joined = torch.from_numpy(np.concatenate(found)).to(costs[0].device)
    ends = list(itertools.accumulate(len(cost) for cost in costs))
    return list(torch.tensor_split(joined, ends[:-1]))


def _assign(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    from scipy.optimize import linear_sum_assignment  # half a second, which no other rule needs

    return np.asarray(linear_sum_assignment(cost)[1], np.int64)


def sinkhorn(
    cost: Tensor,
    eps: float | Tensor,
    *,
    source: Tensor | None = None,
    target: Tensor | None = None,
    steps: int = 200,
    tolerance: float = 1e-6,
) -> Tensor:
    """Returns the plans P (..., n, m) that minimize <C, P> + eps sum P (log P - 1).

    The columns' sums are exact, the rows' within the tolerance where the steps suffice; the
    smaller eps, the more it takes. All problems of a batch take the same number of steps.

    Args:
        cost: (..., n, m), a problem for each leading index.
        eps: > 0, in units of the cost; a tensor (...) for one each. As a share r of the median
            cost, r * cost.flatten(-2).median(-1).values; r <= 0.01 keeps plans sharp (our choice).
        source: weights (n,) or (..., n), >= 0, that sum to 1; uniform where not given.
        target: weights (m,) or (..., m), as `source`.
        steps: most iterations.
        tolerance: the iteration ends when no problem's rows are off by more, summed over rows.

    Raises:
        ValueError: cost not finite, eps not positive, or weights that do not sum to 1.
    """
    if not cost.isfinite().all():
        raise ValueError("cost: got NaN or infinite entries, expected numbers")
    scale = torch.as_tensor(eps, dtype=cost.dtype, device=cost.device)
    if not (scale > 0).all():
        raise ValueError(f"eps: got {eps}, expected > 0")
    n, m = cost.shape[-2:]
    log_a = _weights(source, n, cost, "source").log().unsqueeze(-1)
    log_b = _weights(target, m, cost, "target").log().unsqueeze(-2)
    kernel = -cost / scale[..., None, None]
    u, v = torch.zeros_like(cost[..., :1]), torch.zeros_like(cost[..., :1, :])
    for _ in range(steps):
        u = log_a - (kernel + v).logsumexp(-1, keepdim=True)
        v = log_b - (kernel + u).logsumexp(-2, keepdim=True)
        rows = (kernel + u + v).logsumexp(-1, keepdim=True).exp()
        if (rows - log_a.exp()).abs().sum(-2).amax() <= tolerance:
            break
    return (kernel + u + v).exp()


def full_plan(cost: Tensor, source: Tensor | None = None, target: Tensor | None = None) -> Tensor:
    """Returns an exact optimal plan (n, m) for any weights, by POT's network simplex; at most
    n + m - 1 entries are not 0. In the cost's dtype, solved in float64.

    Args:
        cost: (n, m), finite.
        source: weights (n,) that sum to 1; uniform where not given.
        target: weights (m,), as `source`.

    Raises:
        ValueError: a bad cost or bad weights, or the solver gave up, for which POT returns zeros,
            or a plan that is not optimal, and a warning.
    """
    if cost.ndim != 2 or not cost.isfinite().all():
        raise ValueError(f"cost: got shape {tuple(cost.shape)} or NaN, expected (n, m), numbers")
    import ot  # a second, which only full plans need

    double = cost.detach().double()
    a = _weights(source, cost.shape[0], double, "source")
    b = _weights(target, cost.shape[1], double, "target")
    # NumPy arrays: POT's torch backend would open a CUDA context on the first device.
    solved, log = ot.emd(a.cpu().numpy(), b.cpu().numpy(), double.cpu().numpy(), log=True)
    plan = torch.from_numpy(np.asarray(solved)).to(cost.device)
    check_plan(plan, a, b)
    if log["warning"]:  # out of iterations it is a coupling all the same, but not the best one
        raise ValueError(f"plan: got one that need not be optimal: {log['warning']}")
    return plan.to(cost.dtype)


def check_plan(plan: Tensor, source: Tensor, target: Tensor) -> None:
    """Refuses what is no coupling of two weight vectors.

    Args:
        plan: (n, m).
        source: (n,), the rows' sums.
        target: (m,), the columns' sums.

    Raises:
        ValueError: an entry is negative or NaN, or a marginal is off by more than 1e-6.
    """
    off = max(float((plan.sum(1) - source).abs().sum()), float((plan.sum(0) - target).abs().sum()))
    if not (off <= _SLACK and float(plan.min()) >= 0):
        raise ValueError(
            f"plan: got total {float(plan.sum()):g}, marginals off by {off:g}, least entry"
            f" {float(plan.min()):g}, expected a coupling: the solver gave up"
        )


def _weights(given: Tensor | None, count: int, like: Tensor, name: str) -> Tensor:
    if given is None:
        return torch.full((count,), 1 / count, dtype=like.dtype, device=like.device)
    weights = given.to(like)
    total = weights.sum(-1)
    if weights.shape[-1] != count or not (weights >= 0).all():
        raise ValueError(f"{name}: got {tuple(given.shape)}, expected {count} weights >= 0")
    if not ((total - 1).abs() <= _SLACK).all():
        raise ValueError(f"{name}: got weights with sum {total.tolist()}, expected 1")
    return weights
