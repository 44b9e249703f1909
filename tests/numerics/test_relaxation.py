"""Interval and linear bounds against exact answers: affine networks, activation patterns, mixed
integer programs, samples, and float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from exact_margins import by_integers, by_patterns, small
from torch import nn

from raybust.models import cifar
from raybust.models.normalize import Normalize, Normalized
from raybust.numerics import tracing
from raybust.numerics.attacks import ascend, attacked
from raybust.numerics.balls import Threat
from raybust.numerics.relaxation import Setting, ball, certified_margin, enclose, margins, trace
from raybust.numerics.relaxation.margins import _TABLE

BOUNDS = ("ibp", "crown", "crown_full")


def images_of(count, shape, dtype=torch.float64, low=0.0, high=1.0):
    found = torch.rand(count, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return low + (high - low) * found


class Functional(nn.Module):
    """Residual sums, scalings, leaky ReLU, padding and pooling, called as functions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=2)
        self.register_buffer("factor", torch.randn(4, 1, 1))
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        x = F.leaky_relu(self.first(2 * images - 0.5), 0.1)
        x = x - F.pad(self.second(x), (1, 1, 1, 1)) / 3
        x = F.avg_pool2d(torch.relu(-x * self.factor + 0.1)[:, :, 1:, 1:], 3, 2)
        return self.head(x.reshape(x.size(0), -1))


def networks():
    torch.manual_seed(0)
    resnet = cifar.PreActResNet(1, 3, stem=2, widths=(2, 4), blocks=1)
    old = nn.Sequential(nn.Conv2d(1, 2, 3), cifar.Block(2, 4, 2), nn.Flatten(), nn.Linear(4, 3))
    for network in (resnet, old):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    front = Normalized(Normalize([0.3], [0.2]), cifar.small_cnn((1, 4, 4), 3, 2))
    lenet = cifar.lenet((1, 4, 4), 3)
    found = {"preact": resnet, "resnet": old, "front": front, "lenet": lenet}
    return {**found, "functional": Functional()}


def margins_of(network, images, labels, eps, bound):
    setting = Setting(tight=bound == "crown_full")
    box = ball(images, eps, setting)
    return margins(enclose(trace(network), network, box), labels, bound).detach()


