"""Projections against a solver and their defining properties, steps, starts."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import kstest

from raybust.errors import RequestError
from raybust.numerics.balls import Threat
from raybust.numerics.balls.projection import shrink_l1

NORMS = ("linf", "l2", "l1")
CASES = [(norm, box) for norm in NORMS for box in (False, True)]


def problem(seed, dtype=torch.float64, count=1):
    """A perturbation, images and a radius such that both ball and box bind for many seeds."""
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.randint(5, 51, (), generator=generator))
    images = torch.rand(count, 1, 1, size, generator=generator, dtype=dtype)
    images[:, :, :, ::7] = 0.0
    images[:, :, :, 3::7] = 1.0
    delta = torch.randn(count, 1, 1, size, generator=generator, dtype=dtype)
    share = float(torch.rand((), generator=generator)) + 0.05
    radii = {"linf": 0.5 * share, "l2": 0.3 * share * math.sqrt(size), "l1": 0.3 * share * size}
    return delta, images, radii


def solve(threat, delta, images):
    """The projection by SLSQP; an L1 ball by splitting into positive and negative parts."""
    z, x = delta.flatten().numpy(), images.flatten().numpy()
    low, high = (-x, 1 - x) if threat.box else (np.full_like(x, -10), np.full_like(x, 10))
    size, eps = len(z), threat.eps
    if threat.norm == "linf":
        low, high = np.maximum(low, -eps), np.minimum(high, eps)
    if threat.norm != "l1":
        rule = {"type": "ineq", "fun": lambda d: eps**2 - d @ d, "jac": lambda d: -2 * d}
        found = minimize(
            lambda d: ((d - z) ** 2).sum(), np.zeros(size), jac=lambda d: 2 * (d - z),
            bounds=list(zip(low, high, strict=True)), method="SLSQP",
            constraints=[rule] if threat.norm == "l2" else [],
            options={"ftol": 1e-15, "maxiter": 1000},
        )  # fmt: skip
        return found.x
    rule = {"type": "ineq", "fun": lambda d: eps - d.sum(), "jac": lambda d: -np.ones(2 * size)}
    both = np.concatenate
    found = minimize(
        lambda d: ((d[:size] - d[size:] - z) ** 2).sum(), np.zeros(2 * size),
        jac=lambda d: both((2 * (d[:size] - d[size:] - z), -2 * (d[:size] - d[size:] - z))),
        bounds=[(0, h) for h in high] + [(0, -v) for v in low],
        method="SLSQP", constraints=[rule], options={"ftol": 1e-15, "maxiter": 1000},
    )  # fmt: skip
    return found.x[:size] - found.x[size:]


@pytest.mark.parametrize(("norm", "box"), CASES)
def test_projection_is_the_solvers(norm, box):
    worse = 0
    for seed in range(100):
        delta, images, radii = problem(seed)
        threat = Threat(norm, radii[norm], box)
        ours = threat.project(delta, images).flatten().numpy()
        z = delta.flatten().numpy()
        theirs = solve(threat, delta, images)
        order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
        theirs *= min(1.0, threat.eps / np.linalg.norm(theirs, order))  # it ends just outside
        gap = ((ours - z) ** 2).sum() - ((theirs - z) ** 2).sum()
        assert gap < 1e-9, "the solver found a nearer point"
        worse += np.abs(ours - theirs).max() > 1e-6
        single = threat.project(delta.float(), images.float()).flatten().numpy()
        assert np.abs(single - ours).max() < 1e-4
    assert worse <= 5, "SLSQP itself stops early now and then, but not often"


@pytest.mark.parametrize(("norm", "box"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_projection_is_allowed_idempotent_and_not_expansive(norm, box, dtype):
    tight = 1e-12 if dtype == torch.float64 else 1e-5
    for seed in range(30):
        delta, images, radii = problem(seed, dtype, count=4)
        threat = Threat(norm, radii[norm], box)
        one = threat.project(delta, images)
        other = threat.project(delta.flip(3), images)
        assert float(threat.size(one.double()).max()) <= threat.eps * (1 + 1e-7)
        if box:
            assert float((images + one).min()) >= 0
            assert float((images + one).max()) <= 1
        assert (threat.project(one, images) - one).abs().max() <= tight
        near = (one - other).flatten(1).norm(dim=1)
        assert (near <= (delta - delta.flip(3)).flatten(1).norm(dim=1) + tight).all()
        cheap = threat.project(delta, images, exact=False)
        assert float(threat.size(cheap.double()).max()) <= threat.eps * (1 + 1e-7)
        far, least = (v.sub(delta).flatten(1).norm(dim=1) for v in (cheap, one))
        assert (far >= least - tight).all()


@pytest.mark.parametrize(("norm", "box"), CASES)
def test_inside_nothing_changes_and_a_radius_of_zero_gives_zero(norm, box):
    delta, images, _ = problem(3, count=5)
    if box:
        delta = Threat("linf", 9.0).project(delta, images)
    eps = float(Threat(norm, 1.0).size(delta).max()) * 1.01
    torch.testing.assert_close(Threat(norm, eps, box).project(delta, images), delta)
    assert not Threat(norm, 0.0, box).project(delta, images).any()
    assert not Threat(norm, 1.0, box).project(torch.zeros_like(delta), images).any()


@pytest.mark.parametrize(("norm", "box"), CASES)
def test_layout_does_not_matter(norm, box):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 6, 5, generator=generator)
    delta = torch.randn(4, 3, 6, 5, generator=generator)
    threat = Threat(norm, {"linf": 0.1, "l2": 1.0, "l1": 4.0}[norm], box)
    last = [part.to(memory_format=torch.channels_last) for part in (delta, images)]
    torch.testing.assert_close(threat.project(*last), threat.project(delta, images))
    torch.testing.assert_close(threat.steepest(last[0]), threat.steepest(delta))
    drawn = [threat.sample(part, torch.Generator().manual_seed(1)) for part in (images, last[1])]
    torch.testing.assert_close(*drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_l1_threshold_ends_far_from_its_start(dtype):
    """Magnitudes over many orders, with rooms that bind one by one."""
    wide = 6 if dtype == torch.float64 else 2
    magnitude = torch.logspace(-wide, wide, 4000, dtype=dtype)[None]
    room = torch.linspace(0, 1, 4000, dtype=dtype)[None]
    for eps in (0.1, 1.0, 300.0):
        found = shrink_l1(magnitude, room, eps)
        assert float(found.double().sum()) == pytest.approx(eps, rel=1e-4)


def test_steps_are_the_steepest():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(50, 1, 4, 5, generator=generator, dtype=torch.float64)
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", math.inf)):
        threat = Threat(norm, 1.0)
        step = threat.steepest(gradient, share=1e-9)
        rise = (step * gradient).flatten(1).sum(1)
        torch.testing.assert_close(rise, gradient.flatten(1).norm(dual, dim=1))
        torch.testing.assert_close(threat.size(step), torch.ones(50, dtype=torch.float64))
        assert not threat.steepest(torch.zeros_like(gradient)).any()
    tiny = Threat("l2", 1.0).steepest(gradient.float() * 1e-30)
    torch.testing.assert_close(tiny, Threat("l2", 1.0).steepest(gradient).float())


def test_an_l1_step_is_as_wide_as_what_the_ball_fills():
    gradient = torch.arange(1.0, 101.0).reshape(1, 1, 10, 10)
    images = torch.full((1, 1, 10, 10), 0.6)
    images[0, 0, 9, 5:] = 1.0  # no room
    step = Threat("l1", 1.0).steepest(gradient, images).flatten()
    assert step.nonzero().flatten().tolist() == list(range(92, 100))  # 5 x 0 + 3 x 0.4 > 1
    assert step.sum() == pytest.approx(1.0)
    assert Threat("l1", 1.0, box=False).steepest(gradient, images).count_nonzero() == 1
    each = Threat("l1", 1.0).steepest(gradient.repeat(2, 1, 1, 1), share=torch.tensor([0.1, 0.2]))
    assert (each != 0).flatten(1).sum(1).tolist() == [10, 20]


@pytest.mark.parametrize(("norm", "box"), CASES)
def test_starts_are_in_the_set(norm, box):
    images = torch.rand(200, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    threat = Threat(norm, {"linf": 0.3, "l2": 0.8, "l1": 2.0}[norm], box)
    delta = threat.sample(images, torch.Generator().manual_seed(1))
    assert float(threat.size(delta).max()) <= threat.eps * (1 + 1e-6)
    if box:
        assert float((images + delta).min()) >= 0
        assert float((images + delta).max()) <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_starts_are_uniform(norm):
    """(r / eps)^d is uniform on the ball, and so is the sign of each coordinate."""
    images = torch.full((4000, 1, 2, 3), 0.5, dtype=torch.float64)
    delta = Threat(norm, 0.7, box=False).sample(images, torch.Generator().manual_seed(3))
    levels = (Threat(norm, 1.0).size(delta) / 0.7) ** 6
    assert kstest(levels.numpy(), "uniform").pvalue > 0.01
    assert ((delta > 0).double().mean(0) - 0.5).abs().max() < 0.03
    spread = delta.square().mean(0).flatten()
    assert spread.std() / spread.mean() < 0.05


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
def test_the_ends_of_the_uniform_draws_are_starts_too(norm, draw, monkeypatch):
    """An L1 start with a draw of 0 was infinity over infinity."""

    def rare(like, source):
        drawn = torch.rand(like.shape, generator=source)
        drawn.view(-1)[0] = draw
        return drawn

    monkeypatch.setattr("raybust.numerics.balls.threat.uniform", rare)
    threat = Threat(norm, 0.5, box=False)
    delta = threat.sample(torch.full((2, 1, 4, 4), 0.5), torch.Generator().manual_seed(0))
    assert delta.isfinite().all()
    assert (threat.size(delta) <= 0.5 * (1 + 1e-6)).all()


def test_a_generator_for_each_example_gives_its_draws_in_any_batch():
    images = torch.rand(5, 1, 3, 3)
    threat = Threat("l2", 1.0)

    def draw(which):
        sources = [torch.Generator().manual_seed(10 + i) for i in which]
        return threat.sample(images[which], sources)

    whole = draw([0, 1, 2, 3, 4])
    torch.testing.assert_close(draw([3, 1]), whole[[3, 1]], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("norm", "eps", "says"),
    [
        ("l3", 1.0, "norm: got 'l3'"),
        ("l2", -1.0, "eps: got -1.0"),
        ("l2", math.nan, "eps: got nan"),
    ],
)
def test_what_is_no_threat_is_refused(norm, eps, says):
    with pytest.raises(RequestError, match=says):
        Threat(norm, eps)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_points_that_rounding_put_outside_are_pulled_into_the_ball(norm):
    threat = Threat(norm, {"l1": 5.0, "l2": 0.5}[norm])
    images = torch.full((2, 3, 128, 128), 0.7)
    delta = torch.ones_like(images)
    delta = delta * ((1 + 1e-5) * threat.eps / threat.size(delta)).reshape(-1, 1, 1, 1)
    points = images + delta
    points[1] = images[1] + 0.5 * delta[1]  # inside: left as it is
    assert float(threat.size(points[:1].double() - images[:1].double())) > threat.eps
    found = threat.pull_in(points, images)
    sizes = threat.size(found.double() - images.double())
    assert bool((sizes <= threat.eps).all())
    assert float(sizes[0]) > 0.999 * threat.eps
    assert torch.equal(found[1], points[1])
