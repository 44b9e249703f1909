"""The barycenter: closed forms, the primal-dual solution against them, duality, cases with flow.

Numbers in names refer to the tests of the specification (spec/adversarial.md, section 5).
"""

import itertools
import math
import warnings

import pytest
import torch

from raybust.errors import RequestError
from raybust.numerics.barycenter import (
    Prices,
    barycenter,
    closed_form,
    divergence,
    flow_is_zero,
    pdhg,
    rotations,
    transposed_divergence,
)
from raybust.vision import transforms

RELEASED = Prices()
FLOWING = Prices(rho=2.0, mu=1.0, theta=0.1)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def energy(prices, p, q, x, flow):
    """The objective, (); the sources follow from the constraints."""
    source = divergence(flow) + x - q
    return (
        flow.square().sum(0).sqrt().sum()
        + prices.rho / 2 * (x - p).square().sum()
        + prices.mu * source.abs().sum()
        + prices.theta * q.sum()
    )


def lower_bound(prices, p, dual):
    """The dual objective, (): no feasible point has less energy."""
    x = (p - dual / prices.rho).clamp(min=0)
    of_inputs = (prices.rho / 2 * (x - p).square() + dual * x).sum()
    return of_inputs + (prices.theta - dual.sum(0)).clamp(max=0).sum()


def separable(prices, p, q):
    """The energy without flow at each pixel, for p (K, ...) and q (N, 1 ...): (N, ...)."""
    u, cap = (p[:, None] - q).abs(), prices.mu / prices.rho
    capped = prices.mu * u - prices.mu**2 / (2 * prices.rho)
    return torch.where(u <= cap, prices.rho * u**2 / 2, capped).sum(0) + prices.theta * q


def checkerboard(side=6):
    board = (torch.arange(side)[:, None] + torch.arange(side)).remainder(2).double()
    return torch.stack([board, 1 - board])[:, None]


def flow_of(p, prices):
    found = pdhg(p, prices, tolerance=1e-9, most=20_000)
    return float(found.flow.square().sum(0).sqrt().max())


@pytest.mark.parametrize(
    ("count", "prices"),
    [
        (1, Prices(theta=0.03)),
        (2, RELEASED),
        (2, Prices(rho=0.5, mu=5.0, theta=0.3)),
        (3, Prices(theta=0.07)),
        (4, Prices(rho=2.0, mu=0.3, theta=0.13)),
        (5, Prices(theta=0.07)),
    ],
)
def test_11_closed_form_is_the_primal_dual_solution(count, prices):
    p = random(count, 2, 3, 6, 5)
    found = pdhg(p, prices, tolerance=1e-9)
    assert found.residual <= 1e-9
    torch.testing.assert_close(closed_form(p, prices), found.barycenter, rtol=0, atol=1e-6)
    assert torch.equal(barycenter(p, prices), closed_form(p, prices))


@pytest.mark.parametrize(
    ("count", "prices"),
    [
        (1, Prices(theta=0.1)),
        (2, Prices(theta=0.0)),
        (2, Prices(theta=0.2)),
        (3, Prices(theta=0.1)),
        (4, Prices(theta=0.0)),
        (4, Prices(theta=0.2)),
        (5, Prices(theta=0.3)),
    ],
)
def test_11_ties_have_the_same_energy_and_take_the_midpoint(count, prices):
    p = random(count, 4, 6, 5)
    q, found = closed_form(p, prices), pdhg(p, prices, tolerance=1e-9, most=20_000)
    ours, theirs = (separable(prices, p, one[None]).sum() for one in (q, found.barycenter))
    assert float(ours - theirs) == pytest.approx(0, abs=1e-6)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64).reshape(-1, 1, 1, 1)
    values = separable(prices, p, grid)
    best = values <= values.amin(0) + 1e-9
    low = torch.where(best, grid, 2.0).amin(0)
    high = torch.where(best, grid, -1.0).amax(0)
    assert (high - low).max() > 0.02, "no tie among these images"
    torch.testing.assert_close(q, (low + high) / 2, rtol=0, atol=1e-3)


