"""Wasserstein-geodesic augmentation: T4, T7 and T12 to T21 of the specification, section 5, the
controls, and the parts of a step.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raybust import data, testing
from raybust.config import compose, leaves_of_arguments
from raybust.errors import RequestError, WorkError
from raybust.methods import StepContext, get
from raybust.methods.gaussian import Gaussian
from raybust.methods.geodesic import Geodesic, Prepared
from raybust.methods.lp_noise import LpNoise
from raybust.methods.macer import Macer
from raybust.methods.pgd import Pgd
from raybust.methods.smoothadv import Smoothadv
from raybust.methods.standard import Standard
from raybust.methods.trades import Trades
from raybust.numerics.autoencoder import train_autoencoder
from raybust.numerics.transport import (
    Curves,
    assignments,
    climb,
    grid_of,
    interpolate,
    jittered,
    losses_at,
    match,
    penultimate,
    slope,
    squared_distances,
    variation,
)
from raybust.training.fit import fit
from raybust.training.objective import CountedNetwork, Objective


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def context(seed=0, classes=3, progress=0.5):
    return StepContext(generator(seed), progress, Prepared(classes, None))


def batch(*counts, seed=0, size=4, dtype=torch.float64):
    """Shuffled images (B, 1, size, size) with the given class counts; each class is spread around
    its own mean."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator(seed + 1))]
    noise = torch.rand(len(labels), 1, size, size, generator=generator(seed), dtype=dtype)
    means = torch.rand(len(counts), 1, size, size, generator=generator(seed + 2), dtype=dtype)
    return 0.5 * noise + 0.5 * means[labels], labels


class Small(nn.Module):
    """A smooth network without batch normalization, float64."""

    def __init__(self, classes=3, pixels=16, seed=0):
        super().__init__()
        weight = torch.randn(8, pixels, generator=generator(seed), dtype=torch.float64)
        self.first = nn.Parameter(weight)
        head = torch.randn(classes, 8, generator=generator(seed + 1), dtype=torch.float64)
        self.head = nn.Parameter(head)
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach())
        return torch.tanh(images.flatten(1) @ self.first.T) @ self.head.T


class Gap(nn.Module):
    """Two classes whose logits are a (1 - 2 x) and 0: the symmetric path of T14."""

    def __init__(self, a):
        super().__init__()
        self.a = a

    def forward(self, images):
        gap = self.a * (1 - 2 * images.flatten(1))
        return torch.cat([gap, torch.zeros_like(gap)], 1)


def curves_of(method, images, labels, classes=3, seed=0):
    given = context(seed, classes)
    paths = method.paths(images, labels, given)
    one_hot = F.one_hot(labels, classes).to(images.dtype)
    return method.curves(images, one_hot, paths, given.generator)


def straight(dtype=torch.float64):
    """One path from x = 0 of class 0 to x = 1 of class 1."""
    start, eye = torch.zeros(1, 1, 1, 1, dtype=dtype), torch.eye(2, dtype=dtype)
    return Curves(start, start + 1, eye[:1], eye[1:], torch.zeros(1, dtype=torch.int64), 1, 0.0)


# Who goes to whom


@pytest.mark.parametrize("pairing", ["ot", "random"])
def test_each_class_goes_to_its_successor_in_a_random_cycle(pairing):
    images, labels = batch(8, 8, 8, 8)
    seen = set()
    for seed in range(30):
        paths = Geodesic(pairing=pairing).paths(images, labels, context(seed))
        assert paths.pairs == 4
        assert torch.equal(paths.source.sort().values, torch.arange(32))
        assert torch.equal(paths.partner.sort().values, torch.arange(32))
        successor = {}
        for pair in range(4):
            of = paths.pair == pair
            (a,), (b,) = labels[paths.source[of]].unique(), labels[paths.partner[of]].unique()
            successor[int(a)] = int(b)
        walk = [0]
        while len(walk) < 4:
            walk.append(successor[walk[-1]])
        assert sorted(walk) == [0, 1, 2, 3]
        assert successor[walk[-1]] == 0
        seen.add(tuple(walk))
    assert len(seen) == 6, "all cycles of four classes"


def test_unequal_classes_are_cut_to_the_smaller_one():
    images, labels = batch(9, 5, 7)
    given = context()
    paths = Geodesic().paths(images, labels, given)
    assert sorted(paths.pair.bincount().tolist()) == [5, 5, 7]
    assert len(paths.source.unique()) == len(paths.source)
    assert given.metrics["geodesic/fallbacks"] == 0
    few = Geodesic(most=4).paths(images, labels, context())
    assert few.pair.bincount().tolist() == [4, 4, 4]
    # What is cut off is drawn anew.
    others = [Geodesic().paths(images, labels, context(seed)).source for seed in range(20)]
    assert len(torch.cat(others).unique()) == 21


def test_t7_geodesics_have_constant_speed_and_random_pairs_do_not():
    images, labels = batch(16, 16, 16)

    def w2(x, y):
        cost = squared_distances(x, y)
        return float(cost[torch.arange(len(x)), assignments([cost])[0]].mean().sqrt())

    def worst(pairing):
        curves = curves_of(Geodesic(pairing=pairing), images, labels)
        off = []
        for pair in range(curves.pairs):
            of = curves.pair == pair
            low, high = curves.images(0.25)[of], curves.images(0.75)[of]
            off.append(abs(2 * w2(low, high) / w2(curves.start[of], curves.end[of]) - 1))
        return max(off)

    assert worst("ot") < 1e-9
    assert worst("random") > 0.01


