"""MACER: closed form, gradients, saturation, and sums over halves of a batch."""

import pytest
import torch
from scipy.stats import norm
from torch import nn

from raybust.methods import StepContext
from raybust.methods.macer import Macer

SIGMA, LABELS = 0.5, torch.tensor([0, 1, 2])


class Fixed(nn.Module):
    """Returns the same logits for all k copies of an image, regardless of noise."""

    def __init__(self, logits, k):
        super().__init__()
        self.logits, self.k = nn.Parameter(torch.tensor(logits, dtype=torch.float64)), k

    def forward(self, images):
        return self.logits[: len(images) // self.k].repeat_interleave(self.k, 0)


def loss(network, method, labels=LABELS, progress=0.5, seed=0):
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.float64)
    context = StepContext(torch.Generator().manual_seed(seed), progress)
    return method.loss(network, images, labels, context)


LOGITS = [[0.1, 0.0, 0.05], [0.3, 0.0, 0.1], [0.0, -0.1, 0.2]]


def closed_form(method):
    """Returns the loss of k identical logits, written out."""
    u = torch.tensor(LOGITS, dtype=torch.float64)
    total = 0.0
    for logits, label in zip(u, LABELS, strict=True):
        total -= float(torch.log(logits.softmax(0)[label] + 1e-10))
        q = (method.beta * logits).softmax(0)
        top = q.topk(2)
        xi = norm.ppf(float(top.values[0])) - norm.ppf(float(top.values[1]))
        if top.indices[0] == label and xi <= method.gamma:
            total += method.weight * method.sigma / 2 * (method.gamma - xi)
    return total / 3


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("gamma", [8.0, 1.0])
def test_identical_logits_give_the_closed_form(k, gamma):
    method = Macer(sigma=SIGMA, k=k, gamma=gamma)
    assert float(loss(Fixed(LOGITS, k), method).detach()) == pytest.approx(closed_form(method))


def test_gradient_against_finite_differences():
    method, network = Macer(sigma=SIGMA, k=3), Fixed(LOGITS, 3)
    gradient = torch.autograd.grad(loss(network, method), network.logits)[0]
    for at in range(9):
        sides = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                network.logits.view(-1)[at] += step
            sides.append(float(loss(network, method).detach()))
        with torch.no_grad():
            network.logits.view(-1)[at] += 1e-6
        assert float(gradient.view(-1)[at]) == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-5)


@pytest.mark.parametrize("kind", ["saturated", "all wrong"])
def test_robust_gradient_is_zero_and_finite(kind):
    scale = 500 if kind == "saturated" else 1
    logits = (torch.eye(3) * scale).tolist()
    labels = LABELS if kind == "saturated" else (LABELS + 1) % 3
    network = Fixed(logits, 2)
    whole = torch.autograd.grad(loss(network, Macer(sigma=SIGMA, k=2), labels), network.logits)[0]
    alone = Macer(sigma=SIGMA, k=2, weight=0.0)
    first = torch.autograd.grad(loss(network, alone, labels), network.logits)[0]
    assert whole.isfinite().all()
    assert torch.equal(whole, first)


def test_half_batches_average_to_the_whole():
    """As in DDP: the mean of two ranks' losses equals the joint batch's loss."""
    logits = [*LOGITS, [0.0, 0.2, 0.1]]
    labels = torch.tensor([0, 1, 2, 1])
    method = Macer(sigma=SIGMA, k=2)
    whole = loss(Fixed(logits, 2), method, labels)
    halves = [loss(Fixed(logits[i : i + 2], 2), method, labels[i : i + 2]) for i in (0, 2)]
    assert float(whole.detach()) == pytest.approx(float(sum(halves).detach()) / 2)


def test_warmup_defers_the_radius():
    deferred = loss(Fixed(LOGITS, 2), Macer(sigma=SIGMA, k=2, warmup=0.6))
    assert deferred == loss(Fixed(LOGITS, 2), Macer(sigma=SIGMA, k=2, weight=0.0))


def test_copies_of_an_image_share_its_mean_but_not_their_noise():
    seen = []

    def network(images):
        seen.append(images)
        return images.flatten(1)

    images = torch.rand(2, 1, 2, 2)
    context = StepContext(torch.Generator().manual_seed(0))
    Macer(sigma=0.01, k=3).loss(network, images, torch.tensor([0, 1]), context)
    copies = seen[0].unflatten(0, (2, 3))
    assert (copies - images[:, None]).abs().max() < 0.06
    assert not torch.equal(copies[:, 0], copies[:, 1])
