"""The method `covariance`: specific tests besides the conformance suite."""

import pytest
import torch
from torch import nn

from raybust.errors import RequestError
from raybust.methods import StepContext
from raybust.methods.covariance import Covariance
from raybust.models import cifar
from raybust.numerics.moments import propagate
from raybust.training.objective import CountedNetwork


def network_for(kind="batch norm"):
    torch.manual_seed(0)
    if kind == "batch norm":
        return cifar.PreActResNet(1, 4, stem=4, widths=(4, 8), blocks=1).double()
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    ).double()


IMAGES = torch.rand(8, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 4


def step(method, network, images=IMAGES, labels=LABELS, progress=0.5):
    prepared = method.setup(network, images, labels)
    counted = CountedNetwork(network.train())
    context = StepContext(torch.Generator().manual_seed(0), progress, prepared)
    return method.loss(counted, images, labels, context), counted, context


def test_one_pass_is_counted():
    loss, counted, context = step(Covariance(), network_for())
    loss.backward()
    assert (counted.forward_passes, counted.backward_passes) == (8, 8)
    assert context.metrics["covariance/radius"] >= 0


def test_the_slope_is_one_more_backward_pass():
    loss, counted, context = step(Covariance(mode="linear"), network_for())
    loss.backward()
    assert (counted.forward_passes, counted.backward_passes) == (8, 16)
    assert context.metrics["covariance/radius"] >= 0


@pytest.mark.parametrize("mode", ["channel", "linear"])
def test_the_network_s_own_pass(mode):
    """With weight 0 it equals Gaussian training up to the constant 1e-10, batch norm included."""
    ours, theirs = network_for(), network_for()
    loss, _, _ = step(Covariance(weight=0.0, mode=mode), ours)
    noise = torch.empty_like(IMAGES).normal_(generator=torch.Generator().manual_seed(0))
    expected = nn.functional.cross_entropy(theirs.train()(IMAGES + 0.25 * noise), LABELS)
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_warmup():
    during = step(Covariance(warmup=0.6), network_for())[0]
    without = step(Covariance(weight=0.0), network_for())[0]
    assert during == without
    assert step(Covariance(warmup=0.5), network_for())[0] > without


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("case", ["plain", "saturated", "all wrong"])
def test_gradient_against_finite_differences(case, detach):
    """Perturbs a bias, which does not affect the covariance, if that is detached; else a weight."""
    network = network_for("plain")
    if case == "saturated":
        network[4].weight.data *= 1e4
    method = Covariance(warmup=0.0, expected_relu=True, detach_covariance=detach, weight=0.7)
    noise = torch.empty_like(IMAGES).normal_(generator=torch.Generator().manual_seed(0))
    graph = method.setup(network, IMAGES, LABELS)
    with torch.no_grad():
        guess = propagate(graph, network, IMAGES + 0.25 * noise, 0.25, method.rules()).top[:, 0]
    labels = (guess + 1) % 4 if case == "all wrong" else guess

    def loss():
        context = StepContext(torch.Generator().manual_seed(0), 0.5, graph)
        return method.loss(network, IMAGES, labels, context)

    moved = network[0].bias if detach else network[0].weight
    gradient = torch.autograd.grad(loss(), moved)[0].flatten()
    assert gradient.isfinite().all()
    start = moved.detach().clone()
    for at in (0, 3):
        sides = []
        for size in (1e-7, -1e-7):
            with torch.no_grad():
                moved.view(-1)[at] += size
                sides.append(float(loss()))
                moved.copy_(start)
        difference = (sides[0] - sides[1]) / 2e-7
        assert float(gradient[at]) == pytest.approx(difference, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("detach", [True, False])
def test_the_slope_of_a_compiled_network(detach):
    own, compiled = network_for(), network_for()
    compiled.compile(backend="aot_eager")
    method = Covariance(mode="linear", warmup=0.0, detach_covariance=detach)
    found = [step(method, network)[0] for network in (own, compiled)]
    for loss in found:
        loss.backward()
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(own.linear.weight.grad, compiled.linear.weight.grad)


@pytest.mark.parametrize("mode", ["channel", "linear"])
def test_radius_form_written_out(mode):
    """CE plus the missing radius of the label against the best other class, over all images."""
    network = network_for("plain")
    method = Covariance(mode=mode, hinge="radius", warmup=0.0, gamma=3.0, weight=0.7)
    loss, _, context = step(method, network)
    noise = torch.empty_like(IMAGES).normal_(generator=torch.Generator().manual_seed(0))
    total, radii = 0.0, []
    for image, label in zip(IMAGES + 0.25 * noise, LABELS.tolist(), strict=True):
        logits = network(image[None])[0]
        others = [k for k in range(4) if k != label]
        rival = max(others, key=lambda k: float(logits[k].detach()))
        rows = network[4].weight[[label, rival]]
        if mode == "linear":
            jacobian = torch.autograd.functional.jacobian(lambda x: network(x[None])[0], image)
            slope = jacobian[label] - jacobian[rival]
            variance = 0.25**2 * slope.square().sum()
        else:
            taps = network[0].weight.flatten(1)
            shared = 0.25**2 * 1.1 * taps @ taps.mT + 0.1 * torch.eye(4).double()
            variance = (rows @ (shared / 36) @ rows.mT).trace()
        z = (logits[label] - logits[rival]) / variance.sqrt()
        missing = max(0.0, float(0.25 * (3.0 - z.detach())))
        total += float(-logits.detach().log_softmax(0)[label]) + 0.7 * missing
        radii.append(max(0.0, float(0.25 * z.detach())))
    assert float(loss.detach()) == pytest.approx(total / 8, rel=1e-6)
    assert float(context.metrics["covariance/radius"]) == pytest.approx(sum(radii) / 8)


@pytest.mark.parametrize("hinge", ["code", "radius"])
def test_gradient_through_the_slope_against_finite_differences(hinge):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    ).double()  # smooth, and without a rule: only this mode takes it
    method = Covariance(
        mode="linear", warmup=0.0, detach_covariance=False, weight=0.7, hinge=hinge, gamma=2.0
    )
    moved = network[0].weight
    gradient = torch.autograd.grad(step(method, network)[0], moved)[0].flatten()
    start = moved.detach().clone()
    for at in (0, 7):
        sides = []
        for size in (1e-6, -1e-6):
            with torch.no_grad():
                moved.view(-1)[at] += size
            sides.append(float(step(method, network)[0].detach()))
            with torch.no_grad():
                moved.copy_(start)
        difference = (sides[0] - sides[1]) / 2e-6
        assert float(gradient[at]) == pytest.approx(difference, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e6])
