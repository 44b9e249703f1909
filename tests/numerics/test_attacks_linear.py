"""Attacks on linear networks, whose optimum in each ball has a closed form."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from raybust.errors import RequestError, WorkError
from raybust.numerics.attacks import (
    apgd,
    apgd_targeted,
    ascend,
    dlr,
    margin,
    n_fgsm,
    pgd,
    square,
    targeted_dlr,
)
from raybust.numerics.attacks.square import _bump, _draws, _side, _square, _stripes, _tiles
from raybust.numerics.balls import Threat
from raybust.numerics.balls.source import uniform

NORMS = ("linf", "l2", "l1")
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
SHAPE = (1, 5, 10)


class Margin(nn.Module):
    """Logits -m and m, m = (w.x + 50) / 2: class 1 is always right, so attacks run to the end."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)
        self.eval()

    def forward(self, images):
        value = images.flatten(1) @ self.weight + 50
        return torch.stack([-value / 2, value / 2], 1)


def problem(seed, count=4):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(50, generator=generator, dtype=torch.float64)
    images = torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    return Margin(weight), images, torch.ones(count, dtype=torch.int64)


def drop(network, images, found):
    """The decrease of w.x."""
    return 2 * (network(images) - network(found))[:, 1]


def optimum(weight, image, threat):
    """The largest decrease of w.x in ball and box: bounds -u <= d <= l per coordinate, by sign."""
    size = weight.abs()
    room = torch.where(weight > 0, image, 1 - image)
    if threat.norm == "linf":
        return float((size * room.clamp(max=threat.eps)).sum())
    if threat.norm == "l2":
        low, high = 0.0, 1e6
        for _ in range(200):
            middle = (low + high) / 2
            if torch.minimum(middle * size, room).norm() > threat.eps:
                high = middle
            else:
                low = middle
        return float((size * torch.minimum(low * size, room)).sum())
    total, left = 0.0, threat.eps
    for at in size.argsort(descending=True).tolist():
        used = min(left, float(room[at]))
        total, left = total + used * float(size[at]), left - used
    return total


def generators(count, seed=0):
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(count)]


@pytest.mark.parametrize("norm", NORMS)
def test_without_the_box_the_drop_is_eps_times_the_dual_norm(norm):
    network, images, labels = problem(0)
    threat = Threat(norm, 0.3, box=False)
    best = 0.3 * float(network.weight.norm(DUAL[norm]))
    one = pgd(network, images, labels, threat, generators(4), steps=1, step=0.3, loss=margin,
              center=True)  # fmt: skip
    torch.testing.assert_close(
        drop(network, images, one.images), torch.full((4,), best, dtype=torch.float64)
    )
    for found in (
        pgd(network, images, labels, threat, generators(4), steps=100, step=0.3, loss=margin),
        apgd(network, images, labels, threat, generators(4), loss=margin),
    ):
        got = drop(network, images, found.images)
        assert (got >= 0.999 * best).all(), got / best
        assert (got <= best * (1 + 1e-9)).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(3))
def test_with_the_box_the_optimum_is_reached(norm, seed):
    network, images, labels = problem(seed)
    threat = Threat(norm, {"linf": 0.3, "l2": 1.5, "l1": 6.0}[norm])
    best = [optimum(network.weight, image.flatten(), threat) for image in images]
    for attack, settings in ((pgd, {"step": 1.5} if norm == "l2" else {}), (apgd, {})):
        found = attack(
            network, images, labels, threat, generators(4), steps=100, loss=margin, **settings
        )
        share = drop(network, images, found.images) / torch.tensor(best, dtype=torch.float64)
        assert (share >= 0.999).all(), (attack.__name__, share)
        assert (share <= 1 + 1e-9).all()
        assert not found.fooled.any()


def test_a_dense_l1_step_does_not_reach_it():
    """The signs of all coordinates over d, as in foolbox, waste the budget."""
    network, images, _ = problem(0)
    threat = Threat("l1", 6.0)
    best = torch.tensor([optimum(network.weight, image.flatten(), threat) for image in images])
    delta = torch.zeros_like(images)
    for _ in range(100):
        direction = -network.weight.sign().reshape(SHAPE).expand_as(images) / 50
        delta = threat.project(delta + 2.5 * 6 / 100 * direction, images)
    assert (drop(network, images, images + delta) < 0.9 * best).all()


