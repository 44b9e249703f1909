"""The engine against `certify`: CERTIFY of Cohen et al. (2019) as the paper states it."""

import math

import pytest
import torch
from networks import Linear, convolutional, protocol

from raybust.certification import ABSTAIN, BLOCK, certify, certify_examples, draws
from raybust.numerics.bounds import round_down

torch.manual_seed(3)
IMAGES = torch.rand(8, 1, 5, 5)
INDICES = [3, 0, 7, 11, 2, 40, 41, 5]
NETWORKS = {
    "convolutional": convolutional(),
    "linear": Linear([[0.0] * 25, [0.2] * 25, [0.1, -0.1] * 12 + [0.1]], [0.1, -2.4, 0.0]),
    "constant": Linear([[0.0] * 25] * 3, [0.0, 1.0, 0.0]),
    "tie": Linear([[1.0] + [0.0] * 24, [-1.0] + [0.0] * 24], [-0.5, 0.5]),
}


def sampler(made, image, idx):
    """Returns the keyed noisy copies of an image, up to a count."""

    def sample(stream, count):
        blocks = range(math.ceil(count / BLOCK))
        noisy = [draws(made.smoothing, made.seed, image, (idx, stream, b)) for b in blocks]
        return torch.cat(noisy)[:count]

    return sample


def by_engine(network, made):
    found = certify_examples(network, IMAGES, torch.zeros(len(IMAGES)), INDICES, made)
    return {row.idx: (row.predict, row.radius) for row in found}


def by_oracle(network, made, **changes):
    settings = {"sigma": made.sigma, "n0": made.n0, "n": made.n, "alpha": made.alpha} | changes
    found = {}
    for image, idx in zip(IMAGES, INDICES, strict=True):
        predict, radius = certify(network, sampler(made, image, idx), **settings)
        found[idx] = predict, round_down(radius)
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize(("n0", "n"), [(100, 1000), (1, 100), (130, 1050), (100, 10_000)])
def test_the_engine_gives_the_rows_of_the_oracle(name, alpha, n0, n):
    network = NETWORKS[name]
    made = protocol(shape=(1, 5, 5), sigma=0.5, alpha=alpha, n0=n0, n=n)
    assert by_engine(network, made) == by_oracle(network, made)


def test_the_cases_abstain_and_certify_several_classes():
    made = protocol(shape=(1, 5, 5), sigma=0.5, alpha=0.001)
    found = [row for net in NETWORKS.values() for row in by_oracle(net, made).values()]
    assert {ABSTAIN, 0, 1} <= {predict for predict, _ in found}
    assert all((radius == 0) == (predict == ABSTAIN) for predict, radius in found)


@pytest.mark.parametrize("changes", [{"alpha": 0.0011}, {"n": 999}, {"n0": 1}, {"sigma": 0.501}])
def test_another_setting_gives_other_rows(changes):
    """The comparison can fail."""
    made = protocol(shape=(1, 5, 5), sigma=0.5, alpha=0.001)
    pairs = [(by_engine(net, made), by_oracle(net, made, **changes)) for net in NETWORKS.values()]
    assert any(rows != others for rows, others in pairs)


def test_other_noise_gives_other_rows():
    made, other = (protocol(shape=(1, 5, 5), sigma=0.5, seed=seed) for seed in (0, 1))
    network = NETWORKS["convolutional"]
    assert by_engine(network, made) != by_oracle(network, other)
