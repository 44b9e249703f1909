"""The rule of each layer: linear ones exactly, in all exact modes; layers without a rule."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raybust.numerics.moments import Moments, Rules, flatten, propagate, register, trace
from raybust.numerics.moments.layers import RULES
from raybust.numerics.moments.propagation import noisy, run

SIGMA = 0.25
EXACT = Rules(mode="full")
PLAIN = Rules(mode="channel", r_max=0.0, ridge=0.0)


def through(network, images, rules):
    return run(trace(network), network, noisy(images, SIGMA, rules))


def jacobian_covariance(network, images):
    """Returns sigma^2 J J^T for each image: exact for linear networks."""
    found = []
    for image in images:
        j = torch.autograd.functional.jacobian(lambda x: network(x[None])[0].flatten(), image)
        j = j.flatten(1)
        found.append(SIGMA**2 * j @ j.mT)
    return torch.stack(found)


class Odd(nn.Module):
    """Selecting, padding, arithmetic, functional layers and a method call: all linear."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.rand(3, 1, 1, dtype=torch.float64))
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3, dtype=torch.float64))
        self.matrix = nn.Parameter(torch.randn(5, 32, dtype=torch.float64))

    def forward(self, x):
        x = 2 * (x - self.shift) / self.shift + 1
        x = F.conv2d(x, self.weight, None, 1, 1)
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return F.linear(
            -x.mean((2, 3), keepdim=True).view(x.size(0), -1).mul(3.0), self.matrix[:, :8]
        )


LINEAR = {
    "conv": nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2),
    "groups": nn.Conv2d(3, 6, 3, groups=3),
    "same": nn.Conv2d(3, 4, 3, padding="same"),
    "batch norm": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
    "average": nn.AvgPool2d(3, 2, 1),
    "average inside": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "adaptive": nn.AdaptiveAvgPool2d(3),
    "dense": nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 5)),
    "odd": Odd(),
}


def prepared(name):
    torch.manual_seed(0)
    network = LINEAR[name].double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
            nn.init.uniform_(module.weight, 0.5, 2)
    return network, torch.rand(2, 3, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("name", LINEAR)
def test_full_mode_is_exact_for_linear_layers(name):
    network, images = prepared(name)
    found = through(network, images, EXACT)
    torch.testing.assert_close(found.mean, network(images))
    torch.testing.assert_close(found.covariance.matrix, jacobian_covariance(network, images))


@pytest.mark.parametrize(
    "name", ["conv", "groups", "same", "average", "average inside", "adaptive"]
)
def test_diagonal_mode_is_exact_for_one_layer(name):
    network, images = prepared(name)
    found = through(network, images, Rules(mode="diagonal"))
    truth = jacobian_covariance(network, images).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found.variances(), truth.reshape(found.mean.shape))


