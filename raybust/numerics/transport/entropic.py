"""Entropic transport plans in the log domain, and their barycentric projections.

The map of Zhu et al. (2023): T(x_i) = sum_j pi_ij y_j / sum_j pi_ij for the plan pi of Sinkhorn and
Cuturi (NeurIPS 2013). Unlike an assignment it works for clouds of different sizes. As the entropy
goes to 0 it becomes the assignment's map.
"""

from __future__ import annotations

import math

from torch import Tensor

_FACTOR = 0.5
"""Entropies fall by this factor from the largest cost to the asked one, because from the start a
small one needs thousands of iterations (our choice)."""
_ON_THE_WAY, _AT_THE_END = (0.05, 50), (1e-6, 1000)
"""Largest relative error of a column sum at which the iterations end, and their number at most."""


def entropic_plan(cost: Tensor, entropy: float) -> Tensor:
    """Returns the plan (n, m) that minimizes <pi, cost> + entropy KL(pi | uniform), whose rows sum
    to 1/n exactly and whose columns to 1/m within a relative 1e-6, or as near as a thousand
    iterations come.

    Args:
        cost: (n, m), finite; computed in float64.
        entropy: > 0, in the unit of the cost.
    """
    cost = cost.double()
    rows, columns = cost.shape
    f, g = cost.new_zeros(rows), cost.new_zeros(columns)
    for value in _falling(float(cost.max()), entropy):
        tolerance, most = _ON_THE_WAY if value > entropy else _AT_THE_END
        for step in range(most):
            g = -value * (((f[:, None] - cost) / value).logsumexp(0) + math.log(columns))
            f = -value * (((g - cost) / value).logsumexp(1) + math.log(rows))
            if step % 5 == 4:
                sums = ((f[:, None] + g - cost) / value).exp().sum(0)
                if float((sums * columns - 1).abs().max()) < tolerance:
                    break
    return ((f[:, None] + g - cost) / entropy).exp()


def projection(cost: Tensor, entropy: float) -> Tensor:
    """Returns the weights (n, m) of the barycentric projection: row i is the share of each target
    in T(x_i) and sums to 1.

    Args:
        cost: (n, m), finite.
        entropy: > 0, in the unit of the cost.
    """
    plan = entropic_plan(cost, entropy)
    return plan / plan.sum(1, keepdim=True)


def _falling(start: float, end: float) -> list[float]:
    """Returns entropies from `start` down to `end`."""
    found = []
    while start > end:
        found.append(start)
        start *= _FACTOR
    return [*found, end]