@pytest.mark.parametrize("seed", range(12))
def test_11_closed_form_minimizes_on_a_grid(seed):
    """No value on a fine grid is better, for any K and constants."""
    count = 1 + seed % 6
    rho, mu, theta = (float(v) for v in random(3, seed=100 + seed) * torch.tensor([3.0, 1.0, 0.5]))
    prices = Prices(rho=rho + 0.01, mu=mu + 0.01, theta=theta)
    p = random(count, 50, seed=seed)
    p[:, :5] = p[:1, :5]  # equal measures
    p[:, 5:10] = p[:, 5:10].round()  # at the ends
    q = closed_form(p, prices)
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64).reshape(-1, 1)
    assert (separable(prices, p, q[None])[0] <= separable(prices, p, grid).amin(0) + 1e-12).all()
    single = closed_form(p.float(), prices)
    assert separable(prices, p, single[None].double())[0] == pytest.approx(
        separable(prices, p, q[None])[0], abs=1e-5
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_12_identical_inputs(count):
    p = random(1, 3, 3, 8, 8).expand(count, -1, -1, -1, -1)
    for theta in (0.0, 0.03, 0.09):
        expected = (p[0] - theta / (count * 0.5)).clamp(0, 1)
        torch.testing.assert_close(
            closed_form(p, Prices(theta=theta)), expected, rtol=0, atol=1e-14
        )


def test_12_clean_and_adversarial_pair():
    clean = random(3, 3, 8, 8)
    attacked = (clean + 8 / 255 * (2 * random(3, 3, 8, 8, seed=1) - 1)).clamp(0, 1)
    q = closed_form(torch.stack([clean, attacked]), RELEASED)
    torch.testing.assert_close(q, ((clean + attacked) / 2 - 0.1).clamp(0, 1), rtol=0, atol=1e-14)


def test_12_released_constants():
    first, second = random(2, 3, 3, 8, 8)
    q = closed_form(torch.stack([first, second]), RELEASED)
    least = torch.minimum(torch.minimum(first, second), (first + second) / 2 - 0.1)
    torch.testing.assert_close(q, least.clamp(0, 1), rtol=0, atol=1e-14)


def test_12_a_price_that_no_measure_pays_is_black():
    for count in (1, 2, 3):
        assert closed_form(random(count, 4, 4), Prices(theta=0.1 * count + 0.01)).max() == 0


@pytest.mark.parametrize(("count", "prices"), [(2, FLOWING), (3, Prices(1.5, 2.0, 0.05))])
def test_13_optimality(count, prices):
    p = random(count, 1, 6, 6).round()
    found = pdhg(p, prices, tolerance=1e-8, most=30_000)
    q, x, flow = found.barycenter, found.inputs, found.flow
    assert float(flow.abs().max()) > 0.01, "nothing flows: not the case that is meant"
    residual = divergence(flow) + x - q - found.source
    assert residual.abs().max() < 1e-6
    assert found.dual.abs().max() <= prices.mu + 1e-6
    assert transposed_divergence(found.dual).square().sum(0).sqrt().max() <= 1 + 1e-6
    value = energy(prices, p, q, x, flow)
    assert float(value - lower_bound(prices, p, found.dual)) == pytest.approx(0, abs=1e-5)
    generator = torch.Generator().manual_seed(3)
    for trial in range(50):
        size = 10.0 ** -(trial % 4)

        def near(tensor):
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            return tensor + size * noise  # noqa: B023

        other = energy(prices, p, near(q).clamp(0, 1), near(x).clamp(min=0), near(flow))
        assert value <= other + 1e-6


@pytest.mark.parametrize(
    ("count", "prices", "zero"),
    [
        (2, Prices(rho=0.5, mu=0.1), True),
        (3, Prices(rho=9.0, mu=0.3535), True),
        (3, Prices(rho=9.0, mu=0.3536), False),
        (2, Prices(rho=0.7071, mu=9.0), True),
        (2, Prices(rho=0.7072, mu=9.0), False),
        (3, Prices(rho=0.7071, mu=9.0), False),
        (3, Prices(rho=0.3535, mu=9.0), True),
    ],
)
def test_14_where_the_flow_is_zero(count, prices, zero):
    assert flow_is_zero(count, prices) is zero


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("count", "prices"),
    [
        (2, Prices(rho=0.7, mu=5.0, theta=0.1)),
        (2, Prices(rho=0.7, mu=5.0, theta=0.9)),  # clamped at 0 almost everywhere
        (2, Prices(rho=5.0, mu=0.35, theta=0.0)),
        (3, Prices(rho=5.0, mu=0.35, theta=0.1)),
        (3, Prices(rho=0.35, mu=5.0, theta=0.1)),
    ],
)
def test_14_no_mass_flows_where_predicted(count, prices, seed):
    board = checkerboard()
    p = random(count, 1, 6, 6, seed=seed).round() if seed else board[[0, 1, 0][:count]]
    assert flow_of(p, prices) < 1e-7