@pytest.mark.parametrize("name", ["conv", "groups", "same", "batch norm", "dense"])
def test_channel_mode_is_exact_inside_the_map(name):
    """First layer, independent pixels: exact where the window does not cross the border."""
    network, images = prepared(name)
    found = through(network, images, PLAIN)
    truth = jacobian_covariance(network, images)
    count = found.covariance.matrix.shape[1]
    if name == "dense":
        image = noisy(images, SIGMA, PLAIN).covariance
        pair = network[2].weight[:2].expand(2, -1, -1)
        torch.testing.assert_close(image.pair(pair, images), truth[:, :2, :2])
        torch.testing.assert_close(found.covariance.matrix, truth)
        return
    side = found.mean.shape[2]
    pixels = truth.reshape(2, count, side, side, count, side, side)
    centre = pixels[:, :, side // 2, side // 2, :, side // 2, side // 2]
    torch.testing.assert_close(found.covariance.matrix, centre)


def test_first_convolution_against_sampling():
    torch.manual_seed(1)
    layer = nn.Conv2d(3, 8, 3, bias=False)
    images = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        noise = SIGMA * torch.randn(4000, 3, 12, 12)
        sampled = layer(images + noise).var(0).mean((1, 2))
        found = through(layer, images, PLAIN).variances()[0, :, 0, 0]
    torch.testing.assert_close(found, sampled, rtol=0.01, atol=0)


def test_large_convolutions_go_tap_by_tap(monkeypatch):
    network, images = prepared("conv")
    whole = through(network, images, PLAIN).covariance.matrix
    monkeypatch.setattr("raybust.numerics.moments.channel._CHUNK", 1)
    torch.testing.assert_close(through(network, images, PLAIN).covariance.matrix, whole)


def test_inflation_and_ridge():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double()
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    bare = through(network, images, PLAIN).covariance.matrix
    rules = Rules(r_max=0.2, ridge=0.05)
    found = through(network, images, rules).covariance.matrix
    torch.testing.assert_close(found, 1.2 * bare + 0.05 * torch.eye(4, dtype=torch.float64))


def test_a_linear_layer_on_a_map_is_not_inflated():
    """As in the authors' code: the sum over the pixels of A S A^T, whether it is the last layer."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5)).double()
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    rules = Rules(mode="channel", r_max=0.2, ridge=0.0)
    before = through(network[:1], images, rules).covariance.matrix
    forms = network[2].weight.reshape(5, 4, 16)
    expected = torch.einsum("icp,bcd,jdp->bij", forms, before, forms)
    torch.testing.assert_close(through(network, images, rules).covariance.matrix, expected)
    logits = propagate(trace(network), network, images, SIGMA, rules)
    for one, top, pair in zip(expected, logits.top, logits.covariance, strict=True):
        torch.testing.assert_close(pair, one[top][:, top])


def test_batch_norm_in_train_mode_is_the_batch_s_affine_map():
    torch.manual_seed(0)
    ours = nn.BatchNorm2d(3, momentum=0.3).double()
    theirs = nn.BatchNorm2d(3, momentum=0.3).double()
    images = 3 * torch.rand(4, 3, 5, 5, dtype=torch.float64)
    found = through(nn.Sequential(ours), images, PLAIN)
    torch.testing.assert_close(found.mean, theirs(images))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 1
    scale = 1 / (images.var((0, 2, 3), unbiased=False) + ours.eps)
    torch.testing.assert_close(found.variances()[0, :, 0, 0], SIGMA**2 * scale)


@pytest.mark.parametrize("mode", ["channel", "channel_exact", "diagonal", "full"])
def test_max_pooling_takes_the_pixel_with_the_largest_mean(mode):
    """Exact if one pixel of each window is far above the others."""
    torch.manual_seed(0)
    images = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    images[:, :, ::2, ::2] += 100
    found = through(nn.MaxPool2d(2), images, Rules(mode=mode))
    torch.testing.assert_close(found.mean, images[:, :, ::2, ::2])
    torch.testing.assert_close(found.variances(), torch.full_like(found.mean, SIGMA**2))


def test_shared_pixels_select_and_pad_channels():
    class Shortcut(nn.Module):
        def forward(self, x):
            return F.pad(x[:, 1:, ::2, ::2], (0, 0, 0, 0, 1, 1))

    found = through(Shortcut(), torch.rand(2, 3, 6, 6), PLAIN)
    expected = SIGMA**2 * torch.diag(torch.tensor([0.0, 1, 1, 0]))
    torch.testing.assert_close(found.covariance.matrix[0], expected)


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Squared(nn.Module):
    def forward(self, x):
        return (x * x).flatten(1)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Branching(), "cannot be traced"),
        (Squared(), "step 'mul' .*a product of two features"),
        (nn.Sequential(nn.Flatten(), nn.GELU()), r"layer '1' \(GELU\) has no rule.*register"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 2)), "not logits"),
        (nn.Sequential(nn.Flatten(0)), "flatten"),
        (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Flatten()), "ceil_mode"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 1)), "1 logit"),
        (nn.Sequential(nn.ReLU()), "not logits"),
    ],
)
def test_what_cannot_be_done_is_named(network, message):
    with pytest.raises(ValueError, match=message):
        propagate(trace(network), network, torch.rand(2, 1, 6, 6), SIGMA, PLAIN)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_sigma_must_be_positive(sigma):
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(ValueError, match="sigma: got"):
        propagate(trace(network), network, torch.rand(2, 1, 6, 6), sigma, PLAIN)


def test_a_rule_of_one_s_own():
    class Doubled(nn.Module):
        def forward(self, x):
            return x + x if x.sum() else x  # cannot be traced: it needs the rule

    @register(Doubled)
    def doubled(module: Doubled, x: Moments) -> Moments:
        factor = torch.tensor(2.0)
        return x.then(2 * x.mean, lambda c, before: c.scaled(factor, before))

    try:
        network = nn.Sequential(Doubled(), nn.Flatten())
        found = through(network, torch.rand(1, 1, 2, 2), PLAIN)
        assert found.covariance.matrix[0, 0, 0] == pytest.approx(4 * SIGMA**2)
    finally:
        del RULES[Doubled]
    assert flatten(noisy(torch.rand(1, 1, 2, 2), 1.0, PLAIN), 1).mean.shape == (1, 4)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.dropout = nn.Dropout()

    def forward(self, x):
        y = self.dropout(self.conv(x))
        y += x
        return y


@pytest.mark.parametrize("mode", ["channel", "diagonal", "full"])
def test_a_residual_sum_takes_its_terms_for_independent(mode):
    torch.manual_seed(0)
    network, images = Residual(), torch.rand(2, 3, 6, 6)
    rules = Rules(mode=mode, r_max=0.0)
    branch = through(nn.Sequential(network.conv), images, rules)
    found = through(network, images, rules)  # dropout is off even in train mode
    torch.testing.assert_close(found.mean, images + network.conv(images))
    torch.testing.assert_close(found.variances(), branch.variances() + SIGMA**2)


def test_a_slope_above_one_is_refused():
    with pytest.raises(ValueError, match="slope"):
        through(nn.Sequential(nn.LeakyReLU(1.5)), torch.rand(1, 1, 4, 4), PLAIN)
