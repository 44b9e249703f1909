"""Evaluation on real digits: the same noise for every network, batch and number of workers."""

import math
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from raybust.config.inputs import Data
from raybust.corruptions import (
    GeneratedSplit,
    NoisySplit,
    check_corruptions,
    evaluate_corruptions,
    merge,
)
from raybust.data import Split, load
from raybust.errors import RequestError, WorkError
from raybust.numerics.lp_sets import named

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    sets: tuple[str, ...] = ("iCE",)
    rows: tuple[tuple[float, float], ...] = ()
    impulse: str = "uniform"
    folder: str | None = None
    generated: bool = False
    names: tuple[str, ...] = ()
    seed: int = 0
    examples: int | None = None
    batch: int = 50


@pytest.fixture(scope="module")
def part():
    return load(Data()).test


class Nearest(nn.Module):
    """Class means as a linear network: right on most digits, and sensitive to any noise."""

    def __init__(self, part):
        super().__init__()
        images, labels = part.fetch(torch.arange(len(part)))
        flat = images.flatten(1).double()
        self.means = torch.stack([flat[labels == k].mean(0) for k in range(10)])

    def forward(self, images):
        return (-torch.cdist(images.flatten(1).double(), self.means).square()).float()


@pytest.fixture(scope="module")
def network(part):
    return Nearest(part).eval()


def test_sharding_batches_and_order_do_not_matter(part, network):
    settings = Settings(rows=((0.0, 0.2), (2.0, 2.0)))
    one = evaluate_corruptions(network, part, settings, CPU)
    three = [evaluate_corruptions(network, part, settings, CPU, shard=(n, 3)) for n in range(3)]
    other = evaluate_corruptions(network, part, replace(settings, batch=17), CPU)
    together = merge(three)
    for a, b, c in zip(one.cells, together.cells, other.cells, strict=True):
        assert (a.examples, a.correct) == (b.examples, b.correct) == (c.examples, c.correct)
        assert torch.allclose(a.bins, b.bins)
    for key, value in one.metrics().items():
        assert together.metrics()[key] == pytest.approx(value, abs=1e-9)
    assert one.cells[0].examples == len(part)
    assert one.metrics()["error/p_2"] > one.clean_error


def test_noise_belongs_to_the_example(part):
    noisy = NoisySplit(part, 5.0, 0.4)
    images, labels = noisy.fetch(torch.arange(40))
    mixed = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled, shuffled_labels = noisy.fetch(mixed)
    assert torch.equal(shuffled, images[mixed])
    assert torch.equal(shuffled_labels, labels[mixed])
    subset = NoisySplit(part.select(torch.tensor([7, 3])), 5.0, 0.4).fetch([0, 1])[0]
    assert torch.equal(subset, images[[7, 3]])
    others = [NoisySplit(part, 5.0, 0.4, seed=1), NoisySplit(part, 5.0, 0.41)]
    for other in others:
        assert not torch.equal(other.fetch([0])[0], images[:1])
    change = (images - part.fetch(torch.arange(40))[0]).flatten(1)
    assert abs(float(torch.corrcoef(change[:2])[0, 1])) < 0.7  # clipped where the digit is black


def test_each_noise_is_evaluated_once(part, network):
    chosen = Settings(sets=("iCE", "C3", "C2"), examples=5)
    found = evaluate_corruptions(network, part, chosen, CPU)
    rows = {*named("C3", part.shape).rows, *named("C2", part.shape).rows}
    rows |= {*named("iCE", part.shape).rows}
    assert len(found.cells) == check_corruptions(part, chosen) == 1 + len(rows)
    assert {"mCE_Lp/C2", "mCE_Lp/C3", "iCE"} <= set(found.metrics())


def test_more_workers_than_examples(part, network):
    shards = [
        evaluate_corruptions(network, part, Settings(examples=2), CPU, shard=(n, 4))
        for n in range(4)
    ]
    assert merge(shards).cells[0].examples == 2
    assert math.isnan(shards[3].clean_error)


