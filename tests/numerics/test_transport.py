"""Couplings and geodesics against closed forms and oracles: T1 to T9, T16, T17 and the numerics'
part of T13 and T21 of the specification, section 5."""

import itertools
import math

import numpy as np
import pytest
import torch

from raybust.numerics.transport import (
    assignments,
    bures_geodesic,
    bures_map,
    entropic_plan,
    gaussian_distance,
    interpolate,
    mean_classifier_accuracy,
    projection,
    squared_distances,
    variation,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cloud(n=64, d=8, shift=0.0, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=generator(seed), dtype=dtype) + shift


def order(n, seed=9):
    return torch.randperm(n, generator=generator(seed))


def positive(d, seed):
    """A symmetric positive definite matrix, eigenvalues from 0.2."""
    root = cloud(d, d, seed=seed)
    return root @ root.T / d + 0.2 * torch.eye(d, dtype=root.dtype)


def assignment(cost):
    return assignments([cost])[0]


def paired(x, y):
    """The points of y, ordered by their optimal partners in x."""
    return y[assignment(squared_distances(x, y))]


def least_cost(x, y):
    cost = squared_distances(x, y)
    return cost[torch.arange(len(x)), assignment(cost)].mean()


def w2(x, y):
    return float(least_cost(x, y).sqrt())


# Exact couplings


def test_t1_a_translation_is_recovered():
    x, shift = cloud(), cloud(1, seed=1)
    permutation = order(64)
    y = torch.empty_like(x)
    y[permutation] = x + shift
    assert torch.equal(assignment(squared_distances(x, y)), permutation)
    assert float(least_cost(x, y)) == pytest.approx(float(shift.square().sum()), rel=1e-12)


def test_t2_the_gradient_of_a_convex_function_is_recovered():
    x, permutation = cloud(), order(64)
    y = torch.empty_like(x)
    y[permutation] = x @ positive(8, 3) + cloud(1, seed=1)
    assert torch.equal(assignment(squared_distances(x, y)), permutation)


def test_t3_in_one_dimension_it_sorts():
    x, y = cloud(500, 1), cloud(500, 1, shift=0.5, seed=1)
    s = assignment(squared_distances(x, y))
    assert torch.equal(y[s].flatten()[x.flatten().argsort()], y.flatten().sort().values)


def test_t16_no_other_pairing_is_shorter():
    x, y = cloud(), cloud(shift=1.0, seed=1)
    least = float(least_cost(x, y))
    others = [float((x - y[order(64, seed)]).square().sum(1).mean()) for seed in range(20)]
    assert least < min(others)
    cost = squared_distances(x[:5], y[:5])
    every = torch.cartesian_prod(*[torch.arange(5)] * 5)
    every = every[[len(row.unique()) == 5 for row in every]]
    sums = cost[torch.arange(5), every].sum(1)
    assert torch.equal(assignment(cost), every[sums.argmin()])


def test_threads_and_batches_change_nothing(monkeypatch):
    costs = [squared_distances(cloud(n), cloud(n, seed=1)) for n in (3, 70, 1, 65)]
    alone = [assignment(cost) for cost in costs]
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        together = assignments(costs)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert assignments([]) == []


def test_costs_survive_float32_far_from_the_origin():
    """|x|^2 + |y|^2 - 2xy in float32 at 1000 has errors of about 1; the distances here are 1e-4."""
    x = cloud(10, 50, dtype=torch.float32) * 1e-3 + 1000
    y = cloud(10, 50, seed=1, dtype=torch.float32) * 1e-3 + 1000
    cost = squared_distances(x, y)
    exact = (x.double()[:, None] - y.double()).square().sum(2)
    torch.testing.assert_close(cost, exact, rtol=1e-9, atol=0)
    assert (squared_distances(x, x).diagonal() >= 0).all()
    images = cloud(4, 48).view(4, 3, 4, 4)
    torch.testing.assert_close(
        squared_distances(images, images), squared_distances(images.flatten(1), images.flatten(1))
    )


# T17: invariances


def test_t17_invariances():
    x, y = cloud(30), cloud(30, shift=1.0, seed=1)
    cost = squared_distances(x, y)
    s = assignment(cost)
    p, q = order(30, 1), order(30, 2)
    assert torch.equal(q[assignment(squared_distances(x[p], y[q]))], s[p])
    assert torch.equal(assignment(squared_distances(x + 5, y + 5)), s)
    rotation = torch.linalg.qr(cloud(8, 8, seed=3)).Q
    assert torch.equal(assignment(squared_distances(x @ rotation, y @ rotation)), s)
    assert torch.equal(assignment(squared_distances(3 * x, 3 * y)), s)


# The geodesic


def test_t4_ends_are_exact():
    x, y = cloud(dtype=torch.float32), cloud(shift=1.0, seed=1, dtype=torch.float32)
    partner = paired(x, y)
    assert torch.equal(interpolate(x, partner, 0.0), x)
    assert torch.equal(interpolate(x, partner, 1.0), partner)
    assert torch.equal(partner.sort(0).values, y.sort(0).values)
    each = interpolate(x, partner, torch.linspace(0, 1, 64))
    assert torch.equal(each[0], x[0])
    assert torch.equal(each[-1], partner[-1])


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_t5_t6_moments_along_the_geodesic(t):
    """The mean moves for any coupling; the second moment depends on the plan's cost, here POT's."""
    x, y = cloud(20), cloud(20, shift=1.0, seed=1)
    points = interpolate(x, paired(x, y), t)
    torch.testing.assert_close(points.mean(0), (1 - t) * x.mean(0) + t * y.mean(0))
    import ot  # a second

    squared = ot.emd2([], [], ot.dist(x.numpy(), y.numpy()))
    expected = (
        (1 - t) * x.square().sum(1).mean()
        + t * y.square().sum(1).mean()
        - t * (1 - t) * float(squared)
    )
    assert float(points.square().sum(1).mean()) == pytest.approx(float(expected), rel=1e-9)


def test_t7_constant_speed_which_random_pairs_do_not_have():
    x, y = cloud(), cloud(shift=1.0, seed=1)
    whole = w2(x, y)

    def speeds(partner):
        at = {t: interpolate(x, partner, t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)}
        pairs = ((0.0, 0.25), (0.25, 0.75), (0.5, 1.0), (0.25, 0.5))
        return [w2(at[s], at[t]) / (t - s) for s, t in pairs]

    assert speeds(paired(x, y)) == pytest.approx([whole] * 4, rel=1e-9)
    wrong = speeds(y[order(64)])
    assert all(abs(speed / whole - 1) > 0.05 for speed in wrong)


def test_the_barycenter_minimizes_its_objective():
    """No other cloud tried has a smaller (1 - t) W2^2(x, .) + t W2^2(y, .)."""
    x, y, t = cloud(12, 3), cloud(12, 3, shift=1.0, seed=1), 0.3
    points = interpolate(x, paired(x, y), t)

    def objective(z):
        return float((1 - t) * least_cost(x, z) + t * least_cost(y, z))

    best = objective(points)
    assert best == pytest.approx(t * (1 - t) * float(least_cost(x, y)), rel=1e-9)
    for seed in range(20):
        for scale in (0.01, 0.1, 1.0):
            assert objective(points + scale * cloud(12, 3, seed=seed)) > best
    random_pairs = interpolate(x, y, t)
    assert objective(random_pairs) > best


def test_t8_gaussians_on_the_line():
    n, t = 800, 0.25
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    quantiles = torch.special.ndtri(levels)[:, None]
    x, y = -1 + 0.5 * quantiles, 2 + 1.5 * quantiles
    shuffled = y[order(n)]
    partner = shuffled[assignment(squared_distances(x, shuffled))]
    at = interpolate(x, partner, t)
    assert float(at.mean()) == pytest.approx(-0.25, abs=1e-9)
    assert float(at.std(correction=0)) == pytest.approx(0.75, abs=1e-3)
    assert float((partner - x).square().mean()) == pytest.approx(10, abs=1e-2)
    zero = torch.zeros(1, dtype=torch.float64)
    exact = gaussian_distance(zero - 1, torch.eye(1) * 0.25, zero + 2, torch.eye(1) * 2.25)
    assert float(exact**2) == pytest.approx(10, rel=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_t9_bures_wasserstein(t):
    s0, s1, zero = positive(6, 1), positive(6, 2), torch.zeros(6, dtype=torch.float64)
    linear = bures_map(s0, s1)
    torch.testing.assert_close(linear @ s0 @ linear, s1, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(linear, linear.T)
    at = bures_geodesic(s0, s1, t)
    whole = float(gaussian_distance(zero, s0, zero, s1))
    # Squared, because the root turns rounding into 1e-7 at distance 0.
    for one, other, share in ((s0, at, t), (at, s1, 1 - t)):
        squared = float(gaussian_distance(zero, one, zero, other)) ** 2
        assert squared == pytest.approx((share * whole) ** 2, abs=1e-12)
    x = cloud(40, 6, seed=4) @ torch.linalg.cholesky(s0).T
    permutation = order(40)
    y = torch.empty_like(x)
    y[permutation] = x @ linear + 1
    assert torch.equal(assignment(squared_distances(x, y)), permutation)


def test_bures_against_pot():
    from ot import gaussian  # a second

    s0, s1, m0, m1 = positive(5, 1), positive(5, 2), cloud(1, 5)[0], cloud(1, 5, seed=1)[0]
    arrays = [value.numpy() for value in (m0, m1, s0, s1)]
    assert float(gaussian_distance(m0, s0, m1, s1)) == pytest.approx(
        float(gaussian.bures_wasserstein_distance(*arrays)), rel=1e-9
    )
    linear, _ = gaussian.bures_wasserstein_mapping(*arrays)
    np.testing.assert_allclose(bures_map(s0, s1), linear, rtol=1e-8, atol=1e-10)


# T13: variation of a function on a grid


def test_t13_variation_rises_under_nested_refinement_to_the_integral():
    def wiggly(t):
        return torch.sigmoid(8 * t - 4) * (1 + 0.3 * torch.sin(14 * math.pi * t))

    grids = [torch.linspace(0, 1, k + 1, dtype=torch.float64) for k in (2, 4, 8, 16, 64, 256)]
    found = [float(variation(wiggly(grid), grid)) for grid in grids]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(found))
    assert found[0] < 0.6 * found[-1]
    fine = torch.linspace(0, 1, 200_001, dtype=torch.float64).requires_grad_()
    (derivative,) = torch.autograd.grad(wiggly(fine).sum(), fine)
    integral = float(torch.trapezoid(derivative.abs(), fine.detach()))
    assert found[-1] == pytest.approx(integral, rel=2e-3)
    assert integral >= abs(float(wiggly(grids[0])[-1] - wiggly(grids[0])[0]))
    squared = float(torch.trapezoid(derivative**2, fine.detach()))
    assert float(variation(wiggly(grids[-1]), grids[-1], power=2)) == pytest.approx(
        squared, rel=5e-3
    )
    line = 3 * grids[2][:, None] * torch.tensor([1.0, -2.0])
    torch.testing.assert_close(
        variation(line, grids[2], power=2), torch.tensor([9.0, 36.0], dtype=torch.float64)
    )


# T21: bad input

NAN = torch.tensor([[math.nan, 1.0], [1.0, 0.0]])
ONES = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squared_distances(NAN, ONES), "NaN or infinite"),
        (lambda: squared_distances(ONES, ONES * math.inf), "NaN or infinite"),
        (lambda: squared_distances(ONES, ONES[:, :1]), "of the same size"),
        (lambda: squared_distances(ONES[:0], ONES), "at least one each"),
        (lambda: assignment(NAN), "NaN or infinite"),
        (lambda: assignment(ONES[:1]), r"\(1, 2\), expected \(n, n\)"),
        (lambda: mean_classifier_accuracy(1.0, 2, 4, 0, 0.9), r"location: got 0.9"),
        (lambda: interpolate(ONES, ONES, 1.25), "location: got .*1.25"),
        (lambda: interpolate(ONES, ONES, torch.tensor([0.5, math.nan])), "location: got .*nan"),
        (lambda: bures_geodesic(torch.eye(2), torch.eye(2), 2.0), "location"),
        (lambda: bures_map(ONES, torch.eye(2)), "eigenvalue"),
        (lambda: bures_map(torch.eye(2), -torch.eye(2)), "eigenvalue"),
        (lambda: bures_map(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), ONES), "not symmetric"),
    ],
)
def test_t21_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Entropic plans


