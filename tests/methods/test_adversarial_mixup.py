"""Adversarially optimized mixup and its baselines: the lemma, the ratio's slope, labels.

Numbers in names refer to the tests in the specification (spec/adversarial.md, section 5).
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raybust import methods
from raybust.config import compose, leaves_of_arguments
from raybust.methods import StepContext
from raybust.methods.adversarial_mixup import (
    AdversarialMixup,
    Mixed,
    Pair,
    divergence,
    position,
    ratio_slope,
    search,
)
from raybust.methods.avmixup import Avmixup, smoothed
from raybust.methods.interpolated_adversarial import InterpolatedAdversarial
from raybust.methods.mixup import Mixup, Prepared, blend, pairing
from raybust.methods.pgd import Pgd
from raybust.numerics.attacks import ascend
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


def found_by(network, pair, ratio, count, norm="linf", **options):
    threat = Threat(norm=norm, eps=0.05)
    starts = [torch.zeros_like(pair.images)] * count
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return search(
        network, pair, ratio, threat, starts=starts, steps=5, step=0.02, **options
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_19_perturbing_both_is_perturbing_the_mixed_image_bit_for_bit(network, norm):
    pair, ratio = make_pair(), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    both = found_by(network, pair, ratio, 2, norm)
    mixed = found_by(network, pair, ratio, 1, norm)
    assert torch.equal(both.images, mixed.images)
    plain = blend(pair.images, pair.partners, ratio)
    assert not torch.equal(both.images, plain)
    assert (both.images - plain).abs().max() <= 0.05 + 1e-12


def test_20_slope_of_the_ratio_against_autograd_and_differences(network):
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


def test_22_the_search_raises_the_divergence_and_keeps_its_interval(network):
    pair, ratio = make_pair(), torch.full((6,), 0.5, dtype=torch.float64)
    found = found_by(network, pair, ratio, 2, interval=0.1, ratio_step=0.05, best=True)
    assert ((found.ratio - ratio).abs() <= 0.1 + 1e-12).all()
    before = divergence(network(blend(pair.images, pair.partners, ratio)), ratio, pair)
    after = divergence(network(found.images), found.ratio, pair)
    assert (after >= before - 1e-12).all()
    assert after.mean() > before.mean()


@pytest.mark.parametrize("rule", ["projection", "distance_ratio", "ratio"])
def test_21_labels_on_the_segment_and_of_equal_images(rule):
    pair, ratio = make_pair(), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    on_it = Mixed(blend(pair.images, pair.partners, ratio), ratio)
    torch.testing.assert_close(position(on_it, pair, rule), ratio)
    same = pair._replace(partners=pair.images)
    assert torch.equal(position(Mixed(pair.images, ratio), same, rule), ratio)


def test_21_projection_ignores_what_is_across_and_distances_do_not():
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


def loss_of(method, network, targets=None, seed=0, prepared=None):
    images, labels = make_pair()[:2]
    context = StepContext(torch.Generator().manual_seed(seed), 0.5, prepared)
    return method.loss(network, images, labels if targets is None else targets, context)


def test_18_at_ratio_one_it_is_plain_pgd(network):
    """The partner and its perturbation do not matter."""
    pair, ones = make_pair(), torch.ones(6, dtype=torch.float64)
    threat = Threat("linf", 0.05)
    starts = [threat.sample(pair.images, torch.Generator().manual_seed(s)) for s in range(2)]

    def objective(logits):
        return F.cross_entropy(logits, pair.targets, reduction="sum")

    options = {"steps": 5, "step": 0.02}
    plain = ascend(network, pair.images, threat, objective, start=starts[0], **options)
    found = search(network, pair, ones, threat, starts=starts, **options)
    torch.testing.assert_close(found.images, plain, rtol=0, atol=1e-15)
    assert torch.equal(found.ratio, ones)
    other = pair._replace(partners=1 - pair.partners, partner_targets=pair.targets)
    starts[1] = -starts[1]
    again = search(network, other, ones, threat, starts=starts, **options)
    assert torch.equal(again.images, found.images)
    loss = F.cross_entropy(network(found.images), pair.label(ones, network(found.images)))
    torch.testing.assert_close(loss, F.cross_entropy(network(plain), pair.targets))


def test_20_slope_is_zero_where_label_and_probability_meet():
    """The network's probability rises linearly between the images, 0.2 + 0.5 lam: at 0.4."""
    pair = Pair(torch.ones(3, 1, 1, 1).double(), torch.zeros(3).long(),
                torch.zeros(3, 1, 1, 1).double(), torch.ones(3).long())  # fmt: skip

    def network(images):
        p = 0.2 + 0.5 * images.flatten(1)
        return torch.cat([p, 1 - p], 1).log()

    ratio = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64)
    point = blend(pair.images, pair.partners, ratio).requires_grad_()
    logits = network(point)
    (gradient,) = torch.autograd.grad(divergence(logits, ratio, pair).sum(), point)
    slope = ratio_slope(gradient, pair.images - pair.partners, logits.detach(), ratio, pair)
    assert slope[0] < -0.01
    assert float(slope[1]) == pytest.approx(0, abs=1e-12)
    assert slope[2] > 0.01


