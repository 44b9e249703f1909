"""Whole networks: a hand-written three-layer net, the full mode as oracle, growth with depth."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raybust.methods import StepContext
from raybust.methods.covariance import Covariance
from raybust.models import cifar
from raybust.numerics.moments import Rules, margin_score, propagate, trace
from raybust.numerics.moments.covariance import CEILING
from raybust.numerics.moments.propagation import noisy, run
from raybust.studies.moments import layer_variances
from raybust.vision import torchvision

SIGMA, R_MAX, RIDGE = 0.25, 0.1, 0.1


def three_layers(dtype=torch.float64):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(),
        nn.Conv2d(5, 4, 3, stride=2, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6),
    )  # fmt: skip
    return network.to(dtype)


def by_hand(network, images):
    """Returns logits and the 2 x 2 covariance by the paper's formulas, written out."""
    conv1, _, conv2, _, _, _, head = network
    mean, batch = images, len(images)
    cov = SIGMA**2 * torch.eye(3, dtype=images.dtype).repeat(batch, 1, 1)
    for conv in (conv1, conv2):
        mean = conv(mean)
        total = torch.zeros(batch, conv.out_channels, conv.out_channels, dtype=images.dtype)
        for u in range(3):
            for v in range(3):
                tap = conv.weight.detach()[:, :, u, v]
                total += torch.einsum("oi,bij,pj->bop", tap, cov, tap)
        cov = (1 + R_MAX) * total
        d = torch.sqrt(cov.diagonal(dim1=1, dim2=2))[:, :, None, None]
        first = mean / 2 * (1 + torch.erf(mean / (math.sqrt(2) * d)))
        mean = first + d / math.sqrt(2 * math.pi) * torch.exp(-(mean**2) / (2 * d**2))
        cov = cov + RIDGE * torch.eye(conv.out_channels, dtype=images.dtype)
    pixels = mean.shape[2] * mean.shape[3]
    mean, cov = mean.mean((2, 3)), cov / pixels
    logits = mean @ head.weight.mT + head.bias
    top = logits.topk(2).indices
    rows = head.weight.detach()[top]
    return logits, top, rows @ cov @ rows.mT