def test_ascend_is_the_same_without_bookkeeping():
    network, images, labels = problem(1)
    threat = Threat("linf", 0.2)
    found = ascend(
        network, images, threat, lambda logits: margin(logits, labels).sum(),
        start=torch.zeros_like(images), steps=3, step=0.1,
    )  # fmt: skip
    best = [optimum(network.weight, image.flatten(), threat) for image in images]
    torch.testing.assert_close(
        drop(network, images, found), torch.tensor(best, dtype=torch.float64)
    )


def test_n_fgsm_leaves_the_ball_but_not_the_box():
    network, images, labels = problem(2, count=64)
    threat = Threat("linf", 0.1)
    found = n_fgsm(
        network, images, threat, lambda z: margin(z, labels).sum(), torch.Generator().manual_seed(0)
    )
    sizes = threat.size(found - images)
    assert 0.25 < float(sizes.max()) <= 0.3 + 1e-12
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


class ThreeClasses(nn.Module):
    """A linear network with three or more classes on two pixels that errs within small radii."""

    def __init__(self, classes=3):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.linear = nn.Linear(50, classes).double()
        nn.init.normal_(self.linear.weight, generator=generator)
        nn.init.normal_(self.linear.bias, generator=generator)
        self.eval()

    def forward(self, images):
        return self.linear(images.flatten(1))


def labeled(count=60, classes=3):
    network = ThreeClasses(classes)
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(6)).double()
    return network, images, network(images).argmax(1)


@pytest.mark.parametrize("norm", NORMS)
def test_the_monotonicities(norm):
    """Robust accuracy does not rise with eps, steps (best iterate) or restarts."""
    network, images, labels = labeled()
    scale = {"linf": 0.02, "l2": 0.1, "l1": 0.5}[norm]

    def robust(eps, attack=pgd, **settings):
        found = attack(network, images, labels, Threat(norm, eps), generators(60), **settings)
        assert (network(found.images).argmax(1) != labels).equal(found.fooled)
        assert (found.step >= 0).equal(found.fooled)
        return int((~found.fooled).sum()), found

    by_eps = [robust(scale * k)[0] for k in (0.2, 0.5, 1, 2, 4, 8)]
    assert by_eps == sorted(by_eps, reverse=True)
    assert by_eps[0] > by_eps[-1]
    length = 0.2 * scale
    by_steps = [robust(scale, steps=steps, step=length)[0] for steps in (1, 2, 5, 10, 30)]
    assert by_steps == sorted(by_steps, reverse=True)
    by_restarts = [robust(scale, steps=3, restarts=count)[0] for count in (1, 2, 5)]
    assert by_restarts == sorted(by_restarts, reverse=True)
    losses = [robust(scale * k)[1].loss for k in (0.01, 0.02, 0.04)]
    assert all((a <= b + 1e-9).all() for a, b in itertools.pairwise(losses))
    assert robust(scale, apgd)[0] <= robust(scale)[0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [pgd, apgd, apgd_targeted, square])
