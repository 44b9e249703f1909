"""SmoothAdv: the attack and the loss use the same noise, added last and unclamped."""

import pytest
import torch
import torch.nn.functional as F
from test_pgd import step

from raybust.methods.smoothadv import Smoothadv


def test_noise_is_fixed_unclamped_and_last():
    method = Smoothadv(sigma=0.5, samples=3, eps=0.2, steps=4, warmup=0.0)
    network, images, labels, loss, _ = step(method)
    assert len(network.seen) == 5
    shown = [points.reshape(3, 32, 3, 2, 2) for points, _ in network.seen]
    noise = shown[0] - images  # the attack starts at the images
    assert noise.std() == pytest.approx(0.5, abs=0.03)
    assert shown[0].min() < -0.1
    worst = (shown[-1] - noise)[0]
    torch.testing.assert_close(shown[-1], worst + noise)
    assert (worst - images).flatten(1).norm(dim=1).max() <= 0.2 + 1e-5
    assert worst.min() >= -1e-6
    assert worst.max() <= 1 + 1e-6
    expected = F.cross_entropy(network(shown[-1].flatten(0, 1)), labels.repeat(3))
    assert loss.item() == pytest.approx(expected.item())


def test_the_attack_is_on_the_smoothed_classifier():
    """An attack step lowers the mean probability of the label."""
    method = Smoothadv(sigma=0.25, samples=4, eps=0.5, steps=5, warmup=0.0)
    network, _, labels, _, _ = step(method)
    first, last = (
        network(points).softmax(1).reshape(4, 32, 3).mean(0).gather(1, labels[:, None])
        for points in (network.seen[0][0], network.seen[-1][0])
    )
    assert (last < first).float().mean() > 0.95


def test_one_sample_without_attack_is_gaussian_training():
    """At the start of the warmup eps is 0."""
    network, images, labels, loss, _ = step(Smoothadv(samples=1, steps=1, warmup=0.5), progress=0.0)
    torch.testing.assert_close(network.seen[0][0], network.seen[-1][0])
    assert loss.item() == pytest.approx(F.cross_entropy(network(network.seen[0][0]), labels).item())
    assert (network.seen[0][0] - images).std() == pytest.approx(0.25, abs=0.03)


def test_its_sigma_is_that_of_certification():
    assert Smoothadv(sigma=0.5).noise() == 0.5


def test_probabilities_as_targets():
    method = Smoothadv(samples=2, steps=2)
    network, images, labels, loss, context = step(method)
    context.generator.manual_seed(0)
    soft = F.one_hot(labels, 3).float()
    assert method.loss(network, images, soft, context).item() == pytest.approx(loss.item())
