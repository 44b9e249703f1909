"""Attacks leave no traces: modes, flags, buffers, gradients, folding."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raybust.methods import StepContext
from raybust.methods.pgd import Pgd
from raybust.methods.smoothadv import Smoothadv
from raybust.methods.trades import Trades
from raybust.models.cifar import PreActResNet, ResNet
from raybust.numerics.attacks import Expectation, ascend, attacked, foldable, folded
from raybust.numerics.balls import Threat
from raybust.testing import run_ranks
from raybust.training.objective import CountedNetwork, Objective

SHAPE = (3, 8, 8)


def resnet(dtype=torch.float32):
    """A ResNet-8 whose running statistics match no batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResNet(3, 10, 8).to(dtype)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                nn.init.normal_(module.weight, 1, 0.2)
                nn.init.normal_(module.bias, 0, 0.2)
    return network


def batch(count=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, *SHAPE, generator=generator).to(dtype)
    return images, torch.arange(count) % 10


def snapshot(network):
    """All state that an attack could change."""
    return (
        {key: value.clone() for key, value in network.state_dict().items()},
        [(module.training, vars(module).keys()) for module in network.modules()],
        [(p.requires_grad, None if p.grad is None else p.grad.clone())
         for p in network.parameters()],
        [getattr(module, "track_running_stats", None) for module in network.modules()],
    )  # fmt: skip


def same(before, after):
    state, modes, gradients, tracking = before
    assert all(torch.equal(state[key], after[0][key]) for key in state)
    assert state.keys() == after[0].keys()
    assert modes == after[1]
    assert tracking == after[3]
    for (flag, gradient), (flag_after, gradient_after) in zip(gradients, after[2], strict=True):
        assert flag == flag_after
        assert (gradient is None) == (gradient_after is None)
        assert gradient is None or torch.equal(gradient, gradient_after)


def attack(network, images, labels, statistics="running", fold=True):
    with attacked(network, statistics=statistics, fold=fold):
        return ascend(
            network, images, Threat("linf", 8 / 255),
            lambda z: F.cross_entropy(z, labels, reduction="sum"),
            start=torch.zeros_like(images), steps=3, step=4 / 255,
        )  # fmt: skip


@pytest.mark.parametrize("statistics", ["running", "batch"])
@pytest.mark.parametrize("train", [True, False])
def test_state_is_restored_bit_for_bit(statistics, train):
    network, (images, labels) = resnet().train(train), batch()
    network.layer1.eval()  # a mode unlike the others
    network.bn1.weight.requires_grad_(False)  # a flag unlike the others
    network.linear.bias.grad = torch.ones(10)
    before, data = snapshot(network), torch.get_rng_state()
    found = attack(network, images, labels, statistics)
    assert not torch.equal(found, images)
    assert not found.requires_grad
    same(before, snapshot(network))
    assert torch.equal(data, torch.get_rng_state())


def test_state_is_restored_after_an_error():
    network = resnet().train()
    before = snapshot(network)
    with pytest.raises(RuntimeError), attacked(network):
        network(torch.zeros(1, 5, 8, 8))
    same(before, snapshot(network))


def test_batch_statistics_are_the_batchs():
    network, (images, _) = resnet().train(), batch()
    expected = copy.deepcopy(network)(images)
    with attacked(network, statistics="batch"):
        torch.testing.assert_close(network(images), expected)
    with attacked(network):
        torch.testing.assert_close(network(images), copy.deepcopy(network).eval()(images))


@pytest.mark.parametrize("make", [resnet, lambda dtype: PreActResNet(
    3, 10, stem=4, widths=(4, 8), blocks=2).to(dtype)])  # fmt: skip
def test_folding_is_the_same_network(make):
    network = make(torch.float64).eval()
    images, labels = batch(dtype=torch.float64)
    plain = network(images)
    pairs = foldable(network)
    assert pairs
    with torch.no_grad(), folded(network):
        assert "forward" in vars(pairs[0][0])
        torch.testing.assert_close(network(images), plain, rtol=1e-9, atol=1e-9)
    assert not any("forward" in vars(module) for module in network.modules())
    torch.testing.assert_close(
        attack(network, images, labels), attack(network, images, labels, fold=False)
    )


