import numpy as np
import pytest
import torch
from PIL import Image

from raybust.config.inputs import Data
from raybust.data import Batches, Split, StreamedSplit, load
from raybust.data.augment import MARGIN, crops, mirror, random_view
from raybust.errors import RequestError


def numbered(count=50, channels=3, height=6, width=5, scale=255.0):
    """A part whose labels are positions, so a batch reveals its examples."""
    draw = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    images = torch.randint(1, 256, shape, dtype=torch.uint8, generator=draw)
    return Split(images, torch.arange(count), torch.arange(count), scale)


def walk(split, epoch=0, **options):
    options = {"batch_size": 8, "device": "cpu", "seed": 3, **options}
    return list(Batches(split, **options).epoch(epoch))


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


@pytest.fixture
def streamed(tmp_path):
    rng = np.random.default_rng(0)
    files = tuple(f"{n}.png" for n in range(20))
    for file in files:
        Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8)).save(tmp_path / file)
    return StreamedSplit(tmp_path, files, torch.arange(20), torch.arange(20), 6)


@pytest.mark.parametrize("scale", [255.0, 16.0])
def test_batches_without_augmentation_are_what_fetch_gives(scale):
    split = numbered(scale=scale)
    seen = []
    for images, labels in walk(split):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert torch.equal(images, split.fetch(labels)[0])
        seen += labels.tolist()
    assert len(seen) == len(set(seen)) == 48  # 50 images, batches of 8, the last 2 dropped


def test_float_images_pass_unchanged_and_are_not_written_to():
    split = Split(torch.rand(10, 1, 4, 4), torch.arange(10), torch.arange(10), 1.0)
    before = split.images.clone()
    for images, labels in walk(split, batch_size=5):
        assert torch.equal(images, before[labels])
        images.zero_()
    assert torch.equal(split.images, before)


