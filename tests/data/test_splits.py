import math

import pytest
import torch

from raybust.config.inputs import Data
from raybust.data import Dataset, Split, load, mix
from raybust.data.seeds import generator
from raybust.data.splits import channel_moments, first, hold_out


def labels_of(*counts):
    """Labels 0 x counts[0], 1 x counts[1], ... in a fixed shuffled order."""
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))]


def small(images=4):
    pixels = (torch.arange(images * 12) % 256).to(torch.uint8).reshape(images, 3, 2, 2)
    return Split(pixels, torch.arange(images) % 2, torch.arange(images) + 100, 255.0)


def test_mix_is_a_63_bit_function_of_its_keys():
    assert mix(1, 2) == mix(1, 2)
    assert len({mix(1, 2), mix(2, 1), mix(12), mix("1", 2), mix(1, "2"), mix(-1, 2)}) == 6
    seeds = [mix(n) for n in range(2000)]
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # all 63 bits are used
    a, b = (torch.rand(4, generator=generator(3, key)) for key in ("x", "y"))
    assert torch.equal(a, torch.rand(4, generator=generator(3, "x")))
    assert not torch.equal(a, b)


def test_fetch_divides_by_the_scale():
    split = Split(
        torch.tensor([[[[0, 8], [16, 4]]]] * 3, dtype=torch.uint8),
        torch.tensor([2, 0, 1]),
        torch.arange(3),
        16.0,
    )
    images, labels = split.fetch([2, 0])
    assert images.dtype == torch.float32
    assert images.tolist() == [[[[0.0, 0.5], [1.0, 0.25]]]] * 2
    assert labels.tolist() == [1, 2]
    assert split.fetch([])[0].shape == (0, 1, 2, 2)
    assert split.shape == (1, 2, 2)
    assert len(split) == 3


def test_fetch_copies_float_images():
    split = Split(torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1]), torch.arange(2), 1.0)
    split.fetch([0])[0].zero_()
    assert split.images.min() == 0.5


def test_select_keeps_rows_together():
    part = small().select(torch.tensor([3, 1]))
    assert torch.equal(part.images, small().images[[3, 1]])
    assert part.labels.tolist() == [1, 1]
    assert part.indices.tolist() == [103, 101]
    assert part.scale == 255.0


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("counts", [(50, 50, 50), (100, 10, 31), (1, 40), (7, 0, 9)])
def test_hold_out_is_stratified(share, counts):
    labels = labels_of(*counts)
    stays, held = hold_out(labels, share, "here", 0)
    assert sorted(stays.tolist() + held.tolist()) == list(range(len(labels)))
    for k, n in enumerate(counts):
        taken = int((labels[held] == k).sum())
        assert abs(taken - share * n) <= 1
        assert taken <= max(n - 1, 0)  # a class that is there stays
    assert stays.tolist() == sorted(stays.tolist())
    assert held.tolist() == sorted(held.tolist())


def test_hold_out_has_the_exact_size_and_depends_on_its_keys():
    labels = labels_of(33, 33, 34)
    held = hold_out(labels, 0.2, "here", 0)[1]
    assert len(held) == 20
    assert torch.equal(held, hold_out(labels, 0.2, "here", 0)[1])
    assert not torch.equal(held, hold_out(labels, 0.2, "here", 1)[1])
    assert not torch.equal(held, hold_out(labels, 0.2, "there", 0)[1])


def test_hold_out_of_tiny_shares_takes_nothing():
    assert len(hold_out(labels_of(2, 2), 0.1, "here")[1]) == 0
    assert len(hold_out(labels_of(1, 1), 0.9, "here")[1]) == 0


def test_first_is_balanced_and_nested():
    labels = labels_of(30, 5, 30)
    for count in (1, 2, 3, 9, 15, 40, 65):
        chosen = first(labels, count, "limit", 0)
        assert len(chosen) == count
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        sizes = labels[chosen].bincount(minlength=3)
        if count <= 15:
            assert sizes.max() - sizes.min() <= 1
        else:
            assert sizes[1] == 5
            assert abs(int(sizes[0] - sizes[2])) <= 1
        assert set(chosen.tolist()) <= set(first(labels, count + 7, "limit", 0).tolist())
    assert not torch.equal(first(labels, 9, "limit", 0), first(labels, 9, "limit", 1))


def test_channel_moments_against_the_definition():
    images = torch.randint(0, 256, (1500, 3, 4, 5), dtype=torch.uint8)
    mean, std = channel_moments(images, 255.0)
    unit = images.double().div(255).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(unit.mean(1).tolist(), abs=1e-12)
    assert std == pytest.approx(unit.std(1, correction=0).tolist(), abs=1e-9)
    mean, std = channel_moments(torch.full((3, 2, 2, 2), 0.7), 1.0)
    assert mean == pytest.approx((0.7, 0.7))
    assert std == (1.0, 1.0)


def dataset(train):
    return Dataset(
        "x", ("a", "b"), (3, 2, 2), (0.0,) * 3, (1.0,) * 3, "none", train, small(), small()
    )


def test_digest_sees_pixels_labels_cut_and_scale():
    digest = dataset(small()).digest
    assert len(digest) == 16
    int(digest, 16)
    assert digest == dataset(small()).digest
    base = small()
    others = [
        Split(255 - base.images, base.labels, base.indices, 255.0),
        Split(base.images, 1 - base.labels, base.indices, 255.0),
        Split(base.images, base.labels, base.indices + 1, 255.0),
        Split(base.images, base.labels, base.indices, 256.0),
        Split(base.images.reshape(4, 3, 4, 1), base.labels, base.indices, 255.0),
        base.select(torch.tensor([0, 1, 2])),
    ]
    assert len({digest, *(dataset(other).digest for other in others)}) == 7


def test_digits_are_the_real_ones_and_the_parts_share_nothing():
    from sklearn.datasets import load_digits

    whole = load_digits()
    data = load(Data())
    assert (data.name, data.shape, data.augment) == ("digits", (1, 8, 8), "none")
    assert data.classes == tuple("0123456789")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1294, 144, 359]
    for part in (data.train, data.validation, data.test):
        images, labels = part.fetch(range(len(part)))
        assert images[:, 0].numpy() == pytest.approx(whole.images[part.indices] / 16)
        assert labels.tolist() == whole.target[part.indices].tolist()
    indices = torch.cat([data.train.indices, data.validation.indices, data.test.indices])
    assert sorted(indices.tolist()) == list(range(1797))
    unit = data.train.images.double() / 16
    assert math.isclose(data.mean[0], float(unit.mean()), rel_tol=1e-9)
    assert math.isclose(data.std[0], float(unit.std(correction=0)), rel_tol=1e-9)
    sizes = data.test.labels.bincount()
    assert sizes.max() - sizes.min() <= 2


def test_no_option_touches_the_test_set_and_limit_comes_after_the_cut():
    base = load(Data())
    other = load(Data(split_seed=1, validation=0.3, limit=100))
    assert torch.equal(base.test.indices, other.test.indices)
    assert len(other.train) == 100
    assert other.train.labels.bincount().tolist() == [10] * 10
    assert len(other.validation) == round(0.3 * 1438)
    limited = load(Data(limit=100))
    assert torch.equal(limited.validation.indices, base.validation.indices)
    assert set(limited.train.indices.tolist()) < set(base.train.indices.tolist())
    assert limited.digest != base.digest
    assert base.digest == load(Data()).digest
    assert torch.equal(load(Data(limit=10_000)).train.indices, base.train.indices)


def test_augmentation_of_the_configuration_wins():
    assert load(Data(augment="crop")).augment == "crop"