def loss_by_hand(logits, top, q, labels, settings):
    pairs = logits.gather(1, top)
    z = (pairs[:, 0] - pairs[:, 1]) / torch.sqrt(q[:, 0, 0] + q[:, 1, 1] + 2 * q[:, 0, 1].abs())
    loss = -torch.log(torch.softmax(logits, 1).gather(1, labels[:, None]) + 1e-10).sum()
    soft = torch.softmax(16 * logits, 1).topk(2).values
    for i in range(len(labels)):
        if top[i, 0] != labels[i]:
            continue
        loss = loss + settings.weight * torch.clamp(settings.gamma - z[i], min=0)
        xi = torch.special.ndtri(soft[i, 0]) - torch.special.ndtri(soft[i, 1])
        if torch.isfinite(xi) and abs(xi) <= settings.gamma:
            loss = loss + settings.weight * (settings.gamma - xi)
    return loss / len(labels), z


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_hand_written_three_layer_network(dtype, tolerance):
    network = three_layers(dtype)
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(16, 3, 9, 9, generator=generator, dtype=dtype)
    method = Covariance(
        sigma=SIGMA, r_max=R_MAX, ridge=RIDGE, warmup=0.0, expected_relu=True, weight=0.7
    )
    graph = method.setup(network, images, torch.zeros(16, dtype=torch.int64))
    noise = torch.empty_like(images).normal_(generator=torch.Generator().manual_seed(5))
    logits, top, q = by_hand(network, images + SIGMA * noise)
    labels = top[:, 0].clone()
    labels[::4] = top[::4, 1]  # some wrong
    expected, z = loss_by_hand(logits, top, q, labels, method)
    found = propagate(graph, network, images + SIGMA * noise, SIGMA, method.rules())
    same = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(found.mean, logits, **same)
    torch.testing.assert_close(found.covariance, q, **same)
    torch.testing.assert_close(SIGMA * margin_score(found), SIGMA * z, **same)
    context = StepContext(torch.Generator().manual_seed(5), 0.5, graph)
    loss = method.loss(network, images, labels, context)
    torch.testing.assert_close(loss, expected, rtol=2 * tolerance, atol=2 * tolerance)
    theirs = torch.autograd.grad(expected, list(network.parameters()))
    ours = torch.autograd.grad(loss, list(network.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        exact = dtype == torch.float64  # float32 keeps PHI in float16 for the gradient
        torch.testing.assert_close(a, b, rtol=1e-8 if exact else 1e-2, atol=tolerance * 1e3)


def test_linear_network_is_exact():
    """Without a ReLU: PHI(z) with - 2 Q12 is the probability that the first logit wins."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)).double()
    images = torch.rand(1, 1, 6, 6, dtype=torch.float64)
    found = propagate(trace(network), network, images, SIGMA, Rules(mode="full"))
    with torch.no_grad():
        draws = images + SIGMA * torch.randn(200_000, 1, 6, 6, dtype=torch.float64)
        logits = network(draws)
    first = found.top[0, 0]
    wins = (logits[:, first] > logits[:, 1 - first]).double().mean()
    q = found.covariance[0]
    gap = found.mean[0, first] - found.mean[0, 1 - first]
    exact = gap / (q[0, 0] + q[1, 1] - 2 * q[0, 1]).sqrt()
    assert float(torch.special.ndtr(exact.detach())) == pytest.approx(float(wins), abs=4e-3)
    assert margin_score(found)[0] <= exact + 1e-12


def test_full_mode_against_sampling_within_error_bars():
    """Means and variances of small nets at small sigma, where features are nearly Gaussian."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.LeakyReLU(0.1),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3),
    ).double()  # fmt: skip
    images, draws, sigma = torch.rand(2, 2, 6, 6, dtype=torch.float64), 40_000, 0.05
    with torch.no_grad():
        rules = Rules(mode="full")
        found = run(trace(network), network, noisy(images, sigma, rules))
        for i in range(2):
            noise = torch.randn(draws, 2, 6, 6, dtype=torch.float64)
            logits = network(images[i] + sigma * noise)
            variance = logits.var(0)
            bars = 4 * (variance / draws).sqrt()
            # the model's own error: features after a ReLU are not Gaussian
            assert ((found.mean[i] - logits.mean(0)).abs() <= bars + 0.02 * variance.sqrt()).all()
            sampled = torch.cov(logits.mT)
            scale = (variance[:, None] * variance[None, :]).sqrt()
            difference = (found.covariance.matrix[i] - sampled).abs()
            assert (difference <= scale * (4 * math.sqrt(2 / draws) + 0.02)).all()


def he_network(depth=4):
    torch.manual_seed(0)
    layers = []
    for index in range(depth):
        layers += [nn.Conv2d(16 if index else 3, 16, 3, padding=1, bias=False), nn.ReLU()]
    return cifar.initialize(nn.Sequential(*layers)).eval()


def test_overestimate_grows_with_depth_and_exact_moments_fix_it():
    network, images = he_network(), torch.rand(2, 3, 16, 16)
    ratios = {}
    for mode in ("channel", "channel_exact"):
        generator = torch.Generator().manual_seed(0)
        rules = Rules(mode=mode, r_max=0.0, ridge=0.0)
        found = layer_variances(network, images, SIGMA, rules, draws=100, generator=generator)
        ratios[mode] = [layer.ratio for layer in found if layer.kind == "Conv2d"]
    paper, exact = ratios["channel"], ratios["channel_exact"]
    assert all(ratio >= 1 for ratio in paper)
    assert paper == sorted(paper)
    assert paper[1] > 2
    assert paper[3] > 8
    assert all(abs(e - 1) < p - 1 for e, p in zip(exact[1:], paper[1:], strict=True))
    assert all(0.8 < ratio < 1.6 for ratio in exact)


@pytest.mark.parametrize("mode", ["channel", "channel_exact", "diagonal"])
@pytest.mark.parametrize("name", ["resnet20", "preact"])
def test_variances_are_never_negative(mode, name):
    torch.manual_seed(0)
    network = cifar.ResNet(3, 10, 20) if name == "resnet20" else cifar.PreActResNet(
        3, 10, stem=8, widths=(8, 16), blocks=1
    )  # fmt: skip
    least = []

    def watch(node, value):
        if hasattr(value, "variances"):
            assert value.mean.isfinite().all()
            least.append(float(value.variances().min()))

    for train in (True, False):
        with torch.no_grad():
            noise = noisy(torch.rand(4, 3, 16, 16), SIGMA, Rules(mode=mode))
            run(trace(network), network.train(train), noise, watch)
    assert min(least) >= 0


def test_a_covariance_that_would_overflow_is_held():
    """120 layers without normalization at 4 times He's gain: finite logits, score and gradient."""
    torch.manual_seed(0)
    layers = []
    for index in range(120):
        layers += [nn.Conv2d(4 if index else 1, 4, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for parameter in cifar.initialize(network).parameters():
        parameter.data *= 2 if parameter.ndim == 4 else 1
    images = torch.rand(2, 1, 8, 8)
    for mode in ("channel", "channel_exact", "diagonal"):
        rules = Rules(mode=mode, expected_relu=False, r_max=1.0)
        with torch.no_grad():
            found = run(trace(network), network, noisy(images, SIGMA, rules), head=None)
        assert found.variances().isfinite().all()
        assert (found.variances() <= CEILING * 1e6).all()
        logits = propagate(trace(network), network, images * 1e-20, SIGMA, rules)
        score = margin_score(logits)
        assert score.isfinite().all()
        score.sum().backward()


def test_covariances_stay_in_float32_under_autocast():
    network = three_layers(torch.float32)
    images = torch.rand(4, 3, 9, 9)
    plain = propagate(trace(network), network, images, SIGMA, Rules())
    with torch.autocast("cpu", torch.bfloat16):
        found = propagate(trace(network), network, images, SIGMA, Rules())
    assert found.mean.dtype == torch.bfloat16
    assert found.covariance.dtype == torch.float32
    same = (found.top == plain.top).all(1)
    assert same.any()
    torch.testing.assert_close(found.covariance[same], plain.covariance[same])


def test_detach():
    network, images = three_layers(), torch.rand(2, 3, 9, 9, dtype=torch.float64)
    for mode in ("channel", "channel_exact", "diagonal"):
        for detach in (True, False):
            rules = Rules(mode=mode, detach=detach)
            found = propagate(trace(network), network, images, SIGMA, rules)
            assert found.covariance.requires_grad == (not detach)
            assert found.mean.requires_grad


@pytest.mark.parametrize("expected_relu", [True, False])
@pytest.mark.parametrize("mode", ["channel", "channel_exact", "diagonal", "full"])
def test_gradients_through_the_covariance(mode, expected_relu):
    """detach=False against finite differences in float64."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.LeakyReLU(0.1), nn.Conv2d(2, 2, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(8, 3),
    ).double()  # fmt: skip
    images = torch.rand(2, 1, 5, 5, dtype=torch.float64)
    rules = Rules(mode=mode, detach=False, expected_relu=expected_relu)
    graph, weight = trace(network), network[0].weight
    start = weight.detach().clone()

    def score():
        return margin_score(propagate(graph, network, images, SIGMA, rules)).sum()

    gradient = torch.autograd.grad(score(), weight)[0].flatten()
    for at in (0, 4, 9):
        sides = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight.copy_(start)
                weight.view(-1)[at] += step
                sides.append(float(score()))
        weight.data.copy_(start)
        difference = (sides[0] - sides[1]) / 2e-6
        assert float(gradient[at]) == pytest.approx(difference, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_networks(name):
    torch.manual_seed(0)
    network = getattr(torchvision().models, name)(num_classes=10).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        rules = Rules(expected_relu=False)
        found = propagate(trace(network), network, images, SIGMA, rules)
        torch.testing.assert_close(found.mean, network(images))
    assert margin_score(found).isfinite().all()


def test_parameters_are_those_of_the_module_at_hand():
    """The graph stores names: weights replaced after tracing are used."""
    network, images = three_layers(), torch.rand(2, 3, 9, 9, dtype=torch.float64)
    graph = trace(network)
    network[6].weight = nn.Parameter(torch.zeros_like(network[6].weight))
    found = propagate(graph, network, images, SIGMA, Rules())
    torch.testing.assert_close(found.mean, network[6].bias.expand(2, -1))
    assert F.relu(margin_score(found)).isfinite().all()
