"""SmoothMix against its formulas."""

import pytest
import torch
import torch.nn.functional as F
from test_pgd import step as seeded

from raybust.methods.smoothmix import Smoothmix
from raybust.numerics.balls import Threat, normal

SIGMA = 0.25


def step(method, progress=0.5):
    torch.manual_seed(0)  # of the network's bias
    return seeded(method, progress)


def noises(m=2):
    """The first draws of a step with seed 0."""
    images = torch.zeros(m * 32, 3, 2, 2)
    return SIGMA * normal(images, torch.Generator().manual_seed(0)).unflatten(0, (m, 32))


def test_without_eta_it_is_gaussian_training_on_m_copies():
    network, images, labels, loss, _ = step(Smoothmix(eta=0, m=3))
    assert len(network.seen) == 1
    noisy = (images + noises(3)).flatten(0, 1)
    torch.testing.assert_close(network.seen[0][0], noisy)
    expected = F.cross_entropy(network(noisy), labels.repeat(3))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def parts(method, progress=0.5):
    """What a step's passes saw: attack, clean copies, mixed copies; noise taken off."""
    network, images, labels, loss, context = step(method, progress)
    seen = [points.unflatten(0, (2, 32)) - noises() for points, _ in network.seen]
    assert [mode for _, mode in network.seen] == [False] * method.steps + [True] * 2
    for points in seen:
        torch.testing.assert_close(points[0], points[1], atol=1e-5, rtol=0)  # shared by the copies
    return network, images, labels, loss, [points[0] for points in seen], context


def test_the_loss_is_its_two_terms():
    method = Smoothmix(steps=3, step=0.3, eta=2.0)
    network, images, labels, loss, seen, context = parts(method)
    clean, mixed = network.seen[-2][0], network.seen[-1][0]
    torch.testing.assert_close(seen[-2], images, atol=1e-5, rtol=0)
    mean = network(clean).softmax(1).unflatten(0, (2, 32)).mean(0)
    generator = torch.Generator().manual_seed(0)
    normal(torch.zeros(64, 3, 2, 2), generator)
    lam = torch.rand(32, generator=generator) / 2
    moved = seen[-1] - images
    assert moved.abs().amax() > 0.02
    target = (1 - lam[:, None]) * mean + lam[:, None] / 3
    q = network(mixed).softmax(1).unflatten(0, (2, 32))
    divergence = (target * (target.log() - q.log())).sum(2)
    right = mean.argmax(1) == labels
    assert right.any()
    assert not right.all()
    mixing = (right * divergence).mean()
    expected = F.cross_entropy(network(clean), labels.repeat(2)) + 2.0 * mixing
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert context.metrics["smoothmix/divergence"].item() == pytest.approx(mixing.item(), rel=1e-4)
    ours = torch.autograd.grad(loss, network.linear.weight)[0]
    torch.testing.assert_close(
        ours, torch.autograd.grad(expected, network.linear.weight)[0], atol=1e-6, rtol=1e-4
    )  # the target's mean keeps its gradient


def test_the_attack_takes_steps_of_one_length_without_a_radius():
    method = Smoothmix(steps=6, step=0.05)
    _, images, _, _, seen, _ = parts(method)
    walked = seen[:6]
    inside = (walked[1] > 0.001).flatten(1).all(1) & (walked[1] < 0.999).flatten(1).all(1)
    assert inside.any()
    lengths = Threat("l2", 1).size(walked[1] - walked[0])[inside]
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.05), atol=1e-4, rtol=0)
    far = Threat("l2", 1).size(walked[-1] - images)
    assert far.max() > 0.2  # beyond any single step


@pytest.mark.parametrize(("progress", "share"), [(0.5, 1.0), (0.0, 0.1), (0.05, 0.55)])
def test_the_one_step_adversary_takes_the_place_of_the_image(progress, share):
    method = Smoothmix(steps=2, step=0.05, one_step=True, warmup=0.1)
    _, images, _, _, seen, _ = parts(method, progress)
    first, center = seen[1], seen[-2]
    whole = first - images  # shorter than a step where it is clipped
    expected = whole.flatten(1).renorm(2, 0, share * 0.05).reshape(whole.shape)
    torch.testing.assert_close(center - images, expected, atol=1e-5, rtol=0)
    assert (expected - share * whole).abs().amax((1, 2, 3)).min() < 1e-5


def test_eta_rises_over_the_warmup():
    losses = [
        float(step(Smoothmix(warmup=0.1, eta=eta), progress)[3].detach())
        for progress in (0.0, 0.05, 0.1, 0.9)
        for eta in (0.0, 4.0)
    ]
    gains = [with_it - without for without, with_it in zip(losses[::2], losses[1::2], strict=True)]
    assert gains[0] / gains[3] == pytest.approx(0.1, rel=1e-3)
    assert gains[1] / gains[3] == pytest.approx(0.55, rel=1e-3)
    assert gains[2] == pytest.approx(gains[3], rel=1e-4)