def test_t16_transport_pairs_are_nearer_than_random_ones():
    images, labels = batch(16, 16, 16)
    distance = {}
    for pairing in ("ot", "random", "kmixup"):
        given = context()
        Geodesic(pairing=pairing).loss(Small(), images, labels, given)
        distance[pairing] = float(given.metrics["geodesic/distance"])
    assert distance["kmixup"] < distance["ot"] < distance["random"]


def test_t17_the_order_of_the_batch_does_not_matter():
    images, labels = batch(8, 8, 8)
    order = torch.randperm(24, generator=generator(5))

    def pairs(at):
        paths = Geodesic().paths(images[at], labels[at], context())
        return set(zip(at[paths.source].tolist(), at[paths.partner].tolist(), strict=True))

    assert pairs(order) == pairs(torch.arange(24))


def test_the_projection_of_a_small_entropy_is_the_assignment():
    """Two classes of equal size: the plan is the permutation, and so are loss and gradient."""
    images, labels = batch(8, 8)
    found = {}
    for pairing, entropy in (("ot", 1.0), ("sinkhorn", 1e-4)):
        method, network = Geodesic(pairing=pairing, entropy=entropy, location="fixed"), Small()
        loss = method.loss(network, images, labels, context())
        loss.backward()
        found[pairing] = loss.item(), network.head.grad.clone()
    assert found["ot"][0] == pytest.approx(found["sinkhorn"][0], rel=1e-6)
    assert torch.allclose(found["ot"][1], found["sinkhorn"][1], rtol=1e-5)


def test_the_projection_takes_whole_classes_of_unequal_sizes():
    images, labels = batch(12, 5)
    curves = curves_of(Geodesic(pairing="sinkhorn", entropy=0.5), images, labels)
    assert curves.pair.bincount().tolist() in ([12, 5], [5, 12])
    assert curves_of(Geodesic(), images, labels).pair.bincount().tolist() == [5, 5]
    ends = curves.target.argmax(1)
    assert torch.equal(ends, 1 - curves.source.argmax(1)), "the label of the other class"
    for label in (0, 1):
        low = images[labels == label].flatten(1).amin(0)
        high = images[labels == label].flatten(1).amax(0)
        into = curves.end[ends == label].flatten(1)
        assert ((into >= low - 1e-9) & (into <= high + 1e-9)).all(), "a mean of that class"


@pytest.mark.parametrize("estimate", ["gradient", "printed"])
def test_the_slope_is_that_of_finite_differences_with_and_without_the_label(estimate):
    images, labels = batch(6, 6)
    curves, network = curves_of(Geodesic(), images, labels), Small()
    at, step = torch.tensor(0.3, dtype=images.dtype), 1e-5

    def loss(where):
        logits = network(curves.images(where))
        label = curves.labels(where if estimate == "gradient" else 0.3)
        return curves.means(F.cross_entropy(logits, label, reduction="none")[:, None])[:, 0]

    expected = (loss(0.3 + step) - loss(0.3 - step)) / (2 * step)
    found = slope(network, curves, at, label=estimate == "gradient")
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-8)
    given = context()
    Geodesic(estimate=estimate, ramp=0.0, warmup=0.0).loss(network, images, labels, given)
    assert given.metrics["geodesic/variation"] > 0


def test_a_perfect_mixture_has_the_entropy_s_slope_and_none_as_printed():
    """Probabilities (1 - x, x) are the mixed label at every t: the loss is the label's entropy, at
    least log 2 in the middle, so its variation is 2 log 2. With the label fixed the slope is 0.
    Near a constant classifier both slopes are linear, that with the label fixed half as steep."""

    class Mixture(nn.Module):
        def forward(self, images):
            x = images.flatten(1)
            return torch.cat([1 - x, x], 1).log()

    class Nearly(nn.Module):
        """Logits 1e-4 times the mixed label, near a constant classifier."""

        def forward(self, images):
            x = images.flatten(1)
            return 1e-4 * torch.cat([1 - x, x], 1)

    curves, total = straight(), 0.0
    for number in range(1000):
        t = torch.tensor((number + 0.5) / 1000, dtype=torch.float64)
        moving, printed = (slope(Mixture(), curves, t, label=label) for label in (True, False))
        assert float(moving.detach()) == pytest.approx(math.log((1 - t) / t))
        assert float(printed.detach()) == pytest.approx(0, abs=1e-9)
        near, still = (slope(Nearly(), curves, t, label=label) for label in (True, False))
        assert float(near.detach()) == pytest.approx(1e-4 * float(2 - 4 * t), abs=1e-8)
        assert float(still.detach()) == pytest.approx(1e-4 * float(1 - 2 * t), abs=1e-8)
        total += float(moving.detach().abs()) / 1000
    assert total == pytest.approx(2 * math.log(2), rel=1e-3)


def test_k_mixup_knows_no_classes():
    images, labels = batch(12, 12, 12)
    given = context()
    paths = Geodesic(pairing="kmixup").paths(images, labels, given)
    assert paths.pair.bincount().tolist() == [18, 18]
    assert (paths.source != paths.partner).all()
    assert (labels[paths.source] == labels[paths.partner]).any()
    assert given.metrics["geodesic/fallbacks"] == 0


# The fallback, T21


def test_t21_small_classes_are_paired_together_and_counted():
    images, labels = batch(6, 6, 2, 1)
    given = context()
    paths = Geodesic().paths(images, labels, given)
    assert given.metrics["geodesic/fallbacks"] == 3
    of_small = labels[paths.source] >= 2
    assert torch.equal(of_small, labels[paths.partner] >= 2)
    assert int(of_small.sum()) == 2  # half of three, from two splits
    assert int((~of_small).sum()) == 12