def test_no_nan_reaches_the_weights(scale):
    for settings in ({"expected_relu": True}, {}, {"mode": "linear"}):
        network = network_for().float()
        network.linear.weight.data *= scale
        method = Covariance(warmup=0.0, ridge=0.0, **settings)
        loss, _, _ = step(method, network, IMAGES.float())
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("mode", ["channel", "linear"])
def test_bf16_autocast(mode):
    network = network_for().float()
    method = Covariance(warmup=0.0, mode=mode)
    graph = method.setup(network, IMAGES.float(), LABELS)
    counted = CountedNetwork(network.train(), torch.bfloat16)
    context = StepContext(torch.Generator().manual_seed(0), 0.5, graph)
    loss = method.loss(counted, IMAGES.float(), LABELS, context)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert counted.backward_passes == (8 if mode == "channel" else 16)


def test_soft_targets_use_the_likeliest_class():
    one_hot = nn.functional.one_hot(LABELS, 4).double()
    hard = step(Covariance(warmup=0.0), network_for())[0]
    soft = step(Covariance(warmup=0.0), network_for(), labels=one_hot)[0]
    torch.testing.assert_close(hard, soft)


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Branching(), "method covariance: Branching cannot be traced by torch.fx"),
        (nn.Sequential(nn.Flatten(), nn.SiLU(), nn.Linear(64, 4)), r"layer '1' \(SiLU\) has no"),
    ],
)
def test_networks_that_do_not_fit_are_refused_before_training(network, message):
    with pytest.raises(RequestError, match=message):
        Covariance().setup(network.double(), IMAGES, LABELS)
    assert network.training
    loss, _, _ = step(Covariance(mode="linear", warmup=0.0), network)
    assert loss.isfinite()