def test_21_the_label_moves_no_further_than_the_perturbation(network):
    """|t - lam| <= ||xt - mix|| / ||x_i - x_j||, and t is constant for the loss."""
    pair, ratio = make_pair(), torch.linspace(0.0, 1.0, 6, dtype=torch.float64)
    noise = torch.randn(pair.images.shape, dtype=torch.float64, generator=torch.Generator())
    for size in (0.01, 0.1, 3.0):
        images = blend(pair.images, pair.partners, ratio) + size * noise
        moved = (size * noise).flatten(1).norm(dim=1)
        length = (pair.images - pair.partners).flatten(1).norm(dim=1)
        share = position(Mixed(images.requires_grad_(), ratio), pair, "projection")
        assert not share.requires_grad
        assert ((share - ratio).abs() <= moved / length + 1e-12).all()
        assert share.min() >= 0
        assert share.max() <= 1
        label = pair.label(share, network(images))
        torch.testing.assert_close(label.sum(1), torch.ones(6, dtype=torch.float64))


def test_22_pairs_of_a_class_keep_their_label(network):
    pair = make_pair()._replace(partner_targets=torch.arange(6) % 4)
    ratio = torch.tensor([0.0, 0.3, 0.5, 0.8, 0.95, 1.0], dtype=torch.float64)
    found = found_by(network, pair, ratio, 2, interval=0.1, ratio_step=0.05)
    label = pair.label(found.ratio, network(found.images))
    torch.testing.assert_close(label, F.one_hot(pair.targets, 4).double(), rtol=0, atol=1e-15)
    assert found.ratio.min() >= 0
    assert found.ratio.max() <= 1
    assert not torch.equal(found.ratio, ratio)


@pytest.mark.parametrize("labels", ["projection", "distance_ratio", "ratio"])
@pytest.mark.parametrize("endpoints", ["both", "mixed"])
def test_23_without_attack_and_search_it_is_mixup(network, labels, endpoints):
    method = AdversarialMixup(eps=0, interval=0, labels=labels, endpoints=endpoints, alpha=0.7)
    images, targets = make_pair()[:2]
    ratio, order = pairing(images, 0.7, torch.Generator().manual_seed(0))
    logits = network(blend(images, images[order], ratio))
    parts = [F.cross_entropy(logits, t, reduction="none") for t in (targets, targets[order])]
    expected = (ratio * parts[0] + (1 - ratio) * parts[1]).mean()
    torch.testing.assert_close(loss_of(method, network), expected)
    plain = loss_of(Mixup(alpha=0.7), network, prepared=Prepared(4, None))
    torch.testing.assert_close(plain, expected)


def test_share_of_plain_pgd(network):
    """With a center start, PGD draws nothing, so both terms can be computed separately."""
    mixtures = loss_of(AdversarialMixup(start="center"), network)
    plain = loss_of(Pgd(start="center"), network)
    both = loss_of(AdversarialMixup(start="center", mix_share=0.25), network)
    torch.testing.assert_close(both, 0.25 * mixtures + 0.75 * plain)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_ratios_are_beta_distributed(alpha):
    images = torch.zeros(20_000, 1, dtype=torch.float64)
    ratio, order = pairing(images, alpha, torch.Generator().manual_seed(0))
    assert float(ratio.mean()) == pytest.approx(0.5, abs=0.015)
    assert float(ratio.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert torch.equal(order.sort().values, torch.arange(20_000))
    tiny, _ = pairing(images, 1e-4, torch.Generator().manual_seed(0))
    assert tiny.isfinite().all()


def test_interpolated_adversarial_training_mixes_after_the_attack(network):
    """share=0 is mixup; share=1 is mixup on PGD's images, with separate draws."""
    images, targets = make_pair()[:2]
    method = InterpolatedAdversarial(start="center", share=0.0)
    plain = loss_of(Mixup(), network, prepared=Prepared(4, None))
    torch.testing.assert_close(loss_of(method, network), plain)
    worst = Pgd(start="center").attack(
        network,
        images,
        lambda logits: F.cross_entropy(logits, targets, reduction="sum"),
        StepContext(torch.Generator()),
    )
    generator = torch.Generator().manual_seed(0)
    pairing(images, 1.0, generator)  # the draws of the clean half
    ratio, order = pairing(images, 1.0, generator)
    logits = network(blend(worst, worst[order], ratio))
    label = blend(F.one_hot(targets, 4).double(), F.one_hot(targets[order], 4).double(), ratio)
    robust = F.cross_entropy(logits, label)
    half = loss_of(InterpolatedAdversarial(start="center"), network)
    torch.testing.assert_close(half, (plain + robust) / 2)


def test_avmixup_labels_follow_the_point(network):
    labels = F.one_hot(torch.arange(4), 4).double()
    expected = 0.7 * labels + 0.1 * (1 - labels)
    torch.testing.assert_close(smoothed(labels, 0.7), expected)
    images, targets = make_pair()[:2]
    share = torch.rand(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method = Avmixup(start="center", eps=0.05, gamma=2.0, l1=1.0, l2=0.1)
    worst = Pgd(start="center", eps=0.05).attack(
        network,
        images,
        lambda logits: F.cross_entropy(logits, targets, reduction="sum"),
        StepContext(torch.Generator()),
    )
    one_hot = F.one_hot(targets, 4).double()
    confidence = (1 - share + 0.1 * share)[:, None]  # l1 at the image, l2 at the vertex
    label = confidence * one_hot + (1 - confidence) / 3 * (1 - one_hot)
    points = images + (2 * share)[:, None, None, None] * (worst - images)
    torch.testing.assert_close(loss_of(method, network), F.cross_entropy(network(points), label))
