"""Networks whose smoothed classifier is known in closed form."""

import torch
from torch import nn

from raybust.certification import Protocol

SHAPE = (1, 2, 2)


class Linear(nn.Module):
    """Logits W x + b of the flattened image; counts what it sees."""

    def __init__(self, weight, bias):
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float32))
        self.register_buffer("bias", torch.tensor(bias, dtype=torch.float32))
        self.shapes = set()
        self.eval()

    def forward(self, x):
        self.shapes.add(tuple(x.shape))
        return x.flatten(1).float() @ self.weight.T + self.bias


def two_class():
    """x -> sign(w.x + b) as two logits; ||w|| = 1."""
    return Linear([[0.0] * 4, [0.5, -0.5, 0.5, -0.5]], [0.0, 0.1])


def convolutional(classes=4):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 25, classes),
    )
    return network.eval()


def protocol(**changes):
    values = {"sigma": 0.25, "shape": SHAPE, "n": 1000, "batch": 200}
    values |= {"data": "d", "labels": "l", "weights": "w", "outputs": (1.0,)}
    return Protocol(**(values | changes))