def test_the_plan_of_two_points_is_that_by_hand():
    """Cost 0 on the diagonal and c beside it: pi_11 = 1 / (2 + 2 exp(-c / eps))."""
    for c, entropy in ((1.0, 0.5), (3.0, 2.0), (0.2, 0.01)):
        cost = torch.tensor([[0.0, c], [c, 0.0]])
        near = 1 / (2 + 2 * math.exp(-c / entropy))
        expected = torch.tensor([[near, 0.5 - near], [0.5 - near, near]], dtype=torch.float64)
        assert torch.allclose(entropic_plan(cost, entropy), expected, atol=1e-7)


@pytest.mark.parametrize("sizes", [(7, 7), (9, 4), (3, 11)])
@pytest.mark.parametrize("entropy", [0.05, 0.5, 5.0])
def test_the_plan_is_that_of_pot(sizes, entropy):
    ot = pytest.importorskip("ot")
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.rand(n, 5, generator=draw, dtype=torch.float64) for n in sizes)
    cost = squared_distances(x, y)
    a, b = (np.full(n, 1 / n) for n in sizes)
    theirs = ot.sinkhorn(a, b, cost.numpy(), entropy, method="sinkhorn_log",
                         numItermax=20_000, stopThr=1e-13)  # fmt: skip
    ours = entropic_plan(cost, entropy)
    assert np.allclose(ours.numpy(), theirs, atol=2e-7)
    assert torch.allclose(ours.sum(1), torch.full((sizes[0],), 1 / sizes[0], dtype=ours.dtype))


def test_a_small_entropy_gives_the_assignment_and_none_underflows():
    draw = torch.Generator().manual_seed(1)
    x, y = (10 * torch.rand(20, 30, generator=draw, dtype=torch.float64) for _ in range(2))
    cost = squared_distances(x, y)
    (best,) = assignments([cost])
    for entropy in (1e-2, 1e-6):
        weights = projection(cost, entropy)
        assert weights.isfinite().all()
        assert torch.allclose(weights.sum(1), torch.ones(20, dtype=weights.dtype))
    weights = projection(cost, 1e-2)
    assert torch.equal(weights.argmax(1), best)
    assert float(weights.amax(1).min()) > 0.99
