"""Adversarially optimized mixup: the lemma, the slope of the ratio, labels, the ball."""

import pytest
import torch
from torch import nn

from raybust import methods
from raybust.config import compose, leaves_of_arguments
from raybust.methods.adversarial_mixup import (
    Mixed,
    Pair,
    divergence,
    position,
    ratio_slope,
    search,
)
from raybust.methods.mixup import blend
from raybust.numerics.balls import Threat


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def make_pair(generator=None):
    generator = generator or torch.Generator().manual_seed(1)
    first, second = 0.3 + 0.4 * torch.rand(2, 6, 3, 3, 3, dtype=torch.float64, generator=generator)
    labels = torch.arange(6) % 4
    return Pair(first, labels, second, (labels + 1) % 4)


def found_by(network, pair, ratio, count, **options):
    threat = Threat(norm="linf", eps=0.05)
    starts = [torch.zeros_like(pair.images)] * count
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return search(
        network, pair, ratio, threat, starts=starts, steps=5, step=0.02, **options
    )  # fmt: skip


def test_perturbing_both_is_perturbing_the_mixed_image_bit_for_bit(network):
    pair, ratio = make_pair(), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    both = found_by(network, pair, ratio, 2)
    mixed = found_by(network, pair, ratio, 1)
    assert torch.equal(both.images, mixed.images)
    plain = blend(pair.images, pair.partners, ratio)
    assert not torch.equal(both.images, plain)
    assert (both.images - plain).abs().max() <= 0.05 + 1e-12


def test_slope_of_the_ratio_against_autograd_and_differences(network):
    pair = make_pair()
    soft = torch.rand(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    soft = soft / soft.sum(2, keepdim=True)  # autograd has no gradient of 0 log 0
    pair = pair._replace(targets=soft[0], partner_targets=soft[1])
    ratio = torch.linspace(0.15, 0.85, 6, dtype=torch.float64)

    def total(lam):
        return divergence(network(blend(pair.images, pair.partners, lam)), lam, pair)

    lam = ratio.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(lam).sum(), lam)
    images = blend(pair.images, pair.partners, ratio).requires_grad_()
    logits = network(images)
    (gradient,) = torch.autograd.grad(divergence(logits, ratio, pair).sum(), images)
    found = ratio_slope(gradient, pair.images - pair.partners, logits.detach(), ratio, pair)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)
    step = 1e-6
    differences = (total(ratio + step) - total(ratio - step)).detach() / (2 * step)
    torch.testing.assert_close(found, differences, atol=1e-6, rtol=1e-5)


def test_the_search_raises_the_divergence_and_keeps_its_interval(network):
    pair, ratio = make_pair(), torch.full((6,), 0.5, dtype=torch.float64)
    found = found_by(network, pair, ratio, 2, interval=0.1, ratio_step=0.05, best=True)
    assert ((found.ratio - ratio).abs() <= 0.1 + 1e-12).all()
    before = divergence(network(blend(pair.images, pair.partners, ratio)), ratio, pair)
    after = divergence(network(found.images), found.ratio, pair)
    assert (after >= before - 1e-12).all()
    assert after.mean() > before.mean()


@pytest.mark.parametrize("rule", ["projection", "distance_ratio", "ratio"])
def test_labels_on_the_segment_and_of_equal_images(rule):
    pair, ratio = make_pair(), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    on_it = Mixed(blend(pair.images, pair.partners, ratio), ratio)
    torch.testing.assert_close(position(on_it, pair, rule), ratio)
    same = pair._replace(partners=pair.images)
    assert torch.equal(position(Mixed(pair.images, ratio), same, rule), ratio)


def test_projection_ignores_what_is_across_and_distances_do_not():
    pair, ratio = make_pair(), torch.full((6,), 0.25, dtype=torch.float64)
    along = (pair.images - pair.partners).flatten(1)
    across = torch.randn(6, 27, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    across -= (across * along).sum(1, keepdim=True) / along.square().sum(1, keepdim=True) * along
    away = Mixed(blend(pair.images, pair.partners, ratio) + across.view_as(pair.images), ratio)
    torch.testing.assert_close(position(away, pair, "projection"), ratio)
    assert (position(away, pair, "distance_ratio") > ratio).all()


def test_search_refuses_the_start_of_another_attack(cli):
    result = cli("train", "--dry-run", "method.name=adversarial_mixup", "method.start=n_fgsm")
    assert result.code == 2
    assert "method.start" in result.err
    assert compose(leaves_of_arguments(["method.name=adversarial_mixup"]), methods.get)
