"""Scores, hinges and screening radii: closed forms, saturation, finite differences."""

import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.autograd import gradcheck

from raybust.numerics.moments import (
    LogitMoments,
    Rules,
    contenders,
    linear_score,
    margin_hinge,
    margin_score,
    moment_acr,
    probability_cross_entropy,
    probability_hinge,
    propagate,
    radius_hinge,
    screening_radii,
    trace,
)


def logits(mean, q):
    mean = torch.as_tensor(mean, dtype=torch.float64)
    covariance = torch.as_tensor(q, dtype=torch.float64).expand(len(mean), 2, 2)
    return LogitMoments(mean, mean.detach().topk(2).indices, covariance)


def test_score_is_a_lower_bound_of_the_win_rate():
    q, mean = [[0.5, 0.2], [0.2, 0.3]], [[1.0, 0.2, -3.0]]
    draws = torch.distributions.MultivariateNormal(
        torch.tensor([1.0, 0.2]).double(), torch.tensor(q).double()
    ).sample((400_000,))
    wins = float((draws[:, 0] > draws[:, 1]).double().mean())
    assert norm.cdf(0.8 / (0.8 - 0.4) ** 0.5) == pytest.approx(wins, abs=3e-3)
    score = float(margin_score(logits(mean, q)))
    assert score == pytest.approx(0.8 / 1.2**0.5)
    assert norm.cdf(score) <= wins
    negative = [[0.5, -0.2], [-0.2, 0.3]]  # here the two forms agree
    assert float(margin_score(logits(mean, negative))) == pytest.approx(score)


@pytest.mark.parametrize("scale", [0.0, -1e-20, 1e-300, 1e24])
def test_score_is_finite_for_every_covariance(scale):
    mean = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    q = scale * torch.ones(1, 2, 2, dtype=torch.float64)
    score = margin_score(LogitMoments(mean, mean.topk(2).indices, q))
    score.sum().backward()
    assert score.isfinite().all()
    assert mean.grad.isfinite().all()


def test_contenders():
    u = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
    assert contenders(u).tolist() == [[0, 1], [1, 2], [2, 1]]
    assert contenders(u, torch.tensor([0, 0, 1])).tolist() == [[0, 1], [0, 1], [1, 2]]


def test_score_of_a_label_that_is_not_the_largest_is_negative():
    q = torch.tensor([[[0.5, 0.2], [0.2, 0.3]]], dtype=torch.float64)
    u = torch.tensor([[1.0, 0.2, -3.0]], dtype=torch.float64)
    of_label = LogitMoments(u, contenders(u, torch.tensor([1])), q)
    assert float(margin_score(of_label)) == pytest.approx(-0.8 / 1.2**0.5)
    assert float(margin_score(of_label, crossed=False)) == pytest.approx(-0.8 / 0.8**0.5)


def test_radius_hinge():
    """The radius sigma z that is missing to sigma gamma; misclassified images count."""
    found = radius_hinge(torch.tensor([1.0, 9.0, -2.0]), 0.25, 8.0)
    assert found.tolist() == [1.75, 0.0, 2.5]