def test_folding_follows_the_weights():
    network, (images, _) = resnet().eval(), batch()
    for _ in range(2):
        with torch.no_grad(), folded(network):
            torch.testing.assert_close(network(images), network(images))
        with torch.no_grad():
            network.conv1.weight.mul_(1.5)
            network.bn1.running_var.mul_(0.5)
    plain = network(images)
    with torch.no_grad(), folded(network):
        torch.testing.assert_close(network(images), plain, rtol=1e-4, atol=1e-4)


class Shared(nn.Module):
    """One convolution used with and without its batch norm: nothing may be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Flatten()

    def forward(self, images):
        once = self.conv(images)
        return self.head(self.bn(once) + once)


class Branching(nn.Module):
    """Cannot be traced as a whole, but in parts."""

    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())

    def forward(self, images):
        if images.sum() < -1:
            return images.flatten(1)
        return self.part(images)


def test_what_cannot_be_folded_is_left_alone():
    assert foldable(Shared()) == []
    hooked = Branching().eval()
    assert len(foldable(hooked)) == 1
    assert len(foldable(CountedNetwork(Branching()))) == 1
    seen = []
    hooked.part[0].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad(), folded(hooked):
        assert "forward" not in vars(hooked.part[0])
    compiled = resnet()
    compiled.compile()
    assert foldable(compiled) == []


def test_passes_are_counted_through_folding():
    network, (images, labels) = CountedNetwork(resnet()), batch()
    attack(network, images, labels)
    assert (network.forward_passes, network.backward_passes) == (24, 24)


METHODS = (Pgd(steps=3), Trades(steps=3), Smoothadv(steps=2))


def test_under_two_ddp_processes(tmp_path):
    """Attacks on ranks are independent; parameters, buffers and modes stay equal."""
    run_ranks(_rank, tmp_path)


def _rank(rank):
    for method in METHODS:
        _one_step(rank, method)


def _one_step(rank, method):
    images, labels = batch(16)
    images, labels = images[rank::2], labels[rank::2]
    objective = Objective(resnet(), method).train()
    alone = copy.deepcopy(objective)
    wrapped = DistributedDataParallel(objective)
    before = snapshot(objective)
    network = objective.network

    def run(network):
        context = StepContext(torch.Generator().manual_seed(rank), 0.5)
        with attacked(network):
            return method.attack(
                network,
                images,
                lambda z: F.cross_entropy(z, labels, reduction="sum"),
                context,
            )

    torch.testing.assert_close(run(network), run(alone.network), rtol=0, atol=0)
    same(before, snapshot(objective))
    for module in (alone, wrapped):
        module(images, labels, torch.Generator().manual_seed(rank), 0.5).backward()
    for ours, own in zip(objective.parameters(), alone.parameters(), strict=True):
        dist.all_reduce(own.grad)
        torch.testing.assert_close(ours.grad, own.grad / 2)


def test_half_precision_differs_by_less_than_a_point():
    """Attack success of bf16 against float32 on a small net; images stay in float32."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(400, *SHAPE, generator=generator)
    network = resnet().eval()
    labels = network(images).argmax(1)
    hits = []
    for autocast in (None, torch.bfloat16):
        found = attack(CountedNetwork(network, autocast), images, labels)
        assert found.dtype == torch.float32
        hits.append((network(found).argmax(1) != labels).float().mean())
    assert hits[0] > 0.2
    assert abs(hits[0] - hits[1]) < 0.01


def test_expectation_is_the_mean_probability():
    class Noisy(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :4] * torch.rand(4)

    images, _ = batch(2)
    torch.manual_seed(0)
    draws = torch.stack([Noisy()(images).softmax(1) for _ in range(5)])
    torch.manual_seed(0)
    torch.testing.assert_close(Expectation(Noisy(), 5)(images), draws.mean(0).log())