def test_perfect_networks_have_no_ice(part):
    class Oracle(nn.Module):
        def forward(self, images):
            return nn.functional.one_hot(part.labels[:3], 10).float()

    found = evaluate_corruptions(Oracle().eval(), part, Settings(examples=3), CPU)
    assert math.isnan(found.metrics()["iCE"])
    assert "clean error" in found.notes()[0]


def test_bad_input(part, network):
    with pytest.raises(RequestError, match="unknown set of Lp noises 'C4'"):
        evaluate_corruptions(network, part, Settings(sets=("C4",)), CPU)
    with pytest.raises(RequestError, match=r"unknown corruption 'fogg'\. Did you mean 'fog'"):
        evaluate_corruptions(network, part, Settings(names=("fogg",)), CPU)
    normalized = Split(part.images.float() - 8, part.labels, part.indices, 4.0)
    with pytest.raises(RequestError, match="look normalized"):
        evaluate_corruptions(network, normalized, Settings(), CPU)
    with pytest.raises(AssertionError, match="eval mode"):
        evaluate_corruptions(Nearest(part), part, Settings(), CPU)


def test_images_too_small_for_corruptions_on_the_fly(part, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", Fake())
    with pytest.raises(RequestError, match="sides of at least 32"):
        GeneratedSplit(part, "fog", 1)


def test_the_extra_is_named_where_it_is_missing(part, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(RequestError, match=r"pip install 'raybust\[corruptions\]'"):
        GeneratedSplit(part, "fog", 1)


class Fake:
    """Replaces imagecorruptions: noise from NumPy's global generator, as there."""

    @staticmethod
    def corrupt(image, corruption_name, severity):
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        noise = np.random.normal(size=image.shape) * severity  # noqa: NPY002
        return np.clip(image + noise, 0, 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_corruptions_on_the_fly_are_keyed_by_example(channels, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", Fake())
    images = torch.randint(0, 256, (6, channels, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.arange(6), torch.arange(10, 16))
    made = GeneratedSplit(split, "fog", 3)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    whole = made.fetch(torch.arange(6))[0]
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert torch.equal(made.fetch([4, 2])[0], whole[[4, 2]])
    assert whole.shape == images.shape
    assert not torch.equal(GeneratedSplit(split, "fog", 2).fetch([0])[0], whole[:1])


def test_the_package_itself():
    pytest.importorskip("imagecorruptions", reason="needs the extra [corruptions]")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.arange(2), torch.arange(2))
    for name in ("gaussian_noise", "fog", "jpeg_compression", "spatter"):
        first, again = (GeneratedSplit(split, name, 3).fetch([0, 1])[0] for _ in range(2))
        assert torch.equal(first, again)
        assert first.min() >= 0
        assert first.max() <= 1
        assert not torch.equal(first, split.fetch([0, 1])[0])


class Shaped(nn.Module):
    """A network whose logits are changed afterwards."""

    def __init__(self, inner, shape):
        super().__init__()
        self.inner, self.shape = inner, shape
        self.eval()

    def forward(self, images):
        return self.shape(self.inner(images))


@pytest.mark.parametrize(
    "shape", [lambda z: z * 1e-9, lambda z: z.where(z < z.amax(1, True), math.inf)]
)
def test_tiny_and_infinite_logits_keep_their_class(part, network, shape):
    settings = Settings(sets=(), rows=((2.0, 0.5),))
    plain, changed = (
        evaluate_corruptions(one, part, settings, CPU) for one in (network, Shaped(network, shape))
    )
    assert [c.correct for c in changed.cells] == [c.correct for c in plain.cells]
    assert not math.isnan(changed.metrics()["calibration/clean"])


def test_nan_is_an_error_not_a_class(part, network):
    def half(logits):
        return torch.where((torch.arange(len(logits)) % 2 == 0)[:, None], math.nan, logits)

    with pytest.raises(WorkError, match="gives NaN for 180 of 359 images"):
        evaluate_corruptions(Shaped(network, half), part, Settings(sets=(), batch=len(part)), CPU)
