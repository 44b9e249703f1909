"""Gaussian noise training against its formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raybust.methods import StepContext
from raybust.methods.gaussian import Gaussian
from raybust.methods.standard import Standard


class Recorder(nn.Module):
    """Stores its input; logits are the first pixels."""

    def forward(self, images):
        self.seen = images
        return images.flatten(1)[:, :3]


@pytest.fixture
def images():
    return torch.rand(4096, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def step(method, images, targets):
    network = Recorder()
    context = StepContext(torch.Generator().manual_seed(1))
    return network, method.loss(network, images, targets, context)


@pytest.mark.parametrize("sigma", [0.12, 0.25, 1.0])
def test_noise_is_standard_normal_and_unclamped(images, sigma):
    targets = torch.arange(4096) % 3
    network, loss = step(Gaussian(sigma=sigma), images, targets)
    noise = (network.seen - images) / sigma
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert noise.std() == pytest.approx(1.0, abs=0.03)
    assert (noise.abs() < 1).double().mean() == pytest.approx(0.6827, abs=0.02)
    assert network.seen.min() < 0
    assert network.seen.max() > 1
    expected = F.cross_entropy(network.seen.flatten(1)[:, :3], targets)
    assert loss.item() == pytest.approx(expected.item())


def test_sigma_of_training_is_that_of_certification():
    assert Gaussian(sigma=0.5).noise() == 0.5
    assert Standard().noise() is None


def test_small_sigma_is_standard_training(images):
    targets = torch.arange(4096) % 3
    _, noisy = step(Gaussian(sigma=1e-8), images, targets)
    _, clean = step(Standard(), images, targets)
    assert noisy.item() == pytest.approx(clean.item(), abs=1e-6)