@pytest.mark.parametrize(
    ("count", "batch_size", "world", "steps", "used"),
    [(50, 8, 1, 6, 8), (48, 8, 2, 6, 8), (5, 8, 1, 1, 5), (5, 8, 2, 1, 4), (8, 8, 4, 1, 8)],
)
def test_steps_and_batch_size(count, batch_size, world, steps, used):
    for rank in range(world):
        batches = Batches(
            numbered(count), batch_size=batch_size, device="cpu", seed=0, rank=rank, world=world
        )
        assert (batches.steps, batches.batch_size) == (steps, used)
        found = list(batches.epoch(0))
        assert [len(labels) for _, labels in found] == [used // world] * steps


def test_bad_batches():
    with pytest.raises(
        RequestError, match=r"train.batch_size: got 8, expected a multiple of the 3"
    ):
        Batches(numbered(), batch_size=8, device="cpu", seed=0, world=3)
    with pytest.raises(RequestError, match="got 2 training images for 4 workers"):
        Batches(numbered(2), batch_size=8, device="cpu", seed=0, world=4)
    with pytest.raises(RequestError, match=r"unknown augmentation 'flop'.*Did you mean 'flip'"):
        Batches(numbered(), batch_size=8, device="cpu", seed=0, augment="flop")


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop_flip"])
def test_the_union_over_ranks_is_one_workers_batch(augment):
    split = numbered()
    whole = walk(split, epoch=2, augment=augment)
    for world in (2, 4):
        ranks = [
            walk(split, epoch=2, augment=augment, rank=rank, world=world) for rank in range(world)
        ]
        together = [
            (torch.cat([x for x, _ in step]), torch.cat([y for _, y in step]))
            for step in zip(*ranks, strict=True)
        ]
        assert same(together, whole)


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_an_epoch_depends_on_seed_and_number_alone(augment):
    split = numbered()
    batches = Batches(split, batch_size=8, device="cpu", seed=3, augment=augment)
    history = [list(batches.epoch(number)) for number in range(3)]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(history[2], walk(split, epoch=2, augment=augment))  # resumed at epoch 2
    assert torch.equal(state, torch.get_rng_state())
    orders = [[y.tolist() for _, y in epoch] for epoch in history]
    assert orders[0] != orders[1] != orders[2]
    assert not same(history[0], walk(split, epoch=0, seed=4, augment=augment))


def test_every_image_is_seen_over_epochs():
    split = numbered(11)
    seen = {int(y) for epoch in range(20) for _, labels in walk(split, epoch) for y in labels}
    assert seen == set(range(11))


def test_crops_against_a_loop():
    images = numbered(4).images
    height, width = images.shape[2:]
    view = crops(images)
    assert view.shape == (4, 3, 2 * MARGIN + 1, 2 * MARGIN + 1, height, width)
    for n in range(4):
        for top in range(2 * MARGIN + 1):
            for left in range(2 * MARGIN + 1):
                expected = torch.zeros_like(images[n])
                for i in range(height):
                    for j in range(width):
                        row, column = i + top - MARGIN, j + left - MARGIN
                        if 0 <= row < height and 0 <= column < width:
                            expected[:, i, j] = images[n, :, row, column]
                assert torch.equal(view[n, :, top, left], expected)


def test_mirror_against_a_loop():
    images = torch.rand(6, 2, 3, 5)
    chosen = torch.tensor([True, False, True, True, False, False])
    expected = torch.stack(
        [x[:, :, [4, 3, 2, 1, 0]] if c else x for x, c in zip(images, chosen, strict=True)]
    )
    assert torch.equal(mirror(images, chosen), expected)


@pytest.mark.parametrize("augment", ["flip", "crop", "crop_flip"])
def test_each_image_of_a_batch_is_one_of_its_own_views(augment):
    split = numbered(64)
    views = crops(split.images).div(255)
    tops, lefts, flips = set(), set(), []
    for epoch in range(12):
        for images, labels in walk(split, epoch, augment=augment, batch_size=64):
            for image, n in zip(images, labels, strict=True):
                found = [
                    (top, left, flip)
                    for flip in (False, True)
                    for top, left in (
                        (
                            (image.flip(2) if flip else image)[None, None]
                            == views[n].permute(1, 2, 0, 3, 4)
                        )
                        .flatten(2)
                        .all(2)
                        .nonzero()
                        .tolist()
                    )
                ]
                assert len(found) == 1
                tops.add(found[0][0])
                lefts.add(found[0][1])
                flips.append(found[0][2])
    everywhere = set(range(2 * MARGIN + 1))
    assert (tops, lefts) == ((everywhere,) * 2 if "crop" in augment else ({MARGIN},) * 2)
    if "flip" in augment:
        assert abs(np.mean(flips) - 0.5) < 5 * 0.5 / len(flips) ** 0.5
    else:
        assert not any(flips)


def test_real_digits_in_batches():
    data = load(Data())
    batches = Batches(data.train, batch_size=128, device="cpu", seed=0, augment=data.augment)
    images, labels = next(batches.epoch(0))
    assert images.shape == (128, 1, 8, 8)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches(streamed, augment, workers):
    one = Batches(
        streamed, batch_size=8, device="cpu", seed=3, augment=augment, loader_workers=workers
    )
    torch.manual_seed(99)
    state = torch.get_rng_state()
    history = [list(one.epoch(number)) for number in range(2)]
    assert torch.equal(state, torch.get_rng_state())
    for epoch, found in enumerate(history):
        assert [x.shape for x, _ in found] == [(8, 3, 6, 6)] * 2
        assert same(found, walk(streamed, epoch, augment=augment))  # resumed, and without processes
        ranks = [walk(streamed, epoch, augment=augment, rank=r, world=2) for r in range(2)]
        for step, (images, labels) in enumerate(found):
            assert torch.equal(images, torch.cat([rank[step][0] for rank in ranks]))
            assert torch.equal(images, streamed.fetch(labels)[0]) == (augment == "none")
    assert not torch.equal(history[0][0][1], history[1][0][1])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_streamed_image_is_named_in_one_line(streamed, workers):
    (streamed.root / "7.png").write_bytes(b"no image")
    with pytest.raises(RequestError, match=r"7\.png: cannot be read as an image") as caught:
        walk(streamed, batch_size=20, loader_workers=workers)
    assert "\n" not in str(caught.value)


def test_random_views_of_a_picture():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 0] = np.arange(60)  # red tells the column
    pixels[..., 1] = np.arange(40)[:, None]  # green tells the row
    image = Image.fromarray(pixels)
    areas, flips = [], []
    for seed in range(300):
        view = np.asarray(random_view(image, 16, "crop_flip", seed)).astype(int)
        assert view.shape == (16, 16, 3)
        across, down = view[8, -1, 0] - view[8, 0, 0], view[-1, 8, 1] - view[0, 8, 1]
        areas.append(abs(across) * down / 2400)
        flips.append(across < 0)
    assert min(areas) < 0.2
    assert 0.6 < max(areas) <= 1
    assert 0.35 < np.mean(flips) < 0.65
    flipped = {random_view(image, 16, "flip", seed).tobytes() for seed in range(20)}
    assert len(flipped) == 2
    assert (
        random_view(image, 16, "crop", 1).tobytes() == random_view(image, 16, "crop", 1).tobytes()
    )


