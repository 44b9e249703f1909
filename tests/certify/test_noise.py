"""The keys of the noise and its distributions."""

import math

import pytest
import torch

from raybust.certification import Smoothing, draws
from raybust.certification.noise import block_seed
from raybust.errors import RequestError

IMAGE = torch.full((2, 3, 4), 0.25)
GOLDEN_SEED = 4775493779958828826
GOLDEN_DRAWS = [0.270812, 0.231291, 0.48941, -0.138537]


def smoothing(noise="gaussian", norm="l2", sigma=0.5, keep=5):
    return Smoothing(noise=noise, norm=norm, sigma=sigma, keep=keep, shape=(2, 3, 4))


def test_a_key_gives_one_noise():
    first = draws(smoothing(), 1, IMAGE, (7, "estimate", 3))
    assert torch.equal(first, draws(smoothing(), 1, IMAGE, (7, "estimate", 3)))
    for other in ((2, 7, "estimate", 3), (1, 8, "estimate", 3), (1, 7, "pilot", 3)):
        seed, *key = other
        assert not torch.equal(first, draws(smoothing(), seed, IMAGE, key))
    assert not torch.equal(first, draws(smoothing(), 1, IMAGE, (7, "estimate", 4)))


def test_blocks_of_an_example_have_different_seeds_where_the_generator_looks():
    seeds = [block_seed(0, 5, "estimate", block) for block in range(20_000)]
    seeds += [block_seed(0, 5, "pilot", block) for block in range(20_000)]
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == 40_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_keys_are_frozen():
    """Changing them makes all logs irreproducible and requires a new FORMAT."""
    assert block_seed(0, 0, "estimate", 0) == GOLDEN_SEED
    found = draws(smoothing(), 0, IMAGE, (0, "estimate", 0))[0, 0, 0]
    assert found.tolist() == pytest.approx(GOLDEN_DRAWS, abs=1e-6)


def test_gaussian_law():
    blocks = torch.cat([draws(smoothing(), 0, IMAGE, (1, "estimate", b)) for b in range(50)])
    noise = (blocks - 0.25).double().flatten()
    assert blocks.dtype == torch.float32
    assert blocks.is_contiguous(memory_format=torch.channels_last)
    assert float(noise.mean()) == pytest.approx(0, abs=4 * 0.5 / math.sqrt(len(noise)))
    assert float(noise.std()) == pytest.approx(0.5, rel=0.01)


def test_uniform_law():
    uniform = smoothing("uniform", "l1")
    noise = torch.cat([draws(uniform, 0, IMAGE, (1, "estimate", b)) for b in range(50)]) - 0.25
    half = 0.5 * math.sqrt(3)
    assert float(noise.abs().max()) <= half + 1e-6
    assert float(noise.std()) == pytest.approx(0.5, rel=0.01)


def test_ablation_keeps_so_many_pixels_of_all_channels():
    kept = draws(smoothing("ablation", "l0"), 0, IMAGE, (1, "estimate", 0)) != 0.5
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert (kept[:, 0].flatten(1).sum(1) == 5).all()
    blocks = [draws(smoothing("ablation", "l0"), 0, IMAGE, (1, "estimate", b)) for b in range(100)]
    share = (torch.cat(blocks)[:, 0] != 0.5).double().mean(0)
    assert float((share - 5 / 12).abs().max()) < 4 * math.sqrt(5 / 12 * 7 / 12 / 10_000)


@pytest.mark.parametrize(
    ("noise", "norm"),
    [
        ("gaussian", "l1"),
        ("gaussian", "l0"),
        ("uniform", "l2"),
        ("uniform", "linf"),
        ("ablation", "l2"),
    ],
)
def test_a_norm_that_the_noise_cannot_certify_is_refused(noise, norm):
    with pytest.raises(RequestError, match=f"certify.norm: {noise} noise certifies .*not {norm}"):
        smoothing(noise, norm)


def test_keep_must_leave_something_out():
    with pytest.raises(RequestError, match=r"certify.keep: got 12, expected 1 to 11"):
        smoothing("ablation", "l0", keep=12)


@pytest.mark.parametrize(
    ("noise", "norm", "radii"),
    [
        ("gaussian", "l2", (0.25, 1.0)),
        ("gaussian", "linf", (8 / 255,)),
        ("uniform", "l1", (0.5,)),
        ("ablation", "l0", (1, 0)),
    ],
)
def test_probability_inverts_radius(noise, norm, radii):
    law = smoothing(noise, norm, keep=2)
    for radius in radii:
        p = law.probability(radius)
        assert law.radius(min(p + 1e-12, 1.0)) >= radius
        assert radius == 0 or law.radius(p - 1e-6) < radius
