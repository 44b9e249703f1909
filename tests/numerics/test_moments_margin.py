"""Scores, hinges and screening radii: closed forms, saturation, finite differences."""

import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.autograd import gradcheck

from raybust.numerics.moments import (
    LogitMoments,
    Rules,
    margin_hinge,
    margin_score,
    moment_acr,
    probability_cross_entropy,
    probability_hinge,
    screening_radii,
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