def test_t21_the_fallback_crosses_classes_where_it_can():
    """Even if images of one class are identical and other classes are far away."""
    labels = torch.tensor([0, 0, 1, 1, 1, 0, 0, 1])
    images = labels.double().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    groups = [(torch.arange(4), torch.arange(4, 8))]
    ((a, b),) = match(images, groups, labels)
    assert (labels[a] != labels[b]).all()
    ((a, b),) = match(images, groups)
    assert (labels[a] == labels[b]).all()


def test_t21_a_batch_of_small_classes_crosses_them():
    """Four classes of three: a half of six can always be matched with other classes."""
    labels = torch.arange(4).repeat_interleave(3)
    images = labels.double().view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 3
    for seed in range(10):
        paths = Geodesic().paths(images, labels, context(seed))
        assert len(paths.source) == 12
        assert (labels[paths.source] != labels[paths.partner]).all()


@pytest.mark.parametrize("pairing", ["ot", "sinkhorn", "random", "kmixup"])
@pytest.mark.parametrize("counts", [(8,), (1, 1, 1), (1, 1), (7, 1)])
def test_t21_poor_batches_have_a_loss(pairing, counts):
    images, labels = batch(*counts)
    network, given = Small(), context()
    loss = Geodesic(pairing=pairing).loss(network, images, labels, given)
    loss.backward()
    assert loss.isfinite()
    assert network.head.grad.abs().sum() > 0
    fallen = 0 if pairing == "kmixup" else len(images)
    assert given.metrics["geodesic/fallbacks"] == fallen
    assert "geodesic/synthetic" in given.metrics


def test_t21_one_image_is_the_base_s_and_nan_is_named():
    images, labels = batch(1)
    given = context()
    loss = Geodesic().loss(Small(), images, labels, given)
    assert torch.equal(loss, F.cross_entropy(Small()(images), labels))
    assert given.metrics == {"geodesic/fallbacks": 1.0}
    images, labels = batch(8, 8)
    images[3, 0, 1, 2] = math.nan
    for pairing in ("ot", "sinkhorn", "random", "kmixup"):
        with pytest.raises(WorkError, match="pixels that are NaN"):
            Geodesic(pairing=pairing).loss(Small(), images, labels, context())
    early = dataclasses.replace(context(), progress=0.0)
    with pytest.raises(WorkError, match="pixels that are NaN"):
        Geodesic(warmup=0.5).loss(Small(), images, labels, early)


def test_t21_features_of_a_network_that_diverged_are_named():
    images, labels = batch(8, 8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 2)).double()
    nn.init.constant_(network[1].weight, math.nan)
    with pytest.raises(WorkError, match=r"features .* NaN .* lower train\.lr"):
        Geodesic(space="feature_cost").loss(network, images, labels, context())


# Labels and locations


def test_t4_ends_and_labels():
    images, labels = batch(8, 8, 8)
    curves = curves_of(Geodesic(), images, labels)
    for t, image, label in ((0.0, curves.start, curves.source), (1.0, curves.end, curves.target)):
        assert torch.equal(curves.images(t), image)
        assert torch.equal(curves.labels(t), label)
        assert torch.equal(curves.labels(t, "nearest"), label)
        assert torch.equal(curves.labels(t, "source"), curves.source)
    torch.testing.assert_close(
        curves.labels(0.3), 0.7 * curves.source + 0.3 * curves.target, rtol=0, atol=1e-15
    )
    at = torch.tensor([0.5, 0.51] * 12, dtype=torch.float64)
    mixed = curves.labels(at, "nearest")
    assert torch.equal(mixed[::2], curves.source[::2])
    assert torch.equal(mixed[1::2], curves.target[1::2])


