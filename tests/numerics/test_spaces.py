"""Spaces for coupling and mixing: autoencoder, penultimate features, their geodesics."""

import pytest
import torch
from torch import nn

from raybust import data
from raybust.config.inputs import Data
from raybust.numerics.autoencoder import Autoencoder, divergence, train_autoencoder
from raybust.numerics.transport import (
    Paths,
    assignments,
    between,
    feature_cost,
    interpolate,
    latent_space,
    match,
    penultimate,
    pixel_space,
    squared_distances,
)


@pytest.fixture(scope="module")
def digits():
    whole = data.load(Data())
    return whole.train.fetch(range(1000))[0], whole.test.fetch(range(300))


@pytest.fixture(scope="module")
def coder(digits):
    return train_autoencoder(digits[0], size=16, epochs=20, seed=0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 5, 9), (3, 3, 3)])
def test_codes_and_images_have_their_shapes(shape):
    coder, images = Autoencoder(shape, 6), torch.rand(2, *shape)
    assert coder.encode(images).shape == (2, 6)
    decoded = coder.decode(torch.randn(5, 6))
    assert decoded.shape == (5, *shape)
    assert ((decoded >= 0) & (decoded <= 1)).all()


def test_the_autoencoder_learns_what_is_not_its_training_data(digits, coder):
    train, (images, _) = digits
    error = float((coder(images) - images).square().mean())
    spread = float((images - train.mean(0)).square().mean())
    assert error < 0.3 * spread
    # Much better than as many principal components would be implausible, worse would be a bug.
    flat, mean = images.flatten(1), train.flatten(1).mean(0)
    axes = torch.linalg.svd(train.flatten(1) - mean, full_matrices=False).Vh[:16]
    linear = float(((flat - mean) @ axes.T @ axes + mean - flat).square().mean())
    assert 0.2 * linear < error < 2 * linear


def test_the_same_seed_makes_the_same_autoencoder_and_draws_from_no_other_generator(digits):
    images, state = digits[0][:200], torch.get_rng_state()
    found = [
        train_autoencoder(images, size=4, epochs=2, seed=seed).state_dict() for seed in (0, 0, 1)
    ]
    assert torch.equal(state, torch.get_rng_state())
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key])
    assert any(not torch.equal(value, found[2][key]) for key, value in found[0].items())


def test_it_is_frozen_and_of_the_images_dtype(digits):
    images = digits[0][:20].double()
    coder = train_autoencoder(images, size=4, epochs=1, seed=0)
    assert not coder.training
    assert not any(p.requires_grad for p in coder.parameters())
    assert coder(images).dtype == torch.float64
    codes = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(coder.decode(codes).sum(), codes)
    assert gradient.abs().sum() > 0, "an ascent along a path needs it"