def test_linear_score_of_a_linear_network_is_its_distance():
    """sigma z is the signed distance to the boundary between the two classes, for any sigma."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    images = torch.rand(30, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    logits, labels = network(images), torch.arange(30) % 3
    pair = contenders(logits, labels)
    rows = network[1].weight[pair]
    gap = logits.gather(1, pair)
    distance = (gap[:, 0] - gap[:, 1]) / (rows[:, 0] - rows[:, 1]).norm(dim=1)
    for sigma in (0.1, 1.0):
        found = sigma * linear_score(logits, pair, images, sigma)
        torch.testing.assert_close(found, distance)


def test_linear_score_against_sampling_and_full_propagation():
    """Small noise: a ReLU network is linear in almost all draws; all three agree."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 3),
    ).double()  # fmt: skip
    image = torch.rand(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    sigma, logits = 1e-4, network(image)
    pair = contenders(logits)
    gap = float((logits[0, pair[0, 0]] - logits[0, pair[0, 1]]).detach())
    variance = (gap / float(linear_score(logits, pair, image, sigma).detach())) ** 2
    with torch.no_grad():
        drawn = network(image + sigma * torch.randn(20_000, 1, 6, 6, dtype=torch.float64))
        sampled = float((drawn[:, pair[0, 0]] - drawn[:, pair[0, 1]]).var())
    assert variance == pytest.approx(sampled, rel=0.04)
    moments = propagate(trace(network), network, image, sigma, Rules(mode="full"))
    q = moments.covariance[0].detach()
    assert variance == pytest.approx(float(q[0, 0] + q[1, 1] - 2 * q[0, 1]), rel=1e-3)


def test_linear_score_is_finite_where_nothing_moves():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(network[1].weight)
    images = torch.rand(3, 1, 2, 2, requires_grad=True)
    logits = network(images)
    score = linear_score(logits, contenders(logits), images, 0.25)
    score.sum().backward()
    assert score.isfinite().all()


def test_margin_hinge():
    found = margin_hinge(torch.tensor([1.0, 9.0, 2.0]), torch.tensor([True, True, False]), 8.0)
    assert found.tolist() == [7.0, 0.0, 0.0]


def test_probability_hinge_closed_form():
    q = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [1.0, 0.0, 0.0]], dtype=torch.float64)
    found = probability_hinge(q, torch.tensor([0, 0, 0]), 8.0)
    assert float(found[0]) == pytest.approx(8 - norm.ppf(0.7) + norm.ppf(0.2))
    assert found[1:].tolist() == [0.0, 0.0]  # wrong; saturated
    assert probability_hinge(q, torch.tensor([0, 0, 0]), 0.5)[0] == 0  # beyond gamma


BATCHES = {
    "mixed": (torch.tensor([[0.3, 0.1, -0.2], [0.1, 0.4, 0.0]]), torch.tensor([0, 0])),
    "saturated": (torch.tensor([[90.0, 1.0, 0.0], [0.0, 80.0, -9.0]]), torch.tensor([0, 1])),
    "all wrong": (torch.tensor([[0.3, 0.1, -0.2], [0.1, 0.4, 0.0]]), torch.tensor([2, 2])),
    "tied": (torch.tensor([[0.3, 0.3, 0.3], [0.0, 0.0, 0.0]]), torch.tensor([0, 1])),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hinge_gradients(name, dtype):
    """Against finite differences; zero and finite if all is saturated or wrong."""
    start, labels = BATCHES[name]
    u = start.to(dtype).clone().requires_grad_()

    def hinge(u):
        return probability_hinge((16 * u).softmax(1), labels, 8.0).sum()

    hinge(u).backward()
    assert u.grad.isfinite().all()
    if name in ("saturated", "all wrong"):
        assert u.grad.count_nonzero() == 0
    if dtype == torch.float64 and name != "tied":
        assert gradcheck(hinge, (u,))
        one_hot = nn.functional.one_hot(labels, 3).double()
        for targets in (labels, one_hot):
            assert gradcheck(lambda u: probability_cross_entropy(u.softmax(1), targets), (u,))  # noqa: B023


def test_cross_entropy_takes_both_targets():
    q = torch.tensor([[0.7, 0.3], [0.0, 1.0]])
    hard = probability_cross_entropy(q, torch.tensor([0, 0]))
    soft = probability_cross_entropy(q, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(hard, soft)
    assert float(hard[1]) == pytest.approx(23.0259, abs=1e-3)


def test_screening_radius_of_a_linear_network_is_its_distance():
    """Two classes: sigma z is below the distance to the boundary, for any sigma."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double().eval()
    images = torch.rand(30, 1, 4, 4, dtype=torch.float64)
    labels = network(images).argmax(1)
    difference = network[1].weight[0] - network[1].weight[1]
    gap = network(images)[:, 0] - network(images)[:, 1]
    distance = (gap.abs() / difference.norm()).detach()
    found = {}
    for sigma in (0.1, 1.0):
        rules = Rules(mode="full")
        radii, classes = screening_radii(network, images, sigma, rules=rules, batch=7)
        assert torch.equal(classes, labels)
        assert (radii <= distance * (1 + 1e-9)).all()
        found[sigma] = radii
    torch.testing.assert_close(found[0.1], found[1.0])
    radii, _ = screening_radii(network, images, 0.1)
    acr = moment_acr(network, images, labels, 0.1)
    assert acr == pytest.approx(float(radii.mean()))
    assert moment_acr(network, images, 1 - labels, 0.1) == 0