@pytest.mark.parametrize(
    ("rule", "cap", "expected"),
    [
        ("soft", 0.2, [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("source", 0.2, [0.04, 0.08, 0.12, 0.16, 0.2]),
        ("nearest", 0.2, [0.2 / 3, 0.4 / 3, 0.2, 0.8, 0.9]),
        ("nearest", 0.5, [1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6]),
    ],
)
def test_the_grid_of_a_fixed_label_has_the_cap_from_every_end(rule, cap, expected):
    like = torch.zeros((), dtype=torch.float64)
    assert grid_of(5, rule, cap, like).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("location", ["grid", "ascent", "random"])
def test_locations_keep_to_the_label_s_cap(location):
    images, labels = batch(8, 8, 8)
    found = {}
    for label in ("soft", "nearest", "source"):
        method = Geodesic(label=label, cap=0.2, location=location, points=9)
        curves = curves_of(method, images, labels)
        t = torch.cat([method.locate(Small(), curves, generator(s)) for s in range(20)])
        assert len(t) == 60
        assert ((t >= 0) & (t <= 1)).all()
        found[label] = t
    assert found["source"].max() <= 0.2
    assert torch.minimum(found["nearest"], 1 - found["nearest"]).max() <= 0.2 + 1e-12
    assert found["soft"].max() > 0.25
    if location == "random":
        assert found["nearest"].max() > 0.8
        assert found["nearest"].min() < 0.2


def test_t14_a_label_that_switches_is_worst_at_the_switch():
    curves = straight()
    method = Geodesic(label="nearest", points=9)
    assert float(method.locate(Gap(8.0), curves, generator())) == pytest.approx(0.5)
    value = losses_at(Gap(8.0), curves, torch.tensor(0.5, dtype=torch.float64), "nearest")
    assert float(value) == pytest.approx(math.log(2))
    for cap in (0.1, 0.3, 0.5):
        source = Geodesic(label="source", cap=cap)
        assert float(source.locate(Gap(8.0), curves, generator())) == pytest.approx(cap)


@pytest.mark.parametrize(
    ("a", "at", "value"), [(2, 0.5, math.log(2)), (8, 0.261, 1.0197), (20, 0.25, 2.5)]
)
def test_t14_soft_labels_have_their_maximum_at_the_middle_or_on_both_sides(a, at, value):
    curves, network = straight(), Gap(float(a))
    grid = Geodesic(points=201)
    climbing = Geodesic(location="ascent", steps=16)
    found = [float(climbing.locate(network, curves, generator(seed))) for seed in range(12)]
    for t in (float(grid.locate(network, curves, generator())), *found):
        assert min(t, 1 - t) == pytest.approx(at, abs=3e-3)
        loss = losses_at(network, curves, torch.tensor(t, dtype=torch.float64), "soft")
        assert float(loss) == pytest.approx(value, abs=2e-4)
    if at < 0.5:
        assert min(found) < 0.5 < max(found), "both maxima are found, from different starts"


def test_t14_at_a_gap_of_four_the_middle_is_flat():
    t = torch.linspace(0.4, 0.6, 5, dtype=torch.float64)
    curves = straight()
    losses = torch.stack([losses_at(Gap(4.0), curves, at, "soft") for at in t])
    assert float(losses.max()) == pytest.approx(math.log(2), abs=1e-12)
    assert float(losses.min()) > math.log(2) - 3e-3
    assert int(losses.argmax()) == 2


def test_the_search_is_of_a_geodesic_not_of_an_image():
    """Each geodesic's location is the worst of the grid for its own mean loss."""
    images, labels = batch(8, 8, 8)
    method, network = Geodesic(points=7), Small()
    curves = curves_of(method, images, labels)
    grid = (torch.arange(7, dtype=torch.float64) + 0.5) / 7
    table = []
    for t in grid:
        with torch.no_grad():
            logits = network(curves.images(t))
        each = F.cross_entropy(logits, curves.labels(t), reduction="none")
        table.append([float(each[curves.pair == pair].mean()) for pair in range(3)])
    best = grid[torch.tensor(table).argmax(0)]
    assert torch.equal(method.locate(network, curves, generator()), best)
    assert len(best.unique()) > 1


def test_climbing_is_for_each_location_on_its_own():
    goals = torch.tensor([0.1, 0.4, 0.9])
    found = climb(lambda u: -((u - goals) ** 2), torch.tensor([0.5, 0.5, 0.5]), 12)
    torch.testing.assert_close(found, goals, rtol=0, atol=1e-3)
    ends = climb(lambda u: u, torch.tensor([0.0, 0.9]), 3)
    assert ends.tolist() == pytest.approx([0.4375, 1.0])


@pytest.mark.parametrize("location", ["grid", "ascent"])
def test_t18_the_location_is_a_constant_of_the_gradient(location):
    """Envelope theorem: the derivative of the maximum, by differences that search again, is that
    of the loss at the location found."""
    images, labels = batch(8, 8, 8)
    method = Geodesic(location=location, steps=24, penalty=0.0)
    network = Small()
    given = context()
    method.loss(network, images, labels, given).backward()
    direction = torch.randn(3, 8, generator=generator(3), dtype=torch.float64)
    slope_here = float((network.head.grad * direction).sum())

    def moved(h):
        other = Small()
        with torch.no_grad():
            other.head += h * direction
        return float(method.loss(other, images, labels, context()).detach())

    assert slope_here == pytest.approx((moved(1e-4) - moved(-1e-4)) / 2e-4, rel=1e-3)

    class Given(Geodesic):
        def locate(self, network, curves, generator):
            assert torch.equal(found, super().locate(network, curves, generator))
            return found.clone()

    curves = curves_of(method, images, labels)
    found = method.locate(Small(), curves, given_after_pairs(method, images, labels))
    assert not found.requires_grad
    again = Small()
    Given(location=location, steps=24, penalty=0.0).loss(
        again, images, labels, context()
    ).backward()
    assert torch.equal(again.head.grad, network.head.grad)


def given_after_pairs(method, images, labels):
    """The generator in the state in which `locate` receives it in a step."""
    given = context()
    method.paths(images, labels, given)
    return given.generator


# The penalty


def test_t12_a_linear_function_has_the_distance_of_the_means():
    images, labels = batch(8, 8, 8)
    curves = curves_of(Geodesic(), images, labels)
    w = torch.randn(16, 2, generator=generator(4), dtype=torch.float64)
    grid = jittered(5, images, generator())
    values = torch.stack([curves.means(curves.images(t).flatten(1) @ w) for t in grid])
    means = torch.stack([images[labels == c].flatten(1).mean(0) @ w for c in range(3)])
    starts, ends = curves.source.argmax(1), curves.target.argmax(1)
    for pair in range(3):
        a, b = (int(of[curves.pair == pair][0]) for of in (starts, ends))
        torch.testing.assert_close(
            variation(values, grid)[pair], (means[b] - means[a]).abs(), rtol=1e-12, atol=1e-14
        )
        torch.testing.assert_close(
            variation(values, grid, power=2)[pair], (means[b] - means[a]) ** 2
        )


def test_t13_the_slope_against_differences_and_its_integral():
    images, labels = batch(8, 8, 8)
    network, method = Small(), Geodesic(base=Gaussian(sigma=0.1))
    curves = curves_of(method, images, labels)

    def mean_loss(t):
        with torch.no_grad():
            logits = network(curves.noisy(t))
            return curves.means(
                F.cross_entropy(logits, curves.labels(t), reduction="none")[:, None]
            )[:, 0]

    for t in (0.1, 0.5, 0.77):
        found = slope(network, curves, torch.tensor(t, dtype=torch.float64))
        torch.testing.assert_close(
            found.detach(), (mean_loss(t + 1e-5) - mean_loss(t - 1e-5)) / 2e-5, rtol=0, atol=1e-9
        )
    whole = mean_loss(1.0) - mean_loss(0.0)
    at, weights = np.polynomial.legendre.leggauss(40)
    slopes = [slope(network, curves, torch.tensor((t + 1) / 2)).detach() for t in at]
    quadrature = sum(w / 2 * s for w, s in zip(weights.tolist(), slopes, strict=True))
    torch.testing.assert_close(quadrature, whole, rtol=0, atol=1e-7)
    nodes = torch.linspace(0, 1, 401, dtype=torch.float64)
    slopes = torch.stack([slope(network, curves, t).detach() for t in nodes])
    integral = torch.trapezoid(slopes.abs(), nodes, dim=0)
    assert (integral >= whole.abs() - 1e-4).all()
    fine = variation(torch.stack([mean_loss(t) for t in nodes]), nodes)
    torch.testing.assert_close(fine, integral, rtol=1e-3, atol=1e-5)
    coarse = torch.linspace(0, 1, 5, dtype=torch.float64)
    least = variation(torch.stack([mean_loss(t) for t in coarse]), coarse)
    assert (least <= fine + 1e-9).all()
    assert (least >= whole.abs() - 1e-9).all()


def test_t13_the_slope_s_gradient_reaches_the_weights():
    images, labels = batch(4, 4, 4)
    network = Small()
    curves = curves_of(Geodesic(), images, labels)
    at = torch.tensor(0.3, dtype=torch.float64)
    slope(network, curves, at).abs().mean().backward()
    direction = torch.randn(8, 16, generator=generator(3), dtype=torch.float64)

    def moved(h):
        other = Small()
        with torch.no_grad():
            other.first += h * direction
        return float(slope(other, curves, at).abs().mean().detach())

    expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert float((network.first.grad * direction).sum()) == pytest.approx(expected, rel=1e-5)


class Attention(nn.Module):
    """Attention between the rows of an image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(4, 4, dtype=torch.float64)
        self.head = nn.Linear(16, 3, dtype=torch.float64)

    def forward(self, images):
        rows = self.embed(images[:, :1])
        return self.head(F.scaled_dot_product_attention(rows, rows, rows).flatten(1))


def test_the_slope_s_gradient_of_attention_and_of_a_compiled_network():
    images, labels = batch(4, 4, 4)
    curves = curves_of(Geodesic(), images, labels)
    at = torch.tensor(0.3, dtype=torch.float64)
    network, compiled = Attention(), Attention()
    compiled.compile(backend="aot_eager")
    for module in (network, compiled):
        slope(module, curves, at).square().sum().backward()
    assert network.embed.weight.grad.abs().sum() > 0
    torch.testing.assert_close(compiled.embed.weight.grad, network.embed.weight.grad)
    assert torch.equal(penultimate(compiled, images), penultimate(network, images))


def test_the_mean_is_inside_the_absolute_value():
    """Two paths whose losses rise and fall equally have zero total slope."""
    both = straight()
    start = torch.cat([both.start, both.end])
    end = torch.cat([both.end, both.start])
    label = both.source.expand(2, -1)
    one = Curves(start, end, label, label, torch.zeros(2, dtype=torch.int64), 1, 0.0)
    apart = one._replace(pair=torch.arange(2), pairs=2)
    half = torch.tensor(0.5, dtype=torch.float64)
    assert float(slope(Gap(3.0), one, half).detach()) == pytest.approx(0, abs=1e-12)
    assert float(slope(Gap(3.0), apart, half).detach().abs().mean()) > 1


def test_the_grid_is_rising_and_moves():
    grids = torch.stack([jittered(4, torch.zeros(1), generator(seed)) for seed in range(200)])
    assert (grids[:, 0] == 0).all()
    assert (grids[:, -1] == 1).all()
    assert (grids.diff(dim=1) > 0).all()
    middle = grids[:, 2]
    assert 0.375 <= middle.min() < 0.4
    assert 0.6 < middle.max() <= 0.625
    assert jittered(1, torch.zeros(1), generator()).tolist() == [0, 1]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("performance", ["loss", "probabilities"])
def test_the_penalty_is_the_variation_of_the_performance(performance, power):
    images, labels = batch(8, 8, 8)
    network, given = Small(), context()
    method = Geodesic(
        weight=0.0, performance=performance, power=power, segments=3, penalty=2.0, ramp=0.0
    )
    loss = method.loss(network, images, labels, given)
    again = generator()
    paths = method.paths(images, labels, StepContext(again))
    curves = method.curves(images, F.one_hot(labels, 3).double(), paths, again)
    grid = jittered(3, images, again)
    expected = torch.zeros((), dtype=torch.float64)
    for pair in range(3):
        means = []
        for t in grid:
            logits = network(curves.images(t))
            each = logits.softmax(1)
            if performance == "loss":
                each = F.cross_entropy(logits, curves.labels(t), reduction="none")[:, None]
            means.append(each[curves.pair == pair].mean(0))
        for k in range(3):
            change = (means[k + 1] - means[k]).abs() ** power
            expected = expected + (change / (grid[k + 1] - grid[k]) ** (power - 1)).sum() / 3
    torch.testing.assert_close(given.metrics["geodesic/variation"], expected.detach())
    torch.testing.assert_close(loss, F.cross_entropy(network(images), labels) + 2 * expected)


def test_the_variation_of_probabilities_is_at_least_two_for_a_perfect_classifier():
    given = context(classes=2)
    images = torch.tensor([0.0] * 4 + [1.0] * 4, dtype=torch.float64).view(-1, 1, 1, 1)
    labels = torch.tensor([0] * 4 + [1] * 4)
    method = Geodesic(performance="probabilities", segments=8)
    method.loss(Gap(60.0), images, labels, given)
    assert float(given.metrics["geodesic/variation"]) == pytest.approx(2, abs=1e-6)


def test_warmup_and_ramp():
    images, labels = batch(8, 8, 8)
    method = Geodesic(warmup=0.2, ramp=0.4, penalty=3.0, weight=0.0)

    def at(progress):
        given = context(progress=progress)
        loss = method.loss(Small(), images, labels, given)
        extra = loss - F.cross_entropy(Small()(images), labels)
        return float(extra.detach() / given.metrics.get("geodesic/variation", 1.0))

    assert [at(p) for p in (0.0, 0.1, 0.2)] == [0, 0, 0]
    assert [at(p) for p in (0.3, 0.4, 0.6, 0.9)] == pytest.approx([0.75, 1.5, 3, 3])


# The step


def test_t15_noise_is_added_after_mixing():
    """Constant images separate noise from image; mixed noise has half the variance at t = 1/2,
    which shows if the noise comes first."""
    labels = torch.arange(2).repeat_interleave(8)
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 1, 40, 40).contiguous()
    network = Small(classes=2, pixels=1600).float()
    sigma = 0.5
    method = Geodesic(base=Gaussian(sigma=sigma), location="fixed", penalty=0.0)
    method.loss(network, images, labels, context(classes=2))
    base, synthetic = network.seen
    for seen, mean in ((base, images), (synthetic, torch.full_like(images, 0.5))):
        assert float((seen - mean).var()) == pytest.approx(sigma**2, rel=0.05)
    residual = (synthetic - 0.5).flatten(1)
    assert float(residual.mean(1).abs().max()) < 5 * sigma / 40
    noisy = images + sigma * torch.randn(images.shape, generator=generator(8))
    wrong = interpolate(noisy[:8], noisy[8:], 0.5) - 0.5
    assert float(wrong.var()) == pytest.approx(sigma**2 / 2, rel=0.05)


def test_all_points_of_a_path_share_their_noise():
    images, labels = batch(8, 8, 8)
    method, network = Geodesic(base=Gaussian(sigma=0.5), points=2, segments=2), Small()
    method.loss(network, images, labels, context())
    assert [len(seen) for seen in network.seen] == [24, 24, 24, 24 * 4]  # grid, base, one pass
    given = context()
    paths = method.paths(images, labels, given)
    curves = method.curves(images, F.one_hot(labels, 3).double(), paths, given.generator)
    torch.testing.assert_close(network.seen[0] - curves.images(0.25), curves.noise)
    _, first, _, last = network.seen[3].split(24)
    torch.testing.assert_close(first - curves.start, curves.noise)
    torch.testing.assert_close(last - curves.end, curves.noise)


def test_the_passes_of_a_step():
    images, labels = batch(8, 8, 8)

    def passes(**settings):
        network = CountedNetwork(Small())
        Geodesic(**settings).loss(network, images, labels, context()).backward()
        return network.forward_passes / 24, network.backward_passes / 24

    assert passes(points=5, segments=4) == (1 + 5 + 1 + 5, 1 + 1 + 5)
    assert passes(points=5, penalty=0.0) == (1 + 5 + 1, 2)
    assert passes(location="random", penalty=0.0) == (2, 2)
    assert passes(location="random", pairing="random", penalty=0.0) == (2, 2)
    assert passes(location="random", pairing="kmixup", penalty=0.0) == (2, 2)
    assert passes(location="ascent", steps=3, penalty=0.0) == (1 + 3 + 1, 2 + 3)
    assert passes(weight=0.0, segments=2) == (1 + 3, 1 + 3)


@pytest.mark.parametrize("estimate", ["differences", "gradient"])
def test_the_loss_is_the_sum_of_its_parts(estimate):
    images, labels = batch(8, 8, 8)
    given = context()
    method = Geodesic(weight=0.7, penalty=0.3, estimate=estimate, base=Pgd(steps=2))
    loss = method.loss(Small(), images, labels, given)
    alone = Geodesic(weight=0.7, penalty=0.0, base=Pgd(steps=2))
    without = context()
    reduced = alone.loss(Small(), images, labels, without)
    metrics = given.metrics
    torch.testing.assert_close(loss - reduced, 0.3 * metrics["geodesic/variation"])
    assert metrics["geodesic/synthetic"] == without.metrics["geodesic/synthetic"]
    assert {name for name in metrics if "geodesic" not in name} == {"train/attacked_accuracy"}


@pytest.mark.parametrize("label", ["soft", "nearest", "source"])
def test_synthetic_images_have_the_location_and_label_of_their_geodesic(label):
    images, labels = batch(8, 8, 8)
    method, network, given = Geodesic(label=label, penalty=0.0, weight=2.0), Small(), context()
    loss = method.loss(network, images, labels, given)
    curves = curves_of(method, images, labels)
    locations = method.locate(network, curves, generator())
    expected = 0.0
    for path in range(24):
        t = float(locations[curves.pair[path]])
        source, target = curves.source[path], curves.target[path]
        mixed = {
            "soft": (1 - t) * source + t * target,
            "nearest": source if t <= 0.5 else target,
            "source": source,
        }[label]
        image = (1 - t) * curves.start[path] + t * curves.end[path]
        expected = expected - (mixed * network(image[None])[0].log_softmax(0)).sum() / 24
    base = F.cross_entropy(network(images), labels)
    torch.testing.assert_close(loss, base + 2 * expected)
    assert float(given.metrics["geodesic/location"]) == pytest.approx(
        float(locations[curves.pair].mean())
    )
    if label == "soft":
        assert len(locations.unique()) > 1


def test_the_base_s_metrics_are_of_the_real_images():
    images, labels = batch(8, 8, 8)
    attack = Pgd(steps=5, eps=0.02, start="center")
    alone, own, synthetic = context(), context(), context()
    attack.loss(Small(), images, labels, alone)
    method = Geodesic(base=attack, synthetic="base", penalty=0.0)
    method.loss(Small(), images, labels, own)
    curves = curves_of(method, images, labels)
    t = method.locate(Small(), curves, generator())[curves.pair]
    attack.loss(Small(), curves.images(t), curves.labels(t), synthetic)
    key = "train/attacked_accuracy"
    assert own.metrics[key] == alone.metrics[key] != synthetic.metrics[key]


def test_synthetic_images_under_the_base_s_own_loss():
    images, labels = batch(8, 8, 8)

    def synthetic(base, kind):
        given = context()
        Geodesic(base=base, synthetic=kind, penalty=0.0).loss(Small(), images, labels, given)
        return float(given.metrics["geodesic/synthetic"])

    assert synthetic(Standard(), "base") == synthetic(Standard(), "plain")
    attack = Pgd(steps=5, eps=0.1, start="center")
    assert synthetic(attack, "plain") == synthetic(Standard(), "plain")
    assert synthetic(attack, "base") > synthetic(attack, "plain")


@pytest.mark.parametrize("synthetic", ["plain", "base"])
@pytest.mark.parametrize("estimate", ["differences", "gradient"])
def test_running_statistics_can_be_those_of_the_base_alone(synthetic, estimate):
    found = {}
    for statistics in ("all", "base", "none"):
        settings = {"statistics": statistics, "synthetic": synthetic, "estimate": estimate}
        method = Standard() if statistics == "none" else Geodesic(least=2, **settings)
        step = testing.Step(method)
        loss = step.loss()
        loss.backward()
        norm = step.probe.norm
        assert norm.track_running_stats
        found[statistics] = (norm.running_mean, norm.running_var, norm.num_batches_tracked, loss)
    for own, alone in zip(found["base"][:3], found["none"][:3], strict=True):
        assert torch.equal(own, alone)
    assert not torch.equal(found["all"][0], found["base"][0])
    assert torch.equal(found["all"][3], found["base"][3]), "the step itself is the same"


BASES = [
    Standard(),
    Gaussian(sigma=0.5),
    Pgd(steps=2),
    Trades(steps=2),
    Macer(k=2),
    Smoothadv(steps=2),
    LpNoise(base=Gaussian()),
]


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.key)
def test_t19_without_weights_it_is_the_base_bit_for_bit(base):
    for method in (Geodesic(base=base, weight=0.0, penalty=0.0), Geodesic(base=base, warmup=0.9)):
        steps = [testing.Step(made) for made in (base, method)]
        optimizers = [torch.optim.SGD(step.network.parameters(), 0.1) for step in steps]
        for _ in range(3):
            losses = [step.loss() for step in steps]
            assert torch.equal(*losses)
            for loss, optimizer in zip(losses, optimizers, strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        for own, other in zip(*(s.network.state_dict().values() for s in steps), strict=True):
            assert torch.equal(own, other)
        assert torch.equal(*(step.generator.get_state() for step in steps))


@pytest.mark.parametrize("base", [*BASES, get("covariance")()], ids=lambda base: base.key)
@pytest.mark.parametrize("synthetic", ["plain", "base"])
def test_every_base_can_be_wrapped(base, synthetic):
    method = Geodesic(base=base, synthetic=synthetic, least=2)
    if base.key != "covariance":  # its passes are not calls, which the check counts
        testing.check_network_untouched(method)
    testing.check_targets(method)
    assert method.noise() == base.noise()
    testing.check_loss_and_gradient(LpNoise(base=method))


def test_the_class_cycle_in_the_conformance_suite():
    """Its batches have two images per class, too few for the default."""
    testing.check_step(Geodesic(least=2))
    testing.check_step(Geodesic(least=2, estimate="gradient", label="source", cap=0.3))


# Spaces


def coder_for(images):
    return train_autoencoder(images, size=6, epochs=2, seed=0)


def latent_context(images, seed=0):
    return StepContext(generator(seed), 0.5, Prepared(3, None, coder_for(images)))


def test_latent_images_are_decoded_mixtures_of_codes():
    images, labels = batch(8, 8, 8)
    method = Geodesic(space="latent", location="fixed", at=0.3, penalty=0.0)
    network, given = Small(), latent_context(images)
    method.loss(network, images, labels, given)
    coder = given.prepared.coder
    codes = coder.encode(images)
    paths = method.paths(codes, labels, context())
    mixed = coder.decode(0.7 * codes[paths.source] + 0.3 * codes[paths.partner])
    checked, base, synthetic = network.seen
    torch.testing.assert_close(checked, coder.decode(codes[paths.source]))
    torch.testing.assert_close(base, images)
    torch.testing.assert_close(synthetic, mixed)
    assert given.metrics["geodesic/other_passes"] == 24 * 3


def test_the_reconstruction_only_arm_never_meets_a_partner():
    images, labels = batch(8, 8, 8)
    method = Geodesic(space="latent", location="fixed", at=0.0, penalty=0.0)
    network, given = Small(), latent_context(images)
    loss = method.loss(network, images, labels, given)
    coder = given.prepared.coder
    decoded = coder(images)
    expected = F.cross_entropy(network(images), labels)
    expected = expected + F.cross_entropy(network(decoded), labels)
    torch.testing.assert_close(loss, expected)
    right = (network(decoded).argmax(1) == labels).double().mean()
    assert float(given.metrics["geodesic/reconstruction_accuracy"]) == pytest.approx(float(right))


@pytest.mark.parametrize(
    "settings", [{"location": "ascent"}, {"estimate": "gradient"}, {"base": Gaussian(sigma=0.5)}]
)
def test_the_search_and_the_penalty_go_through_the_decoder(settings):
    images, labels = batch(8, 8, 8)
    network, given = Small(), latent_context(images)
    Geodesic(space="latent", **settings).loss(network, images, labels, given).backward()
    assert network.first.grad.isfinite().all()
    assert float(given.metrics["geodesic/variation"]) > 0
    assert all(p.grad is None for p in given.prepared.coder.parameters())


def test_the_network_s_own_features_give_the_cost_for_one_pass():
    images, labels = batch(8, 8, 8)

    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(16, 5).double(), nn.Linear(5, 3).double()

        def forward(self, images):
            return self.head(torch.tanh(self.body(images.flatten(1))))

    network, given = CountedNetwork(Headed()), context()
    method = Geodesic(space="feature_cost", location="random", penalty=0.0)
    prepared = method.setup(network.network, images, labels)
    assert prepared.coder is None
    method.loss(network, images, labels, given)
    assert network.forward_passes == 3 * 24
    assert "geodesic/other_passes" not in given.metrics
    features = torch.tanh(network.network.body(images.flatten(1)))
    paths = method.paths(features, labels, context())
    own = method.paths(method.spaced(network, images, context()).cost, labels, context())
    assert torch.equal(own.partner, paths.partner)
    pixels = method.paths(images, labels, context())
    assert not torch.equal(pixels.partner, paths.partner)


def test_a_frozen_embedding_gives_the_cost_and_is_counted():
    images, labels = batch(8, 8, 8)
    network = CountedNetwork(Small())
    given = context()
    given.embed = lambda x: x.flatten(1)[:, :2]
    method = Geodesic(space="feature_cost", location="random", penalty=0.0)
    method.loss(network, images, labels, given)
    assert network.forward_passes == 2 * 24
    assert given.metrics["geodesic/other_passes"] == 24
    given.embed = lambda x: x.flatten(1) * math.nan
    with pytest.raises(WorkError, match=r"features .* NaN"):
        method.loss(network, images, labels, given)


def test_setup_makes_the_same_autoencoder_on_every_rank_and_on_resume():
    images, labels = batch(20, 20)
    method = Geodesic(space="latent", latent=4, latent_epochs=1)
    codes = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        torch.rand(seed)  # what was drawn before does not matter, the seed does
        codes.append(method.setup(Small(classes=2), images, labels).coder.encode(images))
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


@pytest.mark.parametrize("space", ["latent", "feature_cost"])
def test_a_resumed_run_in_another_space_is_the_same_run(space, tmp_path):
    settings = ["method.name=geodesic", f"method.space={space}", "method.latent_epochs=1"]
    settings += ["train.epochs=2", "train.batch_classes=8", "train.batch_size=64"]
    settings += ["data.limit=200", "model.width=4", "certified_fast.every=0"]
    config = compose(leaves_of_arguments(settings), get)
    dataset, cpu = data.load(config.data), torch.device("cpu")
    ends = []
    for progress in fit(config, dataset, cpu):
        if progress.epoch == 1:
            progress.save(tmp_path)
        ends.append(progress.save.__self__.network.state_dict())
    (resumed,) = fit(config, dataset, cpu, tmp_path)
    again = resumed.save.__self__.network.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in ends[-1].items())


@pytest.mark.parametrize("space", ["latent", "feature_cost"])
def test_every_space_in_the_conformance_suite(space):
    testing.check_step(Geodesic(least=2, space=space, latent_epochs=1, latent=3))


# T20: two ranks


def test_t20_two_ranks(tmp_path):
    testing.run_ranks(_rank, tmp_path)


def _rank(rank):
    same = [(6, 6, 6), (6, 6, 6)]
    unequal = [(9, 9, 0), (0, 0, 18)]
    few = [(18,), (1, 0, 0)]
    for counts in (same, unequal, few):
        method = Geodesic(base=Gaussian(), points=2)
        images, labels = batch(*counts[rank], seed=0 if counts is same else rank)
        network = Small().requires_grad_()
        objective = Objective(network, method)
        objective.prepared = Prepared(3, None)
        wrapped = DistributedDataParallel(objective)
        seed = 0 if counts is same else rank
        wrapped(images, labels, generator(seed), 0.5).backward()
        alone = Objective(Small(), method)
        alone.prepared = Prepared(3, None)
        alone(images, labels, generator(seed), 0.5).backward()
        own = alone.network.network.head.grad
        if counts is same:
            torch.testing.assert_close(network.head.grad, own, rtol=1e-12, atol=0)
        dist.all_reduce(own)
        torch.testing.assert_close(network.head.grad, own / 2)


# Configuration


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"estimate": "gradient", "performance": "probabilities"}, "estimate"),
        ({"most": 2}, "most"),
        ({"location": "fixed", "label": "source", "at": 0.5, "cap": 0.3}, "at"),
        ({"location": "fixed", "label": "nearest", "at": 0.6, "cap": 0.3}, "at"),
        ({"at": 1.5}, "at"),
        ({"cap": 0.6}, "cap"),
        ({"embedding": "run"}, "embedding"),
        ({"space": "latent", "latent": 0}, "latent"),
    ],
)
def test_wrong_settings_are_named(settings, field):
    with pytest.raises(RequestError, match=f"^{field}: got"):
        Geodesic(**settings)


def test_it_is_composed_from_the_command_line():
    arguments = ["method.name=geodesic", "method.base.name=macer", "method.base.sigma=0.5"]
    method = compose(leaves_of_arguments([*arguments, "method.label=source"]), get).method
    assert method == Geodesic(base=Macer(sigma=0.5), label="source")
    assert method.noise() == 0.5
    fixed = Geodesic(location="fixed", at=0.9, label="nearest", cap=0.2)
    curves = straight()
    assert fixed.locate(Gap(1.0), curves, generator()).tolist() == [0.9]