@pytest.mark.parametrize("bound", BOUNDS)
def test_affine_networks_exactly(bound):
    """lb_j = f_y - f_j - eps ||w_y - w_j||_1 inside [0, 1], also through a deep affine network."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.AvgPool2d(2), nn.BatchNorm2d(3).eval(),
        nn.Flatten(), nn.Linear(3, 7), nn.Linear(7, 4),
    ).double().eval()  # fmt: skip
    images, labels, eps = images_of(6, (1, 4, 4), low=0.2, high=0.8), torch.arange(6) % 4, 0.1
    pixels = torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)
    zero = network(torch.zeros(1, 1, 4, 4, dtype=torch.float64))
    weight, logits = (network(pixels) - zero).T, network(images)
    expected = torch.stack([
        logits[i, y] - logits[i] - eps * (weight[y] - weight).abs().sum(1)
        for i, y in enumerate(labels)
    ])  # fmt: skip
    found = margins_of(network, images, labels, eps, bound)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-11)
    assert (found <= expected + 1e-15).all()


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("name", networks())
def test_no_radius_gives_the_margins(name, bound):
    network = networks()[name].double().eval()
    images, labels = images_of(4, (1, 4, 4)), torch.arange(4) % 3
    logits = network(images)
    expected = logits.gather(1, labels[:, None]) - logits
    found = margins_of(network, images, labels, 0.0, bound)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found <= expected + 1e-14).all()


@pytest.mark.parametrize("name", networks())
def test_samples_stay_inside_at_every_layer(name):
    """10,000 points of the ball, half of them corners, through the network in float32."""
    network = networks()[name].eval()
    image, eps = images_of(1, (1, 4, 4), torch.float32), 0.05
    graph, boxes = trace(network), {}

    def keep(node, value):
        boxes[node] = value

    tracing.run(graph, network, ball(image, eps, Setting()), _TABLE, watch=keep)
    delta = 2 * torch.rand(10_000, 1, 4, 4, generator=torch.Generator().manual_seed(2)) - 1
    delta[::2] = delta[::2].sign()
    points = (image + eps * delta).clamp(0, 1)
    checked, touched = 0, 0.0

    def check(node, value):
        nonlocal checked, touched
        if not isinstance(boxes[node], type(boxes[next(iter(graph.nodes))])):
            return
        box = boxes[node]
        lower, upper = (box.center - box.radius).double(), (box.center + box.radius).double()
        assert (value.double() >= lower - 1e-12).all(), node
        assert (value.double() <= upper + 1e-12).all(), node
        checked += 1
        touched = max(touched, float(((value - box.center).abs() / box.radius).max()))

    with torch.no_grad():
        tracing.run(graph, network, points, _TABLE, watch=check)
    assert checked >= 9
    assert touched > 0.9, "the samples test nothing"


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("name", networks())
def test_margins_hold_for_samples_and_attacks(name, bound):
    network = networks()[name].eval()
    images, eps = images_of(8, (1, 4, 4), torch.float32), 0.02
    labels = network(images).argmax(1)
    low = certified_margin(trace(network), network, images, labels, eps=eps, bound=bound)
    others = F.one_hot(labels, 3).bool()

    def smallest(points):
        logits = network(points).double()
        own = logits.gather(1, labels[:, None])
        return (own - logits).masked_fill(others, math.inf).amin(1)

    worst = smallest(images)
    with attacked(network):
        for seed in range(5):
            threat = Threat("linf", eps)
            start = threat.sample(images, torch.Generator().manual_seed(seed))
            found = ascend(
                network, images, threat, lambda z: F.cross_entropy(z, labels, reduction="sum"),
                start=start, steps=40, step=eps / 4,
            )  # fmt: skip
            worst = torch.minimum(worst, smallest(found))
    assert (low <= worst).all()


@pytest.mark.parametrize("bound", BOUNDS)
def test_monotone_in_eps(bound):
    network = networks()["front"].double().eval()
    images, labels = images_of(4, (1, 4, 4)), torch.arange(4) % 3
    found = [
        certified_margin(trace(network), network, images, labels, eps=eps, bound=bound)
        for eps in (0.0, 0.001, 0.01, 0.02, 0.05, 0.1)
    ]
    if bound == "ibp":  # boxes are nested; the lower lines of linear bounds jump with eps
        assert all((b <= a).all() for a, b in itertools.pairwise(found))
    assert all((b < a).all() for a, b in itertools.pairwise(found[:1] + found[2:]))


@pytest.mark.parametrize("seed", range(2))
def test_one_hidden_layer_against_every_activation_pattern(seed):
    network, images = small([6], seed=seed), images_of(3, (1, 1, 3))
    for eps in (0.01, 0.1, 0.3):
        labels = torch.zeros(3, dtype=torch.int64)
        found = {b: margins_of(network, images, labels, eps, b) for b in BOUNDS}
        for i, j in itertools.product(range(3), (1, 2)):
            exact = by_patterns(network, images[i].flatten().numpy(), eps, 0, j)
            for bound in BOUNDS:
                assert found[bound][i, j] <= exact + 1e-9
            assert found["crown"][i, j] == pytest.approx(
                float(found["crown_full"][i, j]), abs=1e-9
            ), "one hidden layer has no inner bounds to tighten"
    without = margins_of(network, images, labels, 1e-4, "crown")[0, 1]
    exact = by_patterns(network, images[0].flatten().numpy(), 1e-4, 0, 1)
    assert float(without) == pytest.approx(exact, abs=1e-9), "no unit changes: CROWN is exact"


@pytest.mark.parametrize("seed", range(3))
def test_deep_networks_against_mixed_integer_programs(seed):
    """Bounds never exceed the exact answer, and a certificate implies a certificate of it."""
    network, images = small([5, 4, 4], seed=seed), images_of(3, (1, 1, 3))
    labels = network(images).argmax(1)
    gaps = {bound: [] for bound in BOUNDS}
    for eps in (0.01, 0.05, 0.2):
        found = {b: margins_of(network, images, labels, eps, b) for b in BOUNDS}
        for i in range(3):
            y = int(labels[i])
            for j in {0, 1, 2} - {y}:
                exact = by_integers(network, images[i].flatten().numpy(), eps, y, j)
                for bound in BOUNDS:
                    assert found[bound][i, j] <= exact + 1e-6
                    gaps[bound].append(exact - float(found[bound][i, j]))
    near = {bound: sum(some[:6]) for bound, some in gaps.items()}  # of the smallest eps
    assert max(near["crown_full"], near["crown"]) <= near["ibp"]


def test_two_oracles_agree():
    network, image = small([6]), images_of(1, (1, 1, 3)).flatten().numpy()
    assert by_integers(network, image, 0.2, 0, 1) == pytest.approx(
        by_patterns(network, image, 0.2, 0, 1), abs=1e-6
    )


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("name", networks())
def test_float32_is_never_above_float64(name, bound):
    """Widened bounds of float32 lie below those of float64 without rounding errors, also where
    terms cancel: images of large offset."""
    network = networks()[name].eval()
    images, labels = images_of(4, (1, 4, 4), torch.float32), torch.arange(4) % 3
    for eps in (0.0, 1e-6, 0.01):
        single = margins_of(network, images, labels, eps, bound)
        double = margins_of(network.double(), images.double(), labels, eps, bound)
        network.float()
        assert (single <= double + 1e-12).all()
        assert (double - single).max() < 0.05 * double.abs().max() + 1e-3


def test_without_widening_float32_is_sometimes_above():
    """The test above can fail."""
    network = networks()["preact"].eval()
    images, labels = images_of(32, (1, 4, 4), torch.float32), torch.arange(32) % 3
    box = ball(images, 1e-6, Setting(widen=False))
    single = margins(enclose(trace(network), network, box), labels, "ibp")
    box = ball(images.double(), 1e-6, Setting(widen=False))
    double = margins(enclose(trace(network), network.double(), box), labels, "ibp")
    assert (single > double).any()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.SiLU(), r"layer '0' \(SiLU\) has no rule for bounds"),
        (nn.BatchNorm2d(1).train(), r"layer '0' \(BatchNorm2d\): no rule for batch norm that"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "padding_mode 'reflect'"),
        (nn.Conv2d(1, 1, 3, padding="same"), "padding='same', expected numbers"),
        (nn.LeakyReLU(2.0), "a leaky slope of 2.0"),
        (nn.Softmax(1), "has no rule for bounds"),
        (nn.Dropout().train(), "no rule for dropout in train mode"),
        (nn.ReLU6(), "has no rule for bounds"),
    ],
)
def test_steps_without_a_rule_are_refused_by_name(layer, message):
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match=message):
        enclose(trace(network), network, ball(images_of(2, (1, 4, 4)).float(), 0.1, Setting()))


def test_a_subclass_needs_a_rule_of_its_own():
    """Its forward pass may do anything; here torch's own, which tracing does not enter."""
    layer = torch.ao.nn.qat.Conv2d(
        1, 1, 3, qconfig=torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    )
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(4, 3))
    box = ball(images_of(2, (1, 4, 4)).float(), 0.1, Setting())
    with pytest.raises(ValueError, match=r"layer '0' \(Conv2d\) has no rule for bounds"):
        enclose(trace(network), network, box)