@pytest.mark.parametrize("augment", ["flip", "crop"])
def test_an_image_gets_other_views_in_other_epochs(augment, streamed):
    for split in (numbered(20, height=6, width=6), streamed):
        views = {n: set() for n in range(20)}
        for epoch in range(16):
            for images, labels in walk(split, epoch, augment=augment, batch_size=20):
                for image, n in zip(images, labels.tolist(), strict=True):
                    views[n].add(image.numpy().tobytes())
        assert all(len(found) > 1 for found in views.values())
        if augment == "flip":
            assert all(len(found) == 2 for found in views.values())


# Balanced batches


def of_classes(*counts):
    """A part with the given class counts; `indices` identify the example of an image."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))]
    images = torch.arange(len(labels)).view(-1, 1, 1, 1) / len(labels)
    return Split(images.expand(-1, 1, 2, 2), labels, torch.arange(len(labels)), 1.0)


def positions(split, images):
    return (images[:, 0, 0, 0] * len(split)).round().long().tolist()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_balanced_batches_hold_equally_many_of_each_class(classes):
    split = of_classes(30, 40, 50, 60, 70)
    used, seen = torch.zeros(5), torch.zeros(250)
    for images, labels in walk(split, batch_size=6 * classes, classes=classes):
        counts = labels.bincount(minlength=5)
        assert sorted(counts.tolist()) == [0] * (5 - classes) + [6] * classes
        at = positions(split, images)
        assert len(set(at)) == len(at), "no image twice in a batch"
        assert torch.equal(split.labels[at], labels)
        used += counts > 0
        seen[at] += 1
    assert used.max() - used.min() <= 1
    for label in range(5):
        times = seen[split.labels == label]
        assert times.max() - times.min() <= 1, "every image of a class equally often"


def test_balanced_batches_of_the_ranks_are_balanced_and_make_one_workers_batch():
    split = of_classes(20, 20, 20, 20)
    options = {"batch_size": 24, "classes": 3, "augment": "flip"}
    whole = walk(split, 1, **options)
    for world in (2, 4):
        ranks = [walk(split, 1, rank=rank, world=world, **options) for rank in range(world)]
        for step, (images, labels) in enumerate(whole):
            assert torch.equal(images, torch.cat([rank[step][0] for rank in ranks]))
            assert torch.equal(labels, torch.cat([rank[step][1] for rank in ranks]))
            for rank in ranks:
                assert set(rank[step][1].bincount(minlength=4).tolist()) == {0, 8 // world}


def test_balanced_batches_depend_on_seed_and_epoch_alone():
    split, options = of_classes(20, 20, 20), {"batch_size": 12, "classes": 2}
    batches = Batches(split, device="cpu", seed=3, **options)
    history = [list(batches.epoch(number)) for number in range(2)]
    assert same(history[1], walk(split, 1, **options))
    assert not same(history[0], history[1])
    assert not same(history[0], walk(split, 0, seed=4, **options))


def test_a_class_of_too_few_repeats_its_images_evenly():
    split = of_classes(2, 30, 30)
    for images, labels in walk(split, batch_size=15, classes=3):
        at = torch.tensor(positions(split, images))
        rare = at[labels == 0].bincount(minlength=62)
        assert sorted(rare[rare > 0].tolist()) == [2, 3], "five places, two images"
        assert at[labels > 0].bincount().max() == 1


def test_streamed_batches_can_be_balanced(streamed):
    split = StreamedSplit(streamed.root, streamed.files, torch.arange(20) % 4, streamed.indices, 6)
    for _, labels in walk(split, classes=4):
        assert labels.bincount().tolist() == [2, 2, 2, 2]


def test_bad_balanced_batches():
    with pytest.raises(RequestError, match=r"train.batch_classes: got 4, expected <= 3"):
        walk(of_classes(20, 20, 20), classes=4)
    with pytest.raises(RequestError, match=r"train.batch_size: got 8, .*2 workers times 3 classes"):
        walk(of_classes(20, 20, 20), classes=3, world=2)
    with pytest.raises(RequestError, match=r"got 2 training images for 1 workers times 3 classes"):
        walk(of_classes(1, 1), batch_size=9, classes=3)