def test_14_mass_flows_just_beyond():
    """The checkerboard and its negative: both bounds are sharp."""
    for rho in (0.72, 1.0):
        assert flow_of(checkerboard(), Prices(rho=rho, mu=5.0, theta=0.1)) > 1e-3
    assert flow_of(checkerboard(), Prices(rho=1.0, mu=5.0, theta=0.1)) > 0.05
    assert flow_of(checkerboard(), Prices(rho=5.0, mu=0.36, theta=0.0)) > 1e-3


def test_14_divergence_and_its_transpose():
    flow, dual = random(2, 3, 1, 5, 7) - 0.5, random(3, 1, 5, 7, seed=1)
    left, right = (divergence(flow) * dual).sum(), (flow * transposed_divergence(dual)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-12)
    assert divergence(flow).sum((-2, -1)).abs().max() < 1e-12, "mass is made"
    one = torch.zeros(2, 5, 7, dtype=torch.float64)
    one[0, 2, 3] = 1  # down from (2, 3) to (3, 3)
    expected = torch.zeros(5, 7, dtype=torch.float64)
    expected[2, 3], expected[3, 3] = 1, -1
    assert torch.equal(divergence(one), expected)


def test_14_the_steps_are_inside_the_bound():
    """The power method on A A^T: ||A||^2 <= 10 + K."""
    for count in (1, 2, 5):
        dual = random(count, 6, 6)
        for _ in range(300):
            image = divergence(transposed_divergence(dual)) + 2 * dual + dual.sum(0)
            size = float(image.norm() / dual.norm())
            dual = image / image.norm()
        assert 9 + count < size <= 10 + count


