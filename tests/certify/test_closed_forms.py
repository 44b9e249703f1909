"""Certificates of classifiers whose exact radius is known."""

import math

import pytest
import torch
from networks import SHAPE, Linear, protocol, two_class
from scipy.special import ndtr
from torch import nn

from raybust.certification import certify_examples
from raybust.numerics import bounds

IMAGE = torch.tensor([0.6, 0.3, 0.5, 0.4]).view(1, *SHAPE)
RUNS = 2000


def certify(network, image, runs, **changes):
    images, labels = image.expand(runs, -1, -1, -1), torch.ones(runs, dtype=torch.int64)
    found = certify_examples(network, images, labels, range(runs), protocol(**changes))
    return sorted(found, key=lambda row: row.idx)


def multi_class():
    weight = [[0.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0]]
    return Linear(weight, [0.0, 0.05, 0.0])


def exact(network):
    """min over the other classes of margin / ||w_top - w_other||."""
    logits = network(IMAGE)[0]
    top = int(logits.argmax())
    margins = [
        float((logits[top] - logits[c]) / (network.weight[top] - network.weight[c]).norm())
        for c in range(len(logits))
        if c != top
    ]
    return top, min(margins)


@pytest.mark.parametrize("network", [two_class(), multi_class()], ids=["two", "multi"])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize("schedule", ["fixed", "looks", "sequence"])
def test_linear_is_certified_at_most_its_exact_radius(network, alpha, schedule):
    targets = {"fixed": (), "looks": (0.0, 0.1), "sequence": (0.1,)}[schedule]
    top, radius = exact(network)
    rows = certify(network, IMAGE, RUNS, alpha=alpha, schedule=schedule, targets=targets)
    wrong = sum(row.predict not in (top, -1) or row.radius > radius for row in rows)
    assert wrong <= alpha * RUNS
    assert sum(row.predict == top for row in rows) > 0.9 * RUNS


def test_two_class_linear_comes_within_two_per_cent():
    network = two_class()
    top, radius = exact(network)
    (row,) = certify(network, IMAGE, 1, n=100_000, batch=1000, sigma=0.25)
    assert row.predict == top
    assert 0.98 * radius <= row.radius <= radius


def test_multi_class_linear_comes_within_two_per_cent_of_the_two_class_bound():
    # A distant class gets no votes, so pB = 1 - pA loses nothing.
    network = Linear([[0.0] * 4, [1.0, 0, 0, 0], [0.0] * 4], [0.0, -0.3, -9.0])
    top, radius = exact(network)
    (row,) = certify(network, IMAGE, 1, n=100_000, batch=1000)
    assert row.predict == top
    assert 0.98 * radius <= row.radius <= radius


def test_radius_is_in_pixels_whatever_the_first_layer_divides_by():
    class Normalize(nn.Module):
        def forward(self, x):
            return (x - 0.5) / 0.2

    inner = Linear([[0.0] * 4, [0.5, -0.5, 0.5, -0.5]], [0.0, 0.5])
    network = nn.Sequential(Normalize(), inner).eval()
    exact_radius = float((network(IMAGE)[0, 1]) / (0.5 * 2 / 0.2))
    (row,) = certify(network, IMAGE, 1, n=100_000, batch=1000)
    assert 0.97 * exact_radius <= row.radius <= exact_radius


def test_linf_is_l2_over_the_root_of_the_dimension():
    (l2,) = certify(two_class(), IMAGE, 1)
    (linf,) = certify(two_class(), IMAGE, 1, norm="linf")
    assert l2.count == linf.count
    assert linf.radius == pytest.approx(l2.radius / 2, rel=1e-7)
    assert linf.radius <= l2.radius / 2


@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_uniform_noise_on_a_threshold_of_one_pixel(alpha):
    # f = 1 iff x_0 > 0.45; P = 1/2 + 0.15 / (2 l) and the L1 distance is 0.15: the bound is tight.
    half = 0.5
    network = Linear([[0.0] * 4, [1.0, 0, 0, 0]], [0.0, -0.45])
    changes = {"noise": "uniform", "norm": "l1", "sigma": half / math.sqrt(3), "alpha": alpha}
    rows = certify(network, IMAGE, RUNS, **changes)
    assert sum(row.predict == 0 or row.radius > 0.15 for row in rows) <= alpha * RUNS
    share = sum(row.count for row in rows) / (1000 * RUNS)
    assert share == pytest.approx(0.5 + 0.15 / (2 * half), abs=2e-3)
    (row,) = certify(network, IMAGE, 1, n=100_000, batch=1000, **changes)
    assert 0.95 * 0.15 <= row.radius <= 0.15


def test_ablation_counts_equal_the_enumerated_probability():
    # f = 1 iff at least one of two given pixels is kept: P = 1 - C(10, 3) / C(12, 3).
    class Keeps(nn.Module):
        def forward(self, x):
            kept = (x.flatten(1)[:, :2] != 0.5).any(1).float()
            return torch.stack([1 - kept, kept], 1)

    image = torch.linspace(0.6, 1.0, 12).view(1, 1, 3, 4)
    p = 1 - math.comb(10, 3) / math.comb(12, 3)
    changes = {"noise": "ablation", "norm": "l0", "keep": 3, "shape": (1, 3, 4), "alpha": 0.05}
    rows = certify(Keeps().eval(), image, 500, **changes)
    share = sum(dict(row.counts).get(1, 0) for row in rows) / (1000 * 500)
    assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 500_000))
    assert sum(row.p_lower > (p if row.top else 1 - p) for row in rows) <= 0.05 * 500


def test_ablation_of_a_constant_classifier():
    network = Linear([[0.0] * 12] * 2, [0.0, 1.0])
    image = torch.full((1, 1, 3, 4), 0.2)
    (row,) = certify(network, image, 1, noise="ablation", norm="l0", keep=2, shape=(1, 3, 4))
    assert row.radius == bounds.ablation_radius(0.001 ** (1 / 1000), 12, 2) == 3.0


def test_gaussian_share_of_votes():
    network = two_class()
    _, radius = exact(network)
    rows = certify(network, IMAGE, 500)
    share = sum(row.count for row in rows) / 500_000
    p = float(ndtr(radius / 0.25))
    assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 500_000))
