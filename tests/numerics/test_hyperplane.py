"""The nearest point of a hyperplane in the box, against linear and quadratic programming."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from raybust.numerics.balls.hyperplane import to_hyperplane

COUNT, PIXELS = 24, 12
DRAW = torch.Generator().manual_seed(0)
POINTS = torch.rand(COUNT, 3, 2, 2, generator=DRAW, dtype=torch.float64)
NORMALS = torch.randn(COUNT, 3, 2, 2, generator=DRAW, dtype=torch.float64)
NORMALS[:, 0, 0, 0] = 0
LEVELS = 2 * torch.randn(COUNT, generator=DRAW, dtype=torch.float64)
EXCESS = (NORMALS * POINTS).flatten(1).sum(1) - LEVELS


def least(norm, point, normal, gap):
    """The norm of the shortest step in the box that changes normal . point by `gap`."""
    size = len(point)
    eye, ones = np.eye(size), np.ones(size)
    if norm == "l1":
        room = [(0, 1 - v) for v in point] + [(0, v) for v in point]
        both = np.concatenate([normal, -normal])
        return linprog(np.ones(2 * size), A_eq=both[None], b_eq=[gap], bounds=room).fun
    if norm == "linf":
        above = np.block([[eye, -ones[:, None]], [-eye, -ones[:, None]]])
        room = [(-v, 1 - v) for v in point] + [(0, None)]
        return linprog(np.r_[0 * ones, 1], A_ub=above, b_ub=np.zeros(2 * size),
                       A_eq=np.r_[normal, 0][None], b_eq=[gap], bounds=room).fun  # fmt: skip
    on = {"type": "eq", "fun": lambda d: normal @ d - gap, "jac": lambda d: normal}
    room = [(-v, 1 - v) for v in point]
    found = minimize(lambda d: d @ d, 0 * ones, jac=lambda d: 2 * d, constraints=on, bounds=room,
                     tol=1e-14)  # fmt: skip
    return found.fun**0.5


@pytest.mark.parametrize(("norm", "order"), [("linf", np.inf), ("l2", 2), ("l1", 1)])
def test_no_shorter_step_reaches_the_hyperplane(norm, order):
    steps = to_hyperplane(POINTS, NORMALS, EXCESS, norm)
    reached = POINTS + steps
    assert reached.min() >= -1e-12
    assert reached.max() <= 1 + 1e-12
    low = NORMALS.flatten(1).clamp(max=0).sum(1)
    high = NORMALS.flatten(1).clamp(min=0).sum(1)
    inside = (low <= LEVELS) & (high >= LEVELS)
    assert 0 < inside.sum() < COUNT
    values = (NORMALS * reached).flatten(1).sum(1)
    assert torch.allclose(values, LEVELS.clamp(low, high), atol=1e-12)
    for at in inside.nonzero().flatten().tolist():
        point, normal = (part[at].flatten().numpy() for part in (POINTS, NORMALS))
        size = np.linalg.norm(steps[at].flatten().numpy(), order)
        assert size == pytest.approx(least(norm, point, normal, -float(EXCESS[at])), abs=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_edges(norm):
    nothing = torch.zeros(2, 1, 2, 2)
    assert not to_hyperplane(nothing, torch.ones_like(nothing), torch.zeros(2), norm).any()
    assert not to_hyperplane(nothing + 0.5, nothing, torch.ones(2), norm).any()  # no direction
    full = to_hyperplane(nothing, torch.ones_like(nothing), torch.full((2,), -9.0), norm)
    assert torch.equal(full, torch.ones_like(full))  # out of reach: to the corner
    single = to_hyperplane(torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 2.0),
                           torch.tensor([0.5]), norm)  # fmt: skip
    assert single.item() == pytest.approx(-0.25)
