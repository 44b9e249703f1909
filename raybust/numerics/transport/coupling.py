"""Exact assignment between two point clouds, by SciPy on the host, deterministic.

Squared Euclidean costs are float64 on centered points, so neither TF32 nor cancellation in float32
affects them. With equally many points of equal weight the assignment is an optimal plan.
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
"""Smallest problem worth a thread of its own; below 32 points threads lose (measured)."""


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Returns |x_i - y_j|^2, float64 (n, m), >= 0, without gradient.

    Args:
        x: (n, ...), points to be flattened.
        y: (m, ...), points of the same size.

    Raises:
        ValueError: no points, different sizes, or NaN or infinite entries; these are not looked for
            on a GPU, because that would stall the host.
    """
    if not len(x) or not len(y) or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"points: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected at least one each,"
            " of the same size"
        )
    with torch.no_grad():
        both = torch.cat([x.flatten(1), y.flatten(1)]).double()
        if both.device.type == "cpu" and not both.isfinite().all():
            raise ValueError("points: got NaN or infinite entries, expected numbers")
        both = both - both.mean(0)
        x, y = both[: len(x)], both[len(x) :]
        squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        return squares.clamp_(min=0)


def assignments(costs: Sequence[Tensor]) -> list[Tensor]:
    """Returns for each problem the permutation s that minimizes the sum of cost[i, s[i]], int64
    (n,) on the CPU.

    All problems go to the host in one copy; large ones are solved in torch's number of threads.

    Args:
        costs: each (n, n), finite, with any n, all on one device.

    Raises:
        ValueError: a cost is not square (SciPy would match only a part, which is no coupling of the
            two clouds), or not finite.
    """
    for cost in costs:
        if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
            raise ValueError(
                f"cost: got shape {tuple(cost.shape)}, expected (n, n): clouds of equal size"
            )
    if not costs:
        return []
    problems = [part.numpy() for part in on_host(costs)]
    threads = min(len(problems), torch.get_num_threads())
    if threads > 1 and max(len(problem) for problem in problems) >= _THREADED:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(_assign, problems))
    else:
        found = [_assign(problem) for problem in problems]
    joined = torch.from_numpy(np.concatenate(found))
    ends = list(itertools.accumulate(len(cost) for cost in costs))
    return list(torch.tensor_split(joined, ends[:-1]))


def on_host(costs: Sequence[Tensor]) -> list[Tensor]:
    """Returns the costs (n, m) of several problems on the CPU, in one copy.

    Raises:
        ValueError: an entry is not finite.
    """
    if not costs:
        return []
    ends = list(itertools.accumulate(cost.numel() for cost in costs))
    host = torch.cat([cost.detach().flatten() for cost in costs]).cpu()
    if not host.isfinite().all():
        raise ValueError("cost: got NaN or infinite entries, expected numbers")
    parts = torch.tensor_split(host, ends[:-1])
    return [part.view(cost.shape) for part, cost in zip(parts, costs, strict=True)]


def _assign(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    from scipy.optimize import linear_sum_assignment  # takes half a second to import

    return np.asarray(linear_sum_assignment(cost)[1], np.int64)