def test_the_divergence_is_that_of_normal_distributions():
    draw = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 7, 5, generator=draw, dtype=torch.float64)
    own = torch.distributions.Normal(mean, (log_variance / 2).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(own, standard).sum(1)
    torch.testing.assert_close(divergence(mean, log_variance), expected)


def test_a_variational_autoencoder_trades_error_for_normal_codes(digits):
    """With little weight codes are far from N(0, I), with more their second moments over all
    images, of mean and variance together, are near 1, with a huge one they say nothing."""
    images = digits[0]
    spread = float((images - images.mean(0)).square().mean())
    error, divergences = {}, {}
    for beta in (1e-3, 0.1, 1000.0):
        coder = train_autoencoder(images, size=4, epochs=10, seed=0, beta=beta)
        assert not any(p.requires_grad for p in coder.parameters())
        mean, log_variance = coder.distribution(images)
        assert torch.equal(mean, coder.encode(images)), "the code is the mean"
        error[beta] = float((coder(images) - images).square().mean()) / spread
        divergences[beta] = float(divergence(mean, log_variance).mean())
        if beta == 0.1:
            second = (mean.square() + log_variance.exp()).mean(0)
            assert ((second > 0.5) & (second < 2)).all()
        if beta == 1e-3:
            assert (mean.square() > 4).any()
    assert error[0.1] < 0.75 < error[1000.0] < 1.3
    assert divergences[1e-3] > divergences[0.1] > 1 > 0.1 > divergences[1000.0] >= 0


def test_a_variational_autoencoder_is_seeded(digits):
    images, state = digits[0][:200], torch.get_rng_state()
    one, two = (train_autoencoder(images, size=3, epochs=1, seed=0, beta=1.0) for _ in range(2))
    assert torch.equal(one.encode(images), two.encode(images))
    assert torch.equal(state, torch.get_rng_state())
    plain = train_autoencoder(images, size=3, epochs=1, seed=0)
    assert plain.down[-1].out_features == 3
    assert one.down[-1].out_features == 6


@pytest.mark.parametrize("images", [torch.empty(0, 1, 8, 8), torch.full((3, 1, 8, 8), torch.nan)])
def test_bad_images_are_refused(images):
    with pytest.raises(ValueError, match="images: got"):
        train_autoencoder(images, size=4, epochs=1, seed=0)


def w2(x, y):
    cost = squared_distances(x, y)
    return float(cost[torch.arange(len(x)), assignments([cost])[0]].mean().sqrt())


def test_latent_curves_are_geodesics_of_codes_decoded(digits, coder):
    images, labels = digits[1][0].double(), digits[1][1]
    wide = Autoencoder((1, 8, 8), 16).double()
    wide.load_state_dict(coder.double().state_dict())
    counted = []
    space = latent_space(wide.requires_grad_(False), images, counted.append)
    groups = [((labels == 3).nonzero().flatten()[:20], (labels == 8).nonzero().flatten()[:20])]
    ((a, b),) = match(space.cost, groups)
    paths = Paths(a, b, torch.zeros(20, dtype=torch.int64), 1)
    curves = between(space, torch.eye(10, dtype=torch.float64)[labels], paths)
    for t in (0.0, 0.3, 1.0):
        mixed = interpolate(wide.encode(images[a]), wide.encode(images[b]), t)
        torch.testing.assert_close(curves.images(t), wide.decode(mixed))
    assert counted == [300, 20, 20, 20]
    # T7 holds in the space of the cost, not in another one.
    low, high = (interpolate(curves.start, curves.end, t) for t in (0.25, 0.75))
    assert 2 * w2(low, high) == pytest.approx(w2(curves.start, curves.end), rel=1e-9)
    low, high = curves.images(0.25), curves.images(0.75)
    assert 2 * w2(low, high) != pytest.approx(w2(curves.images(0.0), curves.images(1.0)), rel=0.01)


def test_features_give_the_cost_and_pixels_are_mixed():
    images = torch.rand(8, 1, 4, 4, dtype=torch.float64)
    space = feature_cost(lambda x: x.flatten(1)[:, :3], images)
    assert space.points is images
    assert torch.equal(space.cost, images.flatten(1)[:, :3])
    assert space.decode is None
    groups = [(torch.arange(4), torch.arange(4, 8))]
    ((_, by_features),) = match(space.cost, groups)
    cost = squared_distances(images.flatten(1)[:4, :3], images.flatten(1)[4:, :3])
    assert torch.equal(by_features, 4 + assignments([cost])[0])
    assert pixel_space(images).cost is images


class Net(nn.Module):
    def __init__(self, times=1):
        super().__init__()
        self.body, self.head, self.times = nn.Linear(4, 3), nn.Linear(3, 2), times

    def forward(self, images):
        features = self.body(images.flatten(1)).relu()
        for _ in range(self.times):
            logits = self.head(features)
        return logits if self.times else features


def test_penultimate_features_are_what_the_last_linear_layer_sees():
    network, images = Net(), torch.rand(5, 1, 2, 2)
    found = penultimate(network, images)
    assert torch.equal(found, network.body(images.flatten(1)).relu())
    assert not found.requires_grad
    assert not network.head._forward_pre_hooks


@pytest.mark.parametrize(
    ("network", "message"),
    [(nn.Flatten(), "no nn.Linear"), (Net(times=2), "used 2 times"), (Net(times=0), "used 0")],
)
def test_networks_without_penultimate_features_are_named(network, message):
    with pytest.raises(ValueError, match=message):
        penultimate(network, torch.rand(5, 1, 2, 2))