def test_hooks_are_refused():
    images, labels = images_of(2, (1, 4, 4)).float(), torch.zeros(2, dtype=torch.int64)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    hook = network[1].register_forward_hook(lambda module, inputs, found: -found)
    with pytest.raises(ValueError, match=r"layer '1' \(Linear\) has hooks"):
        certified_margin(trace(network), network, images, labels, eps=0.01, bound="ibp")
    hook.remove()
    certified_margin(trace(network), network, images, labels, eps=0.01, bound="ibp")
    network.register_forward_hook(lambda module, inputs, found: -found)
    with pytest.raises(ValueError, match="computes something else than its trace"):
        certified_margin(trace(network), network, images, labels, eps=0.01, bound="ibp")


def test_a_network_that_branches_is_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    with pytest.raises(ValueError, match="Branching cannot be traced"):
        trace(Branching())


def test_nan_certifies_nothing():
    network = small([4])
    with torch.no_grad():
        network[1].bias[0] = math.nan
    images = images_of(2, (1, 1, 3))
    found = certified_margin(
        trace(network), network, images, torch.zeros(2, dtype=torch.int64), eps=0.01, bound="crown"
    )
    assert not (found > 0).any()


class Reused(nn.Module):
    """Changes features in place that it uses again."""

    def __init__(self, change):
        super().__init__()
        self.first, self.last, self.change = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 3), change

    def forward(self, images):
        features = self.first(images)
        changed = self.change(features)
        return self.last((changed + features).flatten(1))


def plus_one(features):
    features += 1
    return features


@pytest.mark.parametrize(
    "change", [lambda x: F.relu(x, inplace=True), lambda x: x.relu_(), plus_one],
    ids=["relu", "relu_", "iadd"],
)  # fmt: skip
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_features_that_are_changed_in_place_and_used_again_are_refused(change, eps):
    """Their boxes are those of before the change, at any radius."""
    network = Reused(change).eval()
    images, labels = images_of(5, (1, 4, 4)).float(), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match="in place"):
        certified_margin(trace(network), network, images, labels, eps=eps, bound="ibp")


@pytest.mark.parametrize("bound", ["ibp", "crown", "best"])
def test_a_radius_for_each_image(bound):
    network, images = small([5, 4]), images_of(3, (1, 1, 3))
    labels, graph = network(images).argmax(1), trace(network)
    radii = torch.tensor([0.0, 0.05, 0.2], dtype=torch.float64)
    together = certified_margin(graph, network, images, labels, eps=radii, bound=bound)
    for at, eps in enumerate(radii.tolist()):
        alone = certified_margin(
            graph, network, images[at : at + 1], labels[at : at + 1], eps=eps, bound=bound
        )
        torch.testing.assert_close(together[at : at + 1], alone, rtol=0, atol=1e-12)