def test_a_batch_and_its_examples_alone_give_the_same(norm, attack):
    network, images, labels = labeled(12, classes=5)
    threat = Threat(norm, {"linf": 0.03, "l2": 0.15, "l1": 0.4}[norm])
    settings = {"queries": 150} if attack is square else {"steps": 20}
    whole = attack(network, images, labels, threat, generators(12), **settings)
    assert 0 < whole.fooled.sum() < 12
    for at in range(12):
        own = [generators(12)[at]]
        single = attack(network, images[at : at + 1], labels[at : at + 1], threat, own, **settings)
        assert single.fooled[0] == whole.fooled[at]
        assert single.step[0] == whole.step[at]
        torch.testing.assert_close(single.images[0], whole.images[at], rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_square_is_the_search_of_one_query_at_a_time(norm):
    network, images, labels = labeled(6, classes=5)
    threat = Threat(norm, {"linf": 0.03, "l2": 0.15, "l1": 0.4}[norm])
    queries, passes = 260, []

    def counted(points):
        passes.append(len(points))
        return network(points)

    found = square(counted, images, labels, threat, generators(6), queries=queries)
    assert 0 < found.fooled.sum() < 6
    assert len(passes) < queries / 2
    start, propose = (_stripes, _square) if norm == "linf" else (_tiles, _bump)
    for at, source in enumerate(generators(6)):
        image, label, best = images[at : at + 1], labels[at : at + 1], -math.inf
        delta = proposal = start(image, threat, [source])
        for number in range(queries):
            if number:
                if (number - 1) % 100 == 0:
                    table = uniform(image.new_empty(1, 100, _draws(image)), [source])
                side = _side(number / queries, image, threat)
                proposal = propose(delta, image, threat, table[:, (number - 1) % 100], side)
            logits = network(image + proposal)
            loss = margin(logits, label).item()
            if loss > best:
                delta, best = proposal, loss
            if logits.argmax() != label:
                break
        fooled = best > 0
        assert bool(found.fooled[at]) == fooled
        assert found.step[at] == (number if fooled else -1)
        torch.testing.assert_close(found.images[at], image[0] + delta[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_square_finds_what_gradients_find_given_time(norm):
    network, images, labels = labeled(40)
    images = images.float()
    network = network.float()
    threat = Threat(norm, {"linf": 0.03, "l2": 0.2, "l1": 1.0}[norm])
    white = apgd(network, images, labels, threat, generators(40))
    black = square(network, images, labels, threat, generators(40), queries=800)
    assert not (black.fooled & ~white.fooled).any()
    assert black.fooled.sum() >= 0.6 * white.fooled.sum()
    for found in (white, black):
        assert threat.size(found.images.double() - images.double()).max() <= threat.eps + 1e-6
        assert found.images.aminmax()[0] >= 0
        assert found.images.aminmax()[1] <= 1


def test_the_losses_are_their_formulas():
    logits = torch.tensor([[3.0, 1.0, 0.5, -2.0], [0.0, 4.0, 2.0, 1.0]])
    labels, targets = torch.tensor([0, 2]), torch.tensor([3, 1])
    torch.testing.assert_close(margin(logits, labels), torch.tensor([-2.0, 2.0]))
    torch.testing.assert_close(dlr(logits, labels), torch.tensor([-2 / 2.5, 2 / 3.0]))
    expected = torch.tensor([-5 / (3 - (0.5 - 2) / 2), 2 / (4 - 0.5)])
    torch.testing.assert_close(targeted_dlr(logits, labels, targets), expected)


def test_gradients_of_the_losses_are_those_of_float64():
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    labels, targets = torch.arange(6) % 5, (torch.arange(6) + 2) % 5
    assert torch.autograd.gradcheck(lambda z: dlr(z, labels), logits)
    assert torch.autograd.gradcheck(lambda z: targeted_dlr(z, labels, targets), logits)


@pytest.mark.parametrize(
    ("attack", "settings", "says"),
    [
        (pgd, {"steps": 0}, "steps: got 0"),
        (pgd, {"restarts": 0}, "restarts: got 0"),
        (apgd, {"steps": 0}, "steps: got 0"),
        (square, {"queries": 0}, "queries: got 0"),
        (apgd_targeted, {"targets": 0}, "targets: got 0"),
        (apgd_targeted, {}, "at least 4 classes"),
    ],
)
def test_requests_without_meaning_are_refused(attack, settings, says):
    network, images, labels = labeled(2)
    with pytest.raises(RequestError, match=says):
        attack(network, images, labels, Threat("l2", 0.1), generators(2), **settings)


def test_nan_is_an_error_and_not_a_success():
    class Broken(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :4].log().sqrt()

    images = torch.full((2, *SHAPE), 0.5)
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(WorkError, match="NaN"):
        pgd(Broken(), images, labels, Threat("linf", 0.1), generators(2))


def test_a_flat_loss_does_not_end_an_attack():
    """Gradients of exactly 0 are replaced by random directions."""

    class Flat(nn.Module):
        def forward(self, images):
            steps = (images.flatten(1).mean(1) > 0.5).float()
            return torch.stack([1 - steps, steps], 1) + 0 * images.flatten(1)[:, :2]

    images = torch.full((8, *SHAPE), 0.499)
    labels = torch.zeros(8, dtype=torch.int64)
    found = pgd(Flat(), images, labels, Threat("l2", 0.5), generators(8), steps=100)
    assert found.fooled.float().mean() >= 0.5
    assert np.isfinite(found.images.numpy()).all()