def test_15_balanced_limit():
    """Two unit masses 6 pixels apart: mass times distance is W1 = 6, and no mass is lost."""
    p = torch.zeros(2, 1, 9, dtype=torch.float64)
    p[0, 0, 1] = p[1, 0, 7] = 1
    found = pdhg(p, Prices(rho=1000.0, mu=50.0, theta=0.0), tolerance=1e-5)
    assert float(found.flow.abs().sum()) == pytest.approx(6, rel=0.05)
    assert float(found.barycenter.sum()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("prices", [RELEASED, FLOWING])
@pytest.mark.parametrize("count", [2, 3])
def test_16_equivariant_over_batch_and_channels(prices, count):
    p = random(count, 3, 2, 5, 4)
    q = barycenter(p, prices)
    assert q.shape == (3, 2, 5, 4)
    assert q.min() >= 0
    assert q.max() <= 1
    swapped = barycenter(p[:, [2, 0, 1]][:, :, [1, 0]], prices)
    torch.testing.assert_close(swapped, q[[2, 0, 1]][:, [1, 0]], rtol=0, atol=1e-12)
    single = barycenter(p[:, 1, 1], prices)
    torch.testing.assert_close(single, q[1, 1], rtol=0, atol=2e-4)
    mirrored = barycenter(p.transpose(3, 4), prices)
    torch.testing.assert_close(mirrored, q.transpose(2, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_16_does_not_amplify(count):
    for seed, theta in itertools.product(range(3), (0.0, 0.07, 0.1)):
        p, e = random(count, 200, seed=seed), 0.1 * (2 * random(count, 200, seed=9) - 1)
        moved = closed_form((p + e).clamp(0, 1), Prices(theta=theta))
        change = (moved - closed_form(p, Prices(theta=theta))).abs()
        assert (change <= e.abs().amax(0) + 1e-12).all()


@pytest.mark.parametrize(
    ("count", "prices"),
    [(1, Prices(theta=0.03)), (2, RELEASED), (2, Prices(theta=0.0)), (3, Prices(theta=0.07)),
     (3, RELEASED), (4, Prices(rho=2.0, mu=0.3, theta=0.13))],
)  # fmt: skip
def test_16_gradient_of_the_closed_form(count, prices):
    p = random(count, 40).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: closed_form(p, prices), p, eps=1e-7, atol=1e-6)
    assert p.grad is None


def test_16_gradient_of_the_primal_dual_solution():
    """For the inputs x_k, which are unique; q need not be if mass flows."""
    p = random(2, 1, 4, 4).round() * 0.6 + 0.2 * random(2, 1, 4, 4, seed=1)
    weights = random(2, 1, 4, 4, seed=2)
    settings = {"tolerance": 1e-11, "most": 20_000}
    leaf = p.clone().requires_grad_()
    found = pdhg(leaf, FLOWING, **settings)
    assert found.flow.detach().abs().max() > 0.01
    (gradient,) = torch.autograd.grad((found.inputs * weights).sum(), leaf)
    for index in [(0, 0, 1, 1), (1, 0, 2, 3), (0, 0, 3, 0)]:
        values = []
        for sign in (1, -1):
            moved = p.clone()
            moved[index] += sign * 1e-5
            values.append((pdhg(moved, FLOWING, **settings).inputs * weights).sum())
        slope = float(values[0] - values[1]) / 2e-5
        assert float(gradient[index]) == pytest.approx(slope, abs=1e-4)


def test_16_rotations():
    images = random(2, 3, 32, 32, dtype=torch.float32)
    copies = rotations(images, 2, 4.0)
    assert copies.shape == (2, *images.shape)
    assert not torch.equal(copies[0], copies[1]), "the release's second view is its first"
    rotate = transforms().functional.rotate
    for copy, angle in zip(copies, (4.0, -4.0), strict=True):
        assert (copy != rotate(images, angle)).double().mean() < 2e-3  # ties by rounding
    assert torch.equal(rotations(images, 1, 90.0)[0], images.rot90(1, (2, 3)))
    three = rotations(images, 3, 7.0)
    assert torch.equal(three[1], images)
    assert torch.equal(three[0], rotations(images, 1, 7.0)[0])
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(rotations(strided, 2, 4.0), copies)
    assert copies[0, :, :, 0, 0].abs().max() == 0, "corners come from outside"


def test_bad_constants():
    for name, value in (("rho", 0.0), ("rho", math.nan), ("mu", -1.0), ("theta", -0.1),
                        ("theta", math.inf)):  # fmt: skip
        with pytest.raises(RequestError, match=f"{name}: got "):
            Prices(**{name: value})
    for solve in (closed_form, pdhg):
        with pytest.raises(RequestError, match="views: got 0"):
            solve(torch.empty(0, 1, 4, 4), RELEASED)


def test_an_iteration_that_does_not_converge_warns():
    with pytest.warns(RuntimeWarning, match="did not converge in 30 steps"):
        pdhg(random(2, 4, 4), FLOWING, most=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdhg(random(2, 4, 4), FLOWING)
