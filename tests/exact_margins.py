"""The exact smallest margin of a small fully connected network on a Linf ball, in two ways."""

import itertools
import math

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from torch import nn


def small(hidden, inputs=3, classes=3, seed=0):
    """A fully connected network with ReLU, on images 1 x 1 x `inputs`."""
    torch.manual_seed(seed)
    sizes = [inputs, *hidden, classes]
    layers = [nn.Flatten()]
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    network = nn.Sequential(*layers[:-1]).double()
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.5)
    return network


def weights(network):
    return [(m.weight.detach().numpy(), m.bias.detach().numpy())
            for m in network if isinstance(m, nn.Linear)]  # fmt: skip


def by_patterns(network, image, eps, y, j):
    """The exact smallest f_y - f_j with one hidden layer: a linear program per pattern of active
    units."""
    (w1, b1), (w2, b2) = weights(network)
    row, constant = w2[y] - w2[j], b2[y] - b2[j]
    box = [(max(0, p - eps), min(1, p + eps)) for p in image]
    best = math.inf
    for active in itertools.product([0, 1], repeat=len(b1)):
        active = np.array(active)
        sign = 1 - 2 * active  # sign * (w1 x + b1) <= 0
        found = linprog((row * active) @ w1, A_ub=sign[:, None] * w1, b_ub=-sign * b1, bounds=box)
        if found.success:
            best = min(best, found.fun + (row * active) @ b1 + constant)
    return best


def by_integers(network, image, eps, y, j):
    """The exact smallest f_y - f_j of a deep network, by a mixed integer program: a = max(0, z)
    with a binary b: a >= z, a >= 0, a <= z + M (1 - b), a <= M b."""
    layers, big = weights(network), 100.0
    *hidden, (head, bias) = layers
    sizes = [len(image)] + [len(b) for _, b in hidden]
    starts = np.cumsum([0, *sizes])
    count = starts[-1] + sum(sizes[1:])
    low, high = np.zeros(count), np.full(count, big)
    low[: sizes[0]] = np.maximum(0, image - eps)
    high[: sizes[0]] = np.minimum(1, image + eps)
    high[starts[-1] :] = 1
    rows, ends, binary = [], [], starts[-1]
    for layer, (w, b) in enumerate(hidden, 1):
        for unit in range(len(b)):
            z = np.zeros(count)
            z[starts[layer - 1] : starts[layer]] = w[unit]
            a, on = np.zeros(count), np.zeros(count)
            a[starts[layer] + unit], on[binary] = 1, 1
            binary += 1
            rows += [z - a, a - z + big * on, a - big * on]
            ends += [-b[unit], b[unit] + big, 0]
    cost = np.zeros(count)
    cost[starts[len(hidden)] : starts[-1]] = head[y] - head[j]
    whole = np.arange(count) >= starts[-1]
    limits = LinearConstraint(np.array(rows), -np.inf, np.array(ends))
    found = milp(cost, constraints=limits, bounds=Bounds(low, high), integrality=whole)
    assert found.success
    return found.fun + bias[y] - bias[j]
