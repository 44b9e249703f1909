"""Adversarial training: the attack's budget, schedules, and the loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raybust.errors import RequestError
from raybust.methods import StepContext
from raybust.methods.pgd import Pgd
from raybust.numerics.balls import Threat


class Watcher(nn.Module):
    """A linear network that stores its inputs."""

    def __init__(self, classes=3):
        super().__init__()
        self.linear = nn.Linear(12, classes)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))
        self.seen = []

    def forward(self, images):
        self.seen.append((images.detach().clone(), self.training))
        return self.linear(images.flatten(1))


def step(method, progress=0.5, seed=0):
    images = torch.rand(32, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(32) % 3
    network = Watcher().train()
    context = StepContext(torch.Generator().manual_seed(seed), progress)
    loss = method.loss(network, images, labels, context)
    return network, images, labels, loss, context


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 1.0)])
def test_the_loss_is_that_of_a_stronger_image_in_the_ball(norm, eps):
    network, images, labels, loss, context = step(Pgd(norm=norm, eps=eps))
    assert [mode for _, mode in network.seen] == [False] * 10 + [True]
    worst = network.seen[-1][0]
    assert Threat(norm, eps).size(worst - images).max() <= eps * (1 + 1e-6)
    assert worst.min() >= 0
    assert worst.max() <= 1
    expected = F.cross_entropy(network(worst), labels)
    assert loss.item() == pytest.approx(expected.item())
    assert loss > F.cross_entropy(network(images), labels) + 0.01
    accuracy = (network(worst).argmax(1) == labels).float().mean()
    assert context.metrics["train/attacked_accuracy"] == accuracy


def test_the_attack_reaches_the_optimum_of_two_classes():
    """Linf on a linear network: every pixel moves by eps or to the bound of [0, 1]."""
    method = Pgd(eps=0.1, steps=10)
    images = torch.rand(16, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(16) % 2
    network = Watcher(classes=2)
    method.loss(network, images, labels, StepContext(torch.Generator().manual_seed(0), 0.0))
    row = (network.linear.weight[1] - network.linear.weight[0]).sign().reshape(1, 3, 2, 2)
    away = torch.where(labels == 1, -1, 1).reshape(-1, 1, 1, 1)
    best = (images + 0.1 * away * row).clamp(0, 1)
    torch.testing.assert_close(network.seen[-1][0], best)


def test_eps_rises_and_steps_grow():
    method = Pgd(eps=0.2, warmup=0.5, early_steps=2, early=0.3, steps=6)
    for progress, eps, steps in ((0.0, 0.0, 2), (0.25, 0.1, 2), (0.4, 0.16, 6), (0.9, 0.2, 6)):
        network, images, *_ = step(method, progress)
        assert len(network.seen) == steps + 1
        moved = (network.seen[-1][0] - images).abs().max()
        assert float(moved) == pytest.approx(eps, abs=1e-6)


@pytest.mark.parametrize(
    ("start", "reach"), [("center", 0.0), ("gaussian", 0.006), ("uniform", 0.1), ("n_fgsm", 0.2)]
)
def test_starts(start, reach):
    network, images, *_ = step(Pgd(eps=0.1, steps=1, start=start))
    first = (network.seen[0][0] - images).abs().max()
    assert first <= reach * (1 + 1e-6)
    assert first >= 0.5 * reach
    last = (network.seen[-1][0] - images).abs().max()
    assert float(last) <= (0.3 if start == "n_fgsm" else 0.1) + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rms_is_comparable_between_norms(norm):
    threat = Pgd(norm=norm, rms=0.05).threat(12)
    everywhere = torch.full((1, 3, 2, 2), 0.05, dtype=torch.float64)
    assert float(threat.size(everywhere)) == pytest.approx(threat.eps)
    assert math.isfinite(threat.eps)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"eps": 1.5}, "eps: got 1.5, expected at most 1"),
        ({"start": "n_fgsm"}, "steps: got 10, expected 1"),
        ({"norm": "l3"}, "norm: got 'l3'"),
        ({"steps": 0}, "steps: got 0"),
    ],
)
def test_bad_settings_name_their_field(settings, says):
    with pytest.raises(RequestError, match=says):
        Pgd(**settings)
