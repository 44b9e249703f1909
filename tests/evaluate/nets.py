"""Networks that evaluation must measure, reject or distrust."""

import dataclasses

import torch
from torch import nn

from raybust.config.assess import Evaluate
from raybust.evaluate import make_attack_protocol

SHAPE = (1, 6, 6)
FAST = {"queries": 200, "steps": 15, "targets": 3, "shard": 10}


class Small(nn.Module):
    """A small convolutional network that errs within small radii."""

    def __init__(self, classes=5):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.body = nn.Sequential(
                nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(216, classes)
            )
        self.eval()

    def forward(self, images):
        return 10 * self.body(images)


class Wrapped(nn.Module):
    """A defense in front of or behind a network."""

    def __init__(self, after=lambda z: z, before=lambda x: x):
        super().__init__()
        self.inner, self.before, self.after = Small(), before, after
        self.eval()

    def forward(self, images):
        return self.after(self.inner(self.before(images)))


class Step(torch.autograd.Function):
    """Rounds to quarters; its gradient is 0, like that of a quantizing defense."""

    @staticmethod
    def forward(context, images):
        return (images * 4).round() / 4

    @staticmethod
    def backward(context, gradient):
        return torch.zeros_like(gradient)


def quantized():
    return Wrapped(before=Step.apply)


def examples(network, count=30, seed=0):
    """Images, labels that mostly match the network, indices."""
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        logits = network(images)
    labels = logits.argmax(1)
    labels[::10] = (labels[::10] + 1) % logits.shape[1]
    return images, labels, [7 * at for at in range(count)]


def protocol(count=30, **changes):
    settings = {"eps": (0.01, 0.03), **FAST, **changes}
    made = make_attack_protocol(
        Evaluate(**settings), shape=SHAPE, total=count, device="cpu", dataset="made"
    )
    return dataclasses.replace(made, data="d", labels="l", weights="w", outputs=(1.0,))
