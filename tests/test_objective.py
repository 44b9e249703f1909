"""The objective: counting, what it passes on, and its parts."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raybust import data
from raybust.config import Config
from raybust.config.assess import Certify
from raybust.config.inputs import Model
from raybust.methods import Method
from raybust.methods.gaussian import Gaussian
from raybust.methods.standard import Standard
from raybust.training.objective import (
    DEFAULT_SIGMA,
    CountedNetwork,
    Objective,
    assemble,
    smoothing_sigma,
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


@pytest.fixture
def images():
    return torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))


TARGETS = torch.tensor([0, 1, 2, 0, 1])


def test_counts_images_and_not_calls(network, images):
    counted = CountedNetwork(network)
    counted(images)
    counted(images[:2])
    assert (counted.forward_passes, counted.backward_passes) == (7, 0)


def test_counts_backward_passes_of_images_and_of_weights(network, images):
    counted = CountedNetwork(network)
    leaf = images.clone().requires_grad_()
    torch.autograd.grad(counted(leaf).sum(), leaf)
    assert (counted.forward_passes, counted.backward_passes) == (5, 5)
    F.cross_entropy(counted(images), TARGETS).backward()
    assert (counted.forward_passes, counted.backward_passes) == (10, 10)
    with torch.no_grad():
        counted(images)
    assert (counted.forward_passes, counted.backward_passes) == (15, 10)


def test_counts_nothing_for_what_is_not_used(network, images):
    counted = CountedNetwork(network)
    used, _ = counted(images), counted(images)
    used.sum().backward()
    assert (counted.forward_passes, counted.backward_passes) == (10, 5)


def test_counting_changes_nothing(network, images):
    loss = F.cross_entropy(network(images), TARGETS)
    plain = torch.autograd.grad(loss, network.parameters())
    loss = F.cross_entropy(CountedNetwork(network)(images), TARGETS)
    for mine, theirs in zip(torch.autograd.grad(loss, network.parameters()), plain, strict=True):
        assert torch.equal(mine, theirs)


def test_autocast_gives_float32_logits(network, images):
    exact, rounded = (
        CountedNetwork(network)(images),
        CountedNetwork(network, torch.bfloat16)(images),
    )
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, atol=0.02, rtol=0.02)


@dataclass(frozen=True, kw_only=True)
class Nosy(Method):
    """Records its input."""

    def setup(self, network, images, targets):
        assert not isinstance(network, CountedNetwork)
        return {"first": images.mean(), "labels": targets}

    def loss(self, network, images, targets, context):
        assert isinstance(network, CountedNetwork)
        context.metrics["nosy/progress"] = context.progress
        context.metrics["nosy/draw"] = torch.rand((), generator=context.generator)
        return network(images).sum() * context.prepared["first"]

    def front(self):
        return nn.Identity()


def test_context(network, images):
    objective = Objective(network, Nosy())
    objective.prepare(images, TARGETS)
    loss = objective(images, TARGETS, torch.Generator().manual_seed(3), 0.25)
    assert loss.item() == pytest.approx((network(images).sum() * images.mean()).item())
    assert objective.metrics["nosy/progress"] == 0.25
    draw = torch.rand((), generator=torch.Generator().manual_seed(3))
    assert objective.metrics["nosy/draw"] == draw
    assert not any(p.grad is not None for p in network.parameters())


def test_assemble():
    dataset = data.load(Config().data)
    small = Model(width=4)
    torch.manual_seed(0)
    plain = assemble(Config(method=Standard(), model=small), dataset)
    torch.manual_seed(0)
    fronted = assemble(Config(method=Nosy(), model=small), dataset)
    images = torch.rand(3, *dataset.shape)
    assert plain(images).shape == (3, 10)
    assert torch.equal(plain(images), fronted(images))
    assert list(dict(fronted.named_children())) == ["front", "network"]
    torch.manual_seed(0)
    own = Config(method=Standard(), model=replace(small, mean=(0.1,), std=(0.2,)))
    assert not torch.equal(assemble(own, dataset)(images), plain(images))


def test_sigma_of_certification():
    assert smoothing_sigma(Config(method=Gaussian(sigma=0.5))) == 0.5
    assert smoothing_sigma(Config(method=Standard())) == DEFAULT_SIGMA
    given = Certify(sigma=0.12)
    assert smoothing_sigma(Config(method=Gaussian(sigma=0.5), certify=given)) == 0.12
